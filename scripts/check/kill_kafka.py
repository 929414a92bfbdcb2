"""Kills processors of a Kafka group at random moments, and brokers too, again and again: no event lost, none doubled.

A simulator serves the bundled demo as PMUs of now, each source a region of its own. A gateway streams into a cluster
of three brokers, three processors share the work; all are real processes. Processors are ended by SIGKILL while they
start and while they work, one, two or all of them; they come back at once, soon, or after their session, so that their
partitions move. Every few kills a broker is killed, or stopped, and started again. At the end all frames are read
committed out of all partitions and written into one embedded log, and one embedded processor reads that without any
interruption: the events of the topic, read committed, must be its events, id for id and letter for letter. Likewise
the dead letters; no group may ever have committed a place behind one before; and a witness, a second gateway with a
log of its own, says which frames were sent.

With `--fencing` nobody dies: processors are put to sleep (SIGSTOP) for longer than their session, one after the
other, and woken (SIGCONT) when others have their partitions. They must commit nothing there any more, and work on.

With `--outage` all brokers are stopped together for that long, or put to sleep with `--asleep`, while frames come at
their own pace. The gateway's spill must bring every frame, in order; it says how long that took.

Needs Java 17 and, the first time, Maven. The exit status is 1 where anything differs, 2 where it could not be tried.

  kill_kafka.py --kills 100             # about a quarter of an hour
  kill_kafka.py --quick                 # 5 kills
  kill_kafka.py --fencing
  kill_kafka.py --outage 60 --asleep
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

try:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.table import Table

    from gridsense.cli import EXIT_PEER
    from gridsense.errors import GridSenseError
    from scripts.broker.cluster import BrokerError, Cluster
    from scripts.broker.jars import KafkaMissingError
    from scripts.check.kill_embedded import Events, broken, compare_events
    from scripts.faults.kafka import (
        GROUP,
        JOIN,
        KafkaLine,
        back,
        commits,
        dead_letters,
        overtaken,
        put_aside,
        told,
    )
    from scripts.faults.line import (
        GATEWAY,
        CheckError,
        Frames,
        Service,
        changes,
        compare_logs,
        frames,
        wait_until,
    )
    from streams.errors import StreamsError
    from streams.log import DEAD_LETTERS
    from streams.sqlite_log import open_log
except ImportError:
    own = ROOT / ".venv" / "bin" / "python"
    if not own.exists() or Path(sys.prefix) == own.parents[1]:
        raise
    os.execv(own, [str(own), *sys.argv])  # noqa: S606 - any Python may start this; the project's own runs it

KILLS, QUICK_KILLS = 100, 5
BROKERS = 3
WORKS = "are ours"
"""What a processor says when it has got partitions."""
TOGETHER = {1: 7, 2: 2, 3: 1}
"""How many processors are killed together, and how often against the others."""
AT_ONCE = 0.25
"""Share of the kills that come at once after the last, so that processors die while they start, or take over."""
LIVES_S, QUICK_LIVES_S = (0.2, 5.0), (0.2, 3.0)
"""How long a processor works before it is killed: any time between these."""
START_S = 15.0
"""Nobody is waited for longer until it works: it may have no partition."""
PAUSES_S = ((0.0, 0.3), (0.3, 6.0), (10.5, 15.0))
"""How long a killed processor is away: it is started at once, before its session has ended, or after that."""
PAUSE_WEIGHTS = (5, 3, 2)
BROKER_EVERY, QUICK_BROKER_EVERY = 8, 3
"""After so many kills a broker falls."""
BROKER_AWAY_S = (0.0, 6.0)
AGAIN_S = 1.0
"""Before a processor is started again that found no broker, as whoever runs services does."""
WARM_S = 12.0
"""Before the first kill: the line comes to work."""
TAIL_S = 5.0
"""How long the line runs on after the last fault."""
SLEEPS, QUICK_SLEEPS = 5, 1
BEFORE_OUTAGE_S, AFTER_OUTAGE_S = 30.0, 20.0
RECOVERY_PATIENCE_S = 300.0


@dataclass(slots=True)
class Storm:
    """What was done, and what the group did then.

    Attributes
    ----------
    kills
        Processors ended by SIGKILL, by name.
    together
        How often so many at once.
    unanswered
        Processors that found no broker at their start, ended with that, and were started again.
    brokers
        How often brokers were killed, stopped or put to sleep.
    sleeps
        How often processors were put to sleep.
    late
        What was committed by a sleeper after others had its partitions.
    outage_s, answered_s, recovery_s
        How long all brokers were away; from their end until they answered again; and, as the gateway says, from when it
        missed them until all that had waited was written.
    spilled
        Records that came by way of the gateway's disk.
    moves
        Partitions that went to another instance.
    transactions, aborted, fenced
        Of all lives that could be asked.
    commits
        Places that were committed.
    took_s
        From the first start to the last stop.
    """

    kills: Counter[str] = field(default_factory=Counter)
    together: Counter[int] = field(default_factory=Counter)
    unanswered: int = 0
    brokers: Counter[str] = field(default_factory=Counter)
    sleeps: int = 0
    late: list[str] = field(default_factory=list)
    outage_s: float = 0.0
    answered_s: float = 0.0
    recovery_s: float = 0.0
    spilled: int = 0
    moves: int = 0
    transactions: int = 0
    aborted: int = 0
    fenced: int = 0
    commits: int = 0
    took_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Found:
    """What came of it.

    Attributes
    ----------
    events
        Of the topic, against those of the uninterrupted run.
    frames
        Of the topic, against those that were sent.
    dead
        Dead letters.
    wrong
        What must not be, a sentence each.
    """

    events: Events
    frames: Frames
    dead: int
    wrong: list[str]


class Killing:
    """Kills processors and brokers of a line, and starts them again.

    Parameters
    ----------
    line
        Started.
    rng
        Chooses.
    done
        What was done is written there.
    """

    def __init__(self, line: KafkaLine, rng: random.Random, done: Storm) -> None:
        self.line, self.rng, self.done = line, rng, done
        self._due_s: dict[str, float] = {}
        self._breaker = ThreadPoolExecutor(1, "brokers")
        self._broken: Future[None] | None = None

    def storm(
        self, kills: int, lives_s: tuple[float, float], broker_every: int, say: Callable[[str, int], None]
    ) -> None:
        """Kill, again and again.

        Parameters
        ----------
        kills
            How often.
        lives_s
            How long processors work before.
        broker_every
            After so many kills a broker falls.
        say
            Says how far it is.
        """
        try:
            self.live(WARM_S)
            for n in range(kills):
                if (n + 1) % broker_every == 0:
                    self._break()
                self._kill(self._victims(lives_s))
                say(f"{n + 1} of {kills} kills", 1)
            while self._due_s:
                self.live(0.1)
            if self._broken is not None:
                self._broken.result()
        finally:
            self._breaker.shutdown()
        self.live(TAIL_S)

    def live(self, time_s: float) -> None:
        """Let the line work; start who is due.

        Parameters
        ----------
        time_s
            How long.
        """
        end_s = time.monotonic() + time_s
        while (now_s := time.monotonic()) < end_s:
            for one in self.line.processors:
                if self._due_s.get(one.name, end_s) <= now_s:
                    del self._due_s[one.name]
                    one.start()
                elif one.process is not None and one.process.poll() == EXIT_PEER:  # at its start a broker was away
                    one.wait()
                    self.done.unanswered += 1
                    self._due_s[one.name] = now_s + AGAIN_S
            self.line.running()
            time.sleep(0.02)

    def _victims(self, lives_s: tuple[float, float]) -> list[Service]:
        """Choose who dies, and let them live for a while: while they work, while they still start, or not at all."""
        self.live(0.05)
        while not (running := self.line.running()):
            self.live(0.1)
        many = self.rng.choices([*TOGETHER], [*TOGETHER.values()])[0]
        victims = self.rng.sample(running, min(many, len(running)))
        if self.rng.random() >= AT_ONCE:
            late_s = time.monotonic() + START_S
            while not all(one.heard(WORKS) for one in victims) and time.monotonic() < late_s:
                self.live(0.1)
            self.live(self.rng.uniform(*lives_s))
        return victims

    def _kill(self, victims: Sequence[Service]) -> None:
        for one in victims:
            self.line.kill(one)
            self.done.kills[one.name] += 1
            pause_s = self.rng.uniform(*self.rng.choices(PAUSES_S, PAUSE_WEIGHTS)[0])
            self._due_s[one.name] = time.monotonic() + pause_s
        self.done.together[len(victims)] += 1

    def _break(self) -> None:
        """Let a broker fall, unless one is still away."""
        if self._broken is not None:
            if not self._broken.done():
                return
            self._broken.result()
        n, kill, away_s = self.rng.randrange(BROKERS), self.rng.random() < 0.6, self.rng.uniform(*BROKER_AWAY_S)
        self.done.brokers["killed" if kill else "stopped"] += 1
        self._broken = self._breaker.submit(_fall, self.line.cluster, n, kill=kill, away_s=away_s)


def _fall(cluster: Cluster, n: int, *, kill: bool, away_s: float) -> None:
    (cluster.kill if kill else cluster.halt)(n)
    time.sleep(away_s)
    cluster.restart(n)


def fence(line: KafkaLine, times: int, rng: random.Random, done: Storm, say: Callable[[str, int], None]) -> None:
    """Put processors to sleep until others have their partitions, and wake them.

    Parameters
    ----------
    line
        Started.
    times
        How often.
    rng
        Chooses.
    done
        What was done is written there.
    say
        Says how far it is. A `CheckError` says that partitions do not move, or a sleeper does not work again.
    """
    killing = Killing(line, rng, done)
    wait_until(lambda: all(line.watch.of(name) for name in line.instances), "each has a partition")
    for n in range(times):
        killing.live(rng.uniform(2.0, 5.0))
        sleeper = rng.choice([one for one in line.processors if line.watch.of(one.name)])
        done.late += _sleep(line, sleeper, killing)
        done.sleeps += 1
        say(f"{n + 1} of {times} sleeps", 1)


def _sleep(line: KafkaLine, sleeper: Service, killing: Killing) -> list[str]:
    """Put a processor to sleep and wake it; say what it committed that was no longer its own."""
    name, had = sleeper.name, line.watch.of(sleeper.name)

    def taken() -> bool:
        killing.live(1.0)  # it is a long list
        return had <= overtaken(asleep[GROUP], commits(line.settings)[GROUP]).keys()

    sleeper.suspend()
    try:
        asleep = commits(line.settings)
        wait_until(lambda: not had & line.watch.of(name), f"the partitions of {name} move")
        wait_until(taken, f"others commit what {name} had")
        killing.live(killing.rng.uniform(0.0, 3.0))
        awake = commits(line.settings)
    finally:
        sleeper.resume()
    wait_until(lambda: bool(line.watch.of(name)), f"{name} has partitions again")
    killing.live(TAIL_S)
    late = []
    for group, places in commits(line.settings).items():
        over = overtaken(asleep[group], awake[group])
        late += [
            f"{name} committed {one.offset} in partition {one.partition} of {group} after others had it"
            for one in places[len(awake[group]) :]
            if over.get(one.partition) == one.member
        ]
    return late


def cut_off(line: KafkaLine, outage_s: float, *, asleep: bool, done: Storm, say: Callable[[str, int], None]) -> None:
    """Take all brokers away together for a while.

    Parameters
    ----------
    line
        Started.
    outage_s
        For how long.
    asleep
        Put them to sleep; else they are stopped.
    done
        What was done is written there.
    say
        Says how far it is.
    """
    killing, everyone, cluster = Killing(line, random.Random(0), done), range(BROKERS), line.cluster  # noqa: S311
    killing.live(BEFORE_OUTAGE_S)
    say("the brokers go", 1)
    began_s = time.monotonic()
    if asleep:
        for n in everyone:
            cluster.suspend(n)
    else:
        cluster.halt(*everyone)
    killing.live(outage_s - (time.monotonic() - began_s))
    say("the brokers come back", 1)
    if asleep:
        cluster.resume(*everyone)
    done.outage_s = time.monotonic() - began_s
    if not asleep:
        cluster.restart(*everyone)
    done.answered_s = time.monotonic() - began_s
    done.brokers["asleep" if asleep else "stopped"] += BROKERS
    wait_until(
        lambda: line.asked(GATEWAY, "_gateway_recovery_seconds") > 0,
        "the gateway has written all that had waited",
        line.gateway.said,
        RECOVERY_PATIENCE_S,
    )
    done.recovery_s = line.asked(GATEWAY, "_gateway_recovery_seconds")
    done.spilled = round(line.asked(GATEWAY, "_spilled_records_total"))
    say("the spill is empty", 1)
    killing.live(AFTER_OUTAGE_S)


def judge(line: KafkaLine, done: Storm, say: Callable[[str, int], None]) -> Found:
    """Stop the input, let the group read to the end, and hold what it wrote against an uninterrupted run.

    Parameters
    ----------
    line
        After the storm.
    done
        What was done; what the group did is added.
    say
        Says how far it is.

    Returns
    -------
    Found
        What came of it.
    """
    line.stop_input()
    say("the group reads to the end", 1)
    ends = line.straighten()
    with ThreadPoolExecutor(1, "straight") as beside:
        reading = beside.submit(line.process_straight)
        line.read_to_the_end(ends)
        say("an uninterrupted run reads the same frames", 1)
        straight = reading.result()
    have, strangers = told(line.settings)
    places = commits(line.settings)
    done.moves, done.commits = line.watch.moves, sum(map(len, places.values()))
    done.transactions, done.aborted, done.fenced = (
        line.counted[name] for name in ("transactions", "aborted", "fenced")
    )
    events = compare_events(have, changes(straight / "events.db"))
    logged = compare_logs(frames(line.folder / "witness" / "log.db"), frames(straight / "log.db"), [])
    dead = dead_letters(put_aside(line.settings))
    with closing(open_log(straight / "log.db")) as log:
        dead_straight = dead_letters(log.read(DEAD_LETTERS, 0).entries)
    wrong = [*broken(events, logged), *back(places[GROUP]), *back(places[JOIN]), *done.late]
    if dead != dead_straight:
        wrong.append(f"{len(dead)} dead letters, and {len(dead_straight)} of the uninterrupted run, are not the same")
    if not (places[GROUP] and places[JOIN]):
        wrong.append("no commits of both groups were found: whether they went back was not tried")
    if strangers:
        wrong.append(f"{len(strangers)} events stand under another key than their id")
    return Found(events, logged, len(dead), wrong)


def show(console: Console, done: Storm, found: Found) -> None:
    """Print the figures for people."""
    table = Table("", "", box=SIMPLE_HEAD, show_header=False, pad_edge=False)
    table.columns[1].justify = "right"
    rows = [("time", f"{done.took_s:.0f} s")]
    if done.kills:
        together = ", ".join(
            f"{size} together {count} times" for size, count in sorted(done.together.items()) if size > 1
        )
        killed = ", ".join(f"{name} {count}" for name, count in sorted(done.kills.items()))
        rows.append(("killed by SIGKILL", killed))
        rows.append(("  of these", together or "each alone"))
        rows.append(("ended at their start, a broker being away, and started again", f"{done.unanswered}"))
    if done.brokers:
        rows.append(("brokers", ", ".join(f"{how} {count}" for how, count in sorted(done.brokers.items()))))
    if done.sleeps:
        rows.append(("processors put to sleep, and woken when others had their partitions", f"{done.sleeps}"))
        rows.append(("  commits of theirs after that", f"{len(done.late)}"))
    if done.outage_s:
        rows.append(("all brokers away", f"{done.outage_s:.0f} s"))
        rows.append(("  until they answered again", f"{done.answered_s:.1f} s"))
        rows.append(("  recovery: until all that had waited was written", f"{done.recovery_s:.1f} s"))
        rows.append(("  records that came by way of the spill", f"{done.spilled:,}"))
    rows += [
        ("partitions that moved to another processor", f"{done.moves}"),
        ("transactions, aborted, fenced", f"{done.transactions:,}, {done.aborted:,}, {done.fenced:,}"),
        ("places committed", f"{done.commits:,}"),
        ("changes of events, uninterrupted", f"{found.events.straight:,}"),
        ("  lost", f"{found.events.lost:,}"),
        ("  doubled", f"{found.events.doubled:,}"),
        ("  differing", f"{found.events.differing:,}"),
        ("  ended before they were raised", f"{found.events.unraised:,}"),
        ("frames sent", f"{found.frames.sent:,}"),
        ("  in the topic", f"{found.frames.logged:,}"),
        ("  missing", f"{found.frames.in_life:,}"),
        ("  doubled or out of order", f"{found.frames.doubled:,}"),
        ("  not as they were sent", f"{found.frames.unknown:,}"),
        ("dead letters", f"{found.dead:,}"),
    ]
    for row in rows:
        table.add_row(*row)
    console.print(table)


def as_json(done: Storm, found: Found) -> str:
    """Write the figures as one line of JSON."""
    figures = {
        **{one.name: getattr(done, one.name) for one in fields(done)},
        **{("changes" if name == "straight" else name): value for name, value in asdict(found.events).items()},
        **{
            f"frames_{name}": getattr(found.frames, name)
            for name in ("sent", "logged", "in_life", "doubled", "unknown")
        },
        "dead_letters": found.dead,
        "broken": found.wrong,
    }
    return json.dumps(figures)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="kill_kafka.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=None, help=f"how often processors are killed (default: {KILLS})")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_KILLS} kills, or {QUICK_SLEEPS} sleep")
    parser.add_argument("--fencing", action="store_true", help=f"put processors to sleep, {SLEEPS} times, instead")
    parser.add_argument(
        "--outage", type=float, nargs="?", const=60.0, default=0.0, metavar="SECONDS",
        help="take all brokers away for so long, instead (60 where no number is given)",
    )  # fmt: skip
    parser.add_argument("--asleep", action="store_true", help="with --outage: they sleep instead of being stopped")
    parser.add_argument("--seed", type=int, default=1, help="of the choice of victims and moments (default: 1)")
    parser.add_argument(
        "--speed", type=float, default=0.0, help="times real time; as a rule 2, and 1 with --outage: 30 frames a second"
    )
    parser.add_argument("--keep", type=Path, default=None, help="a new folder for logs and brokers' data; kept")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object with the figures")
    args = parser.parse_args(arguments)
    if args.fencing and args.outage:
        parser.error("--fencing and --outage: one at a time")
    if args.asleep and not args.outage:
        parser.error("--asleep goes with --outage")
    return args


def check(folder: Path, args: argparse.Namespace, say: Callable[[str, int], None]) -> tuple[Storm, Found]:
    """Do all of it in a folder.

    Parameters
    ----------
    folder
        Empty.
    args
        Of the command line.
    say
        Says how far it is.

    Returns
    -------
    tuple[Storm, Found]
        What was done, and what came of it. A `CheckError` says that it could not be done.
    """
    done, rng = Storm(), random.Random(args.seed)  # noqa: S311 - it need not be secret
    speed = args.speed or (1.0 if args.outage else 2.0)
    say("brokers start", 0)
    with Cluster(folder / "brokers", BROKERS) as cluster, KafkaLine(folder, cluster, speed=speed) as line:
        began_s = time.monotonic()
        line.start()
        if args.outage:
            cut_off(line, args.outage, asleep=args.asleep, done=done, say=say)
        elif args.fencing:
            fence(line, QUICK_SLEEPS if args.quick else SLEEPS, rng, done, say)
        else:
            every, lives_s = (QUICK_BROKER_EVERY, QUICK_LIVES_S) if args.quick else (BROKER_EVERY, LIVES_S)
            Killing(line, rng, done).storm(_kills(args), lives_s, every, say)
        found = judge(line, done, say)
        done.took_s = time.monotonic() - began_s
    return done, found


def _kills(args: argparse.Namespace) -> int:
    kills: int | None = args.kills
    return kills if kills is not None else QUICK_KILLS if args.quick else KILLS


@contextmanager
def going(args: argparse.Namespace) -> Iterator[Callable[[str, int], None]]:
    """Show how far it is: a bar on a terminal, else a line now and then."""
    console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
    steps = 3 if args.outage else _kills(args) if not args.fencing else QUICK_SLEEPS if args.quick else SLEEPS
    columns = (BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task, began_s = bar.add_task("", total=steps + 2), time.monotonic()

        def say(words: str, steps: int) -> None:
            bar.update(task, description=words, advance=steps)
            if bar.disable:
                console.print(f"{time.monotonic() - began_s:5.0f} s: {words}")

        yield say


def main(arguments: Sequence[str]) -> int:
    """Check, and say what came of it."""
    args = parse(arguments)
    with ExitStack() as stack:
        if args.keep is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gridsense-kill-")))
        else:
            folder = args.keep
            folder.mkdir(parents=True)
        try:
            with going(args) as say:
                done, found = check(folder, args, say)
        except (BrokerError, CheckError, GridSenseError, KafkaMissingError, StreamsError) as error:
            print(f"kill_kafka: {error}", file=sys.stderr)
            return 2
    show(Console(width=None if sys.stdout.isatty() else 120), done, found)
    for words in found.wrong:
        print(words)
    if args.json:
        print(as_json(done, found))
    return 1 if found.wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
