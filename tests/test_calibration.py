"""Vectors of any kind become -ln p: as a plain loop over one stream has it, however they are cut and joined."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from baselines.calibration import (
    LEARN_NUMBERS,
    Kind,
    LayerState,
    Scores,
    Status,
    explain,
    initial,
    join_scores,
    settle,
    step,
)
from baselines.compression import blank_reference
from baselines.errors import ReferenceMismatchError, ShapeError, TimeOrderError
from baselines.reporting_grid import times_of
from baselines.stream_axis import from_arrays, join_streams, take_streams, to_arrays
from tests.reference.calibration import calibrated

FRAME = Kind("next", 30, every=6, tick=15, overlap=2, needed=55, floor=0.5, logged=(False, False, False))
"""Residuals of three horizons at every frame: a vector in six is learned from."""
TICK = Kind("summary", 30, every=12, tick=6, overlap=3, needed=50, floor=0.9, logged=(False, True), factors=(1.0, 0.5))
"""A value and its spread at every tick, of samples with quanta; every other one is learned from."""
STREAMS, CHANNELS, FIRST = 6, 3, 51_000_000_001
SILENT, GAPPY, NARROW, CONSTANT = 1, 2, 3, 4


@dataclass(frozen=True)
class Recording:
    """What a caller would pass, all at once."""

    kind: Kind
    slots: NDArray[np.int64]
    vectors: NDArray[np.float32]
    coverage: NDArray[np.float32]
    grains: NDArray[np.float32] | None

    def state(self) -> LayerState:
        return initial(self.kind, *self.vectors.shape[1:])

    def part(self, lo: int, hi: int, streams: list[int] | None = None) -> Recording:
        some = list(range(self.vectors.shape[1])) if streams is None else streams
        return Recording(
            self.kind,
            self.slots[lo:hi],
            self.vectors[lo:hi, some],
            self.coverage[lo:hi, some],
            None if self.grains is None else self.grains[lo:hi, some],
        )

    def step(self, state: LayerState) -> tuple[LayerState, Scores]:
        return step(
            self.kind, state, slots=self.slots, vectors=self.vectors, coverage=self.coverage, grains=self.grains
        )


def recording(kind: Kind, stride: int) -> Recording:
    """Correlated noise at each `stride`-th slot, some slots left out, with every sort of trouble a stream can have."""
    rng = np.random.default_rng(5)
    slots = np.arange(FIRST - FIRST % stride, FIRST + 40 * 30, stride)
    slots = slots[rng.random(len(slots)) > 0.02]
    count, columns = len(slots), CHANNELS * len(kind.logged)
    mixing = rng.normal(size=(columns, columns))
    vectors = rng.normal(size=(count, STREAMS, columns)) @ mixing
    logged = np.tile(kind.logged, CHANNELS)
    vectors[..., logged] = np.exp(vectors[..., logged] / 3)
    coverage = rng.choice([1.0, 0.95, 0.4], p=[0.8, 0.17, 0.03], size=(count, STREAMS))
    coverage[count // 5 : count // 3, SILENT] = 0
    coverage[-count // 8 :, SILENT] = 0
    vectors[coverage == 0] = np.nan
    vectors[rng.random(count) < 0.1, GAPPY, 0] = np.nan
    vectors[-count // 4 :, GAPPY, 1:] = np.nan
    vectors[:, NARROW, -len(kind.logged) :] = np.nan
    vectors[: count // 2, CONSTANT] = 1.5
    vectors[-20:, 0] += 30
    grains = None
    if kind.factors:
        grains = np.minimum.accumulate(rng.uniform(0.3, 2, (count, STREAMS, CHANNELS)), axis=0).astype(np.float32)
        grains[:60, 0] = np.inf
    return Recording(kind, slots, vectors.astype(np.float32), coverage.astype(np.float32), grains)


RECORDINGS = [recording(FRAME, 1), recording(TICK, 6)]
WHOLE = [one.step(one.state()) for one in RECORDINGS]
BOTH = pytest.mark.parametrize("which", [0, 1], ids=["every frame", "every tick"])


def assert_same(found: Scores, expected: Scores, streams: list[int] | None = None) -> None:
    for name in Scores.__slots__:
        array = getattr(expected, name)
        array = array if streams is None or name == "time_ns" else array[:, streams]
        np.testing.assert_array_equal(getattr(found, name), array, err_msg=name)


def assert_same_state(found: LayerState, expected: LayerState) -> None:
    ours, theirs = to_arrays(found), to_arrays(expected)
    assert ours.keys() == theirs.keys()
    for key, array in ours.items():
        np.testing.assert_array_equal(array, theirs[key], err_msg=key)


@BOTH
@pytest.mark.parametrize("s", range(STREAMS))
def test_each_stream_is_scored_as_by_a_plain_loop(which: int, s: int) -> None:
    one, (_, scores) = RECORDINGS[which], WHOLE[which]
    grains = np.zeros(one.vectors[:, s].shape)
    if one.grains is not None:
        quanta = np.where(np.isfinite(one.grains[:, s]), one.grains[:, s], 0).astype(float)
        grains = np.array([[q * f for q in row for f in one.kind.factors] for row in quanta])
    status, far, surprise = calibrated(one.kind, one.slots, one.vectors[:, s], one.coverage[:, s], grains)
    assert scores.status[:, s].tolist() == status
    np.testing.assert_array_equal(scores.distance[:, s], far)
    np.testing.assert_array_equal(scores.minus_ln_p[:, s], surprise)
    assert Status.SCORED in status
    np.testing.assert_array_equal(scores.missing_s[:, s] > 0, np.array(status) == Status.LEARNING)
    np.testing.assert_array_equal(scores.time_ns, times_of(one.kind, one.slots))


def test_the_recordings_hold_what_they_are_meant_to() -> None:
    for one, (state, scores) in zip(RECORDINGS, WHOLE, strict=True):
        assert state.reference.learned.all()
        first = [int(np.argmax(scores.status[:, s] != Status.LEARNING)) for s in range(STREAMS)]
        assert max(first[SILENT], first[CONSTANT]) > first[0]
        assert (scores.status[-10:, [SILENT, GAPPY]] == Status.REFUSED).all()
        assert not state.reference.used[NARROW, -len(one.kind.logged) :].any()
        assert (scores.status[-10:, NARROW] == Status.SCORED).any(), "a channel that never was there is not missed"
        assert np.nanmin(scores.minus_ln_p[-20:, 0]) > 8
        some_missing = np.isnan(one.vectors[:, GAPPY, 0]) & (scores.status[:, GAPPY] == Status.SCORED)
        assert some_missing.any() == (one.kind.floor < 5 / 6)


@BOTH
@given(draw=st.data())
@settings(max_examples=25, deadline=None)
def test_cutting_into_steps_changes_no_bit(which: int, draw: st.DataObject) -> None:
    one, (state, scores) = RECORDINGS[which], WHOLE[which]
    count = len(one.slots)
    cuts = sorted(draw.draw(st.lists(st.integers(0, count), max_size=12)))
    now, parts = one.state(), []
    for lo, hi in pairwise([0, *cuts, count]):
        now, part = one.part(lo, hi).step(now)
        parts.append(part)
    assert_same(join_scores(parts), scores)
    assert_same_state(now, state)


def test_one_slot_a_step_changes_no_bit() -> None:
    one, (state, scores) = RECORDINGS[0], WHOLE[0]
    now, parts = one.state(), []
    for k in range(len(one.slots)):
        now, part = one.part(k, k + 1).step(now)
        parts.append(part)
    assert_same(join_scores(parts), scores)
    assert_same_state(now, state)


@BOTH
@given(
    cut=st.floats(0, 1), streams=st.lists(st.integers(0, STREAMS - 1), min_size=1, max_size=STREAMS - 1, unique=True)
)
@settings(max_examples=25, deadline=None)
def test_streams_part_and_join_again(which: int, cut: float, streams: list[int]) -> None:
    one, (_, scores) = RECORDINGS[which], WHOLE[which]
    at, others = round(cut * len(one.slots)), [s for s in range(STREAMS) if s not in streams]
    begun, first = one.part(0, at).step(one.state())
    split = [take_streams(begun, streams), take_streams(begun, others)]
    split = [from_arrays(one.state(), to_arrays(part)) for part in split]
    _, alone = one.part(at, len(one.slots), streams).step(split[0])
    _, second = one.part(at, len(one.slots), [*streams, *others]).step(join_streams(split))
    assert_same(join_scores([first, take(second, np.argsort([*streams, *others]))]), scores)
    assert_same(join_scores([take(first, streams), alone]), scores, streams)


def take(scores: Scores, streams: NDArray[np.intp] | list[int]) -> Scores:
    names = [field.name for field in fields(Scores) if field.name != "time_ns"]
    return replace(scores, **{name: getattr(scores, name)[:, streams] for name in names})


def test_a_stream_that_joins_learns_beside_those_that_have_learned() -> None:
    one, (learned, _) = RECORDINGS[0], WHOLE[0]
    later = replace(one, slots=one.slots + 60_000)
    fresh = initial(one.kind, 1, one.vectors.shape[2])
    both, scores = later.part(0, 900, [0, 5, 5]).step(join_streams([take_streams(learned, [0, 5]), fresh]))
    _, alone = later.part(0, 900, [0, 5]).step(take_streams(learned, [0, 5]))
    assert_same(take(scores, [0, 1]), alone)
    assert_same(take(scores, [2]), later.part(0, 900, [5]).step(fresh)[1])
    assert scores.status[[0, -1], 2].tolist() == [Status.LEARNING, Status.SCORED]
    assert both.reference.learned.all()


def test_a_reference_that_is_given_serves_at_once_and_nothing_is_gathered() -> None:
    one, (learned, _) = RECORDINGS[0], WHOLE[0]
    state = initial(one.kind, 2, one.vectors.shape[2], take_streams(learned.reference, [5, 0]))
    after, scores = one.part(0, 300, [5, 0]).step(state)
    covered = one.coverage[:300, [5, 0]] >= one.kind.floor
    np.testing.assert_array_equal(scores.status, np.where(covered, Status.SCORED, Status.REFUSED))
    assert not scores.missing_s.any()
    assert not any(page.size for page in after.gathered)
    assert_same_state(after, state)
    with pytest.raises(ReferenceMismatchError, match="layer next scores 3 streams"):
        initial(one.kind, 3, one.vectors.shape[2], learned.reference)
    with pytest.raises(ReferenceMismatchError, match="9 columns"):
        initial(one.kind, 1, 9, blank_reference(1, 6))


def test_what_was_gathered_is_let_go_once_all_have_learned() -> None:
    state, _ = WHOLE[0]
    assert all(page.shape == (STREAMS, 0, 9) and page.base is None for page in state.gathered)


def test_without_coverage_nothing_is_learned_and_nothing_scored() -> None:
    one = RECORDINGS[0].part(0, 800, [0, 5])
    one = replace(one, kind=replace(FRAME, floor=0.0), coverage=np.ones_like(one.coverage))
    one.coverage[:, 1] = 0
    state, scores = one.step(one.state())
    assert state.reference.learned.tolist() == [True, False]
    assert state.taken.tolist() == [FRAME.needed, 0]
    assert (scores.status[:, 1] == Status.LEARNING).all()
    assert (scores.missing_s[:, 1] == FRAME.needed * FRAME.every / FRAME.rate_hz).all()
    one.coverage[:, 0] = 0
    _, scores = replace(one, slots=one.slots + 6000).step(state)
    assert (scores.status[:, 0] == Status.REFUSED).all()
    assert np.isnan(scores.minus_ln_p).all()
    assert (scores.pattern == -1).all()


def test_a_vector_without_columns_is_refused_whatever_its_coverage() -> None:
    kind = replace(FRAME, floor=0.0)
    nothing = np.full((1, STREAMS, 9), np.nan, np.float32)
    slots, coverage = RECORDINGS[0].slots[-1:] + 1, np.ones((1, STREAMS), np.float32)
    _, scores = step(kind, WHOLE[0][0], slots=slots, vectors=nothing, coverage=coverage)
    assert (scores.status == Status.REFUSED).all()


@BOTH
def test_contributions_add_up_to_the_distance(which: int) -> None:
    one, (state, scores) = RECORDINGS[which], WHOLE[which]
    k = len(one.slots) - 1 - int(np.argmax(scores.status[::-1, 0] == Status.SCORED))
    found = explain(one.kind, state, scores.vectors[k, 0], 0)
    assert found.share.sum() == pytest.approx(scores.distance[k, 0], rel=1e-6)
    np.testing.assert_array_equal(found.value, one.vectors[k, 0])
    z = found.z[~np.tile(one.kind.logged, CHANNELS)]
    assert (z > 0).all(), "30 was added to each"


def test_a_threshold_is_exceeded_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(8)
    kind = replace(FRAME, every=1, tick=1, overlap=1, needed=300)
    mixing = rng.normal(size=(9, 9))
    vectors = (rng.standard_t(6, size=(3000, 30, 9)) @ mixing).astype(np.float32)
    coverage = np.ones((3000, 30), np.float32)
    _, scores = step(kind, initial(kind, 30, 9), slots=np.arange(3000), vectors=vectors, coverage=coverage)
    surprise = scores.minus_ln_p[scores.status == Status.SCORED]
    assert surprise.size == 2700 * 30
    for p in (0.1, 1e-2, 1e-3):
        assert p / 3 < (surprise > -np.log(p)).mean() < 3 * p


def test_streams_that_wait_learn_at_the_ticks_and_all_when_settled() -> None:
    columns = 60
    kind = replace(FRAME, every=1, tick=5, overlap=1, needed=50)
    at_once = LEARN_NUMBERS // (kind.needed * columns)
    streams = 2 * at_once + 10
    vectors = np.random.default_rng(2).normal(size=(65, streams, columns)).astype(np.float32)
    slots, coverage = np.arange(1, 66), np.ones((65, streams), np.float32)
    start = initial(kind, streams, columns)
    _, scores = step(kind, start, slots=slots, vectors=vectors, coverage=coverage)
    scored = (scores.status == Status.SCORED).sum(1)
    # The fiftieth vector is that of slot 50; a reference serves from the slot after its tick.
    wanted = [0] * 50 + [at_once] * 5 + [2 * at_once] * 5 + [streams] * 5
    assert scored.tolist() == wanted
    state, _ = step(kind, start, slots=slots[:52], vectors=vectors[:52], coverage=coverage[:52])
    assert int(state.reference.learned.sum()) == at_once
    assert settle(kind, state).reference.learned.all()
    assert int(state.reference.learned.sum()) == at_once, "the state that was given is left as it was"


def test_what_does_not_fit_is_refused() -> None:
    slots, vectors, coverage = np.arange(4), np.zeros((4, 2, 6), np.float32), np.ones((4, 2), np.float32)
    state = initial(FRAME, 2, 6)
    with pytest.raises(ShapeError, match="no whole channels"):
        initial(FRAME, 2, 7)
    with pytest.raises(ShapeError, match="4 slots, vectors"):
        step(FRAME, state, slots=slots, vectors=vectors[:, :, :3], coverage=coverage)
    with pytest.raises(ShapeError, match="coverage"):
        step(FRAME, state, slots=slots, vectors=vectors, coverage=coverage[:, :1])
    with pytest.raises(ShapeError, match="0 factors"):
        step(FRAME, state, slots=slots, vectors=vectors, coverage=coverage, grains=np.ones((4, 2, 2), np.float32))
    with pytest.raises(ShapeError, match="grains"):
        step(
            TICK,
            initial(TICK, 2, 6),
            slots=slots,
            vectors=vectors,
            coverage=coverage,
            grains=np.ones((4, 2, 6), np.float32),
        )
    with pytest.raises(TimeOrderError, match="ascend"):
        step(FRAME, state, slots=slots[::-1], vectors=vectors, coverage=coverage)


def test_kinds_of_equal_settings_are_equal() -> None:
    assert {FRAME, replace(FRAME), replace(FRAME, needed=56)} == {FRAME, replace(FRAME, needed=56)}
