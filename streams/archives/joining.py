"""Archives of several sources, set side by side: one row a slot of the reporting grid.

In: archives of one rate, each running forward in time, of different sources. Out: one archive. Each source keeps its
own stamps in `<source>.time`; `time` is the slot's. Where a source sent nothing its columns are null. It resamples
nothing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from streams.archives import metadata
from streams.archives.columns import ARRIVAL, TIME, TIME_FLAGS, check_names, source_column, sources_of
from streams.archives.parquet import encodings, read_description
from streams.channels import ChannelTable
from streams.errors import ArchiveError

_DAY_NS = 86_400_000_000_000
_STAMP = pa.timestamp("ns", tz="UTC")
_ROWS = 16_384
_OWN = (TIME, TIME_FLAGS, ARRIVAL)


def slots(time_ns: NDArray[np.int64], rate_hz: float, origin_ns: int) -> NDArray[np.int64]:
    """Count reporting times from an origin.

    Parameters
    ----------
    time_ns
        `(T,)`.
    rate_hz
        Frames a second.
    origin_ns
        Time of slot 0: a midnight, on which every rate's grid stands.

    Returns
    -------
    NDArray[np.int64]
        `(T,)`: round((t - origin) * rate).
    """
    # an int64 of nanoseconds is exact as float64 for a hundred days
    slot: NDArray[np.int64] = np.rint((time_ns - origin_ns) * (rate_hz / 1e9)).astype(np.int64)
    return slot


def midnight(time_ns: int) -> int:
    """Find the origin for `slots`.

    Parameters
    ----------
    time_ns
        Any time of the first day.

    Returns
    -------
    int
        The midnight before it, UTC.
    """
    return time_ns // _DAY_NS * _DAY_NS


@dataclass(slots=True)
class _Part:
    """One archive that is being read: rows that have not been written yet."""

    records: Iterator[pa.RecordBatch]
    rename: dict[str, str]
    rate_hz: float
    origin_ns: int
    held: pa.Table | None = None
    slot: NDArray[np.int64] | None = None
    ended: bool = False

    def fill(self) -> None:
        """Have rows, or be ended."""
        while (self.slot is None or not len(self.slot)) and not self.ended:
            record = next(self.records, None)
            if record is None:
                self.ended = True
            else:
                time_ns = np.asarray(record.column(TIME).cast(pa.int64()), np.int64)
                self.held = pa.Table.from_batches([record.rename_columns(self.rename)])
                self.slot = slots(time_ns, self.rate_hz, self.origin_ns)

    def release(self, until: int) -> tuple[pa.Table | None, NDArray[np.int64]]:
        """Hand out the rows up to a slot."""
        if self.slot is None or self.held is None:
            return None, np.zeros(0, np.int64)
        cut = int(np.searchsorted(self.slot, until, "right"))
        out = self.held.slice(0, cut), self.slot[:cut]
        self.held, self.slot = self.held.slice(cut), self.slot[cut:]
        return out


def join_parquet(
    parts: Sequence[Path], path: str | os.PathLike[str], configurations: Mapping[str, bytes] | None = None
) -> int:
    """Set archives side by side.

    Parameters
    ----------
    parts
        Archives of one source each, of one rate, rising in time by at least a slot from row to row. A single one is
        copied.
    path
        Replaced when it exists, and only when all is written.
    configurations
        By source, beside those that the parts hold.

    Returns
    -------
    int
        Rows written.

    Raises
    ------
    ArchiveError
        If the parts differ in rate, share a source or a PMU's name, or if a file cannot be read or written.
    """
    described = [read_description(p) for p in parts]
    rates = {d.rate_hz for d in described}
    if len(rates) > 1:
        raise ArchiveError(f"sources of {', '.join(f'{r:g}' for r in sorted(rates))} Hz do not stand side by side")
    table = ChannelTable(tuple(p for d in described for p in d.table.pmus))
    check_names(table)
    sources = sources_of(table)
    if len(sources) != sum(len(sources_of(d.table)) for d in described):
        raise ArchiveError("two archives of one source do not stand side by side")
    known = {s: c for d in described for s, c in d.configurations.items()} | dict(configurations or {})
    about = {metadata.KEY: metadata.encode(metadata.Description(table, described[0].rate_hz, known))}
    target = Path(path)
    unfinished = target.with_name(target.name + ".part")
    try:
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(pq.ParquetFile(p)) for p in parts]
            renames = [_rename(f.schema_arrow, d.table, sources) for f, d in zip(files, described, strict=True)]
            schema = _joined_schema(files, renames, about)
            writer = stack.enter_context(pq.ParquetWriter(unfinished, schema, **encodings(schema)))
            first = min(_first_time(f) for f in files)
            reading = [
                _Part(f.iter_batches(batch_size=_ROWS), rename, described[0].rate_hz, midnight(first))
                for f, rename in zip(files, renames, strict=True)
            ]
            rows = 0
            for joined in _join(reading, schema, alone=len(parts) == 1):
                writer.write_table(joined)
                rows += joined.num_rows
        unfinished.replace(target)
    except (OSError, pa.ArrowException) as error:
        raise ArchiveError(f"{path}: cannot be written: {error}") from error
    finally:
        unfinished.unlink(missing_ok=True)
    return rows


def _rename(schema: pa.Schema, table: ChannelTable, sources: tuple[str, ...]) -> dict[str, str]:
    """Map a part's names to those of the joined file: what a source has once gets the source's name before it."""
    own = sources_of(table)
    names = {name: name for name in schema.names}
    if len(own) == 1:
        names |= {kind: source_column(kind, own[0], sources) for kind in _OWN if kind in names}
    return names


def _joined_schema(
    files: Sequence[pq.ParquetFile], renames: Sequence[dict[str, str]], about: dict[bytes, bytes]
) -> pa.Schema:
    fields = {TIME: pa.field(TIME, _STAMP, nullable=False)}
    for file, rename in zip(files, renames, strict=True):
        for field in file.schema_arrow:
            name = rename[field.name]
            fields.setdefault(name, field.with_name(name).with_nullable(True))
    return pa.schema(list(fields.values()), metadata=about)


def _first_time(file: pq.ParquetFile) -> int:
    record = next(file.iter_batches(batch_size=1, columns=[TIME]), None)
    return int(record.column(0).cast(pa.int64())[0].as_py()) if record is not None and record.num_rows else 0


def _join(parts: Sequence[_Part], schema: pa.Schema, *, alone: bool) -> Iterator[pa.Table]:
    """Merge by slot; each turn writes up to the earliest last slot that is held, so that little is."""
    while True:
        for part in parts:
            part.fill()
        ends = [int(p.slot[-1]) for p in parts if p.slot is not None and len(p.slot)]
        if not ends:
            return
        released = [part.release(min(ends)) for part in parts]
        if alone:  # a copy: rows may repeat or go back in time
            yield _copy(released[0][0], schema)
            continue
        together = np.unique(np.concatenate([slot for _, slot in released]))
        columns = {TIME: pa.array(_times(together, parts[0])).cast(_STAMP)}
        for rows, slot in released:
            if rows is None:
                continue
            place = np.searchsorted(slot, together).clip(max=max(0, len(slot) - 1))
            there = slot[place] == together if len(slot) else np.zeros(len(together), bool)
            spread = rows.take(pa.array(place, mask=~there))
            columns |= {name: spread.column(name) for name in spread.column_names}
        yield _fill(columns, schema, len(together))


def _copy(rows: pa.Table | None, schema: pa.Schema) -> pa.Table:
    return schema.empty_table() if rows is None else pa.Table.from_arrays(rows.columns, schema=schema)


def _times(slot: NDArray[np.int64], part: _Part) -> NDArray[np.int64]:
    time_ns: NDArray[np.int64] = part.origin_ns + np.rint(slot * (1e9 / part.rate_hz)).astype(np.int64)
    return time_ns


def _fill(columns: dict[str, pa.ChunkedArray], schema: pa.Schema, rows: int) -> pa.Table:
    """Put nulls where no part has the column yet."""
    return pa.Table.from_arrays(
        [columns[f.name] if f.name in columns else pa.nulls(rows, f.type) for f in schema], schema=schema
    )
