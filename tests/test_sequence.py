"""The sequence scorer: on everybody's ticks, calibrated on noise, additive in its words, calm at gaps and faults."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.signal import lfilter

from baselines.calibration import Scores, Status
from baselines.reporting_grid import slots_of, times_of
from gridsense.scoring import Scored, Scorers, State, settings
from streams.block import Block
from streams.channels import Channel, ChannelTable, Pmu, Quantity
from streams.quality import Reason
from tests.reference.scoring_model import scoring_model

RATE = 30
START_S = 1_700_000_000
LEARN_S = 30.0
QUANTITIES = (Quantity.FREQUENCY, Quantity.VOLTAGE_MAGNITUDE, Quantity.VOLTAGE_ANGLE, Quantity.ACTIVE_POWER)
CHANNELS = tuple(Channel("V1", quantity) for quantity in QUANTITIES)
VOLTAGE = 1
LEVEL = np.array([60, 1, 20, 0.5])
NOISE = np.array([2e-4, 2e-5, 2e-3, 1e-3])

Floats = NDArray[np.float32]


def table_of(pmus: int) -> ChannelTable:
    return ChannelTable(tuple(Pmu(f"P{s}", s + 1, f"P{s}", 60, CHANNELS, "north") for s in range(pmus)))


def ambient(seed: int, seconds: float, pmus: int, rate_hz: float = RATE) -> Floats:
    """Around each level a wander over seconds, and white noise."""
    rng = np.random.default_rng(seed)
    shape = (round(seconds * rate_hz), pmus, len(CHANNELS))
    keep = math.exp(-1 / (4 * rate_hz))
    wander = lfilter([math.sqrt(1 - keep**2)], [1, -keep], rng.normal(size=shape), axis=0)
    return (LEVEL + NOISE * (3 * wander + rng.normal(size=shape))).astype(np.float32)


def scorers_of(
    pmus: int, rate_hz: float = RATE, *, quadratic: bool = False, sequence: bool = True, learn_s: float = LEARN_S
) -> Scorers:
    model = scoring_model(rate_hz) if sequence else None
    told = settings(rate_hz, learn_s)
    return Scorers(told, table_of(pmus), quadratic=quadratic, model=model, learn_s=learn_s)


@dataclass(frozen=True)
class Played:
    """What came of a recording: the last state, and of all ticks the time, the tracks, the signals and the words."""

    state: State
    scored: list[Scored]

    @property
    def time_ns(self) -> NDArray[np.int64]:
        return np.concatenate([s.ticks.time_ns for s in self.scored])

    def score(self, track: int) -> NDArray[np.float64]:
        return np.concatenate([s.ticks.tracks[track].score for s in self.scored])

    def due(self, track: int) -> NDArray[np.bool_]:
        return np.concatenate([s.ticks.tracks[track].due for s in self.scored])

    def said(self, track: int, name: str) -> NDArray[Any]:
        return np.concatenate([getattr(s.layers[track], name) for s in self.scored])


def played(
    scorers: Scorers,
    values: Floats,
    missing: NDArray[np.bool_] | None = None,
    *,
    first: int = 0,
    cuts: tuple[int, ...] = (),
    left_out: tuple[tuple[int, int], ...] = (),
) -> Played:
    """Score in blocks that end at the cuts; frames in `left_out` never come."""
    rate_hz = scorers.settings.rate_hz
    quality = np.zeros(values.shape, np.uint8)
    if missing is not None:
        quality[missing] = Reason.MISSING
    time_ns = times_of(scorers.settings, np.arange(len(values)) + int(START_S * rate_hz) + first)
    bounds = sorted({0, len(values), *cuts, *(edge for gap in left_out for edge in gap)})
    state, scored = scorers.initial(), []
    for low, high in pairwise(bounds):
        if (low, high) not in left_out:
            rows = slice(low, high)
            block = Block(scorers.table, rate_hz, time_ns[rows], values[rows], quality[rows])
            state, said = scorers.step(state, block, np.zeros((high - low, values.shape[1]), np.uint8))
            scored.append(said)
    return Played(state, scored)


@pytest.mark.parametrize("rate_hz", [10, 25, 30, 50, 60, 120])
@pytest.mark.parametrize("first", [0, 1, 4])
def test_ticks_are_the_same_whoever_scores(rate_hz: int, first: int) -> None:
    """Also where the first block begins between ticks, and after holes short, long, and longer than any memory."""
    values = ambient(1, 12, 2, rate_hz)
    left_out = ((2 * rate_hz + 1, 2 * rate_hz + 4), (5 * rate_hz + 3, 7 * rate_hz))
    runs = [
        played(scorers_of(2, rate_hz, quadratic=q, sequence=s), values, first=first, left_out=left_out, cuts=(7, 8, 9))
        for q, s in ((True, False), (False, True), (True, True))
    ]
    fits = runs[0].said(0, "time_ns")
    for run in runs:
        np.testing.assert_array_equal(run.time_ns, fits)
        for scored in run.scored:
            assert all(len(track.score) == len(track.due) == len(scored.ticks.time_ns) for track in scored.ticks.tracks)
            assert scored.ticks.signals.shape[:2] == (len(scored.ticks.time_ns), scored.ticks.signals.shape[1])
    for name in ("signals", "refused"):
        parts = [np.concatenate([getattr(s.ticks, name) for s in run.scored]) for run in runs]
        np.testing.assert_array_equal(parts[0], parts[1])
        np.testing.assert_array_equal(parts[0], parts[2])
    for alone, both in ((0, 3), (1, 4)):
        np.testing.assert_array_equal(runs[1].score(alone), runs[2].score(both))
        assert runs[1].due(alone).all(), "what speaks at every tick has nothing to say of those it missed"
        assert runs[2].due(both).all()


def test_after_a_hole_longer_than_any_memory_the_axes_still_agree() -> None:
    values = ambient(1, 4, 2)
    for quadratic, sequence in ((True, False), (False, True), (True, True)):
        scorers = scorers_of(2, quadratic=quadratic, sequence=sequence)
        state, before = scorers.initial(), 0
        counts = []
        for begin in (int(START_S * RATE) + 1, int((START_S + 400) * RATE) + 4):
            time_ns = times_of(scorers.settings, begin + np.arange(60))
            block = Block(scorers.table, RATE, time_ns, values[:60], np.zeros(values[:60].shape, np.uint8))
            state, scored = scorers.step(state, block, np.zeros((60, 2), np.uint8))
            assert (np.diff(slots_of(scorers.settings, scored.ticks.time_ns)) == 6).all()
            assert scored.ticks.time_ns[0] > before
            before = int(scored.ticks.time_ns[-1])
            counts.append(len(scored.ticks.time_ns))
        assert counts == [10, (60 * RATE + scorers.settings.points) // 6 + 10]


@pytest.mark.parametrize(
    "cuts", [tuple(range(1, 240)), (1, 5, 6, 7, 100, 1000, 1001, 1500), tuple(range(13, 1800, 13))]
)
def test_cutting_changes_no_bit(cuts: tuple[int, ...]) -> None:
    values = ambient(2, 60, 3)
    values[1500:1505, :, VOLTAGE] -= 0.3
    missing = np.random.default_rng(0).random(values.shape) < 0.002
    left_out = ((1400, 1409), (1600, 1640))
    scorers = scorers_of(3, quadratic=True)
    whole = played(scorers, values, missing, left_out=left_out)
    outside = tuple(c for c in cuts if not any(low < c < high for low, high in left_out))
    parts = played(scorers, values, missing, left_out=left_out, cuts=outside)
    for track in range(5):
        np.testing.assert_array_equal(whole.score(track), parts.score(track))
        for name in Scores.__slots__:
            np.testing.assert_array_equal(whole.said(track, name), parts.said(track, name), err_msg=name)
    assert np.isfinite(whole.score(3)).any()
    assert np.isfinite(whole.score(4)).any()


def test_frames_that_did_not_come_are_frames_that_are_missing() -> None:
    values = ambient(3, 60, 3)
    gaps = ((1500, 1510), (1600, 1660))
    missing = np.zeros(values.shape, bool)
    for low, high in gaps:
        missing[low:high] = True
    gone, marked = played(scorers_of(3), values, left_out=gaps), played(scorers_of(3), values, missing)
    for track in (0, 1):
        np.testing.assert_array_equal(gone.score(track), marked.score(track))


@pytest.fixture(scope="module")
def calm() -> Played:
    return played(scorers_of(20, learn_s=60.0), ambient(4, 400, 20), cuts=tuple(range(60, 400 * RATE, 60)))


@pytest.mark.parametrize("track", [0, 1])
def test_noise_exceeds_a_threshold_about_as_often_as_it_says(calm: Played, track: int) -> None:
    """Of what was not learned from. The worst of a tick's frames is promised by Bonferroni: no oftener than said."""
    score = calm.score(track)
    score = score[~np.isnan(score)]
    assert score.size > 30_000
    for p in (0.1, 1e-2, 1e-3):
        rate = (score > -math.log(p)).mean()
        assert rate < 3 * p, (p, rate)
        assert rate > p / 8, (p, rate)
    assert score.max() < 17


