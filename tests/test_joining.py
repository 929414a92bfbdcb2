"""Joining: what several regions saw is one disturbance, whatever the order in which they say it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gridsense.errors import StoreError
from gridsense.events import Cause, Event, event_id
from gridsense.joining import LONG_AGO_NS, Change, Joiner, Settings, Word

S = 1_000_000_000
"""A second, in nanoseconds."""


def seen(region: str, onset_s: float, end_s: float | None = None, minus_ln_p: float = 20.0) -> Event:
    """What a region says of a disturbance."""
    onset_ns, source = round(onset_s * S), f"grid/{region}"
    return Event(
        id=event_id(source, onset_ns, f"{region}0", Cause.GRID),
        source=source,
        onset_ns=onset_ns,
        raised_ns=onset_ns + S // 5,
        end_ns=None if end_s is None else round(end_s * S),
        cause=Cause.GRID,
        kind="fault",
        first_pmu=f"{region}0",
        pmus=(f"{region}0", f"{region}1"),
        minus_ln_p=minus_ln_p,
        scorer="fast",
        contributions=(),
        sentence=f"seen by {region}",
    )


def word(
    region: str, until_s: float, *events: Event, clock_s: float | None = None, told_s: float | None = None
) -> Word:
    """Told when it was raised or has ended, unless it is said when."""
    changes = tuple(
        Change(round(told_s * S) if told_s is not None else event.end_ns or event.raised_ns, event) for event in events
    )
    return Word(region, round((until_s if clock_s is None else clock_s) * S), round(until_s * S), changes)


def brief(events: Iterable[Event]) -> list[tuple[str, float | None]]:
    return [(event.id, None if event.end_ns is None else event.end_ns / S) for event in events]


def joiner(*regions: str, patience_s: float = 5.0) -> Joiner:
    return Joiner(Settings("grid", patience_s, regions))


def test_a_disturbance_seen_in_one_region_is_told_as_the_grids() -> None:
    one = joiner()
    first = seen("north", 10)
    assert one.take([word("north", 11, first)]) == [replace(first, source="grid")]
    assert one.lasting() == [replace(first, source="grid")]
    ended = replace(first, end_ns=14 * S)
    assert one.take([word("north", 15, ended)]) == [replace(ended, source="grid")]
    assert one.lasting() == []


def test_what_is_seen_while_one_is_open_belongs_to_it() -> None:
    one = joiner("north", "south")
    north, south = seen("north", 10), seen("south", 9.9, minus_ln_p=30.0)
    late = replace(south, raised_ns=north.raised_ns + S)
    assert one.take([word("north", 20, north), word("south", 20, late)]) == [replace(north, source="grid")]
    (lasting,) = one.lasting()
    assert one.take([word("south", 30, replace(late, end_ns=21 * S)), word("north", 30)]) == []
    (ended,) = one.take([word("north", 40, replace(north, end_ns=35 * S)), word("south", 40)])
    assert (lasting.id, lasting.end_ns) == (north.id, None)
    assert ended == replace(lasting, end_ns=35 * S)
    # It bears the name of the first, begins with the earliest, and is explained by who saw it most.
    assert (ended.id, ended.raised_ns, ended.first_pmu) == (north.id, north.raised_ns, "north0")
    assert ended.onset_ns == south.onset_ns
    assert ended.pmus == ("north0", "north1", "south0", "south1")
    assert ended.minus_ln_p == 30.0
    assert ended.sentence == "seen by south; seen in 2 regions: north, south"


def test_a_region_that_raises_another_speaks_of_a_new_one() -> None:
    one = joiner("north", "south")
    first, other, second = seen("north", 10), seen("south", 10.1), seen("north", 20)
    told = one.take([word("north", 12, first), word("south", 12, other)])
    told += one.take([word("north", 18, replace(first, end_ns=15 * S)), word("south", 18)])
    told += one.take([word("north", 22, second), word("south", 22)])
    # South still spoke of the first when north raised the second: that ends the first.
    assert brief(told) == [(first.id, None), (first.id, second.raised_ns / S), (second.id, None)]
    # The end of south's event comes late: its disturbance is over.
    assert one.take([word("south", 31, replace(other, end_ns=30 * S)), word("north", 31)]) == []
    (ended,) = one.take([word("north", 41, replace(second, end_ns=40 * S)), word("south", 41)])
    assert brief([ended]) == [(second.id, 40.0)]
    assert ended.pmus == ("north0", "north1")


def test_a_region_may_see_two_of_its_own_one_after_another() -> None:
    one = joiner()
    first, second = seen("north", 10), seen("north", 20)
    told = one.take([word("north", 30, first, replace(first, end_ns=15 * S), second, replace(second, end_ns=25 * S))])
    assert brief(told) == [(first.id, None), (first.id, 15.0), (second.id, None), (second.id, 25.0)]


def test_event_time_stands_still_until_every_region_has_spoken() -> None:
    one = joiner("north", "south")
    south, north = seen("south", 10), seen("north", 10.5)
    assert one.take([word("north", 12, north)]) == []
    assert one.take([word("south", 9)]) == []
    assert brief(one.take([word("south", 12, south)])) == [(south.id, None)]  # the earlier, though it came later


def test_at_the_same_moment_the_names_decide() -> None:
    for order in (1, -1):
        one = joiner("north", "south")
        words = [word(name, 12, seen(name, 10)) for name in ("south", "north")]
        assert brief([e for w in words[::order] for e in one.take([w])]) == [(seen("north", 10).id, None)]


def test_a_silent_region_is_waited_for_no_longer_than_patience() -> None:
    one = joiner(patience_s=5.0)
    one.take([word("north", 10), word("south", 10)])
    north = seen("north", 11)
    assert one.take([word("north", 12, north)]) == []
    assert one.take([word("north", 15)]) == []  # five seconds, and no more
    assert brief(one.take([word("north", 15.1)])) == [(north.id, None)]
    assert one.lags() == {"north": 0.0, "south": pytest.approx(5.1)}
    # It comes back, and what it saw meanwhile belongs to what is open.
    assert one.take([word("south", 15, seen("south", 11), clock_s=15.2)]) == []
    (lasting,) = one.lasting()
    assert lasting.pmus == ("north0", "north1", "south0", "south1")


def test_regions_that_are_expected_are_waited_for_before_their_first_word() -> None:
    north = seen("north", 10)
    expecting, other = joiner("north", "south"), joiner()
    assert brief(other.take([word("north", 11, north)])) == [(north.id, None)]
    assert expecting.take([word("north", 11, north)]) == []
    assert expecting.take([word("north", 16)]) == []
    assert brief(expecting.take([word("north", 16.1)])) == [(north.id, None)]
    assert joiner("north", "south").take([word("north", 11, north), word("south", 11)]) != []


def test_who_has_never_come_to_anything_holds_nobody_up() -> None:
    """Anybody who may write could name a region; of one that scores nothing there is nothing to wait for."""
    one = joiner("north")
    north = seen("north", 10)
    stranger = Word("evil", 11 * S, LONG_AGO_NS)
    assert brief(one.take([stranger, word("north", 11, north)])) == [(north.id, None)]
    # One that is expected is waited for nevertheless, but not for ever.
    other = joiner("north", "evil")
    assert other.take([stranger, word("north", 11, north)]) == []
    assert brief(other.take([word("north", 16.1), stranger])) == [(north.id, None)]


def test_finish_judges_what_waits() -> None:
    one = joiner("north", "south")
    north = seen("north", 10)
    assert one.take([word("north", 12, north, replace(north, end_ns=11 * S))]) == []
    assert brief(one.finish()) == [(north.id, None), (north.id, 11.0)]
    assert one.finish() == []


def test_what_lasts_is_told_as_it_has_grown() -> None:
    one = joiner()
    north = seen("north", 10)
    one.take([word("north", 11, north)])
    grown = replace(north, minus_ln_p=50.0, pmus=("north2", *north.pmus))
    (lasting,) = one.lasting([grown, seen("south", 3)])
    assert lasting == replace(grown, source="grid")


@pytest.mark.parametrize("damage", [b"", b"\xc1", b"\x93\x01\x02\x03", b"\x81\xa7regions\x01"])
def test_a_damaged_snapshot_is_refused_and_changes_nothing(damage: bytes) -> None:
    one = joiner()
    one.take([word("north", 11, seen("north", 10))])
    before = one.freeze()
    with pytest.raises(StoreError, match="snapshot of the joined events"):
        one.thaw(damage)
    assert one.freeze() == before


# --- laws -------------------------------------------------------------------------------------------------------------

REGIONS = ("east", "north", "south")


@st.composite
def talks(draw: st.DrawFn) -> list[list[Word]]:
    """Of each region its words, one for each step of a common clock."""
    steps = draw(st.integers(2, 12))
    out = []
    for region in REGIONS:
        words: list[Word] = []
        lasts: Event | None = None
        told = 0
        for step in range(1, steps + 1):
            changes = []
            # A region raises when it is quiet, and ends when it is not; all told after its last word.
            until = 10 * step - draw(st.integers(0, 9))
            for at in sorted(draw(st.lists(st.integers(told + 1, until), max_size=3, unique=True))):
                lasts = (
                    seen(region, at / 10, minus_ln_p=float(at))
                    if lasts is None
                    else replace(lasts, end_ns=at * S // 10)
                )
                changes.append(Change(at * S // 10, lasts))
                lasts = None if lasts.end_ns is not None else lasts
            told = until
            words.append(Word(region, step * S, until * S // 10, tuple(changes)))
        out.append(words)
    return out


def interleaved(draw: st.DrawFn, talk: Sequence[Sequence[Word]]) -> list[Word]:
    """Each region's own order is kept, and nobody is further ahead than patience allows."""
    left = [list(words) for words in talk]
    out: list[Word] = []
    while any(left):
        behind = min(words[0].clock_ns for words in left if words)
        ready = [n for n, words in enumerate(left) if words and words[0].clock_ns <= behind + 2 * S]
        out.append(left[draw(st.sampled_from(ready))].pop(0))
    return out


