"""What a running processor and a running gateway say of themselves, for those who watch from another process.

In: the processor's steps, the gateway's counts. Out: about once a second one JSON text each in the event store, or
wherever else it is put, the newest in place of the one before. A board writes in a thread of its own: a slow or broken
store holds nobody up.
Fields that a reader does not know are passed over, those that are missing have defaults: old and new understand each
other.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from gridsense.errors import StoreError
from gridsense.events import Cause, Event, nanoseconds
from gridsense.outages import KINDS, refused
from gridsense.pipeline import Output
from gridsense.processor import Step
from gridsense.scoring import FAST, LEADS
from gridsense.store import EventStore
from streams.block import Reason
from streams.channels import ChannelTable, Quantity
from streams.errors import LogError
from streams.gateway.status import ConnectionStatus, State, Totals

log = logging.getLogger(__name__)

PROCESSOR, GATEWAY = "processor", "gateway"
"""Under which names they stand in the store."""
FORM = 1
"""Of both texts: raised when a field changes its meaning."""
TRACE_S = 60.0
"""How far back the grid's score is drawn, and latencies are counted."""
TOLD_S = 120.0
"""How far back the grid's score is told: a chart whose columns hold whole ticks may show up to this."""
RATE_S = 5.0
"""Time over which frames a second are counted."""
LASTING, TROUBLED = 100, 100
"""Open events, and connections in trouble, that are named; all are counted."""
SENTENCE_LETTERS, ERROR_LETTERS = 400, 120
"""So much of an explanation, or of an error, is told."""


class StatusSink(Protocol):
    """Where it is said: the event store, or a topic of the log. Used by one thread."""

    def put_status(self, name: str, body: bytes) -> None:
        """Say how somebody is, in place of what was said before.

        Parameters
        ----------
        name
            Who.
        body
            In its own words. A `StoreError` or `LogError` says that it cannot be put there.
        """
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


OpenSink = Callable[[], StatusSink]
"""Opens it anew, also after it has failed; raises as `StatusSink.put_status` does."""

_TICKS = 4096
_LATENCIES = 4096
_NEVER = -1


class EventBrief(msgspec.Struct, frozen=True):
    """An event, as much of it as an operator reads.

    Attributes
    ----------
    id
        Of the event.
    onset_ns, raised_ns, end_ns
        As in `gridsense.events.Event`.
    cause, kind, first_pmu, sentence
        Likewise.
    pmus
        How many saw it.
    """

    id: str
    onset_ns: int
    raised_ns: int
    end_ns: int | None
    cause: Cause
    kind: str
    first_pmu: str
    pmus: int
    sentence: str


def brief(event: Event) -> EventBrief:
    """Make an event brief.

    Parameters
    ----------
    event
        In any stage.

    Returns
    -------
    EventBrief
        Of that stage.
    """
    return EventBrief(
        event.id,
        event.onset_ns,
        event.raised_ns,
        event.end_ns,
        event.cause,
        event.kind,
        printable(event.first_pmu),
        len(event.pmus),
        printable(event.sentence),
    )


def printable(text: str) -> str:
    """Make a text harmless to a terminal: names come from devices, and may hold anything.

    Parameters
    ----------
    text
        Any.

    Returns
    -------
    str
        One line, with a sign in place of each letter that cannot be printed.
    """
    return text if text.isprintable() else "".join(c if c.isprintable() else "\ufffd" for c in text)


class _EventFields(msgspec.Struct):
    """What is read of a CloudEvent's body."""

    onset: datetime
    raised: datetime
    end: datetime | None
    cause: Cause
    kind: str
    first_pmu: str
    pmus: list[str]
    sentence: str


class _CloudEvent(msgspec.Struct):
    id: str
    data: _EventFields


_CLOUDEVENTS = msgspec.json.Decoder(_CloudEvent)


