"""The live line on a real Kafka, for checks that treat it badly: a gateway, a group of processors, and an oracle.

In: brokers, and a folder. Out: services that can be killed and put to sleep, who has which partition, every commit of
the group; events as they were committed; and the same frames in one embedded log, for an uninterrupted run. It judges
nothing.
"""

from __future__ import annotations

import re
import struct
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from heapq import merge
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple, Self

import msgspec
from kafka import TopicPartition, errors
from kafka.admin import OffsetSpec
from kafka.protocol.consumer import IsolationLevel

from scripts.broker.cluster import Cluster
from scripts.faults.line import (
    GATEWAY,
    PATIENCE_S,
    WORKS,
    Change,
    CheckError,
    Service,
    free_port,
    metric,
    page,
    process_to_the_end,
    served,
    service,
    simulator,
    wait_until,
    write_settings,
)
from streams.errors import LogError
from streams.kafka.clients import admin, consumer
from streams.kafka.log import KafkaLog
from streams.kafka.settings import KafkaSettings
from streams.log import DEAD_LETTERS, EVENTS, FRAMES, REGIONAL, Entry, Record
from streams.sqlite_log import open_log

PROCESSORS, PARTITIONS = 3, 4
GROUP, JOIN = "gridsense", "gridsense-join"
GROUPS = {GROUP: FRAMES, JOIN: REGIONAL}
"""What each group reads."""
BATCH = 1000
"""Records that are written to the embedded log at once."""
CATCH_UP_S = 900.0
"""How long the processors may take to read to the end, and an uninterrupted run to read everything."""
LOOK_S = 0.25
"""Between two looks at the group."""
ASK_S = 5.0
"""How long a broker may take to answer."""
COUNTED = {"transactions": "_transactions_total", "aborted": "_aborted_total", "fenced": "_fenced_total"}
"""Counters of a processor that are added up, and how their series are called."""

PATIENT = 'stall = "2min"'
"""A source of the recording is silent for a while: no gateway may connect anew then, and miss what the other gets."""

_OFFSETS = "__consumer_offsets"


class Commit(NamedTuple):
    """A place that a group committed.

    Attributes
    ----------
    group, partition
        Whose, and of which partition of what it reads.
    offset
        Where it will go on.
    member
        Who committed: the identity of a member, of which a process has another after each start, and after each time
        that it was fenced.
    transaction
        Number of the transaction, by the member.
    """

    group: str
    partition: int
    offset: int
    member: str
    transaction: str


