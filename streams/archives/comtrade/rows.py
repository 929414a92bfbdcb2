"""The rows of a COMTRADE record, chunk by chunk, as Arrow records like those of any other table.

In: a record. Out: times in UTC, analogs a x + b with NaN where a value is missing, status channels as numbers. It moves
no stamp and fills no gap.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pc
from numpy.typing import NDArray

from streams.archives.comtrade.configuration import Analog, Record, layout
from streams.errors import ArchiveError

NO_STAMP = 0xFFFFFFFF
"""A time stamp in a binary row that says that there is none."""

_WHERE = re.compile(r"(?:In CSV column #(\d+): )?Row #(\d+): (.*)", re.DOTALL)
_DAY_NS = 86_400_000_000_000
_BLOCK_BYTES = 1 << 22
_MAX_NS = 9e18


def read_record(record: Record, names: Sequence[str], rows: int) -> Iterator[pa.RecordBatch]:
    """Read the rows of a record.

    Parameters
    ----------
    record
        From `open_record`.
    names
        Columns, that of time first.
    rows
        In a chunk, at most.

    Yields
    ------
    pa.RecordBatch
        Time as a stamp in nanoseconds; analogs as float64, or as they are stored where a = 1 and b = 0; status channels
        as uint16.

    Raises
    ------
    ArchiveError
        If a row cannot be read, or if there are fewer or more than the configuration says.
    """
    analogs = {a.column: (i, a) for i, a in enumerate(record.analogs)}
    words = {w.column: w for w in record.words}
    origin = count = 0
    try:
        for number, stamp, analog, status in _rows(record, rows):
            origin = origin if count else int(number[0])
            arrays = [pa.array(_times(record, number, stamp, origin, count)).cast(pa.timestamp("ns", tz="UTC"))]
            for name in names[1:]:
                if name in analogs:
                    i, a = analogs[name]
                    arrays.append(pa.array(_scaled(analog[i], a, record.missing)))
                else:
                    w = words[name]
                    bits = status[:, w.first : w.first + w.bits]
                    arrays.append(pa.array((bits @ (1 << np.arange(w.bits))).astype(np.uint16)))
            yield pa.RecordBatch.from_arrays(arrays, list(names))
            count += len(number)
    except OSError as error:
        raise ArchiveError(f"{record.values_path}: cannot be read: {error}") from error
    if count != record.samples:
        raise ArchiveError(f"{record.values_path}: holds {count:,} rows; its configuration says {record.samples:,}")


def _scaled(stored: NDArray[Any], analog: Analog, missing: float) -> NDArray[Any]:
    if stored.dtype != np.float32 or (analog.a, analog.b) != (1, 0):
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is infinite, as it would be by hand
            values = stored * np.float64(analog.a) + analog.b
    else:
        values = stored.copy()
    values[stored == missing] = np.nan
    return values


def regular_times(start_ns: int, resolution_ns: int, rate_hz: float, number: NDArray[np.int64]) -> NDArray[np.int64]:
    """Tell when the rows of a steady rate were measured.

    A start that is a reporting time of a whole rate, to the digits in which it is written, is taken for that one: after
    .033333 come .066667 and .1, as counted from midnight, not what a rounded start adds up to.

    Parameters
    ----------
    start_ns
        Of row 0, UTC.
    resolution_ns
        Of the start as written; above a microsecond the start is taken as it stands.
    rate_hz
        Rows a second.
    number
        `(T,)` of each row, counted from 0.

    Returns
    -------
    NDArray[np.int64]
        `(T,)` nanoseconds, UTC.
    """
    day = start_ns // _DAY_NS * _DAY_NS
    slot = round((start_ns - day) * rate_hz / 1e9)
    whole = rate_hz == round(rate_hz) or abs(1 / rate_hz - round(1 / rate_hz)) < 1e-9
    near = abs(slot * 1e9 / rate_hz - (start_ns - day)) < max(resolution_ns, 1.0)
    origin_ns, first = (day, slot) if whole and near and resolution_ns <= 1000 else (start_ns, 0)
    times: NDArray[np.int64] = origin_ns + np.rint((number + first) * 1e9 / rate_hz).astype(np.int64)
    return times


def _times(
    record: Record, number: NDArray[np.int64], stamp: NDArray[np.float64], origin: int, count: int
) -> NDArray[np.int64]:
    if not record.rate_hz:
        stamp = np.where(stamp < NO_STAMP, stamp, np.nan) if record.form != "ASCII" else stamp
    elapsed_ns = (number - origin) * 1e9 / record.rate_hz if record.rate_hz else stamp * record.tick_ns
    wrong = np.flatnonzero(~(np.abs(elapsed_ns) < _MAX_NS - abs(record.start_ns)))
    if len(wrong):
        row = count + int(wrong[0]) + 1
        raise ArchiveError(f"{record.values_path}: row {row} has no time that can be told, by its number or its stamp")
    if record.rate_hz:
        return regular_times(record.start_ns, record.resolution_ns, record.rate_hz, number - origin)
    times: NDArray[np.int64] = record.start_ns + np.rint(elapsed_ns).astype(np.int64)
    return times


_Rows = tuple[NDArray[np.int64], NDArray[np.float64], Any, NDArray[np.int64]]


def _rows(record: Record, rows: int) -> Iterator[_Rows]:
    """Read sample numbers, stamps, analogs by channel and status bits by row."""
    if record.form == "ASCII":
        yield from _ascii_rows(record, rows)
        return
    stored = np.memmap(record.values_path, layout(record), "r", record.offset_bytes, (record.samples,))
    for start in range(0, record.samples, rows):
        piece = np.asarray(stored[start : start + rows])
        bits = np.unpackbits(np.ascontiguousarray(piece["status"]).view(np.uint8), axis=1, bitorder="little")
        yield (
            piece["number"].astype(np.int64),
            piece["stamp"].astype(np.float64),
            np.ascontiguousarray(piece["analog"].T),
            bits.astype(np.int64),
        )


def _ascii_rows(record: Record, rows: int) -> Iterator[_Rows]:
    names = ["sample number", "time stamp", *record.columns[1 : 1 + len(record.analogs)]]
    names += [f"status {i}" for i in range(1, record.statuses + 1)]
    keys = [str(i) for i in range(len(names))]
    analogs = len(record.analogs)
    try:
        with pa.memory_map(str(record.values_path)) as file:
            octets = file.read_buffer().slice(record.offset_bytes, record.size_bytes)
            end = len(octets)
            while end and octets.slice(end - 1).to_pybytes() in (b"\x1a", b"\r", b"\n", b" "):
                octets = octets.slice(0, end := end - 1)
            with pc.open_csv(
                pa.BufferReader(octets),
                read_options=pc.ReadOptions(use_threads=False, block_size=_BLOCK_BYTES, column_names=keys),
                parse_options=pc.ParseOptions(quote_char=False),
                convert_options=pc.ConvertOptions(column_types=dict.fromkeys(keys, pa.float64()), null_values=[""]),
            ) as reader:
                for batch in reader:
                    for start in range(0, batch.num_rows, rows):
                        piece = batch.slice(start, rows)
                        cells = np.stack([c.to_numpy(zero_copy_only=False) for c in piece.columns])
                        if not (np.abs(cells[0]) < 1e15).all() or not np.isin(cells[2 + analogs :], (0, 1)).all():
                            raise ArchiveError(f"{record.values_path}: a sample number or status channel is no number")
                        status = cells[2 + analogs :].T.astype(np.int64)
                        yield cells[0].astype(np.int64), cells[1], cells[2 : 2 + analogs], status
    except pa.ArrowInvalid as error:
        raise ArchiveError(f"{record.values_path}{_plainly(str(error), names)}") from error


def _plainly(message: str, names: Sequence[str]) -> str:
    """Say in our words what Arrow says of a row."""
    found = _WHERE.search(message)
    if found is None:
        return ": there are no rows in it" if "Empty CSV" in message else f": cannot be read as ASCII rows: {message}"
    column, row, rest = found.groups()
    if column is None:
        return f", line {row}: {rest.splitlines()[0][:120]}; every row has {len(names)} cells"
    value = re.search(r"invalid value '(.*)'", rest, re.DOTALL)
    return f", line {row}, {names[int(column)]!r}: {value[1][:40]!r} is no number" if value else f", line {row}: {rest}"
