"""The two structures that flow: decoded frames as sent, and the aligned block with a reason per sample.

`FrameBatch` is what a source said, unjudged. `Block` is what the scorers see. Both are immutable by convention: a stage
makes a new one. Axes: `T` frames, `S` PMUs, `C` channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from streams.channels import ChannelTable

MARK_ONLY = 128
"""Reasons from here on are remarks: the sample is used. Reasons from 1 to 127 mask: the sample is not used."""


class Reason(IntEnum):
    """Why a sample is not plainly good. 0 is good; below `MARK_ONLY` it is masked, from there on it is only marked."""

    GOOD = 0
    ABSENT = 1
    """Padding: the PMU has no such channel."""
    MISSING = 2
    """No frame came for this reporting time."""
    NOT_A_NUMBER = 3
    """The field held NaN, an infinity or the integer filler 0x8000."""
    PMU_ERROR = 4
    """STAT 15-14 is 01 or 11."""
    TEST_MODE = 5
    """STAT 15-14 is 10: test mode, or data absent (filler)."""
    OUT_OF_SYNC = 6
    """STAT 13, unlocked over 1000 s, or time quality too poor for an angle."""
    SORTED_BY_ARRIVAL = 7
    """STAT 12: the time stamp is not the measurement's."""
    ZERO = 8
    """A magnitude or frequency of exactly zero where the device measures something else."""
    STUCK = 9
    """Bits unchanged for longer than noise allows."""
    SPIKE = 10
    """One frame far from its own neighbours in time, with no voltage disturbance to explain it."""
    ANGLE_WRAP = 11
    """Mean of +180 and -180: the device averaged over the wrap."""
    OUT_OF_RANGE = 12
    """Outside what the device can measure (never: outside what is usual)."""
    COVERAGE = 13
    """Too little of the window is good for a derived value."""
    TIME_QUALITY = MARK_ONLY
    """Time quality 4 or worse, or unlocked: usable, not proud of it."""
    DATA_MODIFIED = MARK_ONLY + 1
    """STAT 9: somebody upstream filled in or changed the value."""
    EXCURSION = MARK_ONLY + 2
    """Outside the usual range: a fault, or bad for long. Never masked for that alone."""
    SUSPECT_SPIKE = MARK_ONLY + 3
    """One frame far from its neighbours, in a quantity in which a fault looks like that."""
    TRIGGER = MARK_ONLY + 4
    """STAT 11: the device's own trigger fired."""


@dataclass(frozen=True, slots=True)
class FrameBatch:
    """Data frames of one source under one configuration, as sent: nothing masked, nothing moved.

    Attributes
    ----------
    table
        The PMUs and channels of the source.
    rate_hz
        Configured reporting rate in frames a second (below 1 for DATA_RATE < 0).
    time_ns
        `(T,)` int64, UTC nanoseconds since the epoch, in order of arrival.
    time_flags
        `(T,)` uint8: top byte of FRACSEC (leap second and time quality).
    stat
        `(T, S)` uint16 in the meaning of C37.118.2-2011; 0 where the format has none.
    values
        `(T, S, C)` float32 (float64 on request): V, A, degrees in [-180, 180], absolute Hz, Hz/s, analogs scaled,
        digital words as numbers. NaN where nothing was sent.
    arrival_ns
        `(T,)` int64: when each frame came; equal to `time_ns` where nobody knows.
    """

    table: ChannelTable
    rate_hz: float
    time_ns: NDArray[np.int64]
    time_flags: NDArray[np.uint8]
    stat: NDArray[np.uint16]
    values: NDArray[np.float32] | NDArray[np.float64]
    arrival_ns: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive reporting times of many PMUs on one grid, judged.

    Attributes
    ----------
    table
        Names of the axes.
    rate_hz
        Reporting rate; `time_ns` stands on its grid: the slot k is at round(k / rate).
    time_ns
        `(T,)` int64, strictly increasing, no slot left out.
    values
        `(T, S, C)` float32; meaningless (NaN, as a rule) where `quality` masks.
    quality
        `(T, S, C)` uint8: `Reason`.
    """

    table: ChannelTable
    rate_hz: float
    time_ns: NDArray[np.int64]
    values: NDArray[np.float32]
    quality: NDArray[np.uint8]

    @property
    def good(self) -> NDArray[np.bool_]:
        """`(T, S, C)`: True where the sample may be used (good, or only marked)."""
        good: NDArray[np.bool_] = (self.quality == 0) | (self.quality >= MARK_ONLY)
        return good

    @property
    def coverage(self) -> NDArray[np.float32]:
        """`(S,)`: share of the PMU's own samples (padding left out) that may be used; NaN for an empty block."""
        own = self.table.present[None]
        count = np.broadcast_to(own, self.quality.shape).sum((0, 2))
        with np.errstate(invalid="ignore"):
            share: NDArray[np.float64] = (self.good & own).sum((0, 2)) / count
        return share.astype(np.float32)
