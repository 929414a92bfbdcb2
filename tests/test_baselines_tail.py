"""The tail: -ln p far beyond where p underflows, monotone, continuous, and about right."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from baselines.errors import ShapeError
from baselines.tail import LEAST_SHAPE, TAIL_SHARE, fit_tail, gamma_minus_ln_survival, minus_ln_p


@given(shape=st.floats(0.3, 500), share=st.floats(0.01, 30))
@settings(max_examples=200, deadline=None)
def test_gamma_survival_is_scipys_where_scipy_has_one(shape: float, share: float) -> None:
    x = shape * share
    expected = -stats.gamma.logsf(x, shape)
    if expected < 600:
        np.testing.assert_allclose(gamma_minus_ln_survival(shape, x), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shape", [0.5, 1.0, 7.3, 50.0, 300.0])
def test_gamma_survival_goes_on_where_p_underflows(shape: float) -> None:
    x = np.geomspace(shape, 1e6, 4000)
    surprise = gamma_minus_ln_survival(shape, x)
    assert np.isfinite(surprise).all()
    assert (np.diff(surprise) > 0).all()
    # The continued fraction takes over without a step: the slope is the hazard rate, which tends to 1 from its side.
    slope = np.diff(surprise) / np.diff(x)
    assert np.abs(np.diff(slope)).max() < 0.05
    # Q(k, x) -> x**(k - 1) exp(-x) / Gamma(k)
    assert surprise[-1] == pytest.approx(1e6 - (shape - 1) * math.log(1e6) + math.lgamma(shape), rel=1e-6)


def test_an_exponential_is_its_own_surprise() -> None:
    x = np.array([0.1, 5.0, 700.0, 5000.0, 1e7])
    np.testing.assert_allclose(gamma_minus_ln_survival(1.0, x), x, rtol=1e-12)


@given(
    seed=st.integers(0, 10**6),
    columns=st.integers(2, 300),
    count=st.sampled_from([60, 300, 3000]),
    heavy=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_surprise_grows_with_distance_without_end_and_without_a_step(
    *, seed: int, columns: int, count: int, heavy: bool
) -> None:
    rng = np.random.default_rng(seed)
    distances = rng.chisquare(columns, count) * (1 + heavy * rng.pareto(3, count))
    tail = fit_tail(distances, count / 5)
    x = np.concatenate([np.linspace(1e-3, 3 * distances.max(), 3000), np.geomspace(4 * distances.max(), 1e9, 300)])
    surprise = minus_ln_p(tail, x)
    assert np.isfinite(surprise).all()
    assert (np.diff(surprise) > -1e-9).all()
    assert surprise[-1] > surprise[2999] + 10
    assert float(tail.tail_shape) >= LEAST_SHAPE
    # On both sides of the joint.
    near = np.interp([float(tail.joint)], gamma_minus_ln_survival(tail.shape, x / tail.scale)[:3000], x[:3000])
    around = minus_ln_p(tail, near * np.array([1 - 1e-9, 1 + 1e-9]))
    assert around[1] - around[0] < 1e-6
    assert around[0] == pytest.approx(-np.log(TAIL_SHARE), rel=0.02)


def test_a_large_reference_is_calibrated_far_into_the_tail() -> None:
    rng = np.random.default_rng(0)
    for columns in (5, 60):
        tail = fit_tail(rng.chisquare(columns, 20_000), 20_000)
        for p in (0.3, 0.1, 1e-2, 1e-3, 1e-5):
            found = float(minus_ln_p(tail, np.asarray(stats.chi2.isf(p, columns))))
            assert found == pytest.approx(-np.log(p), abs=0.8)


def test_what_cannot_be_fitted_is_refused() -> None:
    with pytest.raises(ShapeError, match="5 distances"):
        fit_tail(np.arange(1.0, 6.0), 5)
    with pytest.raises(ShapeError, match="learn for longer"):
        fit_tail(np.full(100, 3.0), 100)
