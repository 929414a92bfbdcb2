"""The topics of the tier: what each should be like, making those that are missing, and what differs on the servers.

In: how many partitions and copies, and how long what is kept. Out: specifications, names of what was made, differences.
It never removes a topic, nor changes the partitions or copies of one: what is in it would be lost, or out of order.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, NamedTuple

from kafka import KafkaAdminClient, TopicPartition, errors
from kafka.admin import ConfigResource, ConfigResourceType, OffsetSpec

from streams.errors import LogError, SettingsError
from streams.kafka.clients import admin, translated
from streams.kafka.settings import KafkaSettings
from streams.log import (
    CONFIGURATIONS,
    DEAD_LETTERS,
    EVENTS,
    FRAMES,
    JOIN_STATE,
    LEASE,
    PREDICTIONS,
    REGIONAL,
    SCORES,
    STATE,
    STATUS,
    Retention,
)

SPREAD = (FRAMES, CONFIGURATIONS, DEAD_LETTERS, SCORES, PREDICTIONS, STATE)
"""Topics whose partitions divide the regions; the others have one."""
COMPACTED = (CONFIGURATIONS, STATE, JOIN_STATE, STATUS)
"""Topics that keep the newest record of each key, whatever its age."""
EXPIRING = (FRAMES, DEAD_LETTERS, SCORES, PREDICTIONS, REGIONAL, EVENTS, LEASE)
"""Topics whose oldest records go."""

PARTITIONS = "partitions"
REPLICAS = "replicas"
MISSING = "topic"
"""What a `Difference` may be in, beside Kafka's own settings."""

PAUSE_S = 0.1
"""Before it is looked again whether a change is in effect."""
_ENVELOPE_BYTES = 1 << 20
"""Beside the value of the largest record: its key, headers and batch."""
_SHARE = 10
"""A topic is kept in about so many files: what is beyond its retention goes by whole files."""
_SEGMENT_BYTES = (32 << 20, 1 << 30)
_SEGMENT_MS = (60_000, 7 * 86_400_000)
_COMPACTION = {
    "cleanup.policy": "compact",
    "segment.bytes": str(64 << 20),
    "segment.ms": "600000",
    "min.cleanable.dirty.ratio": "0.2",
    "max.compaction.lag.ms": "3600000",
    "delete.retention.ms": "600000",
}
"""Only files that are no longer written to are compacted: they are small, and cleaned when a fifth of them is stale.
What was removed is remembered for ten minutes, for readers that are on their way."""


@dataclass(frozen=True, slots=True)
class TopicSettings:
    """What the topics are made from.

    Attributes
    ----------
    partitions
        Of the topics that divide the regions.
    replication
        Copies of each record, on a broker each.
    min_in_sync
        Copies that must be written before a record counts.
    record_bytes
        The largest value.
    retention
        Of each topic of `EXPIRING`; a size is of the whole topic, each partition has its share. What is not named is
        kept for ever.
    """

    partitions: int
    replication: int
    min_in_sync: int
    record_bytes: int
    retention: Mapping[str, Retention]


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """What one topic should be like.

    Attributes
    ----------
    name
        Without the prefix.
    partitions
        How many.
    replication
        Copies of each record.
    config
        Kafka's settings of the topic, by its names for them.
    """

    name: str
    partitions: int
    replication: int
    config: dict[str, str]


class Difference(NamedTuple):
    """Where a topic is not as it should be.

    Attributes
    ----------
    topic
        Its name, with the prefix.
    setting
        `MISSING`, `PARTITIONS`, `REPLICAS` or one of Kafka's settings.
    found
        What it is on the servers.
    wanted
        What it should be.
    """

    topic: str
    setting: str
    found: str
    wanted: str


@dataclass(frozen=True, slots=True)
class TopicStatus:
    """How one topic is.

    Attributes
    ----------
    name
        With the prefix.
    partitions
        How many; 0: there is no such topic.
    replicas
        Copies of each record.
    lacking
        Partitions of which a copy is missing or behind.
    leaderless
        Partitions that cannot be used now.
    records
        Offsets between the beginning and the end, over all partitions: an upper bound of the records.
    """

    name: str
    partitions: int = 0
    replicas: int = 0
    lacking: int = 0
    leaderless: int = 0
    records: int = 0