class Watch(threading.Thread):
    """Looks, as long as it runs, who of the group has which partition. Brokers may be away.

    Parameters
    ----------
    settings
        Of Kafka.

    Attributes
    ----------
    owners
        Instance by partition, as it was last seen.
    moves
        How often a partition was seen with another instance than before.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        super().__init__(daemon=True)
        self.settings = settings
        self.owners: dict[int, str] = {}
        self.moves = 0
        self._over = threading.Event()

    def run(self) -> None:
        """Look."""
        while not self._over.is_set():
            with suppress(errors.KafkaError, LogError, OSError), closing(admin(self.settings)) as client:
                while not self._over.wait(LOOK_S):
                    self._note(client.describe_groups([self.settings.prefix + GROUP]))
            self._over.wait(LOOK_S)

    def of(self, instance: str) -> set[int]:
        """Say what an instance has.

        Parameters
        ----------
        instance
            Of a processor.

        Returns
        -------
        set[int]
            Partitions.
        """
        return {partition for partition, owner in self.owners.items() if owner == instance}

    def stop(self) -> None:
        """Look no more."""
        self._over.set()
        self.join(PATIENCE_S)

    def _note(self, told: Mapping[str, Any]) -> None:
        """Take down an assignment; while one is being made there is none."""
        (group,) = told.values()
        if group["group_state"] != "Stable":
            return
        owners = {
            partition: str(member["group_instance_id"])
            for member in group["members"]
            for assigned in (member["member_assignment"] or {}).get("assigned_partitions", ())
            for partition in assigned["partitions"]
        }
        self.moves += sum(self.owners.get(partition, owner) != owner for partition, owner in owners.items())
        self.owners = owners


class KafkaLine:
    """The line on a cluster: simulator, witness, gateway, processors. Use it in a ``with`` statement.

    Each source of the recording is a region; the witness is a gateway that writes into an embedded log.

    Parameters
    ----------
    folder
        For everything; made.
    cluster
        Started; its topics must be new.
    speed
        Times real time at which the recording is played.
    processors
        How many.

    Attributes
    ----------
    settings
        Of Kafka.
    gateway, processors, watch
        Not started before `start`.
    counted
        Sums over the lives of processors that were asked; see `COUNTED`.
    """

    def __init__(self, folder: Path, cluster: Cluster, *, speed: float, processors: int = PROCESSORS) -> None:
        self.folder, self.cluster, self.speed = folder, cluster, speed
        self.settings = KafkaSettings(tuple(cluster.servers.split(",")), request_s=ASK_S)
        names = [f"{n}" for n in range(processors)]
        self.instances = [f"processor-{name}" for name in names]
        self.ports = {name: free_port() for name in (GATEWAY, *self.instances)}
        self.gateway = Service(folder / GATEWAY, GATEWAY, "gateway")
        self.processors = [Service(folder / name, name, "run") for name in self.instances]
        self.witness = service(folder / "witness", GATEWAY)
        self.watch = Watch(self.settings)
        self.counted = dict.fromkeys(COUNTED, 0)
        self._simulator = simulator(folder, speed)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        """Write the settings, make the topics, and serve."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as failed:
            for one in (self._simulator, self.witness, self.gateway, *self.processors):
                failed.enter_context(one)
            self._simulator.start()
            connections, regions = regional(served(self._simulator))
            for name in (GATEWAY, *self.instances):
                self._write_settings(name, connections, regions)
            for name in ("witness", "straight"):
                write_settings(self.folder / name, connections, gateway=PATIENT)
            topics = failed.enter_context(Service(self.folder / GATEWAY, "topics", "topics", "create"))
            topics.start()
            if status := topics.wait():
                raise CheckError(f"the topics could not be made, {status}: {' | '.join(topics.said()[-5:])}")
            self._stack = failed.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """Let nothing run on."""
        if self.watch.is_alive():
            self.watch.stop()
        self._stack.close()

    def start(self) -> None:
        """Start everything, the witness first."""
        for one in (self.witness, self.gateway):
            one.start()
            one.hear(WORKS[GATEWAY])
        for one in self.processors:
            one.start()
        self.watch.start()

    def running(self) -> list[Service]:
        """Say which processors run.

        Returns
        -------
        list[Service]
            In their order.

        Raises
        ------
        CheckError
            If one, or the gateway, has ended by itself.
        """
        for one in (self.gateway, self.witness, *self.processors):
            if one.process is not None and one.ended:
                raise CheckError(f"{one.name} ended by itself with {one.process.poll()}: {' | '.join(one.said()[-5:])}")
        return [one for one in self.processors if one.process is not None]

    def kill(self, one: Service) -> None:
        """End a processor by SIGKILL, and ask it before how much it did.

        Parameters
        ----------
        one
            Which.
        """
        self._count(one)
        one.kill()

    def asked(self, name: str, series: str) -> float:
        """Ask a service for a series.

        Parameters
        ----------
        name
            `GATEWAY`, or one of the instances.
        series
            Part of its name.

        Returns
        -------
        float
            0 also where it does not answer.
        """
        try:
            return metric(self.ports[name], series)
        except OSError:
            return 0.0

    def stop_input(self) -> None:
        """Stop the gateway, then the witness and the simulator.

        Raises
        ------
        CheckError
            If the gateway has something to complain of.
        """
        if status := self.gateway.stop():
            raise CheckError(f"the gateway ended with {status}: {' | '.join(self.gateway.said()[-5:])}")
        self.witness.stop()
        self._simulator.stop()

    def read_to_the_end(self, ends: Mapping[int, int]) -> None:
        """Wait until the group has read everything and joined it, and stop the processors.

        Parameters
        ----------
        ends
            By partition of the frames, the offset of the last entry.

        Raises
        ------
        CheckError
            If it does not come to that, or a processor has something to complain of.
        """
        said = self._complaints
        wait_until(lambda: self._read(GROUP, ends), "the group reads to the end", said, CATCH_UP_S)
        wait_until(lambda: self._read(JOIN, self._regional_end()), "regions are joined to the end", said, CATCH_UP_S)
        statuses = []
        for one in self.running():
            self._count(one)
            statuses.append(one.stop())
        if any(statuses):
            raise CheckError(f"the processors ended with {statuses}: {' | '.join(said())}")
        self.watch.stop()
        wait_until(lambda: not hanging(self.settings), "no transaction is pending", lambda: hanging(self.settings))

    def straighten(self) -> dict[int, int]:
        """Write the frames of all partitions into one embedded log, by arrival; each partition's order is kept.

        Returns
        -------
        dict[int, int]
            By partition, the offset of its last entry; -1 where there is none.
        """
        ends: dict[int, int] = {}
        records = merged([entries(self.settings, FRAMES, n) for n in range(PARTITIONS)], ends)
        with closing(open_log(self.folder / "straight" / "log.db")) as log:
            while batch := list(islice(records, BATCH)):
                log.append(FRAMES, batch)
        return ends

    def process_straight(self) -> Path:
        """Let one embedded processor read the same frames without any interruption.

        Returns
        -------
        Path
            Its folder, with ``log.db`` and ``events.db``.
        """
        process_to_the_end(self.folder / "straight", close=False, patience_s=CATCH_UP_S)
        return self.folder / "straight"

    def _write_settings(self, name: str, connections: str, regions: Sequence[str]) -> None:
        listed = ", ".join(f'"{region}"' for region in regions)
        # No marks but the gateway's: whatever the processors add after the frames were read for the oracle, it lacks.
        # Patience without end: how far behind kills leave a region must not decide what is joined.
        kafka = (
            f'instance = "{name}"\npartitions = {PARTITIONS}\nreplication = {min(self.cluster.brokers, 3)}\n'
            f'regions = [{listed}]\nsession = "10s"\ntransaction = "8s"\njoin_patience = "24h"\nidle = "1h"'
        )
        ports = (0, self.ports[name]) if name == GATEWAY else (self.ports[name], 0)
        write_settings(
            self.folder / name,
            connections,
            log=f"kafka://{self.cluster.servers}",
            kafka=kafka,
            snapshot_s=3.0,
            gateway=PATIENT,
            metrics=f"processor_port = {ports[0]}\ngateway_port = {ports[1]}",
        )

    def _count(self, one: Service) -> None:
        """Add up what a processor counted; one that is just starting, or hangs, has nothing to say."""
        with suppress(OSError, ValueError):
            lines = [line.split() for line in page(self.ports[one.name], "metrics").splitlines() if line[:1] != "#"]
            for name, series in COUNTED.items():
                self.counted[name] += round(sum(float(parts[-1]) for parts in lines if series in parts[0]))

    def _read(self, group: str, ends: Mapping[int, int]) -> bool:
        """Whether a group has read beyond the last entry of each partition."""
        self.running()
        try:
            return all(_position(self.settings, group, n) > end for n, end in ends.items())
        except LogError:
            return False

    def _regional_end(self) -> dict[int, int]:
        return {0: max((entry.offset for entry in entries(self.settings, REGIONAL)), default=-1)}

    def _complaints(self) -> list[str]:
        return [f"{one.name}: {line}" for one in self.processors for line in one.said()[-3:]]


