"""The check of predictions: its peers must predict what they can, see no future, and the model must be able to lose."""

from __future__ import annotations

import json

import numpy as np
import pytest

from models.engines import ArrayEngine
from models.network import Weights
from models.spec import FULL_TURN_DEG, SLOTS, Spec
from scripts.check import forecast
from scripts.check.forecast import (
    AR,
    CHANGES,
    CORRECTION,
    LEVELS,
    LINE,
    NETWORK,
    PARABOLA,
    PARTS,
    SEQUENCE,
    STILL,
    Cell,
    CheckError,
    Floats,
    Kind,
    Readings,
    Stream,
    autoregressions,
    bridged,
    compare,
    extrapolated,
    held_out_from,
    line,
    parabola,
    promises,
    shortest,
    shortfalls,
    unwrapped,
)
from streams.channels import Channel, ChannelTable, Pmu, Quantity

T = 2000
FRAMES = np.arange(T, dtype=np.float64)
AHEAD = (1, 15, 60)


def noise(seed: int, *shape: int) -> Floats:
    return np.random.default_rng(seed).normal(size=shape)


def process(weights: list[float], seed: int, count: int = T) -> Floats:
    """Make an autoregressive process, sample by sample."""
    x, drive = np.zeros(count), noise(seed, count)
    for t in range(len(weights), count):
        x[t] = sum(w * x[t - 1 - i] for i, w in enumerate(weights)) + drive[t]
    return x


@pytest.mark.parametrize("ahead", AHEAD)
def test_a_straight_line_is_foretold_by_the_line_and_the_parabola(ahead: int) -> None:
    x = np.stack([3 + 0.25 * FRAMES, 7 - 2 * FRAMES], axis=1)
    at = np.arange(40, T - ahead)
    for taps in (line(2, ahead), parabola(2, 31, ahead)):
        np.testing.assert_allclose(extrapolated(x, taps, at), x[at + ahead], rtol=1e-9)


@pytest.mark.parametrize("ahead", AHEAD)
def test_a_parabola_is_foretold_by_the_parabola_alone(ahead: int) -> None:
    x = (1 - 0.5 * FRAMES + 0.01 * FRAMES**2)[:, None]
    at = np.arange(40, T - ahead)
    np.testing.assert_allclose(extrapolated(x, parabola(1, 31, ahead), at), x[at + ahead], rtol=1e-9)
    assert np.abs(extrapolated(x, line(1, ahead), at) - x[at + ahead]).min() > 0.01 * ahead**2 - 1e-9


def test_the_parabola_is_the_one_of_least_squares() -> None:
    x = noise(1, 31)
    fit = np.polyfit(np.arange(31), x, 2)
    found = extrapolated(x[:, None], parabola(1, 31, 15), np.array([30]))
    assert found.item() == pytest.approx(np.polyval(fit, 45.0))


def test_persistence_is_a_line_to_now() -> None:
    x = noise(2, 50, 3)
    assert np.array_equal(extrapolated(x, line(3, 0), np.arange(1, 50)), x[1:])


def test_an_autoregression_finds_its_process_in_any_channel() -> None:
    true = [0.6, 0.0, -0.3, 0.0, 0.0, 0.2, 0.0, -0.1]
    x = 50 + np.stack([process(true, 3, 40_000), 5 * process(true, 4, 40_000)], axis=1)
    first = autoregressions(x, 8, AHEAD, changes=False)[0]
    np.testing.assert_allclose(first.weight, np.repeat(np.array(true)[:, None], 2, axis=1), atol=0.02)
    np.testing.assert_allclose(first.offset, 50 * (1 - sum(true)), rtol=0.05)


@pytest.mark.parametrize("changes", [False, True])
def test_an_autoregression_is_iterated_step_by_step(*, changes: bool) -> None:
    x = np.cumsum(process([0.7, -0.2], 5))[:, None] if changes else process([0.7, -0.2], 5)[:, None] + 3
    many, (one,) = autoregressions(x, 8, AHEAD, changes=changes), autoregressions(x, 8, (1,), changes=changes)
    told = list(x[:500, 0])
    for _ in range(AHEAD[-1]):
        told.append(extrapolated(np.array(told)[:, None], one, np.array([len(told) - 1])).item())
    for taps, ahead in zip(many, AHEAD, strict=True):
        assert extrapolated(x, taps, np.array([499])).item() == pytest.approx(told[499 + ahead])


def test_noiseless_swings_are_foretold_by_an_autoregression() -> None:
    x = (60 + np.sin(0.1 * FRAMES) + 0.5 * np.cos(0.31 * FRAMES))[:, None]
    at = np.arange(1000, T - 60)
    for changes in (False, True):
        for taps, ahead in zip(autoregressions(x[:1000], 8, AHEAD, changes=changes), AHEAD, strict=True):
            assert np.abs(extrapolated(x, taps, at) - x[at + ahead]).max() < 0.02, (changes, ahead)


