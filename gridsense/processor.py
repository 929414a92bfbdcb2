"""The stream processor: entries of the log in, events in the store out, each once, whatever happens in between.

It reads on from where its newest snapshot was taken, and what it has said since then it says again, to a store that
knows it already: the same entries give the same events. Nothing it needs is anywhere but in the log and in the store's
file. It makes no connection and shows nothing; `Observer`s do.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import msgspec

from gridsense.errors import StoreError
from gridsense.events import Cause, Event, event_id
from gridsense.intake import DeadLetter
from gridsense.joining import LONG_AGO_NS, Joiner, Word
from gridsense.joining import Settings as JoinSettings
from gridsense.pipeline import Learned, Output
from gridsense.pipeline import Settings as PipelineSettings
from gridsense.regions import Heard, Region, Regions
from gridsense.snapshots import Snapshot, Snapshots
from gridsense.store import EventStore
from streams.errors import LogError, LogFullError
from streams.log import CONFIGURATIONS, DEAD_LETTERS, FRAMES, Log, Lost, Record

log = logging.getLogger(__name__)

READER = "processor"
"""Under which name its position stands in the log."""

DEAD_LETTERS_A_READING = 1000
"""Frames that are put aside at once at most: the reasons repeat, and the log has other things to hold."""

DEAD_BYTES = 1024
"""Of a frame that could not be used, this much is put aside."""

_BEHIND_NS = 1_000_000_000
"""What came so long ago, and is read only now, came while we were busy."""

_BRISK_HZ = 12.0
"""At this rate three frames come in 0.25 s."""


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
        Nothing having come of a region for so long, the processor writes into the log what time it is: windows close on
        it. Longer in proportion where fewer than `_BRISK_HZ` frames a second are reported: between two of them nothing
        is idle.
    pace_s
        Seconds from one reading to the next where there is little to do: what comes in between is worked on together.
    """

    pipeline: PipelineSettings = field(default_factory=PipelineSettings)
    snapshot_s: float = 30.0
    idle_s: float = 0.25
    pace_s: float = 0.1


