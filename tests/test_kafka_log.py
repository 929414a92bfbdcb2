"""The log on Kafka: the port's contract on a real broker, and what else Kafka brings: holes, strangers, big records."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from itertools import count

import pytest
from hypothesis import Phase
from hypothesis import strategies as st
from hypothesis.stateful import rule
from kafka import TopicPartition
from kafka.admin import NewTopic, OffsetSpec
from kafka.protocol.consumer import IsolationLevel

from scripts.broker.cluster import Cluster
from streams.errors import LogError, UnreachableError
from streams.kafka.clients import admin, discard, producer
from streams.kafka.log import KafkaLog
from streams.kafka.partitions import partition_of
from streams.kafka.settings import KafkaSettings
from streams.log import CONFIGURATIONS, DEAD_LETTERS, FRAMES, Entry, Log, Lost, Record
from tests.log_contract import LogContract, LogMachine, Open, follow, plain, record

COMPACTED = {"cleanup.policy": "compact"}


def made(settings: KafkaSettings, partitions: int = 1, **topics: dict[str, str]) -> KafkaSettings:
    """Make topics; those of the contract if none is named."""
    wanted = topics or {FRAMES: {}, DEAD_LETTERS: {}, CONFIGURATIONS: COMPACTED, "nothing": {}}
    with closing(admin(settings)) as client:
        client.create_topics([NewTopic(settings.topic(n), partitions, 1, topic_configs=c) for n, c in wanted.items()])
    return settings


def emptied(log: Log, topic: str, before: int) -> None:
    """Have the broker remove entries, as it does by retention."""
    assert isinstance(log, KafkaLog)
    with closing(admin(log.settings)) as client:
        client.delete_records({TopicPartition(log.settings.topic(topic), log.partition): before})


class KafkaLogMachine(LogMachine):
    """Retention is the broker's."""

    @rule(topic=st.sampled_from((FRAMES, DEAD_LETTERS)), where=st.floats(0, 1))
    def retain(self, topic: str, where: float) -> None:
        model = self.topics[topic]
        first = self.logs[0].extent(topic).first
        before = first + round(where * (model.end - first))
        emptied(self.logs[0], topic, before)
        model.entries = [entry for entry in model.entries if entry.offset >= before]
        assert follow(self.logs[1], topic)[0] == model.entries


class TestKafkaLog(LogContract):
    machine = KafkaLogMachine
    examples = 6
    phases = (Phase.explicit, Phase.reuse, Phase.generate)  # to shrink would take minutes

    @pytest.fixture
    def new(self, kafka: Cluster, kafka_prefix: str) -> Callable[[], Open]:
        number = count()

        def make() -> Open:
            settings = KafkaSettings(tuple(kafka.servers.split(",")), prefix=f"{kafka_prefix}{next(number)}.")
            return partial(KafkaLog, made(settings))

        return make

    def empty(self, log: Log, topic: str) -> None:
        emptied(log, topic, log.extent(topic).next)


@pytest.fixture
def settings(kafka: Cluster, kafka_prefix: str) -> KafkaSettings:
    return KafkaSettings(tuple(kafka.servers.split(",")), prefix=kafka_prefix, regions=("north", "south"))


def transact(settings: KafkaSettings, values: list[bytes], *, commit: bool) -> None:
    client = producer(settings, transactional_id="writer")
    try:
        client.init_transactions()
        client.begin_transaction()
        for future in [client.send(settings.topic(FRAMES), value, b"a", partition=0) for value in values]:
            future.get(10)
        if commit:
            client.commit_transaction()
        else:
            client.abort_transaction()
        settled(settings)
    finally:
        discard(client)


def settled(settings: KafkaSettings) -> None:
    """Wait until the end of a transaction is written; its owner is told before."""
    tp = TopicPartition(settings.topic(FRAMES), 0)
    with closing(admin(settings)) as client:
        while len({client.list_partition_offsets({tp: OffsetSpec.LATEST}, i)[tp].offset for i in IsolationLevel}) > 1:
            pass


def test_what_was_not_committed_is_not_there_and_its_offsets_are_left_out(settings: KafkaSettings) -> None:
    with closing(KafkaLog(made(settings))) as log:
        transact(settings, [b"a", b"b"], commit=True)
        assert [entry.value for entry in log.read(FRAMES, 0).entries] == [b"a", b"b"]
        assert log.read(FRAMES, 0).next == 3  # past the end of the transaction
        transact(settings, [b"no"] * 5, commit=False)
        reading = log.read(FRAMES, 3)
        assert reading.entries == []
        assert reading.next == 9
        assert log.extent(FRAMES).next == 9
        assert log.append(FRAMES, [record(b"c")]) == 10
        assert [(entry.offset, entry.value) for entry in log.read(FRAMES, 3).entries] == [(9, b"c")]
        assert log.extent(FRAMES).newest_ns == log.read(FRAMES, 9).entries[0].time_ns


