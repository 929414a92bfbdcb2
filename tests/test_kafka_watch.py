"""Watching a log in Kafka: what is written to its topics is seen, from a machine that has nothing else."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from kafka.admin import NewTopic

from gridsense.commands.watch import watch
from gridsense.config import load
from gridsense.events import Cause, Event, cloudevent
from gridsense.mirroring import StatusTopic, status_place
from gridsense.status import PROCESSOR, GatewayBoard, PmuStatus, ProcessorStatus
from gridsense.store import EventStore
from scripts.broker.cluster import Cluster
from streams.errors import UnreachableError
from streams.gateway.status import Counts, Totals
from streams.kafka.clients import admin, producer
from streams.kafka.log import KafkaLog
from streams.kafka.records import headers_of
from streams.kafka.settings import KafkaSettings
from streams.log import EVENTS, STATUS, Record

ROOT = Path(__file__).parents[1]
S = 1_000_000_000
PROGRAM = "import sys; from gridsense.commands.watch import watch; watch(sys.argv[1])"


@pytest.fixture
def settings(kafka: Cluster, kafka_prefix: str) -> KafkaSettings:
    """Topics of this test alone."""
    made = KafkaSettings((kafka.servers,), prefix=kafka_prefix)
    with closing(admin(made)) as client:
        client.create_topics(
            [
                NewTopic(made.topic(EVENTS), 1, 1),
                NewTopic(made.topic(STATUS), 1, 1, topic_configs={"cleanup.policy": "compact"}),
            ]
        )
    return made


@pytest.fixture
def log(settings: KafkaSettings) -> Iterator[KafkaLog]:
    with closing(KafkaLog(settings)) as opened:
        yield opened


@pytest.fixture
def config(tmp_path: Path, settings: KafkaSettings) -> Path:
    path = tmp_path / "gridsense.toml"
    path.write_text(
        f'[log]\nurl = "kafka://{",".join(settings.servers)}"\n'
        f'[kafka]\nprefix = "{settings.prefix}"\ninstance = "one"\n[metrics]\ngateway_port = 0\n'
    )
    return path


def event(name: str, **changes: object) -> Event:
    onset = time.time_ns() - 10 * S
    plain = Event(
        id=name,
        source="small",
        onset_ns=onset,
        raised_ns=onset + S // 5,
        end_ns=None,
        cause=Cause.GRID,
        kind="line_trip",
        first_pmu="Bus 7",
        pmus=("Bus 7", "Bus 8"),
        minus_ln_p=30.0,
        scorer="fast",
        contributions=(),
        sentence=f"a step of voltages, {name}",
    )
    return replace(plain, **changes)  # type: ignore[arg-type]  # a test names the fields it changes


def record(of: Event) -> Record:
    return Record(time.time_ns(), of.id, cloudevent(of))


def says(settings: KafkaSettings, instance: str, *pmus: str) -> None:
    status = ProcessorStatus(
        written_ns=time.time_ns(),
        source=instance,
        time_ns=time.time_ns(),
        clock_ns=time.time_ns(),
        threshold=12.5,
        score=3.0,
        ticks=5,
        pmus=tuple(PmuStatus(pmu, instance, 2.0) for pmu in pmus),
    )
    with closing(StatusTopic(KafkaLog(settings), instance)) as topic:
        topic.put_status(PROCESSOR, msgspec.json.encode(status))


def test_in_a_pipe_an_event_of_the_topic_is_a_line(config: Path, settings: KafkaSettings, log: KafkaLog) -> None:
    first = event("first")
    log.append(EVENTS, [record(first)])
    says(settings, "north", "n1")
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(config)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().split()[1:3] == ["raised", "grid"]
        log.append(EVENTS, [Record(time.time_ns(), "x", b"no event"), record(replace(first, end_ns=time.time_ns()))])
        assert process.stdout.readline().split()[1:3] == ["ended", "grid"]
        # what a transaction took back never happened
        with closing(producer(settings, transactional_id=f"{settings.prefix}t")) as client:
            client.init_transactions()
            for name, keep in (("aborted", False), ("kept", True)):
                client.begin_transaction()
                it = event(name)
                client.send(settings.topic(EVENTS), cloudevent(it), b"k", headers_of(time.time_ns()), 0).get(10)
                if keep:
                    client.commit_transaction()
                else:
                    client.abort_transaction()
        assert process.stdout.readline().rstrip().endswith("a step of voltages, kept")
        process.send_signal(signal.SIGTERM)
        _, wrong = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "Traceback" not in wrong


def test_all_processors_are_shown(
    config: Path, settings: KafkaSettings, log: KafkaLog, capsys: pytest.CaptureFixture[str]
) -> None:
    says(settings, "north", "n1", "n2")
    says(settings, "south", "s1")
    log.append(EVENTS, [record(event("open"))])
    board = GatewayBoard(status_place(load(config).config))
    board.told([], Totals(0, 0, Counts(), 0, 0, 0, 0, 0, 0))
    board.close()
    watch(str(config), once=True)
    said = capsys.readouterr().out
    assert [pmu for pmu in ("n1", "n2", "s1") if f"  {pmu} " in said] == ["n1", "n2", "s1"]
    assert "north, south" in said
    assert "line trip" in said
    assert "the gateway one was stopped" in said


def test_a_store_that_is_named_is_kept_and_goes_on(
    tmp_path: Path, settings: KafkaSettings, log: KafkaLog, monkeypatch: pytest.MonkeyPatch, config: Path
) -> None:
    """By an address; the prefix stands in gridsense.toml where one is."""
    monkeypatch.chdir(config.parent)
    address, store = f"kafka://{','.join(settings.servers)}", tmp_path / "mine.db"
    for n in range(3):
        log.append(EVENTS, [record(event(f"e{n}"))])
        watch(address, store=store, once=True)
        with EventStore(store) as opened:
            assert opened.newest_change() == n + 1
            assert b'"next":' in (opened.status("mirror") or b"")


def test_no_broker_is_said_within_the_time_given(tmp_path: Path) -> None:
    path = tmp_path / "gridsense.toml"
    path.write_text('[log]\nurl = "kafka://127.0.0.1:9"\n[kafka]\nrequest = "1s"\n')
    with pytest.raises(UnreachableError):
        watch(str(path))