@st.composite
def orders(draw: st.DrawFn) -> tuple[list[Word], list[Word], list[int]]:
    """Twice the same words in two orders, and where to cut the second."""
    talk = draw(talks())
    first = sorted((w for words in talk for w in words), key=lambda w: w.clock_ns)
    other = interleaved(draw, talk)
    return first, other, sorted(draw(st.lists(st.integers(0, len(other)), max_size=8)))


def said(words: Sequence[Word], edges: Sequence[int]) -> list[Event]:
    one = joiner(*REGIONS)
    bounds = [0, *edges, len(words)]
    events = [e for low, high in pairwise(bounds) for e in one.take(words[low:high])]
    return events + one.finish()


@settings(max_examples=60, deadline=None)
@given(orders())
def test_neither_cuts_nor_the_order_of_regions_change_what_is_said(
    three: tuple[list[Word], list[Word], list[int]],
) -> None:
    first, other, edges = three
    expected = said(first, range(len(first)))
    assert said(first, []) == expected
    assert said(other, edges) == expected
    assert said(other, range(len(other))) == expected


@settings(max_examples=40, deadline=None)
@given(orders())
def test_going_on_from_a_snapshot_changes_nothing(three: tuple[list[Word], list[Word], list[int]]) -> None:
    _, words, edges = three
    straight, one = joiner(*REGIONS), joiner(*REGIONS)
    for n, each in enumerate(words):
        if n in edges:
            frozen = one.freeze()
            one = joiner(*REGIONS)
            one.thaw(frozen)
            assert one.freeze() == frozen
        assert one.take([each]) == straight.take([each])
        assert one.freeze() == straight.freeze()
        assert (one.lasting(), one.lags()) == (straight.lasting(), straight.lags())
    assert one.finish() == straight.finish()


