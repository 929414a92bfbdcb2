"""A pipeline taken down and put together again goes on as if nothing had been, to the last bit."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gridsense.errors import StoreError
from gridsense.freezing import Frozen, freeze, thaw
from gridsense.pipeline import Output, Pipeline, Settings
from gridsense.sources import Round, cut
from streams.align import AlignSettings
from tests.reference.small_grid import small_grid

SETTINGS = Settings(source="law", learn_s=25.0, align=AlignSettings(lateness_s=1.0))
SECONDS = 70


def rounds() -> list[Round]:
    """North alone for ten seconds, then both: the sources change in mid-stream. The disturbance is at 60 s."""
    north, south = small_grid("north", 1, 4, 1), small_grid("south", 5, 3, 2)
    out: list[Round] = []
    for k in range(SECONDS * 2):
        first, last = (int(north.arrival_ns[0]) + round(x * 5e8) for x in (k, k + 1))
        together = [
            (name, cut(b, (b.arrival_ns >= first) & (b.arrival_ns < last)))
            for name, b in (("north#1", north), ("south#5", south))
            if name == "north#1" or k >= 20
        ]
        out.append([(n, b) for n, b in together if len(b.time_ns)])
    return out


def scores(outputs: list[Output]) -> np.ndarray:
    return np.concatenate([t.score[:, :4] for o in outputs for t in o.scored.ticks.tracks])


def words(outputs: list[Output]) -> list[object]:
    return [event for o in outputs for event in o.events]


@pytest.mark.slow
@settings(max_examples=6, deadline=None)
@given(st.lists(st.integers(1, SECONDS * 2 - 1), min_size=1, max_size=5, unique=True).map(sorted))
def test_a_thawed_pipeline_goes_on_to_the_last_bit(stops: list[int]) -> None:
    todo = rounds()
    straight = Pipeline(SETTINGS)
    frozen: dict[int, Frozen] = {}
    expected = []
    for k, one in enumerate(todo):
        if k in stops:
            taken = straight.freeze()
            assert taken is not None
            frozen[k] = taken
        expected.append(straight.feed(one))
    last = straight.finish()
    assert any(event.kind == "fault" for part in [*expected, last] for o in part for event in o.events)
    for k, taken in frozen.items():  # after the original has gone on: nothing that was taken down may have changed
        again = Pipeline(SETTINGS)
        again.thaw(taken)
        outputs = [o for one in todo[k:] for o in again.feed(one)] + again.finish()
        rest = [o for part in expected[k:] for o in part] + last
        assert words(outputs) == words(rest)
        np.testing.assert_array_equal(scores(outputs), scores(rest))


def test_arrays_are_taken_once_and_small_ones_stand_in_the_skeleton() -> None:
    pipeline = Pipeline(SETTINGS)
    for one in rounds()[:30]:
        pipeline.feed(one)
    first = pipeline.freeze()
    second = pipeline.freeze()
    assert first is not None
    assert second is not None
    assert first.skeleton == second.skeleton
    assert {id(a) for a in first.arrays} == {id(a) for a in second.arrays}
    assert len({id(a) for a in first.arrays}) == len(first.arrays)
    assert all(a.nbytes > 4096 for a in first.arrays)


def test_what_was_taken_down_goes_with_who_has_it_and_waits_for_no_collector() -> None:
    array = np.zeros(5000)
    gone = weakref.ref(array)
    gc.disable()
    try:
        frozen = freeze((array,), (), {})
        del array
        assert gone() is not None
        del frozen
        assert gone() is None
    finally:
        gc.enable()


def test_nothing_is_taken_down_before_the_first_frame() -> None:
    assert Pipeline(SETTINGS).freeze() is None


@pytest.mark.parametrize("harm", [b"", b"\x00", b"\x92\x90\x93\x01\x02\x03"])
def test_a_damaged_snapshot_is_an_error_that_says_so(harm: bytes) -> None:
    with pytest.raises(StoreError, match="snapshot"):
        Pipeline(SETTINGS).thaw(Frozen(harm, ()))


def test_what_has_no_place_in_a_state_is_refused() -> None:
    with pytest.raises(TypeError, match="set has no place"):
        freeze((1, {1, 2}), (), {})


def test_plain_values_come_back_as_they_were() -> None:
    tree = (1, 2.5, "x", b"y", None, True, float("inf"), -(1 << 62), {3: (4.0,)})
    kind = tuple[int, float, str, bytes, int | None, bool, float, int, dict[int, tuple[float, ...]]]
    assert thaw(kind, freeze(tree, (), {}), {}) == tree
