"""The whole way with the sequence scorer, beside the quadratic one and alone: cuts, snapshots, references, rates."""

from __future__ import annotations

import logging
import subprocess
import sys
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from baselines.stream_axis import to_arrays
from gridsense.errors import InputError, UsageError
from gridsense.events import Cause, Event
from gridsense.pipeline import Learned, Output, Pipeline, Scorer, Settings
from gridsense.sources import Round, cut
from streams.align import AlignSettings
from streams.block import FrameBatch
from tests.reference.scoring_model import scoring_model
from tests.reference.small_grid import RATE, START_NS, small_grid
from tests.test_pipeline_laws import rounds

SECONDS, ONSET_S, JOINS_S = 60, 50.0, 44
BOTH: tuple[Scorer, ...] = ("quadratic", "sequence")
ALONE: tuple[Scorer, ...] = ("sequence",)
EACH = pytest.mark.parametrize("scorers", [BOTH, ALONE], ids=["both", "alone"])


def told(scorers: tuple[Scorer, ...], rate_hz: float = RATE) -> Settings:
    align = AlignSettings(lateness_s=0.5)
    return Settings(source="law", learn_s=25.0, align=align, scorers=scorers, model=scoring_model(rate_hz))


@cache
def streams(onset_s: float = ONSET_S) -> tuple[tuple[str, FrameBatch], ...]:
    north = small_grid("north", 1, 4, 1, seconds=SECONDS, onset_s=onset_s)
    south = small_grid("south", 5, 3, 2, seconds=SECONDS, onset_s=onset_s)
    return ("north#1", north), ("south#5", south)


def each(every: int) -> list[Round]:
    return rounds(streams(), list(range(every, SECONDS * RATE, every)))


def fed(pipeline: Pipeline, todo: list[Round]) -> list[Output]:
    return [output for batches in todo for output in pipeline.feed(batches)]


def tracks(outputs: list[Output]) -> dict[str, np.ndarray]:
    names = [track.name for track in outputs[-1].scored.ticks.tracks]
    return {n: np.concatenate([o.scored.ticks.tracks[i].score for o in outputs]) for i, n in enumerate(names)}


def events_of(pipeline: Pipeline, outputs: list[Output]) -> list[Event]:
    found = {e.id: e for o in outputs for e in o.events} | {e.id: e for e in pipeline.open_events()}
    return list(found.values())


def run(scorers: tuple[Scorer, ...], every: int, learned: Learned | None = None) -> tuple[Pipeline, list[Output]]:
    pipeline = Pipeline(told(scorers), learned)
    outputs = fed(pipeline, each(every))
    return pipeline, outputs + pipeline.finish()


@cache
def whole(scorers: tuple[Scorer, ...]) -> tuple[Pipeline, list[Output]]:
    return run(scorers, RATE)


def assert_same(outputs: list[Output], others: list[Output]) -> None:
    ours, theirs = tracks(outputs), tracks(others)
    assert set(ours) == set(theirs)
    for name, score in ours.items():
        np.testing.assert_array_equal(score, theirs[name], err_msg=name)
    times = [np.concatenate([o.scored.ticks.time_ns for o in some]) for some in (outputs, others)]
    np.testing.assert_array_equal(times[0], times[1])


@EACH
def test_the_disturbance_is_one_grid_event(scorers: tuple[Scorer, ...]) -> None:
    (event,) = events_of(*whole(scorers))
    assert event.cause is Cause.GRID
    assert len(event.pmus) == 7
    assert event.onset_ns == pytest.approx(START_NS + ONSET_S * 1e9, abs=0.3e9)
    assert event.raised_ns - event.onset_ns <= 0.4e9
    assert event.scorer in {"fast", "sequence", "sequence_1s"}
    assert event.contributions


@EACH
@pytest.mark.parametrize("every", [7, 100])
def test_cuts_change_no_event_score_or_state(scorers: tuple[Scorer, ...], every: int) -> None:
    pipeline, outputs = run(scorers, every)
    reference, others = whole(scorers)
    assert events_of(pipeline, outputs) == events_of(reference, others)
    assert_same(outputs, others)
    ours, theirs = pipeline.learned(), reference.learned()
    assert ours is not None
    assert theirs is not None
    assert ours.ready
    for name, found in ours.references.items():
        for key, array in to_arrays(found).items():
            np.testing.assert_array_equal(array, to_arrays(theirs.references[name])[key], err_msg=f"{name} {key}")


def test_the_sequence_scorer_says_the_same_alone_and_in_company() -> None:
    both, alone = tracks(whole(BOTH)[1]), tracks(whole(ALONE)[1])
    assert set(both) - set(alone) == {"fast", "10s", "60s"}
    for name, score in alone.items():
        np.testing.assert_array_equal(score, both[name])
        assert np.isfinite(score[-10:]).all()


