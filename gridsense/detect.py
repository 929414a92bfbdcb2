"""Files in, events out: what `gridsense detect` does, with progress, scores and pictures.

The pipeline is the one that runs live; here its frames come from files, side by side in event time, and its events go
to a stream of JSON lines, to a store, and into pictures.
"""

from __future__ import annotations

import logging
import re
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gridsense import picture
from gridsense.errors import InputError, UsageError
from gridsense.events import Event, cloudevent, rfc3339
from gridsense.pipeline import Learned, Output, Pipeline, Settings
from gridsense.predictions import SPREADS
from gridsense.scoring import LEADS
from gridsense.sources import Source, read_rounds
from gridsense.store import EventStore
from streams.block import Block

log = logging.getLogger(__name__)

_UNITS = {"": 1.0, "s": 1.0, "sec": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0}
KEPT_S = 300.0
"""Signals kept for pictures: an event that lasts longer is drawn from its later part."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far it is.

    Attributes
    ----------
    time_ns
        Event time reached.
    frames
        Reporting times judged so far.
    grid_s
        Seconds of event time so far.
    learning_s
        Seconds of reference still missing; 0 once scores stand.
    """

    time_ns: int
    frames: int
    grid_s: float
    learning_s: float


@dataclass(frozen=True, slots=True)
class Result:
    """What came of it.

    Attributes
    ----------
    events
        The newest version of each, by onset.
    frames, grid_s
        Reporting times judged, and seconds of event time.
    learning_s
        Seconds of reference missing at the end, of the fastest scorer.
    learning
        Names of the scorers that never had enough, with the seconds that they missed.
    typical
        By PMU, its typical patterns in words.
    """

    events: tuple[Event, ...]
    frames: int
    grid_s: float
    learning_s: float
    learning: tuple[tuple[str, float], ...]
    typical: dict[str, tuple[str, ...]]


