"""The benchmark of the predictor: what it counts, how it searches, what it refuses to time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.engines import ArrayEngine
from scripts.bench.predictor import agree, largest, network, numpy_contestant, step_flops, steps
from tests.reference.lstm import first_state_of, step_each
from tests.reference.small_network import frames, small_weights


@given(limit=st.integers(0, 10**6), first=st.integers(1, 10**6), within=st.sampled_from([0.02, 0.1]))
def test_the_largest_number_in_time_is_found(limit: int, first: int, within: float) -> None:
    asked: list[int] = []

    def keeps_up(number: int) -> bool:
        asked.append(number)
        return number <= limit

    found = largest(keeps_up, first, within)
    assert found <= limit
    assert limit - found <= max(1, within * found)
    assert found == 0 or found in asked
    assert len(asked) < 90


def test_operations_are_those_of_the_products() -> None:
    # By hand: 3 inputs and 4 outputs to 16 gates, twice 4 to 16, 4 to 6; a multiplication and an addition each.
    weights = small_weights(inputs=3, hidden=4, layers=2, outputs=6)
    assert step_flops(weights) == 2 * ((3 + 4) * 16 + (4 + 4) * 16 + 4 * 6)


def test_a_window_of_steps_is_that_of_the_equations() -> None:
    weights = small_weights(2, scale=0.3)
    inputs = frames(3, 30, 4, weights.inputs)
    state = np.stack([first_state_of(weights)] * 4)
    expected = np.empty(0)
    for frame in inputs:
        expected, state = step_each(weights, frame, state)
    for window in (steps(ArrayEngine(weights)), *numpy_contestant(weights).windows.values()):
        np.testing.assert_allclose(window(inputs), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("wrong", [2e-5, np.nan, np.inf])
def test_what_does_not_agree_is_not_timed(wrong: float) -> None:
    raw = np.zeros((3, 4), np.float32)
    agree(raw, raw + np.float32(9e-6), "these")
    other = raw.copy()
    other[1, 2] = wrong
    with pytest.raises(SystemExit, match="these differ by"):
        agree(raw, other, "these")
    with pytest.raises(SystemExit, match="nothing was measured"):
        agree(raw, raw[:2], "these")


def test_the_network_is_of_the_default_size_or_bundled() -> None:
    spec, weights, _, _ = network()
    assert (weights.inputs, weights.outputs) == (spec.inputs, spec.outputs)
    assert weights.state_shape[1] == 2
