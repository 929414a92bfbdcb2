"""What waits on disk while a distant log does not answer, or while another gateway is the one that writes.

In: records of the gateway's writer, in order. Out: the same records in the distant log, each once and in order: at
once while it answers; else into a file, and from there when it answers again. Without the right to write, as a standby,
it keeps in the file what the other has not surely written. It knows no Kafka: that is a `Target`.
"""

from __future__ import annotations

import fcntl
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from streams.errors import FencedError, LogError, LogFullError, UnreachableError
from streams.gateway.standby import Lacking
from streams.gateway.writer import RECORD_BYTES
from streams.log import CONFIGURATIONS, Entry, Reading, Record, Retention
from streams.sqlite_log import SqliteLog, open_log

SPILL = "spill"
"""Topic of the file: what waits. A record's key is that of the distant log behind its topic and a slash."""

PIECE_BYTES = 1 << 20
"""Bytes of values that are written from the file at once, about."""

SLACK_BYTES = 1 << 26
"""Bytes that the file may hold beyond what waits: it is cleared in steps."""

TURN_S = 0.2
"""How often the right to write is looked at, and whether anything waits."""

TRIM_S = 1.0
"""How often a standby removes what the other one has written."""

_RETRY_MOST_S = 2.0
_COMPLAIN_S = 60.0
_WRITTEN, _LAST, _ATTEMPT, _ATTEMPT_TO = "written", "last", "attempt", "attempt-to"
"""What is remembered in the file beside the records, as readers' positions: the first offset that was not written yet;
the number of the last write that took place; that of one which nobody knows of, and the offset after its records."""

_log = logging.getLogger(__name__)


class Target(Protocol):
    """A distant log in which one gateway, or one of a pair, writes.

    Every method raises `streams.errors.LogError`; `UnreachableError` where nobody answers, `FencedError` where another
    has taken over. After an error it is closed and made anew.
    """

    def held(self) -> bool:
        """Say whether this process is the one that may write."""
        ...

    def place(self) -> tuple[int, int]:
        """Read the number of the newest write, whoever did it, and the arrival of its newest record; 0, 0: none."""
        ...

    def settle(self) -> tuple[int, int]:
        """Shut out whoever wrote until now, and read the same: no write can follow but our own."""
        ...

    def write(self, records: Sequence[tuple[str, Record]], number: int) -> None:
        """Write records to their topics, all or none; after `settle`.

        Parameters
        ----------
        records
            Each with its topic, in order.
        number
            Of this write; `settle` and `place` return it if it took place.
        """
        ...

    def tail(self, keys: Collection[str], since_ns: int) -> Iterable[Entry]:
        """Read the end of `FRAMES`.

        Parameters
        ----------
        keys
            Whose entries are wanted; others may come with them.
        since_ns
            Arrival from which on nothing may be missing.

        Returns
        -------
        Iterable[Entry]
            In the order of each connection.
        """
        ...

    def latest(self, topic: str) -> Mapping[str, Entry]:
        """Read the newest entry of each key of a compacted topic.

        Parameters
        ----------
        topic
            Which.

        Returns
        -------
        Mapping[str, Entry]
            By key.
        """
        ...

    def close(self) -> None:
        """Let go of it, and of the right to write."""
        ...


@dataclass(frozen=True, slots=True)
class SpillSettings:
    """Of a spill.

    Attributes
    ----------
    path
        The file; its folder is there.
    size
        Bytes that may wait in it, 128 for each record included.
    keep_s
        A standby keeps what came within so long before the newest record that the other wrote.
    margin_s
        By how much the clocks and networks of the two gateways of a pair may differ.
    """

    path: Path
    size: int = 1 << 30
    keep_s: float = 10.0
    margin_s: float = 3.0


@dataclass(slots=True)
class SpillStatus:
    """How a spill stands; any thread may look at it.

    Attributes
    ----------
    direct
        What comes is written to the distant log at once.
    standby
        Another gateway is the one that writes.
    waiting_records, waiting_bytes
        In the file, not written yet.
    spilled_records
        Went through the file so far.
    failures
        Times the distant log failed.
    fenced
        Times another gateway took over.
    recovery_s
        From the first failure of the newest outage until all that had waited was written.
    """

    direct: bool = False
    standby: bool = False
    waiting_records: int = 0
    waiting_bytes: int = 0
    spilled_records: int = 0
    failures: int = 0
    fenced: int = 0
    recovery_s: float = 0.0


