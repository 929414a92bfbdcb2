"""The time column of somebody else's table: to nanoseconds UTC, and the reporting rate that the stamps tell.

In: a column of text or numbers. Out: int64 nanoseconds and a rate. It moves no stamp onto a grid: alignment does.
Time zones: a stamp with an offset is converted, a stamp without one is UTC. Numbers are seconds, milliseconds,
microseconds or nanoseconds since 1970 by their size; below 1e8 they are seconds since 1970 as well, as a simulation
counts them.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from streams.errors import ArchiveError

MAX_RATE_HZ = 120.0
MIN_RATE_HZ = 1 / 60

_USUAL_HZ = np.array([1 / 60, 1 / 30, 0.1, 0.2, 0.25, 0.5, 1, 2, 4, 5, 10, 12, 15, 20, 25, 30, 50, 60, 100, 120])
_WHOLE_HZ = np.array([1 / seconds for seconds in range(60, 1, -1)] + [float(r) for r in range(1, 121)])
_ENOUGH = 16
"""Rows from which on the phase of the stamps tells the rate; below, their median distance must."""
_CONCENTRATION = 0.4
"""Jitter of up to a third of the period either way leaves this much of the phases' resultant; noise leaves 0.1."""


def to_nanoseconds(column: pa.Array, name: str, line: int) -> NDArray[np.int64]:
    """Read time stamps.

    Parameters
    ----------
    column
        Text, numbers or Arrow time stamps.
    name
        Of the column, for the message.
    line
        Line (or row) of its first entry, for the message.

    Returns
    -------
    NDArray[np.int64]
        `(T,)` nanoseconds since the epoch, UTC.

    Raises
    ------
    ArchiveError
        If a cell is empty or holds no time.
    """
    if column.null_count:
        where = line + int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        raise ArchiveError(f"line {where}, column {name!r}: no time; every row needs one")
    if pa.types.is_timestamp(column.type):
        return np.asarray(column.cast(pa.timestamp("ns", column.type.tz)).cast(pa.int64()), np.int64)
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        column = column.cast(pa.string())
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        raise ArchiveError(f"column {name!r} is of type {column.type}; a time is text, a number or a time stamp")
    text = pc.utf8_trim_whitespace(column.cast(pa.string()))
    text = pc.replace_substring_regex(text, r"^(-?\d+),(\d+)$", r"\1.\2")  # a decimal comma
    found = _numbers(text)
    if found is None:
        found = _calendar(text)
    if found is None:
        row = next(
            i for i in range(len(text)) if _numbers(text[i : i + 1]) is None and _calendar(text[i : i + 1]) is None
        )
        raise ArchiveError(
            f"line {line + row}, column {name!r}: {text[row].as_py()!r} is no time; write ISO 8601 "
            f"(2026-01-31T12:00:00.033Z; UTC where no offset stands) or seconds, ms, us or ns since 1970, "
            f"the same way in every row"
        )
    return found


def _numbers(text: pa.Array) -> NDArray[np.int64] | None:
    """Read numbers exactly, by way of decimals; None where one is no number."""
    try:
        size = float(np.nanmax(np.abs(text.cast(pa.float64()).to_numpy(zero_copy_only=False)), initial=0.0))
    except pa.ArrowInvalid:
        return None
    if not np.isfinite(size):
        return None
    # seconds, milliseconds, microseconds, nanoseconds: nine, six, three, no decimals make nanoseconds of each
    decimals = 9 if size < 1e11 else 6 if size < 1e14 else 3 if size < 1e17 else 0
    try:
        exact = text.cast(pa.decimal128(38, decimals))
        low = np.frombuffer(exact.buffers()[1], np.int64)[::2]  # the low half of little-endian 128 bits
        return np.array(low[exact.offset : exact.offset + len(exact)])
    except pa.ArrowInvalid:  # more digits than a nanosecond has
        seconds = text.cast(pa.float64()).to_numpy(zero_copy_only=False)
        rounded: NDArray[np.int64] = np.round(seconds * 10.0**decimals).astype(np.int64)
        return rounded


