"""Members of a group on a real broker: everything once, whoever dies, sleeps, moves or is not answered."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from kafka import TopicPartition
from kafka.admin import NewTopic
from kafka.errors import CoordinatorNotAvailableError, KafkaTimeoutError

import streams.kafka.member
from scripts.broker.cluster import Cluster
from streams.errors import FencedError, LogError, UnreachableError
from streams.kafka.clients import admin, consumer, producer
from streams.kafka.member import Member, MemberSettings, Outgoing, Place
from streams.kafka.records import entry_of, headers_of
from streams.kafka.settings import KafkaSettings
from streams.log import Entry, Lost, Reading

ROOT = Path(__file__).parents[1]
SESSION_S = 1.5
TRANSACTION_S = 2.0
PATIENCE_S = 30.0
LIMIT_S = 120.0
"""For what comes about within seconds on an idle machine."""

SLEEPER = """
import os, signal, sys
from streams.errors import FencedError
from streams.kafka.member import Member, MemberSettings, Outgoing, Place
from streams.kafka.settings import KafkaSettings

class Dozing(list):
    def __iter__(self):
        half = len(self) // 2
        yield from self[:half]
        print("asleep", flush=True)
        os.kill(os.getpid(), signal.SIGSTOP)
        yield from self[half:]

servers, prefix, when = sys.argv[1:]
member = Member(
    KafkaSettings((servers,), prefix=prefix),
    MemberSettings("g", "in", session_s=SESSION_S, transaction_s=TRANSACTION_S),
    lambda _: None, lambda _: None,
)
member.open()
while not (readings := member.poll(1.0)):
    pass
records = [Outgoing("out", 0, "asleep", entry.value) for entry in readings[0].entries]
place = {0: Place(readings[0].next, "asleep")}
if when == "before":
    print("asleep", flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)
else:
    records = Dozing(records)
try:
    member.transact(records, place)
    print("committed", flush=True)
except FencedError:
    print("fenced", flush=True)
