"""The bundled model on the bundled grid's ambient: calibrated, and silent where half a second of frames is missing."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from gridsense import demo
from gridsense.pipeline import Learned, Output, Pipeline, Settings
from gridsense.sequence import load_model
from gridsense.sources import Round, open_source, read_rounds

AMBIENT = Path(demo.__file__).parent / "ambient.parquet"
LAST_S = 100
"""Of the ambient, what no reference here is learned from; the warm-up comes out of it."""


@cache
def told() -> Settings:
    return Settings(scorers=("sequence",), model=load_model())


@cache
def recording() -> list[Round]:
    return list(read_rounds([open_source(AMBIENT)]))


def rest() -> list[Round]:
    last = max(int(batch.time_ns[-1]) for _, batch in recording()[-1])
    late = [[(n, b) for n, b in batches if b.time_ns[0] > last - LAST_S * 10**9] for batches in recording()]
    return [batches for batches in late if batches]


@cache
def learned() -> Learned:
    """From the first two thirds: a minute's worth, and the warm-up."""
    pipeline = Pipeline(told())
    for batches in recording()[: 2 * len(recording()) // 3]:
        pipeline.feed(batches)
    found = pipeline.learned()
    assert found is not None
    assert found.ready
    return found


def run(rounds: list[Round]) -> list[Output]:
    pipeline = Pipeline(told(), learned())
    return [o for batches in rounds for o in pipeline.feed(batches)] + pipeline.finish()


def tracks(outputs: list[Output]) -> list[np.ndarray]:
    return [np.concatenate([o.scored.ticks.tracks[i].score for o in outputs]) for i in (0, 1)]


def hidden(pmus: slice, low_s: float, high_s: float) -> list[Round]:
    """The same frames without numbers for a while, as a PMU sends them that has lost its measurements."""
    begin = int(rest()[0][0][1].time_ns[0])
    out = []
    for batches in rest():
        together = []
        for name, batch in batches:
            since_s = (batch.time_ns - begin) / 1e9
            values = batch.values.copy()
            values[(since_s >= low_s) & (since_s < high_s), pmus] = np.nan
            together.append((name, replace(batch, values=values)))
        out.append(together)
    return out


def test_ambient_is_ordinary() -> None:
    outputs = run(rest())
    assert [e for o in outputs for e in o.events] == []
    for score in tracks(outputs):
        heard = score[~np.isnan(score)]
        assert heard.size > 20_000
        assert (heard > math.log(100)).mean() < 0.05
        assert (heard > math.log(1000)).mean() < 0.015, "of a second, whose errors hang together longer than that"


@pytest.mark.parametrize("pmus", [slice(0, 1), slice(None)], ids=["one PMU of each source", "all PMUs"])
def test_half_a_second_without_numbers_is_no_event(pmus: slice) -> None:
    outputs = run(hidden(pmus, 40.0, 40.5))
    assert [e for o in outputs for e in o.events] == []
    time_ns = np.concatenate([o.scored.ticks.time_ns for o in outputs])
    begin = int(rest()[0][0][1].time_ns[0])
    since_s = (time_ns - begin) / 1e9 - 40.5
    frame, second = tracks(outputs)
    assert np.isnan(frame[(since_s > -0.25) & (since_s < -0.05), pmus]).all()
    for score in (frame, second):
        assert np.isfinite(score[(since_s > 0.8)]).all(), "scoring goes on, without a warm-up"
