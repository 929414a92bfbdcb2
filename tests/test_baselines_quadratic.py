"""The quadratic fit against `numpy.linalg.lstsq`, its laws, and its bits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from baselines.errors import ShapeError
from baselines.quadratic import TILE, Fits, fit, fit_every_frame, window_points
from tests.reference.quadratic import fit_each

RATE = 30.0
OFFSETS = (60.0, 300e3, -170.0, 350.0, 1.0, 0.0)
SPREADS = (2e-4, 6.0, 0.0016, 2.0, 2e-5, 1.0)
SLOPES = (0.05, 100.0, 1.5, -40.0, 0.0, 3.0)


def signals(seed: int, frames: int, dtype: type[np.floating]) -> NDArray[np.floating]:
    """Frequency, volts, angles, per unit: offset, a ramp, a parabola and noise."""
    rng = np.random.default_rng(seed)
    t = np.arange(frames)[:, None] / RATE
    noise = rng.normal(size=(frames, len(OFFSETS))) * SPREADS
    return (np.array(OFFSETS) + np.array(SLOPES) * t + np.array(SPREADS) * t**2 + noise).astype(dtype)


def stacked(fits: Fits) -> NDArray[np.float64]:
    return np.stack([fits.a, fits.b, fits.c, fits.d], axis=1).astype(np.float64)


@given(
    seed=st.integers(0, 10**6),
    points=st.sampled_from([5, 9, 31, 61]),
    hop=st.integers(1, 40),
    missing=st.sampled_from([0.0, 0.02, 0.3, 0.7]),
    double=st.booleans(),
    same_bits=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_fits_are_those_of_lstsq(
    *, seed: int, points: int, hop: int, missing: float, double: bool, same_bits: bool
) -> None:
    values = signals(seed, 95, np.float64 if double else np.float32)
    good = np.random.default_rng(seed).random(values.shape) >= missing
    least = max(5, points // 3)
    expected = fit_each(
        values.astype(np.float64), good, rate_hz=RATE, points=points, hop=hop, least=least, first=points - 1
    )
    values[~good] = np.nan
    found = fit(values, good, rate_hz=RATE, hop=hop, points=points, least=least, same_bits=same_bits)
    close = 1e-9 if double else 2e-6
    scale = np.nanmax(np.abs(np.where(good, values, 0)), axis=0)
    # A slope or a curvature is known no better than the level over the window's length; where few points are left at
    # one end of it, not even so.
    span = (points - 1) / RATE
    worth = np.stack([scale, scale / span, scale / span**2, scale]) * (10 if missing > 0.5 else 1)
    both_nan = np.isnan(stacked(found)) == np.isnan(expected)
    assert both_nan.all()
    assert np.nanmax(np.abs(stacked(found) - expected) / worth[None], initial=0) < close * 4


@pytest.mark.parametrize("gaps", [False, True])
def test_every_frame_gives_the_same_fits(*, gaps: bool) -> None:
    values = signals(3, 200, np.float32)
    good = np.random.default_rng(1).random(values.shape) > 0.05 if gaps else np.ones(values.shape, bool)
    values[~good] = np.nan
    slow = fit_each(values.astype(np.float64), good, rate_hz=RATE, points=31, hop=1, least=15)
    fast = stacked(fit_every_frame(values, good, rate_hz=RATE))
    scale = np.array(OFFSETS) + np.abs(SLOPES) + np.array(SPREADS)
    assert np.nanmax(np.abs(fast - slow) / np.abs(scale)) < 2e-6
    double = values.astype(np.float64)
    exact = stacked(fit_every_frame(double, good, rate_hz=RATE))
    assert np.nanmax(np.abs(exact - slow) / np.abs(scale)) < 1e-9


@given(
    a=st.floats(-3e5, 3e5),
    b=st.floats(-1e3, 1e3),
    c=st.floats(-1e3, 1e3),
    points=st.sampled_from([9, 31, 61]),
    gaps=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_a_parabola_has_no_residual(*, a: float, b: float, c: float, points: int, gaps: bool) -> None:
    x = (np.arange(points) - points // 2) / RATE
    values = (a + b * x + c * x**2)[:, None]
    good = np.ones(values.shape, bool)
    good[1:3] = not gaps
    for same_bits in (False, True):
        found = fit(values, good, rate_hz=RATE, hop=1, points=points, least=5, same_bits=same_bits)
        size = abs(a) + abs(b) + abs(c) + 1
        assert found.d[0, 0] <= 1e-13 * size
        np.testing.assert_allclose([found.a[0, 0], found.b[0, 0], found.c[0, 0]], [a, b, c], atol=1e-11 * size)


def test_windows_stand_where_they_are_asked_for() -> None:
    values = signals(1, 100, np.float64)
    found = fit(values, rate_hz=RATE, hop=7, first=40)
    alone = fit(values[40 + 14 - 30 : 40 + 14 + 1], rate_hz=RATE, hop=1)
    np.testing.assert_array_equal(found.d[2], alone.d[0])
    assert len(found.a) == len(range(40, 100, 7))
    assert fit(values[:20], rate_hz=RATE, hop=1).a.shape == (0, 6)


def test_window_is_about_a_second() -> None:
    assert [window_points(rate) for rate in (0.2, 1, 10, 25, 30, 50, 60, 120)] == [9, 9, 11, 25, 31, 51, 61, 121]


def test_too_few_points_are_no_fit_and_are_counted() -> None:
    values = signals(2, 31, np.float32)
    good = np.ones(values.shape, bool)
    good[:17, 0] = False
    good[:16, 1] = False
    found = fit(values, good, rate_hz=RATE, hop=1)
    assert np.isnan([found.a[0, 0], found.b[0, 0], found.c[0, 0], found.d[0, 0]]).all()
    assert np.isfinite([found.a[0, 1], found.d[0, 1]]).all()
    assert found.count[0].tolist() == [14, 15, 31, 31, 31, 31]


@given(seed=st.integers(0, 10**6), columns=st.integers(1, 40))
@settings(max_examples=15, deadline=None)
def test_a_column_has_the_same_bits_wherever_it_stands(*, seed: int, columns: int) -> None:
    rng = np.random.default_rng(seed)
    values = (60 + rng.normal(size=(61, TILE + 37))).astype(np.float32)
    good = rng.random(values.shape) > 0.01
    some = rng.choice(values.shape[1], columns, replace=False)
    whole = fit(values, good, rate_hz=RATE, hop=6, same_bits=True)
    part = fit(values[:, some], good[:, some], rate_hz=RATE, hop=6, same_bits=True)
    np.testing.assert_array_equal(stacked(whole)[:, :, some], stacked(part))


def test_angles_are_taken_the_short_way_round() -> None:
    rng = np.random.default_rng(0)
    smooth = 170 + 15 * np.arange(61) / RATE + rng.normal(size=61) * 0.01
    wrapped = ((smooth + 180) % 360 - 180)[:, None].astype(np.float32)
    good = rng.random(wrapped.shape) > 0.02
    turn = np.array([360], np.float32)
    for marks in (None, good):
        found = fit(wrapped, marks, rate_hz=RATE, hop=5, turn=turn)
        expected = fit(smooth[:, None], marks, rate_hz=RATE, hop=5)
        np.testing.assert_allclose(found.b, expected.b, atol=1e-3)
        np.testing.assert_allclose(found.d, expected.d, atol=1e-4)
        np.testing.assert_allclose((found.a - expected.a + 180) % 360, 180, atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"hop": 1, "points": 30}, "odd"),
        ({"hop": 1, "points": 257}, "255"),
        ({"hop": 1, "points": 31, "least": 3}, "at least 3"),
        ({"hop": 0}, "hop 0"),
        ({"hop": 1, "first": 3}, "first 3"),
    ],
)
def test_settings_out_of_range_are_named(arguments: dict[str, int], word: str) -> None:
    with pytest.raises(ShapeError, match=word):
        fit(np.zeros((40, 2)), rate_hz=RATE, **arguments)  # type: ignore[arg-type]  # the case names its own argument


def test_other_shapes_and_types_are_refused() -> None:
    with pytest.raises(ShapeError, match="same"):
        fit(np.zeros((40, 2)), np.ones((40, 3), bool), rate_hz=RATE, hop=1)
    with pytest.raises(ShapeError, match="int64"):
        fit_every_frame(np.zeros((40, 2), np.int64), rate_hz=RATE)  # type: ignore[arg-type]  # on purpose
