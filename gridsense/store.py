"""The event store: one SQLite file that remembers every event, when it was raised and when it ended.

In: events in any stage. Out: the newest version of each, by time; and the changes in their order, for those who follow.
Writes are idempotent: storing the same version twice changes nothing, a later stage replaces an earlier one, and never
the other way round. So a processor may say again what it said before it was interrupted. Beside the events stands what
the processor says of itself (`status`), for those who watch from another process.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from gridsense.errors import StoreError
from gridsense.events import Event, cloudevent

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


BUSY_S = 10.0
"""How long a writer waits for another."""


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
            Any stage; an event that is stored already is replaced by this version.

        Raises
        ------
        StoreError
            If the file cannot be written.
        """
        rows = [
            (e.id, e.onset_ns, e.raised_ns, e.end_ns, e.cause, e.kind, e.minus_ln_p, cloudevent(e).decode())
            for e in events
        ]
        if not rows:
            return
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.executemany(_PUT, rows)
            self._connection.executemany(
                "INSERT OR IGNORE INTO change (id, ended, cloudevent) VALUES (?, ?, ?)",
                [(row[0], row[3] is not None, row[-1]) for row in rows],
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
