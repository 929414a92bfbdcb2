"""A small grid made up for tests: two sources, quiet ambient, and one disturbance that all PMUs see."""

from __future__ import annotations

import numpy as np

from streams.block import FrameBatch
from streams.channels import Channel, ChannelTable, Phase, Pmu, Quantity

RATE = 30
START_NS = 1_772_366_400 * 10**9
CHANNELS = (
    Channel("V1", Quantity.VOLTAGE_MAGNITUDE, Phase.POSITIVE, "V", 199_186.0),
    Channel("V1", Quantity.VOLTAGE_ANGLE, Phase.POSITIVE, "deg"),
    Channel("", Quantity.FREQUENCY, unit="Hz"),
)


def small_grid(
    source: str, first: int, pmus: int, seed: int, *, seconds: int = 75, onset_s: float = 60.0
) -> FrameBatch:
    """Make one source: at the onset a dip, a frequency ramp and an angle step in every PMU."""
    rng = np.random.default_rng(seed)
    frames = seconds * RATE
    t = np.arange(frames)[:, None] / RATE
    names = [f"{source}{s}" for s in range(pmus)]
    table = ChannelTable(tuple(Pmu(n, first + s, n, 60, CHANNELS, source) for s, n in enumerate(names)))
    after = t >= onset_s
    dip = after & (t < onset_s + 0.1)
    wander = np.cumsum(np.random.default_rng(0).normal(0, 1e-4, (frames, 1)), axis=0)  # one interconnection
    ramp = -0.02 * after * (t - onset_s)
    volts = 199_186 * (1 + 2e-5 * rng.standard_normal((frames, pmus)) - 0.4 * dip)
    hertz = np.round(60 + wander + ramp + 2e-4 * rng.standard_normal((frames, pmus)), 3)
    degrees = np.cumsum(wander + ramp, axis=0) * 12 + 0.002 * rng.standard_normal((frames, pmus)) + 2.0 * after
    values = np.stack([volts, (degrees + 180) % 360 - 180, hertz], axis=2).astype(np.float32)
    time_ns = START_NS + np.round(np.arange(frames) * 1e9 / RATE).astype(np.int64)
    stat, flags = np.zeros((frames, pmus), np.uint16), np.zeros(frames, np.uint8)
    return FrameBatch(table, float(RATE), time_ns, flags, stat, values, time_ns)
