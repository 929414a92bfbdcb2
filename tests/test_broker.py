"""The broker that the Kafka tests run against: it answers, keeps its data, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import TopicAuthorizationFailedError
from kafka.net.sasl.oauth import AbstractTokenProvider

from gridsense.config import load
from scripts.broker import jars as jars_module
from scripts.broker.cluster import BrokerError, Cluster
from scripts.broker.credentials import Party
from scripts.broker.jars import KafkaMissingError, digests, jars, java

ROOT = Path(__file__).parents[1]
PATIENCE_S = 30.0


def produce(cluster: Cluster, topic: str, values: list[bytes]) -> None:
    with closing(KafkaProducer(bootstrap_servers=cluster.servers, acks="all", max_request_size=16 << 20)) as producer:
        for sent in [producer.send(topic, value) for value in values]:
            sent.get(PATIENCE_S)


def consume(cluster: Cluster, topic: str, count: int) -> list[bytes]:
    found: list[bytes] = []
    with closing(KafkaConsumer(bootstrap_servers=cluster.servers, auto_offset_reset="earliest")) as consumer:
        consumer.assign([TopicPartition(topic, 0)])
        deadline_s = time.monotonic() + PATIENCE_S
        while len(found) < count and time.monotonic() < deadline_s:
            for records in consumer.poll(timeout_ms=200).values():
                found += [record.value for record in records]
    return found


def make_topic(cluster: Cluster, topic: str) -> None:
    with cluster.admin() as admin:
        admin.create_topics({topic: {"num_partitions": 1, "replication_factor": cluster.brokers}})


def is_there(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"  # ended, and its new parent has not asked yet


def listening(pid: int) -> list[str]:
    """Addresses, as the kernel writes them, that a process takes connections at."""
    held = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile: a connection, not what listens
            held.add(str(fd.readlink()))
    lines = [
        line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
    ]
    return [
        local.partition(":")[0]
        for _, local, _, state, *_, inode in (line[:10] for line in lines)
        if state == "0A" and f"socket:[{inode}]" in held
    ]


def test_a_broker_answers_on_loopback_alone(kafka: Cluster, kafka_prefix: str) -> None:
    assert [server.rpartition(":")[0] for server in kafka.servers.split(",")] == ["127.0.0.1"]
    topic = f"{kafka_prefix}answers"
    make_topic(kafka, topic)
    produce(kafka, topic, [b"a", bytes(10 << 20)])  # Kafka's own limit is 1 MB
    assert [len(value) for value in consume(kafka, topic, 2)] == [1, 10 << 20]
    addresses = listening(kafka.pid(0))
    assert len(addresses) == 2  # of clients, and of the controller
    assert set(addresses) <= {"0100007F", "0000000000000000FFFF00000100007F"}


class Token(AbstractTokenProvider):  # type: ignore[misc]  # kafka-python has no types
    def __init__(self, file: Path) -> None:
        self.file = file

    def token(self) -> str:
        return self.file.read_text()

    def extensions(self) -> dict[str, str]:
        return {}


def identified(cluster: Cluster, way: str, party: Party) -> dict[str, object]:
    """Say who one is to a secured cluster, as kafka-python wants it."""
    ca = {"ssl_cafile": str(cluster.credentials.ca_file)}
    sasl = {"bootstrap_servers": cluster.servers, "security_protocol": "SASL_SSL", **ca}
    match way:
        case "password":
            user = {"sasl_plain_username": party.name, "sasl_plain_password": party.password}
            return {**sasl, "sasl_mechanism": "SCRAM-SHA-512", **user}
        case "token":
            return {**sasl, "sasl_mechanism": "OAUTHBEARER", "sasl_oauth_token_provider": Token(party.token_file)}
        case _:
            own = {"ssl_certfile": str(party.certificate_file), "ssl_keyfile": str(party.key_file)}
            return {"bootstrap_servers": cluster.tls_servers, "security_protocol": "SSL", **ca, **own}


@pytest.mark.parametrize("way", ["password", "token", "certificate"])
def test_a_secured_broker_knows_who_may_write(secure_kafka: Cluster, kafka_prefix: str, way: str) -> None:
    topic = f"{kafka_prefix}secured"
    make_topic(secure_kafka, topic)
    with closing(KafkaProducer(**identified(secure_kafka, way, secure_kafka.credentials.allowed))) as producer:
        assert producer.send(topic, b"allowed").get(PATIENCE_S).offset == 0
    with (
        closing(KafkaProducer(**identified(secure_kafka, way, secure_kafka.credentials.stranger))) as producer,
        pytest.raises(TopicAuthorizationFailedError),
    ):
        producer.send(topic, b"not allowed").get(PATIENCE_S)


@pytest.mark.slow
def test_a_killed_broker_comes_back_with_its_data_and_a_stopped_one_leaves_nothing(
    kafka_can_run: None,  # noqa: ARG001 a gate
    tmp_path: Path,
) -> None:
    with Cluster(tmp_path) as cluster:
        servers = cluster.servers
        make_topic(cluster, "kept")
        produce(cluster, "kept", [b"first"])
        killed = cluster.pid(0)
        cluster.kill(0)
        assert not is_there(killed)
        with pytest.raises(BrokerError, match="broker 0 does not run"):
            cluster.pid(0)
        cluster.restart(0)
        assert cluster.servers == servers
        produce(cluster, "kept", [b"second"])
        assert consume(cluster, "kept", 2) == [b"first", b"second"]
        stopped = cluster.pid(0)
        cluster.suspend(0)  # even so
    assert not is_there(stopped)
    with socket.socket() as other:
        other.bind(("127.0.0.1", int(servers.rpartition(":")[2])))  # free again


@pytest.mark.slow
def test_three_brokers_survive_the_loss_of_any_one(kafka_can_run: None, tmp_path: Path) -> None:  # noqa: ARG001 a gate
    with Cluster(tmp_path, 3) as cluster:
        make_topic(cluster, "kept")
        said = []
        for n in (0, 2):
            cluster.kill(n)
            said.append(b"without %d" % n)
            produce(cluster, "kept", said[-1:])
            cluster.restart(n)  # and is in sync again: else the next loss would be one too many
        assert consume(cluster, "kept", 2) == said


STARTER = """
import sys, time
from pathlib import Path
from gridsense.config import load
from scripts.broker import jars as jars_module
from scripts.broker.cluster import Cluster
with Cluster(Path(sys.argv[1])) as cluster:
    print(cluster.pid(0), flush=True)
    time.sleep(600)
