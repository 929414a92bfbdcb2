"""The event store: one SQLite file that remembers every event and each version of it.

In: events in any stage. Out: the newest version of each, by time. Writes are idempotent: storing the same version twice
changes nothing, and a later stage replaces an earlier one.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

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
"""


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
            self._connection = sqlite3.connect(path, isolation_level=None)
            self._connection.execute("PRAGMA journal_mode = WAL")
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
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.executemany("INSERT OR REPLACE INTO event VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise StoreError(f"event store: {error}; free some space or name another file") from error

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
        rows = self._connection.execute(
            "SELECT cloudevent FROM event WHERE onset_ns >= ? ORDER BY onset_ns, id", (since_ns,)
        )
        return [row[0] for row in rows]

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