def seconds(text: str) -> float:
    """Read a duration.

    Parameters
    ----------
    text
        ``40s``, ``2min``, ``1h`` or bare seconds.

    Returns
    -------
    float
        Seconds.

    Raises
    ------
    UsageError
        If it is no duration above zero.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text)
    if match is None or match[2] not in _UNITS or not float(match[1]):
        raise UsageError(f"{text!r} is no duration; write 40s, 2min or 1h")
    return float(match[1]) * _UNITS[match[2]]


def learn(settings: Settings, sources: Sequence[Source], report: Callable[[Progress], None]) -> Learned:
    """Learn what is typical from files.

    Parameters
    ----------
    settings
        Of the pipeline that will use it.
    sources
        Quiet time of the same PMUs.
    report
        Told how far it is.

    Returns
    -------
    Learned
        For `Pipeline`.

    Raises
    ------
    InputError
        If the files are too short.
    """
    pipeline = Pipeline(settings)
    watch = _Watch(report)
    for together in read_rounds(sources):
        watch.take(pipeline.feed(together))
    watch.take(pipeline.finish())
    learned = pipeline.learned()
    if learned is None or not learned.ready:
        raise InputError(
            f"the reference is too short: {watch.learning_s:.0f} s are missing; give more, or a smaller --learn"
        )
    return learned


class Sink(Protocol):
    """Where outputs go."""

    def take(self, output: Output) -> None:
        """Take up what came of one step."""

    def close(self, lasting: Sequence[Event]) -> None:
        """Finish; some events still last."""


def detect(
    settings: Settings,
    sources: Sequence[Source],
    learned: Learned | None,
    sinks: Sequence[Sink],
    report: Callable[[Progress], None],
) -> Result:
    """Run the pipeline over files.

    Parameters
    ----------
    settings
        Of the pipeline.
    sources
        From `gridsense.sources.open_source`.
    learned
        What is typical; None to learn it from the beginning of the files.
    sinks
        `Lines`, `ScoreTable`, `Album`, `Memory`, `gridsense.predictions.PredictionTable`.
    report
        Told how far it is.

    Returns
    -------
    Result
        Everything that was found. An `InputError` says that what is typical was learned of other PMUs.
    """
    pipeline = Pipeline(settings, learned)
    events: dict[str, Event] = {}
    watch = _Watch(report)

    def take(outputs: list[Output]) -> None:
        watch.take(outputs)
        for output in outputs:
            events.update({event.id: event for event in output.events})
            for sink in sinks:
                sink.take(output)

    strangers: tuple[str, ...] = ()
    for together in read_rounds(sources):
        take(pipeline.feed(together))
        if learned is not None and strangers != pipeline.strangers():
            strangers = pipeline.strangers()
            _name_strangers(strangers, known=len(pipeline.typical()) - len(strangers))
    take(pipeline.finish())
    for sink in sinks:
        sink.close(pipeline.open_events())
    found = tuple(sorted(events.values(), key=lambda e: (e.onset_ns, e.id)))
    return Result(found, watch.frames, watch.grid_s, watch.learning_s, watch.learning, pipeline.typical())


def _name_strangers(strangers: Sequence[str], *, known: int) -> None:
    """Say of which PMUs the reference knows nothing; refuse one that knows nothing of any."""
    some = ", ".join(strangers[:3]) + (" ..." if len(strangers) > 3 else "")
    if not known:
        raise InputError(
            f"the reference is of other PMUs, or of other signals of theirs: it knows nothing of {some}; "
            "give quiet time of the same PMUs in the same format, or --learn instead"
        )
    log.warning("the reference knows nothing of %d PMUs (%s): they learn from the stream", len(strangers), some)


class _Watch:
    """Counts what went through."""

    def __init__(self, report: Callable[[Progress], None]) -> None:
        self.report = report
        self.frames = 0
        self.grid_s = 0.0
        self._missing: dict[str, float] = {}

    @property
    def learning_s(self) -> float:
        """What the fastest scorer still wants, of the PMU that wants most."""
        return next(iter(self._missing.values()), float("inf"))

    @property
    def learning(self) -> tuple[tuple[str, float], ...]:
        """Scorers that still learn, and what they want."""
        return tuple((name, missing) for name, missing in self._missing.items() if missing > 0)

    def take(self, outputs: list[Output]) -> None:
        """Count, and tell how far it is."""
        for output in outputs:
            frames = len(output.judged.time_ns)
            self.frames += frames
            self.grid_s += frames / output.judged.rate_hz
            for track, layer in zip(output.scored.ticks.tracks, output.scored.layers, strict=True):
                if layer.missing_s.size:
                    self._missing[track.name] = float(layer.missing_s[-1].max())
            if frames:
                self.report(Progress(int(output.judged.time_ns[-1]), self.frames, self.grid_s, self.learning_s))


class Lines:
    """Each event as one line of CloudEvents JSON: when it has ended, or at the end of the files if it still lasts.

    Parameters
    ----------
    write
        Told each line.
    """

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write

    def take(self, output: Output) -> None:
        """Write what has ended."""
        for event in output.events:
            if event.end_ns is not None:
                self._write(cloudevent(event) + b"\n")

    def close(self, lasting: Sequence[Event]) -> None:
        """Write what still lasts."""
        for event in lasting:
            self._write(cloudevent(event) + b"\n")


class Memory:
    """Every stage of every event into an event store.

    Parameters
    ----------
    store
        Open.
    """

    def __init__(self, store: EventStore) -> None:
        self._store = store

    def take(self, output: Output) -> None:
        """Store what was raised or has ended."""
        if output.events:
            self._store.put(output.events)

    def close(self, lasting: Sequence[Event]) -> None:
        """Store how far what lasts has grown."""
        self._store.put(lasting)


class ScoreTable:
    """Scores as Parquet: `time`, `grid.<scorer>`, `<pmu>.<scorer>`; -ln p, null where there is none.

    Where PMUs join in mid-stream, a file with their columns too follows: OUT-2, OUT-3 …

    Parameters
    ----------
    path
        The file, written as the first ticks come.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer: pq.ParquetWriter | None = None
        self._files = 0

    def take(self, output: Output) -> None:
        """Append the ticks of one output."""
        ticks = output.scored.ticks
        columns: dict[str, pa.Array] = {"time": pa.array(ticks.time_ns, pa.timestamp("ns", "UTC"))}
        for i, track in enumerate(ticks.tracks):
            columns[f"grid.{track.name}"] = _nullable(np.where(track.due, output.grid.score[:, i], np.nan))
        for s, pmu in enumerate(output.signals.table.pmus):
            for track in ticks.tracks:
                columns[f"{pmu.name}.{track.name}"] = _nullable(track.score[:, s])
        rows = pa.table(columns)
        try:
            if self._writer is not None and self._writer.schema != rows.schema:
                self._writer.close()
                self._writer = None
            if self._writer is None:
                self._files += 1
                path = self._path if self._files == 1 else self._path.with_stem(f"{self._path.stem}-{self._files}")
                self._writer = pq.ParquetWriter(path, rows.schema, compression="zstd")
            self._writer.write_table(rows)
        except (OSError, ValueError) as error:
            raise InputError(f"scores {self._path}: {error}; name a file that can be written") from error

    def close(self, lasting: Sequence[Event]) -> None:  # noqa: ARG002 (scores last no longer than the frames)
        """Finish the file."""
        if self._writer:
            self._writer.close()


