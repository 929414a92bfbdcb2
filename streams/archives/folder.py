"""A folder of archives, by day and source: which of its files count, and their frames back in order of event time.

In: `date=YYYY-MM-DD/source=NAME/NAME-FIRST-LAST-KIND.parquet`, where FIRST and LAST are the offsets of the log that the
file covers and KIND stands for the stream's configuration; `position.json`, the offset up to which the folder is
whole. Where the log has partitions, each has all of this in a folder of its own, `partition=N`. Each frame counts once,
whatever a writer is doing to the folder meanwhile. It writes nothing.

A file at or after the position does not count (its batch is not complete), nor does one whose offsets lie within those
of another file of its kind in its place (the other was joined from it). A writer makes the joined file before it
removes the parts, so two listings that agree show one or the other.
"""

from __future__ import annotations

import hashlib
import heapq
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from streams.archives.archive import Span
from streams.archives.columns import TIME
from streams.archives.metadata import Description
from streams.archives.parquet import read_description, read_parquet, take
from streams.block import FrameBatch
from streams.errors import ArchiveError

POSITION = "position.json"
"""File that says up to which offset the folder is whole."""
ROWS = 4096
"""Frames of a file that are read at once."""

_LONGEST = 120
_NAME = re.compile(r"(?P<source>.+)-(?P<first>\d+)-(?P<last>\d+)-(?P<kind>[0-9a-f]{8})\.parquet")
_DATE = re.compile(r"date=\d{4}-\d{2}-\d{2}")
_SHARE = re.compile(r"partition=\d+")


class _Position(msgspec.Struct, frozen=True):
    """What a reader wants of the position file."""

    next: int


@dataclass(frozen=True, slots=True)
class FolderFile:
    """A file of the folder, as far as its name says.

    Attributes
    ----------
    path
        Where.
    first, last
        Offsets of the log that it covers for its source, both included.
    kind
        Eight hexadecimal digits: files of one source and kind hold one stream under one configuration.
    """

    path: Path
    first: int
    last: int
    kind: str


