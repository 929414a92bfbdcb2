"""Snapshots that travel with offsets, on a real broker: whole or refused, and nothing is written or kept in vain."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
from kafka.admin import NewTopic

from gridsense.checkpoints import PIECE_BYTES, SPARE_KEYS, Checkpoints, Pointer
from gridsense.errors import StoreError
from gridsense.snapshots import Snapshot
from scripts.broker.cluster import Cluster
from streams.errors import LogError, UnreachableError
from streams.kafka.clients import admin
from streams.kafka.settings import KafkaSettings
from streams.kafka.state import StateTopic

PARTITION = 1


@pytest.fixture
def settings(kafka: Cluster, kafka_prefix: str) -> KafkaSettings:
    """Of a compacted topic `state`, with two partitions."""
    made = KafkaSettings((kafka.servers,), prefix=kafka_prefix, request_s=5.0)
    with closing(admin(made)) as client:
        client.create_topics([NewTopic(made.topic("state"), 2, 1, topic_configs={"cleanup.policy": "compact"})])
    return made


@pytest.fixture
def topic(settings: KafkaSettings) -> Iterator[StateTopic]:
    with closing(StateTopic(settings, "state")) as made:
        yield made


def made(place: int, *arrays: np.ndarray) -> Snapshot:
    return Snapshot(place, "test", f"body {place}".encode(), arrays)


def same(one: Snapshot, other: Snapshot) -> bool:
    arrays = zip(one.arrays, other.arrays, strict=True)
    return (one.place, one.nature, one.body) == (other.place, other.nature, other.body) and all(
        (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes()) for a, b in arrays
    )


def read(topic: StateTopic, pointer: Pointer) -> Snapshot:
    """As another process does."""
    return Checkpoints(topic, PARTITION).read(pointer)


class Torn(StateTopic):
    """A topic that takes so many pieces and no more."""

    def __init__(self, settings: KafkaSettings, room: int) -> None:
        super().__init__(settings, "state")
        self.room = room

    def put(
        self, partition: int, pieces: Iterable[tuple[str, bytes]], hurry: threading.Event | None = None
    ) -> list[int]:
        every = list(pieces)
        some, self.room = every[: self.room], max(self.room - len(every), 0)
        offsets = super().put(partition, some, hurry)
        if len(some) < len(every):
            raise LogError("torn off")
        return offsets


def test_what_was_saved_comes_back_bit_for_bit(topic: StateTopic) -> None:
    rng = np.random.default_rng(1)
    arrays = (
        rng.standard_normal((3, 300, 500)).astype(np.float32),  # several pieces
        rng.integers(0, 255, (5, 4), np.uint8).T,  # not contiguous
        np.array([np.nan, np.inf, -0.0]),
        np.empty((0, 7), bool),
        np.array(3.5),  # without axes
    )
    snapshot = Snapshot(17, "nature", os.urandom(2 * PIECE_BYTES + 1), (*arrays, arrays[0]))
    pointer, written = Checkpoints(topic, PARTITION).save(snapshot)
    assert pointer.place == 17
    assert written == len(snapshot.body) + sum(array.nbytes for array in arrays)
    assert same(read(topic, pointer), snapshot)
    assert same(read(topic, pointer), snapshot)  # reading it changes nothing
    assert topic.keys(0) == {}


def test_arrays_that_stay_are_written_once(topic: StateTopic) -> None:
    one = Checkpoints(topic, PARTITION)
    stays, later = np.zeros(200_000), np.ones(1000)
    first, written = one.save(made(1, stays, np.zeros(10)))
    assert written == 1_600_000 + 80 + len(b"body 1")
    before = len(topic.keys(PARTITION))
    second, written = one.save(made(2, later, stays))
    assert written == 8000 + len(b"body 2")
    assert len(topic.keys(PARTITION)) == before + 3  # a body, an array, an index
    assert same(read(topic, first), made(1, stays, np.zeros(10)))
    assert same(read(topic, second), made(2, later, stays))


def test_what_belongs_to_none_of_the_two_newest_goes(topic: StateTopic) -> None:
    one = Checkpoints(topic, PARTITION)
    stays = np.zeros(100_000)  # two pieces
    kept = []
    for place in range(4):
        pointer, _ = one.save(made(place, stays, np.full(1000, float(place))))
        one.tidy()  # it is committed
        kept = [*kept[-1:], (pointer, made(place, stays, np.full(1000, float(place))))]
        for valid, snapshot in kept:
            assert same(read(topic, valid), snapshot)
    assert len(topic.keys(PARTITION)) == 2 + 2 * 3  # what stays, and of each a body, an array and an index
    one.tidy()
    assert len(topic.keys(PARTITION)) == 2 + 2 * 3


def test_a_snapshot_that_was_never_committed_leaves_the_one_before(topic: StateTopic) -> None:
    one = Checkpoints(topic, PARTITION)
    for place in (1, 2):
        committed, _ = one.save(made(place, np.full(1000, float(place))))
        one.tidy()
    one.save(made(3, np.full(1000, 3.0)))  # and then its partition was taken from it
    other = Checkpoints(topic, PARTITION)
    assert same(other.read(committed), made(2, np.full(1000, 2.0)))
    pointer, _ = other.save(made(4, np.full(1000, 4.0)))
    # Not committed yet either: the old one is still what counts.
    assert same(read(topic, committed), made(2, np.full(1000, 2.0)))
    other.tidy()
    assert same(read(topic, pointer), made(4, np.full(1000, 4.0)))
    assert same(read(topic, committed), made(2, np.full(1000, 2.0)))
    assert len(topic.keys(PARTITION)) == 2 * 3  # what the first wrote besides is gone


def test_another_writer_goes_on_and_tidies_after_the_one_before(topic: StateTopic) -> None:
    one = Checkpoints(topic, PARTITION)
    stays = np.arange(100_000.0)
    for place in range(4):
        pointer, _ = one.save(made(place, stays, np.full(1000, float(place))))
    other = Checkpoints(topic, PARTITION)
    snapshot = other.read(pointer)
    # What it has read and goes on with is not written again.
    pointer, written = other.save(replace(snapshot, place=10, body=b"ten"))
    assert written == 3
    other.tidy()
    third = Checkpoints(topic, PARTITION)
    found = third.read(pointer)
    assert same(found, replace(snapshot, place=10, body=b"ten"))
    for place in (11, 12):
        pointer, _ = third.save(made(place, found.arrays[0], np.zeros(10)))
        third.tidy()
    assert same(read(topic, pointer), made(12, stays, np.zeros(10)))
    # Of the first writer the array that stays, in two pieces, of the third two snapshots, and nothing of the second.
    assert len(topic.keys(PARTITION)) == 2 + 2 * 3


def test_however_often_the_writer_changes_nothing_piles_up(topic: StateTopic) -> None:
    """Nor is anything dropped that was never there, but for a few: a writer of months has used millions of keys."""
    stays = np.arange(10.0)
    pointer, _ = Checkpoints(topic, PARTITION).save(made(0, stays, np.zeros(10)))
    there = []
    for place in range(1, 5):
        one = Checkpoints(topic, PARTITION)
        one.read(pointer)
        one._newest = 1_000_000
        pointer, _ = one.save(made(place, stays, np.zeros(10)))
        if place % 2:
            one.tidy()  # the others were killed before
        there.append(len(topic.keys(PARTITION)))
        assert len(one._stale) < 500
    assert there == [8, 12, 8, 12]


def test_snapshots_that_nobody_could_finish_are_tidied_too(settings: KafkaSettings, topic: StateTopic) -> None:
    stays = np.zeros(1000)
    with closing(Torn(settings, 4)) as torn:
        one = Checkpoints(torn, PARTITION)
        pointer, _ = one.save(made(1, stays))
        for place in (2, 3):
            with pytest.raises(StoreError, match=f"snapshot of partition {PARTITION}: torn off"):
                one.save(made(place, np.full(1000, float(place))))
        torn.room = 100
        assert same(read(topic, pointer), made(1, stays))
        for place in (4, 5, 6):
            pointer, _ = one.save(made(place, stays))
            one.tidy()
            assert same(read(topic, pointer), made(place, stays))
    assert len(topic.keys(PARTITION)) == 1 + 2 * 2


def test_what_a_killed_writer_left_unfinished_is_tidied_by_the_next(settings: KafkaSettings, topic: StateTopic) -> None:
    with closing(Torn(settings, 3)) as torn:
        one = Checkpoints(torn, PARTITION)
        pointer, _ = one.save(made(1, np.zeros(1000)))
        torn.room = 2
        with pytest.raises(StoreError):
            one.save(made(2, *(np.zeros(10) for _ in range(SPARE_KEYS // 2))))
    other = Checkpoints(topic, PARTITION)
    other.read(pointer)
    for place in (3, 4):
        pointer, _ = other.save(made(place, np.ones(10)))
        other.tidy()
    assert same(read(topic, pointer), made(4, np.ones(10)))
    assert len(topic.keys(PARTITION)) == 2 * 3


def test_a_writer_that_lost_its_partition_does_not_harm_the_next(topic: StateTopic) -> None:
    """It writes on for a while, as one that slept; what it writes nobody reads, and under its own keys."""
    one = Checkpoints(topic, PARTITION)
    pointer, _ = one.save(made(1, np.zeros(1000)))
    other = Checkpoints(topic, PARTITION)
    other.read(pointer)
    newest, _ = other.save(made(2, np.ones(1000)))
    one.save(made(2, np.full(1000, 9.0)))
    assert same(read(topic, newest), made(2, np.ones(1000)))


@pytest.mark.parametrize("place", ["index", "array"])
def test_a_piece_that_is_gone_or_another_is_said(topic: StateTopic, place: str) -> None:
    one = Checkpoints(topic, PARTITION)
    (foreign,) = topic.put(PARTITION, [("foreign", b"\x93\x01\x02\x03")])
    pointer, _ = one.save(made(5, np.zeros(100_000)))
    if place == "index":
        for offsets in ((foreign,), (pointer.index[0] + 7,), (pointer.index[0] - 1,), ()):
            with pytest.raises(StoreError, match=f"snapshot of partition {PARTITION} cannot be read"):
                read(topic, Pointer(5, offsets))
        return
    (index,) = topic.get(PARTITION, pointer.index)
    # Pieces of the array stand at 2 and 3: damaged is what claims to be one and is another, or nowhere.
    assert same(read(topic, pointer), made(5, np.zeros(100_000)))
    for harm in (index.replace(b"\x92\x02\x03", b"\x92\x02\x00"), index.replace(b"\x92\x02\x03", b"\x92\x02\x63")):
        assert harm != index
        (other,) = topic.put(PARTITION, [("other index", harm)])
        with pytest.raises(StoreError, match=f"snapshot of partition {PARTITION} cannot be read"):
            read(topic, Pointer(5, (other,)))


def test_after_a_snapshot_that_cannot_be_read_one_begins_anew(topic: StateTopic) -> None:
    one = Checkpoints(topic, PARTITION)
    with pytest.raises(StoreError):
        one.read(Pointer(3, (77,)))
    pointer, _ = one.save(made(4, np.zeros(10)))
    one.tidy()
    assert same(read(topic, pointer), made(4, np.zeros(10)))


def test_servers_that_do_not_answer_are_no_damage(settings: KafkaSettings, topic: StateTopic) -> None:
    """Else what is remembered would be thrown away because of a broker that starts."""
    pointer, _ = Checkpoints(topic, PARTITION).save(made(4, np.zeros(10)))
    nowhere = replace(settings, servers=("127.0.0.1:1",), request_s=1.0)
    with closing(StateTopic(nowhere, "state")) as gone, pytest.raises(UnreachableError):
        Checkpoints(gone, PARTITION).read(pointer)
