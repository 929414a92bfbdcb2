"""The whole way keeps its laws: events do not depend on cuts, on arrival order, or on who else comes and goes."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gridsense.events import Cause, Event
from gridsense.pipeline import Output, Pipeline, Settings
from gridsense.sources import Round, cut
from streams.align import AlignSettings
from streams.block import FrameBatch
from tests.reference.small_grid import RATE, START_NS, small_grid

SECONDS = 75
LEARN = Settings(source="law", learn_s=25.0, align=AlignSettings(lateness_s=1.0))


@cache
def streams() -> tuple[tuple[str, FrameBatch], ...]:
    return (("north#1", small_grid("north", 1, 4, 1)), ("south#5", small_grid("south", 5, 3, 2)))


def rounds(parts: tuple[tuple[str, FrameBatch], ...], edges: list[int]) -> list[Round]:
    """Cut all streams at the same arrivals."""
    out = []
    first = min(int(b.arrival_ns.min()) for _, b in parts)
    last = max(int(b.arrival_ns.max()) for _, b in parts)
    bounds = [first, *(first + round(e * 1e9 / RATE) for e in edges), last + 1]
    for low, high in pairwise(bounds):
        together = [(n, cut(b, (b.arrival_ns >= low) & (b.arrival_ns < high))) for n, b in parts]
        out.append([(n, b) for n, b in together if len(b.time_ns)])
    return [r for r in out if r]


def run(todo: list[Round]) -> tuple[list[Event], np.ndarray, list[Output]]:
    pipeline = Pipeline(LEARN)
    outputs = [o for r in todo for o in pipeline.feed(r)] + pipeline.finish()
    events = {e.id: e for o in outputs for e in o.events} | {e.id: e for e in pipeline.open_events()}
    pmus = len(outputs[-1].signals.table.pmus)
    scores = [o.scored.ticks.tracks[0].score for o in outputs if len(o.signals.table.pmus) == pmus]
    return list(events.values()), np.concatenate(scores), outputs


@cache
def whole() -> tuple[list[Event], np.ndarray]:
    events, scores, _ = run(rounds(streams(), [30 * k for k in range(1, SECONDS)]))
    return events, scores


def test_the_disturbance_is_one_grid_event() -> None:
    events, _ = whole()
    (event,) = events
    assert event.cause is Cause.GRID
    assert event.kind == "fault"
    assert len(event.pmus) == 7
    assert event.onset_ns == pytest.approx(START_NS + 60e9, abs=0.3e9)


@settings(max_examples=6, deadline=None)
@given(st.lists(st.integers(1, SECONDS * RATE - 1), min_size=1, max_size=40, unique=True).map(sorted))
def test_events_and_scores_do_not_depend_on_cuts(edges: list[int]) -> None:
    events, scores, _ = run(rounds(streams(), edges))
    assert events == whole()[0]
    np.testing.assert_array_equal(scores, whole()[1])


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.0, 0.8))
def test_events_and_scores_do_not_depend_on_arrival_order_within_the_lateness(seed: int, delay_s: float) -> None:
    rng = np.random.default_rng(seed)
    parts = []
    for name, b in streams():
        late = b.time_ns + (rng.random(len(b.time_ns)) * delay_s * 1e9).astype(np.int64)
        order = np.argsort(late, kind="stable")
        parts.append((name, replace(cut(b, order), arrival_ns=late[order])))
    events, scores, _ = run(rounds(tuple(parts), [30 * k for k in range(1, SECONDS)]))
    assert events == whole()[0]
    np.testing.assert_array_equal(scores, whole()[1])


def test_a_source_that_falls_silent_holds_nobody_back_and_is_comms() -> None:
    north, south = streams()
    gone = cut(south[1], south[1].time_ns < START_NS + 40 * 10**9)
    events, _, outputs = run(rounds((north, (south[0], gone)), [30 * k for k in range(1, SECONDS)]))
    assert sum(len(o.judged.time_ns) for o in outputs) == SECONDS * RATE
    causes = {e.cause: e for e in events}
    assert set(causes) == {Cause.GRID, Cause.COMMS}
    assert set(causes[Cause.GRID].pmus) == {"north0", "north1", "north2", "north3"}
    assert causes[Cause.COMMS].pmus == ("south0", "south1", "south2")
    assert causes[Cause.COMMS].onset_ns == pytest.approx(START_NS + 40e9, abs=0.05e9)


def test_a_source_that_joins_later_is_taken_up_and_the_others_keep_what_they_learned() -> None:
    north, south = streams()
    late = cut(south[1], south[1].time_ns >= START_NS + 45 * 10**9)
    events, _, outputs = run(rounds((north, (south[0], late)), [30 * k for k in range(1, SECONDS)]))
    assert len(outputs[-1].signals.table.pmus) == 7
    (event,) = [e for e in events if e.cause is Cause.GRID]
    assert set(event.pmus) == {"north0", "north1", "north2", "north3"}
    assert event.onset_ns == pytest.approx(START_NS + 60e9, abs=0.3e9)


def test_duplicates_change_nothing() -> None:
    parts = tuple((n, cut(b, np.repeat(np.arange(len(b.time_ns)), 2))) for n, b in streams())
    events, scores, _ = run(rounds(parts, [30 * k for k in range(1, SECONDS)]))
    assert events == whole()[0]
    np.testing.assert_array_equal(scores, whole()[1])


def test_an_event_that_is_open_when_a_source_joins_is_ended_not_lost() -> None:
    north, south = streams()
    late = cut(south[1], south[1].time_ns >= START_NS + 62 * 10**9)
    todo = rounds((north, (south[0], late)), [30 * k for k in range(1, SECONDS)])
    pipeline = Pipeline(LEARN)
    events = [e for r in todo for o in pipeline.feed(r) for e in o.events]
    events += [e for o in pipeline.finish() for e in o.events]
    lasting = pipeline.open_events()
    raised = {e.id for e in events if e.end_ns is None}
    assert raised
    assert raised == {e.id for e in events if e.end_ns is not None} | {e.id for e in lasting}