@dataclass(frozen=True, slots=True)
class Step:
    """What one reading came to, in one region; where it came to nothing anywhere, there is one step without outputs.

    Attributes
    ----------
    region
        Its name.
    place
        Offset of the first entry that was not read.
    outputs
        Of the pipeline.
    events
        Raised or ended, in order.
    lasting
        Open now, in all regions.
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

    region: str
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


NOTHING = Heard("", (), (), (), (), LONG_AGO_NS, ())
"""Of no region."""


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
        self.regions = Regions(settings.pipeline, self._configured, learned)
        self.joiner = Joiner(JoinSettings(settings.pipeline.source))
        self._learned = learned
        self._log = reading
        self._path = store
        self._store: EventStore | None = None
        self._observers = observers
        self._now_ns = now_ns
        self._snapshots = Snapshots(store)
        self._saver = ThreadPoolExecutor(1, "snapshot")
        self._saving: Future[None] | None = None
        self._saved_s = time.monotonic()
        self._unsaid: list[Event] = []
        self._worked = False
        self._noted_s = 0.0

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
        heard = self.regions.take(reading.entries)
        self.place = reading.next
        self._stepped(heard, reading.lost, began_s)
        if reading.entries or reading.lost:
            self._note()
            if time.monotonic() - self._saved_s >= self.settings.snapshot_s:
                self.save(wait=False)
        self._worked = bool(reading.entries or reading.lost)
        return self._worked

    def mark_time(self) -> None:
        """Where nothing has come of a region for long, write into the log what time it is.

        Not while reading is behind: what is missing may be there already. A log that is full takes no mark: windows
        stay open until there is room.
        """
        if self._worked and self._now_ns() - self.regions.clock_ns > _BEHIND_NS:
            return
        marks = [
            mark
            for region in self.regions.by_name.values()
            if (mark := mark_of(region, self.settings.idle_s, self._now_ns()))
        ]
        if not marks:
            return
        try:
            self._log.append(FRAMES, marks)
        except LogFullError as error:
            log.error("what time it is cannot be written: %s", error)  # noqa: TRY400 (no bug: an expected trouble)

    def finish(self) -> None:
        """Take the frames as ended: close every window, as at the end of a file."""
        began_s = time.perf_counter()
        self._stepped(self.regions.finish(), (), began_s)
        self._say(self.joiner.finish())
        if self._store is not None:
            self._store.put(self._lasting())

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
        frozen = self.regions.freeze()
        if frozen is None or not self.regions.by_name or self._unsaid:
            return
        body = msgspec.msgpack.encode([frozen[0], self.joiner.freeze()])
        snapshot = Snapshot(self.place, self.regions.nature, body, frozen[1])
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

    def _stepped(self, heard: Sequence[Heard], lost: Sequence[Lost], began_s: float) -> None:
        """Store what was found, put aside what could not be used, and tell everybody."""
        gaps = [self._gap(one) for one in lost]
        words = [
            Word(h.region, self.regions.by_name[h.region].intake.clock_ns, h.until_ns, h.changes)
            for h in heard
            if h.region in self.regions.by_name
        ]
        joined = [*gaps, *self.joiner.take(words)]
        self._say([*joined, *(event for h in heard for event in h.events)])
        self._put_aside([letter for h in heard for letter in h.dead])
        now_ns, lasting = self._now_ns(), self._lasting()
        took_s = time.perf_counter() - began_s
        # What concerns the grid is told with the first region, and so is the time that all of them took.
        for n, one in enumerate(heard or [NOTHING]):
            step = Step(
                region=one.region,
                place=self.place,
                outputs=one.outputs,
                events=[*joined, *one.events] if n == 0 else one.events,
                lasting=lasting,
                dead=one.dead,
                lost=lost if n == 0 else (),
                latency_s=[(now_ns - arrival) / 1e9 for arrival in one.arrivals_ns],
                took_s=took_s if n == 0 else 0.0,
                clock_ns=self.regions.clock_ns,
                frames=self.regions.frames,
            )
            for observer in self._observers:
                observer.stepped(step)

    def _lasting(self) -> list[Event]:
        """Say what is open: disturbances, joined, and what concerns single regions."""
        own = (event for region in self.regions.by_name.values() for event in region.lasting())
        return [*self.joiner.lasting(self.regions.open_events()), *own]

    def _say(self, events: Sequence[Event]) -> None:
        """Store events, those first that could not be stored before."""
        self._unsaid += events
        if self._unsaid and self._store is not None:
            self._store.put(self._unsaid)
            self._unsaid = []

    def _gap(self, lost: Lost) -> Event:
        return gap(self.settings.pipeline.source, self.regions.clock_ns, FRAMES, lost)

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

    def _note(self) -> None:
        """Say about once a second how far it is, and how far what lasts has grown."""
        if time.monotonic() - self._noted_s < 1.0 or self._store is None:
            return
        self._noted_s = time.monotonic()
        self._store.put(self._lasting())
        try:
            self._log.commit(FRAMES, READER, self.place)
        except LogError as error:
            log.warning("the position cannot be noted in the log: %s", error)

    def _resume(self, snapshot: Snapshot) -> str:
        """Go on from a snapshot, or say that it does not fit."""
        self.place = snapshot.place
        if snapshot.nature != self.regions.nature:
            log.warning("settings have changed since the snapshot: what is typical is learned anew from here on")
            return "refused"
        try:
            regions, joined = msgspec.msgpack.decode(snapshot.body, type=tuple[bytes, bytes])
            self.joiner.thaw(joined)
            self.regions.thaw(regions, snapshot.arrays)
        except (StoreError, msgspec.MsgspecError) as error:
            log.error("%s; what is typical is learned anew from here on", error)  # noqa: TRY400
            self.joiner = Joiner(self.joiner.settings)
            return "refused"
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


def gap(source: str, clock_ns: int, topic: str, lost: Lost) -> Event:
    """Make an event of entries that the log cannot give, or that were skipped.

    Parameters
    ----------
    source
        Name of what is watched.
    clock_ns
        What time it was by the entries before.
    topic
        Of the log, and its partition where there are several.
    lost
        What is missing.

    Returns
    -------
    Event
        Over at once.
    """
    entries = lost.last - lost.first + 1
    log.error("entries %d to %d of %s are lost: %s", lost.first, lost.last, topic, lost.reason)
    return Event(
        id=event_id(source, clock_ns, f"{topic}#{lost.first}", Cause.DATA),
        source=source,
        onset_ns=clock_ns,
        raised_ns=clock_ns,
        end_ns=clock_ns,
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


def mark_of(region: Region, idle_s: float, now_ns: int, since_s: float = 0.0) -> Record | None:
    """Make a mark of time for a region, where nothing has come of it for long.

    Parameters
    ----------
    region
        Any.
    idle_s
        How long that is, where its frames come briskly; longer in proportion where fewer than `_BRISK_HZ` a second do.
    now_ns
        The wall clock, UTC nanoseconds.
    since_s
        Before this, by the monotonic clock, silence says nothing.

    Returns
    -------
    Record | None
        None where it is not due; else the region's silence begins anew with it.
    """
    wait_s = idle_s * max(1.0, _BRISK_HZ / (region.intake.rate_hz or _BRISK_HZ))
    if time.monotonic() - max(region.came_s, since_s) < wait_s or not region.intake.clock_ns:
        return None
    region.came_s = time.monotonic()
    key = f"{region.name}/" if region.name else ""
    return Record(max(now_ns, region.intake.clock_ns + round(idle_s * 1e9)), key, b"")
