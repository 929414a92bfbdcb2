"""The stream processor: entries of the log in, events in the store out, each once, whatever happens in between.

It reads on from where its newest snapshot was taken, and what it has said since then it says again, to a store that
knows it already: the same entries give the same events. Nothing it needs is anywhere but in the log and in the store's
file. It makes no connection and shows nothing; `Observer`s do.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from baselines.errors import BaselinesError
from gridsense.errors import StoreError
from gridsense.events import Cause, Event, event_id
from gridsense.freezing import Frozen
from gridsense.intake import DeadLetter, Intake, Turn
from gridsense.pipeline import Learned, Output, Pipeline
from gridsense.pipeline import Settings as PipelineSettings
from gridsense.snapshots import Snapshot, Snapshots
from gridsense.store import EventStore
from streams.errors import LogError, LogFullError, StreamsError
from streams.log import CONFIGURATIONS, DEAD_LETTERS, FRAMES, Log, Lost, Record

log = logging.getLogger(__name__)

READER = "processor"
"""Under which name its position stands in the log."""

_FORM = 1
"""Of snapshots: raised when an older one can no longer be read."""

DEAD_LETTERS_A_READING = 1000
"""Frames that are put aside at once at most: the reasons repeat, and the log has other things to hold."""

DEAD_BYTES = 1024
"""Of a frame that could not be used, this much is put aside."""

_BRISK_HZ = 12.0
"""At this rate three frames come in 0.25 s."""
_WAITING = 1 << 20
"""Frames whose arrival is remembered at most while they wait for a tick."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a processor is told once.

    Attributes
    ----------
    pipeline
        Of the pipeline.
    snapshot_s
        Seconds from one snapshot to the next: how much of the log is read again after a crash, at most.
    idle_s
        Nothing having come for so long, the processor writes into the log what time it is: windows close on it. Longer
        in proportion where fewer than `_BRISK_HZ` frames a second are reported: between two of them nothing is idle.
    pace_s
        Seconds from one reading to the next where there is little to do: what comes in between is worked on together.
    """

    pipeline: PipelineSettings = field(default_factory=PipelineSettings)
    snapshot_s: float = 30.0
    idle_s: float = 0.25
    pace_s: float = 0.1


@dataclass(frozen=True, slots=True)
class Step:
    """What one reading came to.

    Attributes
    ----------
    place
        Offset of the first entry that was not read.
    outputs
        Of the pipeline.
    events
        Raised or ended, in order.
    lasting
        Open now.
    dead
        Frames that could not be used.
    lost
        Entries that could not be read.
    latency_s
        For each scored tick, from the arrival of its newest frame to now.
    took_s
        Computing time.
    clock_ns
        Arrival of the newest entry read.
    frames
        Data frames decoded since the processor began.
    """

    place: int
    outputs: Sequence[Output]
    events: Sequence[Event]
    lasting: Sequence[Event]
    dead: Sequence[DeadLetter]
    lost: Sequence[Lost]
    latency_s: Sequence[float]
    took_s: float
    clock_ns: int
    frames: int = 0


class Observer(Protocol):
    """Somebody who is told what the processor does."""

    def stepped(self, step: Step) -> None:
        """Be told of a reading, in the processor's thread."""

    def saved(self, took_s: float, size: int, state_bytes: int) -> None:
        """Be told of a snapshot that was written, in the thread that wrote it."""

    def save_failed(self) -> None:
        """Be told of a snapshot that could not be written, likewise."""

    def began(self, how: str) -> None:
        """Be told where the state came from: ``fresh``, ``restored``, or ``refused`` for one that cannot be used."""


