"""The gateway on a real broker: every frame once and in order, though brokers and gateways die and sleep."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest
from kafka import TopicPartition
from kafka.admin import NewTopic

from gridsense.simulator.script import read_script
from gridsense.simulator.server import Settings, Simulator, Start
from scripts.broker.cluster import Cluster
from streams.c37118.frame import FrameType
from streams.errors import FencedError, UnreachableError
from streams.kafka import lease
from streams.kafka.clients import admin, consumer
from streams.kafka.lease import Lease
from streams.kafka.partitions import partition_of
from streams.kafka.records import entry_of
from streams.kafka.settings import KafkaSettings
from streams.kafka.sole_writer import SoleWriter
from streams.log import CONFIGURATIONS, DEAD_LETTERS, FRAMES, LEASE, STATUS, Entry, Record, is_mark
from tests.reference.recorded import recorded
from tests.reference.small_grid import small_grid

PATIENCE_S = 120.0
PARTITIONS = 2
KEYS = ("north/a", "south/b")
REGIONS = ("north", "south")
SECONDS = 27
SPEED = 6.0

GATEWAY = "from gridsense.cli import main; main()"


def made(settings: KafkaSettings) -> KafkaSettings:
    topics = {FRAMES: PARTITIONS, CONFIGURATIONS: PARTITIONS, DEAD_LETTERS: 1, LEASE: 1, STATUS: 1}
    compacted = {"cleanup.policy": "compact"}
    with closing(admin(settings)) as client:
        client.create_topics(
            [
                NewTopic(settings.topic(n), p, 1, topic_configs=compacted if n in (CONFIGURATIONS, STATUS) else {})
                for n, p in topics.items()
            ]
        )
    return settings


@pytest.fixture(scope="module")
def broker(kafka_can_run: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:  # noqa: ARG001 a gate
    """One that may be sent to sleep: it answers again after each test.

    It settles unfinished transactions of its own accord only when it is its partitions' leader again.
    """
    properties = {"transaction.abort.timed.out.transaction.cleanup.interval.ms": "5000"}
    with Cluster(tmp_path_factory.mktemp("broker"), properties=properties) as cluster:
        yield cluster


@pytest.fixture
def settings(kafka: Cluster, kafka_prefix: str) -> KafkaSettings:
    return made(KafkaSettings((kafka.servers,), prefix=kafka_prefix, request_s=5.0))


def entries(settings: KafkaSettings) -> list[list[Entry]]:
    """All that is committed of the frames, by partition."""
    tps = [TopicPartition(settings.topic(FRAMES), n) for n in range(PARTITIONS)]
    with closing(consumer(settings)) as client:
        client.assign(tps)
        client.seek_to_beginning(*tps)
        ends, found = client.end_offsets(tps), {tp: list[Entry]() for tp in tps}
        deadline_s = time.monotonic() + PATIENCE_S
        while any(client.position(tp) < ends[tp] for tp in tps):
            assert time.monotonic() < deadline_s
            for tp, records in client.poll(200).items():
                found[tp] += map(entry_of, records)
    return list(found.values())


def data_frames(value: bytes) -> list[bytes]:
    """Take the data frames out of bytes that hold nothing but frames."""
    out, at = list[bytes](), 0
    while at < len(value):
        size = int.from_bytes(value[at + 2 : at + 4], "big")
        out.append(value[at : at + size])
        at += size
    return [frame for frame in out if frame[1] >> 4 == FrameType.DATA]


def frames(found: Sequence[Sequence[Entry]], key: str) -> list[bytes]:
    """The data frames of a connection, in the order of its partition; no other has any of it."""
    values = [b"".join(entry.value for entry in there if entry.key == key) for there in found]
    own = values.pop(partition_of(key, PARTITIONS, REGIONS))
    assert not any(values)
    return data_frames(own)


# ---------------------------------------------------------------- the writer alone


def test_a_write_is_whole_and_knows_its_number(settings: KafkaSettings) -> None:
    with closing(SoleWriter(settings, "g")) as writer:
        assert writer.held()
        with pytest.raises(UnreachableError, match="settled"):
            writer.write([(FRAMES, Record(1, "a", b"x"))], 1)
        assert writer.settle() == (0, 0)
        records = [(FRAMES, Record(5 + n, KEYS[n % 2], b"%d" % n)) for n in range(4)]
        writer.write([*records, (DEAD_LETTERS, Record(9, "", b"junk", "crc"))], 77)
        assert writer.place() == (77, 9)
        assert writer.settle() == (77, 9)
        tail = sorted(writer.tail(KEYS, 0), key=lambda entry: entry.time_ns)
        assert [Record(*entry[1:]) for entry in tail] == [record for _, record in records]
        assert list(writer.tail(KEYS, time.time_ns() + 10**12)) == []


def test_who_wrote_before_is_fenced(settings: KafkaSettings) -> None:
    with closing(SoleWriter(settings, "g")) as first, closing(SoleWriter(settings, "g")) as second:
        first.settle()
        first.write([(FRAMES, Record(1, "a", b"first"))], 10)
        assert second.settle() == (10, 1)
        with pytest.raises(FencedError):
            first.write([(FRAMES, Record(2, "a", b"late"))], 11)
        second.write([(FRAMES, Record(3, "a", b"second"))], 12)
        assert [entry.value for there in entries(settings) for entry in there] == [b"first", b"second"]
        assert second.place() == (12, 3)


def test_one_of_two_has_the_lease_and_hands_it_over(settings: KafkaSettings) -> None:
    with ExitStack() as stack:
        first, second = (stack.enter_context(closing(SoleWriter(settings, "g", standby=True))) for _ in range(2))
        until(first.held)
        until(lambda: not second.held() and first.held())
        first.close()
        until(second.held)


@pytest.mark.parametrize("join_s", [0.006, 0.012, 0.024])
def test_joining_may_outlast_a_look(settings: KafkaSettings, monkeypatch: pytest.MonkeyPatch, join_s: float) -> None:
    """kafka-python takes it as done then, and sends no heartbeats: the group would go on without us."""
    monkeypatch.setattr(lease, "JOIN_S", join_s)
    with closing(Lease(settings, "g", 1.0)) as first:
        until(first.held)
        with closing(Lease(settings, "g", 1.0)) as second:
            assert not second.held()
            first.close()
            until(second.held)


# ---------------------------------------------------------------- whole gateways


def until(condition: Callable[[], object], *processes: subprocess.Popen[bytes], patience_s: float = PATIENCE_S) -> None:
    deadline_s = time.monotonic() + patience_s
    while not condition():
        for process in processes:
            assert process.poll() is None
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


@pytest.fixture(scope="module")
def captures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two sources, `SECONDS` at 30 frames a second: a capture each."""
    folder = tmp_path_factory.mktemp("captures")
    names = [key.partition("/")[2] for key in KEYS]
    grids = [small_grid(name, 1 + 4 * n, 2, 1 + n, seconds=SECONDS) for n, name in enumerate(names)]
    records = recorded(grids)
    paths = [folder / f"{name}.bin" for name in names]
    for path in paths:
        path.write_bytes(b"".join(record.value for record in records if record.key == path.stem))
    return paths


