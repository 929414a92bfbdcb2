"""Topics on a real broker: made as configured, held against the configuration, and never changed unasked."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from kafka.admin import ConfigResource, ConfigResourceType

from gridsense.cli import EXIT_DIFFERS, EXIT_OK, EXIT_PEER, EXIT_USAGE, exit_code, run
from gridsense.config import Config, load
from gridsense.log_opening import RECORD_BYTES, kafka_settings, open_log, topic_specs
from scripts.broker.cluster import Cluster
from streams import log
from streams.errors import DeniedError, UnreachableError
from streams.kafka import topics
from streams.kafka.clients import admin
from streams.kafka.settings import KafkaSettings
from streams.kafka.topics import Difference, TopicSpec
from streams.log import EVENTS, FRAMES, SCORES, STATE, Record

NAMES = {value for value in vars(log).values() if isinstance(value, str) and value.startswith("pmu.")}


@pytest.fixture
def file(tmp_path: Path, kafka: Cluster, kafka_prefix: str) -> Path:
    """A configuration for topics of this test alone."""
    path = tmp_path / "gridsense.toml"
    path.write_text(
        f'log.url = "kafka://{kafka.servers}"\n'
        f'[kafka]\nprefix = "{kafka_prefix}"\nreplication = 1\npartitions = 3\nscores_retention = "1h"\n'
    )
    return path


@pytest.fixture
def config(file: Path) -> Config:
    return load(file, environ={}).config


@pytest.fixture
def settings(config: Config) -> KafkaSettings:
    return kafka_settings(config)


def set_retention(settings: KafkaSettings, name: str, age_ms: int) -> None:
    """As an administrator would, by Kafka's own tools, and until it is in effect."""
    topic, resource = settings.topic(name), ConfigResourceType.TOPIC
    with closing(admin(settings)) as client:
        client.alter_configs([ConfigResource(resource, topic, {"retention.ms": str(age_ms)})])
        found = ""
        while found != str(age_ms):
            configs = client.describe_configs([ConfigResource(resource, topic)], config_filter="all")
            found = configs["topic"][topic]["retention.ms"]["value"]


def by_name(specs: list[TopicSpec]) -> dict[str, TopicSpec]:
    return {spec.name: spec for spec in specs}


# --- what they should be like


def test_every_topic_has_a_specification() -> None:
    assert {spec.name for spec in topic_specs(Config())} == NAMES


def test_retention_and_partitions_come_from_the_configuration() -> None:
    log_keys = {"retention": "72h", "retention_size": "40GiB"}
    kafka_keys = {"partitions": 4, "scores_retention": "1h", "events_retention": 0}
    specs = by_name(topic_specs(Config.model_validate({"log": log_keys, "kafka": kafka_keys})))
    frames, scores, events = specs[FRAMES].config, specs[SCORES].config, specs[EVENTS].config
    assert (specs[FRAMES].partitions, specs[EVENTS].partitions, specs[STATE].partitions) == (4, 1, 4)
    assert (frames["retention.ms"], frames["retention.bytes"]) == (str(72 * 3_600_000), str(10 << 30))
    assert (scores["retention.ms"], scores["segment.ms"]) == ("3600000", "360000")
    assert (events["retention.ms"], events["retention.bytes"]) == ("-1", "-1")
    assert specs[STATE].config["cleanup.policy"] == "compact"
    assert "retention.ms" not in specs[STATE].config


@pytest.mark.parametrize(("replication", "asked", "in_sync"), [(1, 0, 1), (2, 0, 1), (3, 0, 2), (5, 0, 4), (3, 1, 1)])
def test_a_record_counts_when_all_copies_but_one_have_it(replication: int, asked: int, in_sync: int) -> None:
    specs = topic_specs(Config.model_validate({"kafka": {"replication": replication, "min_in_sync": asked}}))
    assert {spec.replication for spec in specs} == {replication}
    assert {spec.config["min.insync.replicas"] for spec in specs} == {str(in_sync)}


# --- on a broker


def test_what_was_made_is_as_configured(config: Config, settings: KafkaSettings) -> None:
    specs = topic_specs(config)
    assert {(it.topic, it.setting) for it in topics.check(settings, specs)} == {
        (settings.topic(name), topics.MISSING) for name in NAMES
    }
    assert {it.partitions for it in topics.status(settings, specs)} == {0}
    assert set(topics.create(settings, specs)) == {settings.topic(name) for name in NAMES}
    assert topics.check(settings, specs) == []
    assert topics.create(settings, specs) == []
    for it, spec in zip(topics.status(settings, specs), specs, strict=True):
        assert (it.name, it.partitions, it.replicas) == (settings.topic(spec.name), spec.partitions, 1)
        assert (it.lacking, it.leaderless, it.records) == (0, 0, 0)


def test_a_topic_that_is_there_is_not_changed_unasked(config: Config, settings: KafkaSettings) -> None:
    specs = topic_specs(config)
    topics.create(settings, specs)
    set_retention(settings, SCORES, 7_000)
    difference = Difference(settings.topic(SCORES), "retention.ms", "7000", "3600000")
    assert topics.create(settings, specs) == []
    assert topics.check(settings, specs) == [difference]
    assert topics.alter(settings, specs) == [difference]
    assert topics.check(settings, specs) == []
    assert topics.alter(settings, specs) == []