class Processor:
    """Reads a log, runs the pipeline, stores events and snapshots. It belongs to one thread.

    Parameters
    ----------
    settings
        See `Settings`.
    reading
        The log, open.
    store
        The event store's file.
    observers
        Told what is done.
    now_ns
        The wall clock, UTC nanoseconds.
    learned
        What is typical, where no snapshot says it; None to learn it from the frames.
    """

    def __init__(
        self,
        settings: Settings,
        reading: Log,
        store: Path,
        observers: Sequence[Observer] = (),
        now_ns: Callable[[], int] = time.time_ns,
        *,
        learned: Learned | None = None,
    ) -> None:
        self.settings = settings
        self.place = 0
        self.pipeline = Pipeline(settings.pipeline, learned)
        self._learned = learned
        self.intake = Intake(self._configured)
        self._log = reading
        self._path = store
        self._store: EventStore | None = None
        self._observers = observers
        self._now_ns = now_ns
        self._snapshots = Snapshots(store)
        self._saver = ThreadPoolExecutor(1, "snapshot")
        self._saving: Future[None] | None = None
        self._saved_s = time.monotonic()
        self._waiting = _Waiting()
        self._unsaid: list[Event] = []
        self._noted_s = 0.0
        self._came_s = time.monotonic()

    def open(self) -> None:
        """Open the store, and go on from the newest snapshot. A `StoreError` says that the store cannot be opened."""
        self._store = EventStore(self._path)
        snapshot, wrong = self._saver.submit(self._snapshots.newest).result()
        for line in wrong:
            log.error("%s; the one before it is tried", line)
        how = "fresh"
        if snapshot is not None:
            how = self._resume(snapshot)
        elif wrong:
            log.error("no snapshot can be read: the log is read from its beginning, and what is typical learned anew")
            how = "refused"
        extent = self._log.extent(FRAMES)
        if self.place > extent.next:
            log.error("the log ends at %d, before %d where reading stopped: it was replaced", extent.next, self.place)
            self._unsaid.append(self._gap(Lost(extent.next, self.place - 1, "replaced")))
            self.place = extent.first
        for observer in self._observers:
            observer.began(how)

    def step(self) -> bool:
        """Read once, and work on it.

        A `StoreError` says that events cannot be stored: they are kept, nothing is lost, and it may be called again.

        Returns
        -------
        bool
            Whether anything was there.
        """
        self._say(())
        began_s = time.perf_counter()
        reading = self._log.read(FRAMES, self.place)
        outputs: list[Output] = []
        for turn in self.intake.take(reading.entries):
            outputs += self._fed(turn)
        self.place = reading.next
        step = self._stepped(outputs, reading.lost, began_s)
        if reading.entries or reading.lost:
            self._came_s = time.monotonic()
            self._note(step)
            if time.monotonic() - self._saved_s >= self.settings.snapshot_s:
                self.save(wait=False)
        return bool(reading.entries or reading.lost)

    def mark_time(self) -> None:
        """Where nothing has come for long, write into the log what time it is.

        A log that is full takes no mark: windows stay open until there is room.
        """
        idle_s = self.settings.idle_s * max(1.0, _BRISK_HZ / (self.intake.rate_hz or _BRISK_HZ))
        if time.monotonic() - self._came_s < idle_s or not self.intake.clock_ns:
            return
        self._came_s = time.monotonic()
        now_ns = max(self._now_ns(), self.intake.clock_ns + round(self.settings.idle_s * 1e9))
        try:
            self._log.append(FRAMES, [Record(now_ns, "", b"")])
        except LogFullError as error:
            log.error("what time it is cannot be written: %s", error)  # noqa: TRY400 (no bug: an expected trouble)

    def finish(self) -> None:
        """Take the frames as ended: close every window, as at the end of a file."""
        began_s = time.perf_counter()
        outputs = [output for turn in self.intake.finish() for output in self._fed(turn)]
        outputs += self.pipeline.finish()
        self._stepped(outputs, (), began_s)
        if self._store is not None:
            self._store.put(self.pipeline.open_events())

    def save(self, *, wait: bool) -> None:
        """Take a snapshot, unless sources are just joining or the last is still being written.

        Parameters
        ----------
        wait
            Until it is written; else it is written meanwhile.
        """
        if self._saving is not None and not self._saving.done() and not wait:
            return
        if self._saving is not None:
            self._saving.result()
        frozen = self.pipeline.freeze()
        if frozen is None or not self.intake.settled or self._unsaid:
            return
        body = msgspec.msgpack.encode([self.intake.freeze(), frozen.skeleton])
        snapshot = Snapshot(self.place, self._nature(), body, frozen.arrays)
        self._saved_s = time.monotonic()
        self._saving = self._saver.submit(self._save, snapshot)
        if wait:
            self._saving.result()

    def close(self) -> None:
        """Save what is remembered, and let go of the store."""
        if self._store is None:
            return
        self.save(wait=True)
        self._saver.submit(self._snapshots.close).result()
        self._saver.shutdown()
        self._store.close()
        self._store = None

    def _configured(self, key: str) -> bytes:
        """Ask the log for a configuration that came before what is kept of the frames."""
        entry = self._log.latest(CONFIGURATIONS).get(key)
        return entry.value if entry else b""

    def _fed(self, turn: Turn) -> list[Output]:
        """Feed the pipeline; what it cannot take is put aside."""
        self._waiting.note(turn)
        try:
            return self.pipeline.feed(turn.batches, turn.now_ns)
        except (StreamsError, BaselinesError) as error:
            log.error("frames that the pipeline cannot take: %s", error)  # noqa: TRY400 (no bug: an expected trouble)
            for name, batch in turn.batches:
                letter = DeadLetter(int(batch.arrival_ns[-1]), name.rpartition("#")[0], "pipeline", b"", str(error))
                self.intake.dead += [letter] * len(batch.time_ns)
            return []

    def _stepped(self, outputs: Sequence[Output], lost: Sequence[Lost], began_s: float) -> Step:
        """Store what was found, put aside what could not be used, and tell everybody."""
        gaps = [self._gap(one) for one in lost]
        events = [*gaps, *(event for output in outputs for event in output.events)]
        self._say(events)
        dead, self.intake.dead = self.intake.dead, []
        self._put_aside(dead)
        now_ns = self._now_ns()
        latency_s = [(now_ns - arrival) / 1e9 for arrival in self._waiting.of(outputs)]
        step = Step(
            place=self.place,
            outputs=outputs,
            events=events,
            lasting=self.pipeline.open_events(),
            dead=dead,
            lost=lost,
            latency_s=latency_s,
            took_s=time.perf_counter() - began_s,
            clock_ns=self.intake.clock_ns,
            frames=self.intake.frames.total(),
        )
        for observer in self._observers:
            observer.stepped(step)
        return step

    def _say(self, events: Sequence[Event]) -> None:
        """Store events, those first that could not be stored before."""
        self._unsaid += events
        if self._unsaid and self._store is not None:
            self._store.put(self._unsaid)
            self._unsaid = []

    def _gap(self, lost: Lost) -> Event:
        """Make an event of entries that the log cannot give."""
        source, onset_ns = self.settings.pipeline.source, self.intake.clock_ns
        entries = lost.last - lost.first + 1
        log.error("entries %d to %d of the log are lost: %s", lost.first, lost.last, lost.reason)
        return Event(
            id=event_id(source, onset_ns, f"{FRAMES}#{lost.first}", Cause.DATA),
            source=source,
            onset_ns=onset_ns,
            raised_ns=onset_ns,
            end_ns=onset_ns,
            cause=Cause.DATA,
            kind="log_gap",
            first_pmu="",
            pmus=(),
            minus_ln_p=0.0,
            scorer="log",
            contributions=(),
            sentence=f"up to {entries:,} entries of the log could not be read ({lost.reason}): "
            f"offsets {lost.first} to {lost.last}; what happened meanwhile was not seen",
        )

    def _put_aside(self, dead: Sequence[DeadLetter]) -> None:
        """Write dead letters, some of very many; all are counted.

        What is read again after a crash is put aside again, with the same time and note.
        """
        if not dead:
            return
        letters = [
            Record(d.time_ns, d.key, d.frame[:DEAD_BYTES], f"{d.reason}: {d.detail}")
            for d in dead[:DEAD_LETTERS_A_READING]
        ]
        try:
            self._log.append(DEAD_LETTERS, letters)
        except LogFullError as error:
            log.error("%d frames that could not be used are not put aside: %s", len(dead), error)  # noqa: TRY400

    def _note(self, step: Step) -> None:
        """Say about once a second how far it is, and how far what lasts has grown."""
        if time.monotonic() - self._noted_s < 1.0 or self._store is None:
            return
        self._noted_s = time.monotonic()
        self._store.put(step.lasting)
        try:
            self._log.commit(FRAMES, READER, self.place)
        except LogError as error:
            log.warning("the position cannot be noted in the log: %s", error)

    def _nature(self) -> str:
        """Under which settings a state makes sense; the detector's may change."""
        it = self.settings.pipeline
        told = repr((_FORM, it.learn_s, it.align, it.quality, it.persist_s, it.scorers, it.model))
        return hashlib.blake2b(told.encode(), digest_size=8).hexdigest()

    def _resume(self, snapshot: Snapshot) -> str:
        """Go on from a snapshot, or say that it does not fit."""
        if snapshot.nature != self._nature():
            log.warning("settings have changed since the snapshot: what is typical is learned anew from here on")
            self.place = snapshot.place
            return "refused"
        try:
            intake, skeleton = msgspec.msgpack.decode(snapshot.body, type=tuple[bytes, bytes])
            self.pipeline.thaw(Frozen(skeleton, snapshot.arrays))
            self.intake.thaw(intake, self.pipeline.tables)
        except (StoreError, msgspec.MsgspecError) as error:
            log.error("%s; what is typical is learned anew from here on", error)  # noqa: TRY400
            self.pipeline = Pipeline(self.settings.pipeline, self._learned)
            self.intake = Intake(self._configured)
            self.place = snapshot.place
            return "refused"
        self.place = snapshot.place
        return "restored"

    def _save(self, snapshot: Snapshot) -> None:
        """Write a snapshot, in the saver's thread."""
        began_s = time.perf_counter()
        try:
            size = self._snapshots.save(snapshot)
        except StoreError as error:
            log.error("%s; the snapshot before stays valid", error)  # noqa: TRY400
            for observer in self._observers:
                observer.save_failed()
            return
        state = len(snapshot.body) + sum(array.nbytes for array in snapshot.arrays)
        for observer in self._observers:
            observer.saved(time.perf_counter() - began_s, size, state)


