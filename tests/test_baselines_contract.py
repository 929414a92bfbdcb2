"""What every scorer of this project promises, whatever it computes. A new scorer joins `SCORERS` and is held to it.

Laws: a stream's scores do not depend on how the stream was cut into blocks, nor on what else is in them (unless the
scorer looks at neighbours); a state is plain arrays that can be stored, restored, split and joined; a stream with
little reference says so and how much is missing; a stream with little data is refused, never guessed.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from baselines.atypicality import Layer, Settings, State, initial, step
from baselines.calibration import Scores, Status
from baselines.reporting_grid import slots_of
from baselines.stream_axis import from_arrays, join_streams, take_streams, to_arrays
from gridsense.sequence import SequenceScorer
from gridsense.sequence import State as SequenceState
from streams.channels import Channel, ChannelTable, Pmu, Quantity
from tests.reference.scoring_model import scoring_model

Step = Callable[[Any, NDArray[np.int64], NDArray[np.float32], NDArray[np.bool_]], tuple[Any, tuple[Scores, ...]]]


@dataclass(frozen=True)
class Scorer:
    """One scorer under one setting, as the laws see it; `alone` where a stream's bits hang on no other stream."""

    name: str
    rate_hz: float
    seconds: int
    initial: Callable[[NDArray[np.bool_], NDArray[np.float32]], Any]
    step: Step
    alone: bool


def pnnl(name: str, rate_hz: float, seconds: int, layers: tuple[Layer, ...]) -> Scorer:
    told = Settings(rate_hz, layers)

    def start(present: NDArray[np.bool_], turn: NDArray[np.float32]) -> State:
        return initial(told, present, turn)

    def go(
        state: State, time_ns: NDArray[np.int64], values: NDArray[np.float32], good: NDArray[np.bool_]
    ) -> tuple[State, tuple[Scores, ...]]:
        return step(told, state, time_ns, values, good)

    return Scorer(name, rate_hz, seconds, start, go, alone=True)


@dataclass(frozen=True)
class Learned:
    """The sequence scorer's state, and the channels of its table."""

    state: SequenceState
    present: NDArray[np.bool_]


def sequence(name: str, rate_hz: float, seconds: int) -> Scorer:
    model, hop = scoring_model(rate_hz), Settings(rate_hz).hop
    quantities = (Quantity.FREQUENCY, Quantity.VOLTAGE_MAGNITUDE, Quantity.VOLTAGE_ANGLE)

    def scorer_of(present: NDArray[np.bool_]) -> SequenceScorer:
        rows = [tuple(Channel("x", q) for q, there in zip(quantities, row, strict=True) if there) for row in present]
        pmus = tuple(Pmu(f"P{i}", i + 1, f"P{i}", 60, row, "") for i, row in enumerate(rows))
        return SequenceScorer(model, ChannelTable(pmus), hop, 10)

    def start(present: NDArray[np.bool_], turn: NDArray[np.float32]) -> Learned:
        assert (turn[:, 2] == 360).all()
        return Learned(scorer_of(present).initial(), present)

    def go(
        state: Learned, time_ns: NDArray[np.int64], values: NDArray[np.float32], good: NDArray[np.bool_]
    ) -> tuple[Learned, tuple[Scores, ...]]:
        per_unit = values / np.array([1, 3e5, 1], np.float32)
        slots = slots_of(Settings(rate_hz), time_ns)
        new, scores, _ = scorer_of(state.present).step(state.state, slots, per_unit, good & state.present)
        return Learned(new, state.present), scores

    return Scorer(name, rate_hz, seconds, start, go, alone=False)


SCORERS = [
    pnnl("30 a second", 30, 80, (Layer("fast", 0, 10), Layer("ten", 10, 30), Layer("absolute", 4, 20, absolute=True))),
    pnnl("25 a second", 25, 40, (Layer("fast", 0, 10),)),
    pnnl("one in two seconds", 0.5, 600, (Layer("fast", 0, 100), Layer("minute", 60, 100))),
    sequence("sequence, 30 a second", 30, 40),
    sequence("sequence, 25 a second", 25, 40),
]
START_NS = 1_700_000_000_000_000_000
STREAMS, CHANNELS = 7, 3


@dataclass(frozen=True)
class Recording:
    time_ns: NDArray[np.int64]
    values: NDArray[np.float32]
    good: NDArray[np.bool_]
    present: NDArray[np.bool_]
    turn: NDArray[np.float32]


