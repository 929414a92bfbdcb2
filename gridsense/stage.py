"""A stage on Kafka: partitions of a topic in, records out, each once, whatever is killed in between.

What is made of a partition's entries is its `Work`'s business. The stage has the group give it partitions, and commits
in one transaction what a work writes and how far it has read. What a work remembers is saved beside that, now and then,
and the committed place says where: whoever takes a partition over reads again what came between the newest snapshot and
the committed place, and is silent about it. So a work must say the same of the same entries, however they are cut.
"""

from __future__ import annotations

import logging
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Any, Generic, Protocol, TypeVar

import msgspec
from numpy.typing import NDArray

from gridsense.checkpoints import Checkpoints, Pointer
from gridsense.errors import StoreError
from gridsense.snapshots import Snapshot
from streams.errors import DeniedError, FencedError, LogError
from streams.kafka.member import Member, MemberSettings, Outgoing, Place
from streams.kafka.settings import KafkaSettings
from streams.kafka.state import StateTopic
from streams.log import Entry, Lost, Reading

log = logging.getLogger(__name__)

RETRY_S = 1.0
"""How long to wait where Kafka cannot be used."""
PROBE_S = 1.0
"""Where nothing comes of a partition, it is asked this often whether the servers are there."""

LOOK_S = 0.02
"""What has come while a round was at work is there within this time, as a rule."""
GATHERED_BYTES = 4 << 20
"""More than this is not worked on at once."""
SAID_S = 1.0
"""What is not pressing is written, and told, this often."""

Found = TypeVar("Found")
_Frozen = tuple[bytes, tuple[NDArray[Any], ...]]
_Saved = tuple[Pointer, int, int, float]


class Work(Protocol[Found]):
    """What is made of one partition's entries. It belongs to the stage's thread."""

    @property
    def nature(self) -> str:
        """Under which settings what it remembers makes sense."""
        ...

    def take(self, entries: Sequence[Entry], lost: Sequence[Lost]) -> Found:
        """Take entries in, in order, following those before; what is lost stood before them."""
        ...

    def records(self, found: Found) -> list[Outgoing]:
        """Write down what was found."""
        ...

    def committed(self, found: Found, place: int, took_s: float) -> None:
        """Be told that this is safe now: it may be shown. Entries before `place` are read."""
        ...

    def idle(self, alive_s: float) -> list[Outgoing]:
        """Nothing has come: mark what time it is, where that is due. The servers have been there since `alive_s`."""
        ...

    def freeze(self) -> tuple[bytes, tuple[NDArray[Any], ...]] | None:
        """Take down what is remembered; None where that is not possible now."""
        ...

    def thaw(self, body: bytes, arrays: Sequence[NDArray[Any]]) -> None:
        """Go on from what was taken down. A `StoreError` says that it cannot be used: nothing is remembered then."""
        ...


class Observer(Protocol):
    """Somebody who is told what a stage does, in its thread."""

    def saved(self, took_s: float, size: int, state_bytes: int) -> None:
        """Be told of a snapshot that was written."""
        ...

    def save_failed(self) -> None:
        """Be told of a snapshot that could not be written."""
        ...

    def began(self, how: str) -> None:
        """Be told where the state of a partition came from: ``fresh``, ``restored`` or ``refused``."""
        ...

    def told(self, behind: Mapping[int, Behind]) -> None:
        """Be told, about once a second, how far the stage is behind, by partition."""
        ...


@dataclass(frozen=True, slots=True)
class Behind:
    """How far a partition is behind.

    Attributes
    ----------
    entries
        That are not read yet.
    lag_s
        How long ago the newest that was read had been written; 0 where all is read.
    """

    entries: int
    lag_s: float