class _Waiting:
    """When the frames came that wait for their tick."""

    def __init__(self) -> None:
        self._time_ns: NDArray[np.int64] = np.empty(0, np.int64)
        self._arrival_ns: NDArray[np.int64] = np.empty(0, np.int64)

    def note(self, turn: Turn) -> None:
        """Note frames; where no tick has come for very many, the oldest are forgotten."""
        if turn.batches:
            self._time_ns, self._arrival_ns = self._time_ns[-_WAITING:], self._arrival_ns[-_WAITING:]
            self._time_ns = np.concatenate([self._time_ns, *(b.time_ns for _, b in turn.batches)])
            self._arrival_ns = np.concatenate([self._arrival_ns, *(b.arrival_ns for _, b in turn.batches)])

    def of(self, outputs: Sequence[Output]) -> list[int]:
        """For each tick of the outputs, when the newest of its frames came; they wait no longer."""
        ticks = np.concatenate([np.empty(0, np.int64), *(o.scored.ticks.time_ns for o in outputs)])
        if not len(ticks):
            return []
        # A stamp may stand half a period beside its slot; what lies before the first of these ticks waited for none.
        place = np.searchsorted(ticks, self._time_ns)
        newest = np.zeros(len(ticks) + 1, np.int64)
        np.maximum.at(newest, place, self._arrival_ns)
        rest = place == len(ticks)
        self._time_ns, self._arrival_ns = self._time_ns[rest], self._arrival_ns[rest]
        return [one for one in newest[:-1].tolist() if one]
