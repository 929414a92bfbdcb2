"""The network's inputs the slow way: a stream, a channel and a deviation at a time, in float64."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from models.features import LEAST_COMPANY, LEAST_SCALE, SURPRISE
from models.spec import Spec


def shorter(angle_deg: float, turn_deg: float) -> float:
    return angle_deg - turn_deg * round(angle_deg / turn_deg) if turn_deg else angle_deg


def region_medians(region: list[int], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of `(N, D)`, for each stream; NaN where missing."""
    out = np.zeros(values.shape)
    for n, mine in enumerate(region):
        company = [m for m, other in enumerate(region) if other == mine >= 0]
        for d in range(values.shape[1]):
            there = [values[m, d] for m in company if not math.isnan(values[m, d])]
            out[n, d] = np.nanmedian(there) if len(there) >= LEAST_COMPANY else 0
    return out


def inputs_of(
    spec: Spec, region: list[int], values: NDArray[np.float32], good: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """`(T, N, F)` of readings `(T, N, C)`; for a missing reading the last one stands in."""
    frames, streams, slots = values.shape
    bridge = round(spec.bridge_s * spec.rate_hz)
    pace = [1 - math.exp(-1 / (spec.rate_hz * p)) for p in spec.paces_s]
    levels: dict[tuple[int, int], list[float]] = {}
    gap, count = np.zeros((streams, slots), int), np.zeros((streams, slots), int)
    square = np.asarray(spec.scale)[None].repeat(streams, 0) ** 2
    out = np.zeros((frames, streams, spec.inputs))
    for t in range(frames):
        scaled = np.full((streams, slots, len(spec.horizons)), np.nan)
        for n in range(streams):
            for c in range(slots):
                turn = 360.0 if spec.slots[c] == "voltage_angle" else 0.0
                gap[n, c] = 0 if good[t, n, c] else gap[n, c] + 1
                if gap[n, c] > bridge:
                    levels.pop((n, c), None)
                known, is_good = (n, c) in levels, bool(good[t, n, c])
                if not known and not is_good:
                    continue
                value = float(values[t, n, c]) if is_good else levels[n, c][0]
                level = levels.setdefault((n, c), [value] * len(spec.horizons))
                longest, prior = round(spec.scale_s * spec.rate_hz), round(spec.prior_s * spec.rate_hz)
                for k, past in enumerate(list(level)):
                    away = shorter(value - past, turn)
                    scaled[n, c, k] = min(max(away / math.sqrt(square[n, c, k]), -spec.clip), spec.clip)
                    level[k] = value if k == 0 else shorter(past + pace[k - 1] * away, turn)
                    if known and is_good:
                        most = min(away**2, SURPRISE * square[n, c, k])
                        learned = square[n, c, k] + (most - square[n, c, k]) / (min(count[n, c], longest) + prior)
                        square[n, c, k] = max(learned, (LEAST_SCALE * spec.scale[c][k]) ** 2)
                count[n, c] += known and is_good
        flat = scaled.reshape(streams, -1)
        out[t] = np.concatenate([np.nan_to_num(flat), region_medians(region, flat), ~good[t]], axis=1)
    return out
