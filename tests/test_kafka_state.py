"""Pieces of snapshots on a compacted topic of a real broker."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import pytest
from kafka.admin import NewTopic

from scripts.broker.cluster import Cluster
from streams.errors import LogError
from streams.kafka.clients import admin
from streams.kafka.settings import KafkaSettings
from streams.kafka.state import PIECE_BYTES, StateTopic

COMPACTED = {
    "cleanup.policy": "compact",
    "min.cleanable.dirty.ratio": "0.01",
    "segment.bytes": str(1 << 20),
    "max.compaction.lag.ms": "100",
}


@pytest.fixture
def settings(kafka: Cluster, kafka_prefix: str) -> KafkaSettings:
    """Of a compacted topic `state`, with two partitions."""
    made = KafkaSettings((kafka.servers,), prefix=kafka_prefix, request_s=5.0)
    with closing(admin(made)) as client:
        client.create_topics([NewTopic(made.topic("state"), 2, 1, topic_configs=COMPACTED)])
    return made


@pytest.fixture
def state(settings: KafkaSettings) -> Iterator[StateTopic]:
    with closing(StateTopic(settings, "state")) as made:
        yield made


def test_pieces_come_back_in_the_order_asked_for(state: StateTopic) -> None:
    pieces = [(f"north#{n}", os.urandom(PIECE_BYTES)) for n in range(12)] + [("north#small", b"")]
    offsets = state.put(1, iter(pieces))
    assert offsets == sorted(offsets)
    values = [value for _, value in pieces]
    assert state.get(1, offsets) == values
    assert state.get(1, [offsets[-1], offsets[0], offsets[0]]) == [values[-1], values[0], values[0]]
    assert state.get(1, []) == []
    assert state.keys(1) == {key: offset for (key, _), offset in zip(pieces, offsets, strict=True)}
    assert state.keys(0) == {}


def test_dropped_keys_are_gone_and_overwritten_ones_stand_at_the_newest(state: StateTopic) -> None:
    state.put(0, [("a", b"1"), ("b", b"2"), ("c", b"3")])
    (newest,) = state.put(0, [("a", b"4")])
    state.drop(0, ["b", "never there"])
    keys = state.keys(0)
    assert keys == {"a": newest, "c": 2}
    assert state.get(0, [keys["a"], keys["c"]]) == [b"4", b"3"]


def test_a_piece_that_compaction_took_is_named(state: StateTopic) -> None:
    first = state.put(0, [("same", b"old"), ("other", b"kept")])
    state.put(0, [("same", os.urandom(PIECE_BYTES)) for _ in range(4)])
    deadline_s = time.monotonic() + 30
    with pytest.raises(LogError, match=f"nothing stands at {first[0]}"):  # noqa: PT012 - compaction takes its time
        while time.monotonic() < deadline_s:
            assert state.get(0, [first[0]]) == [b"old"]
            time.sleep(0.2)
    assert state.get(0, [first[1]]) == [b"kept"]


def test_what_was_never_written_is_named(state: StateTopic) -> None:
    offsets = state.put(0, [("a", b"1"), ("b", b"2")])
    with pytest.raises(LogError, match="nothing stands at 7"):
        state.get(0, [*offsets, 7])


def test_a_piece_too_large_is_refused_and_the_topic_goes_on(state: StateTopic) -> None:
    with pytest.raises(LogError, match="piece large has 1000001 bytes"):
        state.put(0, [("small", b"1"), ("large", bytes(PIECE_BYTES + 1))])
    (offset,) = state.put(0, [("after", b"2")])
    assert state.get(0, [offset]) == [b"2"]


def test_a_topic_that_is_not_there_is_an_error(settings: KafkaSettings) -> None:
    with closing(StateTopic(replace(settings, request_s=1.0), "nowhere")) as state:
        with pytest.raises(LogError, match="nowhere"):
            state.put(0, [("a", b"1")])
        with pytest.raises(LogError, match="nowhere"):
            state.get(0, [0])