def test_an_autoregression_is_fitted_beside_holes_and_not_to_nothing() -> None:
    x = np.stack([process([0.8], 6, 20_000)] * 2, axis=1)
    x[::50, 0] = np.nan
    x[:, 1] = np.nan
    (taps,) = autoregressions(x, 8, (1,), changes=False)
    assert taps.weight[0, 0] == pytest.approx(0.8, abs=0.05)
    assert np.isnan(taps.weight[:, 1]).all()


def test_nothing_is_foretold_from_a_past_that_is_not_there() -> None:
    x = noise(7, 60, 1)
    x[20] = np.nan
    found = extrapolated(x, parabola(1, 31, 1), np.arange(60))
    assert np.isfinite(found[:, 0]).nonzero()[0].tolist() == list(range(51, 60))


def test_angles_are_unwrapped_by_the_past_alone() -> None:
    real = np.cumsum(noise(8, 500) * 20)
    wrapped = (real + 180) % 360 - 180
    wrapped[100:110] = np.nan
    turn = np.array([FULL_TURN_DEG, 0.0])
    x = np.stack([wrapped, wrapped], axis=1)
    found = unwrapped(x, turn)
    there = ~np.isnan(wrapped)
    assert np.nanmax(np.abs(np.diff(found[:100, 0]))) < 180
    turns = (found[there, 0] - wrapped[there]) / 360
    np.testing.assert_allclose(turns, np.rint(turns), atol=1e-9)
    np.testing.assert_array_equal(found[:, 1], wrapped)
    np.testing.assert_array_equal(unwrapped(x[:300], turn), found[:300])


def test_short_holes_are_bridged_and_long_ones_are_not() -> None:
    x = np.arange(20, dtype=np.float64)[:, None] ** 2
    holed = x.copy()
    holed[[0, 3, 7, 8, 9, 19]] = np.nan
    found = bridged(holed, 2)
    assert found[3, 0] == pytest.approx((4 + 16) / 2)
    assert np.isnan(found[[0, 7, 8, 9, 19], 0]).all()
    assert bridged(holed, 3)[8, 0] == pytest.approx(36 + (100 - 36) / 2)


def test_no_peer_sees_the_future_through_a_hole() -> None:
    x = np.cumsum(noise(12, 400, 2), axis=0)
    x[noise(13, 400, 2) > 1.0] = np.nan
    taps = parabola(2, 31, 15)
    origins = np.flatnonzero(~np.isnan(x).any(axis=1))
    whole = extrapolated(bridged(x, 30), taps, origins)
    assert np.isfinite(whole).mean() > 0.8
    for told, t in zip(whole[::20], origins[::20], strict=True):
        np.testing.assert_array_equal(told, extrapolated(bridged(x[: t + 1], 30), taps, np.array([t]))[0])


def test_an_error_is_the_short_way_round() -> None:
    error = np.array([[359.0, 359.0], [-181.0, np.nan]])
    found = shortest(error, np.array([360.0, 0.0]))
    np.testing.assert_allclose(found, [[-1, 359], [179, np.nan]])


def test_all_methods_are_judged_on_the_same_readings() -> None:
    errors = {STILL: noise(9, 100, 3), SEQUENCE: noise(10, 100, 3)}
    errors[SEQUENCE][:50, 0] = np.nan
    errors[STILL][:, 2] = 0  # it does not move
    found, judged = compare(errors)
    assert judged.sum(axis=0).tolist() == [50, 100, 0]
    np.testing.assert_allclose(found[STILL][:2], 1)
    expected = np.sqrt(np.mean(errors[SEQUENCE][50:, 0] ** 2) / np.mean(errors[STILL][50:, 0] ** 2))
    assert found[SEQUENCE][0] == pytest.approx(expected)
    assert np.isnan(found[SEQUENCE][2])


def cell(kind: Kind, sequence: float, *, frames: int = 15, levels: float = 0.9) -> Cell:
    sizes = {STILL: 1.0, LINE: 3.0, PARABOLA: 5.0, LEVELS: levels, CHANGES: 0.95, SEQUENCE: sequence}
    sizes |= dict.fromkeys(PARTS, 0.97)
    errors = {name: np.full(4, size) for name, size in sizes.items()}
    return Cell(kind, "made up", 120.0, "frequency", frames, frames / 30, errors, 1000, 0.9)


