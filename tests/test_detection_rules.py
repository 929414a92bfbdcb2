"""The detector's rules on scores made up for the purpose: one disturbance, one event, with the right verdict."""

from __future__ import annotations

import itertools
import sys
from dataclasses import replace

import numpy as np
import pytest

from gridsense.detection import Detector, Settings, Ticks, Track, corroborated, corroborators, threshold
from gridsense.events import Cause, Contribution, Event
from streams.channels import Channel, ChannelTable, Phase, Pmu, Quantity

HZ = 5
TICK_NS = 200_000_000
S, C, H = 6, 2, 6
CHANNELS = (
    Channel("V1", Quantity.VOLTAGE_MAGNITUDE, Phase.POSITIVE, "pu", 1.0),
    Channel("", Quantity.FREQUENCY, unit="Hz", nominal=60.0),
)
TABLE = ChannelTable(tuple(Pmu(f"bus{s}", s + 1, f"bus{s}", 60, CHANNELS, "pdc") for s in range(S)))
QUIET = 1.0
LOUD = 100.0


def explain(scorer: str, _tick: int, s: int) -> tuple[Contribution, ...]:
    descriptor, z = ("level change", -9.0) if scorer == "fit" else ("spread of the slope", 9.0)
    return (Contribution(f"bus{s}", "voltage magnitude V1", descriptor, z),)


def made(seconds: float) -> Ticks:
    """Quiet ticks to write into."""
    k = round(seconds * HZ)
    signals = np.broadcast_to(np.array([1.0, 60.0], np.float32), (k, H, S, C)).copy()
    fast = Track("fit", 1.0, np.ones(k, bool), np.full((k, S), QUIET))
    slow = Track("10s", 10.0, np.arange(1, k + 1) % HZ == 0, np.full((k, S), QUIET))
    return Ticks(np.arange(1, k + 1) * TICK_NS, (fast, slow), signals, np.zeros((k, S), bool))


def at(_ticks: Ticks, begin_s: float, end_s: float) -> slice:
    return slice(round(begin_s * HZ), round(end_s * HZ))


def run(ticks: Ticks, cuts: tuple[int, ...] = (), settings: Settings | None = None) -> list[Event]:
    detector = Detector(settings or Settings(), TABLE, "test", 30.0, H, (1.0, 10.0))
    state, out = detector.initial(), []
    edges = [0, *cuts, len(ticks.time_ns)]
    for a, b in itertools.pairwise(edges):
        tracks = tuple(replace(t, score=t.score[a:b], due=t.due[a:b]) for t in ticks.tracks)
        part = Ticks(ticks.time_ns[a:b], tracks, ticks.signals[a:b], ticks.refused[a:b])

        def shifted(scorer: str, tick: int, s: int) -> tuple[Contribution, ...]:
            return explain(scorer, tick, s)

        state, events, _ = detector.step(state, part, shifted)
        out += events
    return out + detector.open(state)


def newest(events: list[Event]) -> list[Event]:
    return list({e.id: e for e in events}.values())


def test_quiet_scores_raise_nothing() -> None:
    assert run(made(120)) == []


def test_a_disturbance_is_one_grid_event_with_all_that_saw_it() -> None:
    ticks = made(60)
    ticks.tracks[0].score[at(ticks, 20.2, 22), :4] = LOUD
    ticks.tracks[0].score[at(ticks, 20, 22), 2] = LOUD + 5
    ticks.signals[at(ticks, 20, 20.2), :, 2, 0] = 0.4
    (event,) = newest(run(ticks))
    assert event.cause is Cause.GRID
    assert event.first_pmu == "bus2"
    assert set(event.pmus) == {"bus0", "bus1", "bus2", "bus3"}
    assert event.onset_ns == 20 * 10**9
    assert event.raised_ns == pytest.approx(20.4e9)
    assert event.end_ns == pytest.approx(22e9)


def test_a_deep_dip_is_named_a_fault() -> None:
    ticks = made(60)
    ticks.tracks[0].score[at(ticks, 20, 22)] = LOUD
    ticks.tracks[0].score[at(ticks, 20, 22)] = LOUD
    ticks.signals[at(ticks, 20, 20.2), :, 2, 0] = 0.4
    (event,) = newest(run(ticks))
    assert event.kind == "fault"
    assert "0.40 of its level at bus2" in event.sentence


