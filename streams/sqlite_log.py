"""The embedded log: the log port on one SQLite file in WAL mode, shared by the processes of one machine.

In: records by `append`. Out: entries by offset. What one `append` wrote lies in rows of many records, each row under
one CRC: a small record costs little, a damaged one is never returned. One file, not one a segment: SQLite re-uses the
pages that retention frees, a damaged page costs the rows that touch it, and no two files can disagree. Damage in the
directory of topics is refused with an error. It decodes no frames and repairs no file.
"""

from __future__ import annotations

import logging
import sqlite3
import struct
import time
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate, starmap
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from streams.errors import LogError, LogFullError
from streams.log import CONFIGURATIONS, READ_BYTES, Entry, Extent, Lost, Reading, Record, Retention

SCHEMA = 1
"""Version of the tables, in the file's `user_version`."""
APPLICATION = 0x47534C47
"""The file's `application_id`: it tells our log from another SQLite file."""
BATCH_BYTES = 1 << 18
"""Bytes of values above which an `append` begins another row."""
BATCH_RECORDS = 1 << 12
"""Records of one row, at most."""
READ_RECORDS = 1 << 16
"""Entries that one read returns, at most: values may be empty."""
RETAIN_BYTES = 1 << 23
"""Bytes of values that one transaction of `retain` removes: other writers wait for no more."""
RETAIN_ROWS = 1 << 10
"""Rows that one transaction of `retain` removes, at most."""
WAIT_S = 30.0
"""Seconds to wait for another process that writes."""
WAL_BYTES = 1 << 26
"""Bytes of the write-ahead log above which a writer waits for readers, shortly, to begin it anew. SQLite moves what it
holds into the file whenever a quarter of this was written."""
CHECKPOINT_WAIT_S = 0.2
"""How long it waits then; if in vain, the next time comes when as much has been written again."""
REBOOT_GAP = 1 << 24
"""Offsets left out after a restart of the machine: a power cut may take the last appends, their numbers stay used."""

_log = logging.getLogger(__name__)
_TABLES = """
CREATE TABLE directory (id INTEGER PRIMARY KEY, crc INTEGER NOT NULL, body BLOB NOT NULL) STRICT
"""
_TOPIC = """
CREATE TABLE TOPIC (
  first INTEGER PRIMARY KEY, next INTEGER NOT NULL, records INTEGER NOT NULL, size INTEGER NOT NULL,
  oldest_ns INTEGER NOT NULL, newest_ns INTEGER NOT NULL, crc INTEGER NOT NULL, body BLOB NOT NULL
) STRICT
"""
_INSERT = "INSERT OR REPLACE INTO TOPIC VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
_WALK = "SELECT * FROM TOPIC WHERE first >= ? AND first < ? ORDER BY first LIMIT ?"
_HOLDER = "SELECT max(first) FROM TOPIC WHERE first <= ?"
_DELETE = "DELETE FROM TOPIC WHERE first >= ? AND first < ?"
_HEADER = struct.Struct("<7q")
_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_TOOBIG)
_UNREADABLE = (sqlite3.SQLITE_IOERR_READ, sqlite3.SQLITE_IOERR_SHORT_READ, sqlite3.SQLITE_IOERR_CORRUPTFS)
_NO_ROOM = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_SHMSIZE)

_Row = tuple[int, int, int, int, int, int, int, bytes]
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class _Kept:
    """The newest record of a key: its offset, the bytes of its value, its time."""

    offset: int
    size: int
    time_ns: int


@dataclass(frozen=True, slots=True)
class _Topic:
    """What the directory says of a topic. Records and bytes are counted from the topic's birth: nothing drifts."""

    compacted: bool
    first: int = 0
    next: int = 0
    records_gone: int = 0
    records: int = 0
    size_gone: int = 0
    size: int = 0
    oldest_ns: int = 0
    newest_ns: int = 0
    keys: dict[str, _Kept] = field(default_factory=dict)
    readers: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Root:
    """The directory's first row: the run of the machine that last opened the log, and the number of each topic."""

    boot: str
    topics: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Batch:
    """One row: the records at the offsets from `first` to before `next`, or none, where offsets were left out."""

    first: int
    next: int
    records: int
    """Of the topic before this row, ever."""
    size: int
    """Bytes of the values of the topic before this row, ever."""
    oldest_ns: int
    """Time of its first record."""
    newest_ns: int
    """The latest of the times of its records."""
    body: bytes

    def row(self, topic: int) -> _Row:
        """Lay it out as a row of a topic's table."""
        head = (self.first, self.next, self.records, self.size, self.oldest_ns, self.newest_ns)
        return (*head, zlib.crc32(_HEADER.pack(topic, *head), zlib.crc32(self.body)), self.body)

    def entries(self) -> list[Entry]:
        """Take its records out."""
        return list(starmap(Entry, ((self.first + n, *record) for n, record in enumerate(_RECORDS.decode(self.body)))))


