"""Any archive, ours or somebody else's, behind one pair of functions.

In: a Parquet or CSV file or a COMTRADE record, and a channel map if there is one. Out: its channel table, rate and
remarks, then its frames. It reads no captures.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from streams.archives import metadata
from streams.archives.comtrade import Record, is_record, open_record, own_description, read_own
from streams.archives.foreign import ForeignTable, open_table, read_table
from streams.archives.parquet import frames_of, read_description, read_parquet, read_times, shares_of
from streams.archives.placing import Plan
from streams.block import FrameBatch
from streams.errors import ArchiveError


@dataclass(frozen=True, slots=True)
class Archive:
    """An archive whose columns are known.

    Attributes
    ----------
    path
        The file.
    description
        Channel table, rate, and the configuration frames that it holds.
    foreign
        How a file of somebody else's is read; None for our own.
    record
        The COMTRADE record where it is one of our own.
    """

    path: Path
    description: metadata.Description
    foreign: ForeignTable | None = None
    record: Record | None = None

    @property
    def form(self) -> str:
        """What the file is: ``parquet``, ``csv`` or ``comtrade``."""
        dialect = self.foreign.dialect if self.foreign else self.record
        return "comtrade" if isinstance(dialect, Record) else "csv" if dialect else "parquet"

    @property
    def plan(self) -> Plan | None:
        """What the columns were taken for; None where the metadata says it."""
        return self.foreign.plan if self.foreign else None

    @property
    def notes(self) -> tuple[str, ...]:
        """What was assumed, in sentences."""
        return self.foreign.notes if self.foreign else self.record.notes if self.record else ()


def is_archive(path: str | os.PathLike[str]) -> bool:
    """Tell by its first bytes whether a file is Parquet, COMTRADE or text, rather than a capture.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    bool
        True for Parquet, for COMTRADE and for text; an empty file is text. An `ArchiveError` says what cannot be read.
    """
    head = _head(Path(path))
    if head.startswith(b"PAR1") or is_record(Path(path), head):
        return True
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.end < len(head) - 3:  # else the piece ended within a letter
            return False
        text = head[: error.start].decode("utf-8")
    return all(c.isprintable() or c in "\t\r\n\ufeff" for c in text)


def open_archive(path: str | os.PathLike[str], channels: str | os.PathLike[str] | None = None) -> Archive:
    """Find out what an archive holds.

    Parameters
    ----------
    path
        Parquet, CSV or COMTRADE.
    channels
        A map of the columns for a file of somebody else's; None to guess from their names.

    Returns
    -------
    Archive
        For `read_archive`. An `ArchiveError` says what cannot be read, or which column cannot be placed.
    """
    path = Path(path)
    if channels is None:
        head = _head(path)
        if head.startswith(b"PAR1") and _is_ours(path):
            return Archive(path, read_description(path))
        if is_record(path, head):
            record = open_record(path)
            description = own_description(record)
            if description is not None:
                return Archive(path, description, record=record)
    foreign = open_table(path, channels)
    return Archive(path, metadata.Description(foreign.table, foreign.rate_hz, {}), foreign)


def read_archive(
    archive: Archive, *, rows: int = 65_536, dtype: type[np.float32 | np.float64] = np.float32
) -> Iterator[FrameBatch]:
    """Read an archive's frames.

    Parameters
    ----------
    archive
        From `open_archive`.
    rows
        Reporting times in a batch, at most.
    dtype
        Precision of `values`.

    Returns
    -------
    Iterator[FrameBatch]
        In the order of the file; one batch a source where several stand side by side.
    """
    if archive.foreign is not None:
        return read_table(archive.foreign, rows=rows, dtype=dtype)
    if archive.record is not None:
        return _read_own(archive.record, archive.description, rows, dtype)
    return read_parquet(archive.path, rows=rows, dtype=dtype)


def _read_own(
    record: Record, description: metadata.Description, rows: int, dtype: type[np.float32 | np.float64]
) -> Iterator[FrameBatch]:
    shares = shares_of(description.table)
    for batch in read_own(record, description.table, rows):
        yield from frames_of(batch, shares, description.rate_hz, dtype)


@dataclass(frozen=True, slots=True)
class Span:
    """How much an archive holds.

    Attributes
    ----------
    frames
        Data frames: a row, counted once for each source that sent something in it.
    first_ns
        Earliest time; None for an empty archive.
    last_ns
        Latest.
    """

    frames: int
    first_ns: int | None
    last_ns: int | None


def measure(archive: Archive) -> Span:
    """Read an archive through to say how much it holds; of our own the times only.

    Parameters
    ----------
    archive
        From `open_archive`.

    Returns
    -------
    Span
        Counts and times.
    """
    ours = archive.foreign is None and archive.record is None
    times = read_times(archive.path) if ours else (b.time_ns for b in read_archive(archive))
    frames, first, last = 0, None, None
    for time_ns in times:
        if len(time_ns):
            low, high = int(time_ns.min()), int(time_ns.max())
            frames += len(time_ns)
            first, last = min(low, low if first is None else first), max(high, high if last is None else last)
    return Span(frames, first, last)


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(4096)
    except OSError as error:
        raise ArchiveError(f"{path}: cannot be read: {error.strerror}") from error


def _is_ours(path: Path) -> bool:
    try:
        return metadata.KEY in (pq.read_schema(path).metadata or {})
    except OSError as error:
        raise ArchiveError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ArchiveError(f"{path}: cannot be read as Parquet: {error}") from error
