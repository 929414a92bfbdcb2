"""Recent signals of a few PMUs in, a common oscillation out: whether they swing together, and how fast.

Two bad measurements seldom swing at one frequency; two PMUs beside an oscillating machine do. In: the last seconds of
signals. Out: the line that dominates each, and whether two agree. It scores nothing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LEAST_CYCLES = 3
"""Fewer cycles in the window cannot be told from a wander."""
LEAST_FRAMES = 32
"""Fewer frames have too few lines to tell one from the rest: at low reporting rates nothing swings."""
MOST_HZ = 5.0
"""Electromechanical and control oscillations are slower; what is faster is noise here."""
PURE = 0.4
"""Share of a differenced signal's variance up to `MOST_HZ` that one line holds when it oscillates."""
LINE_BINS = 1
"""A line's half width after a Hann window, in bins."""


def lines(signals: NDArray[np.float32], rate_hz: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Find the strongest line of each channel, in its differences from frame to frame.

    Differencing makes a random wander white and a step an impulse: neither has a line.

    Parameters
    ----------
    signals
        `(W, S, C)`: the last frames, NaN where refused.
    rate_hz
        Frames a second.

    Returns
    -------
    tuple[NDArray[np.float64], NDArray[np.float64]]
        `(S, C)` its frequency in Hz, and the share of the variance up to `MOST_HZ` that it holds; 0 where more than a
        tenth of the frames are refused.

    References
    ----------
    F. J. Harris, "On the use of windows for harmonic analysis with the discrete Fourier transform", Proc. IEEE 66
    (1978) 51-83, doi:10.1109/PROC.1978.10837: the window.
    """
    frames = len(signals)
    if frames < LEAST_FRAMES:
        return np.zeros(signals.shape[1:]), np.zeros(signals.shape[1:])
    # Bridge single refused frames by the last good one.
    good = ~np.isnan(signals)
    last = np.maximum.accumulate(np.where(good, np.arange(frames)[:, None, None], 0), axis=0)
    filled = np.take_along_axis(signals, last, axis=0).astype(np.float64)
    usable = (good.mean(axis=0) > 0.9) & ~np.isnan(filled).any(axis=0)
    moves = np.diff(np.where(usable, filled, 0), axis=0)
    power = np.abs(np.fft.rfft((moves - moves.mean(axis=0)) * np.hanning(frames - 1)[:, None, None], axis=0)) ** 2
    hz = np.fft.rfftfreq(frames - 1, 1 / rate_hz)
    power = power[1 : int(np.searchsorted(hz, MOST_HZ, side="right"))]
    peak = power.argmax(axis=0)
    near = np.abs(np.arange(len(power))[:, None, None] - peak) <= LINE_BINS
    total = power.sum(axis=0)
    share = np.divide((power * near).sum(axis=0), total, out=np.zeros_like(total), where=total > 0)
    return hz[peak + 1], np.where(peak + 1 >= LEAST_CYCLES, share, 0.0)


def common_hz(signals: NDArray[np.float32], rate_hz: float) -> float | None:
    """Say at which frequency at least two PMUs swing together.

    Parameters
    ----------
    signals
        `(W, S, C)`: the last frames of the PMUs in question.
    rate_hz
        Frames a second.

    Returns
    -------
    float | None
        Hz, of the purest line that two PMUs share within a bin and a half; None where there is none.
    """
    hz, share = lines(signals, rate_hz)
    pmu, channel = np.nonzero(share >= PURE)
    found, purity = hz[pmu, channel], share[pmu, channel]
    together = (pmu[:, None] != pmu) & (np.abs(found[:, None] - found) <= 1.5 * rate_hz / len(signals))
    best = np.where(together.any(axis=1), purity, 0.0) if len(pmu) else np.zeros(0)
    return float(found[best.argmax()]) if best.any() else None


def own_hz(signals: NDArray[np.float32], rate_hz: float) -> float | None:
    """Say at which frequency one PMU swings in at least two of its signals.

    Parameters
    ----------
    signals
        `(W, C)`: the last frames of the PMU.
    rate_hz
        Frames a second.

    Returns
    -------
    float | None
        Hz; None where no two signals agree.
    """
    return common_hz(signals[:, :, None], rate_hz)
