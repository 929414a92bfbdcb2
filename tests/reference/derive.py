"""Oracles for `streams.derive`: one PMU, one frame, textbook formulas."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def rocof(hertz: NDArray[np.float64], good: NDArray[np.bool_], rate_hz: float, lags: int) -> NDArray[np.float64]:
    """Slope of `numpy.polyfit` over the last `lags` frames; NaN with fewer good than three or three quarters."""
    out = np.full(len(hertz), np.nan)
    for t in range(len(hertz)):
        at = [k for k in range(max(t - lags + 1, 0), t + 1) if good[k]]
        if good[t] and len(at) >= 3 and 4 * len(at) >= 3 * lags:
            out[t] = np.polyfit(np.asarray(at) / rate_hz - t / rate_hz, hertz[at] - hertz[t], 1)[0]
    return out


def sequences(phasors: NDArray[np.complex128]) -> NDArray[np.complex128]:
    """Fortescue: phases A, B, C to zero, positive, negative sequence."""
    a = np.exp(2j * np.pi / 3)
    matrix = np.array([[1, 1, 1], [1, a, a**2], [1, a**2, a]]) / 3
    return np.asarray(matrix @ phasors)


def unwrapped(degrees: NDArray[np.float64], good: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Each good angle nearest to the last good one; the first near 0."""
    out, last = np.full(len(degrees), np.nan), 0.0
    for t in range(len(degrees)):
        if good[t]:
            last += (degrees[t] - last + 180) % 360 - 180
            out[t] = last
    return out


def reference(angles: NDArray[np.float64], good: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Reference angle in degrees for `(T, S)` angles: sum of the mean steps of all that are near the median step.

    Needs two good PMUs at every frame.
    """
    out = [angles[0, int(np.argmax(good[0]))]]
    for t in range(1, len(angles)):
        both = good[t] & good[t - 1]
        steps = ((angles[t] - angles[t - 1] + 180) % 360 - 180)[both]
        off = np.abs(steps - np.median(steps))
        out.append(out[-1] + float(steps[off <= max(9 * float(np.median(off)), 0.001)].mean()))
    return np.asarray(out)