def test_an_open_transaction_hides_what_comes_after_it_until_it_ends(settings: KafkaSettings) -> None:
    made(settings)
    client = producer(settings, transactional_id="open")
    try:
        client.init_transactions()
        client.begin_transaction()
        client.send(settings.topic(FRAMES), b"pending", b"a", partition=0).get(10)
        with closing(KafkaLog(settings)) as log:
            log.append(FRAMES, [record(b"after")])
            assert log.read(FRAMES, 0) == log.read(FRAMES, 0)
            assert log.read(FRAMES, 0).entries == []
            assert log.read(FRAMES, 0).next == 0
            client.commit_transaction()
            settled(settings)
            assert [entry.value for entry in follow(log, FRAMES)[0]] == [b"pending", b"after"]
    finally:
        discard(client)


def test_the_end_of_a_log_that_ends_with_many_aborted_transactions_is_found(settings: KafkaSettings) -> None:
    with closing(KafkaLog(made(settings))) as log:
        log.append(FRAMES, [record(b"123", time_s=7.0)])
        for _ in range(3):
            transact(settings, [b"no"] * 40, commit=False)
        extent = log.extent(FRAMES)
        assert (extent.first, extent.next) == (0, 1 + 3 * 41)
        assert extent.oldest_ns == extent.newest_ns == 7 * 10**9
        assert extent.records >= 1


def test_what_strangers_write_is_read_as_well_as_it_can_be(settings: KafkaSettings) -> None:
    made(settings)
    now_ms = time.time_ns() // 1_000_000  # retention takes what is old by this
    client = producer(settings)
    try:
        for key, value, headers in (
            (None, b"no key", []),
            (b"\xff\xfe", b"no text", [("t", b"short"), ("note", b"\xff")]),
            (b"none", None, [("t", struct.pack(">q", -5))]),
        ):
            client.send(settings.topic(FRAMES), value, key, headers, 0, now_ms).get(10)
    finally:
        discard(client)
    with closing(KafkaLog(settings)) as log:
        assert log.read(FRAMES, 0).entries == [
            Entry(0, now_ms * 1_000_000, "", b"no key"),
            Entry(1, now_ms * 1_000_000, "\ufffd\ufffd", b"no text", "\ufffd"),
            Entry(2, -5, "none", b""),
        ]


def test_ten_megabytes_in_one_record_come_back_and_hold_nobody_up(settings: KafkaSettings) -> None:
    made(settings, **{FRAMES: {"max.message.bytes": str(16 << 20)}})
    values = [b"before", b"\x00\xaa" * (5 << 20), b"after"]
    with closing(KafkaLog(settings)) as log:
        log.append(FRAMES, [record(value) for value in values])
        assert [entry.value for entry in follow(log, FRAMES)[0]] == values
        with pytest.raises(LogError, match=r"too large.*max\.message\.bytes"):
            log.append(FRAMES, [record(bytes(settings.record_bytes + 1))])
        log.append(FRAMES, [record(b"still writes")])
        assert follow(log, FRAMES)[0][-1].value == b"still writes"


def test_a_record_that_the_topic_does_not_take_is_refused(settings: KafkaSettings) -> None:
    made(settings, **{FRAMES: {"max.message.bytes": "100000"}})
    with closing(KafkaLog(settings)) as log:
        with pytest.raises(LogError, match=r"too large.*max\.message\.bytes"):
            log.append(FRAMES, [record(bytes(200_000))])
        log.append(FRAMES, [record(bytes(50_000))])
        assert len(follow(log, FRAMES)[0]) == 1


@pytest.mark.parametrize("compression", ["", "lz4", "zstd", "gzip"])
def test_compressed_records_are_the_same(kafka: Cluster, kafka_prefix: str, compression: str) -> None:
    settings = made(KafkaSettings(tuple(kafka.servers.split(",")), prefix=kafka_prefix, compression=compression))
    new = [record(b"%d" % n * 1000, n) for n in range(100)]
    with closing(KafkaLog(settings)) as log:
        log.append(FRAMES, new)
        assert plain(follow(log, FRAMES)[0]) == new


