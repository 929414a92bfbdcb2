"""The event store: one SQLite file that remembers every event, when it was raised and when it ended.

In: events in any stage, ours or as CloudEvents. Out: the newest version of each, by time; and the changes in their
order, for those who follow. Writes are idempotent: storing the same version twice changes nothing, a later stage
replaces an earlier one, and never the other way round. So a processor may say again what it said before it was
interrupted. Beside the events stands what the processor says of itself (`status`), for those who watch from another
process.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, NamedTuple, Self

import msgspec

from gridsense.errors import StoreError
from gridsense.events import Cause, Event, cloudevent, nanoseconds

_SCHEMA = """
CREATE TABLE IF NOT EXISTS event (
    id         TEXT PRIMARY KEY,
    onset_ns   INTEGER NOT NULL,
    raised_ns  INTEGER NOT NULL,
    end_ns     INTEGER,
    cause      TEXT NOT NULL,
    kind       TEXT NOT NULL,
    minus_ln_p REAL NOT NULL,
    cloudevent TEXT NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS event_by_onset ON event (onset_ns);
CREATE TABLE IF NOT EXISTS change (
    number     INTEGER PRIMARY KEY AUTOINCREMENT,
    id         TEXT NOT NULL,
    ended      INTEGER NOT NULL,
    cloudevent TEXT NOT NULL,
    UNIQUE (id, ended)
) STRICT;
CREATE TABLE IF NOT EXISTS status (
    name TEXT PRIMARY KEY,
    body BLOB NOT NULL
) STRICT;
"""

_PUT = """
INSERT INTO event VALUES (?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (id) DO UPDATE SET
    onset_ns = excluded.onset_ns, raised_ns = excluded.raised_ns, end_ns = excluded.end_ns, cause = excluded.cause,
    kind = excluded.kind, minus_ln_p = excluded.minus_ln_p, cloudevent = excluded.cloudevent
WHERE event.end_ns IS NULL OR excluded.end_ns IS NOT NULL
"""


_EARLIEST_NS, _LATEST_NS = -(1 << 63), (1 << 63) - 1

BUSY_S = 10.0
"""How long a writer waits for another."""


class _Row(NamedTuple):
    """A row of the table of events."""

    id: str
    onset_ns: int
    raised_ns: int
    end_ns: int | None
    cause: str
    kind: str
    minus_ln_p: float
    cloudevent: str


_Time = Annotated[datetime, msgspec.Meta(tz=True)]


class _Body(msgspec.Struct):
    """What the store wants of a CloudEvent's body."""

    onset: _Time
    raised: _Time
    end: _Time | None
    cause: Cause
    kind: str
    minus_ln_p: float | None
    """None where it is too large for JSON."""


class _CloudEvent(msgspec.Struct):
    id: str
    data: _Body


_CLOUDEVENTS = msgspec.json.Decoder(_CloudEvent)


class EventStore:
    """Events in one SQLite file (WAL, STRICT), safe to read while it is written.

    Parameters
    ----------
    path
        The file; made if absent. ``:memory:`` keeps nothing.

    Raises
    ------
    StoreError
        If the file cannot be opened or is not such a store.
    """

    def __init__(self, path: Path | str) -> None:
        try:
            self._connection = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None)
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = NORMAL")
            self._connection.executescript(_SCHEMA)
        except sqlite3.Error as error:
            raise StoreError(f"event store {path}: {error}; name a writable file or remove the damaged one") from error

    def put(self, events: Iterable[Event]) -> None:
        """Store events, each in its newest stage, in one transaction.

        Parameters
        ----------
        events
            Any stage; an event that is stored already is replaced by this version. A `StoreError` says that the file
            cannot be written.
        """
        self._put(
            [
                _Row(e.id, e.onset_ns, e.raised_ns, e.end_ns, e.cause, e.kind, e.minus_ln_p, cloudevent(e).decode())
                for e in events
            ]
        )

    def put_cloudevents(self, texts: Iterable[bytes]) -> int:
        """Store events that come as CloudEvents JSON, each as it is, in one transaction.

        Parameters
        ----------
        texts
            Any stage, as in `put`; times are to the millisecond.

        Returns
        -------
        int
            How many could not be read as events; they are left out. A `StoreError` says that the file cannot be
            written.
        """
        rows: list[_Row] = []
        unreadable = 0
        for text in texts:
            try:
                rows.append(_row(text))
            except (msgspec.MsgspecError, UnicodeError, OverflowError):
                unreadable += 1
        self._put(rows)
        return unreadable

    def _put(self, rows: Sequence[_Row]) -> None:
        if not rows:
            return
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.executemany(_PUT, rows)
            self._connection.executemany(
                "INSERT OR IGNORE INTO change (id, ended, cloudevent) VALUES (?, ?, ?)",
                [(row.id, row.end_ns is not None, row.cloudevent) for row in rows],
            )
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise StoreError(f"event store: {error}; free some space or name another file") from error

    def changes(self, after: int = 0) -> list[tuple[int, str]]:
        """Read what was raised and what ended, in the order in which it was stored.

        Parameters
        ----------
        after
            Number of the last change that is known already; 0 for all.

        Returns
        -------
        list[tuple[int, str]]
            Number and CloudEvents JSON: an event as it was raised, and again as it was when it had ended.
        """
        return self._read("SELECT number, cloudevent FROM change WHERE number > ? ORDER BY number", after)

    def newest_change(self) -> int:
        """Say which change is the newest.

        Returns
        -------
        int
            Its number; 0 before the first.
        """
        return int(self._read("SELECT coalesce(max(number), 0) FROM change")[0][0])

    def put_status(self, name: str, body: bytes) -> None:
        """Say how somebody is, in place of what was said before.

        Parameters
        ----------
        name
            Who.
        body
            In its own words.

        Raises
        ------
        StoreError
            If the file cannot be written.
        """
        try:
            self._connection.execute("INSERT OR REPLACE INTO status VALUES (?, ?)", (name, body))
        except sqlite3.Error as error:
            raise StoreError(f"event store: {error}; free some space or name another file") from error

    def status(self, name: str) -> bytes | None:
        """Read how somebody is.

        Parameters
        ----------
        name
            Who.

        Returns
        -------
        bytes | None
            What was said last; None where nothing was.
        """
        rows = self._read("SELECT body FROM status WHERE name = ?", name)
        return rows[0][0] if rows else None

    def statuses(self) -> dict[str, bytes]:
        """Read how everybody is.

        Returns
        -------
        dict[str, bytes]
            By name, in the order of names: what each said last.
        """
        return dict(self._read("SELECT name, body FROM status ORDER BY name"))

    def cloudevents(self, since_ns: int = 0) -> list[str]:
        """Read the newest version of every event since a time.

        Parameters
        ----------
        since_ns
            Events whose onset is at or after this.

        Returns
        -------
        list[str]
            CloudEvents JSON, by onset.
        """
        rows = self._read("SELECT cloudevent FROM event WHERE onset_ns >= ? ORDER BY onset_ns, id", since_ns)
        return [row[0] for row in rows]

    def _read(self, query: str, *arguments: int | str) -> list[Any]:
        try:
            return self._connection.execute(query, arguments).fetchall()
        except sqlite3.Error as error:
            raise StoreError(f"event store: {error}; restore it from a copy, or begin a new one") from error

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def __enter__(self) -> Self:
        """Open already; closed on leaving."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        self.close()


def _row(text: bytes) -> _Row:
    """Read a CloudEvent."""
    event = _CLOUDEVENTS.decode(text)
    it = event.data
    end_ns = None if it.end is None else nanoseconds(it.end)
    times_ns = (nanoseconds(it.onset), nanoseconds(it.raised), end_ns)
    if any(time_ns is not None and not _EARLIEST_NS <= time_ns <= _LATEST_NS for time_ns in times_ns):
        raise OverflowError(f"event {event.id}: times from 1678 to 2262 can be stored")
    minus_ln_p = math.inf if it.minus_ln_p is None else it.minus_ln_p
    return _Row(event.id, *times_ns, it.cause, it.kind, minus_ln_p, text.decode())