def test_a_tick_is_its_worst_frame_and_no_more() -> None:
    values = ambient(5, 50, 3)
    values[1399, 1, VOLTAGE] += 0.01
    run = played(scorers_of(3), values)
    at = int(np.searchsorted(slots_of(scorers_of(3).settings, run.time_ns) - START_S * RATE, 1399))
    hit = run.score(0)[at]
    assert hit[1] > 20
    assert (hit[[0, 2]] < 12).all()
    deviation = run.scored[0].forecast
    assert deviation is not None
    vector = run.said(0, "vectors")[at, 1]
    np.testing.assert_array_equal(vector, deviation.deviation[1399, 1].reshape(-1))
    assert run.score(0)[np.isfinite(run.score(0))].min() == 0
    # A lone frame of a tick that is there is heard, and the tick is not called refused.
    missing = np.zeros(values.shape, bool)
    missing[1400:1406, 1] = True
    missing[1402, 1] = False
    run = played(scorers_of(3), values, missing)
    later = int(np.searchsorted(slots_of(scorers_of(3).settings, run.time_ns) - START_S * RATE, 1406))
    for name in ("minus_ln_p", "distance", "atypicality"):
        assert np.isfinite(run.said(0, name)[run.said(0, "status") == Status.SCORED]).all()
        assert np.isnan(run.said(0, name)[run.said(0, "status") != Status.SCORED]).all()
    assert (run.said(0, "status")[later - 2 : later + 2, 0] == Status.SCORED).all()