def specs(settings: TopicSettings) -> list[TopicSpec]:
    """Say what each topic should be like.

    Parameters
    ----------
    settings
        Of all of them.

    Returns
    -------
    list[TopicSpec]
        In the order in which data pass through them.
    """
    common = {
        "max.message.bytes": str(settings.record_bytes + _ENVELOPE_BYTES),
        "min.insync.replicas": str(settings.min_in_sync),
        # retention by the servers' clock: a recording of last year, or a gateway whose clock is wrong, is kept as long
        "message.timestamp.type": "LogAppendTime",
        "unclean.leader.election.enable": "false",
    }
    made = []
    for name in (
        FRAMES,
        CONFIGURATIONS,
        DEAD_LETTERS,
        SCORES,
        PREDICTIONS,
        REGIONAL,
        EVENTS,
        STATE,
        JOIN_STATE,
        STATUS,
        LEASE,
    ):
        partitions = settings.partitions if name in SPREAD else 1
        kept = settings.retention.get(name, Retention())
        config = _COMPACTION if name in COMPACTED else _expiry(kept, partitions)
        made.append(TopicSpec(name, partitions, settings.replication, config | common))
    return made


def _expiry(kept: Retention, partitions: int) -> dict[str, str]:
    age_ms = round(kept.age_s * 1e3) or -1
    size = max(kept.size // partitions, 1) if kept.size else -1
    return {
        "cleanup.policy": "delete",
        "retention.ms": str(age_ms),
        "retention.bytes": str(size),
        "segment.ms": str(_within(age_ms // _SHARE, _SEGMENT_MS) if age_ms > 0 else _SEGMENT_MS[1]),
        "segment.bytes": str(_within(size // _SHARE, _SEGMENT_BYTES) if size > 0 else _SEGMENT_BYTES[1]),
    }


def _within(number: int, bounds: tuple[int, int]) -> int:
    return min(max(number, bounds[0]), bounds[1])


def create(settings: KafkaSettings, wanted: Sequence[TopicSpec]) -> list[str]:
    """Make the topics that are missing; change none that is there.

    Parameters
    ----------
    settings
        Of Kafka.
    wanted
        From `specs`.

    Returns
    -------
    list[str]
        Names of those that were made, with the prefix. They can be used: each partition has a leader. A
        `streams.errors.LogError` says that the servers do not answer, or refuse; a `SettingsError` that there are fewer
        of them than copies are asked for.
    """
    made: list[str] = []
    with closing(admin(settings)) as client, translated(f"{settings.place}: making topics"):
        there = _described(client, [settings.topic(spec.name) for spec in wanted])
        missing = [spec for spec in wanted if settings.topic(spec.name) not in there]
        if not missing:
            return made
        request = {
            settings.topic(spec.name): {
                "num_partitions": spec.partitions,
                "replication_factor": spec.replication,
                "configs": spec.config,
            }
            for spec in missing
        }
        answers = client.create_topics(request, raise_errors=False)["topics"]
        made += [told["name"] for told in answers if _was_made(told, missing[0].replication)]
        client.wait_for_topics(list(request), timeout_ms=settings.request_s * 1e3)
    return made


def _was_made(told: Mapping[str, Any], copies: int) -> bool:
    """Read the answer for one topic: whether we made it, or another at the same time."""
    kind = errors.for_code(told["error_code"])
    if kind is errors.InvalidReplicationFactorError:
        raise SettingsError(
            f"kafka: replication is {copies}, and the cluster cannot hold so many copies ({told['error_message']}): "
            "start more brokers, or set replication lower"
        )
    if kind not in {errors.NoError, errors.TopicAlreadyExistsError}:
        raise kind(f"{told['name']}: {told['error_message']}")
    return kind is errors.NoError


def check(settings: KafkaSettings, wanted: Sequence[TopicSpec]) -> list[Difference]:
    """Find where topics are not as they should be.

    Parameters
    ----------
    settings
        Of Kafka.
    wanted
        From `specs`.

    Returns
    -------
    list[Difference]
        Empty where all is as it should be. A `streams.errors.LogError` says that the servers do not answer, or refuse.
    """
    with closing(admin(settings)) as client, translated(f"{settings.place}: looking at topics"):
        return _differences(client, settings, wanted)


def alter(settings: KafkaSettings, wanted: Sequence[TopicSpec]) -> list[Difference]:
    """Set Kafka's settings of topics that are there to what they should be.

    Parameters
    ----------
    settings
        Of Kafka.
    wanted
        From `specs`.

    Returns
    -------
    list[Difference]
        What was changed, and is in effect.

    Raises
    ------
    LogError
        If the servers do not answer, or refuse, or the change is not in effect within the time of a request.
    """
    with closing(admin(settings)) as client, translated(f"{settings.place}: altering topics"):
        found = _differences(client, settings, wanted)
        changes: dict[str, dict[str, str]] = {}
        for topic, setting, _, value in found:
            if setting not in {MISSING, PARTITIONS, REPLICAS}:
                changes.setdefault(topic, {})[setting] = value
        changed = [it for it in found if it.setting in changes.get(it.topic, {})]
        if changed:
            _set(client, changes)
            deadline_s = time.monotonic() + settings.request_s
            while set(changed) & set(_differences(client, settings, wanted)):  # brokers learn of it one by one
                if time.monotonic() > deadline_s:
                    raise LogError(f"{changed[0].topic}: the settings are taken, and not in effect yet: check again")
                time.sleep(PAUSE_S)
    return changed


def _set(client: KafkaAdminClient, changes: Mapping[str, Mapping[str, str]]) -> None:
    """Set settings of topics; kafka-python gives back what was refused as text."""
    told = client.alter_configs(
        [ConfigResource(ConfigResourceType.TOPIC, topic, dict(config)) for topic, config in changes.items()]
    )
    for topic, answer in told["topic"].items():
        if answer != "OK":
            number = re.search(r"\[Error (-?\d+)\]", answer)
            raise (errors.for_code(int(number[1])) if number else errors.UnknownError)(f"{topic}: {answer}")


def status(settings: KafkaSettings, wanted: Sequence[TopicSpec]) -> list[TopicStatus]:
    """Say how topics are.

    Parameters
    ----------
    settings
        Of Kafka.
    wanted
        From `specs`.

    Returns
    -------
    list[TopicStatus]
        One for each. A `streams.errors.LogError` says that the servers do not answer, or refuse.
    """
    names = [settings.topic(spec.name) for spec in wanted]
    with closing(admin(settings)) as client, translated(f"{settings.place}: looking at topics"):
        there = _described(client, names)
        led = [
            TopicPartition(name, partition["partition_index"])
            for name, told in there.items()
            for partition in told["partitions"]
            if partition["leader_id"] >= 0
        ]
        records = dict.fromkeys(names, 0)
        if led:
            first = client.list_partition_offsets(dict.fromkeys(led, OffsetSpec.EARLIEST))
            end = client.list_partition_offsets(dict.fromkeys(led, OffsetSpec.LATEST))
            for tp in led:
                records[tp.topic] += end[tp].offset - first[tp].offset
        return [
            _status(name, there[name]["partitions"], records[name]) if name in there else TopicStatus(name)
            for name in names
        ]


def _status(name: str, partitions: Sequence[Any], records: int) -> TopicStatus:
    return TopicStatus(
        name,
        len(partitions),
        min(len(it["replica_nodes"]) for it in partitions),
        sum(len(it["isr_nodes"]) < len(it["replica_nodes"]) for it in partitions),
        sum(it["leader_id"] < 0 for it in partitions),
        records,
    )


def _described(client: KafkaAdminClient, names: Sequence[str]) -> dict[str, Any]:
    """Ask what there is of some topics."""
    there: dict[str, Any] = {}
    for told in client.describe_topics(names):
        kind = errors.for_code(told["error_code"])
        if kind is errors.NoError:
            there[told["name"]] = told
        elif kind is not errors.UnknownTopicOrPartitionError:
            raise kind(told["name"])
    return there


def _differences(client: KafkaAdminClient, settings: KafkaSettings, wanted: Sequence[TopicSpec]) -> list[Difference]:
    specs_by_name = {settings.topic(spec.name): spec for spec in wanted}
    there = _described(client, list(specs_by_name))
    resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in there]
    configs = client.describe_configs(resources, config_filter="all")["topic"] if resources else {}
    out: list[Difference] = []
    for name, spec in specs_by_name.items():
        if name not in there:
            out.append(Difference(name, MISSING, "missing", f"{spec.partitions} partitions"))
            continue
        if not configs[name]:  # kafka-python passes the refusal over
            raise errors.TopicAuthorizationFailedError(f"{name}: its settings (DescribeConfigs)")
        partitions = there[name]["partitions"]
        copies = min(len(it["replica_nodes"]) for it in partitions)
        found = {key: str(told["value"]) for key, told in configs[name].items()}
        found |= {PARTITIONS: str(len(partitions)), REPLICAS: str(copies)}
        like = {PARTITIONS: str(spec.partitions), REPLICAS: str(spec.replication)} | dict(sorted(spec.config.items()))
        out += [
            Difference(name, key, found.get(key, "nothing"), value)
            for key, value in like.items()
            if found.get(key) != value
        ]
    return out