def regional(connections: str) -> tuple[str, list[str]]:
    """Make each connection a region of its own.

    Parameters
    ----------
    connections
        Tables of a configuration.

    Returns
    -------
    tuple[str, list[str]]
        The same with regions, and the regions in their order.
    """
    pattern = re.compile(r'^name = "(.*)"$', re.MULTILINE)
    return pattern.sub(r'\g<0>\nregion = "\1"', connections), pattern.findall(connections)


def entries(settings: KafkaSettings, topic: str, partition: int = 0) -> Iterator[Entry]:
    """Read what is committed of a partition, to its end of now.

    Parameters
    ----------
    settings
        Of Kafka.
    topic
        Without the prefix.
    partition
        Of the topic.

    Yields
    ------
    Entry
        In order.

    Raises
    ------
    CheckError
        If something is gone.
    """
    with closing(KafkaLog(settings, partition)) as log:
        at, end = 0, log.extent(topic).next
        while at < end:
            reading = log.read(topic, at)
            if reading.lost:
                raise CheckError(f"{topic} {partition}: {reading.lost}")
            yield from reading.entries
            at = reading.next


def merged(partitions: Sequence[Iterable[Entry]], ends: dict[int, int]) -> Iterator[Record]:
    """Put the entries of partitions into one order: by arrival, each partition's own order kept.

    Parameters
    ----------
    partitions
        Each in its order.
    ends
        The offset of the last entry of each is written there, as it was when the records were taken; -1: none.

    Returns
    -------
    Iterator[Record]
        To be taken once.
    """
    dated = [_dated(read, n, ends) for n, read in enumerate(partitions)]
    return (record for _, record in merge(*dated, key=itemgetter(0)))


