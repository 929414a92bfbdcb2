"""Parquet archives: one row a reporting time, a column a signal, nothing masked.

In: frame batches, as sent. Out: a file with columns `time`, `<pmu>.<channel>.<quantity>`, `<pmu>.stat` and the channel
table in its metadata; and the batches back, chunk by chunk, one batch a source. Where several sources stand side by
side, a source that sent nothing at a time has nulls in that row. It judges no value.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from streams.archives import metadata
from streams.archives.columns import (
    ARRIVAL,
    TIME,
    TIME_FLAGS,
    check_names,
    signal_columns,
    source_column,
    sources_of,
    stat_column,
)
from streams.block import FrameBatch
from streams.channels import ChannelTable
from streams.errors import ArchiveError

_STAMP = pa.timestamp("ns", tz="UTC")
_GROUP_VALUES = 8_000_000
"""Values in a row group: what the writer and the reader hold in memory at a time (64 MB as float64)."""

_Floats = type[np.float32 | np.float64]


class ArchiveWriter:
    """Writes an archive batch by batch. Used in a `with`; the file appears under its name when that ends without error.

    Parameters
    ----------
    path
        Replaced when it exists.
    first
        Tells the channel table, the rate, the precision, and whether arrival times are known; not written by itself.
    configurations
        By source (`Pmu.source`): the C37.118 configuration frames that the values came under, for the way back.
    group_rows
        Rows in a row group; None for as many as make some megabytes.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        first: FrameBatch,
        configurations: Mapping[str, bytes] | None = None,
        group_rows: int | None = None,
    ) -> None:
        self.path = Path(path)
        self.rows = 0
        self._first = first
        self._configurations = dict(configurations or {})
        self._limit = group_rows or max(1024, _GROUP_VALUES // max(1, int(first.table.present.sum())))
        self._group: list[FrameBatch] = []
        self._held = 0

    def __enter__(self) -> Self:
        """Open the file.

        Returns
        -------
        Self
            Open.

        Raises
        ------
        ArchiveError
            If two PMUs share a name, or if the file cannot be written.
        """
        check_names(self._first.table)
        self._schema = _schema(self._first, self._configurations)
        self._part = self.path.with_name(self.path.name + ".part")
        try:
            self._writer = pq.ParquetWriter(self._part, self._schema, **encodings(self._schema))
        except (OSError, pa.ArrowException) as error:
            raise ArchiveError(f"{self.path}: cannot be written: {error}") from error
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """Finish the file, or remove what there is of it after an error.

        Parameters
        ----------
        kind
            Class of the error, or None.
        error
            The error, or None.
        trace
            Where it came from, or None.

        Raises
        ------
        ArchiveError
            If the rest cannot be written.
        """
        try:
            if kind is None:
                self._flush()
            self._writer.close()
            if kind is None:
                self._part.replace(self.path)
        except (OSError, pa.ArrowException) as reason:
            raise ArchiveError(f"{self.path}: cannot be written: {reason}") from reason
        finally:
            self._part.unlink(missing_ok=True)

    def write(self, batch: FrameBatch) -> None:
        """Append frames.

        Parameters
        ----------
        batch
            Of the same table and rate as the first.

        Raises
        ------
        ArchiveError
            If table or rate differ, or if the file cannot be written.
        """
        first = self._first
        if batch.table is not first.table and batch.table != first.table:
            raise ArchiveError("the channels change in mid-stream; an archive holds one table, so write two")
        if batch.rate_hz != first.rate_hz:
            raise ArchiveError(f"the rate changes from {first.rate_hz:g} to {batch.rate_hz:g} Hz; write two archives")
        for start in range(0, len(batch.time_ns), self._limit):
            piece = take(batch, slice(start, start + self._limit))
            self._group.append(piece)
            self._held += len(piece.time_ns)
            if self._held >= self._limit:
                self._flush()

    def _flush(self) -> None:
        """Write what is held as a row group."""
        if not self._group:
            return
        columns = _arrays(self._group, self._schema)
        try:
            self._writer.write_table(pa.Table.from_arrays(columns, schema=self._schema), row_group_size=self._held)
        except (OSError, pa.ArrowException) as error:
            raise ArchiveError(f"{self.path}: cannot be written: {error}") from error
        self.rows += self._held
        self._group, self._held = [], 0


def write_parquet(
    path: str | os.PathLike[str],
    batches: FrameBatch | Iterable[FrameBatch],
    *,
    configurations: Mapping[str, bytes] | None = None,
) -> int:
    """Write frames to a Parquet archive.

    The values are written in the precision of the first batch. The column `arrival` is written when the first batch
    knows of an arrival time other than the time of measurement.

    Parameters
    ----------
    path
        Replaced when it exists, and only when all is written.
    batches
        One batch, or several of one table, in the order in which they shall stand.
    configurations
        By source (`Pmu.source`): the C37.118 configuration frames that the values came under, for the way back.

    Returns
    -------
    int
        Rows written.

    Raises
    ------
    ArchiveError
        If there is no batch, if the batches differ in table or rate, or if the file cannot be written.
    """
    stream = iter((batches,) if isinstance(batches, FrameBatch) else batches)
    first = next(stream, None)
    if first is None:
        raise ArchiveError(f"{path}: nothing to write: no frame came")
    with ArchiveWriter(path, first, configurations) as writer:
        for batch in itertools.chain((first,), stream):
            writer.write(batch)
    return writer.rows


def read_parquet(
    path: str | os.PathLike[str],
    *,
    rows: int = 65_536,
    dtype: _Floats = np.float32,
) -> Iterator[FrameBatch]:
    """Read an archive written by `write_parquet`, chunk by chunk.

    Parameters
    ----------
    path
        The file.
    rows
        Reporting times in a chunk, at most.
    dtype
        Precision of `values`.

    Yields
    ------
    FrameBatch
        For each chunk one batch a source that sent anything in it, in the order of the table.

    Raises
    ------
    ArchiveError
        If the file cannot be read, or is a Parquet file of somebody else's.
    """
    try:
        with pq.ParquetFile(path) as file:
            description = describe(file.schema_arrow, path)
            shares = shares_of(description.table)
            for record in file.iter_batches(batch_size=rows):
                yield from frames_of(record, shares, description.rate_hz, dtype)
    except (OSError, pa.ArrowException) as error:
        raise ArchiveError(f"{path}: cannot be read as Parquet: {error}") from error


def read_times(path: str | os.PathLike[str]) -> Iterator[NDArray[np.int64]]:
    """Read the times of an archive written by `write_parquet`, and nothing else.

    Parameters
    ----------
    path
        The file.

    Yields
    ------
    NDArray[np.int64]
        `(T,)` of one source's frames in one chunk.

    Raises
    ------
    ArchiveError
        If the file cannot be read, or is a Parquet file of somebody else's.
    """
    try:
        with pq.ParquetFile(path) as file:
            sources = sources_of(describe(file.schema_arrow, path).table)
            names = [source_column(TIME, s, sources) for s in sources]
            for record in file.iter_batches(columns=names):
                for name in names:
                    yield np.asarray(record.column(name).drop_null().cast(_STAMP).cast(pa.int64()), np.int64)
    except (OSError, pa.ArrowException) as error:
        raise ArchiveError(f"{path}: cannot be read as Parquet: {error}") from error


def read_description(path: str | os.PathLike[str]) -> metadata.Description:
    """Read the channel table, rate and configuration frames of an archive.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    metadata.Description
        From its metadata; no value is read.

    Raises
    ------
    ArchiveError
        If the file cannot be read, or is a Parquet file of somebody else's.
    """
    try:
        schema = pq.read_schema(path)
    except (OSError, pa.ArrowException) as error:
        raise ArchiveError(f"{path}: cannot be read as Parquet: {error}") from error
    return describe(schema, path)


def describe(schema: pa.Schema, path: str | os.PathLike[str]) -> metadata.Description:
    """Find the description in a schema.

    Parameters
    ----------
    schema
        Of an opened file.
    path
        For the message.

    Returns
    -------
    metadata.Description
        What `write_parquet` put there.

    Raises
    ------
    ArchiveError
        If it is not there.
    """
    text = (schema.metadata or {}).get(metadata.KEY)
    if text is None:
        raise ArchiveError(f"{path}: a Parquet file without GridSense's metadata; its columns must be placed by a map")
    return metadata.decode(text)


def _schema(first: FrameBatch, configurations: dict[str, bytes]) -> pa.Schema:
    """Lay out the columns of a file for batches like the first one."""
    table, sources = first.table, sources_of(first.table)
    number = pa.float32() if first.values.dtype == np.float32 else pa.float64()
    fields = [pa.field(TIME, _STAMP, nullable=False)]
    if len(sources) > 1:
        fields += [pa.field(source_column(TIME, s, sources), _STAMP) for s in sources]
    fields += [pa.field(source_column(TIME_FLAGS, s, sources), pa.uint8()) for s in sources]
    if not np.array_equal(first.arrival_ns, first.time_ns):
        fields += [pa.field(source_column(ARRIVAL, s, sources), _STAMP) for s in sources]
    for pmu in table.pmus:
        fields.append(pa.field(stat_column(pmu.name), pa.uint16()))
        for name, channel in zip(signal_columns(pmu), pmu.channels, strict=True):
            about = {"unit": channel.unit, "quantity": str(channel.quantity), "phase": str(channel.phase)}
            if channel.nominal is not None:
                about["nominal"] = repr(float(channel.nominal))
            fields.append(pa.field(name, number, metadata=about))
    about_all = metadata.encode(metadata.Description(table, first.rate_hz, configurations))
    return pa.schema(fields, metadata={metadata.KEY: about_all})


def encodings(schema: pa.Schema) -> dict[str, Any]:
    """Choose how each column is packed: floats by byte planes, words by dictionary, times by differences.

    Parameters
    ----------
    schema
        Of an archive.

    Returns
    -------
    dict[str, Any]
        For `pyarrow.parquet.ParquetWriter`.
    """
    floats = [f.name for f in schema if pa.types.is_floating(f.type)]
    words = [f.name for f in schema if pa.types.is_integer(f.type)]
    times = [f.name for f in schema if pa.types.is_timestamp(f.type)]
    return {
        "compression": "zstd",
        "compression_level": 6,
        "use_dictionary": words,
        "column_encoding": dict.fromkeys(floats, "BYTE_STREAM_SPLIT") | dict.fromkeys(times, "DELTA_BINARY_PACKED"),
        "write_statistics": times,
    }


def take(batch: FrameBatch, rows: slice | NDArray[Any]) -> FrameBatch:
    """Take some frames of a batch.

    Parameters
    ----------
    batch
        Left as it is.
    rows
        Which frames: a slice, a mask or places.

    Returns
    -------
    FrameBatch
        These alone.
    """
    return FrameBatch(
        table=batch.table,
        rate_hz=batch.rate_hz,
        time_ns=batch.time_ns[rows],
        time_flags=batch.time_flags[rows],
        stat=batch.stat[rows],
        values=batch.values[rows],
        arrival_ns=batch.arrival_ns[rows],
    )


def _arrays(group: list[FrameBatch], schema: pa.Schema) -> list[pa.Array]:
    """Turn a row group's batches into columns, in the order of the schema."""
    table = group[0].table
    sources = sources_of(table)
    time_ns = np.concatenate([b.time_ns for b in group])
    flags = np.concatenate([b.time_flags for b in group])
    stat = np.concatenate([b.stat for b in group])
    values = np.concatenate([b.values for b in group])
    stamps = pa.array(time_ns).cast(_STAMP)
    columns: dict[str, pa.Array] = {TIME: stamps}
    arrival = pa.array(np.concatenate([b.arrival_ns for b in group])).cast(_STAMP)
    for source in sources:
        columns[source_column(TIME, source, sources)] = stamps
        columns[source_column(TIME_FLAGS, source, sources)] = pa.array(flags)
        columns[source_column(ARRIVAL, source, sources)] = arrival
    planes = np.ascontiguousarray(values.transpose(1, 2, 0))
    for s, pmu in enumerate(table.pmus):
        columns[stat_column(pmu.name)] = pa.array(stat[:, s])
        for c, name in enumerate(signal_columns(pmu)):
            columns[name] = pa.array(planes[s, c])
    return [columns[f.name].cast(f.type) for f in schema]


def shares_of(table: ChannelTable) -> dict[str, ChannelTable]:
    """Part the table by source.

    Parameters
    ----------
    table
        All PMUs of an archive.

    Returns
    -------
    dict[str, ChannelTable]
        The PMUs of each source, in order of first mention.
    """
    return {s: ChannelTable(tuple(p for p in table.pmus if p.source == s)) for s in sources_of(table)}


def frames_of(
    record: pa.RecordBatch,
    shares: dict[str, ChannelTable],
    rate_hz: float,
    dtype: _Floats,
) -> Iterator[FrameBatch]:
    """Cut a chunk of rows into one batch a source.

    Parameters
    ----------
    record
        Rows with the columns of an archive of ours.
    shares
        From `shares_of`.
    rate_hz
        Reporting rate, frames a second.
    dtype
        Precision of `values`.

    Yields
    ------
    FrameBatch
        Of each source that sent anything in these rows.
    """
    sources = tuple(shares)
    for source, own in shares.items():
        own_time = source_column(TIME, source, sources)
        # Where every source stands on the file's own times, those are its own.
        time_ns = _integers(record, own_time if own_time in record.schema.names else TIME, np.int64)
        flags = record.column(source_column(TIME_FLAGS, source, sources))
        sent = flags.is_valid().to_numpy(zero_copy_only=False)
        if not sent.any():
            continue
        arrival_name = source_column(ARRIVAL, source, sources)
        arrival = _integers(record, arrival_name, np.int64) if arrival_name in record.schema.names else time_ns
        stat = np.stack([_integers(record, stat_column(p.name), np.uint16) for p in own.pmus], 1)
        planes: NDArray[Any] = np.full((len(own.pmus), own.width, len(time_ns)), np.nan, dtype)
        for s, pmu in enumerate(own.pmus):
            for c, name in enumerate(signal_columns(pmu)):
                planes[s, c] = record.column(name).to_numpy(zero_copy_only=False)
        values: NDArray[Any] = np.ascontiguousarray(planes.transpose(2, 0, 1))
        rows = slice(None) if sent.all() else sent
        yield FrameBatch(
            table=own,
            rate_hz=rate_hz,
            time_ns=time_ns[rows],
            time_flags=_integers(record, source_column(TIME_FLAGS, source, sources), np.uint8)[rows],
            stat=stat[rows],
            values=values[rows],
            arrival_ns=arrival[rows],
        )


def _integers(record: pa.RecordBatch, name: str, dtype: type[Any]) -> NDArray[Any]:
    """Read an integer or time column as an array; nulls as 0."""
    column = record.column(name)
    if pa.types.is_timestamp(column.type):
        column = column.cast(_STAMP).cast(pa.int64())
    return np.asarray(column.fill_null(0).to_numpy(zero_copy_only=False), dtype)