@dataclass(frozen=True, slots=True)
class Settings:
    """What a stage is told once.

    Attributes
    ----------
    member
        Its group, its topic, its name.
    state
        The topic of its snapshots, of as many partitions.
    snapshot_s
        Seconds from one snapshot of a partition to the next: how much is read again after a crash, at most.
    pace_s
        What comes within this time is worked on together.
    max_lag_s
        Further behind than this, skip to what comes now; 0: never.
    """

    member: MemberSettings
    state: str
    snapshot_s: float = 30.0
    pace_s: float = 0.1
    max_lag_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Counts:
    """What a stage has done in its group.

    Attributes
    ----------
    transactions, aborted, fenced, rebalances, rebalance_s
        As of `streams.kafka.member.Member`.
    """

    transactions: int = 0
    aborted: int = 0
    fenced: int = 0
    rebalances: int = 0
    rebalance_s: float = 0.0

    def plus(self, member: Member) -> Counts:
        """Add what a member did.

        Parameters
        ----------
        member
            In any state.

        Returns
        -------
        Counts
            Of both.
        """
        return Counts(
            self.transactions + member.transactions,
            self.aborted + member.aborted,
            self.fenced + member.fenced,
            self.rebalances + member.rebalances,
            self.rebalance_s + member.rebalance_s,
        )


@dataclass(slots=True)
class _Part(Generic[Found]):
    """A partition that is ours."""

    work: Work[Found]
    checkpoints: Checkpoints
    pointer: Pointer | None
    """To the snapshot that the next commit names; None before anything was read."""
    told: int
    """Entries before this offset have been answered for: nothing is said of them again."""
    place: int = 0
    """Offset of the first entry that was not taken in."""
    restored: bool = False
    saved: int = -1
    """Place of the newest snapshot."""
    saved_s: float = 0.0
    unsaid: bool = False
    """The pointer is not committed yet."""
    came_s: float = field(default_factory=time.monotonic)
    """When something was last read."""

    @property
    def live(self) -> bool:
        """All that was answered for has been read again: from here on it counts."""
        return self.restored and self.pointer is not None and self.place >= self.told

    def committing(self) -> Place:
        """Say what to commit."""
        return Place(self.place, msgspec.json.encode(self.pointer).decode())

    def save(self, frozen: _Frozen, place: int) -> _Saved:
        """Write a snapshot, in the saver's thread."""
        began_s = time.perf_counter()
        body, arrays = frozen
        pointer, size = self.checkpoints.save(Snapshot(place, self.work.nature, body, arrays))
        state_bytes = len(body) + sum(array.nbytes for array in arrays)
        return pointer, size, state_bytes, time.perf_counter() - began_s

    def tidy(self) -> None:
        """Remove old snapshots, likewise."""
        try:
            self.checkpoints.tidy()
        except StoreError as error:
            log.warning("%s", error)


