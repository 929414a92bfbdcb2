"""Kills the gateway and the processor at random moments under load, again and again: no event lost, none doubled.

A simulator serves the bundled demo as PMUs of now. A gateway writes what it receives into the log, a processor reads
it; both are real processes, ended by SIGKILL while they start and while they work, and started again. At the end the
processor reads to the end of the log, and another one reads a copy of the same log without any interruption, into a
store of its own: both stores must hold the same changes, to the last letter. A second gateway that nobody kills is the
witness of what was sent: every frame of the log is one of those, in order, each once, and what is
missing was sent while no gateway was there. (C37.118 has no acknowledgement: nobody can send that again.)

With `--faults` it shows instead what is said and done when the disk is full, a file is damaged, or a clock jumps. The
exit status is 1 where something was lost or doubled.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

try:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from scripts.faults.embedded import DISK_FAULTS, FAULTS, Outcome
    from scripts.faults.line import (
        GATEWAY,
        PROCESSOR,
        WORKS,
        Change,
        CheckError,
        Frames,
        Service,
        changes,
        compare_logs,
        events,
        frames,
        process_to_the_end,
        served,
        service,
        simulator,
        write_settings,
    )
    from streams.errors import StreamsError
except ImportError:
    own = ROOT / ".venv" / "bin" / "python"
    if not own.exists() or Path(sys.prefix) == own.parents[1]:
        raise
    os.execv(own, [str(own), *sys.argv])  # noqa: S606 - any Python may start this; the project's own runs it

KILLS, QUICK_KILLS = 100, 5
VICTIMS = {(GATEWAY,): 4, (PROCESSOR,): 5, (GATEWAY, PROCESSOR): 2}
"""Who is killed together, and how often against the others."""
AT_ONCE, STARTING = 0.1, 0.2
"""Shares of the kills that come at once after the last, and while what is killed may still be starting."""
LIVES_S, QUICK_LIVES_S = (0.2, 3.0), (0.2, 1.2)
"""How long it works before it is killed: any time between these."""
START_S = 1.5
"""About what a start takes."""
TAIL_S = 1.0
"""How long the line runs on after the last kill."""


@dataclass(frozen=True, slots=True)
class Storm:
    """What was done.

    Attributes
    ----------
    kills
        By victim.
    gateway_ns
        Moments between two lives of the gateway, rising.
    resumed
        How often the processor went on in the middle of the log.
    took_s
        From the first start to the last stop.
    """

    kills: dict[str, int]
    gateway_ns: list[int]
    resumed: int
    took_s: float


@dataclass(frozen=True, slots=True)
class Events:
    """What became of the events: changes are those that were raised, and those that ended.

    Attributes
    ----------
    straight
        Changes that the uninterrupted run stored.
    lost
        Of these, missing after the kills.
    doubled
        Changes after the kills that the uninterrupted run did not store, or that are stored twice.
    differing
        Changes of the same event that say something else, and events that look otherwise in the end.
    unraised
        Ends that are stored without the event having been raised before.
    """

    straight: int
    lost: int
    doubled: int
    differing: int
    unraised: int


def compare_events(killed: Sequence[Change], straight: Sequence[Change]) -> Events:
    """Hold the changes of two stores against each other.

    Parameters
    ----------
    killed
        Of the processor that was killed.
    straight
        Of the one that was not.

    Returns
    -------
    Events
        What they differ in.
    """
    want = {(one.id, one.ended): one.text for one in straight}
    have = {(one.id, one.ended): one.text for one in killed}
    times = Counter((one.id, one.ended) for one in killed)
    order = {key: n for n, key in enumerate(have)}
    return Events(
        straight=len(want),
        lost=len(want.keys() - have.keys()),
        doubled=sum(times.values()) - len(want.keys() & have.keys()),
        differing=sum(have[key] != want[key] for key in want.keys() & have.keys()),
        unraised=sum(ended and order.get((one, False), n) >= n for n, (one, ended) in enumerate(order)),
    )


def broken(found: Events, logged: Frames) -> list[str]:
    """Say what must not be.

    Parameters
    ----------
    found
        Of the events.
    logged
        Of the frames.

    Returns
    -------
    list[str]
        A sentence each.
    """
    accounted = logged.logged - logged.doubled - logged.unknown + logged.while_down + logged.in_life
    wrong = {
        "no event was found: nothing was tried": not found.straight,
        "no frame was logged: nothing was tried": not logged.logged,
        f"{found.lost} changes of events are lost": found.lost,
        f"{found.doubled} changes of events are doubled, or were never to be": found.doubled,
        f"{found.differing} changes of events say something else": found.differing,
        f"{found.unraised} events ended before they were raised": found.unraised,
        f"{logged.in_life} frames are missing though the gateway was there": logged.in_life,
        f"{logged.doubled} frames are doubled or out of order": logged.doubled,
        f"{logged.unknown} frames are not as they were sent": logged.unknown,
        f"{logged.sent} frames were sent, {accounted} are accounted for": accounted != logged.sent,
    }
    return [words for words, is_so in wrong.items() if is_so]


def storm(
    line: Mapping[str, Service],
    kills: int,
    lives_s: tuple[float, float],
    rng: random.Random,
    say: Callable[[str], None],
) -> Storm:
    """Start the services, kill them at random moments, and start them again.

    Parameters
    ----------
    line
        Gateway and processor.
    kills
        How often.
    lives_s
        How long they work before, at least and at most.
    rng
        Chooses.
    say
        Says how far it is.

    Returns
    -------
    Storm
        What was done. A `CheckError` says that a service ended by itself.
    """
    began_s = time.monotonic()
    done: Counter[str] = Counter()
    gateway_ns: list[int] = []
    for one in line.values():
        one.start()
    for n in range(kills):
        victims = rng.choices([*VICTIMS], [*VICTIMS.values()])[0]
        _wait_for_the_moment([line[name] for name in victims], lives_s, rng)
        for name in victims:
            line[name].kill()
            done[name] += 1
            if name == GATEWAY:
                gateway_ns.append(time.time_ns())
        for name in victims:
            line[name].start()
        if (n + 1) % 10 == 0:
            say(f"{n + 1} of {kills} kills")
    for name, one in line.items():
        one.hear(WORKS[name])
    time.sleep(TAIL_S)
    line[GATEWAY].stop()
    line[PROCESSOR].kill()
    said = (line[PROCESSOR].folder / f"{PROCESSOR}.log").read_text()
    resumed = said.count("from offset ") - said.count("from offset 0 ")
    return Storm(dict(done), gateway_ns, resumed, time.monotonic() - began_s)


def _wait_for_the_moment(victims: Sequence[Service], lives_s: tuple[float, float], rng: random.Random) -> None:
    """Let them live for a while: while they work, while they still start, or not at all."""
    moment = rng.random()
    if moment >= AT_ONCE + STARTING:
        for victim in victims:
            victim.hear(WORKS[victim.name])
        time.sleep(rng.uniform(*lives_s))
    elif moment >= AT_ONCE:
        time.sleep(rng.uniform(0.0, START_S))


def check(
    folder: Path, *, kills: int, seed: int, speed: float, lives_s: tuple[float, float], say: Callable[[str], None]
) -> tuple[Storm, Events, Frames]:
    """Do all of it in a folder.

    Parameters
    ----------
    folder
        Empty.
    kills
        How often somebody is killed.
    seed
        Of the choice.
    speed
        Times real time at which the recording is played.
    lives_s
        How long services work before they are killed.
    say
        Says how far it is.

    Returns
    -------
    tuple[Storm, Events, Frames]
        What was done, and what came of it. A `CheckError` says that it could not be done.
    """
    killed, witness, straight = folder / "killed", folder / "witness", folder / "straight"
    with ExitStack() as stack:
        simulated = stack.enter_context(simulator(folder, speed))
        simulated.start()
        connections = served(simulated)
        for place in (killed, witness, straight):
            write_settings(place, connections)
        seeing = stack.enter_context(service(witness, GATEWAY))
        seeing.start()
        seeing.hear(WORKS[GATEWAY])
        line = {name: stack.enter_context(service(killed, name)) for name in (GATEWAY, PROCESSOR)}
        done = storm(line, kills, lives_s, random.Random(seed), say)  # noqa: S311 - it need not be secret
        time.sleep(TAIL_S)
        seeing.stop()
        simulated.stop()
    say("the processor reads to the end")
    process_to_the_end(killed)
    say("an uninterrupted run reads a copy of the same log")
    for path in killed.glob("log.db*"):
        shutil.copy(path, straight / path.name)
    process_to_the_end(straight)
    logged = compare_logs(frames(witness / "log.db"), frames(killed / "log.db"), done.gateway_ns)
    found = compare_events(changes(killed / "events.db"), changes(straight / "events.db"))
    ends = Counter(events(killed / "events.db"))
    ends.subtract(events(straight / "events.db"))
    found = replace(found, differing=found.differing + sum(n > 0 for n in ends.values()))
    return done, found, logged


def show(console: Console, done: Storm, found: Events, logged: Frames) -> None:
    """Print the figures for people."""
    table = Table("", "", box=SIMPLE_HEAD, show_header=False, pad_edge=False)
    table.columns[1].justify = "right"
    kills = ", ".join(f"{name} {count}" for name, count in sorted(done.kills.items()))
    rows = (
        ("killed by SIGKILL", kills),
        ("processor went on in the middle of the log", f"{done.resumed:,} times"),
        ("time", f"{done.took_s:.0f} s"),
        ("changes of events, uninterrupted", f"{found.straight:,}"),
        ("  lost", f"{found.lost:,}"),
        ("  doubled", f"{found.doubled:,}"),
        ("  differing", f"{found.differing:,}"),
        ("  ended before they were raised", f"{found.unraised:,}"),
        ("frames sent", f"{logged.sent:,}"),
        ("  in the log", f"{logged.logged:,}"),
        ("  sent while no gateway was there", f"{logged.while_down:,}"),
        ("  missing though it was there", f"{logged.in_life:,}"),
        ("  doubled or out of order", f"{logged.doubled:,}"),
        ("  not as they were sent", f"{logged.unknown:,}"),
        ("longest time before a kill that was not written", f"{logged.unwritten_s * 1e3:.0f} ms"),
    )
    for row in rows:
        table.add_row(*row)
    console.print(table)


def as_json(done: Storm, found: Events, logged: Frames, wrong: Sequence[str]) -> str:
    """Write the figures as one line of JSON."""
    figures = {
        "kills": done.kills,
        "resumed": done.resumed,
        "took_s": round(done.took_s, 1),
        **{("changes" if name == "straight" else name): value for name, value in asdict(found).items()},
        **{f"frames_{name}": value for name, value in asdict(logged).items() if name != "unwritten_s"},
        "unwritten_ms": round(logged.unwritten_s * 1e3, 1),
        "broken": list(wrong),
    }
    return json.dumps(figures)


def try_faults(folder: Path, say: Callable[[str], None]) -> list[Outcome]:
    """Try every fault.

    Parameters
    ----------
    folder
        Empty.
    say
        Says how far it is.

    Returns
    -------
    list[Outcome]
        In their order. A `CheckError` says that one could not be tried.
    """
    out = []
    for fault in (*FAULTS, *(partial(one, mount=True) for one in DISK_FAULTS)):
        place = folder / str(len(out))
        place.mkdir()
        out.append(fault(place))
        say(out[-1].fault)
    return out


def show_faults(console: Console, outcomes: Sequence[Outcome]) -> None:
    """Print what was done, said, and what came of it."""
    table = Table("fault", "what was said", "what came of it", "", box=SIMPLE_HEAD, pad_edge=False, show_lines=True)
    for one in outcomes:
        verdict = f"[bold red]{'; '.join(one.wrong)}[/]" if one.wrong else "[green]as promised[/]"
        table.add_row(one.fault, one.said, one.came, verdict)
    console.print(table)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="kill_embedded.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=None, help=f"how often (default: {KILLS})")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_KILLS} kills, within a minute")
    parser.add_argument("--seed", type=int, default=1, help="of the choice of victims and moments (default: 1)")
    parser.add_argument("--speed", type=float, default=3.0, help="times real time (default: %(default)g)")
    parser.add_argument("--keep", type=Path, default=None, help="a new folder for logs and stores; kept")
    parser.add_argument("--faults", action="store_true", help="disk full, damaged files, clocks that jump, instead")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object with the figures")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Check, and say what came of it."""
    args = parse(arguments)
    aside = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
    kills = args.kills if args.kills is not None else QUICK_KILLS if args.quick else KILLS
    lives_s = QUICK_LIVES_S if args.quick else LIVES_S
    with ExitStack() as stack:
        if args.keep is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gridsense-kill-")))
        else:
            folder = args.keep
            folder.mkdir(parents=True)
        try:
            if args.faults:
                outcomes = try_faults(folder, aside.print)
                show_faults(Console(), outcomes)
                if args.json:
                    print(json.dumps({"faults": [asdict(one) for one in outcomes]}))
                return int(any(one.wrong for one in outcomes))
            done, found, logged = check(
                folder, kills=kills, seed=args.seed, speed=args.speed, lives_s=lives_s, say=aside.print
            )
        except (CheckError, StreamsError) as error:
            print(f"kill_embedded: {error}", file=sys.stderr)
            return 2
    wrong = broken(found, logged)
    show(Console(soft_wrap=not sys.stdout.isatty()), done, found, logged)
    for words in wrong:
        print(words)
    if args.json:
        print(as_json(done, found, logged, wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