_RECORDS = msgspec.msgpack.Decoder(list[tuple[int, str, bytes, str]])
_PACK = msgspec.msgpack.Encoder().encode


def open_log(
    path: Path, compacted: Sequence[str] = (CONFIGURATIONS,), boot: str | None = None, wal_bytes: int = WAL_BYTES
) -> SqliteLog:
    """Open a log, or make one.

    Parameters
    ----------
    path
        The file; its folder is there. SQLite puts two more beside it while it is open: `-wal` and `-shm`.
    compacted
        Topics that are compacted, should they be made; what a topic once is, it stays.
    boot
        What this run of the machine is called; None to ask the system.
    wal_bytes
        Bytes that the write-ahead log may grow to, as a rule.

    Returns
    -------
    SqliteLog
        To be closed after use.

    Raises
    ------
    LogError
        If the file cannot be opened, is no log, or was written by a newer version.
    """
    with _in_our_words(path):
        db = sqlite3.connect(path, timeout=WAIT_S, isolation_level=None, check_same_thread=False)
    db.text_factory = bytes  # we store no text: what looks like it is damaged
    log = SqliteLog(path, db, tuple(compacted), wal_bytes)
    try:
        log.prepare(_boot() if boot is None else boot)
    except LogError:
        log.close()
        raise
    return log