@settings(max_examples=60, deadline=None)
@given(orders(), st.floats(0.5, 5.0))
def test_each_is_raised_once_and_ends_at_most_once_after_that(
    three: tuple[list[Word], list[Word], list[int]], patience_s: float
) -> None:
    one = joiner(*REGIONS, patience_s=patience_s)
    events = [e for each in three[1] for e in one.take([each])] + one.finish()
    open_: dict[str, Event] = {}
    ended: set[str] = set()
    for event in events:
        if event.end_ns is None:
            assert not open_, "one is open already"
            assert event.id not in ended
            open_[event.id] = event
        else:
            raised = open_.pop(event.id)
            assert event.onset_ns <= raised.onset_ns
            assert event.end_ns >= event.onset_ns
            assert event.raised_ns == raised.raised_ns
            ended.add(event.id)
    assert [event.id for event in one.lasting()] == list(open_)
    assert len(ended) + len(open_) == sum(event.end_ns is None for event in events)


def test_a_region_that_catches_up_delays_nobody() -> None:
    one = joiner(patience_s=5.0)
    assert not one.take([word("south", 10.0), word("north", 12.0)])
    raised = seen("north", 100.0)
    # south was restored: it speaks again, of what was a minute and a half ago
    assert brief(one.take([word("north", 101.0, raised), word("south", 12.0, clock_s=101.0)])) == [(raised.id, None)]
    late = seen("south", 20.0)
    assert not one.take([word("south", 21.0, late, clock_s=102.0)])
    assert [event.id for event in one.lasting()] == [raised.id]
    assert set(one.lasting()[0].pmus) == {"north0", "north1", "south0", "south1"}
