"""Makes physics-true PMU streams with exact labels: a grid simulated by ANDES, measured by model PMUs at 30 frames/s.

Each stream is `NAME.parquet` (an archive that `gridsense` reads) with `NAME.json` beside it: the labels, a list of
`kind`, `cause`, `onset`, `end`, `element`, `pmus`, `size`, `unit`, `note`, times in RFC 3339 UTC. A stream that has
blemishes (single frames dropped, spiked or lost, small steps of one voltage: nobody's events) lists them in
`NAME.blemishes.json`. The same command with the same seed makes the same stream.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

try:
    import numpy as np
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from scripts.simulation import datafaults, scenarios
    from scripts.simulation.grid import PLACES, Placement, place_pmus
    from scripts.simulation.labels import NS, Label, write_labels
    from scripts.simulation.measurement import Simulated, add_noise, measure
    from scripts.simulation.recording import Recording, record, write_recording
    from scripts.simulation.worker import BrokenOffError, SimulationError, Worker
except ImportError:
    own = ROOT / ".venv" / "bin" / "python"
    if not own.exists() or Path(sys.prefix) == own.parents[1]:
        raise
    os.execv(own, [str(own), *sys.argv])  # noqa: S606 - any Python may start this; the project's own runs it

FIRST_NS = 1_772_366_400 * NS
"""2026-03-01T12:00:00Z, when the first stream of seed 0 begins."""
DAY_NS = 86_400 * NS
AMBIENT_STEP_S = 1 / 60
"""Ambient at half the rate costs half the time; its spectrum below 15 Hz is the same to 1 %."""
EVENT_STEP_S = 1 / 120
ONSET_S = 25.0
LENGTHS_S = {"forced_oscillation": 80.0, "generator_trip": 80.0}
LENGTH_S = 60.0
SEGMENT_S = 300.0
"""Ambient longer than this is simulated piece by piece: one file a piece, each with its own draw."""
REDRAWS = 12

BUNDLE = ROOT / "gridsense" / "demo"
BUNDLE_SEED = 2028
DEMO: tuple[tuple[float, str], ...] = (
    (25.0, "fault_4"),
    (40.0, "clock_drift"),
    (65.0, "line_trip"),
    (80.0, "stuck"),
    (105.0, "generator_trip"),
    (130.0, "ratio_drift"),
    (155.0, "source_silent"),
    (180.0, "load_step"),
    (196.0, "data_invalid"),
    (206.0, "frequency_spikes"),
    (225.0, "forced_oscillation"),
    (262.0, "pmu_silent"),
    (285.0, "fault_trip"),
    (300.0, "sync_lost"),
    (325.0, "load_rejection"),
)
DEMO_S = 350.0
REFERENCE_S = 270.0

TRAINING = ROOT / "models" / "corpus"
VARIETY: tuple[tuple[str, int, float, float], ...] = (
    ("wecc", 2029, 1.0, 1.0),
    ("npcc", 2030, 0.5, 2.0),
    ("wecc", 2031, 0.4, 0.6),
)
"""What the bundled network learns from besides the bundled ambient: case, seed, factors on the machines' inertia and on
the pace of the loads, since a grid's modes are its inertia's and its habits its loads'."""
VARIETY_S = 165.0


@dataclass(frozen=True, slots=True)
class Studio:
    """What every stream needs.

    Attributes
    ----------
    worker
        The running ANDES.
    placement
        The PMUs.
    out
        Folder of the results.
    say
        Says what is being made.
    """

    worker: Worker
    placement: Placement
    out: Path
    say: Callable[[str], None]


def rng_of(seed: int, name: str) -> np.random.Generator:
    """Make the draw of one stream: it depends on nothing but the seed and the stream's name."""
    return np.random.default_rng([seed, *name.encode()])


def run_events(
    studio: Studio, duration_s: float, plan: list[tuple[float, str]], rng: np.random.Generator
) -> tuple[Simulated, list[Label]]:
    """Simulate one stream with grid events, drawing other elements until all are seen and the grid holds.

    Parameters
    ----------
    studio
        What every stream needs.
    duration_s
        Length.
    plan
        Onset and scenario of each.
    rng
        The draw.

    Returns
    -------
    tuple[Simulated, list[Label]]
        The run and its labels.

    Raises
    ------
    SimulationError
        If no draw is good.
    """
    grid = studio.placement.grid
    chosen = {at_s: scenarios.SCENARIOS[name](grid, rng, at_s) for at_s, name in plan}
    problem: Exception | None = None
    for _ in range(REDRAWS):
        events = [chosen[at_s] for at_s, _name in plan]
        actions = [a for e in events for a in e.actions]
        opened = {k: t for e in events for k, t in e.opened.items()}
        seed = int(rng.integers(2**31))
        unseen: list[float] = []
        labels = []
        try:
            run = studio.worker.simulate(duration_s, EVENT_STEP_S, seed, actions, opened)
            scenarios.check_stays_together(run, studio.placement)
        except BrokenOffError as error:  # by the last thing that happened
            problem, unseen = (
                error,
                [max((at_s for at_s, _name in plan if at_s <= error.reached_s), default=plan[0][0])],
            )
        except scenarios.NotSeenError as error:
            problem, unseen = error, [at_s for at_s, _name in plan]
        else:
            for at_s, _name in plan:
                try:
                    labels.append(scenarios.finish_label(chosen[at_s], run, studio.placement))
                except scenarios.NotSeenError as error:
                    problem = error
                    unseen.append(at_s)
        if not unseen:
            return run, labels
        studio.say(f"drawing again: {problem}")
        for at_s, name in plan:
            if at_s in unseen:
                chosen[at_s] = scenarios.SCENARIOS[name](grid, rng, at_s)
    raise SimulationError(f"{REDRAWS} draws, none good; the last: {problem}")


