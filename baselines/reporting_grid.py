"""Places on the reporting grid: times in, slots out, and back, for any rate.

Slot k is at k / rate since the epoch, rounded to the nanosecond. It knows nothing of what is reported.
"""

from __future__ import annotations

from fractions import Fraction
from functools import cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Paced(Protocol):
    """Whatever has a reporting rate: settings of a scorer, a kind of vectors."""

    @property
    def rate_hz(self) -> float:
        """Frames a second."""


def slots_of(paced: Paced, time_ns: NDArray[np.int64]) -> NDArray[np.int64]:
    """Find the places of times on the reporting grid.

    Parameters
    ----------
    paced
        For the rate.
    time_ns
        `(...)` UTC.

    Returns
    -------
    NDArray[np.int64]
        Slot k is at round(k / rate).
    """
    over, under = _ratio(paced.rate_hz)
    seconds, rest = np.divmod(time_ns, 1_000_000_000)
    whole, part = np.divmod(seconds * over, under)
    slots: NDArray[np.int64] = whole + np.rint((part + rest * over / 1e9) / under).astype(np.int64)
    return slots


def times_of(paced: Paced, slots: NDArray[np.int64]) -> NDArray[np.int64]:
    """Find the times of places on the reporting grid.

    Parameters
    ----------
    paced
        For the rate.
    slots
        `(...)`.

    Returns
    -------
    NDArray[np.int64]
        UTC, rounded to the nanosecond.
    """
    over, under = _ratio(paced.rate_hz)
    seconds, part = np.divmod(slots * under, over)
    times: NDArray[np.int64] = seconds * 1_000_000_000 + np.rint(part * 1e9 / over).astype(np.int64)
    return times


@cache
def _ratio(rate_hz: float) -> tuple[int, int]:
    """Frames a second, exactly: numerator and denominator."""
    return Fraction(rate_hz).limit_denominator(1000).as_integer_ratio()
