"""Regions: each as if it were alone, and what is told of entries is told of these entries, however they are cut."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from fastcrc.crc16 import ibm_3740
from hypothesis import given, settings
from hypothesis import strategies as st

from gridsense import intake as intake_module
from gridsense import regions as regions_module
from gridsense.errors import StoreError
from gridsense.events import Cause
from gridsense.joining import LONG_AGO_NS
from gridsense.pipeline import Settings
from gridsense.regions import Heard, Regions
from gridsense.sources import cut
from streams.align import AlignSettings
from streams.c37118.configuration import decode_configuration, encode_configuration
from streams.c37118.frame import FrameType
from streams.log import Entry, Record, region_of
from tests.reference.recorded import recorded
from tests.reference.small_grid import START_NS, small_grid

LEARN = Settings(source="law", learn_s=25.0, align=AlignSettings(lateness_s=1.0))
BRIEF = replace(LEARN, learn_s=2.0)
SECOND_NS = 10**9


def numbered(records: Iterable[Record]) -> list[Entry]:
    """As a log has them."""
    return [Entry(n, *record) for n, record in enumerate(sorted(records, key=lambda r: r.time_ns))]


def named(region: str, records: Iterable[Record]) -> list[Record]:
    return [record._replace(key=f"{region}/{record.key}") for record in records]


@cache
def both() -> tuple[Entry, ...]:
    """Two regions: one disturbance, which the second sees a moment later."""
    north = named(
        "north", recorded([small_grid(*one, seconds=50, onset_s=40.0) for one in (("a", 1, 3, 1), ("b", 5, 2, 2))])
    )
    south = named("south", recorded([small_grid("a", 1, 2, 3, seconds=50, onset_s=40.5)]))
    return tuple(numbered([*north, *south]))


def told(heard: Iterable[Heard], region: str) -> dict[str, list[Any]]:
    """Everything that is said of a region, in a form that can be compared."""
    mine = [one for one in heard if one.region == region]
    outputs = [o for one in mine for o in one.outputs]
    ticks = [o.scored.ticks for o in outputs]
    dead = [d for one in mine for d in one.dead]
    return {
        "judged": [
            (o.judged.table.pmus[-1].name, time_ns, values.tobytes(), reasons.tobytes())
            for o in outputs
            for time_ns, values, reasons in zip(
                o.judged.time_ns.tolist(), o.judged.values, o.judged.quality, strict=True
            )
        ],
        "scores": sorted(
            (track.name, time_ns, score.tobytes())
            for t in ticks
            for track in t.tracks
            for time_ns, score in zip(t.time_ns.tolist(), track.score, strict=True)
        ),
        "events": sorted((event for one in mine for event in one.events), key=lambda e: (e.id, e.end_ns is None)),
        "changes": [change for one in mine for change in one.changes],
        "until": [max((one.until_ns for one in mine), default=LONG_AGO_NS)],
        "dead": sorted(dead, key=lambda d: (d.time_ns, d.key, d.reason, d.frame)),
    }


def pieces(entries: Sequence[Entry], edges: Iterable[int]) -> Iterator[Sequence[Entry]]:
    for low, high in pairwise([0, *sorted(edges), len(entries)]):
        yield entries[low:high]


def run(entries: Sequence[Entry], edges: Iterable[int] = (), brief: Settings = LEARN) -> tuple[Regions, list[Heard]]:
    regions = Regions(brief)
    return regions, [one for piece in pieces(entries, edges) for one in regions.take(piece)]


@cache
def alone(region: str) -> dict[str, list[Any]]:
    regions, heard = run([entry for entry in both() if region_of(entry.key) == region])
    return told(heard + regions.finish(), region)


@cache
def whole() -> list[Heard]:
    regions, heard = run(both(), range(0, len(both()), 40))
    return heard + regions.finish()


def sealed(frame: bytes) -> bytes:
    return frame[:-2] + ibm_3740(frame[:-2]).to_bytes(2, "big")


def spoilt(records: Sequence[Record]) -> Iterator[Record]:
    """Put in between what nobody should write, and marks."""
    rng = np.random.default_rng(6)
    last_ns = 0
    for n, record in enumerate(records):
        value, size = record.value, int.from_bytes(record.value[2:4], "big")
        last_ns = record.time_ns
        yield record
        if value[1] > 0x0F or n % 4:
            continue
        frame = value[:size]
        flipped = frame[:20] + bytes([frame[20] ^ 4]) + frame[21:]
        noise = rng.bytes(30).replace(b"\xaa", b"\x00")
        yield from (
            record._replace(value=poison)
            for poison in (
                [b""],
                [flipped],
                [frame[: size // 2]],
                [frame[: size // 2], frame[size // 2 :]],  # halves never belong together
                [noise],
                [noise + frame],
                [frame + noise],
                [frame + b"\xaa\x01"],
                [frame + flipped + frame],
                [frame[:2] + (size + 9).to_bytes(2, "big") + frame[4:]],
                [sealed(frame[:4] + b"\x77\x77" + frame[6:])],  # an ID code that nobody knows
                [flipped, noise],
                [flipped, frame[:2]],
                [flipped] * 3,
            )[n // 4 % 14]
        )
        if n % 60 == 0:
            yield Record(last_ns, f"{region_of(record.key)}/", b"")


@cache
def hostile() -> tuple[Entry, ...]:
    """A region that is hard to take: who joins, changes, falls silent, is late, is two, or writes what is no frame."""
    rng = np.random.default_rng(5)
    first = small_grid("a", 1, 2, 1, seconds=12)
    late_ns = first.time_ns + (rng.random(len(first.time_ns)) * 1.4 * SECOND_NS).astype(np.int64)
    order = np.argsort(late_ns, kind="stable")
    records = recorded([replace(cut(first, order), arrival_ns=late_ns[order])], frames=1)
    # Its configuration changes in mid-stream.
    half_ns = START_NS + 6 * SECOND_NS
    records += [r for r in recorded([small_grid("b", 5, 2, 2, seconds=12)]) if r.time_ns < half_ns]
    configuration, *changed = recorded([small_grid("b", 5, 3, 2, seconds=12)])
    records += [configuration._replace(time_ns=half_ns), *(r for r in changed if r.time_ns >= half_ns)]
    # Two streams by one connection: the configurations of both come first, data of the second seconds later.
    one, two = ([r._replace(key="c") for r in recorded([small_grid(f"c{n}-", n, 1, n, seconds=12)])] for n in (20, 30))
    records += [one[0], *one[1:], two[0], *(r for r in two[1:] if r.time_ns >= START_NS + 4.1 * SECOND_NS)]
    # One configuration within a record of data, and one that falls silent for a while.
    mixed = recorded([small_grid("e", 50, 1, 8, seconds=12)])
    records += mixed[1:20]
    records += [mixed[20]._replace(value=mixed[20].value + mixed[0].value + mixed[21].value), *mixed[22:]]
    quiet = recorded([small_grid("d", 40, 1, 7, seconds=12)])
    records += [r for r in quiet if not 7 < (r.time_ns - START_NS) / SECOND_NS < 10.5]
    return tuple(numbered(spoilt(sorted(records, key=lambda r: r.time_ns))))


@settings(max_examples=2, deadline=None)
@given(st.lists(st.integers(1, 2**20), max_size=40))
def test_two_regions_in_one_log_are_as_each_alone(edges: list[int]) -> None:
    heard = run(both(), [edge % len(both()) for edge in edges])
    said = heard[1] + heard[0].finish()
    for region in ("north", "south"):
        assert told(said, region) == alone(region)


def test_each_region_raises_the_disturbance_under_its_own_name() -> None:
    for region, onset_s, pmus in (("north", 40.0, 5), ("south", 40.5, 2)):
        said = told(whole(), region)
        (raised,) = (change.event for change in said["changes"])
        assert raised.cause is Cause.GRID
        assert raised.source == f"law/{region}"
        assert raised.onset_ns == pytest.approx(START_NS + onset_s * SECOND_NS, abs=0.3 * SECOND_NS)
        assert len(raised.pmus) == pmus
        assert not said["events"]
        assert not said["dead"]


def test_a_change_is_told_after_the_time_up_to_which_all_had_been_told() -> None:
    """Else the joining stage would have judged what came later already."""
    until = {"north": LONG_AGO_NS, "south": LONG_AGO_NS}
    changes = 0
    for one in whole():
        for change in one.changes:
            assert until[one.region] < change.told_ns <= one.until_ns
            changes += 1
        assert one.until_ns >= until[one.region]
        until[one.region] = one.until_ns
    assert changes == 2


@settings(max_examples=4, deadline=None)
@given(st.data())
def test_what_is_told_up_to_an_entry_does_not_depend_on_cuts(data: st.DataObject) -> None:
    """Nor does what is told afterwards: who reads again, and is silent about what was told, says the rest alike."""
    entries = hostile()
    at = data.draw(st.integers(1, len(entries)))
    edges = data.draw(st.lists(st.integers(0, at), max_size=60))
    regions, heard = run(entries[:at], [], BRIEF)
    again, said = run(entries[:at], edges, BRIEF)
    assert told(said, "") == told(heard, "")
    rest, other = (r.take(entries[at:]) + r.finish() for r in (regions, again))
    assert told(other, "") == told(rest, "")


def test_entry_by_entry_the_same_is_told() -> None:
    _, heard = run(hostile(), [], BRIEF)
    _, said = run(hostile(), range(len(hostile())), BRIEF)
    everything = told(heard, "")
    assert told(said, "") == everything
    # Nothing of this came about because nothing was told.
    assert {str(letter.reason) for letter in everything["dead"]} == {
        "crc", "truncated", "no_configuration", "garbage", "empty",
    }  # fmt: skip
    assert {name for name, *_ in everything["judged"]} == {"a1", "e0", "c30-0"}
    assert len(everything["events"]) == 2


@settings(max_examples=3, deadline=None)
@given(st.data())
def test_going_on_from_a_snapshot_changes_nothing(data: st.DataObject) -> None:
    entries = hostile()
    at = data.draw(st.integers(1, len(entries)))
    regions = Regions(BRIEF)
    regions.take(entries[:at])
    frozen = regions.freeze()
    while frozen is None:  # sources are just joining
        at += 1
        regions.take(entries[at - 1 : at])
        frozen = regions.freeze()
    again = Regions(BRIEF)
    again.thaw(*frozen)
    refrozen = again.freeze()
    assert refrozen is not None
    assert refrozen[0] == frozen[0]
    assert [a.tobytes() for a in refrozen[1]] == [a.tobytes() for a in frozen[1]]
    rest, other = (r.take(entries[at:]) + r.finish() for r in (regions, again))
    assert told(other, "") == told(rest, "")


def test_who_is_restored_goes_on_saying_how_far_it_is() -> None:
    regions, heard = run(hostile(), [], BRIEF)
    frozen = regions.freeze()
    assert frozen is not None
    again = Regions(BRIEF)
    again.thaw(*frozen)
    mark = Entry(10**6, hostile()[-1].time_ns, "", b"")
    (one,) = again.take([mark])
    assert one.until_ns >= max(h.until_ns for h in heard) > START_NS


@pytest.mark.parametrize(
    "harm",
    [lambda b: b[:-1], lambda _: b"", lambda _: b"\x81\xa1x\x91\x00", lambda b: b.replace(b"north", b"nort\xff")],
)
def test_a_damaged_snapshot_is_refused_and_leaves_no_region(harm: Callable[[bytes], bytes]) -> None:
    regions, _ = run(both()[:400])
    frozen = regions.freeze()
    assert frozen is not None
    again = Regions(LEARN)
    with pytest.raises(StoreError, match="the snapshot cannot be used"):
        again.thaw(harm(frozen[0]), frozen[1])
    assert again.by_name == {}
    with pytest.raises(StoreError, match="the snapshot cannot be used"):
        again.thaw(frozen[0], frozen[1][:-1])
    assert again.by_name == {}
    again.thaw(*frozen)
    assert set(again.by_name) == {"north", "south"}


def test_a_mark_moves_its_own_region_alone() -> None:
    entries = [e for e in both() if e.time_ns < START_NS + 8 * SECOND_NS]
    marks = [Entry(10**6 + n, entries[-1].time_ns + n * SECOND_NS // 4, "north/", b"") for n in range(1, 40)]
    regions, _ = run(entries)
    before = regions.by_name["south"].intake.clock_ns
    heard = regions.take(marks)
    assert {one.region for one in heard} == {"north"}
    assert heard[-1].until_ns > START_NS + 15 * SECOND_NS  # its windows close without frames
    assert regions.by_name["south"].intake.clock_ns == before
    assert regions.clock_ns == marks[-1].time_ns
    silent = [event for one in heard for event in one.events if event.cause is Cause.COMMS]
    assert [(event.source, event.pmus) for event in silent] == [
        ("law/north", ("a0", "a1", "a2")),
        ("law/north", ("b0", "b1")),
    ]


@pytest.mark.parametrize("value", [b"", b"\xaa\x01 no frame", None])
def test_time_passes_too_where_nothing_that_comes_can_be_used(value: bytes | None) -> None:
    """Else its windows would never close, its silence be no event, and the joining stage wait for it for ever."""
    entries = numbered(recorded([small_grid("a", 1, 2, 1, seconds=20)]))
    half = len(entries) // 2
    (other,) = recorded([small_grid("a", 1, 3, 1, seconds=1)])[:1]
    change = Entry(half, entries[half].time_ns, "a", other.value)  # a configuration that the data do not follow
    useless = [change, *entries[half:]] if value is None else [e._replace(value=value) for e in entries[half:]]
    for edges in ((), range(0, len(entries), 7)):
        _, heard = run([*entries[:half], *useless], edges, BRIEF)
        assert heard[-1].until_ns > START_NS + 16 * SECOND_NS
        (silent,) = (event for one in heard for event in one.events)
        assert silent.cause is Cause.COMMS
        assert silent.onset_ns == pytest.approx(START_NS + 10 * SECOND_NS, abs=0.2 * SECOND_NS)


def test_a_record_without_anything_is_put_aside_and_a_mark_is_not() -> None:
    entries = [Entry(n, START_NS + n, key, b"") for n, key in enumerate(("north/a", "a", "north/", ""))]
    heard = Regions(LEARN).take(entries)
    dead = [(letter.key, letter.reason, letter.frame) for one in heard for letter in one.dead]
    assert sorted(dead) == [("a", "empty", b""), ("north/a", "empty", b"")]


def test_a_region_too_many_is_put_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regions_module, "REGIONS_MOST", 2)
    entries = [
        Entry(n, START_NS + n, key, b"\xaa") for n, key in enumerate(("z/a", "north/a", "evil/a", "bad/a", "z/b"))
    ]
    for edges in ((), range(5)):
        regions, heard = run(entries, edges)
        assert set(regions.by_name) == {"z", "north"}
        dead = [(one.region, letter.key, letter.reason) for one in heard for letter in one.dead]
        assert sorted(d for d in dead if d[2] == "region") == [("bad", "bad/a", "region"), ("evil", "evil/a", "region")]


def test_a_connection_too_many_is_put_aside_however_much_of_the_others_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake_module, "KEYS_MOST", 4)
    sources = [[r._replace(key=f"k{n}") for r in recorded([small_grid("a", n, 1, n, seconds=3)])] for n in (1, 2, 3)]
    entries = numbered(record for source in sources for record in source)
    last = entries[-1]
    for key in ("k4", "k5"):
        entries.append(Entry(len(entries), last.time_ns + len(entries), key, last.value))
    for edges in ((), range(len(entries))):
        regions, heard = run(entries, edges, BRIEF)
        dead = dict.fromkeys((letter.key, letter.reason) for one in heard for letter in one.dead)
        assert list(dead) == [("k4", "no_configuration"), ("", "key")]
        assert "'k5' is none of them" in [letter for one in heard for letter in one.dead][-1].detail
        # A connection without a configuration counts after a restart too.
        frozen = regions.freeze()
        assert frozen is not None
        again = Regions(BRIEF)
        again.thaw(*frozen)
        (one,) = again.take([entries[-1]])
        assert [(letter.key, letter.reason) for letter in one.dead] == [("", "key")]


def test_a_configuration_is_asked_for_once_also_over_a_restart() -> None:
    """The compacted topic changes: what was not known when data came is not known either when they are read again."""
    asked: list[str] = []
    configuration, *data = numbered(recorded([small_grid("a", 1, 2, 1, seconds=3)]))

    def configured(key: str) -> bytes:
        asked.append(key)
        return b"" if len(asked) == 1 else configuration.value

    regions = Regions(BRIEF, configured)
    regions.take(data[:10])
    frozen = regions.freeze()
    assert frozen is not None
    again = Regions(BRIEF, configured)
    again.thaw(*frozen)
    assert told(again.take(data[10:20]), "") == told(regions.take(data[10:20]), "")
    assert asked == ["a"]


def test_the_configuration_in_force_is_the_one_after_a_restart() -> None:
    """A CFG-1, which says what a device could send, comes behind the CFG-2 that says what it does."""
    entries = numbered(recorded([small_grid("a", 1, 2, 1, seconds=4)]))
    could = decode_configuration([recorded([small_grid("a", 1, 3, 1, seconds=1)])[0].value])
    first = Entry(10**6, entries[40].time_ns, "a", encode_configuration(replace(could, kind=FrameType.CFG1))[0])
    regions = Regions(BRIEF)
    regions.take([*entries[:20], first])
    frozen = regions.freeze()
    assert frozen is not None
    again = Regions(BRIEF)
    again.thaw(*frozen)
    said = told(again.take(entries[20:]), "")
    assert said == told(regions.take(entries[20:]), "")
    assert said["judged"]
    assert not said["dead"]