def test_partitions_are_told_and_stay(config: Config, settings: KafkaSettings) -> None:
    specs = topic_specs(config)
    topics.create(settings, specs)
    more = [replace(spec, partitions=5) if spec.name == FRAMES else spec for spec in specs]
    difference = Difference(settings.topic(FRAMES), topics.PARTITIONS, "3", "5")
    assert topics.check(settings, more) == [difference]
    assert topics.alter(settings, more) == []
    assert topics.check(settings, more) == [difference]


def test_two_may_make_them_at_once(config: Config, settings: KafkaSettings) -> None:
    specs = topic_specs(config)
    with ThreadPoolExecutor(2) as pool:
        made = list(pool.map(lambda _: topics.create(settings, specs), range(2)))
    assert sorted(made[0] + made[1]) == sorted(settings.topic(name) for name in NAMES)
    assert topics.check(settings, specs) == []


def test_the_largest_record_is_taken_and_counted(config: Config, settings: KafkaSettings) -> None:
    topics.create(settings, topic_specs(config))
    value = bytes(RECORD_BYTES - 4096)  # its key, headers and batch are counted by the producer too
    with closing(open_log(config)) as opened:
        opened.append(FRAMES, [Record(1, "north/a", value), Record(2, "north/a", b"x")])
    (frames,) = [it for it in topics.status(settings, topic_specs(config)) if it.name.endswith(FRAMES)]
    assert frames.records == 2


def test_a_silent_place_is_told_as_one(settings: KafkaSettings) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        nowhere = replace(settings, servers=(f"127.0.0.1:{reserved.getsockname()[1]}",), request_s=0.5)
        with pytest.raises(UnreachableError, match=nowhere.servers[0]) as caught:
            topics.check(nowhere, topic_specs(Config()))
    assert exit_code(caught.value) == EXIT_PEER


# --- the commands


def test_the_commands_make_check_and_list(
    file: Path, settings: KafkaSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--config", str(file)]
    assert run(["topics", "check", *words]) == EXIT_DIFFERS
    told = capsys.readouterr()
    assert told.out.count("missing") == len(NAMES)
    assert f"{len(NAMES)} of {len(NAMES)} topics differ: gridsense topics create makes what is missing" in told.err
    assert run(["topics", "create", *words]) == EXIT_OK
    assert f"made {settings.topic(FRAMES)}\n" in capsys.readouterr().out
    assert run(["topics", "check", *words]) == EXIT_OK
    assert run(["topics", "create", *words]) == EXIT_OK
    assert "all 11 topics are as configured\n11 of 11 were there" in capsys.readouterr().out
    set_retention(settings, SCORES, 7_000)
    assert run(["topics", "check", *words]) == EXIT_DIFFERS
    told = capsys.readouterr()
    (row,) = [line.split() for line in told.out.splitlines() if "7000" in line]
    assert row == [settings.topic(SCORES), "retention.ms", "7000", "3600000"]
    assert "1 of 11 topics differ: gridsense topics create --alter changes settings" in told.err
    assert run(["topics", "create", "--alter", *words]) == EXIT_OK
    assert f"altered {settings.topic(SCORES)}: retention.ms 7000 -> 3600000" in capsys.readouterr().out
    assert run(["topics", "check", *words]) == EXIT_OK
    assert run(["topics", "list", *words]) == EXIT_OK
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [settings.topic(FRAMES), "3", "1", "0", "ready"] in rows


def test_more_copies_than_brokers_are_refused_in_words(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["topics", "create", "--config", str(file), "--set", "kafka.replication=3"]) == EXIT_USAGE
    assert "replication is 3, and the cluster cannot hold so many copies" in capsys.readouterr().err


def test_topics_are_kafkas(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "gridsense.toml"
    path.write_text("")
    assert run(["topics", "check", "--config", str(path)]) == EXIT_USAGE
    assert "log.url = sqlite:gridsense-log.db: must be kafka://" in capsys.readouterr().err


def test_who_has_the_password_makes_topics_and_who_has_not_is_told(
    secure_kafka: Cluster,
    kafka_prefix: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    party = secure_kafka.credentials.allowed
    path, word = tmp_path / "gridsense.toml", tmp_path / "password"
    path.write_text(
        f'log.url = "kafka://{secure_kafka.servers}"\n[kafka]\nprefix = "{kafka_prefix}"\nreplication = 1\n'
        f'protocol = "SASL_SSL"\nusername = "{party.name}"\nca_file = "{secure_kafka.credentials.ca_file}"\n'
    )
    monkeypatch.setenv("GRIDSENSE_KAFKA__PASSWORD", "wrong")
    assert run(["topics", "create", "--config", str(path)]) == EXIT_PEER
    assert "the servers refuse these credentials" in capsys.readouterr().err
    monkeypatch.setenv("GRIDSENSE_KAFKA__PASSWORD", party.password)
    assert run(["topics", "create", "--config", str(path)]) == EXIT_OK
    monkeypatch.delenv("GRIDSENSE_KAFKA__PASSWORD")
    word.write_text(f"{party.password}\n")
    words = ["--config", str(path), "--set", f"kafka.password_file={word}"]
    assert run(["topics", "check", *words]) == EXIT_OK
    assert run(["topics", "create", "--alter", *words, "--set", "log.retention=5h"]) == EXIT_PEER
    told = capsys.readouterr()
    assert "rights (ACLs)" in told.err
    assert party.password not in told.out + told.err


def test_refusals_exit_as_peers() -> None:
    assert exit_code(DeniedError("no")) == EXIT_PEER