def read_brief(text: str) -> EventBrief:
    """Read a stored event.

    Parameters
    ----------
    text
        CloudEvents JSON, as `EventStore` gives it.

    Returns
    -------
    EventBrief
        Times to the millisecond.

    Raises
    ------
    StoreError
        If it is no such event.
    """
    try:
        event = _CLOUDEVENTS.decode(text)
    except msgspec.MsgspecError as error:
        raise StoreError(
            f"an event in the store cannot be read: {error}; was it written by a newer version?"
        ) from error
    it = event.data
    return EventBrief(
        event.id,
        nanoseconds(it.onset),
        nanoseconds(it.raised),
        None if it.end is None else nanoseconds(it.end),
        it.cause,
        it.kind,
        printable(it.first_pmu),
        len(it.pmus),
        printable(it.sentence),
    )


class PmuStatus(msgspec.Struct, frozen=True, array_like=True):
    """One PMU now.

    Attributes
    ----------
    name, source
        Its name, and the connection that carries it.
    score
        The fastest scorer's -ln p; None while it learns, or is refused.
    refused
        Why what it sends is not used, in a word such as ``silent`` or ``clock``; empty where it is used.
    age_s
        Event time since its newest frame, up to the newest of all; None where none has come.
    second
        What the second scorer says, where there are two; None as `score`.
    """

    name: str
    source: str = ""
    score: float | None = None
    refused: str = ""
    age_s: float | None = None
    second: float | None = None


class ScorerStatus(msgspec.Struct, frozen=True):
    """What a further scorer says of the grid now.

    Attributes
    ----------
    scorer
        Its name.
    threshold
        -ln p above which its score of the grid is an event.
    score
        The grid's -ln p; None while it learns.
    trace
        The same at the ticks of the last `TOLD_S`, the newest last.
    """

    scorer: str
    threshold: float
    score: float | None = None
    trace: tuple[float | None, ...] = ()


class Learning(msgspec.Struct, frozen=True):
    """How far a scorer is with learning.

    Attributes
    ----------
    scorer
        Its name.
    missing_s
        Seconds of quiet time that half of the PMUs still want, or more; 0 once most of the grid is scored.
    pmus
        How many still learn.
    """

    scorer: str
    missing_s: float
    pmus: int


class ProcessorStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A processor now.

    Attributes
    ----------
    form
        `FORM`.
    written_ns
        Wall clock when this was said.
    source
        Name of what is watched.
    began
        Where its state came from: ``fresh``, ``restored`` or ``refused``.
    stopped
        It has ended in good order.
    time_ns
        Event time of the newest tick; 0 before the first.
    clock_ns
        Arrival of the newest entry of the log that was read; 0 before the first.
    behind_s
        How far that lies behind the wall clock.
    behind_entries
        Entries of the log that are still to be read; None where nobody counts them.
    frames_per_s
        Frames of single PMUs that were judged a second, lately.
    threshold
        -ln p above which the grid's score is an event.
    frequency_hz
        Median over all PMUs; None where none sends a good one.
    score
        The grid's -ln p above how restless it has been; None while it learns.
    trace
        The same at the ticks of the last `TOLD_S`, the newest last.
    scorer
        Whose threshold, score and trace those are.
    second
        Those of the second scorer; None where there is one.
    ticks
        Ticks since the processor started.
    tick_s
        Seconds from one tick to the next.
    learning
        Scorers that still learn.
    latency_p50_s, latency_p99_s
        From the arrival of a tick's newest frame to its score, over the last minute; None where there was no tick.
    dead_letters, lost_entries
        Frames that could not be used, and entries that could not be read, since the processor started.
    unsaved
        Its last snapshot could not be written.
    lasting
        Events that are open: those of the grid first, then the newest; at most `LASTING`.
    lasting_count
        How many are open.
    pmus
        All of them, those first that want to be looked at: loud, refused, the others by score.
    """

    form: int = FORM
    written_ns: int = 0
    source: str = ""
    began: str = ""
    stopped: bool = False
    time_ns: int = 0
    clock_ns: int = 0
    behind_s: float = 0.0
    behind_entries: int | None = None
    frames_per_s: float = 0.0
    threshold: float = 0.0
    frequency_hz: float | None = None
    score: float | None = None
    trace: tuple[float | None, ...] = ()
    scorer: str = FAST
    second: ScorerStatus | None = None
    ticks: int = 0
    tick_s: float = 0.2
    learning: tuple[Learning, ...] = ()
    latency_p50_s: float | None = None
    latency_p99_s: float | None = None
    dead_letters: int = 0
    lost_entries: int = 0
    unsaved: bool = False
    lasting: tuple[EventBrief, ...] = ()
    lasting_count: int = 0
    pmus: tuple[PmuStatus, ...] = ()


class Trouble(msgspec.Struct, frozen=True):
    """A connection that brings no data.

    Attributes
    ----------
    name
        As configured.
    state
        What it is doing.
    reason
        What ended the last attempt.
    since_ns
        Since when it is in that state.
    """

    name: str
    state: str
    reason: str = ""
    since_ns: int = 0


class GatewayStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A gateway now.

    Attributes
    ----------
    form
        `FORM`.
    written_ns
        Wall clock when this was said.
    stopped
        It has ended in good order.
    states
        Connections by what they are doing.
    troubled
        Those that bring no data, the gravest first; at most `TROUBLED`.
    pmus
        In the configurations in force.
    frames_per_s, bytes_per_s
        Data frames given to the log, lately.
    dropped_frames
        Lost since the gateway started, because the log had no room.
    refused
        Frames and runs of bytes that could not be used, since then.
    waiting_bytes
        Received and not written yet.
    """

    form: int = FORM
    written_ns: int = 0
    stopped: bool = False
    states: dict[str, int] = {}
    troubled: tuple[Trouble, ...] = ()
    pmus: int = 0
    frames_per_s: float = 0.0
    bytes_per_s: float = 0.0
    dropped_frames: int = 0
    refused: int = 0
    waiting_bytes: int = 0


