"""What all C37.118.2 frames share (sync word, size, ID code, time stamp, CRC), and header and command frames.

In: the bytes of one frame. Out: its parts, and back. It finds no frames in a stream (`stream`) and knows no
configuration (`configuration`).

References
----------
IEEE Std C37.118.2-2011, clause 6.2 (common fields), 6.6 (header frame), 6.7 (command frame), annex B (CRC).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

from fastcrc.crc16 import ibm_3740

from streams.errors import FrameError

SYNC = 0xAA
"""First byte of every frame."""

MAX_SIZE = 65535
"""FRAMESIZE is 16 bits."""

PREFIX_SIZE = 14
"""Bytes before the payload: SYNC, FRAMESIZE, IDCODE, SOC, FRACSEC."""

MIN_SIZE = PREFIX_SIZE + 2

_PREFIX = struct.Struct(">BBHHII")


class FrameType(IntEnum):
    """Bits 6-4 of the sync word."""

    DATA = 0
    HEADER = 1
    CFG1 = 2
    CFG2 = 3
    COMMAND = 4
    CFG3 = 5


class Command(IntEnum):
    """What a command frame asks for."""

    DATA_OFF = 1
    DATA_ON = 2
    SEND_HEADER = 3
    SEND_CFG1 = 4
    SEND_CFG2 = 5
    SEND_CFG3 = 6
    EXTENDED = 8


@dataclass(frozen=True, slots=True)
class Stamp:
    """SOC and FRACSEC as sent.

    Attributes
    ----------
    soc
        Seconds since the epoch, UTC, unsigned 32 bits.
    fraction
        24 bits: counts of 1 / TIME_BASE second.
    flags
        Top byte of FRACSEC: leap second (bits 6-4) and time quality (bits 3-0).
    """

    soc: int = 0
    fraction: int = 0
    flags: int = 0

    def time_ns(self, time_base: int) -> int:
        """Nanoseconds since the epoch, UTC, to the nearest.

        Parameters
        ----------
        time_base
            TIME_BASE of the stream's configuration: counts of `fraction` a second.

        Returns
        -------
        int
            The instant.
        """
        return self.soc * 1_000_000_000 + (self.fraction * 1_000_000_000 + time_base // 2) // time_base


EPOCH = Stamp()


@dataclass(frozen=True, slots=True)
class Prefix:
    """The common fields of a frame.

    Attributes
    ----------
    frame_type
        Bits 6-4 of the sync word.
    version
        Bits 3-0 of the sync word: 1 for the 2005 edition, 2 for 2011.
    size
        Bytes of the whole frame, CRC included.
    id_code
        ID code of the stream (of the addressed stream in a command).
    stamp
        Time stamp as sent.
    """

    frame_type: FrameType
    version: int
    size: int
    id_code: int
    stamp: Stamp


@dataclass(frozen=True, slots=True)
class HeaderFrame:
    """A header frame: text for people.

    Attributes
    ----------
    id_code
        ID code of the stream.
    stamp
        Time stamp as sent.
    text
        The payload as bytes: the standard asks for ASCII, devices send what they like.
    version
        Of the sync word.
    """

    id_code: int
    stamp: Stamp
    text: bytes
    version: int = 2


@dataclass(frozen=True, slots=True)
class CommandFrame:
    """A command to a sender.

    Attributes
    ----------
    id_code
        ID code of the stream that shall obey.
    stamp
        Time stamp as sent.
    command
        One of `Command`, or a number of the user's own.
    extended
        Payload of an extended frame command.
    version
        Of the sync word.
    """

    id_code: int
    stamp: Stamp
    command: int
    extended: bytes = b""
    version: int = 2


def crc_fits(frame: bytes | memoryview) -> bool:
    """Whether the last two bytes are the CRC of the others.

    Parameters
    ----------
    frame
        A whole frame. (CRC-CCITT, 0x1021 from 0xFFFF, not inverted at the end: over its own check word it ends at 0.)

    Returns
    -------
    bool
        True for an intact frame.
    """
    return ibm_3740(frame) == 0


def read_prefix(frame: bytes | memoryview) -> Prefix:
    """Check the CRC and read the common fields.

    Parameters
    ----------
    frame
        Exactly one frame.

    Returns
    -------
    Prefix
        Its common fields.

    Raises
    ------
    FrameError
        When the bytes are not exactly one intact frame.
    """
    if len(frame) < MIN_SIZE:
        raise FrameError(f"{len(frame)} bytes are too few for a C37.118 frame (at least {MIN_SIZE})")
    sync, kind, size, id_code, soc, fracsec = _PREFIX.unpack_from(frame)
    if sync != SYNC or kind >> 4 > max(FrameType):
        raise FrameError(f"SYNC is 0x{sync:02X}{kind:02X}, which starts no C37.118 frame")
    if size != len(frame):
        raise FrameError(f"FRAMESIZE says {size} bytes, there are {len(frame)}")
    if not crc_fits(frame):
        raise FrameError(f"CHK does not fit: a {FrameType(kind >> 4).name} frame of ID code {id_code} is damaged")
    return Prefix(FrameType(kind >> 4), kind & 15, size, id_code, Stamp(soc, fracsec & 0xFFFFFF, fracsec >> 24))


def wrap(frame_type: FrameType, id_code: int, stamp: Stamp, payload: bytes, version: int = 2) -> bytes:
    """Put the common fields around a payload.

    Parameters
    ----------
    frame_type
        Kind of frame.
    id_code
        ID code of the stream.
    stamp
        Time stamp.
    payload
        Everything between FRACSEC and CHK.
    version
        Of the sync word.

    Returns
    -------
    bytes
        One frame.

    Raises
    ------
    FrameError
        When it exceeds 65,535 bytes or a field does not fit its bits.
    """
    size = MIN_SIZE + len(payload)
    if size > MAX_SIZE:
        raise FrameError(
            f"a {frame_type.name} frame of {size} bytes exceeds the {MAX_SIZE} of FRAMESIZE: split the stream"
        )
    try:
        prefix = _PREFIX.pack(
            SYNC, frame_type << 4 | version, size, id_code, stamp.soc, stamp.flags << 24 | stamp.fraction
        )
    except struct.error as error:
        raise FrameError(f"ID code {id_code} or {stamp} does not fit its field: {error}") from error
    body = prefix + payload
    return body + struct.pack(">H", ibm_3740(body))


def decode_header(frame: bytes | memoryview) -> HeaderFrame:
    """Read a header frame; a `FrameError` where it is damaged or of another kind.

    Parameters
    ----------
    frame
        Exactly one frame.

    Returns
    -------
    HeaderFrame
        Its parts.
    """
    prefix = _prefix_of(frame, FrameType.HEADER)
    return HeaderFrame(prefix.id_code, prefix.stamp, bytes(frame[PREFIX_SIZE:-2]), prefix.version)


def encode_header(header: HeaderFrame) -> bytes:
    """Write a header frame; a `FrameError` where a part does not fit its field.

    Parameters
    ----------
    header
        Its parts.

    Returns
    -------
    bytes
        One frame.
    """
    return wrap(FrameType.HEADER, header.id_code, header.stamp, header.text, header.version)


def decode_command(frame: bytes | memoryview) -> CommandFrame:
    """Read a command frame.

    Parameters
    ----------
    frame
        Exactly one frame.

    Returns
    -------
    CommandFrame
        Its parts.

    Raises
    ------
    FrameError
        When it is damaged, of another kind or holds no command word.
    """
    prefix = _prefix_of(frame, FrameType.COMMAND)
    payload = bytes(frame[PREFIX_SIZE:-2])
    if len(payload) < 2:
        raise FrameError(f"a command frame of {len(frame)} bytes holds no CMD word")
    return CommandFrame(prefix.id_code, prefix.stamp, int.from_bytes(payload[:2], "big"), payload[2:], prefix.version)


def encode_command(command: CommandFrame) -> bytes:
    """Write a command frame.

    Parameters
    ----------
    command
        Its parts.

    Returns
    -------
    bytes
        One frame.

    Raises
    ------
    FrameError
        When a part does not fit its field.
    """
    try:
        payload = struct.pack(">H", command.command) + command.extended
    except struct.error as error:
        raise FrameError(f"command {command.command} does not fit 16 bits") from error
    return wrap(FrameType.COMMAND, command.id_code, command.stamp, payload, command.version)


def _prefix_of(frame: bytes | memoryview, kind: FrameType) -> Prefix:
    prefix = read_prefix(frame)
    if prefix.frame_type is not kind:
        raise FrameError(f"a {prefix.frame_type.name} frame came where a {kind.name} frame was asked for")
    return prefix