def take(studio: Studio, run: Simulated, rng: np.random.Generator, start_ns: int) -> Recording:
    """Measure a run."""
    values = add_noise(measure(run, studio.placement), studio.placement, rng)
    return record(values, studio.placement, start_ns)


def save(studio: Studio, name: str, recording: Recording, labels: list[Label], blemishes: list[Label]) -> None:
    """Write a stream and what was done to it."""
    path = studio.out / f"{name}.parquet"
    write_recording(path, recording)
    write_labels(path.with_suffix(".json"), labels, recording.start_ns)
    if blemishes:
        write_labels(path.with_suffix(".blemishes.json"), blemishes, recording.start_ns)
    studio.say(f"{path}  {path.stat().st_size / 1e6:.2f} MB, {len(labels)} labels")


def pick_pmu(studio: Studio, rng: np.random.Generator, taken: set[int]) -> int:
    """Draw a PMU that has not been broken yet."""
    free = [s for s in range(len(studio.placement.table.pmus)) if s not in taken]
    s = free[int(rng.integers(len(free)))]
    taken.add(s)
    return s


def make_mixed(studio: Studio, name: str, seed: int, start_ns: int) -> None:
    """Make one continuous stream with grid events and data faults between them (`DEMO`), on top of blemishes."""
    rng = rng_of(seed, name)
    studio.say(f"simulating {name}: {DEMO_S:.0f} s")
    # Not on the second: an onset stands anywhere between frames.
    grid_plan = [(t + float(rng.uniform(0, 1)), k) for t, k in DEMO if k in scenarios.SCENARIOS]
    run, labels = run_events(studio, DEMO_S, grid_plan, rng)
    recording = take(studio, run, rng, start_ns)
    blemishes = datafaults.add_blemishes(recording, rng)
    taken: set[int] = set()
    labels += [
        datafaults.apply_fault(k, recording, pick_pmu(studio, rng, taken), t, rng)
        for t, k in DEMO
        if k in datafaults.KINDS
    ]
    save(studio, name, recording, labels, blemishes)


def make_ambient(
    studio: Studio,
    name: str,
    duration_s: float,
    seed: int,
    start_ns: int,
    *,
    blemished: bool,
    changed: dict[str, float] | None = None,
) -> None:
    """Make a stream in which nothing happens."""
    rng = rng_of(seed, name)
    studio.say(f"simulating {name}: {duration_s:.0f} s")
    run = studio.worker.simulate(duration_s, AMBIENT_STEP_S, int(rng.integers(2**31)), [], {}, changed=changed)
    recording = take(studio, run, rng, start_ns)
    save(studio, name, recording, [], datafaults.add_blemishes(recording, rng) if blemished else [])


def make_corpus(studio: Studio, seed: int, only: list[str], *, blemished: bool) -> None:
    """Make one short stream a scenario."""
    case = studio.placement.grid.case
    everything = ["ambient", *scenarios.SCENARIOS, *datafaults.KINDS, "mixed"]
    wanted = [n for n in everything if not only or any(n.startswith(o) for o in only)]
    if not wanted:
        raise SystemExit(f"--only names no scenario; there are: {', '.join(everything)}")
    quiet: Simulated | None = None
    for place, kind in enumerate(everything):
        if kind not in wanted:
            continue
        name = f"{case}-s{seed}-{kind}"
        start_ns = FIRST_NS + seed * DAY_NS + place * 600 * NS
        if kind == "mixed":
            make_mixed(studio, name, seed, start_ns)
        elif kind == "ambient":
            make_ambient(studio, name, 90.0, seed, start_ns, blemished=blemished)
        elif kind in scenarios.SCENARIOS:
            make_event(studio, name, kind, seed, start_ns, blemished=blemished)
        else:
            rng = rng_of(seed, name)
            if quiet is None:  # the same minute of grid under every data fault; the PMUs' noise differs
                studio.say("simulating the ambient minute under the data faults")
                quiet = studio.worker.simulate(
                    LENGTH_S, AMBIENT_STEP_S, int(rng_of(seed, "quiet").integers(2**31)), [], {}
                )
            recording = take(studio, quiet, rng, start_ns)
            blemishes = datafaults.add_blemishes(recording, rng) if blemished else []
            label = datafaults.apply_fault(kind, recording, pick_pmu(studio, rng, set()), ONSET_S, rng)
            save(studio, name, recording, [label], blemishes)