def test_each_region_has_its_partition_and_configurations_are_of_all(settings: KafkaSettings) -> None:
    made(settings, partitions=3)
    keys = ["north/a", "south/b", "north/c", "d", "west/e"]
    with closing(KafkaLog(settings)) as log:
        assert log.partitions(FRAMES) == 3
        for topic in (FRAMES, CONFIGURATIONS):
            log.append(topic, [Record(n, key, b"%d" % n) for n, key in enumerate(keys * 2)])
        assert {key: entry.value for key, entry in log.latest(CONFIGURATIONS).items()} == {
            key: b"%d" % n for n, key in enumerate(keys, len(keys))
        }
    found = dict[str, int]()
    for partition in range(3):
        with closing(KafkaLog(settings, partition)) as log:
            for entry in follow(log, FRAMES)[0]:
                assert found.setdefault(entry.key, partition) == partition
            log.commit(FRAMES, "me", partition + 1)
            assert log.position(FRAMES, "me") == partition + 1
    assert found == {key: partition_of(key, 3, settings.regions) for key in keys}
    assert found["north/a"] == found["north/c"] == 0
    assert found["south/b"] == 1


def test_regions_beyond_the_partitions_begin_again_and_strangers_stay_where_they_are() -> None:
    regions = ("a", "b", "c")
    assert [partition_of(f"{region}/x", 2, regions) for region in regions] == [0, 1, 0]
    assert {partition_of(f"other/{n}", 64, regions) for n in range(9)} == {partition_of("other/", 64, regions)}
    assert len({partition_of(f"region {n}/x", 64) for n in range(64)}) > 16
    assert partition_of("a", 8, regions) == partition_of("b", 8, regions)  # no region is one too


def test_a_removed_key_of_a_compacted_topic_is_gone(settings: KafkaSettings) -> None:
    with closing(KafkaLog(made(settings))) as log:
        log.append(CONFIGURATIONS, [record(b"1", key="a"), record(b"", key="b"), record(b"3", key="c")])
        assert set(log.latest(CONFIGURATIONS)) == {"a", "b", "c"}
        client = producer(settings)
        try:
            client.send(settings.topic(CONFIGURATIONS), None, b"a", partition=0).get(10)
        finally:
            discard(client)
        assert set(log.latest(CONFIGURATIONS)) == {"b", "c"}


def test_what_expires_while_it_is_read_is_told(settings: KafkaSettings) -> None:
    with closing(KafkaLog(made(settings))) as log:
        log.append(FRAMES, [record(b"%d" % n) for n in range(10)])
        assert log.read(FRAMES, 0, limit=1).next == 1
        emptied(log, FRAMES, 5)
        with closing(KafkaLog(settings)) as other:
            assert other.read(FRAMES, 1).lost == (Lost(1, 4, "expired"),)
        assert [entry.value for entry in follow(log, FRAMES, 1)[0]][-5:] == [b"5", b"6", b"7", b"8", b"9"]


def test_a_topic_that_is_not_there_is_named(settings: KafkaSettings) -> None:
    with closing(KafkaLog(settings)) as log:
        for use in (
            lambda: log.read(FRAMES, 0),
            lambda: log.append(FRAMES, [record(b"a")]),
            lambda: log.latest(CONFIGURATIONS),
            lambda: log.extent(FRAMES),
        ):
            with pytest.raises(LogError, match=r"pmu\..*gridsense topics create"):
                use()


def test_nobody_there_is_told_within_the_time_given(kafka_prefix: str) -> None:
    with closing(KafkaLog(KafkaSettings(("127.0.0.1:9",), prefix=kafka_prefix, request_s=0.5))) as log:
        for _ in range(2):
            with pytest.raises(UnreachableError, match=r"127\.0\.0\.1:9: .*see whether the servers run"):
                log.read(FRAMES, 0)
        with pytest.raises(UnreachableError):
            log.append(FRAMES, [record(b"a")])


def test_a_client_that_still_has_things_to_send_leaves_no_socket_open(settings: KafkaSettings) -> None:
    client = admin(settings)
    client.list_topics()
    connections = client._manager._conns
    transports = [found.transport for found in connections.values() if found.transport]
    sockets = [transport._sock for transport in transports]
    assert sockets
    for transport in transports:
        transport._write_buffer.append(b"a request that nobody will send")
    client.close()
    assert [socket.fileno() for socket in sockets] == [-1] * len(sockets)
