"""A folder of archives made orderly: many small files of a day joined into one, old files removed.

In: a folder that counts up to its position. Out: the same frames in fewer files, less what is too old. A joined file
appears whole under a name that holds the offsets of its parts, which do not count from then on; only then are they
removed. It reads no log.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gridsense.archiving import durable
from gridsense.archiving.decoding import Stream
from gridsense.archiving.writing import UNDECODED, Archiver, Report, Step, write_file
from streams.archives.folder import (
    FolderFile,
    day_of,
    file_in,
    files_of,
    partitions,
    read_in_order,
    span_of,
    written,
)
from streams.archives.parquet import read_description
from streams.block import FrameBatch
from streams.errors import ArchiveError

_DAY_NS = 86_400_000_000_000


@dataclass(frozen=True, slots=True)
class Settings:
    """When files are joined and removed.

    Attributes
    ----------
    compact_after_s
        Seconds after the end of a day (UTC) from which on its small files are joined.
    retention_days
        Days after which a file goes, counted from the end of its day and from when it was written, whichever is later,
        so that old frames that came late are kept as long as others; 0: never.
    least_files
        Small files in a row that are worth joining.
    small_bytes
        Size below which a file is small.
    """

    compact_after_s: float = 3600.0
    retention_days: float = 0.0
    least_files: int = 4
    small_bytes: int = 1 << 26


def tidy(archiver: Archiver, settings: Settings, now_ns: int, report: Report) -> None:
    """Join and remove what is due. An `ArchiveError` says that the folder cannot be read or written.

    Parameters
    ----------
    archiver
        Recovered, its folder held; counts what is done.
    settings
        See `Settings`.
    now_ns
        The time, UTC.
    report
        Told after each step.
    """
    folder, totals = archiver.settings.folder, archiver.totals
    for partition in partitions(folder):
        over_ns = now_ns - (day_of(partition) + 1) * _DAY_NS
        if settings.retention_days and over_ns > settings.retention_days * _DAY_NS:
            old = [f.path for f in written(partition)]
            totals.removed += _remove_old(old, settings, now_ns, report)
            _remove_empty(partition)
        if over_ns > settings.compact_after_s * 1e9:
            for parts in _runs(files_of(partition, archiver.position), settings):
                _join(partition, parts, report)
                totals.joined += len(parts)
    if settings.retention_days:
        totals.removed += _remove_old(sorted((folder / UNDECODED).glob("*.c37118")), settings, now_ns, report)


def _runs(files: Sequence[FolderFile], settings: Settings) -> Iterator[list[FolderFile]]:
    """Find small files that follow each other: nothing of their kind lies between them."""
    for kind in sorted({f.kind for f in files}):
        run: list[FolderFile] = []
        for file in (f for f in files if f.kind == kind):
            if file.path.stat().st_size < settings.small_bytes:
                run.append(file)
                continue
            if len(run) >= settings.least_files:
                yield run
            run = []
        if len(run) >= settings.least_files:
            yield run


def _join(partition: Path, parts: Sequence[FolderFile], report: Report) -> None:
    paths = [f.path for f in parts]
    description = read_description(paths[0])
    source, kind = description.table.pmus[0].source, parts[0].kind
    stream = Stream(kind, description.configurations.get(source, b""))
    frames = sum(span_of(p).frames for p in paths)
    joined = file_in(partition, parts[0].first, parts[-1].last, kind)
    write_file(joined, source, stream, _counted(read_in_order(paths, dtype=np.float64), frames, partition))
    newest_ns = max(p.stat().st_mtime_ns for p in paths)
    os.utime(joined, ns=(newest_ns, newest_ns))
    report(Step.JOINED)
    for path in paths:
        durable.remove(path)
        report(Step.REMOVED)


def _counted(batches: Iterator[FrameBatch], frames: int, partition: Path) -> Iterator[FrameBatch]:
    """Pass frames on; refuse the end, and so the file, where they are not as many as the parts hold."""
    for batch in batches:
        frames -= len(batch.time_ns)
        yield batch
    if frames:
        raise ArchiveError(f"{partition}: {frames} frames are missing after joining; its files are left as they are")


def _remove_old(paths: Sequence[Path], settings: Settings, now_ns: int, report: Report) -> int:
    """Remove what was written long enough ago."""
    oldest_ns = now_ns - round(settings.retention_days * _DAY_NS)
    old = [p for p in paths if p.stat().st_mtime_ns < oldest_ns]
    for path in old:
        durable.remove(path)
        report(Step.REMOVED)
    return len(old)


def _remove_empty(partition: Path) -> None:
    """Remove a partition, and its day, where nothing is left in them."""
    for folder in (partition, partition.parent):
        if next(folder.iterdir(), None) is not None:
            return
        folder.rmdir()
