"""Tables that others wrote: CSV files, COMTRADE records, and Parquet files without our metadata, to frame batches.

In: a file with a time column and a column a signal, a map or nothing. Out: what its columns were taken for, its
reporting rate, and its rows as frame batches, chunk by chunk, in bounded memory. An empty cell is NaN. It fills no gap
and moves no stamp.
"""

from __future__ import annotations

import csv
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from streams.archives import placing
from streams.archives.clock import MAX_RATE_HZ, check_order, detect_rate, to_nanoseconds
from streams.archives.comtrade import Record, is_record, open_record, place, read_record, refusal
from streams.archives.placing import Plan
from streams.block import FrameBatch
from streams.channels import ChannelTable
from streams.errors import ArchiveError

_BLOCK_BYTES = 1 << 22
_PEEK_BYTES = 1 << 16
_PEEK_ROWS = 512
_EMPTY = ["", "nan", "NaN", "NAN", "NA", "N/A", "null", "NULL", "None", "-nan", "#N/A"]
_WHERE = re.compile(r"(?:In CSV column #(\d+): )?Row #(\d+): (.*)", re.DOTALL)
_INVALID = re.compile(r"invalid value '(.*)'", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a CSV file is written.

    Attributes
    ----------
    columns
        Names, in order.
    delimiter
        Between cells.
    decimal_point
        In numbers: a full stop, or a comma where cells are parted by semicolons.
    skipped
        Comment lines before the header.
    units
        By column, from the row of units; empty where there is none.
    has_units
        True where the second row is one of units.
    """

    columns: tuple[str, ...]
    delimiter: str
    decimal_point: str
    skipped: int
    units: dict[str, str]
    has_units: bool

    @property
    def first_line(self) -> int:
        """Line of the first row of values, counted from 1."""
        return self.skipped + 2 + self.has_units


@dataclass(frozen=True, slots=True)
class ForeignTable:
    """A file whose columns are placed and whose rate is known.

    Attributes
    ----------
    path
        The file.
    dialect
        How it is written, or the COMTRADE record that it is; None for Parquet.
    plan
        What its columns are.
    table
        The channel table that follows.
    rate_hz
        Detected reporting rate, frames a second.
    notes
        What was assumed and a reader should know, in sentences.
    """

    path: Path
    dialect: Dialect | Record | None
    plan: Plan
    table: ChannelTable
    rate_hz: float
    notes: tuple[str, ...]


def open_table(path: str | os.PathLike[str], channels: str | os.PathLike[str] | None = None) -> ForeignTable:
    """Place the columns of a table and detect its rate.

    Parameters
    ----------
    path
        A CSV file, a COMTRADE record, or a Parquet file of somebody else's.
    channels
        A map of its columns (see `placing.read_map`); None to guess from the names.

    Returns
    -------
    ForeignTable
        Ready to be read; `plan` and `notes` are for printing.

    Raises
    ------
    ArchiveError
        If the file cannot be read, a column cannot be placed, or the stamps tell no rate.
    """
    path = Path(path)
    head = _head(path)
    if is_record(path, head):
        return _open_record(path, channels)
    dialect = None if head.startswith(b"PAR1") else sniff(path)
    columns: Sequence[str] = dialect.columns if dialect else _parquet_columns(path)
    for name, count in Counter(columns).items():
        if count > 1:
            raise ArchiveError(f"{path}: {count} columns are called {name!r}; names must be unique")
    units = dialect.units if dialect else {}
    try:
        plan = placing.read_map(channels, columns) if channels else placing.guess(columns, units, path.stem)
        time_ns, peeked = _peek(path, dialect, plan)
        rate_hz = detect_rate(time_ns)
    except ArchiveError as error:
        raise ArchiveError(_named(error, path)) from error
    plan, nominal_hz, notes = placing.look_at_values(plan, peeked, units)
    if plan.ignored:
        notes = (
            f"{len(plan.ignored)} columns are not in the map and are left out: {', '.join(plan.ignored[:8])}",
            *notes,
        )
    return ForeignTable(path, dialect, plan, plan.table(path.stem, nominal_hz), rate_hz, notes)


def _open_record(path: Path, channels: str | os.PathLike[str] | None) -> ForeignTable:
    """Place the channels of a COMTRADE record; it states what a CSV file leaves to its numbers."""
    record = open_record(path)
    try:
        plan = place(record, channels)
        time_ns, peeked = _peek(path, record, plan)
        rate_hz = record.rate_hz or _stamped_rate(path, time_ns)
    except ArchiveError as error:
        raise ArchiveError(_named(error, path, record.values_path)) from error
    plan, nominal_hz, notes = placing.look_at_values(plan, peeked, record.units)
    if record.nominal_hz:
        nominal_hz, notes = record.nominal_hz, tuple(n for n in notes if "nominal one" not in n)
    if plan.ignored:
        notes = (f"{len(plan.ignored)} channels are left out: {', '.join(plan.ignored[:8])}", *notes)
    table = plan.table(path.stem, nominal_hz)
    return ForeignTable(path, record, plan, table, rate_hz, (*record.notes, *notes))


def _named(error: ArchiveError, *paths: Path) -> str:
    """Put the file's name before a message that names none of the files."""
    return str(error) if str(error).startswith(tuple(map(str, paths))) else f"{paths[0]}: {error}"


def _stamped_rate(path: Path, time_ns: NDArray[np.int64]) -> float:
    """Tell the rate of a record that has stamps only."""
    apart_ns = float(np.median(np.diff(time_ns))) if len(time_ns) > 1 else np.inf
    if apart_ns * MAX_RATE_HZ * 2 < 1e9:
        raise ArchiveError(refusal(path, 1e9 / apart_ns))
    return detect_rate(time_ns)


def read_table(
    source: ForeignTable, *, rows: int = 65_536, dtype: type[np.float32 | np.float64] = np.float32
) -> Iterator[FrameBatch]:
    """Read the rows of a table.

    Parameters
    ----------
    source
        From `open_table`.
    rows
        Reporting times in a batch, at most.
    dtype
        Precision of `values`.

    Yields
    ------
    FrameBatch
        In the order of the file; STAT is 0 where it has no column.

    Raises
    ------
    ArchiveError
        If a cell is no number or no time, or if times do not rise; the message names line and column.
    """
    table, plan = source.table, source.plan
    places = _places(plan, table)
    line = source.dialect.first_line if source.dialect else 1
    last_ns: int | None = None
    try:
        for record in _records(source.path, source.dialect, plan, rows):
            time_ns = to_nanoseconds(record.column(plan.time), plan.time, line)
            if not len(time_ns):
                continue
            check_order(time_ns, last_ns, line)
            stat = np.zeros((len(time_ns), len(table.pmus)), np.uint16)
            planes: NDArray[Any] = np.full((len(table.pmus), table.width, len(time_ns)), np.nan, dtype)
            for placement, (s, c) in zip(plan.placements, places, strict=True):
                cells = _numbers(record, placement.column)
                if placement.quantity is None:
                    stat[:, s] = np.nan_to_num(cells).astype(np.int64) & 0xFFFF
                else:
                    planes[s, c] = cells if placement.scale == 1 else cells * placement.scale
            yield FrameBatch(
                table=table,
                rate_hz=source.rate_hz,
                time_ns=time_ns,
                time_flags=np.zeros(len(time_ns), np.uint8),
                stat=stat,
                values=np.ascontiguousarray(planes.transpose(2, 0, 1)),
                arrival_ns=time_ns,
            )
            line += len(time_ns)
            last_ns = int(time_ns[-1])
    except ArchiveError as error:
        values = source.dialect.values_path if isinstance(source.dialect, Record) else source.path
        raise ArchiveError(_named(error, source.path, values)) from error


def sniff(path: Path) -> Dialect:
    """Tell how a CSV file is written from its first lines.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    Dialect
        Names of the columns, and how cells and numbers are written.

    Raises
    ------
    ArchiveError
        If it cannot be read, is empty, or is no text.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_PEEK_BYTES)
            while len(head) < (1 << 24) and head.count(b"\n") < 4 and (more := file.read(_PEEK_BYTES)):
                head += more
    except OSError as error:
        raise ArchiveError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        text = head[: head.rfind(b"\n") + 1 or None].decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ArchiveError(f"{path}: is neither a capture nor an archive, nor text in UTF-8") from error
    lines = text.splitlines()
    skipped = next((i for i, line in enumerate(lines) if line.strip() and not line.startswith("#")), len(lines))
    lines = lines[skipped : skipped + 8]
    if not lines:
        raise ArchiveError(f"{path}: is empty; the first line names the columns")
    delimiter = max(",;\t", key=lines[0].count)
    rows = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=delimiter)]
    columns = tuple(next(csv.reader(lines[:1], delimiter=delimiter)))
    cells = [cell for row in rows[1:] for cell in row]
    decimal_point = "," if delimiter == ";" and any(re.fullmatch(r"-?\d+,\d+", c) for c in cells) else "."
    second = rows[1] if len(rows) > 1 else []
    has_units = any(second) and not any(_is_number(cell) for cell in second) and not _is_time(second[0])
    units = dict(zip(columns, second, strict=False)) if has_units else {}
    return Dialect(columns, delimiter, decimal_point, skipped, units, bool(has_units))


def _is_number(cell: str) -> bool:
    try:
        float(cell.replace(",", "."))
    except ValueError:
        return False
    return cell.lower() != "nan"


def _is_time(cell: str) -> bool:
    return bool(re.match(r"\d{2,4}[-/.:]\d", cell))


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(4096)
    except OSError as error:
        raise ArchiveError(f"{path}: cannot be read: {error.strerror}") from error


def _parquet_columns(path: Path) -> list[str]:
    try:
        return list(pq.read_schema(path).names)
    except (OSError, pa.ArrowException) as error:
        raise ArchiveError(f"{path}: cannot be read as Parquet: {error}") from error


def _places(plan: Plan, table: ChannelTable) -> list[tuple[int, int]]:
    """Find each column's place on the axes: channels of a PMU stand in the order of its columns."""
    taken: Counter[int] = Counter()
    places = []
    for placement in plan.placements:
        s = table.index[placement.pmu]
        places.append((s, taken[s]))
        taken[s] += placement.quantity is not None
    return places


def _peek(
    path: Path, dialect: Dialect | Record | None, plan: Plan
) -> tuple[NDArray[np.int64], dict[str, NDArray[np.float64]]]:
    """Read the first rows, to tell the rate and what the numbers look like."""
    for record in _records(path, dialect, plan, _PEEK_ROWS):
        time_ns = to_nanoseconds(record.column(plan.time), plan.time, dialect.first_line if dialect else 1)
        if len(time_ns):
            check_order(time_ns, None, dialect.first_line if dialect else 1)
            return time_ns, {p.column: _numbers(record, p.column) for p in plan.placements}
    raise ArchiveError("there are no rows of values")


def _records(path: Path, dialect: Dialect | Record | None, plan: Plan, rows: int) -> Iterator[pa.RecordBatch]:
    """Read the planned columns, some rows at a time."""
    names = [plan.time, *(p.column for p in plan.placements)]
    if isinstance(dialect, Record):
        yield from read_record(dialect, names, rows)
        return
    if dialect is None:
        try:
            with pq.ParquetFile(path) as file:
                yield from file.iter_batches(batch_size=rows, columns=names)
        except (OSError, pa.ArrowException) as error:
            raise ArchiveError(f"cannot be read as Parquet: {error}") from error
        return
    try:
        with _open_csv(path, dialect, names, plan.time) as reader:
            for record in reader:
                for start in range(0, record.num_rows, rows):
                    yield record.slice(start, rows)
    except pa.ArrowInvalid as error:
        raise ArchiveError(_plainly(str(error), dialect)) from error
    except (OSError, pa.ArrowException) as error:
        raise ArchiveError(f"cannot be read as CSV: {error}") from error


def _open_csv(path: Path, dialect: Dialect, names: list[str], time: str) -> pc.CSVStreamingReader:
    types = {name: pa.string() if name == time else pa.float64() for name in names}
    return pc.open_csv(
        path,
        # without threads a message names the row
        read_options=pc.ReadOptions(
            use_threads=False,
            block_size=_BLOCK_BYTES,
            column_names=list(dialect.columns),
            skip_rows=dialect.first_line - 1,
        ),
        parse_options=pc.ParseOptions(delimiter=dialect.delimiter),
        convert_options=pc.ConvertOptions(
            column_types=types,
            include_columns=names,
            null_values=_EMPTY,
            strings_can_be_null=True,
            decimal_point=dialect.decimal_point,
        ),
    )


def _plainly(message: str, dialect: Dialect) -> str:
    """Say in our words what Arrow says of a row."""
    found = _WHERE.search(message)
    if found is None:
        if "Empty CSV" in message:
            return "there are no rows of values"
        return f"cannot be read as CSV: {message}"
    column, row, rest = found.groups()
    line = int(row)
    if column is None:
        return f"line {line}: {rest.splitlines()[0][:120]}; every row needs {len(dialect.columns)} cells"
    value = _INVALID.search(rest)
    cell = repr(value[1][:40]) if value else "a cell"
    return f"line {line}, column {dialect.columns[int(column)]!r}: {cell} is not a number; leave it empty if unknown"


def _numbers(record: pa.RecordBatch, name: str) -> NDArray[np.float64]:
    """Read a column as numbers; nulls are NaN."""
    column = record.column(name)
    try:
        if pa.types.is_boolean(column.type):
            column = column.cast(pa.uint8())
        return np.asarray(column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False), np.float64)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ArchiveError(f"column {name!r} of type {column.type} does not hold numbers") from error
