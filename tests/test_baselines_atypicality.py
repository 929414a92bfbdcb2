"""The PNNL-style scorer: calibrated on ambient noise, awake to events, additive in its explanation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.signal import lfilter

from baselines.atypicality import (
    FAST,
    MINUTE,
    SIDE_BY_SIDE,
    TEN_SECONDS,
    Layer,
    Settings,
    State,
    explain_score,
    initial,
    references_of,
    settle,
    step,
)
from baselines.calibration import LEARN_NUMBERS, Scores, Status
from baselines.compression import Reference, blank_reference, distance, explain, learn, standardise
from baselines.errors import BaselinesError, ReferenceMismatchError, ShapeError, TimeOrderError
from baselines.patterns import cluster
from baselines.reporting_grid import slots_of, times_of
from baselines.sentences import WORDS, degree, describe_pattern, sentence, strongest
from baselines.signatures import (
    FAST_DESCRIPTORS,
    SUMMARY_DESCRIPTORS,
    blank_recent,
    extended,
    period,
    summarise_period,
    summarise_second,
)
from baselines.stream_axis import from_arrays, join_streams, take_streams, to_arrays

RATE = 30.0
START_NS = 1_700_000_000_000_000_000
LEARN_S = 60
TOLD = Settings(RATE, (FAST, TEN_SECONDS))


def ambient(seed: int, seconds: int, streams: int, channels: int) -> NDArray[np.float64]:
    """Frequency as domain.md has it: a wander of 4 mHz over minutes, a quiet mode at 0.5 Hz, 0.17 mHz of noise."""
    rng = np.random.default_rng(seed)
    frames, before = int(seconds * RATE), 2000
    keep = np.exp(-1 / (60 * RATE))
    wander = lfilter([np.sqrt(1 - keep**2)], [1, -keep], rng.normal(size=(frames + before, streams, channels)), axis=0)
    r, w = 0.98, 2 * np.pi * 0.5 / RATE
    mode = lfilter([1], [1, -2 * r * np.cos(w), r * r], rng.normal(size=(frames + before, streams, 1)), axis=0)
    noise = rng.normal(size=(frames, streams, channels))
    out: NDArray[np.float64] = 60 + 4e-3 * wander[before:] + 2e-5 * mode[before:] + 1.7e-4 * noise
    return out


def times(frames: int) -> NDArray[np.int64]:
    first = int(slots_of(TOLD, np.array([START_NS]))[0])
    return times_of(TOLD, np.arange(first, first + frames))


def score(
    told: Settings, values: NDArray[Any], good: NDArray[np.bool_] | None = None
) -> tuple[State, tuple[Scores, ...]]:
    marks = np.ones(values.shape, bool) if good is None else good
    state = initial(told, np.ones(values.shape[1:], bool))
    return step(told, state, times(len(values)), values.astype(np.float32), marks)


@pytest.fixture(scope="module")
def calm() -> tuple[State, tuple[Scores, ...]]:
    return score(TOLD, ambient(4, 1000, 40, 4))


@pytest.mark.parametrize("layer", [0, 1])
def test_ambient_noise_exceeds_a_threshold_about_as_often_as_it_says(
    calm: tuple[State, tuple[Scores, ...]], layer: int
) -> None:
    scores = calm[1][layer]
    surprise = scores.minus_ln_p[scores.status == Status.SCORED]
    assert surprise.size > 25_000
    for p in (0.1, 1e-2, 1e-3, 1e-4):
        rate = (surprise > -np.log(p)).mean()
        # Never three times as often as promised; small references may be promised worse than they are.
        assert rate < 3 * p, (p, rate)
        assert rate > p / 8 or p < 1e-3, (p, rate)
    assert surprise.max() < 16


def test_a_quantised_frequency_is_no_less_calibrated() -> None:
    _, (fast, _) = score(TOLD, np.round(ambient(5, 600, 20, 3), 3))
    surprise = fast.minus_ln_p[fast.status == Status.SCORED]
    assert (surprise > -np.log(1e-3)).mean() < 4e-3
    assert surprise.max() < 16


def event(kind: str, x: NDArray[np.float64]) -> NDArray[np.float64]:
    """What is added to the samples; x in seconds from the event."""
    after = x >= 0
    shapes = {
        "step": np.where(after, 5e-3, 0),
        "fault": np.where(after & (x < 0.1), -0.02, 0),
        "ramp": -0.02 * np.clip(x, 0, 3),
        "oscillation": np.where(after, 2e-3 * np.sin(2 * np.pi * 1.5 * x), 0),
        "slow oscillation": np.where(after, 6e-3 * np.sin(2 * np.pi * 0.3 * x), 0),
    }
    return shapes[kind]


@pytest.mark.parametrize(
    ("kind", "layer", "within_s", "at_least"),
    [
        ("step", 0, 1.0, 20),
        ("fault", 0, 0.5, 30),
        ("ramp", 0, 2.0, 20),
        ("oscillation", 0, 2.0, 16),
        ("slow oscillation", 1, 14.0, 10),
    ],
)
def test_an_event_is_seen_in_time(kind: str, layer: int, within_s: float, at_least: float) -> None:
    values = ambient(6, 340, 4, 4)
    x = (np.arange(len(values)) - 320 * RATE) / RATE
    values[:, :2] += event(kind, x)[:, None, None]
    _, scores = score(TOLD, values)
    since = (scores[layer].time_ns - START_NS) / 1e9 - 320
    seen = scores[layer].minus_ln_p[(since >= 0) & (since <= within_s)]
    assert (seen[:, :2].max(0) > at_least).all(), seen.max(0)
    assert (scores[layer].minus_ln_p[since >= 0, 2:] < 14).all()


def test_a_fault_while_learning_does_not_blind_the_reference() -> None:
    values = ambient(7, 100, 6, 4)
    x = np.arange(len(values)) / RATE
    values[:, :3] += (event("fault", x - 30) + event("fault", x - 95))[:, None, None]
    _, (fast, _) = score(TOLD, values)
    since = (fast.time_ns - START_NS) / 1e9 - 95
    assert (fast.minus_ln_p[(since > 0) & (since < 1), :3].max(0) > 18).all()


def test_contributions_add_up_and_name_the_culprit(calm: tuple[State, tuple[Scores, ...]]) -> None:
    values = ambient(8, 120, 3, 4)
    values[100 * 30 :, 1, 2] += 0.01
    told = Settings(RATE, (FAST,))
    state, (fast,) = score(told, values)
    k = int(np.nanargmax(fast.distance[:, 1]))
    parts = explain_score(told, state, 0, fast.vectors[k, 1], 1)
    assert parts.share.sum() == pytest.approx(fast.distance[k, 1], rel=1e-6)
    worst = strongest(parts, 3)
    assert {int(d) // len(FAST_DESCRIPTORS) for d in worst} == {2}
    d = int(worst[0])
    text = sentence("frequency", "Bus 2", WORDS[FAST_DESCRIPTORS[d % 4]], parts.z[d])
    assert text.startswith("frequency at Bus 2: ")
    assert "very high" in text or "very low" in text
    assert calm[0].layers[0].reference.learned.all()


def test_the_reference_of_one_recording_scores_another() -> None:
    told = Settings(RATE, (FAST,))
    values = ambient(9, 200, 5, 3)
    state, _ = score(told, values[: 100 * 30])
    stored = to_arrays(references_of(state)[0])
    reference = from_arrays(blank_reference(1, 12), stored)
    state = initial(told, np.ones((2, 3), bool), references=(take_streams(reference, [3, 1]),))
    good = np.ones((3000, 2, 3), bool)
    _, (fast,) = step(told, state, times(3000), values[3000:, [3, 1]].astype(np.float32), good)
    assert (fast.status[10:] == Status.SCORED).all()
    assert np.nanmedian(fast.minus_ln_p) < 2
    with pytest.raises(ReferenceMismatchError, match="layer fast"):
        initial(told, np.ones((3, 3), bool), references=(reference,))


def test_a_stream_that_joins_learns_alone() -> None:
    told = Settings(RATE, (FAST,))
    values = ambient(10, 130, 4, 3).astype(np.float32)
    good, stamps = np.ones(values.shape, bool), times(len(values))
    present = np.ones((3, 3), bool)
    old, _ = step(told, initial(told, present), stamps[:2100], values[:2100, :3], good[:2100, :3])
    both = join_streams([old, initial(told, present[:1])])
    _, (fast,) = step(told, both, stamps[2100:], values[2100:], good[2100:])
    _, (alone,) = step(told, old, stamps[2100:], values[2100:, :3], good[2100:, :3])
    np.testing.assert_array_equal(fast.minus_ln_p[:, :3], alone.minus_ln_p)
    assert fast.status[0].tolist() == [Status.SCORED] * 3 + [Status.LEARNING]
    assert fast.status[-1, 3] == Status.LEARNING


@pytest.fixture(scope="module")
def learned() -> tuple[Reference, NDArray[np.float32]]:
    rng = np.random.default_rng(1)
    mixing = rng.normal(size=(3, 8))
    rows = rng.normal(size=(400, 3)) @ mixing + 0.3 * rng.normal(size=(400, 8)) + 5
    rows[:, 7] = 2.5
    reference = blank_reference(1, 8)
    assert learn(rows.astype(np.float32), np.zeros(8, bool), np.zeros(8), 1, into=reference, stream=0)
    return reference, rows.astype(np.float32)


@given(row=st.integers(0, 399), away=st.floats(-20, 20), missing=st.sets(st.integers(0, 6), max_size=4))
@settings(max_examples=50, deadline=None)
def test_distance_is_that_of_the_inverse_covariance(
    learned: tuple[Reference, NDArray[np.float32]], row: int, away: float, missing: set[int]
) -> None:
    reference, rows = learned
    vector = rows[row] + np.float32(away) * np.eye(8, dtype=np.float32)[2]
    vector[list(missing)] = np.nan
    logged = np.zeros(8, bool)
    z, there = standardise(reference, logged, vector[None, None])
    found = float(distance(reference, z, there)[0][0, 0])
    used = there[0, 0]
    own = reference.used[0]
    loadings = reference.loadings[0].astype(np.float64)
    excess = reference.variances[0] - reference.rest[0]
    covariance = (loadings * excess) @ loadings.T + reference.rest[0] * np.eye(8)
    part = z[0, 0, used]
    expected = part @ np.linalg.solve(covariance[np.ix_(used, used)], part)
    absent = (1 - used.sum() / own.sum()) * reference.level[0]
    assert found == pytest.approx(expected + absent, rel=1e-4, abs=1e-6)
    shares = explain(reference, logged, vector, 0).share
    assert shares.sum() == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert (shares[~used] == 0).all()


def test_directions_with_no_more_variance_than_the_rest_count_as_the_rest() -> None:
    """Columns that have little to do with each other: shrinking leaves no direction more variance than any other."""
    rows = np.random.default_rng(0).normal(size=(60, 6)).astype(np.float32)
    reference, plain = blank_reference(1, 6), np.zeros(6, bool)
    assert learn(rows, plain, np.zeros(6), 5, into=reference, stream=0)
    assert (reference.variances[0] == reference.rest[0]).all()
    assert reference.loadings.any()
    vector = rows[0] + np.float32(9)
    z, there = standardise(reference, plain, vector[None, None])
    expected = (z[0, 0] ** 2).sum() / reference.rest[0]
    assert float(distance(reference, z, there)[0][0, 0]) == pytest.approx(expected)
    assert explain(reference, plain, vector, 0).share == pytest.approx(z[0, 0] ** 2 / reference.rest[0])
    vector[2] = np.nan
    z, there = standardise(reference, plain, vector[None, None])
    expected = (z[0, 0] ** 2).sum() / reference.rest[0] + reference.level[0] / 6
    assert float(distance(reference, z, there)[0][0, 0]) == pytest.approx(expected)


def test_constant_columns_leave(learned: tuple[Reference, NDArray[np.float32]]) -> None:
    reference, _ = learned
    assert reference.used[0].tolist() == [True] * 7 + [False]
    assert not learn(
        np.ones((100, 8), np.float32), np.zeros(8, bool), np.zeros(8), 1, into=blank_reference(1, 8), stream=0
    )


def test_a_constant_stream_goes_on_learning() -> None:
    told = Settings(RATE, (FAST,))
    values = ambient(11, 80, 2, 3)
    values[:, 1] = 50
    state, (fast,) = score(told, values)
    assert state.layers[0].reference.learned.tolist() == [True, False]
    assert fast.status[-1].tolist() == [Status.SCORED, Status.LEARNING]


def test_a_gap_between_blocks_is_the_same_as_missing_samples() -> None:
    told = Settings(RATE, (Layer("fast", 0, 10), Layer("ten", 10, 20)))
    values = ambient(12, 60, 3, 2).astype(np.float32)
    good, stamps = np.ones(values.shape, bool), times(len(values))
    good[1500:1550] = False
    _, marked = step(told, initial(told, np.ones((3, 2), bool)), stamps, values, good)
    state, first = step(told, initial(told, np.ones((3, 2), bool)), stamps[:1500], values[:1500], good[:1500])
    _, second = step(told, state, stamps[1550:], values[1550:], good[1550:])
    for whole, a, b in zip(marked, first, second, strict=True):
        np.testing.assert_array_equal(whole.minus_ln_p, np.concatenate([a.minus_ln_p, b.minus_ln_p]))
        np.testing.assert_array_equal(whole.time_ns, np.concatenate([a.time_ns, b.time_ns]))


def test_blocks_out_of_order_are_refused() -> None:
    told, present = Settings(RATE, (FAST,)), np.ones((1, 1), bool)
    values, good, stamps = np.zeros((10, 1, 1), np.float32), np.ones((10, 1, 1), bool), times(40)
    state, _ = step(told, initial(told, present), stamps[:10], values, good)
    with pytest.raises(TimeOrderError, match="after slot"):
        step(told, state, stamps[5:15], values, good)
    with pytest.raises(TimeOrderError, match="each slot once"):
        step(told, state, stamps[10:30:2], values, good)
    with pytest.raises(ShapeError, match="samples"):
        step(told, state, stamps[10:15], values, good)
    later, _ = step(told, state, stamps[10:20], values, good)
    with pytest.raises(TimeOrderError, match="different times"):
        step(
            told,
            join_streams([state, later]),
            stamps[20:30],
            np.zeros((10, 2, 1), np.float32),
            np.ones((10, 2, 1), bool),
        )
    with pytest.raises(BaselinesError):
        join_streams([state, initial(told, np.ones((1, 2), bool))])


def test_an_empty_block_changes_nothing() -> None:
    told = Settings(RATE, (FAST, TEN_SECONDS))
    state = initial(told, np.ones((2, 2), bool))
    after, scores = step(told, state, times(0), np.zeros((0, 2, 2), np.float32), np.zeros((0, 2, 2), bool))
    assert all(part.minus_ln_p.shape == (0, 2) for part in scores)
    for key, array in to_arrays(after).items():
        np.testing.assert_array_equal(array, to_arrays(state)[key])


@pytest.mark.parametrize("rate", [0.2, 1.0, 10.0, 25.0, 29.97, 30.0, 50.0, 60.0, 120.0])
def test_slots_and_times_go_both_ways(rate: float) -> None:
    told = Settings(rate)
    slots = np.arange(10**9, 10**9 + 2000)
    back = slots_of(told, times_of(told, slots) + 40_000)
    np.testing.assert_array_equal(back, slots)
    assert told.second % told.hop == 0
    assert told.hop < told.points


def test_a_layer_says_how_much_it_needs() -> None:
    told = Settings(RATE)
    assert [told.vectors(layer) for layer in told.layers] == [300, 150, 150]
    assert [told.overlap(layer) for layer in told.layers] == [6, 5, 5]
    assert told.descriptors(FAST) == FAST_DESCRIPTORS
    assert told.descriptors(MINUTE) == SUMMARY_DESCRIPTORS
    predicted = {"next", "half_second", "two_seconds", "next_spread"}
    assert set(WORDS) == {*FAST_DESCRIPTORS, *SUMMARY_DESCRIPTORS, *predicted}


def test_typical_patterns_are_found_and_described(calm: tuple[State, tuple[Scores, ...]]) -> None:
    rng = np.random.default_rng(0)
    centres = np.array([[4.0, 0], [-4, 3], [0, -6]])
    rows = np.concatenate([rng.normal(size=(n, 2)) * 0.3 + c for n, c in zip((100, 60, 40), centres, strict=True)])
    found, share = cluster(rows, np.ones(2))
    assert share.sum() == pytest.approx(1)
    for centre in centres:
        assert np.abs(found - centre).sum(1).min() < 1
    again, _ = cluster(rows, np.ones(2))
    np.testing.assert_array_equal(found, again)
    state, (_, ten) = calm
    reference = state.layers[1].reference
    scored = ten.status == Status.SCORED
    np.testing.assert_allclose(reference.frequencies.sum(1), 1)
    assert (ten.atypicality[scored] >= ten.minus_ln_p[scored]).all()
    assert set(np.unique(ten.pattern[scored])) <= {0, 1, 2, 3}
    names = [("frequency", f"Bus {c}", d) for c in range(4) for d in SUMMARY_DESCRIPTORS]
    text = describe_pattern(reference, 0, 0, names)
    assert "% of the time: " in text


def test_degrees_of_unusual() -> None:
    assert [degree(z) for z in (0.3, -1.7, 2.5, 9.1, -4)] == [
        "typical",
        "marginally low",
        "high",
        "very high",
        "very low",
    ]
    assert sentence("voltage magnitude", "Bus 2", WORDS["misfit"], 9.1) == (
        "voltage magnitude at Bus 2: variability very high, 9.1 sd"
    )


@pytest.mark.parametrize(
    ("descriptor", "z", "expected"),
    [
        ("next", 31.0, "reading against prediction very high, 31.0 sd"),
        ("half_second", -2.5, "reading against prediction half a second earlier low, 2.5 sd"),
        ("two_seconds", -8.0, "reading against prediction two seconds earlier very low, 8.0 sd"),
        ("next_spread", 4.2, "spread of prediction errors very high, 4.2 sd"),
    ],
)
def test_what_was_predicted_is_put_into_words(descriptor: str, z: float, expected: str) -> None:
    assert sentence("voltage angle V1", "Bus 2", WORDS[descriptor], z) == f"voltage angle V1 at Bus 2: {expected}"


def test_a_grid_of_thousands_is_summarised_as_its_parts_are() -> None:
    """Layers of a large grid are worked on side by side: to the same bits."""
    told = Settings(RATE, (FAST, Layer("2s", 2, 60)))
    streams, channels = SIDE_BY_SIDE // 16 + 100, 16
    values = np.random.default_rng(3).normal(60, 1e-3, (round(4 * RATE), streams, channels)).astype(np.float32)
    _, whole = score(told, values)
    half = streams // 2
    assert half * channels < SIDE_BY_SIDE <= streams * channels
    for some in (slice(0, half), slice(half, None)):
        _, part = score(told, values[:, some])
        for a, b in zip(whole, part, strict=True):
            assert np.isfinite(b.vectors).any()
            np.testing.assert_array_equal(a.vectors[:, some], b.vectors)
            np.testing.assert_array_equal(a.coverage[:, some], b.coverage)


def test_streams_that_wait_for_their_turn_learn_at_once_where_nothing_more_comes() -> None:
    told = Settings(RATE, (Layer("fast", 0, 10),))
    streams = 3 * LEARN_NUMBERS // (50 * 16)
    values = np.random.default_rng(4).normal(60, 1e-3, (round(10.5 * RATE), streams, 4)).astype(np.float32)
    state, scores = score(told, values)
    learned = state.layers[0].reference.learned
    assert 0 < learned.sum() < streams
    assert (scores[0].missing_s[-1] > 0).any(), "who waits is not said to have learned"
    settled = settle(told, state)
    assert settled.layers[0].reference.learned.all()
    assert not state.layers[0].reference.learned.all(), "the state that was given is left as it was"


@given(
    seed=st.integers(0, 2**32 - 1),
    first=st.integers(0, 40),
    seconds=st.sampled_from([3, 10, 25, 60]),
    longest=st.sampled_from([7, 60]),
    gaps=st.floats(0, 1),
)
@settings(max_examples=40, deadline=None)
def test_a_period_joined_from_tens_is_the_one_joined_from_its_seconds(
    seed: int, first: int, seconds: int, longest: int, gaps: float
) -> None:
    seconds = min(seconds, longest)
    rng, turn = np.random.default_rng(seed), np.array([[0, 360], [0, 360]], np.float32)
    recent = blank_recent(2, 2, longest)
    for number in range(first, first + 85):
        fits = np.where(rng.random((2, 5, 2, 1)) < gaps, np.nan, rng.normal(size=(2, 5, 2, 4))).astype(np.float32)
        second = summarise_second(fits, np.stack([fits[..., 0] - 1, fits[..., 0] + 1], axis=-1), turn)
        recent = extended(recent, second, number, turn)
        chosen = period(recent, seconds, number)
        straight = recent.seconds[-seconds:]
        assert len(chosen) <= 9 + seconds // 10 + 9
        assert sum(one.count.sum() for one in chosen) == sum(one.count.sum() for one in straight)
        told, share = summarise_period(chosen, seconds, 5, turn, absolute=True)
        expected, expected_share = summarise_period(straight, seconds, 5, turn, absolute=True)
        np.testing.assert_array_equal(share, expected_share)
        np.testing.assert_allclose(told, expected, rtol=1e-4, atol=1e-4)
