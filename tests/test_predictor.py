"""The stepping predictor: cuts, holes, gaps, second currents, angles, company, and a state that can be taken down."""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from baselines.stream_axis import join_streams, take_streams, to_arrays
from gridsense.freezing import freeze, thaw
from models.engines import ArrayEngine, Engine
from models.errors import ShapeError
from models.layout import Layout, place
from models.predictor import NEVER, Forecast, Predictor, State
from models.spec import SLOTS
from tests.reference.small_network import small_weights
from tests.reference.small_predictor import BRIDGE, SPEC, WARM, ConstantEngine, MixingEngine, ambient

TWO = [*SLOTS, "current_magnitude", "active_power", "harmonics"]
LAYOUT = place(SLOTS, [TWO, [*SLOTS], [*SLOTS[2:]], [*SLOTS], []], ["a", "a", "", "a", "a"])
PMUS, WIDTH = LAYOUT.channel.shape[0], LAYOUT.width
ALONE = place(SLOTS, [TWO, [*SLOTS], [*SLOTS[2:]], [*SLOTS]], [""] * 4)
FRAMES = 130
SLOT = {name: c for c, name in enumerate(SLOTS)}
BLOCK = tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.bool_]]


def recording(seed: int = 0, layout: Layout = LAYOUT, frames: int = FRAMES) -> BLOCK:
    """Ambient readings with single gaps, two silences of a PMU, and a channel that goes for long."""
    pmus = len(layout.channel)
    values = ambient(seed, frames, pmus, layout.width)
    good = np.random.default_rng(seed).random(values.shape) > 0.03
    good[40 : 40 + BRIDGE, 1] = False
    good[60 : 62 + BRIDGE, 0] = False
    good[50:100, 3, 2] = False
    return 1_000_003 + np.arange(frames), values, good


def quiet(frames: int = FRAMES, layout: Layout = LAYOUT, seed: int = 0) -> BLOCK:
    slots, values, _ = recording(seed, layout, frames)
    return slots, values, np.ones(values.shape, bool)


def played(predictor: Predictor, block: BLOCK, cuts: list[int], state: State | None = None) -> tuple[State, Forecast]:
    """The block in pieces."""
    state, parts = state or predictor.initial(), []
    for lo, hi in pairwise(sorted({0, len(block[0]), *cuts})):
        state, forecast = predictor.step(state, *(part[lo:hi] for part in block))
        parts.append(forecast)
    return state, Forecast(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Forecast)))


def some(block: BLOCK, which: slice | NDArray[np.bool_]) -> BLOCK:
    slots, values, good = block
    return slots[which], values[which], good[which]


def assert_same(
    found: Forecast, other: Forecast, at: NDArray[np.bool_] | None = None, pmus: list[int] | None = None
) -> None:
    for each in fields(Forecast):
        mine, theirs = getattr(found, each.name), getattr(other, each.name)
        theirs = theirs if at is None else theirs[at]
        theirs = theirs if pmus is None or each.name == "slots" else theirs[:, pmus]
        np.testing.assert_array_equal(mine, theirs, err_msg=each.name)


def assert_same_state(found: State, other: State) -> None:
    theirs = to_arrays(other)
    for name, array in to_arrays(found).items():
        assert array.dtype == theirs[name].dtype, name
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)


NETWORK = ArrayEngine(small_weights(3, inputs=SPEC.inputs, hidden=8, outputs=SPEC.outputs, scale=0.2))
engines = pytest.mark.parametrize("engine", [MixingEngine(), NETWORK], ids=["mixing", "lstm"])


@engines
@given(cuts=st.lists(st.integers(1, FRAMES - 1), max_size=20), seed=st.integers(0, 20))
@settings(max_examples=12, deadline=None)
def test_cutting_the_stream_changes_no_bit(engine: Engine, cuts: list[int], seed: int) -> None:
    predictor, block = Predictor(SPEC, LAYOUT, engine), recording(seed)
    state, whole = played(predictor, block, [])
    assert (~np.isnan(whole.deviation)).sum() > 1000
    cut_state, cut = played(predictor, block, cuts)
    assert_same(cut, whole)
    assert_same_state(cut_state, state)
    assert_same(played(predictor, block, list(range(FRAMES)))[1], whole)


@given(garbage=st.sampled_from([0.0, 1e30, -180.0, float("inf"), float("nan")]))
@settings(deadline=None)
def test_what_is_not_good_is_not_looked_at(garbage: float) -> None:
    predictor, (slots, values, good) = Predictor(SPEC, LAYOUT, MixingEngine()), recording()
    state, forecast = predictor.step(predictor.initial(), slots, values, good)
    blotted = np.where(good, values, np.float32(garbage))
    other_state, other = predictor.step(predictor.initial(), slots, blotted, good)
    assert_same(other, forecast)
    assert_same_state(other_state, state)


