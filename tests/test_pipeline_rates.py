"""One pipeline at any reporting rate: one disturbance is one event, from a frame in seven seconds to 120 a second."""

from __future__ import annotations

import numpy as np
import pytest

from gridsense.events import Cause
from gridsense.pipeline import Pipeline, Settings
from gridsense.sources import cut
from streams.block import FrameBatch
from streams.channels import ChannelTable, Pmu
from tests.reference.small_grid import CHANNELS, START_NS

PMUS = 5


def stream(rate_hz: float, frames: int, onset: int) -> FrameBatch:
    """Quiet ambient, then a lasting step of voltage, angle and frequency from one frame on."""
    rng = np.random.default_rng(1)
    after = (np.arange(frames) >= onset)[:, None]
    wander = np.cumsum(rng.normal(0, 1e-4, (frames, 1)), axis=0)
    noise = rng.standard_normal((3, frames, PMUS))
    volts = 199_186 * (1 + 2e-5 * noise[0] - 0.05 * after)
    hertz = np.round(50 + wander + 2e-4 * noise[1] - 0.03 * after, 4)
    degrees = np.cumsum(wander, axis=0) * 360 / rate_hz + 0.002 * noise[2] + 3 * after
    values = np.stack([volts, (degrees + 180) % 360 - 180, hertz], axis=2).astype(np.float32)
    time_ns = START_NS + np.round(np.arange(frames) * 1e9 / rate_hz).astype(np.int64)
    table = ChannelTable(tuple(Pmu(f"bus{s}", s + 1, f"bus{s}", 50, CHANNELS, "pdc") for s in range(PMUS)))
    stat = np.zeros((frames, PMUS), np.uint16)
    return FrameBatch(table, rate_hz, time_ns, np.zeros(frames, np.uint8), stat, values, time_ns)


@pytest.mark.parametrize("rate_hz", [1 / 7, 0.2, 1.0, 2.0, 10.0, 12.0, 25.0, 50.0, 60.0, 120.0])
def test_one_disturbance_is_one_event_at_any_rate(rate_hz: float) -> None:
    learn_s = max(30.0, 400 / rate_hz)
    onset = round(1.4 * learn_s * rate_hz)
    frames = onset + round(max(30.0, 100 / rate_hz) * rate_hz)
    whole = stream(rate_hz, frames, onset)
    pipeline = Pipeline(Settings(learn_s=learn_s))
    outputs = []
    for start in range(0, frames, 200):
        outputs += pipeline.feed([("pdc", cut(whole, np.arange(start, min(start + 200, frames))))])
    outputs += pipeline.finish()
    events = {e.id: e for o in outputs for e in o.events} | {e.id: e for e in pipeline.open_events()}
    (event,) = events.values()
    assert event.cause is Cause.GRID
    assert len(event.pmus) == PMUS
    assert sum(len(o.judged.time_ns) for o in outputs) == frames
    tick_s = max(0.2, 1 / rate_hz)
    assert (event.raised_ns - START_NS) / 1e9 == pytest.approx(onset / rate_hz, abs=tick_s + 1e-6)
