"""COMTRADE records of our own: a channel a column of our Parquet archives, the channel table in the `.inf`.

In: a channel table, or a record with one. Out: the names of the channels, and the rows as those of a Parquet archive.
It writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from streams.archives import metadata
from streams.archives.columns import STAT, TIME, TIME_FLAGS, signal_columns, source_column, sources_of, stat_column
from streams.archives.comtrade.configuration import Record
from streams.archives.comtrade.rows import read_record
from streams.channels import ChannelTable

SECTION = "[GridSense Channel_Table]"
"""Private section of the `.inf` that holds the channel table, as `DESCRIPTION` and JSON."""
DESCRIPTION = "Description="


def own_columns(table: ChannelTable) -> tuple[str, ...]:
    """Name the channels of a record of our own.

    Parameters
    ----------
    table
        All PMUs, of one source or several.

    Returns
    -------
    tuple[str, ...]
        The time flags of each source, then the STAT word and the channels of each PMU.
    """
    sources = sources_of(table)
    flags = [source_column(TIME_FLAGS, s, sources) for s in sources]
    return (*flags, *(c for p in table.pmus for c in (stat_column(p.name), *signal_columns(p))))


def cell(text: str) -> str:
    """Make a text safe between the commas of a configuration; `columns.unescape` undoes it.

    Parameters
    ----------
    text
        Without line ends.

    Returns
    -------
    str
        Without commas and without space around it.
    """
    return text.replace(",", "%2C").strip()


def own_description(record: Record) -> metadata.Description | None:
    """Find the channel table of a record of our own.

    Parameters
    ----------
    record
        From `open_record`.

    Returns
    -------
    metadata.Description | None
        None where there is none, or where the channels are no longer those that it tells. An `ArchiveError` says where
        it cannot be read.
    """
    lines = [line.strip() for line in record.inf.replace("\r", "\n").split("\n")]
    if SECTION not in lines:
        return None
    after = lines[lines.index(SECTION) + 1 :]
    text = next((line for line in after if line.startswith(DESCRIPTION)), "")
    description = metadata.decode(text.removeprefix(DESCRIPTION).encode())
    expected = [cell(c) for c in own_columns(description.table)]
    same = expected == [a.name for a in record.analogs] and not record.words
    return description if same and all(a.ratio == 1 for a in record.analogs) else None


def read_own(record: Record, table: ChannelTable, rows: int) -> Iterator[pa.RecordBatch]:
    """Read the rows of a record of our own, with the columns of a Parquet archive.

    Parameters
    ----------
    record
        From `open_record`.
    table
        From `own_description`.
    rows
        In a chunk, at most.

    Yields
    ------
    pa.RecordBatch
        Time flags are null where a source sent nothing.
    """
    names = own_columns(table)
    flags = len(sources_of(table))
    for batch in read_record(record, record.columns, rows):
        columns = list(batch.columns)
        for i, name in enumerate(names, 1):
            if i <= flags or name.rpartition(".")[2] == STAT:
                cells = columns[i].to_numpy(zero_copy_only=False)
                words = np.nan_to_num(cells).astype(np.uint8 if i <= flags else np.uint16)
                columns[i] = pa.array(words, mask=np.isnan(cells))
        yield pa.RecordBatch.from_arrays(columns, [TIME, *names])