@pytest.mark.parametrize("number", [np.inf, -np.inf, np.nan])
def test_what_is_no_number_is_not_good(number: float) -> None:
    predictor, (slots, values, good) = Predictor(SPEC, LAYOUT, MixingEngine()), recording()
    spoiled, missing = values.copy(), good.copy()
    spoiled[30, 1, 2], missing[30, 1, 2] = number, False
    state, forecast = predictor.step(predictor.initial(), slots, spoiled, good)
    other_state, other = predictor.step(predictor.initial(), slots, values, missing)
    assert_same(other, forecast)
    assert_same_state(other_state, state)


@engines
@given(hole=st.integers(1, 40), at=st.integers(1, 60), cut=st.booleans())
@settings(max_examples=25, deadline=None)
def test_places_left_out_are_frames_that_did_not_come(engine: Engine, hole: int, at: int, *, cut: bool) -> None:
    predictor, block = Predictor(SPEC, LAYOUT, engine), recording(5)
    there = np.ones(FRAMES, bool)
    there[at : at + hole] = False
    explicit = block[0], block[1], block[2] & there[:, None, None]
    state, whole = played(predictor, explicit, [])
    left_out = some(block, there)
    holed_state, holed = played(predictor, left_out, [at] if cut else [])
    assert_same(holed, whole, there)
    assert_same_state(holed_state, state)


@given(hole=st.integers(0, 12))
@settings(max_examples=13, deadline=None)
def test_what_was_expected_of_a_frame_is_what_was_said_ahead_of_it(hole: int) -> None:
    predictor, block = Predictor(SPEC, LAYOUT, MixingEngine()), recording(6)
    there = np.ones(FRAMES, bool)
    there[70 : 70 + hole] = False
    forecast = played(predictor, some(block, there), [20, 71])[1]
    at = {slot: t for t, slot in enumerate(forecast.slots.tolist())}
    compared = 0
    for k, ahead in enumerate(SPEC.horizons):
        for slot, t in at.items():
            if slot - ahead in at:
                before = at[slot - ahead]
                np.testing.assert_array_equal(forecast.expected[t, ..., k], forecast.ahead[before, ..., k])
                np.testing.assert_array_equal(forecast.spread[t, ..., k], forecast.ahead_spread[before, ..., k])
                compared += (~np.isnan(forecast.expected[t, ..., k])).sum()
    assert compared > 5000
    judged = ~np.isnan(forecast.deviation)
    away = (some(block, there)[1][..., None] - forecast.expected) / forecast.spread
    np.testing.assert_array_equal(forecast.deviation[judged], away[judged])


def test_after_a_hole_what_was_said_before_it_still_stands() -> None:
    predictor, block = Predictor(SPEC, LAYOUT, MixingEngine()), quiet()
    there = np.ones(FRAMES, bool)
    there[61 : 61 + BRIDGE + 1] = False  # 60 is the last, 67 the next: 7 frames on
    forecast = played(predictor, some(block, there), [])[1]
    np.testing.assert_array_equal(forecast.expected[61, ..., 2], forecast.ahead[60, ..., 2])
    assert not np.isnan(forecast.expected[61, 1, :7, 2]).any()
    assert not np.isnan(forecast.expected[61, 1, :7, 1]).any()  # said while it was bridged
    assert np.isnan(forecast.expected[61, 1, :, 0]).all()  # nobody was there to say it


def test_a_gap_is_bridged_by_predictions() -> None:
    # It says that all grows by half a unit a frame.
    predictor = Predictor(SPEC, LAYOUT, ConstantEngine(mean=0.5), adapts=False)
    slots, values, good = quiet()
    good[70 : 70 + BRIDGE, 1, 2] = False
    state, forecast = played(predictor, (slots, values, good), [70, 70 + BRIDGE])
    ahead = forecast.ahead[69 : 70 + BRIDGE, 1, 2]
    unit = (ahead[0, 0] - values[69, 1, 2]) / 0.5
    steps = np.diff(ahead[:, 0])
    np.testing.assert_allclose(steps, 0.5 * unit, rtol=1e-3)
    np.testing.assert_array_equal(forecast.expected[70 : 70 + BRIDGE, 1, 2, 0], ahead[:-1, 0])
    assert np.isnan(forecast.deviation[70 : 70 + BRIDGE, 1, 2]).all()
    # The scale learns nothing meanwhile, and the frame after is judged at once.
    spread = forecast.ahead_spread[69:75, 1, 2]
    np.testing.assert_array_equal(spread, np.repeat(spread[:1], len(spread), 0))
    assert not np.isnan(forecast.deviation[70 + BRIDGE, 1, 2]).any()
    assert state.frames[1, 0] == WARM


