"""Snapshots: a processor's state and its place in the log, together, in the file of the event store.

In: a place, what is remembered there, and its arrays. Out: the newest snapshot that is whole. Arrays that have not
changed since the last snapshot are not written again. The arrays go in first, a piece at a time, so that events need
not wait; then one transaction makes the snapshot valid: before it there is none, after it all of it.
"""

from __future__ import annotations

import sqlite3
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from gridsense.errors import StoreError
from gridsense.store import BUSY_S

KEPT = 2
"""Snapshots kept: where the newest cannot be read, the one before serves, and more of the log is read again."""

PIECE_BYTES = 1 << 22
"""Bytes of an array that are written in one transaction: what an event waits for at most."""

BREATH_S = 0.005
"""Pause between two pieces, in which an event that waits gets its turn."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS snapshot (
    number INTEGER PRIMARY KEY,
    place  INTEGER NOT NULL,
    nature TEXT NOT NULL,
    body   BLOB NOT NULL,
    arrays BLOB NOT NULL,
    crc    INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS snapshot_piece (
    array INTEGER NOT NULL,
    piece INTEGER NOT NULL,
    body  BLOB NOT NULL,
    PRIMARY KEY (array, piece)
) STRICT, WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What is remembered at a place in the log.

    Attributes
    ----------
    place
        Offset of the first entry that has not been taken in.
    nature
        Of what kind it is: version and settings under which it makes sense.
    body
        Everything but the large arrays.
    arrays
        The large arrays.
    """

    place: int
    nature: str
    body: bytes
    arrays: tuple[NDArray[Any], ...]


class _Stored(msgspec.Struct, array_like=True):
    """Where and how an array is stored."""

    number: int
    dtype: str
    shape: tuple[int, ...]
    crc: int


class Snapshots:
    """Snapshots in one SQLite file. An object belongs to the thread that uses it first.

    Parameters
    ----------
    path
        The event store's file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None
        # The arrays are held, so that an id names no other array.
        self._known: dict[int, tuple[NDArray[Any], _Stored]] = {}

    def save(self, snapshot: Snapshot) -> int:
        """Make a snapshot the newest.

        Parameters
        ----------
        snapshot
            Its arrays are not changed afterwards.

        Returns
        -------
        int
            Bytes written.

        Raises
        ------
        StoreError
            If there is no room, or the file cannot be written: the snapshot before stays valid.
        """
        connection = self._open()
        written = len(snapshot.body)
        try:
            (newest,) = connection.execute("SELECT coalesce(max(array), 0) FROM snapshot_piece").fetchone()
            fresh: dict[int, tuple[NDArray[Any], _Stored]] = {}
            for array in snapshot.arrays:
                known = self._known.get(id(array))
                if known is None:
                    newest += 1
                    known = (array, self._write(connection, newest, array))
                    written += array.nbytes
                fresh[id(array)] = known
            arrays = msgspec.msgpack.encode([fresh[id(array)][1] for array in snapshot.arrays])
            crc = zlib.crc32(arrays, zlib.crc32(snapshot.body))
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(
                "INSERT INTO snapshot (place, nature, body, arrays, crc) VALUES (?, ?, ?, ?, ?)",
                (snapshot.place, snapshot.nature, snapshot.body, arrays, crc),
            )
            connection.execute("COMMIT")
            self._known = fresh
            self._tidy(connection)
        except sqlite3.Error as error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise StoreError(f"snapshot in {self._path}: {error}; free some space, or name another store") from error
        return written

    def newest(self) -> tuple[Snapshot | None, list[str]]:
        """Read the newest snapshot that is whole.

        Returns
        -------
        tuple[Snapshot | None, list[str]]
            None where there is none; and what was wrong with newer ones.

        Raises
        ------
        StoreError
            If the file cannot be read at all.
        """
        connection = self._open()
        wrong: list[str] = []
        try:
            rows = connection.execute("SELECT number FROM snapshot ORDER BY number DESC").fetchall()
        except sqlite3.Error as error:
            raise StoreError(f"snapshots in {self._path}: {error}; move the file away to begin anew") from error
        for (number,) in rows:
            try:
                return self._read(connection, number), wrong
            except (sqlite3.Error, ValueError, TypeError, msgspec.MsgspecError) as error:
                wrong.append(f"snapshot {number} in {self._path} is damaged: {error}")
        return None, wrong

    def close(self) -> None:
        """Let go of the file."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            try:
                self._connection = sqlite3.connect(self._path, timeout=BUSY_S, isolation_level=None)
                self._connection.execute("PRAGMA journal_mode = WAL")
                self._connection.execute("PRAGMA synchronous = NORMAL")
                self._connection.executescript(_SCHEMA)
            except sqlite3.Error as error:
                raise StoreError(f"snapshots in {self._path}: {error}; name a writable file") from error
        return self._connection

    def _write(self, connection: sqlite3.Connection, number: int, array: NDArray[Any]) -> _Stored:
        """Write an array's pieces, each in a transaction of its own."""
        octets = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        for piece, at in enumerate(range(0, max(len(octets), 1), PIECE_BYTES)):
            connection.execute(
                "INSERT INTO snapshot_piece VALUES (?, ?, ?)", (number, piece, octets[at : at + PIECE_BYTES])
            )
            if at:
                time.sleep(BREATH_S)
        return _Stored(number, array.dtype.str, array.shape, zlib.crc32(octets))

    def _tidy(self, connection: sqlite3.Connection) -> None:
        """Remove snapshots that are no longer kept, and arrays of none."""
        kept = connection.execute(
            "SELECT number, arrays FROM snapshot ORDER BY number DESC LIMIT ?", (KEPT,)
        ).fetchall()
        connection.execute("DELETE FROM snapshot WHERE number < ?", (kept[-1][0],))
        needed = {one.number for _, arrays in kept for one in msgspec.msgpack.decode(arrays, type=list[_Stored])}
        there = {number for (number,) in connection.execute("SELECT DISTINCT array FROM snapshot_piece")}
        for number in sorted(there - needed):
            connection.execute("DELETE FROM snapshot_piece WHERE array = ?", (number,))

    def _read(self, connection: sqlite3.Connection, number: int) -> Snapshot:
        """Read a snapshot, or say by a ValueError that it is not whole."""
        place, nature, body, arrays, crc = connection.execute(
            "SELECT place, nature, body, arrays, crc FROM snapshot WHERE number = ?", (number,)
        ).fetchone()
        if crc != zlib.crc32(arrays, zlib.crc32(body)):
            raise ValueError("its body is not what was written")
        out = []
        for stored in msgspec.msgpack.decode(arrays, type=list[_Stored]):
            pieces = connection.execute(
                "SELECT body FROM snapshot_piece WHERE array = ? ORDER BY piece", (stored.number,)
            ).fetchall()
            octets = bytearray(b"".join(piece for (piece,) in pieces))
            if zlib.crc32(octets) != stored.crc:
                raise ValueError(f"array {stored.number} is not what was written")
            out.append(np.frombuffer(octets, np.dtype(stored.dtype)).reshape(stored.shape))
        return Snapshot(place, nature, body, tuple(out))
