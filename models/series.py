"""What the network learns from: inputs, and what came after them, frame by frame.

In: readings `(T, S, C')` of quiet time, and which are good and fit to learn from. Out: rows `(T, N, F + 2CK)` for
Tensor2Tensor, in the same units as live. Readings, not predictions, stand beside gaps: nothing was trained yet.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.features import Features, Regions, scales, wrap
from models.layout import Layout
from models.spec import Spec

FARTHEST = 10.0
"""What came after counts as no further away than so many scales."""
GAUSS = 0.6745
"""Median absolute deviation of a Gaussian of unit spread."""


def typical_scale(
    rate_hz: float, paces_s: tuple[float, ...], slots: NDArray[np.float32], turn: NDArray[np.float32]
) -> tuple[tuple[float, ...], ...]:
    """Measure the typical size of each deviation: a robust standard deviation over all streams.

    Parameters
    ----------
    rate_hz
        Frames a second.
    paces_s
        Time constants of the levels.
    slots
        `(T, N, C)` readings of the training split, NaN where not good.
    turn
        `(C,)`: a full turn of the slots that wrap, else 0.

    Returns
    -------
    tuple[tuple[float, ...], ...]
        `C` rows of `K`; 1 for a slot of which nothing is there.
    """
    pace = np.asarray([1.0, *(1 - np.exp(-1 / (rate_hz * p)) for p in paces_s)], np.float32)
    level = np.full((*slots.shape[1:], len(pace)), np.nan, np.float32)
    squares = np.empty((*slots.shape, len(pace)), np.float32)
    whole = np.where(turn > 0, turn, 1)[:, None]
    for t, now in enumerate(slots):
        away = now[:, :, None] - level
        away -= turn[:, None] * np.rint(np.nan_to_num(away) / whole)
        squares[t] = away**2
        level = np.where(np.isnan(level), now[:, :, None], level + pace * np.nan_to_num(away))
    settled = squares[min(len(squares) // 2, round(3 * rate_hz * max(paces_s))) :]
    out = []
    for c in range(slots.shape[2]):
        column = settled[:, :, c].reshape(-1, len(pace))
        column = column[np.isfinite(column).all(1)]
        if not len(column):
            out.append((1.0,) * len(pace))
            continue
        # A quantised channel rests half of the time: its median says nothing, its mean does.
        size = np.sqrt(np.median(column, axis=0)) / GAUSS
        size = np.where(size > 0, size, np.sqrt(column.mean(0, dtype=np.float64)))
        out.append(tuple(float(x) if x > 0 else 1.0 for x in size))
    return tuple(out)


def rows(
    spec: Spec, layout: Layout, values: NDArray[np.float32], good: NDArray[np.bool_], fit: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Make the rows of one consecutive stretch.

    Parameters
    ----------
    spec
        What the network is made for.
    layout
        Where channels stand.
    values
        `(T, S, C')` readings.
    good
        `(T, S, C')`.
    fit
        `(T, S)`: moments to learn from; what is left out is still an input, but nobody is asked to predict it.

    Returns
    -------
    NDArray[np.float32]
        `(T, N, F + 2CK)`: row t holds the inputs at t; then what the network, having seen the rows before t, ought
        to have said: the targets, and their weights 0 or 1.
    """
    features = Features(spec, Regions(layout.stream_region))
    slots = layout.gather(np.where(good, values, np.float32(np.nan)), np.nan)
    there, wanted = np.isfinite(slots), fit[:, layout.stream_pmu]
    count, n, c = slots.shape
    k = len(spec.horizons)
    inputs = np.empty((count, n, spec.inputs), np.float32)
    base = np.empty((count, n, c), np.float32)
    unit = np.empty((count, n, c, k), np.float32)
    begun = np.empty((count, n, c), bool)
    state = features.initial()
    for t in range(count):
        state, inputs[t] = features.step(state, slots[t], there[t], state.last)
        base[t], unit[t], begun[t] = state.last, scales(state), features.begun(state)
    targets, weights = np.zeros((2, count, n, c, k), np.float32)
    for i, ahead in enumerate(spec.horizons):
        # Row t is answered from what was seen before it: base and unit of row t - 1, and the reading `ahead` after it.
        last = max(count - ahead, 0)
        away = slots[ahead:] - base[:last]
        wrap(away.reshape(-1, c), features.turn)
        asked = there[ahead:] & begun[:last] & (wanted[ahead:] & wanted[:last])[:, :, None]
        scaled = np.where(asked, away, 0) / unit[:last, :, :, i]
        targets[1 : last + 1, :, :, i] = np.clip(scaled, -FARTHEST, FARTHEST)
        weights[1 : last + 1, :, :, i] = asked
    return np.concatenate([inputs, targets.reshape(count, n, -1), weights.reshape(count, n, -1)], axis=2)