def _nullable(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> pa.Array:
    return pa.array(values.astype(np.float32), mask=~np.isfinite(values))


class Album:
    """A picture of each event, drawn once the signals after it have come: signals, what was expected, scores.

    Parameters
    ----------
    folder
        Made if absent.

    Raises
    ------
    InputError
        If it cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._kept: deque[_Kept] = deque()
        self._wanted: list[Event] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"pictures: {folder} cannot be made: {error.strerror}") from error

    def take(self, output: Output) -> None:
        """Keep the newest signals, and draw what has all of its own."""
        if self._kept and output.signals.table != self._kept[0].signals.table:
            self._draw(list(self._wanted))
            self._kept.clear()
        self._kept.append(_kept(output))
        newest = int(output.signals.time_ns[-1])
        while newest - int(self._kept[0].signals.time_ns[-1]) > KEPT_S * 1e9:
            self._kept.popleft()
        self._wanted += [event for event in output.events if event.end_ns is not None]
        self._draw([e for e in self._wanted if newest - (e.end_ns or newest) > picture.AFTER_S * 1e9])

    def close(self, lasting: Sequence[Event]) -> None:
        """Draw the rest with what there is."""
        self._draw([*self._wanted, *lasting])

    def _draw(self, events: list[Event]) -> None:
        self._wanted = [event for event in self._wanted if event not in events]
        for event in events:
            begin = event.onset_ns - round(picture.BEFORE_S * 1e9)
            end = (event.end_ns or event.raised_ns) + round(picture.AFTER_S * 1e9)
            near = [it for it in self._kept if it.signals.time_ns[-1] >= begin and it.signals.time_ns[0] <= end]
            if not near:
                continue
            first = near[0].signals
            signals = Block(
                first.table,
                first.rate_hz,
                np.concatenate([it.signals.time_ns for it in near]),
                np.concatenate([it.signals.values for it in near]),
                np.concatenate([it.signals.quality for it in near]),
            )
            tick_ns = np.concatenate([it.tick_ns for it in near])
            curves = [
                picture.Curve(name, tick_ns, np.concatenate([it.score[:, i] for it in near]), near[0].threshold[i])
                for i, name in enumerate(near[0].names)
            ]
            predicted = [it.expected for it in near if it.expected is not None]
            expected = np.concatenate(predicted) if len(predicted) == len(near) else None
            stamp = rfc3339(event.onset_ns).replace(":", "").replace("-", "")
            name = f"{stamp}-{event.cause}-{event.kind}-{event.id[:6]}.png"
            picture.draw(event, signals, curves, expected, self._folder / name)


@dataclass(frozen=True, slots=True)
class _Kept:
    """What pictures want of an output: no more, for minutes of it are kept."""

    signals: Block
    tick_ns: NDArray[np.int64]
    names: tuple[str, ...]
    threshold: tuple[float, ...]
    score: NDArray[np.float64]
    expected: NDArray[np.float32] | None


def _kept(output: Output) -> _Kept:
    """Take that out of it: the grid's score by each scorer, and what was expected half a second before."""
    ticks, forecast = output.scored.ticks, output.scored.forecast
    leads = [i for i, track in enumerate(ticks.tracks) if track.name in LEADS]
    score = output.grid.score[:, leads]
    expected = None
    if forecast is not None:
        ahead = min(1, forecast.expected.shape[3] - 1)
        middle, half = forecast.expected[..., ahead], np.float32(SPREADS) * forecast.spread[..., ahead]
        expected = np.stack([middle, middle - half, middle + half], axis=3)
    return _Kept(
        output.signals,
        ticks.time_ns,
        tuple(ticks.tracks[i].name for i in leads),
        tuple(output.grid.threshold[leads].tolist()),
        np.where(np.isfinite(score), score, np.nan),
        expected,
    )