def told(settings: KafkaSettings) -> tuple[list[Change], list[str]]:
    """Read the events as they were committed.

    Parameters
    ----------
    settings
        Of Kafka.

    Returns
    -------
    tuple[list[Change], list[str]]
        In order; and the keys of those that stand under another key than their id.
    """
    changes, strangers = [], []
    for entry in entries(settings, EVENTS):
        event = msgspec.json.decode(entry.value, type=_Told)
        changes.append(Change(event.id, event.data.end is not None, entry.value.decode()))
        if entry.key != event.id:
            strangers.append(entry.key)
    return changes, strangers


def dead_letters(letters: Iterable[Entry]) -> list[tuple[str, str, bytes]]:
    """Say what was put aside.

    Parameters
    ----------
    letters
        Of a dead letters' topic.

    Returns
    -------
    list[tuple[str, str, bytes]]
        Key, reason and value of each, sorted.
    """
    return sorted((letter.key, letter.note, letter.value) for letter in letters)


def put_aside(settings: KafkaSettings) -> list[Entry]:
    """Read the dead letters of all partitions.

    Parameters
    ----------
    settings
        Of Kafka.

    Returns
    -------
    list[Entry]
        In the order of each partition.
    """
    with closing(KafkaLog(settings)) as log:
        partitions = log.partitions(DEAD_LETTERS)
    return [entry for n in range(partitions) for entry in entries(settings, DEAD_LETTERS, n)]


def commits(settings: KafkaSettings) -> dict[str, list[Commit]]:
    """Read every place that the groups have committed, from the topic in which the brokers remember them.

    Parameters
    ----------
    settings
        Of Kafka.

    Returns
    -------
    dict[str, list[Commit]]
        By group, in the order in which it committed. What compaction has removed is missing: nothing, in an hour.
    """
    found: dict[str, list[Commit]] = {name: [] for name in GROUPS}
    groups = {settings.prefix + name: name for name in GROUPS}
    with closing(consumer(settings)) as client:
        tps = [TopicPartition(_OFFSETS, n) for n in client.partitions_for_topic(_OFFSETS) or ()]
        client.assign(tps)
        client.seek_to_beginning(*tps)
        ends = client.end_offsets(tps)
        while any(client.position(tp) < ends[tp] for tp in tps):
            for records in client.poll(200).values():
                for record in records:
                    commit = _commit(record.key, record.value)
                    if commit and (group := groups.get(commit.group)):
                        found[group].append(commit._replace(group=group))
    return found


def back(found: Sequence[Commit]) -> list[str]:
    """Say where a group went back.

    Parameters
    ----------
    found
        Its commits, in order.

    Returns
    -------
    list[str]
        A sentence each.
    """
    newest: dict[int, int] = {}
    out = []
    for one in found:
        before = newest.get(one.partition, 0)
        if one.offset < before:
            out.append(f"{one.group} went back in partition {one.partition} from {before} to {one.offset}")
        newest[one.partition] = one.offset
    return out