@dataclass(frozen=True, slots=True)
class Chain:
    """All files of one stream under one configuration.

    Attributes
    ----------
    partitions
        Folders of one day each, in order.
    kind
        See `FolderFile`.
    position
        Offset up to which files count; None for all.
    description
        Table, rate and configuration.
    first
        Lowest offset.
    """

    partitions: tuple[Path, ...]
    kind: str
    position: int | None
    description: Description
    first: int


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder of archives, opened.

    Attributes
    ----------
    path
        The folder, one partition of the log in it, or one day or source of that.
    positions
        Offset up to which files count, by partition of the log: ``partition=3``, or empty where it has one. What has no
        position file is not named: all its files count.
    chains
        By source, and in the order in which its configurations came.
    """

    path: Path
    positions: dict[str, int]
    chains: tuple[Chain, ...]


def source_name(source: str) -> str:
    """Write a source's name so that it can be a file's.

    Parameters
    ----------
    source
        Any text.

    Returns
    -------
    str
        Percent-encoded, as Hive partitions are; cut, with a digest, where it would be too long. Never empty, never
        with a dot in front, never two alike.
    """
    escaped = quote(source, safe="")
    if escaped.startswith("."):
        escaped = "%2E" + escaped[1:]
    if len(escaped) > _LONGEST:
        escaped = f"{escaped[:_LONGEST]}%{hashlib.sha256(source.encode()).hexdigest()[:16]}"
    return escaped or "%"


def share_of(root: Path, partition: int) -> Path:
    """Say where the frames of one partition of the log stand, where it has several.

    Parameters
    ----------
    root
        The folder.
    partition
        Number of the log's partition.

    Returns
    -------
    Path
        A folder like one of a log with a single partition, whether it is there or not.
    """
    return root / f"partition={partition}"


def shares(path: Path) -> list[Path]:
    """List the folders that hold a partition of the log each.

    Parameters
    ----------
    path
        The folder, or any within it.

    Returns
    -------
    list[Path]
        It itself first, then each ``partition=N`` in it by number.
    """
    parts = [p for p in _names(path) if _SHARE.fullmatch(p.name)]
    return [path, *sorted(parts, key=lambda p: int(p.name.removeprefix("partition=")))]


def partition_of(root: Path, day: int, source: str) -> Path:
    """Say where a source's files of a day stand.

    Parameters
    ----------
    root
        The folder.
    day
        Days since 1970 of the frames' time, UTC.
    source
        Name of the source.

    Returns
    -------
    Path
        Of the partition, whether it is there or not.
    """
    return root / f"date={np.datetime64(day, 'D')}" / f"source={source_name(source)}"


def file_in(partition: Path, first: int, last: int, kind: str) -> Path:
    """Name a file.

    Parameters
    ----------
    partition
        From `partition_of` or `partitions`.
    first
        First offset that it covers.
    last
        Last offset that it covers.
    kind
        See `FolderFile`.

    Returns
    -------
    Path
        Of the file, whether it is there or not.
    """
    return partition / f"{partition.name.removeprefix('source=')}-{first:012d}-{last:012d}-{kind}.parquet"


def day_of(partition: Path) -> int:
    """Say which day a partition holds.

    Parameters
    ----------
    partition
        From `partitions`.

    Returns
    -------
    int
        Days since 1970, UTC.
    """
    return int(np.datetime64(partition.parent.name.removeprefix("date="), "D").astype(np.int64))


def partitions(path: Path) -> list[Path]:
    """List the partitions of a folder.

    Parameters
    ----------
    path
        The folder, a day of it, or one source of a day.

    Returns
    -------
    list[Path]
        `date=.../source=...`, by date and name.
    """
    if path.name.startswith("source=") and _DATE.fullmatch(path.parent.name):
        return [path]
    days = [path] if _DATE.fullmatch(path.name) else [d for d in _names(path) if _DATE.fullmatch(d.name)]
    return [p for day in days for p in _names(day) if p.name.startswith("source=")]


def written(partition: Path) -> list[FolderFile]:
    """List all files of a partition, those that do not count included.

    Parameters
    ----------
    partition
        From `partitions`.

    Returns
    -------
    list[FolderFile]
        In order of offsets.
    """
    found = [(p, _NAME.fullmatch(p.name)) for p in _names(partition)]
    files = [FolderFile(p, int(m["first"]), int(m["last"]), m["kind"]) for p, m in found if m]
    return sorted(files, key=lambda f: (f.first, -f.last, f.kind))


def superseded(files: Sequence[FolderFile]) -> list[FolderFile]:
    """Find the files that were joined into another one.

    Parameters
    ----------
    files
        From `written`.

    Returns
    -------
    list[FolderFile]
        Those whose offsets lie within those of another of their kind.
    """
    out: list[FolderFile] = []
    reach: dict[str, int] = {}
    for file in files:
        if file.last <= reach.get(file.kind, -1):
            out.append(file)
        reach[file.kind] = max(file.last, reach.get(file.kind, -1))
    return out


def files_of(partition: Path, position: int | None) -> list[FolderFile]:
    """List the files of a partition that count.

    Parameters
    ----------
    partition
        From `partitions`.
    position
        Offset up to which files count; None for all.

    Returns
    -------
    list[FolderFile]
        In order of offsets.
    """
    files, before = written(partition), None
    while files != before:
        files, before = written(partition), files
    gone = set(superseded(files))
    return [f for f in files if f not in gone and (position is None or f.first < position)]


def open_folder(path: Path) -> Folder:
    """Find out what a folder holds.

    Parameters
    ----------
    path
        The folder, a partition of the log in it (``partition=...``), a day (``date=...``), or one source of a day.

    Returns
    -------
    Folder
        For `read_chain`.

    Raises
    ------
    ArchiveError
        If there is no archive in it.
    """
    path = path.resolve()
    positions: dict[str, int] = {}
    chains: list[Chain] = []
    for share in shares(path):
        position = _position(share)
        if position is not None:
            positions["" if share == path else share.name] = position
        chains += _chains(share, position)
    if not chains:
        raise ArchiveError(f"{path}: no archive is in this folder; name one that `gridsense archive` wrote")
    return Folder(path, positions, tuple(sorted(chains, key=lambda c: (c.partitions[0].name, c.first, c.kind))))


def _chains(share: Path, position: int | None) -> Iterator[Chain]:
    """Find the streams of one partition of the log."""
    found: dict[tuple[str, str], list[FolderFile]] = {}
    for partition in partitions(share):
        for file in files_of(partition, position):
            found.setdefault((partition.name, file.kind), []).append(file)
    for (_, kind), files in found.items():
        places = tuple(dict.fromkeys(f.path.parent for f in files))
        description = read_description(files[0].path)
        yield Chain(places, kind, position, description, min(f.first for f in files))


def read_chain(
    chain: Chain, *, rows: int = ROWS, dtype: type[np.float32 | np.float64] = np.float32
) -> Iterator[FrameBatch]:
    """Read one stream's frames, day by day.

    Parameters
    ----------
    chain
        From `open_folder`.
    rows
        Frames of a file that are read at once.
    dtype
        Precision of `values`.

    Yields
    ------
    FrameBatch
        In order of event time, all of one table.
    """
    for partition in chain.partitions:
        paths = [f.path for f in files_of(partition, chain.position) if f.kind == chain.kind]
        for batch in read_in_order(paths, rows=rows, dtype=dtype):
            yield replace(batch, table=chain.description.table)


def measure_chain(chain: Chain) -> Span:
    """Say how much one stream holds, from what the files say of themselves.

    Parameters
    ----------
    chain
        From `open_folder`.

    Returns
    -------
    Span
        Frames and times.
    """
    spans = [span_of(f.path) for p in chain.partitions for f in files_of(p, chain.position) if f.kind == chain.kind]
    firsts, lasts = [s.first_ns for s in spans if s.first_ns], [s.last_ns for s in spans if s.last_ns]
    return Span(sum(s.frames for s in spans), min(firsts, default=None), max(lasts, default=None))


def span_of(path: Path) -> Span:
    """Say how much a file holds, from its footer.

    Parameters
    ----------
    path
        One of the folder.

    Returns
    -------
    Span
        Frames and times.

    Raises
    ------
    ArchiveError
        If the file cannot be read, or was joined or removed since the folder was listed.
    """
    try:
        footer = pq.read_metadata(path)
    except FileNotFoundError as error:
        raise ArchiveError(f"{path}: was joined or removed while the folder was read; read it again") from error
    except (OSError, pa.ArrowException) as error:
        raise ArchiveError(f"{path}: cannot be read as Parquet: {error}") from error
    at = footer.schema.names.index(TIME)
    stated = [footer.row_group(g).column(at).statistics for g in range(footer.num_row_groups)]
    return Span(
        footer.num_rows, min((s.min_raw for s in stated), default=None), max((s.max_raw for s in stated), default=None)
    )


def read_in_order(
    paths: Sequence[Path], *, rows: int = ROWS, dtype: type[np.float32 | np.float64] = np.float32
) -> Iterator[FrameBatch]:
    """Read files of one stream as one, in order of event time.

    Holds a chunk of each file whose time has come, so files that do not overlap are read one after another.

    Parameters
    ----------
    paths
        In order of offsets; each in order of time within itself.
    rows
        Frames of a file that are read at once.
    dtype
        Precision of `values`.

    Yields
    ------
    FrameBatch
        The frames of all files, none left out, none twice.
    """
    spans = [span_of(path) for path in paths]
    # what a file still holds is not before the time beside it
    waiting = [
        (span.first_ns, i, read_parquet(path, rows=rows, dtype=dtype))
        for i, (span, path) in enumerate(zip(spans, paths, strict=True))
        if span.first_ns is not None
    ]
    heapq.heapify(waiting)
    held: list[FrameBatch] = []
    while waiting:
        _, i, chunks = heapq.heappop(waiting)
        chunk = next(chunks, None)
        if chunk is not None:
            held.append(chunk)
            heapq.heappush(waiting, (int(chunk.time_ns[-1]), i, chunks))
        if not held:
            continue
        together = in_order(held)
        cut = int(np.searchsorted(together.time_ns, waiting[0][0], "right")) if waiting else len(together.time_ns)
        if cut:
            yield take(together, slice(0, cut))
        held = [take(together, slice(cut, None))] if cut < len(together.time_ns) else []


def in_order(batches: Sequence[FrameBatch]) -> FrameBatch:
    """Put frames of one stream in order of event time.

    Parameters
    ----------
    batches
        Of one table; at least one.

    Returns
    -------
    FrameBatch
        All of them; frames of one time stay in the order in which they are given.
    """
    first = batches[0]
    whole = first
    if len(batches) > 1:
        whole = FrameBatch(
            first.table,
            first.rate_hz,
            np.concatenate([b.time_ns for b in batches]),
            np.concatenate([b.time_flags for b in batches]),
            np.concatenate([b.stat for b in batches]),
            np.concatenate([b.values for b in batches]),
            np.concatenate([b.arrival_ns for b in batches]),
        )
    if (np.diff(whole.time_ns) >= 0).all():
        return whole
    return take(whole, np.argsort(whole.time_ns, kind="stable"))


def _position(path: Path) -> int | None:
    """Read the position of the folder that a path is, or lies in."""
    root = path
    while root.name.startswith(("source=", "date=")):
        root = root.parent
    try:
        return msgspec.json.decode((root / POSITION).read_bytes(), type=_Position).next
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise ArchiveError(f"{root / POSITION}: cannot be read: {error}; restore it from a copy") from error


def _names(folder: Path) -> list[Path]:
    """List a folder, sorted."""
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:  # removed since its parent was listed
        return []
    except OSError as error:
        raise ArchiveError(f"{folder}: cannot be listed: {error.strerror or error}") from error
