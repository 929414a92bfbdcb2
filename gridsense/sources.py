"""Files in, rounds of frame batches out: whatever the format, what a live source would have said, in its order.

A round holds a second or two of every source, so that sources in one file, or in several, stand side by side when the
pipeline aligns them. It decodes and judges nothing itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from gridsense.errors import InputError
from streams.archives import read_parquet
from streams.block import FrameBatch
from streams.captures import read_frames

Round = list[tuple[str, FrameBatch]]
"""Source and frames, each source any number of times."""

ROUND_S = 2.0
"""Event time of a round: long enough that the arrays are worth their calls, short enough for a screen."""
_PARQUET_MAGIC = b"PAR1"


def read_rounds(paths: Sequence[Path], round_s: float = ROUND_S) -> Iterator[Round]:
    """Read several files side by side in event time.

    Parameters
    ----------
    paths
        Captures and archives, told apart by what they hold.
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
    if not paths:
        raise InputError(
            "no file was named; give captures (.pcap, .PmuCapture, raw bytes) or archives (.parquet, .csv)"
        )
    readers = [_Reader(path, round_s) for path in paths]
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


class _Reader:
    """One file, read up to a moment at a time."""

    def __init__(self, path: Path, round_s: float) -> None:
        self._groups = _groups(path)
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


def _groups(path: Path) -> Iterator[Round]:
    """Batches of a file that belong to one stretch of it; a source may carry several streams, told apart by ID code."""
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    if magic != _PARQUET_MAGIC:
        for source, item in read_frames(path):
            if isinstance(item, FrameBatch) and len(item.time_ns):
                yield [(f"{source}#{item.table.pmus[0].id_code}", item)]
        return
    group: Round = []
    for batch in read_parquet(path, rows=4096):
        name = f"{batch.table.pmus[0].source}#{batch.table.pmus[0].id_code}"
        if any(name == other for other, _ in group):
            yield group
            group = []
        if len(batch.time_ns):
            group.append((name, batch))
    if group:
        yield group