class SqliteLog:
    """The log port on an open SQLite file; `open_log` makes it. It may be handed on from thread to thread, not shared.

    Parameters
    ----------
    path
        The file, for messages.
    db
        Its connection, without transactions of its own.
    compacted
        Topics that are compacted, should they be made.
    wal_bytes
        Bytes that the write-ahead log may grow to, as a rule.
    """

    def __init__(self, path: Path, db: sqlite3.Connection, compacted: tuple[str, ...], wal_bytes: int) -> None:
        self._path = path
        self._db = db
        self._compacted = compacted
        self._numbers: dict[str, int] = {}
        self._wal_bytes = self._wal_due_bytes = wal_bytes

    def prepare(self, boot: str) -> None:
        """Make sure that the file is a log of this version; after a restart of the machine, leave offsets out.

        Parameters
        ----------
        boot
            What this run of the machine is called; empty where nobody knows.
        """
        with self._reading():
            version = self._identify()
        with _in_our_words(self._path):
            self._use_wal()
            ((page_bytes,),) = self._db.execute("PRAGMA page_size").fetchall()
            pages = max(1, self._wal_bytes // 4 // page_bytes)
            for setting in (
                "synchronous=NORMAL",
                f"wal_autocheckpoint={pages}",
                f"journal_size_limit={self._wal_bytes}",
            ):
                self._db.execute(f"PRAGMA {setting}").close()
            if version and self._read_root().boot == boot:
                return
        with self._writing():
            if not self._identify():
                self._db.execute(_TABLES)
                self._db.execute(f"PRAGMA application_id={APPLICATION}")
                self._db.execute(f"PRAGMA user_version={SCHEMA}")
                self._put(0, _Root(boot))
            root = self._read_root()
            if root.boot != boot:
                for number in root.topics.values():
                    self._leave_out(number)
                self._put(0, replace(root, boot=boot))

    def append(self, topic: str, records: Sequence[Record]) -> int:
        """Write records, all or none; they are safe against a crash of the process on return.

        Parameters
        ----------
        topic
            Made if there is none.
        records
            In order. In a compacted topic a record replaces what its key had.

        Returns
        -------
        int
            Offset after the last.
        """
        after = self._around_damage(partial(self._append, topic, records))
        self._restart_wal()
        return after

    def read(self, topic: str, offset: int, limit: int = READ_BYTES) -> Reading:
        """Read what stands at an offset and after it, without waiting.

        Parameters
        ----------
        topic
            Any; one that nobody wrote to is empty.
        offset
            Where to begin; 0 is the beginning.
        limit
            Bytes of values to stop after; at least one entry is returned where there is one.

        Returns
        -------
        Reading
            Entries, perhaps none.

        Raises
        ------
        LogError
            If the topic ends before the offset, too: it is not the log that the reader knows.
        """
        with self._reading():
            number, state = self._topic(topic)
            if offset > state.next:
                raise LogError(
                    f"{self._path}: the topic {topic!r} ends at offset {state.next}, but {offset} was asked for; "
                    "the log was replaced or lost its end: begin anew, at 0 or at its end"
                )
            # Of a compacted topic nothing expires; what its keys do not name was replaced.
            wanted = sorted(kept.offset for kept in state.keys.values()) if state.compacted else None
            lost = [] if state.compacted else _gap(offset, state.first, "expired", wanted)
            at, room, entries = max(offset, state.first), max(limit, 1), list[Entry]()
            with closing(self._batches(number, at, state.next)) as batches:
                for batch in batches:
                    lost += _gap(at, batch.first, "damaged", wanted)
                    taken = _take(batch.entries()[max(0, at - batch.first) :], room)
                    entries += taken
                    room -= sum(len(entry.value) for entry in taken)
                    at = taken[-1].offset + 1 if taken else batch.next
                    if room <= 0 or len(entries) >= READ_RECORDS:
                        break
                else:
                    lost += _gap(at, state.next, "damaged", wanted)
                    at = max(at, state.next)
        return Reading(entries, at, tuple(lost))

    def latest(self, topic: str) -> dict[str, Entry]:
        """Read the newest entry of each key of a compacted topic.

        Parameters
        ----------
        topic
            A compacted one: `CONFIGURATIONS`.

        Returns
        -------
        dict[str, Entry]
            By key. One that is damaged is left out, and logged.

        Raises
        ------
        LogError
            If the topic is not compacted, too.
        """
        with self._reading():
            number, state = self._topic(topic)
            if number and not state.compacted:
                raise LogError(f"{self._path}: the topic {topic!r} is not compacted: `read` it")
            with closing(self._batches(number, state.first, state.next)) as batches:
                found = {entry.key: entry for batch in batches for entry in batch.entries()}
        for key in state.keys.keys() - found.keys():
            _log.warning("%s: the newest record of %r in %r is damaged; append it anew", self._path, key, topic)
        return found

    def extent(self, topic: str) -> Extent:
        """Say what a topic holds.

        Parameters
        ----------
        topic
            Any.

        Returns
        -------
        Extent
            Of this moment.
        """
        with self._reading():
            _, state = self._topic(topic)
        records, size = state.records - state.records_gone, state.size - state.size_gone
        return Extent(state.first, state.next, records, size, state.oldest_ns, state.newest_ns if records else 0)

    def commit(self, topic: str, reader: str, offset: int) -> None:
        """Remember how far a reader has come. Retention looks at it not, monitoring does.

        Parameters
        ----------
        topic
            What it reads.
        reader
            Its name.
        offset
            Where it will go on.
        """
        with self._writing():
            number, state = self._open_topic(topic)
            self._put(number, replace(state, readers={**state.readers, reader: offset}))

    def position(self, topic: str, reader: str) -> int | None:
        """Say how far a reader has come.

        Parameters
        ----------
        topic
            What it reads.
        reader
            Its name.

        Returns
        -------
        int | None
            What it last committed; None where it never did.
        """
        with self._reading():
            return self._topic(topic)[1].readers.get(reader)

    def retain(self, topic: str, retention: Retention) -> int:
        """Remove the oldest entries beyond a retention. Offsets are never given out again.

        A row goes as a whole: by age once all of it is old; by size so that no more than the size is kept.

        Parameters
        ----------
        topic
            Any that is not compacted.
        retention
            How much to keep.

        Returns
        -------
        int
            How many entries went.

        Raises
        ------
        LogError
            If the topic is compacted, too.
        """
        removed = 0
        while True:
            with self._reading():
                number, state = self._topic(topic)
                if state.compacted:
                    raise LogError(f"{self._path}: the topic {topic!r} is compacted: it keeps the newest of each key")
                left = self._left(number, state, retention)
            if left.first == state.first:
                return removed
            removed += self._around_damage(partial(self._remove, number, state, left))

    def close(self) -> None:
        """Let go of the log. What was appended is kept."""
        self._db.close()

    def _identify(self) -> int:
        """Read the version of the tables; 0 for a new, empty file."""
        ((version,),) = self._db.execute("PRAGMA user_version").fetchall()
        ((application,),) = self._db.execute("PRAGMA application_id").fetchall()
        ((tables,),) = self._db.execute("SELECT count(*) FROM sqlite_schema").fetchall()
        if (application, version) != (APPLICATION, SCHEMA) and (application or version or tables):
            if application == APPLICATION and version > SCHEMA:
                raise LogError(
                    f"{self._path} is a log of version {version}, and this program knows {SCHEMA}: "
                    "use the newer program, or another file"
                )
            raise LogError(f"{self._path} is no log, or its header is damaged: move it away, or name another file")
        return int(version)

    def _use_wal(self) -> None:
        """Turn the write-ahead log on. SQLite does not wait here while another process does the same: we do."""
        deadline_s = time.monotonic() + WAIT_S
        while True:
            try:
                self._db.execute("PRAGMA journal_mode=WAL").close()
            except sqlite3.OperationalError as error:
                if _code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline_s:
                    raise
                time.sleep(0.01)
            else:
                return

    def _restart_wal(self) -> None:
        """Where readers kept SQLite from beginning its write-ahead log anew, wait for them, for a moment."""
        try:
            size = Path(f"{self._path}-wal").stat().st_size
        except OSError:
            return
        if size <= self._wal_due_bytes:
            return
        with _in_our_words(self._path):
            self._db.execute(f"PRAGMA busy_timeout={CHECKPOINT_WAIT_S * 1e3:.0f}").close()
            ((busy, _, _),) = self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            self._db.execute(f"PRAGMA busy_timeout={WAIT_S * 1e3:.0f}").close()
        self._wal_due_bytes = self._wal_bytes + (size if busy else 0)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Do all or nothing, alone."""
        with _in_our_words(self._path):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # what went wrong first is what is said
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """See the log as it is at one moment. SQLite commits nothing after a damaged page, but it lets go of it."""
        with _in_our_words(self._path):
            self._db.execute("BEGIN")
            try:
                yield
            finally:
                if self._db.in_transaction:  # some errors have ended it
                    self._db.execute("ROLLBACK")

    def _put(self, number: int, content: _Root | _Topic) -> None:
        """Write a row of the directory."""
        body = _PACK(content)
        row = (number, zlib.crc32(body, number), body)
        self._db.execute("INSERT OR REPLACE INTO directory VALUES (?, ?, ?)", row)

    def _get(self, number: int, kind: type[_T]) -> _T:
        """Read a row of the directory: without it nothing can be said of a topic."""
        row = self._db.execute("SELECT crc, body FROM directory WHERE id = ?", (number,)).fetchone()
        if row is None or not isinstance(row[1], bytes) or zlib.crc32(row[1], number) != row[0]:
            raise LogError(f"{self._path} is damaged in its directory of topics: move it away; the log begins anew")
        return msgspec.msgpack.decode(row[1], type=kind)

    def _read_root(self) -> _Root:
        return self._get(0, _Root)

    def _topic(self, topic: str) -> tuple[int, _Topic]:
        """Look a topic up: its number and what is said of it; 0 and nothing where nobody wrote to it."""
        if topic not in self._numbers:
            self._numbers |= self._read_root().topics
        number = self._numbers.get(topic, 0)
        return number, self._get(number, _Topic) if number else _Topic(topic in self._compacted)

    def _open_topic(self, topic: str) -> tuple[int, _Topic]:
        """Look a topic up, in a writing transaction; make it where there is none."""
        number, state = self._topic(topic)
        if not number:
            root = self._read_root()
            number = len(root.topics) + 1
            self._db.execute(_sql(_TOPIC, number))
            self._put(0, replace(root, topics={**root.topics, topic: number}))
        return number, state

    def _around_damage(self, write: Callable[..., int]) -> int:
        """Write, and take out what is old; where that is damaged, leave it in the file, out of reach."""
        try:
            return write(sweep=True)
        except LogError as error:
            if not _is_damage(error.__cause__):
                raise
            after = write(sweep=False)
            _log.warning("%s: what is old stays in the file, out of reach: %s", self._path, error.__cause__)
            return after

    def _append(self, topic: str, records: Sequence[Record], *, sweep: bool) -> int:
        with self._writing():
            number, state = self._open_topic(topic)
            if state.compacted:
                state = self._append_keys(number, state, records, sweep=sweep)
            else:
                state = self._append_rows(number, state, records)
            self._put(number, state)
        return state.next

    def _append_rows(self, number: int, state: _Topic, records: Sequence[Record]) -> _Topic:
        batches = []
        for part, sizes in _parts(records):
            times = [record.time_ns for record in part]
            head = (state.next, state.next + len(part), state.records, state.size, times[0], max(times))
            batches.append(_Batch(*head, _PACK(part)))
            state = replace(
                state,
                next=state.next + len(part),
                records=state.records + len(part),
                size=state.size + sizes,
                oldest_ns=state.oldest_ns if state.records > state.records_gone else times[0],
                newest_ns=times[-1],
            )
        self._db.executemany(_sql(_INSERT, number), [batch.row(number) for batch in batches])
        return state

    def _append_keys(self, number: int, state: _Topic, records: Sequence[Record], *, sweep: bool) -> _Topic:
        keys = dict(state.keys)
        for n, record in enumerate(records, state.next):
            if sweep and record.key in keys:
                old = keys[record.key].offset
                self._db.execute(_sql(_DELETE, number), (old, old + 1))
            keys[record.key] = _Kept(n, len(record.value), record.time_ns)
            batch = _Batch(n, n + 1, 0, 0, record.time_ns, record.time_ns, _PACK([record]))
            self._db.execute(_sql(_INSERT, number), batch.row(number))
        if not keys:
            return state
        kept = sorted(keys.values(), key=lambda kept: kept.offset)
        return replace(
            state,
            first=kept[0].offset,
            next=state.next + len(records),
            records=len(kept),
            size=sum(k.size for k in kept),
            oldest_ns=kept[0].time_ns,
            newest_ns=kept[-1].time_ns,
            keys=keys,
        )

    def _leave_out(self, number: int) -> None:
        """Go on behind a gap: a row without records, so that nobody takes it for a loss."""
        state = self._get(number, _Topic)
        after = state.next + REBOOT_GAP
        if state.compacted or state.records == state.records_gone:
            self._put(number, replace(state, first=state.first if state.compacted else after, next=after))
            return
        head = (state.next, after, state.records, state.size, state.newest_ns, state.newest_ns)
        self._db.execute(_sql(_INSERT, number), _Batch(*head, _PACK([])).row(number))
        self._put(number, replace(state, next=after))

    def _left(self, number: int, state: _Topic, retention: Retention) -> _Topic:
        """Say what is left of a topic after as much of a retention as one transaction takes."""
        old_ns = state.newest_ns - round(retention.age_s * 1e9)
        keep = last = None
        with closing(self._batches(number, state.first, state.next)) as batches:
            for rows, batch in enumerate(batches):
                stale = retention.age_s > 0 and batch.newest_ns < old_ns
                excess = 0 < retention.size < state.size - batch.size
                enough = rows >= RETAIN_ROWS or (rows and batch.size - state.size_gone > RETAIN_BYTES)
                if enough or not (stale or excess):
                    keep = batch
                    break
                last = batch
        if not keep and last and last.next == state.next:
            return replace(state, first=state.next, records_gone=state.records, size_gone=state.size, oldest_ns=0)
        # Where nothing after the last can be read, that stays until something comes: a disk may fail for a while.
        keep = keep or last
        if not keep:
            return state
        return replace(
            state, first=keep.first, records_gone=keep.records, size_gone=keep.size, oldest_ns=keep.oldest_ns
        )

    def _remove(self, number: int, state: _Topic, left: _Topic, *, sweep: bool) -> int:
        """Take out what goes, unless the topic is not any more what it was then."""
        with self._writing():
            now = self._get(number, _Topic)
            if now.first != state.first or left.first == state.next != now.next:
                return 0
            if sweep:
                self._db.execute(_sql(_DELETE, number), (state.first, left.first))
            self._put(
                number,
                replace(
                    left,
                    next=now.next,
                    records=now.records,
                    size=now.size,
                    newest_ns=now.newest_ns,
                    readers=now.readers,
                ),
            )
        return left.records_gone - state.records_gone

    def _batches(self, number: int, at: int, end: int) -> Generator[_Batch]:
        """Walk over the sound batches that reach beyond an offset, in order. What is damaged is left out."""
        begin = at
        if at < end:
            try:
                begin = self._db.execute(_sql(_HOLDER, number), (at,)).fetchone()[0]
            except sqlite3.Error as error:
                _expect_damage(error)
            begin = at if begin is None else begin
        for row in self._rows(number, begin, end):
            batch = _sound(row, number)
            if batch and batch.next > at and batch.next <= end and batch.first >= begin:
                yield batch
                at = begin = batch.next

    def _rows(self, number: int, begin: int, end: int) -> Iterator[tuple[Any, ...]]:
        """Walk over the rows that can be read, in order."""
        walk = _sql(_WALK, number)
        while begin < end:
            try:
                with closing(self._db.execute(walk, (begin, end, -1))) as cursor:
                    for row in cursor:
                        yield row
                        begin = max(begin, row[0] + 1)
            except sqlite3.Error as error:
                _expect_damage(error)
            else:
                return
            # A cursor loses the row before the one at which it stumbles: that is read alone, or the next that can be.
            begin = self._readable(number, begin, end)
            alone = self._db.execute(walk, (begin, end, 1)).fetchall() if begin < end else []
            if not alone:
                return
            yield alone[0]
            begin = alone[0][0] + 1

    def _readable(self, number: int, begin: int, end: int) -> int:
        """Find an offset from which something can be read, or the end: in growing steps, then back by halves."""
        walk = _sql(_WALK, number)

        def fails(at: int) -> bool:
            try:
                self._db.execute(walk, (at, end, 1)).fetchall()
            except sqlite3.Error as error:
                _expect_damage(error)
                return True
            return False

        if not fails(begin):
            return begin
        low, step = begin, 1
        while low + step < end and fails(low + step):
            low, step = low + step, step * 2
        high = min(low + step, end)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fails(middle) else (low, middle)
        return high


def _sql(text: str, number: int) -> str:
    """Name the table of a topic."""
    return text.replace("TOPIC", f"topic_{number}")


def _parts(records: Sequence[Record]) -> Iterator[tuple[Sequence[Record], int]]:
    """Cut records into rows, each with the bytes of its values."""
    begin = size = 0
    for n, record in enumerate(records):
        if n > begin and (size + len(record.value) > BATCH_BYTES or n - begin == BATCH_RECORDS):
            yield records[begin:n], size
            begin, size = n, 0
        size += len(record.value)
    if records:
        yield records[begin:], size


def _take(entries: list[Entry], room: int) -> list[Entry]:
    """Take entries up to the one that fills the room."""
    for n, filled in enumerate(accumulate(len(entry.value) for entry in entries)):
        if filled >= room:
            return entries[: n + 1]
    return entries


def _gap(at: int, to: int, reason: str, wanted: list[int] | None) -> list[Lost]:
    """Say what is missing between two offsets, of those that are wanted (None: of all)."""
    if wanted is not None:
        return [Lost(offset, offset, reason) for offset in wanted if at <= offset < to]
    return [Lost(at, to - 1, reason)] if at < to else []


def _sound(row: tuple[Any, ...], topic: int) -> _Batch | None:
    """Read a row; None if it is not what was written."""
    if [type(value) for value in row] != [*[int] * 7, bytes]:
        return None
    first, after, records, size, oldest_ns, newest_ns, _, body = row
    batch = _Batch(first, after, records, size, oldest_ns, newest_ns, body)
    return batch if batch.row(topic) == row else None


def _boot() -> str:
    """Ask Linux for the name of this run of the machine; elsewhere nobody knows."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _code(error: BaseException | None) -> int:
    """Read SQLite's error code, without what extends it."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _is_damage(error: BaseException | None) -> bool:
    """Tell whether an error says that a page is not what was written, or cannot be read."""
    return _code(error) in _DAMAGE or getattr(error, "sqlite_errorcode", 0) in _UNREADABLE


def _expect_damage(error: sqlite3.Error) -> None:
    """Let damage pass, and nothing else."""
    if not _is_damage(error):
        raise error


@contextmanager
def _in_our_words(path: Path) -> Iterator[None]:
    """Let SQLite's errors leave as ours."""
    try:
        yield
    except (sqlite3.Error, UnicodeDecodeError) as error:  # a message of SQLite may quote what is damaged
        raise _error(path, error) from error


def _error(path: Path, error: sqlite3.Error | UnicodeDecodeError) -> LogError:
    """Say in our words what SQLite found."""
    code = getattr(error, "sqlite_errorcode", 0)
    if code in _NO_ROOM:
        return LogFullError(f"{path}: no room to write ({error}): make room, or keep less; then try again")
    if _code(error) == sqlite3.SQLITE_BUSY:
        return LogError(f"{path}: another process has been writing for {WAIT_S:.0f} s ({error}): see which hangs")
    if _code(error) in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT) or isinstance(error, UnicodeDecodeError):
        return LogError(f"{path} is damaged, or no log ({error}): move it away; the log begins anew")
    return LogError(f"{path}: the log cannot be used ({error}): check that the file and its folder can be written")