def test_contributions_add_up_and_name_the_channel() -> None:
    values = ambient(6, 50, 3)
    values[1400:, 1, VOLTAGE] += 0.002
    scorers = scorers_of(3)
    run = played(scorers, values)
    sequence, state = scorers.sequence, run.state.sequence
    assert sequence is not None
    assert state is not None
    for track in (0, 1):
        distance = run.said(track, "distance")[:, 1]
        k = int(np.nanargmax(distance))
        found = sequence.explain(state, track, run.said(track, "vectors")[k, 1], 1)
        assert found.share.sum() == pytest.approx(distance[k], rel=1e-5)
        each = len(sequence.descriptors[track])
        assert int(found.share.argmax()) // each == VOLTAGE
        terms = scorers.explain(run.state, run.scored[0])(scorers.names[track], k, 1)
        assert terms[0].pmu == "P1"
        assert terms[0].channel == "voltage magnitude V1"
        words = {0: "reading against prediction", 1: "prediction"}[track]
        assert words in terms[0].descriptor


@pytest.fixture(scope="module")
def quiet() -> Played:
    return played(scorers_of(6), ambient(7, 70, 6))


def hidden(pmus: slice | int, low: int, high: int) -> Played:
    values = ambient(7, 70, 6)
    missing = np.zeros(values.shape, bool)
    missing[low:high, pmus] = True
    return played(scorers_of(6), values, missing)


def since_s(run: Played, frame: int) -> NDArray[np.float64]:
    seconds: NDArray[np.float64] = (run.time_ns / 1e9 - START_S) - frame / RATE
    return seconds