def test_the_better_autoregression_counts() -> None:
    assert cell(Kind.HELD_OUT, 0.8).ratio(AR) == pytest.approx(0.9)
    assert cell(Kind.HELD_OUT, 0.8, levels=9.0).ratio(AR) == pytest.approx(0.95)
    assert cell(Kind.HELD_OUT, 0.8, levels=9.0).fit == CHANGES


def test_a_promise_is_broken_by_any_peer_beyond_the_next_frame() -> None:
    good = [cell(kind, 0.8) for kind in Kind]
    assert [p.kept for p in promises(good)] == [True, True, True]
    assert shortfalls(good) == []
    lost = [*good, cell(Kind.HELD_OUT, 0.93)]
    assert [p.kept for p in promises(lost)] == [False, True, True]
    assert forecast.exit_status(promises(lost)) == 1
    assert "AR(8) 0.900, sequence 0.930" in shortfalls(lost)[0]
    elsewhere = [*good, cell(Kind.GRID, 0.93)]
    assert [p.kept for p in promises(elsewhere)] == [True, True, False]
    assert forecast.exit_status(promises(elsewhere)) == 0
    near = [*good, cell(Kind.HELD_OUT, 0.93, frames=1)]
    assert [p.kept for p in promises(near)] == [True, True, True]
    assert [p.kept for p in promises([])] == [None, None, None]


def test_figures_are_one_line_of_json() -> None:
    cells = [cell(Kind.HELD_OUT, 0.93), cell(Kind.HELD_OUT, 0.8, frames=1)]
    said = json.loads(forecast.as_json(cells, promises(cells)))
    stream = said["streams"]["made up"]
    assert stream["better_than_all"] == {
        "0.5 s": {"quantities": 0, "of": 1},
        "next frame": {"quantities": 1, "of": 1},
    }
    assert stream["quantities"]["frequency"]["0.5 s"]["ratio"][SEQUENCE] == pytest.approx(0.93)
    assert len(said["broken"]) == 1


def readings(count: int) -> Readings:
    """Three PMUs of one view, whose frequency is a random walk; the third has a hole."""
    channels = tuple(Channel(slot, Quantity(slot)) for slot in SLOTS)
    table = ChannelTable(tuple(Pmu(f"p{s}", s, f"p{s}", 60, channels, "x") for s in range(3)))
    values = np.cumsum(noise(11, count, 3, len(SLOTS)), axis=0).astype(np.float32)
    values[300:310, 2] = np.nan
    return Readings(table, 30.0, np.arange(count) * 10**9 // 30, values)


def test_a_network_that_says_nothing_changes_is_persistence() -> None:
    spec = Spec(30.0, AHEAD, (0.5, 3.0), ((1.0,) * 3,) * len(SLOTS))
    hidden = 2
    nothing = Weights(
        bottom_kernel=np.zeros((spec.inputs, hidden), np.float32),
        bottom_bias=np.zeros(hidden, np.float32),
        cells=((np.zeros((2 * hidden, 4 * hidden), np.float32), np.zeros(4 * hidden, np.float32)),),
        top_kernel=np.zeros((hidden, spec.outputs), np.float32),
        top_bias=np.zeros(spec.outputs, np.float32),
    )
    first, count = 250, 700
    cells = forecast.judge(Stream(Kind.HELD_OUT, "made up", readings(count), first), spec, ArrayEngine(nothing))
    assert [(c.quantity, c.frames) for c in cells] == [(slot, ahead) for ahead in AHEAD for slot in SLOTS]
    for c in cells:
        np.testing.assert_allclose(c.errors[NETWORK], 1, rtol=1e-4)
        np.testing.assert_array_equal(c.errors[SEQUENCE], c.errors[CORRECTION])
        # Of the third PMU ten readings are missing, and ten predictions from inside the hole.
        assert c.readings == 3 * (count - first) - len(set(range(300, 310)) | {300 + c.frames + n for n in range(10)})


def test_a_stream_of_another_rate_is_refused() -> None:
    spec = Spec(60.0, AHEAD, (0.5, 3.0), ((1.0,) * 3,) * len(SLOTS))
    with pytest.raises(CheckError, match="30 frames a second, the model serves 60"):
        forecast.judge(Stream(Kind.GRID, "made up", readings(10), 5), spec, None)  # type: ignore[arg-type] # not reached


def test_the_model_says_where_its_test_begins() -> None:
    stream = readings(300)
    training = {"files": [{"name": "a.parquet", "splits": {"test": ["1970-01-01T00:00:04.000Z", ""]}}]}
    assert held_out_from(training, "a.parquet", stream) == 120
    assert held_out_from(training, "b.parquet", stream) is None
    assert held_out_from({}, "a.parquet", stream) is None
    with pytest.raises(CheckError, match="another"):
        held_out_from(training, "a.parquet", readings(100))
