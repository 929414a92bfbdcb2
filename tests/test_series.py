"""What the network learns from is what it will be judged on, and hangs on nothing that comes later."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.features import turns
from models.layout import Layout, place
from models.predictor import Predictor
from models.series import FARTHEST, rows, typical_scale
from models.spec import SLOTS
from tests.reference.small_predictor import BRIDGE, SPEC, WARM, ConstantEngine, ambient

C, K, F = len(SLOTS), len(SPEC.horizons), SPEC.inputs
TWO = [*SLOTS, "current_magnitude", "active_power"]
LAYOUT = place(SLOTS, [TWO, [*SLOTS], [*SLOTS[2:]], [*SLOTS]], ["a", "a", "", "a"])


def parts(
    values: NDArray[np.float32], good: NDArray[np.bool_], fit: NDArray[np.bool_] | None = None, layout: Layout = LAYOUT
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Inputs, targets `(T, S, C', K)` and weights."""
    made = rows(SPEC, layout, values, good, np.ones(values.shape[:2], bool) if fit is None else fit)
    targets, weights = made[:, :, F:].reshape(*made.shape[:2], 2, C, K).swapaxes(0, 2).swapaxes(1, 2)
    return made[:, :, :F], layout.scatter(targets), layout.scatter(weights)


def recording(seed: int, frames: int = 120) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    values = ambient(seed, frames, 4, len(TWO))
    values[:, :, 3] = (values[:, :, 3] * 20 + 160 + 180) % 360 - 180
    good = np.random.default_rng(seed).random(values.shape) > 0.05
    good[50 : 50 + BRIDGE] = False
    good[80 : 80 + BRIDGE + 2] = False
    return values, good


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_targets_are_what_a_predictor_that_knows_nothing_would_be_judged_on(seed: int) -> None:
    values, good = recording(seed)
    predictor = Predictor(SPEC, LAYOUT, ConstantEngine(), adapts=False)
    _, forecast = predictor.step(predictor.initial(), np.arange(len(values)), values, good)
    _, targets, weights = parts(values, good)
    judged = ~np.isnan(forecast.deviation)
    assert judged.sum() > 1000
    for k, ahead in enumerate(SPEC.horizons):
        # What row r asks for comes `ahead - 1` frames after it.
        asked, wanted = weights[: len(values) - ahead + 1, ..., k], targets[: len(values) - ahead + 1, ..., k]
        was, deviation = judged[ahead - 1 :, ..., k], forecast.deviation[ahead - 1 :, ..., k]
        np.testing.assert_array_equal(wanted[was], np.clip(deviation[was], -FARTHEST, FARTHEST))
        assert (asked[was] == 1).all()
        # And whatever it asks for is judged once the PMU is warm.
        warm = forecast.warm[ahead - 1 :, :, None] & (asked == 1)
        late = np.arange(len(warm)) > 110
        np.testing.assert_array_equal(was[late], warm[late])
        assert not np.nansum(weights[len(values) - ahead + 1 :, ..., k])


def test_nobody_is_asked_for_what_is_not_good_nor_fit_nor_new() -> None:
    values, good = recording(4)
    fit = np.ones(values.shape[:2], bool)
    fit[60:70, 1] = False
    _, targets, weights = parts(values, good, fit)
    for k, ahead in enumerate(SPEC.horizons):
        read = good & np.isfinite(values)
        for r in range(1, len(values) - ahead + 1):
            base, due = r - 1, r - 1 + ahead
            expected = read[due] & fit[due][:, None] & fit[base][:, None] & read[max(0, base - BRIDGE) : r].any(0)
            np.testing.assert_array_equal(weights[r, ..., k] == 1, expected & LAYOUT.predicted)
    assert not weights[0][LAYOUT.predicted].any()
    np.testing.assert_array_equal(targets[weights == 0], 0)
    assert set(np.unique(weights[~np.isnan(weights)])) == {0.0, 1.0}


