"""Checks what GridSense promises of events: the bundled streams and other seeds, scored by the product's own pipeline.

The quadratic scorer, the sequence model and both together are held against the same streams, side by side; the promises
are those of both together.

Every stream is watched with a reference learned from an ambient stream of another draw of the same grid, and its events
are held against the labels beside it. Streams of other seeds are simulated on demand and kept in `.cache/corpus`. The
exit status is 1 where a promise is broken.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
os.environ["OPENBLAS_NUM_THREADS"] = "1"  # many small products: threads only wait for each other

try:
    import numpy as np
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from gridsense import detection
    from gridsense.errors import GridSenseError
    from gridsense.events import Cause, Event, rfc3339
    from gridsense.judging import EARLY_S, Finding, Label, Verdict, judge, read_labels, rows
    from gridsense.pipeline import Learned, Output, Pipeline, Scorer, Settings
    from gridsense.sequence import load_model
    from gridsense.sources import open_source, read_rounds
    from models.errors import ModelsError
    from scripts.simulate_grid import SEGMENT_S
    from scripts.simulation import datafaults, scenarios
    from scripts.simulation.grid import PLACES
    from streams.errors import StreamsError
except ImportError:
    own = ROOT / ".venv" / "bin" / "python"
    if not own.exists() or Path(sys.prefix) == own.parents[1]:
        raise
    os.execv(own, [str(own), *sys.argv])  # noqa: S606 - any Python may start this; the project's own runs it

BUNDLE = ROOT / "gridsense" / "demo"
CACHE = ROOT / ".cache" / "corpus"
SIMULATOR = ROOT / "scripts" / "simulate_grid.py"
STAMP = "simulator.sha256"
REFERENCE_MINUTES = 5.0

SLOW = "forced_oscillation"
"""The one kind of the grid that grows slowly; every other is a jolt."""
KINDS = (*scenarios.SCENARIOS, *datafaults.KINDS)
"""One short stream each."""
MIXED = "mixed"
"""One long stream with many of them, one after the other, as the bundled one."""
DELAY_P90_S = 2.0
SLOW_WITHIN_S = 15.0
EVENTS_PER_DISTURBANCE = 1.2
LOOK_S = 10.0
"""How long after an onset the evidence is gathered."""


class CheckError(Exception):
    """The check could not be made; the message says why."""


@dataclass(frozen=True, slots=True)
class Watched:
    """A stream and what the pipeline made of it.

    Attributes
    ----------
    grid
        The grid that it is of: ``bundled``, or a case.
    name
        For people.
    labelled
        Something was done to it; else it is ambient.
    events
        The newest version of each, by the moment it was raised.
    verdict
        On its labels.
    evidence
        For each event or label that is a miss or a false alarm, what the scorers said; by its moment in ns.
    """

    grid: str
    name: str
    labelled: bool
    events: tuple[Event, ...]
    verdict: Verdict
    evidence: dict[int, list[str]]


@dataclass(frozen=True, slots=True)
class Figures:
    """What was measured.

    Attributes
    ----------
    happened, found
        By kind of the grid.
    delay_p50_s, delay_p90_s
        Over all jolts that were found; NaN where none was.
    slow_delay_s
        The longest of a forced oscillation; infinite where one was missed, NaN where none happened.
    events_per_disturbance
        Grid events to each disturbance that was found; NaN where none was.
    data_happened, data_found, data_called_grid
        Faults of data and communication.
    false_grid_ambient, ambient_minutes
        Grid events where nothing happened, and how long that was watched.
    false_grid_elsewhere
        Grid events beside the grid's labels in the other streams.
    other_events
        Events of other causes that answer no label: most tell of blemishes, which are nobody's event. Not promised.
    hours
        Time watched in all.
    """

    happened: dict[str, int]
    found: dict[str, int]
    delay_p50_s: float
    delay_p90_s: float
    slow_delay_s: float
    events_per_disturbance: float
    data_happened: int
    data_found: int
    data_called_grid: int
    false_grid_ambient: int
    ambient_minutes: float
    false_grid_elsewhere: int
    other_events: int
    hours: float


@dataclass(frozen=True, slots=True)
class Promise:
    """One promise and what came of it; `kept` is None where it was not put to the test."""

    words: str
    measured: str
    kept: bool | None


def measure(watched: Sequence[Watched]) -> Figures:
    """Sum up what was seen.

    Parameters
    ----------
    watched
        All streams.

    Returns
    -------
    Figures
        Over all of them.
    """
    findings = [f for w in watched for f in w.verdict.findings]
    grid = [f for f in findings if f.label.cause is Cause.GRID]
    data = [f for f in findings if f.label.cause is not Cause.GRID]
    kinds = sorted({f.label.kind for f in grid})
    jolts = [f.delay_s for f in grid if f.event is not None and f.label.kind != SLOW]
    p50, p90 = np.percentile(jolts, [50, 90]).tolist() if jolts else (math.nan, math.nan)
    slow = [math.inf if f.event is None else f.delay_s for f in grid if f.label.kind == SLOW]
    answered = [1 + f.repeats for f in grid if f.event is not None]
    called = sum(row.called_grid for row in rows(w.verdict for w in watched))
    ambient = [w for w in watched if not w.labelled]
    return Figures(
        happened={k: sum(f.label.kind == k for f in grid) for k in kinds},
        found={k: sum(f.label.kind == k and f.event is not None for f in grid) for k in kinds},
        delay_p50_s=p50,
        delay_p90_s=p90,
        slow_delay_s=max(slow, default=math.nan),
        events_per_disturbance=sum(answered) / len(answered) if answered else math.nan,
        data_happened=len(data),
        data_found=sum(f.event is not None for f in data),
        data_called_grid=called,
        false_grid_ambient=sum(len(w.verdict.false_grid) for w in ambient),
        ambient_minutes=sum(w.verdict.hours for w in ambient) * 60,
        false_grid_elsewhere=sum(len(w.verdict.false_grid) for w in watched if w.labelled),
        other_events=sum(len(w.verdict.others) for w in watched),
        hours=sum(w.verdict.hours for w in watched),
    )


def promises(f: Figures, minutes: float) -> list[Promise]:
    """Hold the figures against their bounds.

    Parameters
    ----------
    f
        What was measured.
    minutes
        How much ambient was asked for.

    Returns
    -------
    list[Promise]
        In the order of the issue.
    """
    jolts = sum(n for k, n in f.happened.items() if k != SLOW)
    prompt = f.delay_p90_s <= DELAY_P90_S
    hit = sum(n for k, n in f.found.items() if k != SLOW)
    slow, slow_hit = f.happened.get(SLOW, 0), f.found.get(SLOW, 0)
    enough = f.ambient_minutes >= minutes - 0.1
    return [
        Promise(
            "every fault, line trip, generator trip and load step is found",
            f"{hit} of {jolts}",
            _kept(jolts, hit == jolts),
        ),
        Promise(f"delay p90 within {DELAY_P90_S:g} s", _seconds(f.delay_p90_s), _kept(hit, prompt)),
        Promise(
            f"every forced oscillation is found within {SLOW_WITHIN_S:g} s",
            f"{slow_hit} of {slow}, delay {_seconds(f.slow_delay_s)} at most",
            _kept(slow, f.slow_delay_s <= SLOW_WITHIN_S),
        ),
        Promise(
            f"events per disturbance at most {EVENTS_PER_DISTURBANCE:g}",
            f"{f.events_per_disturbance:.2f}",
            _kept(hit + slow_hit, f.events_per_disturbance <= EVENTS_PER_DISTURBANCE),
        ),
        Promise(
            "a data fault is never a grid event",
            f"{f.data_called_grid} of {f.data_happened}",
            _kept(f.data_happened, f.data_called_grid == 0),
        ),
        Promise(
            "no grid event beside a disturbance of the grid",
            f"{f.false_grid_elsewhere} in {60 * f.hours - f.ambient_minutes:.0f} minutes",
            _kept(jolts + slow + f.data_happened, f.false_grid_elsewhere == 0),
        ),
        Promise(
            f"no grid event in {minutes:g} minutes of ambient",
            f"{f.false_grid_ambient} in {f.ambient_minutes:.0f} minutes",
            False if f.false_grid_ambient else (True if enough and minutes > 0 else None),
        ),
    ]


def _kept(tried: int, holds: bool) -> bool | None:  # noqa: FBT001 - a condition, not a switch
    return holds if tried else None


def _seconds(x: float) -> str:
    return f"{x:.2f} s" if math.isfinite(x) else "-"


def exit_status(found: Iterable[Promise]) -> int:
    """Say 1 where a promise is broken."""
    return int(any(p.kept is False for p in found))


def learn(settings: Settings, paths: Sequence[Path]) -> Learned:
    """Learn what is typical from streams in which nothing happens.

    Parameters
    ----------
    settings
        Which scorers learn.
    paths
        One after the other.

    Returns
    -------
    Learned
        By PMU.

    Raises
    ------
    CheckError
        If they hold too little.
    """
    pipeline = Pipeline(settings)
    for path in paths:
        for batches in read_rounds([open_source(path)]):
            pipeline.feed(batches)
    pipeline.finish()
    learned = pipeline.learned()
    if learned is None or not learned.ready:
        raise CheckError(f"{', '.join(map(str, paths))}: too short to learn from")
    return learned


def watch(settings: Settings, path: Path, grid: str, learned: Learned) -> Watched:
    """Score one stream from its first frame to its last, and judge what was raised.

    Parameters
    ----------
    settings
        Which scorers score.
    path
        An archive; its labels stand beside it.
    grid
        Whose stream it is.
    learned
        What is typical of its grid.

    Returns
    -------
    Watched
        With evidence for what went wrong.
    """
    pipeline = Pipeline(replace(settings, source=path.stem), learned)
    newest: dict[str, Event] = {}
    outputs: list[Output] = []
    frames, rate_hz = 0, 1.0

    def take(made: list[Output]) -> None:
        nonlocal frames, rate_hz
        for output in made:
            newest.update((e.id, e) for e in output.events)
            frames, rate_hz = frames + len(output.judged.time_ns), output.judged.rate_hz
            outputs.append(output)

    for batches in read_rounds([open_source(path)]):
        take(pipeline.feed(batches))
    take(pipeline.finish())
    newest.update((e.id, e) for e in pipeline.open_events())
    labels = read_labels(path.with_suffix(".json"))
    verdict = judge(newest.values(), labels, frames / rate_hz / 3600)
    moments = [f.label.onset_ns for f in verdict.findings if _is_wrong(f)] + [e.raised_ns for e in verdict.false_grid]
    words = _Words(pipeline, outputs)
    events = tuple(sorted(newest.values(), key=lambda e: e.raised_ns))
    return Watched(grid, path.stem, bool(labels), events, verdict, {at: words.at(at) for at in moments})


class _Words:
    """What the scorers said of a stream, for the evidence."""

    def __init__(self, pipeline: Pipeline, outputs: Sequence[Output]) -> None:
        spoken = [o.scored.ticks for o in outputs if len(o.scored.ticks.time_ns)]
        self.names = [p.name for p in outputs[0].signals.table.pmus]
        self.time_ns = np.concatenate([t.time_ns for t in spoken])
        self.refused = np.concatenate([t.refused for t in spoken])
        self.tracks = [
            (track.name, track.window_s, np.concatenate([t.tracks[i].score for t in spoken]))
            for i, track in enumerate(spoken[0].tracks)
        ]
        self.settings = pipeline.settings.detection

    def at(self, moment_ns: int) -> list[str]:
        """Gather the greatest scores around a moment."""
        inside = self.time_ns >= moment_ns - round(EARLY_S * 1e9)
        inside &= self.time_ns <= moment_ns + round(LOOK_S * 1e9)
        out = []
        for name, window_s, score in self.tracks:
            peak = np.nan_to_num(score[inside], nan=-1.0).max(axis=0, initial=-1.0)
            top = np.argsort(-peak, kind="stable")[:6].tolist()
            said = (
                ", ".join(f"{self.names[s]} {peak[s]:.1f}" for s in top if peak[s] >= 0)
                or "nothing: refused or learning"
            )
            bound = detection.threshold(self.settings, window_s, len(self.tracks))
            out.append(f"{name} -ln p (threshold {bound:.1f}): {said}")
        refused = [f"{self.names[s]} ({n} ticks)" for s, n in enumerate(self.refused[inside].sum(axis=0)) if n]
        out.append(f"refused frames: {', '.join(refused[:8]) or 'none'}{' ...' if len(refused) > 8 else ''}")
        return out


def _is_wrong(finding: Finding) -> bool:
    """Tell whether a disturbance of the grid was missed, late or told more than once."""
    if finding.label.cause is not Cause.GRID:
        return False
    bound = SLOW_WITHIN_S if finding.label.kind == SLOW else DELAY_P90_S
    return finding.event is None or finding.delay_s > bound or finding.repeats > 0


def failures(w: Watched) -> list[str]:
    """Say all that is needed to understand what went wrong in a stream.

    Parameters
    ----------
    w
        The stream.

    Returns
    -------
    list[str]
        Lines; none where all was right.
    """
    out: list[str] = []
    for finding in (f for f in w.verdict.findings if _is_wrong(f)):
        label = finding.label
        if finding.event is None:
            what = "missed"
        elif finding.repeats:
            what = f"told {1 + finding.repeats} times, first after {finding.delay_s:.1f} s"
        else:
            what = f"found after {finding.delay_s:.1f} s"
        out += [f"{label.kind} {rfc3339(label.onset_ns)[11:]} {label.element}: {what}", *_more(w, label.onset_ns)]
    for event in w.verdict.false_grid:
        during = next((x for x in _labels(w) if _during(x, event)), None)
        where = f"during {during.kind} of {during.element}" if during else "while nothing happened"
        out += [f"grid event {rfc3339(event.raised_ns)[11:]} {where}", *_more(w, event.raised_ns)]
    if out:
        out.append("events of this stream:")
        out += [f"  {_told(e)}" for e in w.events if e.cause is Cause.GRID or w.labelled]
        out = [w.name, *(f"  {line}" for line in out)]
    return out


def _more(w: Watched, moment_ns: int) -> list[str]:
    return [f"  {line}" for line in w.evidence.get(moment_ns, [])]


def _labels(w: Watched) -> list[Label]:
    return [f.label for f in w.verdict.findings]


def _during(label: Label, event: Event) -> bool:
    return label.onset_ns - round(EARLY_S * 1e9) <= event.raised_ns <= label.end_ns + round(LOOK_S * 1e9)


def _told(e: Event) -> str:
    lasted = "open" if e.end_ns is None else f"{(e.end_ns - e.onset_ns) / 1e9:.1f} s"
    size = f"{len(e.pmus)} PMUs, {lasted}, {e.scorer} {e.minus_ln_p:.1f}"
    return f"{rfc3339(e.raised_ns)[11:]} {e.cause} {e.kind}, {size}: {e.sentence}"


COLUMNS = ("kind", "happened", "found", "delay p50", "delay p90", "events each", "called grid")


def table_rows(watched: Sequence[Watched]) -> list[tuple[str, ...]]:
    """Lay the table out, one tuple of words a kind.

    Parameters
    ----------
    watched
        All streams.

    Returns
    -------
    list[tuple[str, ...]]
        As many words as `COLUMNS`; kinds of the grid first.
    """
    out = []
    for row in rows(w.verdict for w in watched):
        delays = [_seconds(d) for d in (row.delay_p50_s, row.delay_p90_s)]
        each = f"{row.events_each:.2f}" if math.isfinite(row.events_each) else "-"
        grid = row.kind in {f.label.kind for w in watched for f in w.verdict.findings if f.label.cause is Cause.GRID}
        called = "" if grid else str(row.called_grid)
        out.append((row.kind.replace("_", " "), str(row.happened), str(row.found), *delays, each, called))
    figures = measure(watched)
    if figures.ambient_minutes:
        what = f"ambient, {figures.ambient_minutes:.0f} min"
        out.append((what, "0", "", "", "", "", str(figures.false_grid_ambient)))
    return out


def as_markdown(watched: Sequence[Watched], found: Iterable[Promise]) -> str:
    """Write the table as the README shows it.

    Parameters
    ----------
    watched
        All streams.
    found
        The promises.

    Returns
    -------
    str
        Two tables in markdown.
    """
    lines = [f"| {' | '.join(COLUMNS)} |", f"|---|{'--:|' * (len(COLUMNS) - 1)}"]
    lines += [f"| {' | '.join(row)} |" for row in table_rows(watched)]
    lines += ["", "| promise | measured | |", "|---|---|---|"]
    lines += [f"| {p.words} | {p.measured} | {VERDICTS[p.kept][0]} |" for p in found]
    return "\n".join(lines)


VERDICTS = {True: ("kept", "green"), False: ("broken", "bold red"), None: ("not tried", "yellow")}


def show(console: Console, watched: Sequence[Watched], found: Iterable[Promise]) -> None:
    """Print both tables for people."""
    table = Table(*COLUMNS, title="events against labels", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.columns[0].no_wrap = True
    for column in table.columns[1:]:
        column.justify, column.min_width = "right", 8
    for row in table_rows(watched):
        table.add_row(*row)
    console.print(table)
    verdicts = Table("promise", "measured", "", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for p in found:
        word, style = VERDICTS[p.kept]
        verdicts.add_row(p.words, p.measured, f"[{style}]{word}[/]")
    console.print(verdicts)


def show_beside(console: Console, beside: Iterable[tuple[str, ...]]) -> None:
    """Print what each choice of scorers came to."""
    table = Table(*BESIDE, title="scorers side by side", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for column in table.columns[2:]:
        column.justify = "right"
    for row in beside:
        table.add_row(*row)
    console.print(table)


def as_json(f: Figures, found: Iterable[Promise], compared: Mapping[str, Figures]) -> str:
    """Write the figures as one line of JSON; what is not a number is null."""
    recall = {k: f.found[k] / n for k, n in f.happened.items()}

    def number(x: float) -> float | None:
        return round(x, 4) if math.isfinite(x) else None

    return json.dumps(
        {
            "recall": recall,
            "happened": f.happened,
            "found": f.found,
            "delay_p50_s": number(f.delay_p50_s),
            "delay_p90_s": number(f.delay_p90_s),
            "forced_oscillation_delay_s": number(f.slow_delay_s),
            "events_per_disturbance": number(f.events_per_disturbance),
            "data_happened": f.data_happened,
            "data_found": f.data_found,
            "data_called_grid": f.data_called_grid,
            "false_grid_elsewhere": f.false_grid_elsewhere,
            "false_grid_ambient": f.false_grid_ambient,
            "ambient_minutes": round(f.ambient_minutes, 2),
            "other_events": f.other_events,
            "hours": round(f.hours, 4),
            "broken": [p.words for p in found if p.kept is False],
            "scorers": {
                name: {
                    "recall": round(sum(g.found.values()) / max(sum(g.happened.values()), 1), 4),
                    "delay_p50_s": number(g.delay_p50_s),
                    "delay_p90_s": number(g.delay_p90_s),
                    "forced_oscillation_delay_s": number(g.slow_delay_s),
                    "false_grid_per_h": round((g.false_grid_ambient + g.false_grid_elsewhere) / g.hours, 3),
                    "other_events_per_h": round(g.other_events / g.hours, 2),
                    "data_found": g.data_found,
                    "data_called_grid": g.data_called_grid,
                }
                for name, g in compared.items()
            },
        }
    )


@dataclass(frozen=True, slots=True)
class Shelf:
    """Where simulated streams are kept, and made when they are not there.

    Attributes
    ----------
    folder
        One folder a grid and seed inside.
    say
        Says what is being done.
    """

    folder: Path
    say: Callable[[str], None]

    def ambient(self, case: str, seed: int, minutes: float, *, blemished: bool) -> list[Path]:
        """Find or make a long stream in which nothing happens, in its pieces."""
        home = self._home(case, seed)
        names = [f"{case}-s{seed}-ambient-{k:03d}" for k in range(math.ceil(60 * minutes / SEGMENT_S))]
        options = ["--minutes", f"{minutes:g}", "--blemishes" if blemished else "--no-blemishes"]
        if not all((home / f"{n}.json").exists() for n in names):
            self._simulate("ambient", home, case, seed, options)
        return [self._made(home / f"{n}.parquet") for n in names]

    def scenarios(self, case: str, seed: int, kinds: Sequence[str]) -> list[Path]:
        """Find or make one stream a scenario."""
        home = self._home(case, seed)
        missing = [k for k in kinds if not (home / f"{case}-s{seed}-{k}.json").exists()]
        if missing:
            self._simulate("corpus", home, case, seed, ["--only", ",".join(missing)])
        return [self._made(home / f"{case}-s{seed}-{k}.parquet") for k in kinds]

    def _home(self, case: str, seed: int) -> Path:
        """Open the folder of a grid and seed; say so where another simulator filled it."""
        home = self.folder / f"{case}-{seed}"
        home.mkdir(parents=True, exist_ok=True)
        programs = sorted([SIMULATOR, *SIMULATOR.with_name("simulation").glob("*.py")])
        present = hashlib.sha256(b"".join(p.read_bytes() for p in programs)).hexdigest()
        stamp = home / STAMP
        if not stamp.exists():
            stamp.write_text(present)
        elif stamp.read_text() != present:
            self.say(f"{home} was simulated by another version of the simulator; delete it to simulate anew")
        return home

    def _simulate(self, command: str, home: Path, case: str, seed: int, options: Sequence[str]) -> None:
        done = subprocess.run(
            [sys.executable, SIMULATOR, command, home, "--case", case, "--seed", str(seed), *options], check=False
        )
        if done.returncode:
            raise CheckError(f"{SIMULATOR.name} {command} --case {case} --seed {seed} ended with {done.returncode}")

    def _made(self, path: Path) -> Path:
        if not path.exists():
            raise CheckError(f"{path} is not there though the simulator has run; does it still make this scenario?")
        return path


def watch_all(args: argparse.Namespace, settings: Settings, say: Callable[[str], None]) -> list[Watched]:
    """Watch the bundled streams, then those of every grid and seed.

    Parameters
    ----------
    args
        The command line.
    settings
        Which scorers score.
    say
        Says what is being done.

    Returns
    -------
    list[Watched]
        In that order.
    """
    out: list[Watched] = []

    def take(path: Path, grid: str, learned: Learned) -> None:
        began = time.monotonic()
        watched = watch(settings, path, grid, learned)
        out.append(watched)
        speed = watched.verdict.hours * 3600 / max(time.monotonic() - began, 1e-6)
        troubles = len(failures(watched))
        said = f"{len(watched.events)} events, {speed:.0f} times real time{', NOT as promised' * bool(troubles)}"
        say(f"{' + '.join(settings.scorers)}: {watched.name}: {said}")

    take(args.bundle / "demo.parquet", "bundled", learn(settings, [args.bundle / "ambient.parquet"]))
    if args.quick:
        return out
    shelf = Shelf(args.cache, say)
    other = 0 if 0 not in args.seeds else max(args.seeds) + 1
    kinds = (*KINDS, MIXED) if args.mixed else KINDS
    for case in args.case:
        reference = shelf.ambient(case, other, REFERENCE_MINUTES, blemished=False)
        say(f"{' + '.join(settings.scorers)}: learning {case} from seed {other}")
        learned = learn(settings, reference)
        for seed in args.seeds:
            for path in shelf.scenarios(case, seed, kinds):
                take(path, case, learned)
        if args.minutes:
            for path in shelf.ambient(case, args.seeds[0], args.minutes, blemished=True):
                take(path, case, learned)
    return out


BESIDE = ("grid", "scorers", "recall", "delay p50", "delay p90", "oscillation", "false grid/h", "other events/h")


def beside_rows(found: Mapping[tuple[Scorer, ...], Sequence[Watched]]) -> list[tuple[str, ...]]:
    """Lay out what each choice of scorers came to, grid by grid.

    Parameters
    ----------
    found
        By choice, all streams.

    Returns
    -------
    list[tuple[str, ...]]
        As many words as `BESIDE`: recall and delay of the grid's disturbances, the delay of the slowest oscillation,
        grid events that answer no label and other events that answer none, an hour.
    """
    out = []
    for grid in dict.fromkeys(w.grid for watched in found.values() for w in watched):
        for scorers, watched in found.items():
            f = measure([w for w in watched if w.grid == grid])
            false = f.false_grid_ambient + f.false_grid_elsewhere
            out.append(
                (
                    grid,
                    " + ".join(scorers),
                    f"{sum(f.found.values())} of {sum(f.happened.values())}",
                    _seconds(f.delay_p50_s),
                    _seconds(f.delay_p90_s),
                    _seconds(f.slow_delay_s),
                    f"{false / f.hours:.1f} ({false} in {f.hours:.2f} h)",
                    f"{f.other_events / f.hours:.0f}",
                )
            )
    return out


def choices(chosen: str) -> list[tuple[Scorer, ...]]:
    """Read which scorers are asked for.

    Parameters
    ----------
    chosen
        ``all`` for each alone and both, or names separated by commas.

    Returns
    -------
    list[tuple[Scorer, ...]]
        The last one's promises are checked.

    Raises
    ------
    CheckError
        If a name is no scorer's.
    """
    if chosen == "all":
        return [("quadratic",), ("sequence",), ("quadratic", "sequence")]
    names = tuple(name.strip() for name in chosen.split(","))
    known: dict[str, Scorer] = {"quadratic": "quadratic", "sequence": "sequence"}
    if not set(names) <= set(known):
        raise CheckError(f"--scorers {chosen}: there are {', '.join(known)}, and all")
    return [tuple(known[name] for name in names)]


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="corpus.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--case", nargs="+", choices=sorted(PLACES), default=["npcc"], help="grids to simulate (default: npcc)"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], help="seeds of each (default: 1 2 3)")
    parser.add_argument(
        "--minutes", type=float, default=30.0, help="ambient of each grid, of the first seed (default: %(default)g)"
    )
    parser.add_argument(
        "--mixed", action="store_true", help="also one stream of six minutes a seed, as the bundled one: minutes each"
    )
    parser.add_argument("--quick", action="store_true", help="the bundled streams only: within a minute")
    parser.add_argument("--bundle", type=Path, default=BUNDLE, help="the bundled streams (default: gridsense/demo)")
    parser.add_argument("--cache", type=Path, default=CACHE, help="simulated streams (default: .cache/corpus)")
    parser.add_argument(
        "--scorers",
        default="all",
        help="quadratic, sequence, or both with a comma between (default: all three choices)",
    )
    parser.add_argument("--model", type=Path, help="the sequence model (default: the bundled one)")
    parser.add_argument("--markdown", action="store_true", help="print the tables as the README shows them")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object with the figures")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Check, and say what came of it."""
    args = parse(arguments)
    aside = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
    try:
        compared: dict[tuple[Scorer, ...], list[Watched]] = {}
        for scorers in choices(args.scorers):
            model = load_model(args.model) if "sequence" in scorers else None
            watched = watch_all(args, Settings(scorers=scorers, model=model), aside.print)
            compared[scorers] = watched
    except (CheckError, GridSenseError, ModelsError, StreamsError) as error:
        print(f"corpus: {error}", file=sys.stderr)
        return 2
    figures = measure(watched)
    found = promises(figures, args.minutes)
    for lines in map(failures, watched):
        if lines:
            print("\n".join(lines), end="\n\n")
    beside = beside_rows(compared)
    if args.markdown:
        print(as_markdown(watched, found))
        print(f"\n| {' | '.join(BESIDE)} |\n|---|---{'|--:' * (len(BESIDE) - 2)}|")
        print("\n".join(f"| {' | '.join(row)} |" for row in beside))
    else:
        console = Console(soft_wrap=not sys.stdout.isatty())
        show(console, watched, found)
        show_beside(console, beside)
    if args.json:
        print(as_json(figures, found, {" + ".join(scorers): measure(w) for scorers, w in compared.items()}))
    return exit_status(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