class Trace:
    """What a scorer said of the grid at the newest ticks, and how many ticks there were before them.

    Parameters
    ----------
    scorer
        Its name.
    threshold
        -ln p above which that is an event.
    """

    def __init__(self, scorer: str = FAST, threshold: float = 0.0) -> None:
        self.scorer = scorer
        self.threshold = threshold
        self.ticks: deque[tuple[int, float]] = deque(maxlen=_TICKS)
        self.count = 0
        self.tick_s = 0.2

    def add(self, output: Output) -> None:
        """Take up the ticks of a step.

        Parameters
        ----------
        output
            Of the pipeline, with that scorer.
        """
        place = next(i for i, track in enumerate(output.scored.ticks.tracks) if track.name == self.scorer)
        self.threshold = float(output.grid.threshold[place])
        score = output.grid.score[:, place]
        # What stands out from how restless the grid has been lately is what the detector compares.
        background = output.grid.background[:, place]
        standing = np.maximum(np.where(np.isfinite(score), score - background, np.nan), 0)
        for time_ns, value in zip(output.scored.ticks.time_ns.tolist(), standing.tolist(), strict=True):
            if self.ticks:
                self.tick_s = max((time_ns - self.ticks[-1][0]) / 1e9, 1e-3)
            self.ticks.append((time_ns, value))
            self.count += 1

    def told(self, status: ProcessorStatus) -> None:
        """Take up what a processor says, in place of what was there.

        Parameters
        ----------
        status
            Its status; the scorer is its first, unless it is the name of its second.
        """
        second = status.second if status.second and status.second.scorer == self.scorer else None
        said = second or status
        self.tick_s, self.count, self.threshold = status.tick_s, status.ticks, said.threshold
        begin_ns, tick_ns = status.time_ns, round(status.tick_s * 1e9)
        back = range(len(said.trace) - 1, -1, -1)
        values = (np.nan if value is None else value for value in said.trace)
        self.ticks = deque(
            ((begin_ns - k * tick_ns, value) for k, value in zip(back, values, strict=True)), maxlen=_TICKS
        )

    def newest(self) -> tuple[float, ...]:
        """Read the newest values.

        Returns
        -------
        tuple[float, ...]
            Of `TOLD_S`, the newest last; NaN where there was no score.
        """
        count = min(round(TOLD_S / self.tick_s), len(self.ticks))
        return tuple(self.ticks[k][1] for k in range(len(self.ticks) - count, len(self.ticks)))


def with_output(traces: list[Trace], output: Output) -> list[Trace]:
    """Take up the ticks of a step in the trace of each scorer.

    Parameters
    ----------
    traces
        Of the steps before.
    output
        Of the pipeline.

    Returns
    -------
    list[Trace]
        Of the scorers that there are now, in their order; those that were there go on.
    """
    known = {trace.scorer: trace for trace in traces}
    names = [output.scored.ticks.tracks[place].name for place in leads(output)]
    out = [known.get(name) or Trace(name) for name in names]
    for trace in out:
        trace.add(output)
    return out