def test_after_a_longer_gap_a_view_begins_anew_and_is_not_judged_until_it_is_warm() -> None:
    predictor, block = Predictor(SPEC, LAYOUT, ConstantEngine()), quiet()
    slots, values, good = block
    good = good.copy()
    good[70 : 71 + BRIDGE, 1] = False
    before, first = played(predictor, (slots[:76], values[:76], good[:76]), [])
    assert before.frames[1, 0] == 0
    assert before.network[1, 0, 0, 0, 0] == 100
    assert (before.frames[[0, 2, 3], 0] == WARM).all()
    assert np.isnan(first.ahead[75, 1]).all()
    assert not np.isnan(first.ahead[74, 1, :7]).any()
    after, forecast = played(predictor, (slots[76:], values[76:], good[76:]), [1, 2, 9], before)
    assert after.network[1, 0, 0, 0, 0] == 100 + FRAMES - 76
    warm = forecast.warm[:, 1]
    assert not warm[: WARM - 1].any()
    assert warm[WARM - 1 :].all()
    assert np.isnan(forecast.deviation[: WARM - 1, 1]).all()
    assert not np.isnan(forecast.deviation[WARM - 1 :, 1, :7]).any()
    assert not np.isnan(forecast.ahead[0, 1, :7]).any()  # predicted from the first frame on
    assert forecast.warm[:, [0, 2, 3]].all()


def test_a_pmu_that_begins_anew_is_as_one_that_begins_but_for_its_scale() -> None:
    slots, values, good = quiet(layout=ALONE)
    good[70 : 71 + BRIDGE, 1] = False
    predictor = Predictor(SPEC, ALONE, MixingEngine(), adapts=False)
    state, _ = played(predictor, (slots[:76], values[:76], good[:76]), [])
    fresh = predictor.initial()
    fresh = replace(fresh, running=replace(fresh.running, square=state.running.square, count=state.running.count))
    rest = slots[76:], values[76:], good[76:]
    went_on, began = played(predictor, rest, [], state)[1], played(predictor, rest, [], fresh)[1]
    np.testing.assert_array_equal(went_on.ahead[:, 1], began.ahead[:, 1])
    np.testing.assert_array_equal(went_on.warm[:, 1], began.warm[:, 1])
    assert (went_on.ahead[:, 0] != began.ahead[:, 0]).any()


@pytest.mark.parametrize("gone", [BRIDGE, BRIDGE + 1, 40])
def test_silence_of_one_touches_no_other(gone: int) -> None:
    predictor, block = Predictor(SPEC, ALONE, MixingEngine()), recording(7, ALONE)
    slots, values, good = block
    silent = good.copy()
    silent[70 : 70 + gone, 1] = False
    whole, other = played(predictor, block, [])[1], played(predictor, (slots, values, silent), [])[1]
    rest = [0, 2, 3]
    np.testing.assert_array_equal(other.ahead[:, rest], whole.ahead[:, rest])
    np.testing.assert_array_equal(other.deviation[:, rest], whole.deviation[:, rest])
    assert (other.warm[:, 1] != whole.warm[:, 1]).any() == (gone > BRIDGE)


def test_a_channel_that_is_gone_for_long_leaves_its_view_alone() -> None:
    predictor, (slots, values, good) = Predictor(SPEC, LAYOUT, ConstantEngine()), quiet()
    good[50:100, 1, 2] = False
    values[100:, 1, 2] += 5
    state, forecast = played(predictor, (slots, values, good), [])
    assert forecast.warm[WARM - 1 :, 1].all()
    assert state.network[1, 0, 0, 0, 0] == 100 + FRAMES
    others = [0, 1, 3, 4, 5, 6]
    assert not np.isnan(forecast.deviation[WARM:, 1][:, others]).any()
    assert not np.isnan(forecast.ahead[54, 1, 2]).any()
    assert np.isnan(forecast.ahead[55:100, 1, 2]).all()
    assert np.isnan(forecast.deviation[50:101, 1, 2]).all()  # the first that returns was predicted by nobody
    assert not np.isnan(forecast.deviation[107:, 1, 2]).any()
    # It returns elsewhere: that is no surprise, for its level begins anew.
    assert np.abs(forecast.deviation[101:, 1, 2, 0]).max() < 10


