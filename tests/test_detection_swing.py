"""A common oscillation is found, and steps, drifts and noise are not mistaken for one."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from gridsense.swing import common_hz, lines

RATE = 30.0
T = np.arange(300) / RATE


def two(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float32]:
    noise = np.random.default_rng(0).normal(0, 0.01, (len(T), 2))
    return (np.stack([first, second], axis=1) + noise).astype(np.float32)[:, :, None]


@pytest.mark.parametrize("hz", [0.4, 1.5, 4.5])
def test_two_that_swing_together_agree_whatever_their_phase(hz: float) -> None:
    swing = two(60 + np.sin(2 * np.pi * hz * T), 300 + 5 * np.cos(2 * np.pi * hz * T + 1))
    assert common_hz(swing, RATE) == pytest.approx(hz, abs=0.11)


def test_two_that_swing_at_different_frequencies_do_not_agree() -> None:
    assert common_hz(two(np.sin(2 * np.pi * 0.8 * T), np.sin(2 * np.pi * 1.6 * T)), RATE) is None


@pytest.mark.parametrize("at", [3.0, 5.0, 8.0])
def test_steps_and_drifts_are_no_oscillation(at: float) -> None:
    assert common_hz(two((at < T).astype(float), np.cumsum(T)), RATE) is None


def test_wander_is_no_oscillation() -> None:
    rng = np.random.default_rng(3)
    agreed = 0
    for _ in range(200):
        walk = np.cumsum(rng.normal(0, 1, (len(T), 2)), axis=0)
        agreed += common_hz(walk.astype(np.float32)[:, :, None], RATE) is not None
    assert agreed <= 2


def test_an_oscillation_in_a_wander_is_found() -> None:
    rng = np.random.default_rng(5)
    walk = np.cumsum(rng.normal(0, 0.02, (len(T), 2)), axis=0)
    assert common_hz(two(walk[:, 0] + 0.2 * np.sin(9.4 * T), walk[:, 1] + 0.2 * np.sin(9.4 * T)), RATE) is not None


def test_a_refused_frame_is_bridged_and_a_refused_channel_is_silent() -> None:
    swing = two(np.sin(2 * np.pi * T), np.sin(2 * np.pi * T))
    swing[100] = np.nan
    assert common_hz(swing, RATE) == pytest.approx(1.0, abs=0.11)
    swing[:100, 1] = np.nan
    _, share = lines(swing, RATE)
    assert share[1, 0] == 0
    assert share[0, 0] > 0.4