def open_spill(make_target: Callable[[], Target], settings: SpillSettings, status: SpillStatus) -> Spill:
    """Open a spill, or make one, and begin to write what waits in it.

    Parameters
    ----------
    make_target
        Makes the distant log; called in a thread of the spill, again after each failure.
    settings
        Where the file is, and how large it may be.
    status
        Told how it stands.

    Returns
    -------
    Spill
        To be closed after use.

    Raises
    ------
    LogError
        If another process uses the file, or it cannot be made.
    """
    real = settings.path.resolve()
    try:
        held = real.with_name(f"{real.name}.lock").open("a", encoding="ascii")
    except OSError as error:
        raise LogError(f"{settings.path}: {error.strerror}; name a file that can be written in kafka.spill") from error
    with ExitStack() as failed:
        failed.enter_context(held)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise LogError(
                f"{settings.path}: another gateway uses it ({error.strerror}): give each its own kafka.spill"
            ) from error
        file = failed.enter_context(closing(open_log(settings.path)))
        drained = failed.enter_context(closing(open_log(settings.path)))
        spill = Spill(make_target, settings, status, file=file, drained=drained, held=held)
        spill.start()
        failed.pop_all()
    return spill


class Spill:
    """Writes to a distant log, or into a file until that answers. One thread calls it; another one empties the file.

    Parameters
    ----------
    make_target
        Makes the distant log.
    settings
        Bounds.
    status
        Told how it stands.
    file
        The file, for the thread that writes.
    drained
        The same file, for the thread that empties it.
    held
        Locked while this process uses the file.
    """

    def __init__(
        self,
        make_target: Callable[[], Target],
        settings: SpillSettings,
        status: SpillStatus,
        *,
        file: SqliteLog,
        drained: SqliteLog,
        held: IO[str],
    ) -> None:
        self._make_target = make_target
        self._settings = settings
        self._status = status
        self._file = file  # under the lock
        self._drained = drained  # of the drainer alone
        self._held = held
        self._lock = threading.RLock()
        self._direct: Target | None = None  # under the lock: what comes goes there
        self._target: Target | None = None  # of the drainer alone, save while it is `_direct`
        self._broken = False
        self._settled = False
        self._lacking: Lacking | None = None
        self._lacking_until_s = 0.0
        self._last = 0
        self._trimmed_s = float("-inf")
        self._failed_s: float | None = None
        self._answered_s = 0.0
        self._recovered = 0
        self._complained_s = float("-inf")
        self._tried = threading.Event()
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._refusal: LogError | None = None
        self._thread = threading.Thread(target=self._run, name="gateway-spill", daemon=True)

    def start(self) -> None:
        """Begin to write what waits."""
        self._last = self._file.position(SPILL, _LAST) or 0
        self._recount()
        if self._status.waiting_records:
            _log.info("%d records wait in %s", self._status.waiting_records, self._settings.path)
        self._thread.start()

    def append(self, topic: str, records: Sequence[Record]) -> None:
        """Write records to the distant log or into the file; they are safe on return.

        Parameters
        ----------
        topic
            Theirs.
        records
            In order.
        """
        self._check()
        with self._lock:
            if topic == CONFIGURATIONS:
                self._file.append(CONFIGURATIONS, records)
            if self._direct is None:
                self._put(topic, records)
                return
            number = self._next_number()
            try:
                self._direct.write([(topic, record) for record in records], number)
            except LogError as error:
                self._fail_over(error, topic, records, number)
            else:
                self._last = number

    def latest(self, topic: str) -> dict[str, Entry]:
        """Read the newest entry of each key of a compacted topic, as far as it is known without the distant log.

        Parameters
        ----------
        topic
            `CONFIGURATIONS`.

        Returns
        -------
        dict[str, Entry]
            By key.
        """
        self._tried.wait()
        self._check()
        with self._lock:
            return self._file.latest(topic)

    def close(self) -> None:
        """Let go of both; what waits, waits for the next start."""
        self._stopping.set()
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join()
        if self._status.waiting_records and not self._status.standby:
            _log.warning("%d records wait in %s for the next start", self._status.waiting_records, self._settings.path)
        self._status.direct = False
        self._file.close()
        self._drained.close()
        self._held.close()

    def _check(self) -> None:
        """Raise what ended the thread before its time, if anything did: this object is of no more use then."""
        if self._refusal is not None:
            raise self._refusal

    # ---------------------------------------------------------------- under the lock

    def _put(self, topic: str, records: Sequence[Record], *, beyond: bool = False) -> None:
        """Write into the file, within its bound or, if need be, beyond it."""
        status = self._status
        size = sum(len(record.value) + RECORD_BYTES for record in records)
        if status.waiting_bytes + size > self._settings.size and not beyond:
            if not status.standby:
                raise LogFullError(
                    f"{self._settings.path}: {status.waiting_bytes:,} bytes wait in it, no more may: "
                    "see why Kafka does not take them, or let kafka.spill_size be larger"
                )
            self._file.retain(SPILL, Retention(size=self._settings.size // 2))  # the other one writes it all
            self._recount()
        self._file.append(SPILL, [record._replace(key=f"{topic}/{record.key}") for record in records])
        status.waiting_records += len(records)
        status.waiting_bytes += size

    def _fail_over(self, error: LogError, topic: str, records: Sequence[Record], number: int) -> None:
        """Go over to the file. Whether the records were written nobody knows: that is remembered with them."""
        self._direct = None
        self._status.direct = False
        self._broken = True
        self._fail(error)
        at = self._file.extent(SPILL).next
        _remember(self._file, {_WRITTEN: at, _LAST: self._last, _ATTEMPT_TO: at + len(records), _ATTEMPT: number})
        self._put(topic, records, beyond=True)
        self._wake.set()

    def _recount(self) -> None:
        extent = self._file.extent(SPILL)
        self._status.waiting_records = extent.next - max(extent.first, _position(self._file, _WRITTEN))
        size = extent.size if self._status.waiting_records else 0
        self._status.waiting_bytes = size + RECORD_BYTES * self._status.waiting_records

    # ---------------------------------------------------------------- the drainer

    def _run(self) -> None:
        pause_s = 0.0
        while True:
            self._wake.wait(pause_s)
            self._wake.clear()
            if self._stopping.is_set() or self._refusal is not None:
                break
            try:
                self._turn()
                pause_s = TURN_S
            except LogError as error:
                self._broken = True
                if not self._tried.is_set() and not isinstance(error, UnreachableError):
                    self._refusal = error
                else:
                    with self._lock:
                        self._fail(error)
                pause_s = min(_RETRY_MOST_S, 2 * pause_s or TURN_S)
            except Exception as error:  # noqa: BLE001 - the gateway hears of it at the next record
                _log.exception("a defect of the gateway's spill")
                self._refusal = LogError(f"a defect of the gateway's spill: {error}")
            self._tried.set()
        with suppress(LogError):
            self._retreat()
        self._let_go()

    def _turn(self) -> None:
        """Look at how it stands, and do what is to be done now."""
        if self._broken:
            self._retreat()
            self._let_go()
        if self._target is None:
            self._target = self._make_target()
            self._learn(self._target.latest(CONFIGURATIONS))
            self._answered_s = time.monotonic()
        if not self._target.held():
            self._stand_by(self._target)
        elif self._direct is None:
            if not self._settled:
                self._take_over(self._target)
            self._drain(self._target)

    def _learn(self, known: Mapping[str, Entry]) -> None:
        """Keep the configurations that the distant log has, for a start without it."""
        ours = self._drained.latest(CONFIGURATIONS)
        news = [entry for key, entry in known.items() if key not in ours or ours[key].time_ns < entry.time_ns]
        if news:
            self._drained.append(CONFIGURATIONS, [Record(*entry[1:]) for entry in news])

    def _stand_by(self, target: Target) -> None:
        """Keep what the other one has not surely written. It writes in order, and says how far it has come."""
        self._retreat()
        self._settled, self._failed_s = False, None
        if not self._status.standby:
            _log.info("it is not this gateway's turn to write; it stands by")
            self._status.standby = True
        if time.monotonic() - self._trimmed_s < TRIM_S:
            return
        self._trimmed_s = time.monotonic()
        try:
            _, covered_ns = target.place()
        except UnreachableError as error:
            _log.debug("nothing is removed from %s: %s", self._settings.path, error)
            return
        ahead_s = (covered_ns - time.time_ns()) / 1e9
        if ahead_s > self._settings.margin_s:
            self._complain(f"the clock of the other gateway is {ahead_s:.1f} s ahead of this one's: set them right")
            return
        with self._lock:
            extent = self._file.extent(SPILL)
            beyond_s = (extent.newest_ns - covered_ns) / 1e9 + self._settings.keep_s
            self._file.retain(SPILL, Retention(age_s=max(beyond_s, 1e-9)))
            self._recount()

    def _take_over(self, target: Target) -> None:
        """Shut out whoever wrote, and find out what is written of what waits here."""
        number, covered_ns = target.settle()
        file = self._drained
        extent, position = file.extent(SPILL), _position(file, _WRITTEN)
        if number and number == _position(file, _ATTEMPT):
            position = min(_position(file, _ATTEMPT_TO), extent.next)
        elif number != _position(file, _LAST):
            margin_ns = round(self._settings.margin_s * 1e9)
            oldest_ns = extent.oldest_ns if extent.next > position else time.time_ns()
            tail = target.tail(file.latest(CONFIGURATIONS).keys(), min(oldest_ns, time.time_ns()) - margin_ns)
            self._lacking = Lacking(tail, covered_ns, margin_ns)
            self._lacking_until_s = time.monotonic() + self._settings.margin_s
        if self._status.standby:
            _log.info("this gateway is the one that writes now")
        self._last, self._settled, self._status.standby = number, True, False
        self._passed(position)
        with self._lock:
            self._recount()

    def _drain(self, target: Target) -> None:
        """Write what waits, piece by piece; once little does, let what comes be written at once."""
        pieces = 0
        while not self._stopping.is_set() and target.held():
            reading = self._read()
            if reading.entries:
                self._write(target, reading)
                pieces += 1
                if pieces % 16 == 0:
                    self._drained.retain(SPILL, Retention(size=self._status.waiting_bytes + SLACK_BYTES))
            if self._status.waiting_bytes > PIECE_BYTES:
                continue
            if self._lacking is None or time.monotonic() >= self._lacking_until_s:
                if self._go_direct(target):
                    return
            elif not reading.entries:
                return

    def _read(self) -> Reading:
        """Read a piece of what waits."""
        reading = self._drained.read(SPILL, _position(self._drained, _WRITTEN), PIECE_BYTES)
        for lost in reading.lost:
            if lost.reason == "damaged":
                _log.error("%s is damaged: up to %d records are lost", self._settings.path, lost.last - lost.first + 1)
        return reading

    def _write(self, target: Target, reading: Reading) -> None:
        """Write a piece of what waits, but for what the log has."""
        records: list[tuple[str, Record]] = []
        for entry in reading.entries:
            topic, _, key = entry.key.partition("/")
            record: Record | None = Record(entry.time_ns, key, entry.value, entry.note)
            if self._lacking is not None and record is not None:
                record = self._lacking.of(topic, record)
            if record is not None:
                records.append((topic, record))
        if records:
            number = self._next_number()
            _remember(self._drained, {_ATTEMPT_TO: reading.next, _ATTEMPT: number})
            target.write(records, number)
            self._last = number
        self._passed(reading.next)
        self._recovered += len(records)
        with self._lock:
            self._status.spilled_records += len(records)
            self._status.waiting_records -= len(reading.entries)
            self._status.waiting_bytes -= sum(len(entry.value) + RECORD_BYTES for entry in reading.entries)

    def _go_direct(self, target: Target) -> bool:
        """Write the last piece while nothing more can come, and let what comes then be written at once.

        Where something comes during each write, however short, there would be no end of it else.
        """
        with self._lock:
            rest = self._read()
            if rest.entries:
                self._write(target, rest)
            if self._file.extent(SPILL).next > rest.next:
                return False
            self._lacking = None
            self._file.retain(SPILL, Retention(size=1))
            self._direct = target
            self._status.direct = True
            self._status.waiting_records = self._status.waiting_bytes = 0
            if self._failed_s is not None:
                self._status.recovery_s = time.monotonic() - self._failed_s
                _log.info(
                    "Kafka answers again after %.1f s; %s records from the spill written in %.1f s",
                    self._answered_s - self._failed_s,
                    f"{self._recovered:,}",
                    time.monotonic() - self._answered_s,
                )
            self._failed_s, self._recovered = None, 0
            self._complained_s = float("-inf")
        return True

    def _retreat(self) -> None:
        """Have what comes go into the file, and remember there that all before it is written."""
        with self._lock:
            if self._direct is not None:
                self._direct = None
                self._status.direct = False
                self._settled = False
                at = self._file.extent(SPILL).next
                _remember(self._file, {_WRITTEN: at, _LAST: self._last, _ATTEMPT: 0})

    def _let_go(self) -> None:
        target, self._target = self._target, None
        self._settled, self._lacking, self._broken = False, None, False
        if target is not None:
            try:
                target.close()
            except LogError as error:
                _log.debug("the log cannot be closed: %s", error)

    def _passed(self, position: int) -> None:
        """Remember that all before an offset of the file is written, by writes up to the last."""
        _remember(self._drained, {_WRITTEN: position, _LAST: self._last, _ATTEMPT: 0})

    def _next_number(self) -> int:
        """Give a write a number that no other has, of whichever gateway."""
        return max(self._last + 1, time.time_ns())

    def _fail(self, error: LogError) -> None:
        """Count a failure of the distant log, and say it."""
        status = self._status
        status.failures += 1
        status.fenced += isinstance(error, FencedError)
        if self._failed_s is None:
            self._failed_s = time.monotonic()
        self._complain(f"what comes goes into {self._settings.path}: {error}")

    def _complain(self, what: str) -> None:
        """Say it once, and again every minute."""
        if time.monotonic() - self._complained_s > _COMPLAIN_S:
            self._complained_s = time.monotonic()
            _log.warning("%s", what)


def _position(file: SqliteLog, name: str) -> int:
    return file.position(SPILL, name) or 0


def _remember(file: SqliteLog, numbers: Mapping[str, int]) -> None:
    """Write numbers down, in order: the file may be cut off after any of them."""
    for name, number in numbers.items():
        file.commit(SPILL, name, number)