class Served(threading.Thread):
    """The captures, played to whoever asks once the test says so."""

    def __init__(self, captures: Sequence[Path]) -> None:
        super().__init__(daemon=True)
        self.simulator = Simulator(read_script(captures), Settings(port=0, start=Start.NOW, speed=SPEED))
        self.sent = {key: data_frames(path.read_bytes()) for key, path in zip(KEYS, captures, strict=True)}
        self.listening, self.begin, self.over = threading.Event(), threading.Event(), threading.Event()
        self.failure: BaseException | None = None

    @property
    def ports(self) -> list[int]:
        return [port for _, port in self.simulator.addresses.values()]

    @property
    def receiving(self) -> int:
        return self.simulator.status().receiving

    def played(self, share: float) -> bool:
        assert self.failure is None
        return self.simulator.status().position_s >= share * SECONDS

    def sent_at_most(self) -> int:
        """Frames of a source that have left by now."""
        return min(int(self.simulator.status().position_s * 30) + 1, SECONDS * 30)

    def run(self) -> None:
        try:
            asyncio.run(self._play())
        except BaseException as error:  # noqa: BLE001 - it is looked at by the test
            self.failure = error

    async def _play(self) -> None:
        await self.simulator.start()
        try:
            self.listening.set()
            await asyncio.to_thread(self.begin.wait)
            await self.simulator.run()
            self.over.set()
        finally:
            await self.simulator.close()


@contextmanager
def serving(captures: Sequence[Path]) -> Iterator[Served]:
    served = Served(captures)
    served.start()
    assert served.listening.wait(PATIENCE_S)
    try:
        yield served
    finally:
        served.simulator.stop()
        served.begin.set()
        served.join(PATIENCE_S)
    assert served.failure is None


@contextmanager
def gateway(
    folder: Path, settings: KafkaSettings, ports: Sequence[int], *, standby: bool = False
) -> Iterator[subprocess.Popen[bytes]]:
    """A gateway in a process of its own; it is told to stop at the end, and must have nothing to complain of."""
    folder.mkdir(exist_ok=True)
    lines = [
        'name = "grid"',
        f'log.url = "kafka://{settings.servers[0]}"',
        "[kafka]",
        f'prefix = "{settings.prefix}"',
        f"regions = {json.dumps(REGIONS)}",
        f"standby = {json.dumps(standby)}",
        'session = "2s"',
        'transaction = "2s"',
        "[gateway]",
        'backoff_max = "1s"',
        "[metrics]",
        "gateway_port = 0",
    ]
    for id_code, (key, port) in enumerate(zip(KEYS, ports, strict=True), 1):
        region, _, name = key.partition("/")
        lines += ["[[gateway.connections]]", f'name = "{name}"', f'region = "{region}"', f"port = {port}"]
        lines += [f"id_code = {id_code}"]
    (folder / "gridsense.toml").write_text("\n".join(lines))
    program = [sys.executable, "-c", GATEWAY, "gateway", "--config", str(folder / "gridsense.toml")]
    with (folder / "said.txt").open("ab") as lines_out, subprocess.Popen(program, stderr=lines_out) as process:
        try:
            yield process
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.wait(PATIENCE_S)
                assert process.returncode == 0, (folder / "said.txt").read_text()
        finally:
            process.kill()
            sys.stderr.write(said(folder))  # shown where the test fails


