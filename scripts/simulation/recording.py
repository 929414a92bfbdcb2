"""A stream on its way to the file: values, STAT words and which concentrator sent a frame, editable.

In: noisy values. Out: a Parquet archive. Blemishes and data faults change a `Recording` in place, as they are called.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from scripts.simulation.grid import Placement
from scripts.simulation.measurement import RATE_HZ, quantise
from streams.archives import write_parquet
from streams.block import FrameBatch

STAT_OK = 0x0000
STAT_ERROR = 0x4000
"""Bits 15-14 are 01: the PMU reports an error."""
STAT_ABSENT = 0x8000
"""Bits 15-14 are 10: test mode or absent data, what a concentrator says for a PMU that sent nothing."""
STAT_UNSYNCHRONISED = 0x2000 | 0x01C0 | 0x0010
"""Out of sync, time quality worse than 10 ms, unlocked for 10 s or more."""


@dataclass(slots=True)
class Recording:
    """One stream, before it is quantised.

    Attributes
    ----------
    placement
        Where the PMUs stand.
    start_ns
        Time of the first frame.
    values
        `(T, S, 6)` float64, angles not wrapped.
    stat
        `(T, S)` uint16.
    sent
        `(T, sources)`: False where a concentrator's frame never came.
    """

    placement: Placement
    start_ns: int
    values: NDArray[np.float64]
    stat: NDArray[np.uint16]
    sent: NDArray[np.bool_]

    @property
    def duration_s(self) -> float:
        """Length."""
        return len(self.values) / RATE_HZ


def record(values: NDArray[np.float64], placement: Placement, start_ns: int) -> Recording:
    """Begin a recording in which all is well.

    Parameters
    ----------
    values
        `(T, S, 6)`; it is copied.
    placement
        Where the PMUs stand.
    start_ns
        Time of the first frame.

    Returns
    -------
    Recording
        All sent, all STAT words good.
    """
    frames, pmus = values.shape[:2]
    stat = np.full((frames, pmus), STAT_OK, np.uint16)
    return Recording(placement, start_ns, values.copy(), stat, np.ones((frames, len(placement.sources)), bool))


def write_recording(path: Path, recording: Recording) -> None:
    """Write the archive.

    Parameters
    ----------
    path
        Replaced when it exists.
    recording
        What to write.
    """
    values = quantise(recording.values, recording.placement)
    frame = np.arange(len(values))
    time_ns = recording.start_ns + (frame * 1_000_000_000 + RATE_HZ // 2) // RATE_HZ
    flags = np.zeros(len(values), np.uint8)
    sent = recording.sent[:, recording.placement.source_of]
    values[~sent] = np.nan
    write_parquet(
        path,
        FrameBatch(recording.placement.table, float(RATE_HZ), time_ns, flags, recording.stat, values, time_ns),
    )
    if not recording.sent.all():
        _drop_unsent(path, recording)


def _drop_unsent(path: Path, recording: Recording) -> None:
    """Put nulls where a concentrator sent nothing; `write_parquet` takes whole rows only."""
    table = pq.read_table(path)
    source_of = {p.name: recording.placement.sources.index(p.source) for p in recording.placement.table.pmus}
    source_of |= {s: k for k, s in enumerate(recording.placement.sources)}
    columns = []
    for name in table.column_names:
        column = table[name].combine_chunks()
        k = source_of.get(name.split(".")[0])
        if k is not None:
            column = pa.array(column.to_numpy(zero_copy_only=False), column.type, mask=~recording.sent[:, k])
        columns.append(column)
    floats = [f.name for f in table.schema if pa.types.is_floating(f.type)]
    pq.write_table(
        pa.Table.from_arrays(columns, schema=table.schema),
        path,
        row_group_size=len(recording.values),
        compression="zstd",
        compression_level=9,
        use_dictionary=[f.name for f in table.schema if pa.types.is_integer(f.type)],
        column_encoding=dict.fromkeys(floats, "BYTE_STREAM_SPLIT") | {"time": "DELTA_BINARY_PACKED"},
        write_statistics=["time"],
    )