def test_what_follows_within_the_merge_time_belongs_to_it() -> None:
    ticks = made(80)
    for begin in (20, 26):
        ticks.tracks[0].score[at(ticks, begin, begin + 1)] = LOUD
        ticks.tracks[0].score[at(ticks, begin, begin + 1)] = LOUD
    (event,) = newest(run(ticks))
    assert event.end_ns == pytest.approx(27e9)


def test_a_jolt_far_above_what_has_decayed_is_the_next_event() -> None:
    ticks = made(120)
    ticks.tracks[0].score[at(ticks, 20, 21)] = 200.0
    ticks.tracks[0].score[at(ticks, 21, 60)] = 16.0
    ticks.tracks[0].score[at(ticks, 40, 41)] = 90.0
    first, second = newest(run(ticks))
    assert first.end_ns == second.onset_ns == 40 * 10**9
    assert second.minus_ln_p > 80


def test_a_swing_within_an_open_event_is_no_new_event() -> None:
    ticks = made(120)
    ticks.tracks[0].score[at(ticks, 20, 60)] = 30.0
    ticks.tracks[0].score[at(ticks, 40, 41)] = 60.0
    assert len(newest(run(ticks))) == 1


def test_two_disturbances_apart_are_two_events() -> None:
    ticks = made(80)
    for begin in (20, 50):
        ticks.tracks[0].score[at(ticks, begin, begin + 1)] = LOUD
    events = newest(run(ticks))
    assert [e.cause for e in events] == [Cause.GRID, Cause.GRID]


def test_a_pmu_alone_waits_and_is_data() -> None:
    ticks = made(60)
    ticks.tracks[0].score[at(ticks, 20, 21), 3] = LOUD
    (event,) = newest(run(ticks))
    assert event.cause is Cause.DATA
    assert event.kind == "voltage_measurement"
    assert event.pmus == ("bus3",)
    assert event.raised_ns - event.onset_ns == pytest.approx(1.2e9)


def test_a_pmu_that_is_quieter_than_usual_is_no_event(monkeypatch: pytest.MonkeyPatch) -> None:
    quieter = (Contribution("bus3", "voltage magnitude V1", "variability", -20.0),)
    monkeypatch.setattr(sys.modules[__name__], "explain", lambda *_: quieter)
    ticks = made(60)
    ticks.tracks[0].score[at(ticks, 20, 40), 3] = LOUD
    assert run(ticks) == []


def test_a_pmu_that_the_grid_confirms_is_no_event_of_its_own() -> None:
    ticks = made(60)
    ticks.tracks[0].score[at(ticks, 20, 21), 3] = LOUD
    ticks.tracks[0].score[at(ticks, 20.6, 21)] = LOUD
    (event,) = newest(run(ticks))
    assert event.cause is Cause.GRID
    assert event.onset_ns == 20 * 10**9
    assert event.first_pmu == "bus3"


def test_a_long_window_does_not_raise_what_the_fast_score_has_seen() -> None:
    ticks = made(120)
    ticks.tracks[0].score[at(ticks, 20, 21)] = LOUD
    ticks.tracks[1].score[at(ticks, 20, 31)] = LOUD
    assert len(newest(run(ticks))) == 1


def swing(ticks: Ticks, where: slice, pmus: slice, hz: float) -> None:
    t = np.arange(len(ticks.time_ns) * H).reshape(-1, H) / 30.0
    wave = np.sin(2 * np.pi * hz * t)[:, :, None, None] * np.array([0.01, 0.05])
    ticks.signals[where, :, pmus] += wave[where]


def test_a_long_window_alone_raises_an_oscillation_and_names_its_frequency() -> None:
    ticks = made(120)
    swing(ticks, at(ticks, 30, 80), slice(0, 6), 1.5)
    ticks.tracks[1].score[at(ticks, 40, 80)] = LOUD
    (event,) = newest(run(ticks))
    assert event.kind == "oscillation"
    assert "1.51 Hz" in event.sentence  # the nearest tenth that ten seconds resolve
    assert event.scorer == "10s"
    assert event.end_ns is not None
    assert event.end_ns < 80e9


