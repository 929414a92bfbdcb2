"""Data frames as rows of bytes: their times read, moved and sealed, without decoding a value.

In: `(T, size)` octets of frames of one stream. Out: their times in nanoseconds, the same frames at another time, and
each frame as bytes. It knows no configuration but the time base.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from streams.c37118.samples import seal

Octets = NDArray[np.uint8]
"""`(T, size)`: a data frame in each row."""

_SECOND = 1_000_000_000
_NAMES = ("sync", "kind", "size", "id_code", "soc", "fracsec")
_FORMS = (">u1", ">u1", ">u2", ">u2", ">u4", ">u4")


def head(octets: Octets) -> NDArray[np.void]:
    """View the common fields of frames.

    Parameters
    ----------
    octets
        `(T, size)`, in one piece.

    Returns
    -------
    NDArray[np.void]
        `(T,)` with the fields sync, kind, size, id_code, soc, fracsec; writing to it writes to the frames.
    """
    return octets.view(np.dtype({"names": _NAMES, "formats": _FORMS, "itemsize": octets.shape[1]}))[:, 0]


def times(octets: Octets, time_base: int) -> NDArray[np.int64]:
    """Read the time stamps.

    Parameters
    ----------
    octets
        `(T, size)`.
    time_base
        Counts of FRACSEC a second.

    Returns
    -------
    NDArray[np.int64]
        `(T,)` UTC nanoseconds.
    """
    fields = head(octets)
    fraction = fields["fracsec"].astype(np.int64) & 0xFFFFFF
    soc: NDArray[np.int64] = fields["soc"].astype(np.int64)
    return soc * _SECOND + (fraction * _SECOND + time_base // 2) // time_base


def shifted(octets: Octets, time_base: int, shift_s: Fraction) -> Octets:
    """Move frames in time: SOC and FRACSEC are written anew, leap-second and quality bits kept. Seal them afterwards.

    Parameters
    ----------
    octets
        `(T, size)`, left as they are.
    time_base
        Counts of FRACSEC a second.
    shift_s
        By how much.

    Returns
    -------
    Octets
        A copy at the new times, to the nearest count.
    """
    out = octets.copy()
    fields = head(out)
    fracsec = fields["fracsec"].astype(np.int64)
    ticks = fields["soc"].astype(np.int64) * time_base + (fracsec & 0xFFFFFF) + round(shift_s * time_base)
    fields["soc"] = ticks // time_base & 0xFFFFFFFF
    fields["fracsec"] = ticks % time_base | fracsec & 0xFF000000
    return out


def sealed(octets: Octets) -> Octets:
    """Write the check word of each frame.

    Parameters
    ----------
    octets
        `(T, size)`, written to.

    Returns
    -------
    Octets
        The same.
    """
    size = octets.shape[1]
    form = np.dtype({"names": ["chk"], "formats": [">u2"], "offsets": [size - 2], "itemsize": size})
    seal(octets.view(form)[:, 0])
    return octets


def apart(octets: Octets) -> list[bytes]:
    """Cut into frames.

    Parameters
    ----------
    octets
        `(T, size)`.

    Returns
    -------
    list[bytes]
        One for each row.
    """
    octets = np.ascontiguousarray(octets)
    frames: list[bytes] = octets.view(np.dtype((np.void, octets.shape[1])))[:, 0].tolist()
    return frames