def configured(settings: KafkaSettings) -> bool:
    return {entry.key for there in entries(settings) for entry in there} >= set(KEYS)


def once_and_in_order(settings: KafkaSettings, sent: dict[str, list[bytes]]) -> None:
    found = entries(settings)
    for key, value in sent.items():
        got = frames(found, key)
        assert len(got) == len(value) == SECONDS * 30
        assert got == value


def complete(settings: KafkaSettings, sent: dict[str, list[bytes]]) -> Callable[[], bool]:
    """Whether all frames are there, and behind them a mark for each region."""

    def look() -> bool:
        found = entries(settings)
        marked = all(there and is_mark(there[-1].key, there[-1].value) for there in found)
        return marked and all(len(frames(found, key)) >= len(sent[key]) for key in KEYS)

    return look


def said(folder: Path) -> str:
    return (folder / "said.txt").read_text()


def stands_by(folder: Path) -> bool:
    """Whether a gateway of a pair said last that it is the other's turn."""
    return said(folder).rfind("stands by") > said(folder).rfind("is the one that writes now")


@pytest.mark.slow
def test_an_outage_of_all_brokers_costs_no_frame(
    kafka_can_run: None,  # noqa: ARG001 a gate
    kafka_prefix: str,
    captures: list[Path],
    tmp_path: Path,
) -> None:
    """Three brokers: one alone, ended in the midst of a transaction, now and then leaves that open for ever."""
    with Cluster(tmp_path / "brokers", 3) as brokers, serving(captures) as served:
        settings = made(KafkaSettings(tuple(brokers.servers.split(",")), prefix=kafka_prefix, request_s=5.0))
        with gateway(tmp_path, settings, served.ports) as process:
            until(lambda: served.receiving == len(KEYS), process)
            served.begin.set()
            until(lambda: served.played(0.2), process)
            brokers.halt(*range(3))
            until(lambda: "what comes goes into" in said(tmp_path), process)
            brokers.restart(*range(3))
            until(served.over.is_set, process)
            until(complete(settings, served.sent), process)
        once_and_in_order(settings, served.sent)
        assert "Kafka answers again after" in said(tmp_path)


def test_a_broker_that_sleeps_costs_no_frame(
    broker: Cluster, kafka_prefix: str, captures: list[Path], tmp_path: Path
) -> None:
    """Whatever it was sent before it fell asleep it may yet take when it wakes."""
    settings = made(KafkaSettings((broker.servers,), prefix=kafka_prefix, request_s=5.0))
    with serving(captures) as served:
        with gateway(tmp_path, settings, served.ports) as process:
            until(lambda: served.receiving == len(KEYS), process)
            served.begin.set()
            until(lambda: served.played(0.2), process)
            broker.suspend(0)
            try:
                until(lambda: "what comes goes into" in said(tmp_path), process)
            finally:
                broker.resume(0)
            until(served.over.is_set, process)
            until(complete(settings, served.sent), process)
        once_and_in_order(settings, served.sent)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM])
def test_of_a_pair_one_writes_and_the_other_takes_over(
    settings: KafkaSettings, captures: list[Path], tmp_path: Path, end: signal.Signals
) -> None:
    """A gateway that this machine keeps waiting past its session may lose its turn before: then it is the other's."""
    folders = (tmp_path / "one", tmp_path / "two")
    with serving(captures) as served, ExitStack() as stack:
        pair = [stack.enter_context(gateway(folders[0], settings, served.ports, standby=True))]
        until(lambda: configured(settings), *pair)
        pair += [stack.enter_context(gateway(folders[1], settings, served.ports, standby=True))]
        until(lambda: served.receiving == 2 * len(KEYS), *pair)
        served.begin.set()
        until(lambda: served.played(0.2) and sum(map(stands_by, folders)) == 1, *pair)
        writer = 0 if stands_by(folders[1]) else 1
        turns = said(folders[writer]).count("stands by")
        os.kill(pair[writer].pid, end)
        before = min(served.sent_at_most(), SECONDS * 30 - 1)
        other = pair[1 - writer]

        def written_since() -> bool:
            found = entries(settings)
            return all(len(frames(found, key)) > before for key in KEYS)

        until(written_since, other)
        if end == signal.SIGSTOP:
            os.kill(pair[writer].pid, signal.SIGCONT)
            # It writes nothing, but may take a minute and a half until it has said so.
            until(lambda: said(folders[writer]).count("stands by") > turns, *pair, patience_s=4 * PATIENCE_S)
        until(served.over.is_set, other)
        until(complete(settings, served.sent), other)
        stack.close()
        once_and_in_order(settings, served.sent)