def test_two_that_swing_together_are_the_grid() -> None:
    ticks = made(120)
    swing(ticks, at(ticks, 30, 80), slice(0, 2), 0.8)
    ticks.tracks[1].score[at(ticks, 40, 80), :2] = LOUD
    (event,) = newest(run(ticks))
    assert (event.cause, event.kind) == (Cause.GRID, "oscillation")


def test_two_that_do_not_swing_together_are_not() -> None:
    ticks = made(120)
    swing(ticks, at(ticks, 30, 80), slice(0, 1), 0.8)
    swing(ticks, at(ticks, 30, 80), slice(1, 2), 2.0)
    ticks.tracks[1].score[at(ticks, 40, 80), :2] = LOUD
    events = newest(run(ticks))
    assert [(e.cause, e.kind) for e in events] == [(Cause.UNKNOWN, "oscillation")] * 2


def test_what_a_disturbance_leaves_behind_stays_silent_until_it_was_ordinary() -> None:
    ticks = made(200)
    ticks.tracks[0].score[at(ticks, 20, 21)] = LOUD
    ticks.tracks[1].score[at(ticks, 20, 120)] = LOUD
    ticks.tracks[1].score[at(ticks, 150, 160)] = LOUD
    first, second = newest(run(ticks))
    assert first.scorer == "fit"
    assert second.scorer == "10s"
    assert second.onset_ns > 149e9


def test_refused_scores_raise_nothing() -> None:
    ticks = made(60)
    ticks.tracks[0].score[:] = np.nan
    ticks.tracks[1].score[:] = np.nan
    assert run(ticks) == []


def test_an_event_that_lasts_has_no_end() -> None:
    ticks = made(30)
    ticks.tracks[0].score[at(ticks, 20, 30)] = LOUD
    (event,) = newest(run(ticks))
    assert event.end_ns is None


@pytest.mark.parametrize("cuts", [(1,), (99, 100, 101), (103,), tuple(range(1, 300, 7))])
def test_events_do_not_depend_on_how_the_ticks_are_cut(cuts: tuple[int, ...]) -> None:
    ticks = made(60)
    ticks.tracks[0].score[at(ticks, 20, 21), 3] = LOUD
    ticks.tracks[0].score[at(ticks, 20.6, 21)] = LOUD
    ticks.tracks[0].score[at(ticks, 40, 41), 1] = LOUD
    ticks.signals[at(ticks, 20, 20.2), :, 2, 0] = 0.4
    assert run(ticks, cuts) == run(ticks)


def test_the_threshold_is_a_budget_of_false_alarms() -> None:
    assert threshold(Settings(false_alarms_per_day=1.0), 1.0, 1) == pytest.approx(np.log(86_400))
    tight, loose = Settings(false_alarms_per_day=0.1), Settings(false_alarms_per_day=10.0)
    assert threshold(tight, 1.0, 1) - threshold(loose, 1.0, 1) == pytest.approx(np.log(100))


@pytest.mark.parametrize("shared", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("pmus", [6, 50])
def test_the_grids_score_is_conservative_however_its_pmus_depend_on_each_other(pmus: int, shared: float) -> None:
    rng = np.random.default_rng(1)
    draws = 20_000
    own, common = rng.random((draws, pmus)), rng.random((draws, 1))
    score = -np.log(np.where(rng.random((draws, pmus)) < shared, common, own))
    words = np.array([corroborated(row, corroborators(pmus)) for row in score])
    for p in (0.1, 1e-2, 1e-3):
        assert (words > -np.log(p)).mean() <= 1.3 * p


def test_bad_measurements_short_of_the_corroborators_do_not_raise_the_grid() -> None:
    score = np.full(50, 0.5)
    score[:3] = 500.0
    score[10:20] = np.nan
    assert corroborated(score, corroborators(50)) == 0.0
    score[3] = 500.0
    assert corroborated(score, corroborators(50)) > 490
    assert corroborated(np.full(50, np.nan), 4) == -np.inf
