"""Which scorer saw an event first, and which most plainly: by what they said, each over its own threshold."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from gridsense.demo.sightings import Sighting, Sightings
from gridsense.events import Cause, Event
from gridsense.pipeline import Output, Pipeline, Settings
from gridsense.sequence import load_model
from tests.reference.made_event import made_event
from tests.reference.small_grid import START_NS, small_grid

S = 1_000_000_000


@pytest.fixture(scope="module")
def outputs() -> list[Output]:
    pipeline = Pipeline(Settings(scorers=("quadratic", "sequence"), model=load_model()))
    return [*pipeline.feed([("north", small_grid("north", 1, 3, 1, seconds=10))]), *pipeline.finish()]


def event(cause: Cause, scorer: str) -> Event:
    made = made_event(START_NS / S + 5, cause, "it")
    return replace(made, scorer=scorer, end_ns=made.onset_ns + 2 * S, first_pmu="north1")


def said(outputs: list[Output], words: dict[str, tuple[float, float]], pmu: int | None) -> Sightings:
    """Let each track of a name be silent but from a second on, when it says so much of the grid, or of a PMU."""
    sightings = Sightings()
    for output in outputs:
        ticks, score = output.scored.ticks, np.full_like(output.grid.score, -np.inf)
        tracks = [replace(track, score=np.full_like(track.score, np.nan)) for track in ticks.tracks]
        for i, track in enumerate(tracks):
            second, value = words.get(track.name, (np.inf, 0.0))
            loud = ticks.time_ns >= START_NS + second * S
            if pmu is None:
                score[loud, i] = value
            else:
                track.score[loud, pmu] = value
        changed = replace(output.scored, ticks=replace(ticks, tracks=tracks))
        sightings.take(replace(output, scored=changed, grid=replace(output.grid, score=score)))
    return sightings


@pytest.mark.parametrize("pmu", [None, 1])
@pytest.mark.parametrize(
    ("words", "first", "most"),
    [
        ({"fast": (5.5, 40.0), "sequence": (5.0, 20.0)}, "sequence", "quadratic"),
        ({"fast": (5.0, 20.0), "sequence_1s": (5.4, 60.0)}, "quadratic", "sequence"),
        ({"10s": (5.0, 20.0), "sequence": (5.0, 60.0)}, "both", "sequence"),
        ({"fast": (4.0, 20.0), "sequence": (5.0, 10.0)}, "quadratic", "quadratic"),
        ({"fast": (7.4, 20.0), "sequence": (5.0, 30.0)}, "sequence", "sequence"),
    ],
)
def test_the_first_and_the_strongest(
    outputs: list[Output], words: dict[str, tuple[float, float]], first: str, most: str, pmu: int | None
) -> None:
    cause = Cause.GRID if pmu is None else Cause.DATA
    sightings = said(outputs, words, pmu)
    assert sightings.of([event(cause, "fast")]) == {"it": Sighting(first, most)}


def test_what_no_scorer_raised_is_left_out(outputs: list[Output]) -> None:
    loud = {"fast": (5.0, 40.0)}
    assert said(outputs, loud, 1).of([event(Cause.COMMS, "quality")]) == {}
    assert said(outputs, loud, 2).of([event(Cause.DATA, "fast")]) == {}, "another PMU's score is none of it"
    assert said(outputs, {}, None).of([event(Cause.GRID, "fast")]) == {}
    assert Sightings().of([event(Cause.GRID, "fast")]) == {}