"""


@pytest.mark.slow
def test_a_broker_does_not_outlive_who_started_it(kafka_can_run: None, tmp_path: Path) -> None:  # noqa: ARG001 a gate
    with subprocess.Popen([sys.executable, "-c", STARTER, tmp_path], cwd=ROOT, stdout=subprocess.PIPE) as starter:
        assert starter.stdout is not None
        pid = int(starter.stdout.readline())
        assert is_there(pid)
        starter.send_signal(signal.SIGKILL)
        starter.wait()
        deadline_s = time.monotonic() + PATIENCE_S
        while is_there(pid) and time.monotonic() < deadline_s:
            time.sleep(0.05)
        assert not is_there(pid)


@pytest.mark.slow
def test_a_developers_broker_says_what_to_configure_and_stops_when_told(
    kafka_can_run: None,  # noqa: ARG001 a gate
    tmp_path: Path,
) -> None:
    program = [sys.executable, ROOT / "scripts" / "broker" / "run.py", "--secure", "--folder", tmp_path / "kafka"]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        said = []
        for line in running.stdout:
            said.append(line)
            if "It runs" in line:
                break
        running.terminate()
        assert running.wait(PATIENCE_S) == 0
    file = tmp_path / "gridsense.toml"
    file.write_text("".join(said))
    config = load(file, environ={}).config
    host, _, port = config.log.url.removeprefix("kafka://").rpartition(":")
    assert host == "127.0.0.1"
    assert Path(config.kafka.password_file).read_text()
    with socket.socket() as other:
        other.bind((host, int(port)))  # nobody is there any more


def test_a_broker_that_cannot_start_says_why(kafka_can_run: None, tmp_path: Path) -> None:  # noqa: ARG001 a gate
    with (
        pytest.raises(BrokerError, match=r"(?s)broker 0 refuses its settings.*num\.io\.threads"),
        Cluster(tmp_path / "settings", properties={"num.io.threads": "none"}),
    ):
        pass
    broken = tmp_path / "data"
    (broken / "broker-0" / "data").mkdir(parents=True)
    (broken / "broker-0" / "data" / "meta.properties").write_text("version=1\ncluster.id=other\nnode.id=7\n")
    with (
        pytest.raises(BrokerError, match=r"(?s)broker 0 ended with 1; .*kafka\.log ends with:.*node id 7"),
        Cluster(broken),
    ):
        pass


def test_without_java_one_line_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(KafkaMissingError, match="no java: Kafka needs Java 17 or later"):
        java()
    old = tmp_path / "java"
    old.write_text("#!/bin/sh\necho 'openjdk version \"11.0.2\" 2019-01-15' >&2\n")
    old.chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join([str(tmp_path), "/usr/bin", "/bin"]))
    with pytest.raises(KafkaMissingError, match=r'is openjdk version "11\.0\.2".*: Kafka needs Java 17'):
        java()


def maven(folder: Path, does: str) -> None:
    program = folder / "mvn"
    program.write_text(f"#!/bin/sh\n{does}\n")
    program.chmod(0o755)


def test_jars_that_cannot_be_had_are_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "java").write_text("#!/bin/sh\necho 'openjdk version \"17.0.15\" 2025-04-15' >&2\n")
    (tmp_path / "java").chmod(0o755)
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setattr(jars_module, "CACHE", tmp_path / "cache")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(KafkaMissingError, match=r"no mvn: .*apt-get install maven"):
        jars()
    monkeypatch.setenv("PATH", os.pathsep.join([str(tmp_path), "/usr/bin", "/bin"]))
    maven(tmp_path, "printf '[\\033[1;31mERROR\\033[m] Could not transfer artifact\\n[ERROR] more\\n'; exit 1")
    with pytest.raises(
        KafkaMissingError, match=r"^Maven cannot bring Kafka's jars: \[ERROR\] Could not transfer artifact$"
    ):
        jars()
    brings = 'mkdir -p "${a#*=}"; echo x >"${a#*=}/other.jar"'
    maven(tmp_path, f'for a in "$@"; do case $a in -DoutputDirectory=*) {brings};; esac; done')
    with pytest.raises(KafkaMissingError, match=r"not those of jars\.sha256: .*kafka-clients-.*other\.jar"):
        jars()
    assert not [folder for folder in (tmp_path / "cache").iterdir() if folder.name not in ("half", "lock")]


def test_jars_are_resolved_once_by_whoever_is_first(
    kafka_can_run: None,  # noqa: ARG001 a gate
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    here = jars()
    monkeypatch.setattr(jars_module, "CACHE", tmp_path / "cache")
    copies = f'[ "${{a#-DoutputDirectory=}}" = "$a" ] || cp -r {here} "${{a#*=}}"'
    maven(tmp_path, f'echo >>{tmp_path}/calls; sleep 0.2; for a in "$@"; do {copies}; done')
    monkeypatch.setenv("PATH", os.pathsep.join([str(tmp_path), os.environ["PATH"]]))
    with ThreadPoolExecutor() as pool:
        found = {future.result() for future in [pool.submit(jars) for _ in range(4)]}
    assert len(found) == 1
    assert (tmp_path / "calls").read_text() == "\n"
    assert digests(found.pop()) == digests(here)
