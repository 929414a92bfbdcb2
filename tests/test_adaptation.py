"""Each channel's own correction of the shared network."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from models.adaptation import EVERY, Adaptation, Adapted
from models.spec import SLOTS, Spec
from tests.reference.adaptation import PlainCorrection

SPEC = Spec(30.0, (1, 15, 60), (0.5, 3.0), ((1.0,) * 3,) * len(SLOTS))
N, C, K = 2, len(SLOTS), 3
Floats = NDArray[np.float32]


def inputs_of(rng: np.random.Generator) -> Floats:
    return rng.normal(size=(N, SPEC.inputs)).astype(np.float32)


def played(
    truth: NDArray[np.float64], frames: int, seed: int = 0, *, noise: float = 0.3, outliers: bool = False
) -> tuple[Adapted, list[Floats], list[Floats]]:
    """A world in which what comes is `truth` of the terms and noise; the corrections that were said, and what came."""
    rng, adaptation = np.random.default_rng(seed), Adaptation(SPEC)
    state, said, came = adaptation.initial(N), [], []
    history: list[tuple[Floats, Floats, Floats]] = []
    ones = np.ones((N, C, K), np.float32)
    for slot in range(frames):
        away, spread = np.full((N, C, K), np.nan, np.float32), ones.copy()
        for k, h in enumerate(SPEC.horizons):
            if slot >= h:
                terms, corrected, factor = history[slot - h]
                spread[:, :, k] = factor[:, :, k]
                what = terms[:, :, k] @ truth + noise * rng.normal(size=(N, C))
                if outliers and slot % 50 == 5:
                    what += 500.0
                away[:, :, k] = what - corrected[:, :, k]
        state = adaptation.learn(state, slot, away, spread)
        mean, inputs = rng.normal(size=(N, C, K)).astype(np.float32), inputs_of(rng)
        terms, corrected, factor = adaptation.apply(state, mean, inputs)
        state = adaptation.remember(state, slot, terms, corrected, ones)
        history.append((terms, corrected, factor))
        said.append(corrected)
        came.append((terms @ truth).astype(np.float32))
    return state, said, came


def test_it_begins_as_the_networks_word() -> None:
    adaptation, rng = Adaptation(SPEC), np.random.default_rng(0)
    mean = rng.normal(size=(N, C, K)).astype(np.float32)
    terms, corrected, factor = adaptation.apply(adaptation.initial(N), mean, inputs_of(rng))
    np.testing.assert_array_equal(corrected, mean)
    np.testing.assert_array_equal(factor, 1)
    assert terms.shape == (N, C, K, 5)


def test_the_terms_are_the_network_its_deviations_and_the_region() -> None:
    adaptation = Adaptation(SPEC)
    inputs = np.arange(N * SPEC.inputs, dtype=np.float32).reshape(N, -1) / 100
    mean = np.full((N, C, K), 7, np.float32)
    terms, _, _ = adaptation.apply(adaptation.initial(N), mean, inputs)
    c = 4
    own, region = inputs[1, c * K : c * K + K], inputs[1, C * K + c * K + 1]
    for k in range(K):
        np.testing.assert_array_equal(terms[1, c, k], [7, *own, region])


def test_it_learns_what_the_network_does_not_know() -> None:
    truth = np.array([0.5, -0.3, 0.4, 0.0, 0.8])
    state, said, came = played(truth, 3000)
    np.testing.assert_allclose(state.weight.mean((0, 1)), np.tile(truth, (K, 1)), atol=0.06)
    error = np.sqrt(np.mean(np.square(np.array(said[-300:]) - np.array(came[-300:]))))
    first = np.sqrt(np.mean(np.square(np.array(said[:30]) - np.array(came[:30]))))
    assert error < 0.2 * first


def test_a_disturbance_teaches_it_little() -> None:
    truth = np.array([1.0, 0.2, 0.0, -0.2, 0.0])
    calm, _, _ = played(truth, 2000)
    shaken, _, _ = played(truth, 2000, outliers=True)
    assert np.abs(shaken.weight - calm.weight).max() < 0.35
    assert shaken.square.max() < 9


def test_the_spread_follows_how_wide_it_really_is() -> None:
    truth = np.array([1.0, 0, 0, 0, 0])
    narrow, _, _ = played(truth, 9000, noise=0.3)
    assert np.sqrt(narrow.square).mean() == pytest.approx(0.3, rel=0.15)
    wide, _, _ = played(truth, 9000, noise=2.0)
    assert np.sqrt(wide.square).mean() == pytest.approx(2.0, rel=0.15)


@pytest.mark.parametrize("k", range(K))
def test_it_is_the_plain_regression(k: int) -> None:
    rng, adaptation, h = np.random.default_rng(3), Adaptation(SPEC), SPEC.horizons[k]
    state, plain = adaptation.initial(N), PlainCorrection(5, h, SPEC.rate_hz, SPEC.scale_s)
    said: set[int] = set()
    unit, spread = np.full((N, C, K), 0.25, np.float32), np.full((N, C, K), 0.5, np.float32)
    for slot in range(1000, 1600):
        away = np.full((N, C, K), np.nan, np.float32)
        if slot - h in said and slot % 7:
            away[:] = rng.normal(size=away.shape) * (5 if slot % 40 == 0 else 0.4)
        state = adaptation.learn(state, slot, away, spread)
        plain.learn(slot, float(away[1, 2, k]), 0.5)
        terms, corrected, factor = adaptation.apply(
            state, rng.normal(size=(N, C, K)).astype(np.float32), inputs_of(rng)
        )
        state = adaptation.remember(state, slot, terms, corrected, unit)
        expected = plain.say(slot, terms[1, 2, k].astype(float), 0.25)
        said.add(slot)
        assert corrected[1, 2, k] == pytest.approx(np.clip(expected, -10, 10), abs=2e-4)
        assert factor[1, 2, k] == pytest.approx(np.sqrt(plain.square), rel=1e-4)


def test_what_was_said_of_frames_that_did_not_come_is_forgotten() -> None:
    adaptation, rng = Adaptation(SPEC), np.random.default_rng(4)
    ones = np.ones((N, C, K), np.float32)
    state = adaptation.initial(N)
    for slot in range(100):
        terms, corrected, _ = adaptation.apply(state, ones, inputs_of(rng))
        state = adaptation.remember(state, slot, terms, corrected, ones)
    assert all(not np.isnan(one).any() for ring in state.waiting for one in ring)
    gone = adaptation.forget(state, 100, 1000)
    assert all(np.isnan(one).all() for ring in gone.waiting for one in ring)
    some = adaptation.forget(state, 100, 100 + 2 * EVERY)
    assert sum(np.isnan(one).all() for one in some.waiting[2]) == 2
