"""The network's inputs against an obvious way to make them; what a scale makes of a disturbance; angles."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.features import LEAST_SCALE, Features, Regions, Running, scales, wrap
from models.spec import SLOTS, Spec
from tests.reference.features import inputs_of, region_medians
from tests.reference.small_predictor import BRIDGE, SPEC, ambient

ANGLE = SLOTS.index("voltage_angle")
C, K = len(SLOTS), len(SPEC.horizons)


def run(
    spec: Spec, region: list[int], values: NDArray[np.float32], good: NDArray[np.bool_], state: Running | None = None
) -> tuple[Running, NDArray[np.float32]]:
    """All frames, each bridged by the one before."""
    features = Features(spec, Regions(np.asarray(region)))
    state, out = state or features.initial(), []
    for frame, there in zip(values, good, strict=True):
        state, inputs = features.step(state, frame, there, state.last)
        out.append(inputs)
    return state, np.stack(out)


@given(seed=st.integers(0, 1000), missing=st.sampled_from([0.0, 0.1, 0.6]), angle=st.sampled_from([1.0, 180.0]))
@settings(max_examples=15, deadline=None)
def test_inputs_are_those_of_the_obvious_way(seed: int, missing: float, angle: float) -> None:
    rng = np.random.default_rng(seed)
    region = [0, 0, -1, 0, 7, 7, 0]
    values = ambient(seed, 60, len(region), C)
    values[..., ANGLE] = (values[..., ANGLE] - 1 + angle + 180) % 360 - 180
    values[30:, 1] += 0.5
    good = rng.random(values.shape) >= missing
    good[20 : 20 + 2 * BRIDGE, 3] = False
    good[:, 5, 2] = False
    _, inputs = run(SPEC, region, np.where(good, values, np.float32(np.nan)), good)
    expected = inputs_of(SPEC, region, values, good)
    assert np.abs(expected[:, :, : C * K]).max() == SPEC.clip  # the jump: so the bound is looked at
    np.testing.assert_allclose(inputs, expected, rtol=0, atol=0.02 if angle == 180 else 2e-3)


@given(
    region=st.lists(st.integers(-1, 3), min_size=1, max_size=14),
    missing=st.sampled_from([0.0, 0.3, 0.9, 1.0]),
    seed=st.integers(0, 99),
)
def test_a_regions_medians_are_numpys(region: list[int], missing: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(len(region), 4)).astype(np.float32)
    values[rng.random(values.shape) < missing] = np.nan
    found = Regions(np.asarray(region)).medians(values)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, region_medians(region, values.astype(np.float64)), rtol=0, atol=1e-6)


def test_two_are_no_company() -> None:
    values = ambient(1, 20, 5, C)
    _, inputs = run(SPEC, [0, 0, 1, 1, 1], values, np.ones(values.shape, bool))
    medians = inputs[:, :, C * K : 2 * C * K]
    assert not medians[:, :2].any()
    assert np.abs(medians[1:, 2:]).min(axis=2).max() > 0
    np.testing.assert_array_equal(medians[:, 2], medians[:, 4])


def test_what_is_not_good_is_not_looked_at_and_marked() -> None:
    values = ambient(2, 40, 4, C)
    good = np.random.default_rng(3).random(values.shape) > 0.3
    state, inputs = run(SPEC, [0] * 4, values, good)
    other_state, other = run(SPEC, [0] * 4, np.where(good, values, np.float32(1e30)), good)
    np.testing.assert_array_equal(inputs, other)
    np.testing.assert_array_equal(state.level, other_state.level)
    np.testing.assert_array_equal(inputs[:, :, 2 * C * K :], ~good)


def test_a_disturbance_does_not_make_itself_usual() -> None:
    quiet = ambient(4, 200, 1, C)
    good = np.ones((10, 1, C), bool)
    state, _ = run(SPEC, [-1], quiet, np.ones(quiet.shape, bool))
    wild = quiet[:10] + 1000 * np.resize([1, -1], (10, 1, 1)).astype(np.float32)
    after, inputs = run(SPEC, [-1], wild, good, state)
    assert np.abs(inputs[:, 0, : C * K]).max() == SPEC.clip
    # Each frame counts for four times what is usual, at a weight of one in 110 (100 counted, a prior of 10).
    grown = scales(after) / scales(state)
    assert (grown > 1).all()
    assert grown.max() <= (1 + 3 / 100) ** 5 + 1e-3


def test_a_scale_of_a_stream_that_rests_stays_above_its_floor_and_grows_again() -> None:
    still = np.ones((3000, 1, C), np.float32)
    state, inputs = run(SPEC, [-1], still, np.ones(still.shape, bool))
    np.testing.assert_allclose(scales(state)[0], LEAST_SCALE * np.asarray(SPEC.scale), rtol=1e-5)
    assert not inputs[:, :, : C * K].any()
    noise = ambient(5, 1500, 1, C)
    state, _ = run(SPEC, [-1], noise, np.ones(noise.shape, bool), state)
    fresh, _ = run(SPEC, [-1], noise, np.ones(noise.shape, bool))
    np.testing.assert_allclose(scales(state), scales(fresh), rtol=0.1)


def test_after_a_long_gap_levels_begin_anew_and_scales_go_on() -> None:
    values = ambient(6, 60, 1, C)
    values[40:] += 5
    good = np.ones(values.shape, bool)
    good[40 - BRIDGE - 1 : 40] = False
    before, _ = run(SPEC, [-1], values[:40], good[:40])
    after, inputs = run(SPEC, [-1], values[40:41], good[40:41], before)
    assert not inputs[0, 0, : C * K].any()
    np.testing.assert_array_equal(after.level[0], np.repeat(values[40, 0, :, None], K, axis=1))
    np.testing.assert_array_equal(after.square, before.square)
    # One frame less is bridged: the step is seen.
    good[40 - BRIDGE - 1] = True
    before, _ = run(SPEC, [-1], values[:40], good[:40])
    _, inputs = run(SPEC, [-1], values[40:41], good[40:41], before)
    assert (inputs[0, 0, : C * K] == SPEC.clip).all()


def test_an_angle_at_half_a_turn_is_like_one_at_none() -> None:
    values = ambient(7, 100, 3, C) * 4 - 4
    good = np.random.default_rng(8).random(values.shape) > 0.1
    _, at_none = run(SPEC, [0] * 3, values, good)
    turned = values.copy()
    turned[..., ANGLE] = (values[..., ANGLE].astype(np.float64) + 360) % 360 - 180
    assert (np.abs(np.diff(turned[..., ANGLE], axis=0)) > 300).any()
    _, at_half = run(SPEC, [0] * 3, turned, good)
    np.testing.assert_allclose(at_half, at_none, rtol=0, atol=0.03)


def test_wrapping_takes_the_shorter_way_of_angles_alone() -> None:
    values = np.asarray([[350.0, 350.0, np.nan], [-190.0, -190.0, 0.0]], np.float32)
    wrap(values, np.asarray([0, 360, 360], np.float32))
    np.testing.assert_array_equal(values, np.asarray([[350, -10, np.nan], [-190, 170, 0]], np.float32))


def test_a_step_leaves_its_state_alone() -> None:
    values, good = ambient(9, 30, 2, C), np.ones((30, 2, C), bool)
    state, _ = run(SPEC, [-1, -1], values, good)
    kept = {name: getattr(state, name).copy() for name in Running.__slots__}
    run(SPEC, [-1, -1], values, ~good, state)
    run(SPEC, [-1, -1], values + 1, good, state)
    for name, array in kept.items():
        np.testing.assert_array_equal(getattr(state, name), array, err_msg=name)


def test_a_rate_so_slow_that_the_prior_is_no_frame_divides_by_no_zero() -> None:
    slow = replace(SPEC, rate_hz=0.01, bridge_s=200.0)
    values = ambient(10, 20, 1, C)
    state, inputs = run(slow, [-1], values, np.ones(values.shape, bool))
    assert np.isfinite(inputs).all()
    assert np.isfinite(scales(state)).all()
