"""Recent signals of a few PMUs in, a common oscillation out: whether they swing together, and how fast.

Two bad measurements seldom swing at one frequency; two PMUs beside an oscillating machine do. In: the last seconds of
signals. Out: the frequency that dominates each, and whether they agree. It scores nothing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LEAST_CYCLES = 3.0
"""Fewer cycles in the window cannot be told from a step or a wander."""
PURE = 0.6
"""Share of a signal's variance that stands in one narrow line when it oscillates."""
LINE_BINS = 1
"""A line's half width after a Hann window, in bins."""


def dominant_hz(signals: NDArray[np.float32], rate_hz: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Find the strongest line of each PMU.

    Parameters
    ----------
    signals
        `(W, S, C)`: the last frames, NaN where refused.
    rate_hz
        Frames a second.

    Returns
    -------
    tuple[NDArray[np.float64], NDArray[np.float64]]
        `(S,)` the frequency in Hz of the channel whose strongest line holds most of its variance, and `(S,)` that
        share; NaN and 0 where no channel is good enough.

    References
    ----------
    F. J. Harris, "On the use of windows for harmonic analysis with the discrete Fourier transform", Proc. IEEE 66
    (1978) 51-83, doi:10.1109/PROC.1978.10837: the window.
    """
    frames, pmus, channels = signals.shape
    # Bridge single refused frames by the last good one; a channel with more than a tenth refused has no say.
    good = ~np.isnan(signals)
    last = np.maximum.accumulate(np.where(good, np.arange(frames)[:, None, None], 0), axis=0)
    filled = np.take_along_axis(signals, last, axis=0).astype(np.float64)
    usable = (good.mean(axis=0) > 0.9) & ~np.isnan(filled).any(axis=0)
    x = np.linspace(-1, 1, frames)[:, None, None]
    level = filled.mean(axis=0)
    slope = (x * (filled - level)).sum(axis=0) / (x * x).sum()
    window = np.hanning(frames)[:, None, None]
    power = np.abs(np.fft.rfft(np.where(usable, (filled - level - slope * x) * window, 0), axis=0)) ** 2
    power[0] = 0
    hz = np.fft.rfftfreq(frames, 1 / rate_hz)
    peak = power.argmax(axis=0)
    total = power.sum(axis=0)
    near = np.abs(np.arange(len(hz))[:, None, None] - peak) <= LINE_BINS
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where(usable & (total > 0) & (peak >= LEAST_CYCLES), (power * near).sum(axis=0) / total, 0.0)
    best = share.argmax(axis=1) if channels else np.zeros(pmus, np.intp)
    rows = np.arange(pmus)
    return np.where(share[rows, best] > 0, hz[peak[rows, best]], np.nan), share[rows, best]


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
        Hz; None where fewer than two agree.
    """
    hz, share = dominant_hz(signals, rate_hz)
    pure = np.sort(hz[(share >= PURE) & ~np.isnan(hz)])
    bin_hz = rate_hz / len(signals)
    close = np.diff(pure) <= 1.5 * bin_hz
    return float(pure[:-1][close][0]) if close.any() else None