def test_a_second_current_that_dies_takes_nothing_with_it() -> None:
    predictor, (slots, values, good) = Predictor(SPEC, LAYOUT, ConstantEngine()), quiet()
    good[50:100, 0, 7:9] = False
    state, forecast = played(predictor, (slots, values, good), [])
    np.testing.assert_array_equal(state.network[0, :, 0, 0, 0], [100 + FRAMES, 100 + 30])
    assert forecast.warm[WARM - 1 :, 0].all()
    assert not np.isnan(forecast.deviation[WARM:, 0, :7]).any()
    assert np.isnan(forecast.deviation[100 : 100 + WARM - 1, 0, 7:9]).all()
    assert not np.isnan(forecast.deviation[100 + WARM - 1 :, 0, 7:9]).any()


def test_where_there_is_no_channel_nothing_is_said_nor_remembered() -> None:
    predictor, block = Predictor(SPEC, LAYOUT, MixingEngine()), quiet()
    state, forecast = played(predictor, block, [])
    for each in (forecast.expected, forecast.deviation, forecast.ahead, forecast.ahead_spread):
        there = ~np.isnan(each).all((0, 3))
        np.testing.assert_array_equal(there, LAYOUT.predicted)
    assert not forecast.warm[:, 4].any()
    fresh = to_arrays(predictor.initial())
    for name, array in to_arrays(state).items():
        if name != "slot":
            np.testing.assert_array_equal(array[1:, 1], fresh[name][1:, 1], err_msg=name)
            np.testing.assert_array_equal(array[4], fresh[name][4], err_msg=name)


def test_an_angle_at_half_a_turn_is_like_one_at_none() -> None:
    predictor, angle = Predictor(SPEC, LAYOUT, ConstantEngine(mean=0.7, spread=1.0)), SLOT["voltage_angle"]
    slots, values, good = quiet()
    values = values.copy()
    values[:, [0, 1, 3], angle] = values[:, [0, 1, 3], angle] * 20 - 20
    good[40:43] = False
    turned = values.copy()
    turned[:, [0, 1, 3], angle] = (values[:, [0, 1, 3], angle].astype(np.float64) + 360) % 360 - 180
    assert (np.abs(np.diff(turned[:, [0, 1, 3], angle], axis=0)) > 300).any()
    at_none = played(predictor, (slots, values, good), [])[1]
    at_half = played(predictor, (slots, turned, good), [])[1]
    np.testing.assert_allclose(at_half.deviation, at_none.deviation, rtol=0, atol=0.02)
    for half, none in ((at_half.ahead, at_none.ahead), (at_half.expected, at_none.expected)):
        found = half[:, [0, 1, 3], angle]
        assert np.nanmax(np.abs(found)) <= 180
        back = (found.astype(np.float64) + 360) % 360 - 180
        np.testing.assert_allclose(back, none[:, [0, 1, 3], angle], rtol=0, atol=1e-3)
    assert np.nanmax(np.abs(at_half.deviation[:, [0, 1, 3], angle])) < 50


def test_spreads_are_bounded() -> None:
    for spread in (-100.0, 100.0):
        predictor = Predictor(SPEC, LAYOUT, ConstantEngine(spread=spread))
        forecast = played(predictor, quiet(), [])[1]
        judged = ~np.isnan(forecast.deviation)
        assert np.isfinite(forecast.deviation[judged]).all()
        assert (forecast.spread[judged] > 0).all()


@given(draw=st.data())
@settings(max_examples=10, deadline=None)
def test_company_changes_no_bit(draw: st.DataObject) -> None:
    block = recording(8, ALONE)
    state, whole = played(Predictor(SPEC, ALONE, MixingEngine()), block, [])
    kept = draw.draw(st.permutations(range(4)))[: draw.draw(st.integers(1, 4))]
    layout = Layout(ALONE.channel[kept], ALONE.region[kept], ALONE.width)
    fewer = block[0], block[1][:, kept], block[2][:, kept]
    kept_state, found = played(Predictor(SPEC, layout, MixingEngine()), fewer, [])
    assert_same(found, whole, pmus=kept)
    assert_same_state(kept_state, take_streams(state, kept))


def test_pmus_part_and_join_without_a_trace() -> None:
    block = recording(9, ALONE)
    whole = played(Predictor(SPEC, ALONE, MixingEngine()), block, [])[1]
    state, _ = played(Predictor(SPEC, ALONE, MixingEngine()), some(block, slice(0, 64)), [])
    order = [3, 1, 0, 2]
    swapped = join_streams([take_streams(state, [3, 1]), take_streams(state, [0, 2])])
    layout = Layout(ALONE.channel[order], ALONE.region[order], ALONE.width)
    rest = block[0][64:], block[1][64:, order], block[2][64:, order]
    later = played(Predictor(SPEC, layout, MixingEngine()), rest, [], swapped)[1]
    assert_same(later, whole, np.arange(FRAMES) >= 64, order)


