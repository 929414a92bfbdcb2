"""Whole frames of one stream out of bytes that are cut and damaged anywhere.

In: pieces of a byte stream, or datagrams. Out: intact frames, and between them what is none, every byte once and in
order. The rules of resynchronisation are those of `streams.c37118.stream`; nothing is decoded here.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

from fastcrc.crc16 import ibm_3740

from streams.c37118.frame import MIN_SIZE, SYNC, FrameType
from streams.errors import FrameError
from streams.gateway.status import Reason

_HEAD = struct.Struct(">BBHH")
_KINDS = frozenset(int(kind) for kind in FrameType)
_START = re.compile(rb"\xaa(?:\Z|[\x00-\x5f](?:\Z|[\x01-\xff]|\x00(?:\Z|[\x10-\xff])))")
"""Where a frame may start: the sync byte, one of the types, a size of 16 at least; or what is there of them."""

_VAIN = 16  # bytes whose CRC may be computed in vain, as a multiple of the garbage that is let pass


class Piece(NamedTuple):
    """Consecutive bytes of a stream.

    Attributes
    ----------
    value
        One intact frame, or bytes that are none.
    reason
        Why they are none; None for a frame.
    """

    value: bytes
    reason: Reason | None = None


class Framer:
    """Cuts one byte stream, or one series of datagrams, into frames.

    Parameters
    ----------
    max_garbage_bytes
        Bytes without a whole frame after which the stream is given up.
    """

    def __init__(self, max_garbage_bytes: int) -> None:
        self._max_garbage_bytes = max_garbage_bytes
        self._max_vain_bytes = _VAIN * max_garbage_bytes
        self._id_code = 0
        self._size = 0
        self._head = b""
        self.restart()

    def restart(self) -> None:
        """Forget the bytes that are waited for, as for a new connection."""
        self._rest = b""
        self._synchronised = True
        self._barren_bytes = 0
        self._vain_bytes = 0

    def expect(self, id_code: int, size: int) -> None:
        """Say what the configuration in force says.

        Parameters
        ----------
        id_code
            ID code of the stream.
        size
            Bytes of a data frame; 0: nobody knows.
        """
        self._id_code, self._size, self._head = id_code, size, b""

    @property
    def awaited(self) -> int | None:
        """Type of the frame of which a part has come; None where there is none."""
        return self._rest[1] >> 4 if len(self._rest) > 1 else None

    def match(self, data: bytes) -> bytes:
        """Take the ordinary case at one look: nothing but intact data frames like the last one.

        Parameters
        ----------
        data
            The next bytes.

        Returns
        -------
        bytes
            Whole frames, one after another; empty where the case is another one and nothing was taken.
        """
        size, head = self._size, self._head
        if not head or (len(self._rest) + len(data)) % size:
            return b""
        if self._rest:
            data = self._rest + data
        if len(data) == size:
            if not data.startswith(head) or ibm_3740(data):
                return b""
        else:
            view = memoryview(data)
            for at in range(0, len(data), size):
                if not data.startswith(head, at) or ibm_3740(view[at : at + size]):
                    return b""
        self._rest = b""
        self._synchronised = True
        self._barren_bytes = self._vain_bytes = 0
        return data

    def feed(self, data: bytes, *, final: bool = False) -> Iterator[Piece]:
        """Take bytes in. Between two pieces the owner may say anew what to expect.

        Parameters
        ----------
        data
            The next bytes.
        final
            Nothing follows, as at the end of a datagram or connection: keep nothing back.

        Yields
        ------
        Piece
            In order, every byte that is not waited for.

        Raises
        ------
        FrameError
            When too much came without a whole frame in it.
        """
        data = self._rest + data
        self._rest = b""  # the owner may not hear us out
        view, end = memoryview(data), len(data)
        at = skipped = whole = 0  # [skipped:at] is no frame, the last whole one ended at `whole`
        lost = Reason.GARBAGE
        while at < end and self._vain_bytes <= self._max_vain_bytes:
            size, reason = self._judge(data, view, at, final=final)
            if size < 0:
                break
            if size == 0:
                lost = reason if reason and self._synchronised else lost
                self._synchronised = False
                found = _START.search(data, at + 1)
                at = found.start() if found else end
                continue
            if skipped < at:
                yield Piece(data[skipped:at], lost)
            at += size
            skipped = at
            if reason is None:
                whole = at
                self._barren_bytes = self._vain_bytes = 0
                self._synchronised = True
                self._remember(data[at - size : at])
            yield Piece(data[at - size : at], reason)
        given_up = self._vain_bytes > self._max_vain_bytes
        at = end if given_up else at
        if skipped < at:
            yield Piece(data[skipped:at], lost)
        self._rest = data[at:]
        self._barren_bytes += at - whole
        given_up |= self._barren_bytes > self._max_garbage_bytes
        if final or given_up:
            self.restart()
        if given_up:
            raise FrameError("too much came without a whole frame: is it a C37.118 stream?")

    def _remember(self, frame: bytes) -> None:
        """Let `match` know how a data frame of the stream begins."""
        head = frame[: _HEAD.size]
        ours = int.from_bytes(head[4:6], "big") == self._id_code
        if ours and len(frame) == self._size and frame[1] >> 4 == FrameType.DATA:
            self._head = head

    def _judge(self, data: bytes, view: memoryview, at: int, *, final: bool) -> tuple[int, Reason | None]:
        """Bytes of the frame that starts here, and why it is refused; 0: none, and why; -1: too few are there."""
        size, damaged = self._claim(data, at)
        if size == 0:
            return 0, Reason.GARBAGE
        if size < 0 or at + size > len(data):
            return (0, Reason.TRUNCATED) if final else (-1, None)
        if not damaged:
            if not ibm_3740(view[at : at + size]):
                return size, None
            self._vain_bytes += size
        followed = self._starts(data, at + size) if self._synchronised else False
        if followed is None and not final:
            return -1, None
        # a start, or the end, right behind it: only its inside is damaged, or it was cut short
        whole = followed or (followed is None and at + size == len(data))
        return (self._bound(data, view, at, size, final=final) if whole else 0), Reason.CRC

    def _bound(self, data: bytes, view: memoryview, at: int, size: int, *, final: bool) -> int:
        """Bytes of a damaged frame up to where an intact one starts in it; -1: too few are there to say."""
        own = int.from_bytes(data[at + 4 : at + 6], "big")
        for found in _START.finditer(data, at + 1, at + size):
            start = found.start()
            if len(data) - start < _HEAD.size:
                if not final:
                    return -1
                break
            _, kind, claimed, id_code = _HEAD.unpack_from(data, start)
            if kind >> 4 not in _KINDS or claimed < MIN_SIZE or id_code not in (own, self._id_code):
                continue
            if start + claimed > len(data):
                if not final:
                    return -1
                continue
            if self._vain_bytes > self._max_vain_bytes or not ibm_3740(view[start : start + claimed]):
                return start - at
            self._vain_bytes += claimed
        return size

    def _claim(self, data: bytes, at: int) -> tuple[int, bool]:
        """Bytes of the frame that starts here, 0 where none can, -1 where too few are there; whether it is damaged."""
        if len(data) - at < _HEAD.size:
            return (-1 if data[at] == SYNC else 0), False
        sync, kind, size, id_code = _HEAD.unpack_from(data, at)
        strange = self._size and id_code != self._id_code
        # among chance bytes, waiting for up to 65,535 of them would hold a slow stream up for long
        if sync != SYNC or kind >> 4 not in _KINDS or size < MIN_SIZE or (strange and not self._synchronised):
            return 0, False
        if 0 < self._size < size and kind >> 4 == FrameType.DATA and not strange:
            # a damaged size, or a new configuration: a sync word where the frame should have ended tells
            followed = self._starts(data, at + self._size)
            if followed is not False:
                return (self._size, True) if followed else (-1, False)
        return size, False

    def _starts(self, data: bytes, at: int) -> bool | None:
        """Whether a frame may start here; None where too few bytes are there to say."""
        if len(data) < at + 2:
            return None
        return data[at] == SYNC and data[at + 1] >> 4 in _KINDS
