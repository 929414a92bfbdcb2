"""Files in, rounds of frame batches out: whatever the format, what a live source would have said, in its order.

A round holds a second or two of every source, so that sources in one file, or in several, stand side by side when the
pipeline aligns them. It decodes and judges nothing itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from gridsense.errors import InputError, UsageError
from streams.archives import Archive, is_archive, open_archive, read_archive
from streams.archives.folder import Chain, Folder, open_folder, read_chain
from streams.block import FrameBatch
from streams.captures import read_frames

Source = Archive | Folder | Path
"""An archive or a folder of archives opened, or the path of a capture."""
Round = list[tuple[str, FrameBatch]]
"""Stream and frames, each stream any number of times."""

ROUND_S = 2.0
"""Event time of a round: long enough that the arrays are worth their calls, short enough for a screen."""
ARCHIVE_ROWS = 4096
"""Reporting times of an archive that are read at once."""


def open_source(path: Path, channels: Path | None = None) -> Source:
    """Find out what a file is, by what it holds.

    Parameters
    ----------
    path
        A capture, an archive, or a folder of archives.
    channels
        Map of the columns, for a table of somebody else's.

    Returns
    -------
    Source
        The archive or folder opened, or the path of a capture.

    Raises
    ------
    UsageError
        If a map is given for a capture or a folder.
    """
    if path.is_dir():
        if channels is not None:
            raise UsageError(f"--channels is for tables; {path} is a folder of archives, which name their channels")
        return open_folder(path)
    if is_archive(path):
        return open_archive(path, channels)
    if channels is not None:
        raise UsageError(f"--channels is for tables; {path} is a capture, which names its channels itself")
    return path


def read_rounds(sources: Sequence[Source], round_s: float = ROUND_S) -> Iterator[Round]:
    """Read several files side by side in event time.

    Parameters
    ----------
    sources
        From `open_source`.
    round_s
        Event time of a round.

    Yields
    ------
    Round
        Frames of one stretch of event time, of all files.

    Raises
    ------
    InputError
        If no file was named.
    """
    if not sources:
        raise InputError(
            "no file was named; give captures (.pcap, .PmuCapture, raw bytes) or archives (.parquet, .csv, .cfg, .cff)"
        )
    readers = [_Reader(part, round_s) for source in sources for part in _parts(source)]
    horizon = min((r.time_ns for r in readers if r.time_ns is not None), default=None)
    while horizon is not None:
        horizon += round(round_s * 1e9)
        together: Round = []
        for reader in readers:
            together += reader.until(horizon)
        if together:
            yield together
        nearest = min((r.time_ns for r in readers if r.time_ns is not None), default=None)
        horizon = None if nearest is None else max(horizon, nearest)


_Part = Archive | Chain | Path


def _parts(source: Source) -> Sequence[_Part]:
    """Part a source into what is read on its own: the streams of a folder run beside each other, in their own files."""
    return source.chains if isinstance(source, Folder) else (source,)


class _Reader:
    """One file, or one stream of a folder, read up to a moment at a time."""

    def __init__(self, source: _Part, round_s: float) -> None:
        self._groups = _groups(source)
        self._ahead_ns = round(round_s * 1e9)
        self._held: Round = []
        self._newest = -(1 << 62)
        self._read()

    @property
    def time_ns(self) -> int | None:
        """First time not given out yet; None at the end of the file."""
        return min((int(b.time_ns.min()) for _, b in self._held), default=None)

    def until(self, horizon_ns: int) -> Round:
        """Give out the frames before a moment, having read somewhat past it: sources of one file take turns."""
        while self._newest < horizon_ns + self._ahead_ns and self._read():
            pass
        out: Round = []
        kept: Round = []
        for name, batch in self._held:
            before = batch.time_ns < horizon_ns
            for part, rows in ((out, before), (kept, ~before)):
                if rows.any():
                    part.append((name, batch if rows.all() else cut(batch, rows)))
        self._held = kept
        return out

    def _read(self) -> bool:
        group = next(self._groups, None)
        if group is None:
            return False
        self._held += group
        self._newest = max(self._newest, *(int(b.time_ns.max()) for _, b in group))
        return True


def cut(batch: FrameBatch, rows: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> FrameBatch:
    """Keep some frames of a batch.

    Parameters
    ----------
    batch
        Any batch.
    rows
        `(T,)` which.

    Returns
    -------
    FrameBatch
        Of the same table.
    """
    return replace(
        batch,
        time_ns=batch.time_ns[rows],
        time_flags=batch.time_flags[rows],
        stat=batch.stat[rows],
        values=batch.values[rows],
        arrival_ns=batch.arrival_ns[rows],
    )


def _groups(source: _Part) -> Iterator[Round]:
    """Batches of one stretch of a file: its streams take turns, so a name that returns begins the next."""
    group: dict[str, FrameBatch] = {}
    for name, batch in _batches(source):
        if name in group:
            yield list(group.items())
            group = {}
        group[name] = batch
    if group:
        yield list(group.items())


def _batches(source: _Part) -> Iterator[tuple[str, FrameBatch]]:
    """Every batch of a file with the name of its stream: a source may carry several, told apart by ID code."""
    if isinstance(source, Path):
        batches = ((name, item) for name, item in read_frames(source) if isinstance(item, FrameBatch))
    else:
        read = read_chain(source) if isinstance(source, Chain) else read_archive(source, rows=ARCHIVE_ROWS)
        batches = ((batch.table.pmus[0].source, batch) for batch in read)
    for name, batch in batches:
        if len(batch.time_ns):
            yield f"{name}#{batch.table.pmus[0].id_code}", batch