def overtaken(asleep: Sequence[Commit], awake: Sequence[Commit]) -> dict[int, str]:
    """Say who had a partition before others had it.

    Parameters
    ----------
    asleep
        What a group had committed when somebody fell asleep.
    awake
        The same, and what it committed since.

    Returns
    -------
    dict[int, str]
        By partition, the member that must not commit there any more.
    """
    had = {one.partition: one.member for one in asleep}
    return {
        one.partition: had[one.partition]
        for one in awake[len(asleep) :]
        if had.get(one.partition, one.member) != one.member
    }


def hanging(settings: KafkaSettings) -> list[str]:
    """Say where a transaction is pending, so that what stands behind it is not read.

    Parameters
    ----------
    settings
        Of Kafka.

    Returns
    -------
    list[str]
        Partitions.
    """
    with closing(admin(settings)) as client:
        names = [settings.topic(name) for name in (FRAMES, REGIONAL, EVENTS, DEAD_LETTERS)]
        latest = {
            TopicPartition(topic["name"], partition["partition_index"]): OffsetSpec.LATEST
            for topic in client.describe_topics(names)
            for partition in topic["partitions"]
        }
        stable, ends = (
            client.list_partition_offsets(latest, level)
            for level in (IsolationLevel.READ_COMMITTED, IsolationLevel.READ_UNCOMMITTED)
        )
    return [f"{tp.topic} {tp.partition}" for tp in latest if stable[tp].offset < ends[tp].offset]


class _Stage(msgspec.Struct):
    """Of an event's data: when it ended."""

    end: str | None


class _Told(msgspec.Struct):
    """Of an event: which, and in which stage."""

    id: str
    data: _Stage


@dataclass(slots=True)
class _Fields:
    """Bytes that are read field by field, as Kafka writes its own records."""

    rest: bytes
    at: int = field(default=0)

    def take(self, form: str) -> int:
        """Take a number."""
        (value,) = struct.unpack_from(form, self.rest, self.at)
        self.at += struct.calcsize(form)
        return int(value)

    def text(self, *, compact: bool = False) -> str:
        """Take a text behind its length, of two bytes or, compact, of seven bits a byte and one more than it is."""
        size = self._compact() - 1 if compact else self.take(">h")
        self.at += size
        return self.rest[self.at - size : self.at].decode()

    def _compact(self) -> int:
        value = shift = 0
        while (septet := self.take(">B")) & 0x80:
            value |= (septet & 0x7F) << shift
            shift += 7
        return value | septet << shift


def _commit(key: bytes | None, value: bytes | None) -> Commit | None:
    """Decode a record of the brokers' memory; None where it is of a group's members, or forgets something."""
    if not key or not value:
        return None
    fields = _Fields(key)
    if fields.take(">h") > 1:  # versions 0 and 1 are places
        return None
    group, _, partition = fields.text(), fields.text(), fields.take(">i")
    fields = _Fields(value)
    version = fields.take(">h")
    offset = fields.take(">q")
    if version >= 3:
        fields.take(">i")  # the leader's epoch
    token = fields.text(compact=version >= 4).partition(" ")[0]
    member, _, transaction = token.rpartition("-")
    return Commit(group, partition, offset, member, transaction)


def _position(settings: KafkaSettings, group: str, partition: int) -> int:
    with closing(KafkaLog(settings, partition)) as log:
        return log.position(GROUPS[group], group) or 0


def _dated(read: Iterable[Entry], partition: int, ends: dict[int, int]) -> Iterator[tuple[int, Record]]:
    """Say when each entry is due: not before those that stand before it."""
    newest_ns, ends[partition] = 0, -1
    for entry in read:
        newest_ns, ends[partition] = max(newest_ns, entry.time_ns), entry.offset
        yield newest_ns, Record(entry.time_ns, entry.key, entry.value, entry.note)