def test_what_comes_after_counts_as_no_further_than_the_farthest() -> None:
    values, good = ambient(5, 60, 4, len(TWO)), np.ones((60, 4, len(TWO)), bool)
    values[40:] += 100
    _, targets, _ = parts(values, good)
    assert np.nanmax(targets) == FARTHEST


@given(seed=st.integers(0, 50), now=st.integers(1, 119))
@settings(max_examples=10, deadline=None)
def test_no_row_hangs_on_the_future(seed: int, now: int) -> None:
    values, good = recording(seed)
    other_values, other_good = values.copy(), good.copy()
    rng = np.random.default_rng(seed + 1)
    other_values[now:] = rng.normal(size=values[now:].shape)
    other_good[now:] = rng.random(values[now:].shape) > 0.5
    inputs, targets, weights = parts(values, good)
    other, other_targets, other_weights = parts(other_values, other_good)
    np.testing.assert_array_equal(inputs[:now], other[:now])
    assert (inputs[now:] != other[now:]).any()
    for k, ahead in enumerate(SPEC.horizons):
        known = max(0, now - ahead + 1)
        np.testing.assert_array_equal(targets[:known, ..., k], other_targets[:known, ..., k])
        np.testing.assert_array_equal(weights[:known, ..., k], other_weights[:known, ..., k])


def test_inputs_are_those_of_the_predictor_while_nothing_is_missing() -> None:
    class Listening(ConstantEngine):
        def step(
            self, inputs: NDArray[np.float32], state: NDArray[np.float32]
        ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
            heard.append(inputs)
            return super().step(inputs, state)

    heard: list[NDArray[np.float32]] = []
    values, _ = recording(6)
    good = np.ones(values.shape, bool)
    predictor = Predictor(SPEC, LAYOUT, Listening(mean=0.5))
    predictor.step(predictor.initial(), np.arange(len(values)), values, good)
    np.testing.assert_array_equal(np.stack(heard), parts(values, good)[0])


def test_a_stretch_shorter_than_a_horizon_asks_for_what_it_has() -> None:
    values, good = recording(7, 4)
    good[:] = True
    _, _, weights = parts(values, good)
    assert [int(np.nansum(weights[..., k])) for k in range(K)] == [
        3 * LAYOUT.predicted.sum(),
        LAYOUT.predicted.sum(),
        0,
    ]


def test_typical_scales_are_those_of_the_noise() -> None:
    rng = np.random.default_rng(8)
    size = np.asarray([0.01, 0.1, 1.0, 0.5, 2.0, 3.0, 4.0])
    slots = (rng.normal(size=(3000, 4, C)) * size).astype(np.float32)
    angle = SLOTS.index("voltage_angle")
    slots[..., angle] = (slots[..., angle] + 180 + 180) % 360 - 180
    slots[rng.random(slots.shape) < 0.01] = np.nan
    slots[..., 6] = np.nan
    found = np.asarray(typical_scale(SPEC.rate_hz, SPEC.paces_s, slots, turns(SPEC)))
    # White noise against the sample before has twice its variance; against a level of pace a, 1 + a / (2 - a) times.
    a = 1 - np.exp(-1 / (SPEC.rate_hz * np.asarray(SPEC.paces_s)))
    factor = np.sqrt([2, *(1 + a / (2 - a))])
    np.testing.assert_allclose(found[:6], size[:6, None] * factor, rtol=0.05)
    np.testing.assert_array_equal(found[6], 1)


def test_a_channel_that_mostly_rests_has_a_scale_yet() -> None:
    slots = np.ones((2000, 2, C), np.float32)
    slots[::10, :, 0] = 1.5
    found = np.asarray(typical_scale(SPEC.rate_hz, SPEC.paces_s, slots, turns(SPEC)))
    assert (found > 0).all()
    assert 0.1 < found[0, 0] < 0.3
    np.testing.assert_array_equal(found[1:], 1)


def test_a_layout_with_two_views_has_a_row_for_each() -> None:
    values, good = recording(9)
    assert rows(SPEC, LAYOUT, values, good, np.ones(values.shape[:2], bool)).shape == (120, 5, F + SPEC.outputs)
    assert WARM < 120