member.close()
""".replace("SESSION_S", str(SESSION_S)).replace("TRANSACTION_S", str(TRANSACTION_S))
"""A process that reads, and falls asleep before it commits, or while it does."""


class Hooked(list[Outgoing]):
    """Records in whose midst something happens: places are sent by then, half of the records too."""

    def __init__(self, records: Sequence[Outgoing], hook: Callable[[], None]) -> None:
        super().__init__(records)
        self.hooks = [hook]

    def __iter__(self) -> Iterator[Outgoing]:
        half = len(self) // 2
        yield from self[:half]
        if self.hooks:
            self.hooks.pop()()
        yield from self[half:]


class Relay(threading.Thread):
    """Copies `in` to `out`, a transaction for a few readings, until it is told to stop."""

    def __init__(self, settings: KafkaSettings, member: MemberSettings, readings: int = 1) -> None:
        super().__init__(daemon=True)
        self.assigned: list[int] = []
        self.revoked: list[int] = []
        self.failure: BaseException | None = None
        self.member = Member(settings, member, self.assigned.extend, self._let_go)
        self.stopped = threading.Event()
        self._readings = readings
        self._pending: list[Outgoing] = []
        self._places: dict[int, Place] = {}

    def run(self) -> None:
        try:
            with opened(self.member):
                unwritten = 0
                while not self.stopped.is_set():
                    for partition, reading in self.member.poll(0.1).items():
                        self._pending += [
                            Outgoing("out", 0, str(partition), entry.value, time_ns=entry.time_ns)
                            for entry in reading.entries
                        ]
                        self._places[partition] = Place(reading.next)
                        unwritten += 1
                    if unwritten >= self._readings:
                        unwritten = 0
                        self._write()
        except BaseException as error:  # noqa: BLE001 - it is looked at by the test
            self.failure = error

    def end(self) -> None:
        self.stopped.set()
        self.member.interrupt()
        self.join(LIMIT_S)
        assert not self.is_alive()
        assert self.failure is None

    def _let_go(self, partitions: Sequence[int]) -> None:
        self._write()
        self.revoked.extend(partitions)

    def _write(self) -> None:
        self.member.transact(self._pending, self._places)
        self._pending, self._places = [], {}


@contextmanager
def opened(member: Member) -> Iterator[Member]:
    with closing(member):
        member.open()
        yield member


@pytest.fixture(scope="module")
def broker(kafka_can_run: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:  # noqa: ARG001 a gate
    """One that may be killed: it is there again after each test.

    A broker alone that aborts a transaction before it is its partitions' leader again leaves it hanging forever
    ("partitions are likely deleted already and hence can be skipped"): it must be up again sooner than that.
    """
    properties = {"transaction.abort.timed.out.transaction.cleanup.interval.ms": "5000"}
    with Cluster(tmp_path_factory.mktemp("broker"), properties=properties) as cluster:
        yield cluster


@pytest.fixture
def settings(broker: Cluster, kafka_prefix: str) -> KafkaSettings:
    """Of topics `in`, with two partitions, and `out`, with one."""
    made = KafkaSettings((broker.servers,), prefix=kafka_prefix, request_s=5.0)
    with closing(admin(made)) as client:
        client.create_topics([NewTopic(made.topic("in"), 2, 1), NewTopic(made.topic("out"), 1, 1)])
    return made


def of_group(instance: str = "", *, session_s: float = SESSION_S) -> MemberSettings:
    return MemberSettings("g", "in", instance, session_s=session_s, transaction_s=TRANSACTION_S, patience_s=PATIENCE_S)


def plain(settings: KafkaSettings, instance: str = "a") -> Member:
    return Member(settings, of_group(instance), lambda _: None, lambda _: None)


def write(settings: KafkaSettings, values: Mapping[int, Sequence[bytes]], topic: str = "in") -> None:
    with closing(producer(settings)) as client:
        for future in [
            client.send(settings.topic(topic), value, b"key", headers_of(7), partition=partition)
            for partition, several in values.items()
            for value in several
        ]:
            future.get(10)


def numbers(first: int, last: int) -> list[bytes]:
    return [b"%d" % n for n in range(first, last)]


def written(settings: KafkaSettings, topic: str = "out") -> list[Entry]:
    """All that is committed; what is still being decided is waited for."""
    tp, entries = TopicPartition(settings.topic(topic), 0), []
    with closing(consumer(settings)) as client:
        client.assign([tp])
        client.seek(tp, 0)
        deadline_s = time.monotonic() + LIMIT_S
        while (high := client.highwater(tp)) is None or client.position(tp) < high:
            assert time.monotonic() < deadline_s
            entries += [entry_of(record) for record in client.poll(200).get(tp, [])]
    return entries


def take(member: Member, entries: int) -> dict[int, Reading]:
    """Poll until so many have come, in one reading a partition."""
    found: dict[int, Reading] = {}
    deadline_s = time.monotonic() + LIMIT_S
    while sum(len(reading.entries) for reading in found.values()) < entries:
        assert time.monotonic() < deadline_s, found
        for partition, reading in member.poll(0.5).items():
            before = found.get(partition, Reading([], 0))
            found[partition] = Reading(before.entries + reading.entries, reading.next, before.lost + reading.lost)
    return found


def copied(readings: Mapping[int, Reading], topic: str = "out") -> list[Outgoing]:
    return [Outgoing(topic, 0, "copy", entry.value) for reading in readings.values() for entry in reading.entries]


def places(readings: Mapping[int, Reading], note: str = "") -> dict[int, Place]:
    return {partition: Place(reading.next, note) for partition, reading in readings.items()}


def until(true: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + LIMIT_S
    while not true():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def test_reads_writes_and_commits_together(settings: KafkaSettings) -> None:
    write(settings, {0: numbers(0, 10), 1: numbers(10, 20)})
    assigned: list[int] = []
    with opened(Member(settings, of_group(), assigned.extend, lambda _: None)) as member:
        readings = take(member, 20)
        assert assigned == [0, 1]
        assert readings[0] == Reading([Entry(n, 7, "key", b"%d" % n) for n in range(10)], 10)
        assert member.committed(0) is None
        member.transact([Outgoing("out", 0, "k", b"v", (("h", b"x"),), 5)], {0: Place(10, "ten of ten"), 1: Place(3)})
        assert member.committed(0) == Place(10, "ten of ten")
        assert member.end(0) == 10
        assert (member.transactions, member.aborted, member.fenced, member.rebalances) == (1, 0, 0, 1)
    assert written(settings) == [Entry(0, 5, "k", b"v")]
    with opened(plain(settings)) as member:
        assert [entry.value for entry in take(member, 7)[1].entries] == numbers(13, 20)
        assert [member.committed(partition) for partition in (0, 1)] == [Place(10, "ten of ten"), Place(3)]


def test_nothing_is_written_without_a_place(settings: KafkaSettings) -> None:
    with opened(plain(settings)) as member:
        with pytest.raises(ValueError, match="without a place"):
            member.transact([Outgoing("out", 0, "k", b"v")], {})
        member.transact([], {})
        with pytest.raises(FencedError, match="not ours"):
            member.transact([], {0: Place(1)})


def test_the_position_goes_past_the_marks_of_transactions(settings: KafkaSettings) -> None:
    write(settings, {0: [b"x"]})
    with opened(plain(settings)) as member:
        take(member, 1)
        for n in range(3):
            member.transact([Outgoing("out", 0, "k", b"%d" % n)], {0: Place(1)})
    second = MemberSettings("g2", "out", "b", session_s=SESSION_S)
    with opened(Member(settings, second, lambda _: None, lambda _: None)) as member:
        following = 0
        entries: list[Entry] = []
        while following < 6:  # three records, three marks
            for reading in member.poll(1.0).values():
                entries += reading.entries
                following = reading.next
        assert [entry.value for entry in entries] == [b"0", b"1", b"2"]
        assert following == member.end(0) == 6


def test_a_large_record_passes(settings: KafkaSettings) -> None:
    with closing(admin(settings)) as client:
        client.create_topics(
            [
                NewTopic(settings.topic(name), 1, 1, topic_configs={"max.message.bytes": str(12 << 20)})
                for name in ("large", "larger")
            ]
        )
    large = os.urandom(10 << 20)
    write(settings, {0: [b"a", large, b"b"]}, "large")
    with opened(Member(settings, MemberSettings("g", "large"), lambda _: None, lambda _: None)) as member:
        readings = take(member, 3)
        assert [entry.value for entry in readings[0].entries] == [b"a", large, b"b"]
        member.transact(copied(readings, "larger"), places(readings))
    assert [entry.value for entry in written(settings, "larger")] == [b"a", large, b"b"]


def test_what_expired_is_said(settings: KafkaSettings) -> None:
    write(settings, {0: numbers(0, 100)})
    tp = TopicPartition(settings.topic("in"), 0)
    with opened(plain(settings)) as member:
        take(member, 100)
        member.transact([], {0: Place(10)})
        with closing(admin(settings)) as client:
            client.delete_records({tp: 40})
        member.seek(0, 5)
        reading = take(member, 60)[0]
        assert reading.lost == (Lost(5, 39, "expired"),)
        assert (reading.entries[0].offset, reading.next) == (40, 100)
    with opened(plain(settings)) as member:
        reading = take(member, 60)[0]
        assert reading.lost == (Lost(10, 39, "expired"),)
        assert reading.entries[0].offset == 40


def test_a_topic_that_was_made_anew_is_not_read_silently(settings: KafkaSettings) -> None:
    write(settings, {0: numbers(0, 3)})
    with opened(plain(settings)) as member:
        take(member, 3)
        member.transact([], {0: Place(50)})
    with opened(plain(settings)) as member, pytest.raises(LogError, match="ends at 3"):
        until(lambda: member.poll(0.5))


def test_a_topic_that_is_not_there_is_named(settings: KafkaSettings) -> None:
    member = Member(settings, MemberSettings("g", "nowhere"), lambda _: None, lambda _: None)
    with pytest.raises(LogError, match="nowhere: there is no such topic"):
        member.open()


def test_a_batch_that_fails_is_not_lost(settings: KafkaSettings) -> None:
    """The broker refuses a sequence number: kafka-python would commit without the batch, and say nothing."""
    write(settings, {0: numbers(0, 10)})
    with opened(plain(settings)) as member:
        readings = take(member, 10)
        client = member._producer
        assert client is not None
        skipped = Hooked(
            copied(readings),
            lambda: client._transaction_manager.set_sequence_number(TopicPartition(settings.topic("out"), 0), 77),
        )
        member.transact([Outgoing("out", 0, "first", b"first")], {0: Place(0)})
        member.transact(skipped, places(readings))
        assert (member.transactions, member.aborted) == (2, 1)
    assert [entry.value for entry in written(settings)] == [b"first", *numbers(0, 10)]


def test_a_record_that_cannot_be_written_is_refused_with_all_of_its_transaction(settings: KafkaSettings) -> None:
    with closing(admin(settings)) as client:
        client.create_topics([NewTopic(settings.topic("small"), 1, 1, topic_configs={"max.message.bytes": "10000"})])
    write(settings, {0: numbers(0, 4)})
    with opened(plain(settings)) as member:
        readings = take(member, 4)
        large = Outgoing("small", 0, "k", bytes(50_000))
        with pytest.raises(LogError, match="too large"):
            member.transact([*copied(readings), large], places(readings))
        with pytest.raises(LogError, match="Unrecognized partition 9"):
            member.transact([*copied(readings), large._replace(partition=9)], places(readings))
        assert member.committed(0) is None
        member.transact(copied(readings), places(readings))
    assert [entry.value for entry in written(settings)] == numbers(0, 4)


@pytest.mark.parametrize("through", [True, False])
def test_a_commit_whose_answer_is_lost_is_settled(settings: KafkaSettings, through: bool) -> None:  # noqa: FBT001
    write(settings, {0: numbers(0, 10)})
    with opened(plain(settings)) as member:
        readings = take(member, 10)
        client = member._producer
        assert client is not None
        transactions = client._transaction_manager
        commit = transactions.begin_commit

        def unanswered() -> None:
            if through:
                result = commit()
                client._sender.wakeup()
                assert result.wait(5000)
            raise KafkaTimeoutError("no answer")

        transactions.begin_commit = unanswered
        member.transact(copied(readings), places(readings, "once"))
        assert (member.transactions, member.aborted) == (1, 1)
        assert member.committed(0) == Place(10, "once")
        member.transact([], {0: Place(10, "again")})
    assert [entry.value for entry in written(settings)] == numbers(0, 10)


def test_nobody_reads_a_place_that_is_being_decided(settings: KafkaSettings) -> None:
    write(settings, {0: numbers(0, 4)})
    tp = TopicPartition(settings.topic("in"), 0)
    with opened(plain(settings)) as member, closing(consumer(settings, group="g")) as other:
        readings = take(member, 4)
        member.transact([], {0: Place(1)})
        refused: list[bool] = []

        def ask() -> None:
            try:
                other.committed(tp, timeout_ms=300)
            except KafkaTimeoutError:
                refused.append(True)

        member.transact(Hooked(copied(readings), ask), places(readings))
        assert refused == [True]
        assert other.committed(tp, timeout_ms=5000) == 4


def test_a_broker_that_dies_in_the_midst_of_a_transaction(settings: KafkaSettings, broker: Cluster) -> None:
    write(settings, {0: numbers(0, 50), 1: numbers(50, 100)})
    patient = of_group("a", session_s=10.0)
    with opened(Member(settings, patient, lambda _: None, lambda _: None)) as member:
        readings = take(member, 100)

        def die() -> None:
            broker.kill(0)
            broker.restart(0)

        member.transact(Hooked(copied(readings), die), places(readings))
        write(settings, {0: numbers(100, 110)})
        readings = take(member, 10)
        assert readings[0].entries[0].offset == 50
        member.transact(copied(readings), places(readings))
    values = [entry.value for entry in written(settings)]
    assert sorted(values, key=int) == numbers(0, 110)


def test_a_broker_that_is_restarted_at_any_moment(settings: KafkaSettings, broker: Cluster) -> None:
    relay = Relay(settings, of_group("a", session_s=10.0))
    relay.start()
    for part in range(3):
        write(settings, {n: numbers(200 * part + 100 * n, 200 * part + 100 * n + 50) for n in (0, 1)})
        time.sleep(0.05)  # whatever it is doing then
        broker.restart(0)
        write(settings, {n: numbers(200 * part + 100 * n + 50, 200 * part + 100 * n + 100) for n in (0, 1)})
    until(lambda: relay.failure or len(written(settings)) >= 600)
    relay.end()
    assert sorted((entry.value for entry in written(settings)), key=int) == numbers(0, 600)


def test_a_broker_that_does_not_answer_is_told_from_one_that_has_nothing(
    settings: KafkaSettings, broker: Cluster
) -> None:
    write(settings, {0: numbers(0, 2)})
    impatient = MemberSettings("g", "in", "a", session_s=10.0, transaction_s=1.0, patience_s=2.0)
    with opened(Member(settings, impatient, lambda _: None, lambda _: None)) as member:
        readings = take(member, 2)
        assert member.alive()
        assert not member.poll(0.1)
        broker.suspend(0)
        try:
            assert not member.poll(0.5)
            assert not member.alive()
            with pytest.raises(UnreachableError, match="not done within 2 s"):
                member.transact(copied(readings), places(readings))
        finally:
            broker.resume(0)
    broker.wait()
    with opened(plain(settings)) as member:  # ends what the other one left unfinished
        readings = take(member, 2)
        member.transact(copied(readings), places(readings))
    assert [entry.value for entry in written(settings)] == numbers(0, 2)


@pytest.mark.parametrize("when", ["before", "amid"])
def test_who_sleeps_past_its_session_commits_nothing(settings: KafkaSettings, when: str) -> None:
    write(settings, {0: numbers(0, 10)})
    with subprocess.Popen(
        [sys.executable, "-c", SLEEPER, settings.servers[0], settings.prefix, when],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    ) as sleeper:
        try:
            assert sleeper.stdout is not None
            assert sleeper.stdout.readline() == "asleep\n"
            with opened(plain(settings, "awake")) as member:
                readings = take(member, 10)
                assert readings[0].entries[0].offset == 0
                member.transact(copied(readings), places(readings, "awake"))
                sleeper.send_signal(signal.SIGCONT)
                assert sleeper.stdout.readline() == "fenced\n"
                assert sleeper.wait(LIMIT_S) == 0
                assert [entry.key for entry in written(settings)] == ["copy"] * 10
                write(settings, {0: numbers(10, 12)})
                readings = take(member, 2)
                member.transact(copied(readings), places(readings))
        finally:
            sleeper.kill()
    assert [entry.value for entry in written(settings)] == numbers(0, 12)


def test_who_does_not_poll_is_told_that_the_group_went_on(settings: KafkaSettings) -> None:
    slow = MemberSettings("g", "in", session_s=SESSION_S, rebalance_s=2.0)
    with opened(Member(settings, slow, lambda _: None, lambda _: None)) as member:
        until(lambda: member.poll(0.1) or member.rebalances)
        with pytest.raises(FencedError, match="begin anew"):
            until(lambda: member.transact([], {0: Place(1)}))
        with pytest.raises(FencedError, match="begin anew"):
            until(lambda: member.poll(0.2))
        assert member.fenced == 2


def test_a_second_process_of_the_same_name_takes_over(settings: KafkaSettings) -> None:
    write(settings, {0: numbers(0, 10)})
    with opened(plain(settings)) as first, opened(plain(settings)) as second:
        readings = take(first, 10)
        assert take(second, 10)[0] == readings[0]
        with pytest.raises(FencedError, match="begin anew"):
            first.transact(copied(readings), places(readings))
        second.transact(copied(readings), places(readings))
    assert [entry.value for entry in written(settings)] == numbers(0, 10)


def test_a_restart_of_a_static_member_moves_nothing(settings: KafkaSettings) -> None:
    stays = Relay(settings, of_group("stays", session_s=6.0))
    stays.start()
    until(lambda: len(stays.assigned) == 2)
    leaves = Relay(settings, of_group("leaves", session_s=6.0))
    leaves.start()
    until(lambda: len(leaves.assigned) == 1 and stays.revoked)
    until(lambda: stays.member.rebalances == 3)  # alone, letting go, without
    leaves.end()
    comes = Relay(settings, of_group("leaves", session_s=6.0))
    comes.start()
    until(lambda: comes.assigned == leaves.assigned)
    write(settings, {0: numbers(0, 10), 1: numbers(10, 20)})
    until(lambda: len(written(settings)) == 20)
    assert stays.member.rebalances == 3
    comes.end()
    stays.end()
    assert len(stays.revoked) == 1
    assert sorted((entry.value for entry in written(settings)), key=int) == numbers(0, 20)


def test_partitions_move_without_loss_or_double(settings: KafkaSettings) -> None:
    """One member, two, and one again, while something is always read and not yet committed."""
    count = 0

    def feed(parts: int) -> None:
        nonlocal count
        for _ in range(parts):
            write(settings, {n: numbers(count + 10 * n, count + 10 * n + 10) for n in (0, 1)})
            count += 20

    first, second = (Relay(settings, of_group(), readings=4) for _ in range(2))
    first.start()
    feed(5)
    second.start()
    while not (first.revoked and second.assigned):
        feed(1)
    feed(5)
    first.end()
    while len(second.assigned) < 2:
        feed(1)
    feed(8)
    until(lambda: len(written(settings)) > count - 80)  # four readings of at most twenty may wait for others
    until(lambda: feed(1) or len(written(settings)) >= count - 80)
    second.end()
    with opened(plain(settings)) as member:
        deadline_s = time.monotonic() + LIMIT_S
        while len(written(settings)) < count:
            assert time.monotonic() < deadline_s
            readings = member.poll(1.0)
            member.transact(copied(readings), places(readings))
    assert sorted((entry.value for entry in written(settings)), key=int) == numbers(0, count)


def test_who_begins_while_the_servers_settle_who_coordinates_waits(
    settings: KafkaSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusals = [CoordinatorNotAvailableError(), KafkaTimeoutError()]
    ready = Member._ready_producer

    def hesitant(member: Member) -> object:
        if refusals:
            raise refusals.pop()
        return ready(member)

    monkeypatch.setattr(Member, "_ready_producer", hesitant)
    monkeypatch.setattr(streams.kafka.member, "PAUSES_S", 0.01)
    member = Member(settings, MemberSettings("g", "in"), lambda _: None, lambda _: None)
    with opened(member):
        assert not refusals
        assert member.committed(0) is None
    refusals.append(CoordinatorNotAvailableError())
    monkeypatch.setattr(streams.kafka.member, "OPEN_S", 0.0)
    with pytest.raises(LogError, match="transactions of"):
        member.open()
