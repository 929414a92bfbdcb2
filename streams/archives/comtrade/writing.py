"""COMTRADE records (IEEE C37.111-2013) of synchrophasors, written: FLOAT32, as `.cfg`, `.dat` and `.inf` or as `.cff`.

In: frames as sent. Out: one row a reporting time and an analog channel a signal, named as in our Parquet archives, STAT
words and time flags among them; NaN where a source sent nothing. The channel table stands in a private section of the
`.inf`. Arrival times are not carried. It reads no record.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from streams.archives import metadata
from streams.archives.columns import check_names, sources_of
from streams.archives.comtrade.own import DESCRIPTION, SECTION, cell, own_columns
from streams.archives.comtrade.rows import NO_STAMP, regular_times
from streams.block import FrameBatch
from streams.channels import UNITS, Quantity
from streams.errors import ArchiveError

_LAST = NO_STAMP - 1
_EXTREME = "3.4028235E+38"
_PHASE_LETTERS = {"": "", "A": "A", "B": "B", "C": "C", "1": "P", "2": "N", "0": "Z"}
_ROLES = {
    Quantity.VOLTAGE_MAGNITUDE: "m",
    Quantity.CURRENT_MAGNITUDE: "m",
    Quantity.VOLTAGE_ANGLE: "a",
    Quantity.CURRENT_ANGLE: "a",
}


@dataclass(frozen=True, slots=True)
class Written:
    """What became of the frames.

    Attributes
    ----------
    rows
        Reporting times written, those among them at which no source sent anything.
    rounded_ns
        By how much a time was moved, at most: a row keeps its time in 32 bits.
    arrivals
        True where arrival times were known; they are not carried.
    """

    rows: int
    rounded_ns: int
    arrivals: bool


def write_record(
    path: str | os.PathLike[str], description: metadata.Description, read: Callable[[], Iterable[FrameBatch]]
) -> Written:
    """Write frames as a COMTRADE record.

    Parameters
    ----------
    path
        `.cfg`, beside which `.dat` and `.inf` are written, or `.cff`. Replaced when it exists, when all is written.
    description
        Channel table, rate and configuration frames, for the `.inf`.
    read
        Gives the frames; called twice: for their times, and for their values.

    Returns
    -------
    Written
        How many rows, and what was lost.

    Raises
    ------
    ArchiveError
        If there is no frame, if a source has two of one time or times too close for the record's length, if two PMUs
        share a name, or if a file cannot be written.
    """
    path = Path(path)
    check_names(description.table)
    known = [(b.time_ns, bool((b.arrival_ns != b.time_ns).any())) for b in read()]
    time_ns = np.unique(np.concatenate([t for t, _ in known] or [np.zeros(0, np.int64)]))
    if not len(time_ns):
        raise ArchiveError(f"{path}: nothing to write: no frame came")
    clock = _clock(path, time_ns, description.rate_hz)
    columns = own_columns(description.table)
    cfg, inf = _configuration(path, description, columns, clock), _information(description)
    size = _layout(len(columns)).itemsize * len(clock.stamp)
    combined = path.suffix.lower() == ".cff"
    if combined:
        head = (
            f"--- file type: CFG ---\r\n{cfg}--- file type: INF ---\r\n{inf}"
            f"--- file type: HDR ---\r\n--- file type: DAT FLOAT32: {size} ---\r\n"
        )
        files = {path: head.encode()}
        values = path
    else:
        upper = path.suffix.isupper()
        values, about = (path.with_suffix(e.upper() if upper else e) for e in (".dat", ".inf"))
        files = {values: b"", about: inf.encode(), path: cfg.encode()}
    parts = {file: file.with_name(file.name + ".part") for file in files}
    try:
        for file, text in files.items():
            parts[file].write_bytes(text)
        _write_rows(parts[values], len(files[values]), description, clock, read())
        for file, part in parts.items():
            part.replace(file)
    except OSError as error:
        raise ArchiveError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)
    return Written(len(clock.stamp), clock.rounded_ns, any(late for _, late in known))


@dataclass(frozen=True, slots=True)
class _Clock:
    """How the rows tell their times: by the rate, or by stamps alone."""

    time_ns: NDArray[np.int64]
    row: NDArray[np.int64]
    stamp: NDArray[np.int64]
    tick_ns: int
    rate_hz: float
    rounded_ns: int


def _clock(path: Path, time_ns: NDArray[np.int64], rate_hz: float) -> _Clock:
    """Choose what keeps the times best; at a steady rate a row stands for each reporting time, sent or not."""
    offset = time_ns - time_ns[0]
    span = int(offset[-1])
    tick_ns = int(np.gcd.reduce(offset)) or 1
    if span > tick_ns * _LAST:
        tick_ns = -(-span // _LAST)
    stamp = (offset + tick_ns // 2) // tick_ns
    rounded_ns = int(np.abs(stamp * tick_ns - offset).max())
    if rate_hz > 0:
        row = np.rint(offset * (rate_hz / 1e9)).astype(np.int64)
        grid = regular_times(int(time_ns[0]), 1, rate_hz, row)
        moved_ns = int(np.abs(grid - time_ns).max())
        few = row[-1] < 2 * len(row) + 1000
        if few and (np.diff(row) > 0).all() and moved_ns <= max(1, rounded_ns):
            every = regular_times(int(time_ns[0]), 1, rate_hz, np.arange(row[-1] + 1)) - grid[0]
            tick_ns = max(1, -(-int(every[-1]) // _LAST))
            return _Clock(time_ns, row, (every + tick_ns // 2) // tick_ns, tick_ns, rate_hz, moved_ns)
    if (np.diff(stamp) <= 0).any():
        raise ArchiveError(
            f"{path}: some times are less than {tick_ns:,} ns apart, which is what a record of {span / 1e9:,.0f} s can "
            f"tell; write shorter ones"
        )
    return _Clock(time_ns, np.arange(len(time_ns)), stamp, tick_ns, 0.0, rounded_ns)


def _configuration(path: Path, description: metadata.Description, columns: tuple[str, ...], clock: _Clock) -> str:
    """Write the lines of the `.cfg`."""
    table = description.table
    start = np.datetime64(int(clock.time_ns[0]), "ns")
    day, time = str(start).split("T")
    stamp = f"{'/'.join(reversed(day.split('-')))},{time}"
    about: dict[str, tuple[str, str, str]] = {}
    channels = iter(columns[len(sources_of(table)) :])
    for pmu in table.pmus:
        about[next(channels)] = ("", pmu.source, "")
        for channel in pmu.channels:
            letter = _PHASE_LETTERS[str(channel.phase)]
            role = {Quantity.FREQUENCY: "F", Quantity.ROCOF: "df"}.get(
                channel.quantity, letter + _ROLES.get(channel.quantity, "") if letter else ""
            )
            about[next(channels)] = (role, pmu.source, channel.unit or UNITS[channel.quantity])
    lines = [f"{cell(path.stem)},GridSense,2013", f"{len(columns)},{len(columns)}A,0D"]
    for number, column in enumerate(columns, 1):
        phase, source, unit = about.get(column, ("", "", ""))
        lines.append(
            f"{number},{cell(column)},{phase},{_line(source)},{_line(unit)},1,0,0,-{_EXTREME},{_EXTREME},1,1,P"
        )
    lines += [
        str(table.pmus[0].nominal_hz if table.pmus else 60),
        "1" if clock.rate_hz else "0",
        f"{clock.rate_hz if clock.rate_hz % 1 else int(clock.rate_hz)},{len(clock.stamp)}",
        stamp,
        stamp,
        "FLOAT32",
        str(clock.tick_ns),
        "0,0",
        "0,3",
    ]
    return "".join(f"{line}\r\n" for line in lines)


def _line(text: str) -> str:
    """Make a name or unit safe on a line."""
    return cell("".join(c if c.isprintable() else "_" for c in text))


def _information(description: metadata.Description) -> str:
    """Write the lines of the `.inf`."""
    return f"{SECTION}\r\n{DESCRIPTION}{metadata.encode(description).decode()}\r\n"


def _layout(channels: int) -> np.dtype[np.void]:
    return np.dtype([("number", "<u4"), ("stamp", "<u4"), ("values", "<f4", (channels,))])


def _write_rows(
    part: Path, offset_bytes: int, description: metadata.Description, clock: _Clock, batches: Iterable[FrameBatch]
) -> None:
    """Lay out all rows in the file and put each frame into its own."""
    table = description.table
    sources = sources_of(table)
    first: dict[str, int] = {}
    at = len(sources)
    for pmu in table.pmus:
        first[pmu.name] = at
        at += 1 + len(pmu.channels)
    rows = np.memmap(part, _layout(at), "r+", offset_bytes, (len(clock.stamp),))
    rows["number"] = np.arange(1, len(rows) + 1)
    rows["stamp"] = clock.stamp
    values = rows["values"]
    values[:] = np.nan
    for batch in batches:
        row = clock.row[np.searchsorted(clock.time_ns, batch.time_ns)]
        for source in sources_of(batch.table):
            flags = sources.index(source)
            if len(np.unique(row)) < len(row) or not np.isnan(values[row, flags]).all():
                raise ArchiveError(f"{source!r} has two frames of one time; a COMTRADE record holds one")
            values[row, flags] = batch.time_flags
        for s, pmu in enumerate(batch.table.pmus):
            place = first[pmu.name]
            values[row, place] = batch.stat[:, s]
            with np.errstate(over="ignore"):
                values[row, place + 1 : place + 1 + len(pmu.channels)] = batch.values[:, s, : len(pmu.channels)]
    rows.flush()