@EACH
@pytest.mark.parametrize("at_s", [3, 20, 51])
def test_a_snapshot_goes_on_bit_for_bit(scorers: tuple[Scorer, ...], at_s: int) -> None:
    """While it warms up, while it learns, in the middle of the event."""
    todo = each(11)
    before = at_s * RATE // 11
    first = Pipeline(told(scorers))
    outputs = fed(first, todo[:before])
    frozen = first.freeze()
    assert frozen is not None
    second = Pipeline(told(scorers))
    second.thaw(frozen)
    outputs += fed(second, todo[before:]) + second.finish()
    reference, others = whole(scorers)
    assert_same(outputs, others)
    assert events_of(second, outputs) == events_of(reference, others)


@EACH
def test_what_was_learned_serves_another_pipeline_at_once(scorers: tuple[Scorer, ...]) -> None:
    learned = whole(scorers)[0].learned()
    assert learned is not None
    assert {"sequence", "sequence_1s"} <= set(learned.references)
    pipeline, outputs = run(scorers, RATE, learned)
    assert pipeline.strangers() == ()
    for name in ("sequence", "sequence_1s"):
        assert np.isfinite(tracks(outputs)[name][40:]).all(), "it is scored once it has warmed up"
        assert np.isnan(tracks(outputs)[name][:24]).all(), "and not before"
    assert any(pipeline.typical().values()) is ("quadratic" in scorers)


def test_the_quadratic_reference_alone_leaves_the_sequence_scorer_to_learn() -> None:
    learned = whole(("quadratic",))[0].learned()
    assert learned is not None
    assert learned.ready
    pipeline, outputs = run(BOTH, RATE, learned)
    found = tracks(outputs)
    assert np.isfinite(found["fast"][10:]).all()
    np.testing.assert_array_equal(found["sequence"], tracks(whole(BOTH)[1])["sequence"])
    now = pipeline.learned()
    assert now is not None
    assert now.ready
    # And the other way round: what a network taught nobody else wants.
    only, _ = run(("quadratic",), RATE, whole(ALONE)[0].learned())
    again = only.learned()
    assert again is not None
    assert set(again.references) == {"fast", "10s", "60s"}


@EACH
def test_who_stays_keeps_what_it_learned_when_others_join(scorers: tuple[Scorer, ...]) -> None:
    north, south = streams(onset_s=SECONDS)
    late = cut(south[1], south[1].time_ns >= START_NS + JOINS_S * 10**9)
    pipeline = Pipeline(told(scorers))
    outputs = fed(pipeline, rounds((north, (south[0], late)), list(range(RATE, SECONDS * RATE, RATE))))
    outputs += pipeline.finish()
    alone = Pipeline(told(scorers))
    lonely = fed(alone, rounds((north,), list(range(RATE, SECONDS * RATE, RATE)))) + alone.finish()
    after = [o for o in outputs if len(o.signals.table.pmus) == 7]
    ours, theirs = tracks(after), tracks(lonely)
    for name in ("sequence", "sequence_1s"):
        ticks = len(ours[name])
        assert ticks > 60
        assert np.isfinite(ours[name][:, :4]).all(), "scored without a break"
        assert np.isnan(ours[name][:, 4:]).all(), "who joins learns"
        # What is common to the angles follows those who join; nothing else differs.
        np.testing.assert_array_equal(ours[name][0, :4], theirs[name][-ticks])
        assert np.median(np.abs(ours[name][:, :4] - theirs[name][-ticks:])) < 0.5
        assert ours[name][:, :4].max() < 13


def test_a_model_of_another_rate_is_told_and_the_quadratic_fit_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        pipeline = Pipeline(told(BOTH, 50.0))
        outputs = fed(pipeline, each(RATE)[:3])
    assert "50 frames a second, and this stream has 30" in caplog.text
    assert set(tracks(outputs)) == {"fast", "10s", "60s"}
    with pytest.raises(InputError, match="train one for this rate"):
        fed(Pipeline(told(ALONE, 50.0)), each(RATE)[:3])
    with pytest.raises(UsageError, match="wants a model"):
        fed(Pipeline(replace(told(ALONE), model=None)), each(RATE)[:3])


def test_the_pipeline_imports_neither_tensorflow_nor_jax() -> None:
    asked = "import sys, gridsense.pipeline as p; print(sorted({'tensorflow', 'jax', 'keras'} & set(sys.modules)), p)"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("[] <module 'gridsense.pipeline'")