def make_event(studio: Studio, name: str, kind: str, seed: int, start_ns: int, *, blemished: bool) -> None:
    """Make a short stream with one grid event."""
    rng = rng_of(seed, name)
    duration_s = LENGTHS_S.get(kind, LENGTH_S)
    studio.say(f"simulating {name}: {duration_s:.0f} s")
    # Not on the second: an onset stands anywhere between frames.
    run, labels = run_events(studio, duration_s, [(ONSET_S + float(rng.uniform(-2, 2)), kind)], rng)
    recording = take(studio, run, rng, start_ns)
    blemishes = datafaults.add_blemishes(recording, rng) if blemished else []
    save(studio, name, recording, labels, blemishes)


@contextmanager
def open_studio(case: str, out: Path) -> Iterator[Studio]:
    """Start the worker and the progress bar."""
    out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f} %"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("ANDES", total=1.0)
        with Worker(case, lambda share: bar.update(task, completed=share)) as worker:
            placement = place_pmus(worker.grid())
            yield Studio(worker, placement, out, lambda text: console.print(text, highlight=False, soft_wrap=True))
            spent = time.monotonic() - began
            console.print(f"{spent:.0f} s, of which ANDES {worker.cpu_s:.0f} s of processor time")


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    kinds = ", ".join(["ambient", *scenarios.SCENARIOS, *datafaults.KINDS, "mixed"])
    parser = argparse.ArgumentParser(
        prog="simulate_grid.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n"
        "  python scripts/simulate_grid.py corpus out/ --seed 3                 every scenario, NPCC 140-bus\n"
        "  python scripts/simulate_grid.py corpus out/ --case ieee39 --only fault,line_trip\n"
        "  python scripts/simulate_grid.py ambient out/ --minutes 30 --seed 5   nothing happens, for half an hour\n"
        "  python scripts/simulate_grid.py bundle                               what `gridsense demo` shows\n\n"
        "The first run makes .venv-andes from scripts/requirements-andes.txt (ANDES is GPL-3: it makes data here and\n"
        "is never imported by the product). A minute of NPCC takes about 17 s of one core with events, 8 s without.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    corpus = commands.add_parser("corpus", help="one short labelled stream a scenario", epilog=f"scenarios: {kinds}")
    corpus.add_argument(
        "--only", default="", help="scenarios, comma-separated; a beginning stands for all that share it"
    )
    ambient = commands.add_parser("ambient", help="a long stream in which nothing happens, in files of five minutes")
    ambient.add_argument("--minutes", type=float, default=30.0, help="length (default: %(default)g)")
    bundle = commands.add_parser("bundle", help="make gridsense/demo/ again")
    for command in (corpus, ambient):
        command.add_argument("out", type=Path, help="folder for the streams")
        command.add_argument("--case", choices=sorted(PLACES), default="npcc", help="the grid (default: %(default)s)")
        command.add_argument("--seed", type=int, default=1, help="another seed, other elements (default: %(default)s)")
        command.add_argument("--blemishes", action=argparse.BooleanOptionalAction, default=command is corpus,
                             help="ordinary blemishes of real data (default: %(default)s)")  # fmt: skip
    training = commands.add_parser("training", help="make models/corpus/ again, what the bundled network learns from")
    training.add_argument("--out", type=Path, default=TRAINING, help="folder (default: models/corpus)")
    bundle.add_argument("--out", type=Path, default=BUNDLE, help="folder (default: gridsense/demo)")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Run one command."""
    args = parse(arguments)
    try:
        if args.command == "training":
            for case, seed, inertia, pace in VARIETY:
                with open_studio(case, args.out) as studio:
                    make_ambient(studio, f"{case}-{seed}", VARIETY_S, seed, FIRST_NS + seed * DAY_NS, blemished=False,
                                 changed={"inertia": inertia, "pace": pace})  # fmt: skip
            return 0
        with open_studio(getattr(args, "case", "npcc"), args.out) as studio:
            if args.command == "corpus":
                only = [name.strip() for name in args.only.split(",") if name.strip()]
                make_corpus(studio, args.seed, only, blemished=args.blemishes)
            elif args.command == "ambient":
                start_ns = FIRST_NS + args.seed * DAY_NS + 6 * 3600 * NS
                left_s, k = 60 * args.minutes, 0
                while left_s > 0:
                    length_s = min(SEGMENT_S, left_s)
                    name = f"{studio.placement.grid.case}-s{args.seed}-ambient-{k:03d}"
                    make_ambient(studio, name, length_s, args.seed, start_ns + k * round(SEGMENT_S) * NS,
                                 blemished=args.blemishes)  # fmt: skip
                    left_s, k = left_s - length_s, k + 1
            else:
                make_ambient(studio, "ambient", REFERENCE_S, BUNDLE_SEED, FIRST_NS, blemished=False)
                make_mixed(studio, "demo", BUNDLE_SEED, FIRST_NS + 600 * NS)
    except SimulationError as error:
        print(f"simulate_grid: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