def leads(output: Output) -> list[int]:
    """Find the fastest track of each scorer: what is shown of it.

    Parameters
    ----------
    output
        Of the pipeline.

    Returns
    -------
    list[int]
        Places among the tracks.
    """
    return [place for place, track in enumerate(output.scored.ticks.tracks) if track.name in LEADS]


class ProcessorBoard:
    """An observer of the processor that says about once a second how it is.

    Parameters
    ----------
    store
        The event store's file.
    threshold
        -ln p above which the grid's score is an event, until there is one: `gridsense.pipeline.Pipeline.threshold`.
    source
        Name of what is watched.
    every_s
        Seconds from one word to the next.
    behind
        Counts the entries of the log from an offset on; called in the processor's thread. None where nobody counts.
    now_ns
        The wall clock, UTC nanoseconds.
    monotonic_s
        A clock that never jumps.
    """

    def __init__(  # noqa: PLR0917 (called once, by the service)
        self,
        store: Path | OpenSink,
        threshold: float,
        source: str = "grid",
        every_s: float = 1.0,
        behind: Callable[[int], int] | None = None,
        now_ns: Callable[[], int] = time.time_ns,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.source = source
        self._behind = behind
        self._now_ns = now_ns
        self._monotonic_s = monotonic_s
        self._writer = _Writer(store, PROCESSOR, every_s, monotonic_s)
        self._traces = [Trace(FAST, threshold)]
        self._latency_s: deque[tuple[float, float]] = deque(maxlen=_LATENCIES)
        self._frames = _Rate()
        self._newest: _Newest | None = None
        self._step: Step | None = None
        self._began = ""
        self._dead = self._lost = 0
        self._unsaved = False

    def stepped(self, step: Step) -> None:
        """Be told of a reading, in the processor's thread.

        Parameters
        ----------
        step
            What it came to.
        """
        now_s = self._monotonic_s()
        self._step = step
        self._dead += len(step.dead)
        self._lost += sum(one.last - one.first + 1 for one in step.lost)
        self._latency_s.extend((now_s, latency_s) for latency_s in step.latency_s)
        for output in step.outputs:
            self._traces = with_output(self._traces, output)
            if self._newest is None or self._newest.table is not output.signals.table:
                self._newest = _Newest(output.signals.table, output.judged.table.width, self._newest)
            self._frames.count += self._newest.add(output)
        if self._writer.due():
            self._writer.put(msgspec.json.encode(self.status()))

    def saved(self, took_s: float, size: int, state_bytes: int) -> None:  # noqa: ARG002 (the observer's form)
        """Be told of a snapshot that was written, in the thread that wrote it.

        Parameters
        ----------
        took_s
            How long that took.
        size
            Bytes written.
        state_bytes
            Bytes remembered.
        """
        self._unsaved = False

    def save_failed(self) -> None:
        """Be told of a snapshot that could not be written, likewise."""
        self._unsaved = True

    def began(self, how: str) -> None:
        """Be told where the state came from.

        Parameters
        ----------
        how
            ``fresh``, ``restored`` or ``refused``.
        """
        self._began = how

    def status(self, *, stopped: bool = False) -> ProcessorStatus:
        """Say how the processor is.

        Parameters
        ----------
        stopped
            Whether it is done.

        Returns
        -------
        ProcessorStatus
            As of the newest step.
        """
        now_s, now_ns = self._monotonic_s(), self._now_ns()
        step, newest = self._step, self._newest
        clock_ns = step.clock_ns if step else 0
        lasting = sorted(step.lasting, key=lambda e: (e.cause is not Cause.GRID, -e.onset_ns)) if step else []
        while self._latency_s and self._latency_s[0][0] < now_s - TRACE_S:
            self._latency_s.popleft()
        latency_s = [latency_s for _, latency_s in self._latency_s]
        p50_s, p99_s = np.quantile(latency_s, (0.5, 0.99)).round(4).tolist() if latency_s else (None, None)
        first, *others = self._traces
        trace = tuple(_rounded(value) for value in first.newest())
        return ProcessorStatus(
            written_ns=now_ns,
            source=self.source,
            began=self._began,
            stopped=stopped,
            time_ns=first.ticks[-1][0] if first.ticks else 0,
            clock_ns=clock_ns,
            behind_s=round(max(now_ns - clock_ns, 0) / 1e9, 3) if clock_ns else 0.0,
            behind_entries=self._count_behind(),
            frames_per_s=round(self._frames.per_s(now_s), 1),
            threshold=round(first.threshold, 2),
            frequency_hz=newest.frequency_hz() if newest else None,
            score=trace[-1] if trace else None,
            trace=trace,
            scorer=first.scorer,
            second=_told(others[0]) if others else None,
            ticks=first.count,
            tick_s=first.tick_s,
            learning=newest.learning() if newest else (),
            latency_p50_s=p50_s,
            latency_p99_s=p99_s,
            dead_letters=self._dead,
            lost_entries=self._lost,
            unsaved=self._unsaved,
            lasting=tuple(_shortened(brief(event)) for event in lasting[:LASTING]),
            lasting_count=len(lasting),
            pmus=newest.pmus([trace.threshold for trace in self._traces]) if newest else (),
        )

    def _count_behind(self) -> int | None:
        try:
            return self._behind(self._step.place) if self._behind and self._step else None
        except LogError as error:
            log.debug("nobody knows how far the processor is behind: %s", error)
            return None

    def close(self) -> None:
        """Say that the processor has stopped, and let go of the store."""
        self._writer.close(msgspec.json.encode(self.status(stopped=True)))


def _told(trace: Trace) -> ScorerStatus:
    values = tuple(_rounded(value) for value in trace.newest())
    return ScorerStatus(trace.scorer, round(trace.threshold, 2), values[-1] if values else None, values)


class GatewayBoard:
    """Says about once a second how a gateway is.

    Parameters
    ----------
    store
        The event store's file, or what opens another place.
    every_s
        Seconds from one word to the next.
    now_ns
        The wall clock, UTC nanoseconds.
    monotonic_s
        A clock that never jumps.
    """

    def __init__(
        self,
        store: Path | OpenSink,
        every_s: float = 1.0,
        now_ns: Callable[[], int] = time.time_ns,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._now_ns = now_ns
        self._monotonic_s = monotonic_s
        self._writer = _Writer(store, GATEWAY, every_s, monotonic_s)
        self._frames, self._bytes = _Rate(), _Rate()
        self._status = GatewayStatus()

    def told(self, connections: Sequence[ConnectionStatus], totals: Totals) -> None:
        """Be told how the gateway is; called as often as one likes, it returns at once.

        Parameters
        ----------
        connections
            From `Gateway.status`.
        totals
            From `Gateway.totals`.
        """
        if not self._writer.due():
            return
        now_s, counts = self._monotonic_s(), totals.counts
        self._frames.count, self._bytes.count = counts.frames, counts.frames_bytes
        troubled = [c for c in connections if c.state not in (State.STREAMING, State.STOPPED)]
        troubled.sort(key=lambda c: (_GRAVITY[c.state], c.name))
        self._status = GatewayStatus(
            written_ns=self._now_ns(),
            states=dict(Counter(c.state.value for c in connections)),
            troubled=tuple(
                Trouble(c.name, c.state.value, _cut(printable(c.error), ERROR_LETTERS), c.since_ns)
                for c in troubled[:TROUBLED]
            ),
            pmus=sum(c.pmus for c in connections),
            frames_per_s=round(self._frames.per_s(now_s), 1),
            bytes_per_s=round(self._bytes.per_s(now_s)),
            dropped_frames=counts.dropped_frames,
            refused=sum(counts.refused.values()),
            waiting_bytes=totals.gathered_bytes,
        )
        self._writer.put(msgspec.json.encode(self._status))

    def close(self) -> None:
        """Say that the gateway has stopped, and let go of the store."""
        last = msgspec.structs.replace(self._status, written_ns=self._now_ns(), stopped=True)
        self._writer.close(msgspec.json.encode(last))


def _trouble(connection: ConnectionStatus) -> Trouble:
    reason = _cut(printable(connection.error), ERROR_LETTERS)
    return Trouble(connection.name, connection.state.value, reason, connection.since_ns)


_GRAVITY = {
    state: place
    for place, state in enumerate(
        (
            State.REFUSED,
            State.BACKING_OFF,
            State.SILENT,
            State.CONFIGURING,
            State.CONNECTING,
            State.STREAMING,
            State.STOPPED,
        )
    )
}


def read_processor(body: bytes | None) -> ProcessorStatus | None:
    """Read what a processor said.

    Parameters
    ----------
    body
        From the store.

    Returns
    -------
    ProcessorStatus | None
        None where it said nothing, or nothing that this version understands.
    """
    return _read(body, ProcessorStatus)


def read_gateway(body: bytes | None) -> GatewayStatus | None:
    """Read what a gateway said.

    Parameters
    ----------
    body
        From the store.

    Returns
    -------
    GatewayStatus | None
        None where it said nothing, or nothing that this version understands.
    """
    return _read(body, GatewayStatus)


_S = TypeVar("_S", ProcessorStatus, GatewayStatus)


def _read(body: bytes | None, kind: type[_S]) -> _S | None:
    """Decode one of the two."""
    try:
        status = msgspec.json.decode(body, type=kind) if body else None
    except msgspec.MsgspecError as error:
        log.debug("a status cannot be read: %s", error)
        return None
    return status if status is not None and status.form == FORM else None


class _Newest:
    """What is known of each PMU of one table."""

    def __init__(self, table: ChannelTable, width: int, before: _Newest | None) -> None:
        self.table = table
        self._names = [printable(pmu.name) for pmu in table.pmus]
        self._sources = [printable(pmu.source) for pmu in table.pmus]
        known = before.heard() if before else {}
        self._heard_ns = np.array([known.get(name, _NEVER) for name in self._names], np.int64)
        self._seen_good = np.zeros((len(self._names), width), bool)
        self._codes = np.zeros(len(self._names), np.uint8)
        self._refused = np.zeros(len(self._names), bool)
        self._score: NDArray[np.float64] = np.full((1, len(self._names)), np.nan)
        self._is_hz = table.where(Quantity.FREQUENCY)
        self._output: Output | None = None
        self._missing_s: dict[str, NDArray[np.float32]] = {}

    def heard(self) -> dict[str, int]:
        """By PMU, event time of its newest frame."""
        return dict(zip(self._names, self._heard_ns.tolist(), strict=True))

    def add(self, output: Output) -> int:
        """Take up a step; say how many frames of single PMUs it had."""
        judged, ticks = output.judged, output.scored.ticks
        there = (judged.quality > Reason.MISSING) | (judged.quality == Reason.GOOD)
        heard = there.any(axis=2)
        some = heard.any(axis=0)
        self._heard_ns[some] = judged.time_ns[_last(heard[:, some])]
        codes, self._seen_good = refused(judged, self._seen_good)
        some = codes.any(axis=0)
        self._codes[some] = codes[_last(codes[:, some] != 0), np.flatnonzero(some)]
        if len(ticks.time_ns):
            self._score = np.stack([ticks.tracks[place].score[-1] for place in leads(output)])
            self._refused = ticks.refused[-1]
        for track, layer in zip(ticks.tracks, output.scored.layers, strict=True):
            if len(layer.missing_s):
                self._missing_s[track.name] = layer.missing_s[-1]
        self._output = output
        return int(heard.sum())

    def frequency_hz(self) -> float | None:
        """Median of what was sent last."""
        signals = self._output.signals if self._output else None
        if signals is None or not len(signals.time_ns):
            return None
        hz = signals.values[-1][self._is_hz & signals.good[-1]]
        return round(float(np.median(hz)), 4) if hz.size else None

    def learning(self) -> tuple[Learning, ...]:
        """Scorers that still learn."""
        return tuple(
            Learning(name, round(float(np.median(missing_s)), 1), int((missing_s > 0).sum()))
            for name, missing_s in self._missing_s.items()
            if missing_s.any()
        )

    def pmus(self, threshold: Sequence[float]) -> tuple[PmuStatus, ...]:
        """All of them, those first that want to be looked at."""
        score = np.where(self._refused, np.nan, self._score)
        over = (score > np.array(threshold)[: len(score), None]).any(axis=0)
        scored = np.isfinite(score).any(axis=0)
        rank = np.select([over, self._refused, scored], [0, 1, 2], 3)
        worst = np.fmax.reduce(score, axis=0)
        newest_ns = int(self._heard_ns.max(initial=_NEVER))
        words = [_word(code) if out else "" for code, out in zip(self._codes.tolist(), self._refused, strict=True)]
        first, *others = np.round(score, 1).tolist()
        second = others[0] if others else [math.nan] * len(first)
        ages_s = np.where(self._heard_ns == _NEVER, np.nan, np.round((newest_ns - self._heard_ns) / 1e9, 1)).tolist()
        return tuple(
            PmuStatus(
                self._names[s], self._sources[s], _number(first[s]), words[s], _number(ages_s[s]), _number(second[s])
            )
            for s in np.lexsort((-np.where(scored, worst, 0.0), rank)).tolist()
        )


def _last(mask: NDArray[np.bool_]) -> NDArray[np.intp]:
    """`(S,)`: the last True of each column, which has one."""
    back: NDArray[np.intp] = np.argmax(mask[::-1], axis=0)
    return len(mask) - 1 - back


def _word(code: int) -> str:
    """Name a reason."""
    reason = Reason(code)
    return KINDS.get(reason, (reason.name.lower(), ""))[0] if code else "refused"


def _number(value: float) -> float | None:
    return value if value == value else None  # noqa: PLR0124 (only NaN is not itself)


def _rounded(value: float) -> float | None:
    return _number(round(value, 1))


def _cut(text: str, letters: int) -> str:
    return text if len(text) <= letters else f"{text[: letters - 1]}…"


def _shortened(event: EventBrief) -> EventBrief:
    return msgspec.structs.replace(event, sentence=_cut(event.sentence, SENTENCE_LETTERS))


class _Rate:
    """How fast a count rises, over the last seconds."""

    def __init__(self) -> None:
        self.count = 0
        self._told: deque[tuple[float, int]] = deque(maxlen=256)

    def per_s(self, now_s: float) -> float:
        """Say how fast, and remember the count."""
        self._told.append((now_s, self.count))
        while len(self._told) > 2 and self._told[1][0] <= now_s - RATE_S:
            self._told.popleft()
        then_s, before = self._told[0]
        return max(self.count - before, 0) / (now_s - then_s) if now_s > then_s else 0.0


class _Writer:
    """Writes one status, in a thread of its own."""

    def __init__(self, place: Path | OpenSink, name: str, every_s: float, monotonic_s: Callable[[], float]) -> None:
        self._place = place
        self._name = name
        self._every_s = every_s
        self._monotonic_s = monotonic_s
        self._put_s: float | None = None
        self._thread = ThreadPoolExecutor(1, f"{name}-status")
        self._writing: Future[None] | None = None
        self._sink: StatusSink | None = None
        self._complained = False

    def due(self) -> bool:
        """Whether it is time to say something, and the last word is out."""
        idle = self._writing is None or self._writing.done()
        return idle and (self._put_s is None or self._monotonic_s() - self._put_s >= self._every_s)

    def put(self, body: bytes) -> None:
        """Have it written; nobody waits for it."""
        self._put_s = self._monotonic_s()
        self._writing = self._thread.submit(self._write, body)

    def close(self, body: bytes) -> None:
        """Write the last word, unless the words before could not be, and let go of the store."""
        self._thread.submit(self._write_last, body)
        self._thread.submit(self._let_go)
        self._thread.shutdown()

    def _write(self, body: bytes) -> None:
        try:
            if self._sink is None:
                self._sink = EventStore(self._place) if isinstance(self._place, Path) else self._place()
            self._sink.put_status(self._name, body)
        except (StoreError, LogError) as error:
            self._let_go()
            if not self._complained:
                log.error("%s says nothing of itself any more: %s; it goes on", self._name, error)  # noqa: TRY400 (no bug)
            self._complained = True
            return
        self._complained = False

    def _write_last(self, body: bytes) -> None:
        if not self._complained:
            self._write(body)

    def _let_go(self) -> None:
        if self._sink is not None:
            self._sink.close()
            self._sink = None