@pytest.mark.parametrize("pmus", [2, slice(None)], ids=["one PMU", "all PMUs"])
@pytest.mark.parametrize("frames", [1, 4, 15, 30])
def test_a_gap_up_to_a_second_is_bridged(quiet: Played, pmus: slice | int, frames: int) -> None:
    run = hidden(pmus, 1500, 1500 + frames)
    after = (since_s(run, 1500 + frames) > 0.2) & (since_s(run, 1500 + frames) < 8)
    for track in (0, 1):
        score = run.score(track)[:, pmus]
        assert np.isfinite(score[since_s(run, 1500 + frames) > 0.7]).all(), "scoring goes on at once"
        assert np.nanmax(score[after]) < 13, track
        if isinstance(pmus, int):
            others = np.delete(np.arange(6), pmus)
            before = since_s(run, 1500) < 0
            np.testing.assert_array_equal(run.score(track)[before], quiet.score(track)[before])
            moved = np.abs(run.score(track) - quiet.score(track))[:, others]
            assert np.nanmax(moved) < 1, "the others feel it through the median of the region alone"


def test_a_long_gap_silences_the_pmu_until_it_has_warmed_up(quiet: Played) -> None:
    run = hidden(2, 1500, 1560)
    since = since_s(run, 1560)
    for track in (0, 1):
        score = run.score(track)[:, 2]
        assert np.isnan(score[(since > -0.8) & (since < 4.9)]).all()
        assert np.isfinite(score[since > 6.2]).all()
        assert np.nanmax(score[since > 0]) < 13
        assert np.isfinite(run.score(track)[:, [0, 1, 3, 4, 5]][since > -2]).all()
        assert np.nanmax(np.abs(run.score(track) - quiet.score(track))[:, [0, 1, 3, 4, 5]]) < 1


def test_too_few_channels_are_refused_and_half_of_them_are_scored() -> None:
    values = ambient(8, 60, 3)
    missing = np.zeros(values.shape, bool)
    missing[1500:, 0, :2] = True
    missing[1500:, 1, :3] = True
    run = played(scorers_of(3), values, missing)
    late = since_s(run, 1500) > 2
    for track in (0, 1):
        status, coverage = run.said(track, "status")[late], run.said(track, "coverage")[late]
        assert (status == [Status.SCORED, Status.REFUSED, Status.SCORED]).all()
        assert coverage == pytest.approx(np.tile([0.5, 0.25, 1.0], (len(coverage), 1)))
        assert np.nanmax(run.score(track)[since_s(run, 1500) > 0]) < 13


def test_nothing_is_scored_or_learned_while_it_warms_up() -> None:
    run = played(scorers_of(3), ambient(9, 40, 3))
    warm = since_s(run, 0) <= 4.8
    missing_s = run.said(0, "missing_s")
    assert (run.said(0, "status")[warm] == Status.LEARNING).all()
    assert (missing_s[warm] == LEARN_S).all()
    assert (run.said(0, "status")[since_s(run, 0) > 5.5 + LEARN_S] == Status.SCORED).all()


def test_after_a_fault_of_five_frames_scores_are_ordinary_again_within_eight_seconds() -> None:
    values = ambient(10, 90, 4)
    values[1800:1805, :, VOLTAGE] -= 0.4
    run = played(scorers_of(4), values)
    since = since_s(run, 1800)
    for track in (0, 1):
        assert (run.score(track)[(since > 0) & (since < 0.4)].max(0) > 30).all()
        assert np.nanmax(run.score(track)[since > 8]) < 13


def test_where_another_pmu_has_more_views_what_was_learned_stays() -> None:
    old = scorers_of(2)
    run = played(old, ambient(11, 45, 2))
    twice = (CHANNELS[VOLTAGE], replace(CHANNELS[VOLTAGE], name="V2"))
    table = ChannelTable((*table_of(2).pmus, Pmu("new", 9, "new", 60, twice, "north")))
    assert table.width == old.table.width
    new = Scorers(old.settings, table, quadratic=False, model=scoring_model(RATE), learn_s=LEARN_S)
    before, after = run.state.sequence, new.carry(old, run.state).sequence
    assert before is not None
    assert after is not None
    for old_layer, layer in zip(before.layers, after.layers, strict=True):
        assert layer.reference.learned.tolist() == [True, True, False]
        np.testing.assert_array_equal(layer.reference.centre[:2], old_layer.reference.centre)