def recording(scorer: Scorer) -> Recording:
    """Ambient noise of three quantities with gaps, a silent stream, a missing channel, an angle that wraps."""
    rng = np.random.default_rng(11)
    frames = int(scorer.seconds * scorer.rate_hz)
    values = rng.normal(size=(frames, STREAMS, CHANNELS)) * (2e-4, 6, 0.3) + (60, 3e5, 179.9)
    values[..., 2] = (values[..., 2] + 180) % 360 - 180
    values[frames * 7 // 8 :, 2, 1] += 900
    good = rng.random(values.shape) > 0.003
    good[frames // 2 : frames * 3 // 4, 3] = False
    good[frames * 3 // 4 :, 4, 1] = False
    present = np.ones((STREAMS, CHANNELS), bool)
    present[5, 2] = False
    turn = np.zeros((STREAMS, CHANNELS), np.float32)
    turn[:, 2] = 360
    values = np.where(good, values, np.nan).astype(np.float32)
    first = round(START_NS / 1e9 * scorer.rate_hz)
    time_ns = np.array([round((first + i) * 1_000_000_000 / scorer.rate_hz) for i in range(frames)], np.int64)
    return Recording(time_ns, values, good, present, turn)


def played(
    scorer: Scorer,
    data: Recording,
    cuts: list[int],
    streams: NDArray[np.intp] | None = None,
    state: Any = None,
) -> tuple[Any, list[dict[str, NDArray[Any]]]]:
    """Score the recording in pieces; each layer's scores by name."""
    some = np.arange(STREAMS) if streams is None else streams
    state = scorer.initial(data.present[some], data.turn[some]) if state is None else state
    bounds = sorted({0, len(data.time_ns), *cuts})
    parts: list[tuple[Scores, ...]] = []
    for lo, hi in pairwise(bounds):
        state, scores = scorer.step(state, data.time_ns[lo:hi], data.values[lo:hi, some], data.good[lo:hi, some])
        parts.append(scores)
    layers = range(len(parts[0]))
    names = Scores.__slots__
    return state, [{name: np.concatenate([getattr(p[i], name) for p in parts]) for name in names} for i in layers]


def assert_same(
    found: list[dict[str, NDArray[Any]]], whole: list[dict[str, NDArray[Any]]], streams: Any = None
) -> None:
    for ours, theirs in zip(found, whole, strict=True):
        for name, array in ours.items():
            other = theirs[name] if streams is None or name == "time_ns" else theirs[name][:, streams]
            np.testing.assert_array_equal(array, other, err_msg=name)


@pytest.fixture(scope="module", params=SCORERS, ids=lambda s: s.name)
def scorer(request: pytest.FixtureRequest) -> Scorer:
    found: Scorer = request.param
    return found


@pytest.fixture(scope="module")
def data(scorer: Scorer) -> Recording:
    return recording(scorer)


@pytest.fixture(scope="module")
def whole(scorer: Scorer, data: Recording) -> list[dict[str, NDArray[Any]]]:
    return played(scorer, data, [])[1]


@given(draw=st.data())
@settings(max_examples=6, deadline=None)
def test_cutting_the_stream_changes_no_bit(
    scorer: Scorer, data: Recording, whole: list[dict[str, NDArray[Any]]], draw: st.DataObject
) -> None:
    cuts = draw.draw(st.lists(st.integers(1, len(data.time_ns) - 1), max_size=12))
    assert_same(played(scorer, data, cuts)[1], whole)


def test_frame_by_frame_changes_no_bit(scorer: Scorer, data: Recording, whole: list[dict[str, NDArray[Any]]]) -> None:
    middle = len(data.time_ns) // 2
    assert_same(played(scorer, data, list(range(middle - 40, middle + 40)))[1], whole)


@given(draw=st.data())
@settings(max_examples=6, deadline=None)
def test_company_changes_no_bit(
    scorer: Scorer, data: Recording, whole: list[dict[str, NDArray[Any]]], draw: st.DataObject
) -> None:
    if not scorer.alone:
        pytest.skip("it looks at a stream's neighbours, and matrix products of other sizes round otherwise")
    streams = draw.draw(st.permutations(range(STREAMS)))[: draw.draw(st.integers(1, STREAMS))]
    index = np.array(streams)
    assert_same(played(scorer, data, [], index)[1], whole, index)


def test_a_snapshot_goes_on_where_it_was_taken(
    scorer: Scorer, data: Recording, whole: list[dict[str, NDArray[Any]]]
) -> None:
    cut = len(data.time_ns) * 2 // 3
    before = Recording(data.time_ns[:cut], data.values[:cut], data.good[:cut], data.present, data.turn)
    after = Recording(data.time_ns[cut:], data.values[cut:], data.good[cut:], data.present, data.turn)
    state, first = played(scorer, before, [])
    buffer = io.BytesIO()
    np.savez(buffer, **to_arrays(state))
    buffer.seek(0)
    with np.load(buffer) as stored:
        restored = from_arrays(scorer.initial(data.present[:1], data.turn[:1]), dict(stored))
    _, second = played(scorer, after, [], state=restored)
    joined = [{name: np.concatenate([a[name], b[name]]) for name in a} for a, b in zip(first, second, strict=True)]
    assert_same(joined, whole)


def test_streams_part_and_join_without_a_trace(
    scorer: Scorer, data: Recording, whole: list[dict[str, NDArray[Any]]]
) -> None:
    cut = len(data.time_ns) // 3
    before = Recording(data.time_ns[:cut], data.values[:cut], data.good[:cut], data.present, data.turn)
    state, _ = played(scorer, before, [])
    swapped = join_streams([take_streams(state, [4, 5, 6]), take_streams(state, np.arange(STREAMS) < 4)])
    order = np.array([4, 5, 6, 0, 1, 2, 3])
    rest = Recording(data.time_ns[cut:], data.values[cut:], data.good[cut:], data.present, data.turn)
    _, later = played(scorer, rest, [], order, swapped)
    tails = [{name: a[name][len(a[name]) - len(b[name]) :] for name in a} for a, b in zip(whole, later, strict=True)]
    assert_same(later, tails, order)


def test_a_step_leaves_its_state_alone(scorer: Scorer, data: Recording) -> None:
    state = scorer.initial(data.present, data.turn)
    kept = {key: array.copy() for key, array in to_arrays(state).items()}
    scorer.step(state, data.time_ns, data.values, data.good)
    for key, array in to_arrays(state).items():
        np.testing.assert_array_equal(array, kept[key], err_msg=key)


def test_learning_is_said_and_counts_down(whole: list[dict[str, NDArray[Any]]]) -> None:
    for layer in whole:
        learning = layer["status"] == Status.LEARNING
        assert learning[0].any()
        assert (layer["missing_s"][learning] > 0).all()
        assert np.isnan(layer["minus_ln_p"][learning]).all()
        assert (np.diff(layer["missing_s"], axis=0) <= 0).all()
        assert (layer["missing_s"][layer["status"] == Status.SCORED] == 0).all()
    assert (whole[0]["status"][-1] != Status.LEARNING).all()


def test_a_silent_stream_is_refused_not_guessed(
    scorer: Scorer, data: Recording, whole: list[dict[str, NDArray[Any]]]
) -> None:
    fast = whole[0]
    frames = len(data.time_ns)
    silent = (fast["time_ns"] > data.time_ns[frames // 2] + 30e9 / scorer.rate_hz) & (
        fast["time_ns"] < data.time_ns[frames * 3 // 4]
    )
    assert silent.any()
    assert (fast["status"][silent, 3] == Status.REFUSED).all()
    assert np.isnan(fast["minus_ln_p"][silent, 3]).all()
    assert (fast["coverage"][silent, 3] < 0.5).all()
    assert (fast["status"][silent, 0] != Status.REFUSED).all()


def test_a_stream_without_one_channel_is_still_scored(whole: list[dict[str, NDArray[Any]]]) -> None:
    fast = whole[0]
    assert fast["status"][-1, 4] == Status.SCORED
    assert fast["coverage"][-1, 4] == pytest.approx(2 / 3, abs=0.05)
    assert np.isfinite(fast["minus_ln_p"][-1, 4])


def test_scores_are_numbers_where_scored(whole: list[dict[str, NDArray[Any]]]) -> None:
    for layer in whole:
        scored = layer["status"] == Status.SCORED
        for name in ("minus_ln_p", "distance", "atypicality"):
            assert np.isfinite(layer[name][scored]).all()
            assert np.isnan(layer[name][~scored]).all()
        assert (layer["minus_ln_p"][scored] >= 0).all()
        assert (layer["coverage"][scored] >= 0.5).all()
