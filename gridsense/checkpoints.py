"""Snapshots that travel with offsets: a state in pieces on a compacted topic, and a pointer to it for the commit.

In: a snapshot. Out: a pointer of a few letters, which its owner commits in one transaction with the offsets; and the
snapshot again, for whoever finds that pointer beside the offsets. A snapshot that nobody commits was never taken: what
a process writes that has lost its partition since, nobody reads. Arrays that have not changed are not written again.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Sequence
from itertools import islice
from typing import Any
from uuid import uuid4

import msgspec
import numpy as np
from numpy.typing import NDArray

from gridsense.errors import StoreError
from gridsense.snapshots import Snapshot
from streams.errors import DeniedError, LogError, UnreachableError
from streams.kafka.state import StateTopic

PIECE_BYTES = 1 << 19
"""Bytes of a piece: brokers take a megabyte and no more, unless told."""
SPARE_KEYS = 64
"""A snapshot that its writer did not finish may have used so many keys more than twice those of the one before."""


class Pointer(msgspec.Struct, frozen=True, array_like=True):
    """Where a snapshot is.

    Attributes
    ----------
    place
        Offset of the first entry that it has not taken in.
    index
        Offsets of its index's pieces on the topic of states.
    """

    place: int
    index: tuple[int, ...]


class _Stored(msgspec.Struct, frozen=True, array_like=True):
    """Where the pieces of an array, or of the body, are."""

    keys: tuple[str, ...]
    offsets: tuple[int, ...]
    crc: int
    dtype: str = ""
    shape: tuple[int, ...] = ()


class _Index(msgspec.Struct, frozen=True, array_like=True):
    """What a snapshot consists of, and what else may still be there that it does not need."""

    writer: str
    newest: int
    place: int
    nature: str
    body: _Stored
    arrays: tuple[_Stored, ...]
    keys: tuple[str, ...]
    stale: tuple[str, ...]


class Checkpoints:
    """The snapshots of one partition. An object is used by one thread at a time.

    Parameters
    ----------
    topic
        Where the pieces go.
    partition
        Of that topic.

    Attributes
    ----------
    hurry
        Set it, from anywhere, while somebody waits for what is being saved.
    """

    def __init__(self, topic: StateTopic, partition: int) -> None:
        self.hurry = threading.Event()
        self._topic = topic
        self._partition = partition
        self._writer = uuid4().hex[:8]
        self._newest = 0
        # The arrays are held, so that an id names no other array.
        self._known: dict[int, tuple[NDArray[Any], _Stored]] = {}
        self._kept: list[set[str]] = []
        self._stale: set[str] = set()

    def save(self, snapshot: Snapshot) -> tuple[Pointer, int]:
        """Write a snapshot. It counts once its pointer is committed.

        Parameters
        ----------
        snapshot
            Its arrays are not changed afterwards.

        Returns
        -------
        tuple[Pointer, int]
            The pointer, and bytes written.

        Raises
        ------
        StoreError
            If the topic does not take it; the snapshot before stays valid.
        """
        written, first = len(snapshot.body), self._newest
        try:
            changed = {id(array): array for array in snapshot.arrays if id(array) not in self._known}
            written += sum(array.nbytes for array in changed.values())
            body, *stored = self._write([snapshot.body, *changed.values()])
            known = self._known | {id(a): (a, s) for a, s in zip(changed.values(), stored, strict=True)}
            fresh = {id(array): known[id(array)] for array in snapshot.arrays}
            arrays = tuple(fresh[id(array)][1] for array in snapshot.arrays)
            used = {key for stored in (body, *arrays) for key in stored.keys}
            stale = tuple(self._stale.union(*self._kept) - used)
            index = _Index(
                self._writer, self._newest, snapshot.place, snapshot.nature, body, arrays, tuple(used), stale
            )
            (encoded,) = self._write([msgspec.msgpack.encode(index)])
        except LogError as error:
            self._stale |= _names(self._writer, first, self._newest)
            raise StoreError(f"snapshot of partition {self._partition}: {error}") from error
        self._known = fresh
        self._kept.append(used | set(encoded.keys))
        return Pointer(snapshot.place, encoded.offsets), written

    def tidy(self) -> None:
        """Remove what belongs to none of the two newest snapshots, now that the newest is committed.

        Raises
        ------
        StoreError
            If the topic does not answer; it is tried again the next time.
        """
        if len(self._kept) > 2:
            self._stale |= set().union(*self._kept[:-2])
            self._kept = self._kept[-2:]
        stale = self._stale - set().union(*self._kept)
        if not stale or len(self._kept) < 2:
            return
        try:
            self._topic.drop(self._partition, sorted(stale))
        except LogError as error:
            raise StoreError(f"old snapshots of partition {self._partition}: {error}") from error
        self._stale.clear()

    def read(self, pointer: Pointer) -> Snapshot:
        """Read a snapshot.

        Parameters
        ----------
        pointer
            As it was committed.

        Returns
        -------
        Snapshot
            As it was saved; what has not changed will not be written again.

        Raises
        ------
        StoreError
            If a piece is missing or damaged.
        DeniedError
            If the servers do not let us read it.
        UnreachableError
            If none of them answers.
        """
        try:
            index = msgspec.msgpack.decode(b"".join(self._topic.get(self._partition, pointer.index)), type=_Index)
            stored = (index.body, *index.arrays)
            pieces = dict(
                zip(
                    (places := sorted({offset for one in stored for offset in one.offsets})),
                    self._topic.get(self._partition, places),
                    strict=True,
                )
            )
            body, *arrays = (_whole(one, pieces) for one in stored)
            self._known = {}
            out = []
            for octets, one in zip(arrays, index.arrays, strict=True):
                array = np.frombuffer(octets, np.dtype(one.dtype)).reshape(one.shape)
                self._known[id(array)] = (array, one)
                out.append(array)
        except (DeniedError, UnreachableError):
            raise
        except (LogError, msgspec.MsgspecError, ValueError, TypeError) as error:
            raise StoreError(f"the snapshot of partition {self._partition} cannot be read: {error}") from error
        own = index.newest + len(pointer.index)
        self._kept = [set(index.keys) | _names(index.writer, index.newest, own)]
        # What was there before it, and what its writer may have written afterwards and not finished.
        self._stale = set(index.stale) | _names(index.writer, own, own + 2 * len(index.keys) + SPARE_KEYS)
        return Snapshot(index.place, index.nature, bytes(body), tuple(out))

    def _write(self, parts: Sequence[bytes | NDArray[Any]]) -> list[_Stored]:
        """Write bytes and arrays in pieces, under keys that nobody used before."""
        octets = [part if isinstance(part, bytes) else _octets(part) for part in parts]
        keys = []
        for one in octets:
            count = max(-(-len(one) // PIECE_BYTES), 1)
            keys.append(tuple(f"{self._writer}-{self._newest + n}" for n in range(count)))
            self._newest += count
        pieces = (
            (key, bytes(one[n * PIECE_BYTES : (n + 1) * PIECE_BYTES]))
            for one, names in zip(octets, keys, strict=True)
            for n, key in enumerate(names)
        )
        offsets = iter(self._topic.put(self._partition, pieces, self.hurry))
        return [
            _Stored(names, tuple(islice(offsets, len(names))), zlib.crc32(one), *_form(part))
            for part, one, names in zip(parts, octets, keys, strict=True)
        ]


def _octets(array: NDArray[Any]) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _form(part: bytes | NDArray[Any]) -> tuple[str, tuple[int, ...]]:
    return ("", ()) if isinstance(part, bytes) else (part.dtype.str, part.shape)


def _names(writer: str, first: int, end: int) -> set[str]:
    """Name the keys that a writer used, or may have used."""
    return {f"{writer}-{n}" for n in range(first, end)}


def _whole(stored: _Stored, pieces: dict[int, bytes]) -> bytearray:
    """Put pieces together again, or say by a ValueError that they are not what was written."""
    octets = bytearray().join(pieces[offset] for offset in stored.offsets)
    if zlib.crc32(octets) != stored.crc:
        raise ValueError("a piece is not what was written")
    return octets
