"""The network's step against an obvious one, at the ends of its range, and its bits."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.network import Folded, first_state, fold, step
from tests.reference.lstm import first_state_of, step_each
from tests.reference.small_network import frames, small_weights


@given(
    seed=st.integers(0, 10**6),
    streams=st.integers(1, 4),
    inputs=st.integers(1, 6),
    hidden=st.integers(1, 6),
    layers=st.integers(1, 3),
    outputs=st.integers(1, 5),
    scale=st.sampled_from([0.1, 0.5, 2.0]),
)
@settings(max_examples=60, deadline=None)
def test_a_step_is_that_of_the_equations(
    *, seed: int, streams: int, inputs: int, hidden: int, layers: int, outputs: int, scale: float
) -> None:
    weights = small_weights(seed, inputs=inputs, hidden=hidden, layers=layers, outputs=outputs, scale=scale)
    state = frames(seed + 1, streams, *weights.state_shape)
    frame = 3 * frames(seed + 2, streams, inputs)
    before = state.copy()
    raw, following = step(fold(weights), frame, state)
    expected_raw, expected_state = step_each(weights, frame, state)
    np.testing.assert_allclose(raw, expected_raw, rtol=0, atol=1e-5)
    np.testing.assert_allclose(following, expected_state, rtol=0, atol=1e-5)
    assert raw.dtype == following.dtype == np.float32
    np.testing.assert_array_equal(state, before)


def test_a_thousand_frames_do_not_drift_from_the_equations() -> None:
    # Not with any weights: where a forget gate stays open, c is a sum that grows, and so does what float32 rounds off.
    weights = small_weights(7, scale=0.3)
    folded, walk = fold(weights), np.clip(np.cumsum(0.2 * frames(8, 1000, 2, weights.inputs), axis=0), -3, 3)
    state = np.stack([first_state(weights)] * 2)
    exact = state.astype(np.float64)
    worst = 0.0
    for frame in walk:
        raw, state = step(folded, frame, state)
        expected, exact = step_each(weights, frame, exact)
        worst = max(worst, np.abs(raw - expected).max(), np.abs(state - exact).max())
    assert worst < 1e-5


@pytest.mark.parametrize("size", [50.0, 1e4, 1e12])
def test_gates_that_are_wide_open_or_shut_overflow_nowhere(size: float) -> None:
    weights = small_weights(3, inputs=4, hidden=8)
    frame = (size * np.sign(frames(4, 6, 4))).astype(np.float32)
    raw, state = step(fold(weights), frame, np.zeros((6, *weights.state_shape), np.float32))
    expected_raw, expected_state = step_each(weights, frame, np.zeros((6, *weights.state_shape)))
    np.testing.assert_allclose(raw, expected_raw, rtol=0, atol=1e-5)
    np.testing.assert_allclose(state, expected_state, rtol=0, atol=1e-5)


def test_a_stream_begins_with_an_embedding_of_zeros_not_with_a_frame_of_zeros() -> None:
    weights = small_weights(5)
    first = first_state(weights)
    assert first.shape == weights.state_shape
    assert first.dtype == np.float32
    np.testing.assert_allclose(first, first_state_of(weights), rtol=0, atol=1e-6)
    zeros = np.zeros((1, weights.inputs), np.float32), np.zeros((1, *weights.state_shape), np.float32)
    _, of_a_frame = step(fold(weights), *zeros)
    assert np.abs(of_a_frame[0] - first).max() > 0.01


@pytest.mark.parametrize("streams", [1, 3, 64, 1000])
def test_the_same_streams_give_the_same_bits(streams: int) -> None:
    weights = small_weights(11, inputs=42, hidden=64, outputs=42, scale=0.2)
    folded, state = fold(weights), frames(12, streams, *weights.state_shape)
    frame = frames(13, streams, weights.inputs)
    once = step(folded, frame, state)
    elsewhere = step(fold(weights), np.array(frame, order="F"), np.ascontiguousarray(state[::-1])[::-1])
    for one, other in zip(once, elsewhere, strict=True):
        np.testing.assert_array_equal(one.view(np.uint32), other.view(np.uint32))


def test_streams_do_not_hear_each_other() -> None:
    weights = small_weights(17, inputs=42, hidden=64, outputs=42, scale=0.2)
    folded, state, frame = fold(weights), frames(18, 9, *weights.state_shape), frames(19, 9, weights.inputs)
    raw, following = step(folded, frame, state)
    frame[4], state[4] = 100.0, -3.0
    others = [0, 1, 2, 3, 5, 6, 7, 8]
    raw_after, following_after = step(folded, frame, state)
    np.testing.assert_array_equal(raw[others], raw_after[others])
    np.testing.assert_array_equal(following[others], following_after[others])
    assert np.abs(raw[4] - raw_after[4]).max() > 0.01


def test_no_stream_is_no_trouble() -> None:
    weights = small_weights()
    raw, state = step(fold(weights), np.zeros((0, weights.inputs), np.float32), np.zeros((0, 2, 2, 4), np.float32))
    assert (raw.shape, state.shape) == ((0, 6), (0, 2, 2, 4))


@pytest.mark.skipif(
    importlib.util.find_spec("array_api_strict") is None, reason="array-api-strict is not installed: nothing to hold to"
)
def test_the_step_uses_nothing_but_the_array_standard() -> None:
    import array_api_strict as xp  # noqa: PLC0415 - optional

    weights = small_weights(23)
    folded, state, frame = fold(weights), frames(24, 3, *weights.state_shape), frames(25, 3, weights.inputs)
    strict = Folded(tuple(xp.asarray(kernel) for kernel in folded.cells), xp.asarray(folded.top))
    raw, following = step(strict, xp.asarray(frame), xp.asarray(state))
    expected_raw, expected_state = step(folded, frame, state)
    assert raw.dtype == xp.float32
    np.testing.assert_allclose(np.asarray(raw), expected_raw, rtol=0, atol=1e-6)
    np.testing.assert_allclose(np.asarray(following), expected_state, rtol=0, atol=1e-6)