def test_a_pmu_that_joins_begins_and_touches_no_other() -> None:
    block = recording(10, ALONE)
    three = Layout(ALONE.channel[:3], ALONE.region[:3], ALONE.width)
    state, _ = played(Predictor(SPEC, three, MixingEngine()), (block[0][:64], block[1][:64, :3], block[2][:64, :3]), [])
    predictor = Predictor(SPEC, ALONE, MixingEngine())
    joined = join_streams([state, take_streams(predictor.initial(), [3])])
    later = played(predictor, some(block, slice(64, None)), [], joined)[1]
    whole = played(predictor, block, [])[1]
    np.testing.assert_array_equal(later.deviation[:, :3], whole.deviation[64:, :3])
    alone = played(predictor, some(block, slice(64, None)), [])[1]
    np.testing.assert_array_equal(later.deviation[:, 3], alone.deviation[:, 3])


@engines
def test_a_state_is_plain_arrays_pmus_first_and_is_left_alone(engine: Engine) -> None:
    predictor, block = Predictor(SPEC, LAYOUT, engine), recording(11)
    state, _ = played(predictor, some(block, slice(0, 70)), [])
    arrays = to_arrays(state)
    assert all(isinstance(array, np.ndarray) and len(array) == PMUS for array in arrays.values())
    kept = {name: array.copy() for name, array in arrays.items()}
    first = played(predictor, some(block, slice(70, None)), [80])
    for name, array in to_arrays(state).items():
        np.testing.assert_array_equal(array, kept[name], err_msg=name)
    again = played(predictor, some(block, slice(70, None)), [80], state)
    assert_same(played(predictor, some(block, slice(70, None)), [80], state)[1], again[1])
    assert first[1].slots.shape == again[1].slots.shape


def test_a_frozen_state_goes_on_where_it_was_taken_down() -> None:
    predictor, block = Predictor(SPEC, LAYOUT, NETWORK), recording(12)
    state, _ = played(predictor, some(block, slice(0, 70)), [])
    restored = thaw(State, freeze(state, (), {}), {})
    assert_same_state(restored, state)
    rest = some(block, slice(70, None))
    assert_same(played(predictor, rest, [], restored)[1], played(predictor, rest, [], state)[1])
    assert_same_state(thaw(State, freeze(predictor.initial(), (), {}), {}), predictor.initial())


def test_no_frame_is_no_trouble() -> None:
    predictor, block = Predictor(SPEC, LAYOUT, NETWORK), recording()
    state, forecast = predictor.step(predictor.initial(), *some(block, slice(0, 0)))
    assert forecast.deviation.shape == (0, PMUS, WIDTH, len(SPEC.horizons))
    assert (state.slot == NEVER).all()
    assert_same_state(state, predictor.initial())


def test_no_pmu_is_no_trouble() -> None:
    for layout in (place(SLOTS, [], []), place(SLOTS, [["harmonics"], []], ["", ""])):
        predictor, shape = Predictor(SPEC, layout, NETWORK), (3, len(layout.channel), layout.width)
        values, good = np.ones(shape, np.float32), np.ones(shape, bool)
        _, forecast = predictor.step(predictor.initial(), np.arange(3), values, good)
        assert forecast.warm.shape == shape[:2]
        assert not forecast.warm.any()
        assert np.isnan(forecast.ahead).all()


def test_what_does_not_fit_is_refused() -> None:
    predictor, (slots, values, good) = Predictor(SPEC, LAYOUT, MixingEngine()), recording()
    state, _ = predictor.step(predictor.initial(), slots[:10], values[:10], good[:10])
    for block in (
        (slots[10:], values[10:, :2], good[10:, :2]),
        (slots[10:], values[10:, :, :3], good[10:, :, :3]),
        (slots[10:], values[10:], good[10:, :2]),
        (slots[11:], values[10:], good[10:]),
    ):
        with pytest.raises(ShapeError, match="does not fit 5 PMUs of 10 channels"):
            predictor.step(state, *block)
    for first in (9, 3):
        with pytest.raises(ShapeError, match="is not after slot 1000012"):
            predictor.step(state, slots[first:12], values[first:12], good[first:12])
    twice = np.asarray([slots[10], slots[10]])
    with pytest.raises(ShapeError, match="each once"):
        predictor.step(state, twice, values[:2], good[:2])