def _calendar(text: pa.Array) -> NDArray[np.int64] | None:
    """Read ISO 8601, with slashes and commas forgiven; None where one is none. No offset means UTC."""
    text = pc.replace_substring_regex(text, r"^(\d{4})[/.](\d{1,2})[/.](\d{1,2})", r"\1-\2-\3")
    text = pc.replace_substring_regex(text, r"(\d),(\d)", r"\1.\2")
    text = pc.replace_substring_regex(text, r" ?(?:UTC|GMT)$", "Z")
    text = pc.replace_substring_regex(text, r"(\.\d{9})\d+", r"\1")
    for zone in (None, "UTC"):
        try:
            found: NDArray[np.int64] = np.array(text.cast(pa.timestamp("ns", zone)).cast(pa.int64()), np.int64)
        except pa.ArrowInvalid:
            continue
        return found
    return None


def check_order(time_ns: NDArray[np.int64], last_ns: int | None, line: int) -> None:
    """Refuse stamps that do not rise.

    Parameters
    ----------
    time_ns
        `(T,)` of consecutive rows.
    last_ns
        Time of the row before, if there is one.
    line
        Line of the first row, for the message.

    Raises
    ------
    ArchiveError
        If a time is that of an earlier row, or before it.
    """
    before = np.empty_like(time_ns)
    before[1:] = time_ns[:-1]
    before[:1] = time_ns[0] - 1 if last_ns is None else last_ns
    wrong = np.flatnonzero(time_ns <= before)
    if len(wrong):
        row = int(wrong[0])
        stamp = np.datetime64(int(time_ns[row]), "ns")
        if time_ns[row] == before[row]:
            raise ArchiveError(f"line {line + row}: the time {stamp}Z stands twice; keep one row a reporting time")
        raise ArchiveError(f"line {line + row}: the time {stamp}Z is before that of the row above; sort by time")


def detect_rate(time_ns: NDArray[np.int64]) -> float:
    """Tell the reporting rate from rising stamps, jittered or with rows missing.

    The lowest rate wins on whose grid the stamps gather, no two of them in one slot: the length of the mean of
    exp(2 pi i t rate) is 1 on the grid, 0 on half the rate, and small on any other.

    Parameters
    ----------
    time_ns
        `(T,)`, at least two; the first few hundred are enough.

    Returns
    -------
    float
        Frames a second: a whole number of frames a second or of seconds a frame where the stamps fit one.

    Raises
    ------
    ArchiveError
        If there are fewer than two rows, or if the rate is above 120 a second or below one a minute.
    """
    time_ns = time_ns[:512]
    if len(time_ns) < 2:
        raise ArchiveError("one row tells no reporting rate; at least two are needed")
    elapsed_s = (time_ns - time_ns[0]) / 1e9
    plain = 1 / float(np.median(np.diff(elapsed_s)))
    if plain > 2 * MAX_RATE_HZ or plain < MIN_RATE_HZ / 2:
        raise ArchiveError(f"the rows stand {1 / plain:.6g} s apart; rates from 1 a minute to 120 a second can be read")
    if len(time_ns) < _ENOUGH:
        near = float(_USUAL_HZ[np.argmin(np.abs(np.log(_USUAL_HZ / plain)))])
        return near if abs(near / plain - 1) < 0.06 else round(plain, 4)
    for candidates in (_USUAL_HZ, _WHOLE_HZ):
        rate = _gather(elapsed_s, candidates)
        if rate is not None:
            return rate
    if plain > MAX_RATE_HZ:
        raise ArchiveError(f"the rows stand {1 / plain:.6g} s apart; at most 120 a second can be read")
    return round(plain, 4)


def _gather(elapsed_s: NDArray[np.float64], rates_hz: NDArray[np.float64]) -> float | None:
    """Find the lowest rate on whose grid the stamps gather; None where they gather on none."""
    slots = elapsed_s[:, None] * rates_hz
    resultant = np.exp(2j * np.pi * slots).mean(0)
    # against a grid that stands where most stamps stand, not where the first one happens to
    rounded = np.rint(slots - np.angle(resultant) / (2 * np.pi))
    shared = (np.diff(rounded, axis=0) < 1).mean(0)
    length = np.where(shared < 0.05, np.abs(resultant), 0)
    best = length.max()
    if best < _CONCENTRATION:
        return None
    found = int(np.flatnonzero(length >= 0.95 * best)[0])  # multiples of the rate gather as well as the rate
    rate = float(rates_hz[found])
    count = rounded[:, found] - rounded[:, found].mean()
    actual = float((count * count).sum() / (count * (elapsed_s - elapsed_s.mean())).sum())
    missed = abs(actual / rate - 1) * np.ptp(count)  # frames by which this grid is off at the end
    return rate if missed < 0.4 else None