class Stage(Generic[Found]):
    """Works on the partitions that its group gives it, in one thread, until told to stop.

    Parameters
    ----------
    kafka
        How Kafka is reached.
    settings
        See `Settings`.
    work
        Makes what works on a partition, given its number.
    observer
        Told what is done.
    outbox
        Asked about once a second for what else is to be written.

    Attributes
    ----------
    trouble
        Why it cannot go on; empty where it does.
    beat_s
        When its loop last came round, by the monotonic clock.
    """

    def __init__(
        self,
        kafka: KafkaSettings,
        settings: Settings,
        work: Callable[[int], Work[Found]],
        observer: Observer,
        outbox: Callable[[], list[Outgoing]] = list,
    ) -> None:
        self.settings = settings
        self.trouble = "it is joining its group"
        self.beat_s = time.monotonic()
        self._kafka = kafka
        self._work = work
        self._observer = observer
        self._outbox = outbox
        self._member: Member | None = None
        self._counted = Counts()
        self._parts: dict[int, _Part[Found]] = {}
        self._readings: dict[int, Reading] = {}
        self._moved: set[int] = set()
        self._saver: ThreadPoolExecutor | None = None
        self._states = StateTopic(kafka, settings.state)
        self._saving: tuple[_Part[Found], int, Future[_Saved]] | None = None
        self._alive_s = self._probed_s = self._said_s = self._wrote_s = self._round_s = time.monotonic()

    @property
    def works(self) -> dict[int, Work[Found]]:
        """What is at work, by partition."""
        return {partition: part.work for partition, part in self._parts.items() if part.restored}

    @property
    def counts(self) -> Counts:
        """What was done since the beginning; may be asked from anywhere."""
        member = self._member
        return self._counted if member is None else self._counted.plus(member)

    def open(self) -> None:
        """Connect. A `LogError` says that this is not possible."""
        self._saver = ThreadPoolExecutor(1, f"{self.settings.member.group}-snapshot")
        self._join()

    def run(self, stop: threading.Event) -> None:
        """Work until told to stop, and save what is remembered then. A trouble is a pause.

        Parameters
        ----------
        stop
            Set it to stop.

        Raises
        ------
        FencedError
            If another process of the same name has taken over.
        DeniedError
            If it has no right to do its work, and has done none yet.
        """
        while not stop.is_set():
            self.beat_s = time.monotonic()
            try:
                if self._member is None:
                    self._join()
                self._step()
                self.trouble = ""
            except FencedError as error:
                doubled = self._member is not None and self._member.doubled
                self._leave()
                if doubled:
                    member = self.settings.member
                    raise FencedError(
                        f"another process of group {member.group} is {member.instance}, too, and has taken over: "
                        "give each a kafka.instance of its own"
                    ) from error
                log.warning("%s", error)
            except DeniedError as error:
                if not self.counts.transactions:
                    self._leave()
                    raise  # whoever set it up is still there; later, it waits until it may again
                self._begin_anew(error, stop)
            except (LogError, StoreError) as error:
                self._begin_anew(error, stop)
        self._hand_over(sorted(self._parts))

    def interrupt(self) -> None:
        """Have it give up waiting for servers that do not answer. May be called from anywhere."""
        member = self._member
        if member is not None:
            member.interrupt()

    def close(self) -> None:
        """Write what is still to be said, and let go of everything."""
        places = {partition: part.committing() for partition, part in self._parts.items() if part.live}
        if self._member is not None and places:
            try:
                self._member.transact(self._outbox(), places)
            except LogError as error:
                log.warning("the last words could not be written: %s", error)
        self._leave()
        if self._saver is not None:
            self._saver.submit(self._states.close).result()
            self._saver.shutdown()
            self._saver = None

    # --- a round ------------------------------------------------------------------------------------------------------

    def _step(self) -> None:
        """Gather what comes, work on it, and commit it."""
        self._gather()
        for partition, part in self._parts.items():
            if not part.restored:
                self._restore(partition, part)
        began_s = time.monotonic()
        found: list[tuple[_Part[Found], Found]] = []
        records: list[Outgoing] = []
        readings, self._readings = self._readings, {}
        for partition, reading in readings.items():
            part = self._parts[partition]
            part.came_s = began_s
            if (one := self._taken(partition, part, reading)) is not None:
                found.append((part, one))
                records += part.work.records(one)
            if part.live:
                self._moved.add(partition)
        records += self._marks()
        self._take_snapshots()
        self._commit(records)
        took_s = time.monotonic() - began_s
        for part, one in found:
            part.work.committed(one, part.place, took_s / len(found))
        if time.monotonic() - self._said_s >= SAID_S:
            self._said_s = time.monotonic()
            self._observer.told({partition: self._behind(partition) for partition in self._parts})

    def _gather(self) -> None:
        """Read until the pace says that it is time for a round; where that is past, what has come while we worked."""
        member = self._live()
        deadline_s = max(self._round_s + self.settings.pace_s, time.monotonic() + LOOK_S)
        size = 0
        while size < GATHERED_BYTES and (left_s := deadline_s - time.monotonic()) > 0:
            for partition, new in member.poll(left_s).items():
                before = self._readings.get(partition)
                self._readings[partition] = (
                    Reading([*before.entries, *new.entries], new.next, (*before.lost, *new.lost)) if before else new
                )
                size += sum(len(entry.value) for entry in new.entries)
        self._round_s = time.monotonic()

    def _taken(self, partition: int, part: _Part[Found], reading: Reading) -> Found | None:
        """Have a reading worked on; what was answered for before is worked on in silence."""
        if part.pointer is None:  # the first entry of all
            part.pointer = Pointer(reading.entries[0].offset if reading.entries else reading.next, ())
        cut = bisect_left(reading.entries, part.told, key=attrgetter("offset"))
        entries = reading.entries[cut:]
        lost = [replace(one, first=max(one.first, part.told)) for one in reading.lost if one.last >= part.told]
        if any(one.first < part.told for one in reading.lost):
            log.warning("partition %d: some of what is to be read again is gone; the state is without it", partition)
        if cut:
            part.work.take(reading.entries[:cut], ())
        part.place = reading.next
        if entries and self._too_late(partition) and (skipped := self._skip(partition, part, entries[0].offset)):
            return part.work.take((), [*lost, skipped])
        return part.work.take(entries, lost) if entries or lost else None

    def _too_late(self, partition: int) -> bool:
        return 0 < self.settings.max_lag_s < self._behind(partition).lag_s

    def _skip(self, partition: int, part: _Part[Found], first: int) -> Lost | None:
        """Go on where the partition ends now. What is remembered is saved for that place, or it is not left."""
        end = self._live().end(partition)
        frozen = part.work.freeze()
        if end <= part.place or frozen is None:
            return None
        part.place = end
        if not self._save_now(part, frozen):
            part.place = first
            raise StoreError(f"partition {partition} is too far behind, and its state cannot be saved to go on")
        self._live().seek(partition, end)
        log.error("partition %d is too far behind: %d entries are skipped", partition, end - first)
        return Lost(first, end - 1, "skipped")

    def _marks(self) -> list[Outgoing]:
        """Say what time it is where nothing comes, if Kafka is there nevertheless."""
        now_s = time.monotonic()
        if now_s - self._probed_s < PROBE_S:
            return []
        self._probed_s = now_s
        silent = any(now_s - part.came_s >= PROBE_S for part in self._parts.values())
        if silent and not self._live().alive():
            self._alive_s = time.monotonic()
            return []
        # What is missing where reading is behind may be there already.
        read = [part for n, part in self._parts.items() if part.live and self._behind(n).lag_s < PROBE_S]
        return [mark for part in read for mark in part.work.idle(self._alive_s)]

    def _commit(self, records: list[Outgoing]) -> None:
        """Write what there is to say, with how far it came; where there is nothing, that alone now and then."""
        due = time.monotonic() - self._wrote_s >= SAID_S
        live = {partition: part for partition, part in self._parts.items() if part.live}
        moved = self._moved & live.keys() | {partition for partition, part in live.items() if part.unsaid}
        if due:
            records += self._outbox()
            self._wrote_s = time.monotonic()
        if not live or not (records or (due and moved)):
            return
        places = {partition: live[partition].committing() for partition in moved or live}
        self._live().transact(records, places)
        self._moved.clear()
        for part in (live[partition] for partition in places):
            part.told = part.place
            if part.unsaid:
                part.unsaid = False
                self._in_background(part.tidy)

    def _behind(self, partition: int) -> Behind:
        entries = max(self._live().end(partition) - self._parts[partition].place, 0)
        written_ns = self._live().written_ns(partition)
        return Behind(entries, max(time.time_ns() - written_ns, 0) / 1e9 if entries and written_ns else 0.0)

    # --- the group ----------------------------------------------------------------------------------------------------

    def _join(self) -> None:
        member = Member(self._kafka, self.settings.member, self._assigned, self._revoked)
        member.open()
        self._member = member
        self._alive_s = time.monotonic()

    def _begin_anew(self, error: LogError | StoreError, stop: threading.Event) -> None:
        """Say what is wrong, and wait a little."""
        log.error("%s; beginning anew in %g s", error, RETRY_S)
        self.trouble = str(error)
        self._leave()
        stop.wait(RETRY_S)

    def _leave(self) -> None:
        """Let go of everything; what was not committed was never done."""
        self._parts.clear()
        self._readings.clear()
        self._moved.clear()
        self._saving = None
        if self._member is not None:
            self._counted, member, self._member = self.counts, self._member, None
            member.close()

    def _live(self) -> Member:
        if self._member is None:
            raise LogError(f"group {self.settings.member.group}: not joined")
        return self._member

    def _assigned(self, partitions: Sequence[int]) -> None:
        """Begin where the state of a partition was saved; it is read when there is time."""
        for partition in partitions:
            place = self._live().committed(partition)
            pointer = _pointer(place)
            if place is not None and pointer is not None:
                self._live().seek(partition, pointer.place)
            told = 0 if place is None else place.offset
            checkpoints = Checkpoints(self._states, partition)
            self._parts[partition] = _Part(self._work(partition), checkpoints, pointer, told)
        log.info("group %s: partitions %s are ours", self.settings.member.group, list(partitions))

    def _revoked(self, partitions: Sequence[int]) -> None:
        """Save what is remembered, for whoever gets the partitions."""
        log.info("group %s: partitions %s go to others", self.settings.member.group, list(partitions))
        self._hand_over(partitions)
        for partition in partitions:
            self._parts.pop(partition, None)
            self._readings.pop(partition, None)
            self._moved.discard(partition)

    def _hand_over(self, partitions: Sequence[int]) -> None:
        """Save and commit; where that fails, who comes after us reads more again."""
        live = {p: part for p in partitions if (part := self._parts.get(p)) is not None and part.live}
        try:
            for part in live.values():
                if part.saved != part.place and (frozen := part.work.freeze()) is not None:
                    self._save_now(part, frozen)
            if live:
                self._live().transact((), {partition: part.committing() for partition, part in live.items()})
            for part in live.values():
                part.told, part.unsaid = part.place, False
        except LogError as error:
            log.warning("what is remembered could not be handed over: %s", error)

    # --- what is remembered -------------------------------------------------------------------------------------------

    def _restore(self, partition: int, part: _Part[Found]) -> None:
        """Have the state back as it was saved; where it cannot be used, go on without it from what is committed."""
        how, pointer = "fresh", part.pointer
        if pointer is not None and pointer.index:
            try:
                snapshot = self._pool().submit(part.checkpoints.read, pointer).result()
                if snapshot.nature == part.work.nature:
                    part.work.thaw(snapshot.body, snapshot.arrays)
                    how = "restored"
                    part.saved = snapshot.place
                else:
                    how = "refused"
                    log.warning("settings have changed since the snapshot of partition %d: it learns anew", partition)
            except StoreError as error:
                how = "refused"
                log.error("%s; partition %d learns anew from here on", error, partition)  # noqa: TRY400
        if how == "refused":
            part.pointer = Pointer(part.told, ())
            self._live().seek(partition, part.told)
            self._readings.pop(partition, None)
        part.place = part.pointer.place if part.pointer is not None else 0
        part.restored, part.saved_s = True, time.monotonic()
        self._observer.began(how)
        log.info("partition %d: %s, at %d of %d", partition, how, part.place, part.told)

    def _take_snapshots(self) -> None:
        """Have the state saved of the partition that waits longest, one at a time, while work goes on."""
        if self._saving is not None:
            part, place, future = self._saving
            if not future.done():
                return
            self._saving = None
            self._note(part, place, future)
        due_s = time.monotonic() - self.settings.snapshot_s
        due = [p for p in self._parts.values() if p.live and p.saved_s <= due_s and p.saved != p.place]
        if not due:
            return
        part = min(due, key=attrgetter("saved_s"))
        frozen = part.work.freeze()
        if frozen is not None:
            part.saved_s = time.monotonic()
            self._saving = part, part.place, self._pool().submit(part.save, frozen, part.place)

    def _save_now(self, part: _Part[Found], frozen: _Frozen) -> bool:
        """Have a state saved, and wait for it; the next commit makes it count."""
        running, self._saving = self._saving, None
        hurried = {part.checkpoints.hurry} | ({running[0].checkpoints.hurry} if running else set())
        for hurry in hurried:
            hurry.set()
        try:
            if running is not None:
                self._note(*running)
            return self._note(part, part.place, self._pool().submit(part.save, frozen, part.place))
        finally:
            for hurry in hurried:
                hurry.clear()

    def _note(self, part: _Part[Found], place: int, future: Future[_Saved]) -> bool:
        """Take note of a snapshot that was written, or was not."""
        try:
            pointer, size, state_bytes, took_s = future.result()
        except StoreError as error:
            log.error("%s; the one before stays valid", error)  # noqa: TRY400 (no bug: an expected trouble)
            self._observer.save_failed()
            return False
        part.pointer, part.saved, part.unsaid = pointer, place, True
        self._observer.saved(took_s, size, state_bytes)
        return True

    def _in_background(self, what: Callable[[], None]) -> None:
        self._pool().submit(what)

    def _pool(self) -> ThreadPoolExecutor:
        if self._saver is None:
            raise LogError(f"group {self.settings.member.group}: not open")
        return self._saver


def _pointer(place: Place | None) -> Pointer | None:
    """Read where the snapshot is; a place without one is where the state begins."""
    if place is None:
        return None
    try:
        return msgspec.json.decode(place.note, type=Pointer)
    except msgspec.MsgspecError:
        return Pointer(place.offset, ())
