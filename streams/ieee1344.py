"""IEEE 1344-1995, the forefather of C37.118: one PMU a stream, integer rectangular phasors, no sync word.

In: the bytes of one configuration frame, or of data frames. Out: the same `ConfigurationFrame` and `FrameBatch` as
C37.118 yields, so that nobody downstream sees a difference. It writes no 1344 and reads no configuration that continues
over several frames.

References
----------
IEEE Std 1344-1995 (R2001). Where a capture of the Shelby PMU and the open PMU Connection Tester agree on a field, they
were followed: SOC counts from 1900; a frame's type stands in bits 15-13 of the sample count, its length in bits 10-0 of
the status; the sample count runs to trunc(8191 / PERIOD) for each frame, PERIOD in hundredths of a cycle.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from streams.block import FrameBatch
from streams.c37118.configuration import (
    AnalogDefinition,
    ConfigurationFrame,
    DigitalDefinition,
    PhasorDefinition,
    PmuConfiguration,
    channel_table,
)
from streams.c37118.frame import FrameType, Stamp, crc_fits
from streams.c37118.samples import Layout, arrivals, decode_values, lay_out, view
from streams.errors import ConfigurationError, FrameError

HEADER, CONFIGURATION = 1, 2
"""Frame types other than data (0)."""

VERSION = 0
"""`ConfigurationFrame.version` of a translated configuration."""

LEAST = 10
"""Bytes of the shortest frame."""

MARK, MARK_AT = b"\x40\x00", 4
"""What a configuration frame holds as its sample count, and where."""

_FIXED = struct.Struct(">IHH16sQHH")  # SOC, sample count, status, station, ID code, phasors, digitals
SURE = _FIXED.size
"""Bytes that it takes to tell a configuration frame."""

_TAIL = 6  # nominal frequency, period, CRC
_NTP_TO_UNIX = 2_208_988_800
_ERA = 1 << 32
_MAX_COUNT = 8191
_SIZE = 0x07FF
_SECOND = 1_000_000_000


def frame_size(data: bytes, at: int) -> int:
    """Length that a frame starting here would have.

    Parameters
    ----------
    data
        Bytes of a stream, at least 8 from `at` on.
    at
        Where the frame would start.

    Returns
    -------
    int
        Bytes, CRC included.
    """
    return (data[at + 6] << 8 | data[at + 7]) & _SIZE


def frame_type(data: bytes, at: int) -> int:
    """Type that a frame starting here would have.

    Parameters
    ----------
    data
        Bytes of a stream, at least 5 from `at` on.
    at
        Where the frame would start.

    Returns
    -------
    int
        0 data, 1 header, 2 configuration.
    """
    return data[at + 4] >> 5


def looks_like_configuration(data: bytes, at: int) -> bool:
    """Whether the counts of a configuration frame starting here agree with its length.

    Parameters
    ----------
    data
        Bytes of a stream.
    at
        Where the frame would start.

    Returns
    -------
    bool
        False as well where too few bytes are there to tell.
    """
    if len(data) - at < _FIXED.size or data[at + MARK_AT : at + MARK_AT + 2] != MARK:
        return False
    *_, phasors, digitals = _FIXED.unpack_from(data, at)
    return frame_size(data, at) == int(_FIXED.size + 20 * phasors + 18 * digitals + _TAIL)


def decode_configuration(frame: bytes) -> ConfigurationFrame:
    """Read a configuration frame.

    Parameters
    ----------
    frame
        Exactly one frame.

    Returns
    -------
    ConfigurationFrame
        The same in the words of C37.118: TIME_BASE is the sample counts a second.

    Raises
    ------
    ConfigurationError
        When it contradicts itself.
    FrameError
        When it is damaged.
    """
    if len(frame) < LEAST or not crc_fits(frame):
        raise FrameError(f"CRC does not fit: an IEEE 1344 frame of {len(frame)} bytes is damaged")
    if not looks_like_configuration(frame, 0) or frame_size(frame, 0) != len(frame):
        raise ConfigurationError("an IEEE 1344 configuration's counts do not fit its length: request it again")
    soc, _, _, station, id_code, phasors, digitals = _FIXED.unpack_from(frame)
    at = _FIXED.size
    names = [_text(frame[at + 16 * i : at + 16 * (i + 1)]) for i in range(phasors + digitals)]
    at += 16 * len(names)
    units = struct.unpack_from(f">{phasors}I", frame, at)
    masks = struct.unpack_from(f">{digitals}H", frame, at + 4 * phasors)
    nominal_word, period = struct.unpack_from(">HH", frame, at + 4 * phasors + 2 * digitals)
    if not period:
        raise ConfigurationError("an IEEE 1344 configuration's PERIOD is 0: request it again")
    nominal = 50 if nominal_word & 1 else 60
    rate = 100 * nominal / period
    pmu = PmuConfiguration(
        station=_text(station),
        id_code=id_code & 0xFFFF,
        nominal_hz=nominal,
        phasors=tuple(
            PhasorDefinition(n, u >> 24 != 0, (u & 0xFFFFFF) / 1e5) for n, u in zip(names[:phasors], units, strict=True)
        ),
        digitals=tuple(
            DigitalDefinition((n, *[""] * 15), 0, mask) for n, mask in zip(names[phasors:], masks, strict=True)
        ),
        analogs=tuple[AnalogDefinition, ...](),
        polar=False,
        float_phasors=False,
        float_analogs=False,
        float_frequency=False,
    )
    return ConfigurationFrame(
        id_code=id_code & 0xFFFF,
        pmus=(pmu,),
        data_rate=round(rate) if rate >= 1 else -round(1 / rate),
        time_base=max(1, round(_MAX_COUNT // period * rate)),
        kind=FrameType.CFG2,
        stamp=Stamp(_unix(soc)),
        version=VERSION,
    )


def compile_layout(configuration: ConfigurationFrame, source: str = "") -> Layout:
    """Compile a configuration to the dtype of its data frames.

    Parameters
    ----------
    configuration
        As `decode_configuration` reads it.
    source
        The connection or file that carries it.

    Returns
    -------
    Layout
        For `decode`. The PMU's record is that of C37.118, its status in STAT's place.
    """
    return lay_out(configuration, channel_table(configuration, source), [("soc", ">u4"), ("sample", ">u2")])


def decode(
    layout: Layout, frames: Any, arrival_ns: ArrayLike | None = None, dtype: DTypeLike = np.float32
) -> FrameBatch:
    """Decode data frames; a `FrameError` where the bytes are not a whole number of them.

    Parameters
    ----------
    layout
        Of the stream's configuration.
    frames
        Whole, intact data frames: bytes-like, one after another, or `(T,)` of dtype `layout.frame`.
    arrival_ns
        `(T,)` or one for all: when each frame came; None where nobody knows.
    dtype
        float32 or float64.

    Returns
    -------
    FrameBatch
        `(T, 1, C)`. Of the status word, "clock out of sync" becomes STAT bit 13 and "data invalid" STAT 15-14 = 11; its
        trigger bits mean other things than C37.118's and are left out.
    """
    raw = view(layout, frames)
    base = layout.configuration.time_base
    soc = raw["soc"].astype(np.int64)
    soc += np.where(soc < _ERA >> 1, _ERA, 0) - _NTP_TO_UNIX
    sample = (raw["sample"] & _MAX_COUNT).astype(np.int64)
    time_ns = soc * _SECOND + (sample * _SECOND + base // 2) // base
    status, values = decode_values(layout, raw, dtype)
    return FrameBatch(
        layout.table,
        layout.configuration.rate_hz,
        time_ns,
        np.zeros(len(raw), np.uint8),
        _stat(status),
        values,
        arrivals(time_ns, arrival_ns),
    )


def _stat(status: NDArray[np.uint16]) -> NDArray[np.uint16]:
    invalid: NDArray[np.uint16] = np.where(status & 0x4000, 0xC000, 0).astype(np.uint16)
    return invalid | (status & np.uint16(0x8000)) >> np.uint16(2)


def _unix(soc: int) -> int:
    """Seconds since 1970 of seconds since 1900; a count below half an era stands for the era from 2036 on."""
    return soc + (_ERA if soc < _ERA >> 1 else 0) - _NTP_TO_UNIX


def _text(raw: bytes) -> str:
    return raw.rstrip(b" \0").decode("latin-1")
