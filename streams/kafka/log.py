"""The log port on Kafka: one partition of each topic to read, all of them to write.

In: records by `append`, to the partition of their region. Out: entries of one partition by offset; where a transaction
ended, was aborted or compaction took something, offsets are left out. Time stands in a header, so that retention goes
by when a record was written. It makes no topics, and retention is the brokers'.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, OffsetAndMetadata, TopicPartition, errors
from kafka.admin import OffsetSpec
from kafka.protocol.consumer import IsolationLevel

from streams.errors import LogError
from streams.kafka.clients import RETRY_S, admin, consumer, discard, producer, translated
from streams.kafka.partitions import partition_of
from streams.kafka.records import entry_of, headers_of
from streams.kafka.settings import KafkaSettings
from streams.log import (
    CONFIGURATIONS,
    JOIN_STATE,
    READ_BYTES,
    STATE,
    STATUS,
    Entry,
    Extent,
    Lost,
    Reading,
    Record,
    Retention,
)

COMPACTED = frozenset({CONFIGURATIONS, JOIN_STATE, STATE, STATUS})
"""Topics that keep the newest record of each key, whatever its age."""
FLIGHT_BYTES = 16 << 20
"""Of values that were sent and are not acknowledged yet."""
WAIT_S = 0.05
"""How long a server holds an answer back where there is nothing: a reader that turns elsewhere waits for it."""
PAUSE_S = 0.1
"""Before a server that was not ready is asked again."""
NEAR = 64
"""Entries at the end that are looked at together."""

_T = TypeVar("_T")


@dataclass(slots=True)
class _Feed:
    """A partition that is read on: what was fetched and not returned yet, and the offset to go on from."""

    client: KafkaConsumer
    tp: TopicPartition
    next: int = -1
    fetched: deque[Any] = field(default_factory=deque)


@dataclass(slots=True)
class _Table:
    """A compacted topic as it was when it was last looked at; its partitions are read on from there."""

    client: KafkaConsumer
    tps: list[TopicPartition]
    newest: dict[str, Entry] = field(default_factory=dict)


@dataclass(slots=True)
class _Edges:
    """What stands at the two ends of a partition, and between which offsets."""

    first: int = -1
    next: int = -1
    oldest: Entry | None = None
    newest: Entry | None = None
    seen: int = 0
    """Entries that were looked at so far."""
    size: int = 0
    """Bytes of their values."""


class KafkaLog:
    """Topics of Kafka as a log. It belongs to one thread; any number of processes read and write the same topics.

    It connects when it is first used. After an error it has let go of its connections, and the next call makes new
    ones. Where an append fails, a part of its records may have been written, or be written yet: who tries again may
    write twice. A record whose key was removed from a compacted topic is read as an empty one.

    Parameters
    ----------
    settings
        Of Kafka.
    partition
        Which is read, and whose positions are committed.
    """

    def __init__(self, settings: KafkaSettings, partition: int = 0) -> None:
        self.settings = settings
        self.partition = partition
        self._producer: KafkaProducer | None = None
        self._admin: KafkaAdminClient | None = None
        self._peeker: KafkaConsumer | None = None
        self._feeds: dict[str, _Feed] = {}
        self._tables: dict[str, _Table] = {}
        self._edges: dict[str, _Edges] = {}
        self._partitions: dict[str, int] = {}

    def partitions(self, topic: str) -> int:
        """Say how many partitions a topic has.

        Parameters
        ----------
        topic
            Without the prefix.

        Returns
        -------
        int
            As it was when this was first asked; they do not change while the log is used.
        """
        if topic not in self._partitions:
            with self._doing(f"looking for {self.settings.topic(topic)}"):
                (told,) = self._asked(lambda client: client.describe_topics([self.settings.topic(topic)]))
                _check([errors.for_code(told["error_code"])])
                self._partitions[topic] = len(told["partitions"])
        return self._partitions[topic]

    def append(self, topic: str, records: Sequence[Record]) -> int:
        """Write records, each to the partition of its region; see `streams.log.Log`."""
        partitions = self.partitions(topic)
        last: dict[int, Any] = {}
        with self._doing(f"writing to {self.settings.topic(topic)}"):
            if self._producer is None:
                self._producer = producer(self.settings)
            flight: deque[tuple[int, Any]] = deque()
            flying = 0
            for record in records:
                partition = partition_of(record.key, partitions, self.settings.regions)
                sent = self._producer.send(
                    self.settings.topic(topic),
                    record.value,
                    record.key.encode(),
                    headers_of(record.time_ns, record.note),
                    partition,
                )
                last[partition] = sent
                flight.append((len(record.value), sent))
                flying += len(record.value)
                while flying > FLIGHT_BYTES:
                    size, future = flight.popleft()
                    self._acknowledged(future)
                    flying -= size
            for _, future in flight:
                self._acknowledged(future)
        if self.partition in last:
            return int(last[self.partition].value.offset) + 1
        return self._bound(topic, OffsetSpec.LATEST)

    def read(self, topic: str, offset: int, limit: int = READ_BYTES) -> Reading:
        """Read what stands at an offset and after it; see `streams.log.Log`."""
        lost: tuple[Lost, ...] = ()
        entries: list[Entry] = []
        with self._doing(f"reading {self.settings.topic(topic)} {self.partition}"):
            feed = self._feed(topic)
            if offset != feed.next:
                lost = self._turn(topic, feed, offset)
            try:
                self._fill(topic, feed)
            except errors.OffsetOutOfRangeError:
                lost = self._turn(topic, feed, offset)
                self._fill(topic, feed)
            size = 0
            while feed.fetched and (size < limit or not entries):
                entries.append(entry_of(feed.fetched.popleft()))
                size += len(entries[-1].value)
            feed.next = entries[-1].offset + 1 if feed.fetched else int(feed.client.position(feed.tp))
            return Reading(entries, feed.next, lost)

    def latest(self, topic: str) -> dict[str, Entry]:
        """Read the newest entry of each key, over all partitions; see `streams.log.Log`."""
        partitions = self.partitions(topic)
        with self._doing(f"reading {self.settings.topic(topic)}"):
            if topic not in self._tables:
                client = consumer(self.settings, wait_s=WAIT_S)
                tps = [TopicPartition(self.settings.topic(topic), n) for n in range(partitions)]
                self._tables[topic] = _Table(client, tps)
                client.assign(tps)
                for tp in tps:
                    client.seek(tp, self._bound(topic, OffsetSpec.EARLIEST, tp.partition))
            table = self._tables[topic]
            ends = {tp: self._bound(topic, OffsetSpec.LATEST, tp.partition) for tp in table.tps}
            clock = _Patience(self.settings.request_s)
            while any(table.client.position(tp) < end for tp, end in ends.items()):
                fetched = table.client.poll(_ms(WAIT_S))
                clock.check(came=bool(fetched))
                for record in (record for records in fetched.values() for record in records):
                    entry = entry_of(record)
                    if record.value is None:
                        table.newest.pop(entry.key, None)
                    else:
                        table.newest[entry.key] = entry
            return dict(table.newest)

    def extent(self, topic: str) -> Extent:
        """Say what a partition holds; see `streams.log.Log`.

        Parameters
        ----------
        topic
            Without the prefix.

        Returns
        -------
        Extent
            `records` counts offsets, of which some may be left out; `size` is that many times the mean size of the
            newest entries.
        """
        first, end = self._bound(topic, OffsetSpec.EARLIEST), self._bound(topic, OffsetSpec.LATEST)
        known = self._edges.setdefault(topic, _Edges())
        with self._doing(f"reading {self.settings.topic(topic)} {self.partition}"):
            if first != known.first or not known.oldest:
                known.first, known.oldest = first, next(iter(self._peek(topic, first, end)), None)
            if end != known.next:
                newest = self._newest(topic, first, end)
                known.next, known.newest = end, newest[-1] if newest else None
                known.seen += len(newest)
                known.size += sum(len(entry.value) for entry in newest)
        if not (known.oldest and known.newest):
            return Extent(first, end, 0, 0, 0, 0)
        size = round((end - first) * known.size / known.seen)
        return Extent(first, end, end - first, size, known.oldest.time_ns, known.newest.time_ns)

    def commit(self, topic: str, reader: str, offset: int) -> None:
        """Remember how far a reader has come, as a group's offset of the partition; see `streams.log.Log`."""
        tp = TopicPartition(self.settings.topic(topic), self.partition)
        group, place = self.settings.prefix + reader, {tp: OffsetAndMetadata(offset, "", -1)}
        with self._doing(f"committing for {group}"):
            self._asked(lambda client: _check(client.alter_group_offsets(group, place).values()))

    def position(self, topic: str, reader: str) -> int | None:
        """Say how far a reader has come, as a group's offset of the partition; see `streams.log.Log`."""
        group, tp = self.settings.prefix + reader, TopicPartition(self.settings.topic(topic), self.partition)
        with self._doing(f"looking where {group} is"):
            place = self._asked(lambda client: client.list_group_offsets({group: [tp]}))[group].get(tp)
        return int(place.offset) if place is not None and place.offset >= 0 else None

    def ends(self, topic: str) -> dict[int, int]:
        """Say where the partitions of a topic end.

        Parameters
        ----------
        topic
            Without the prefix.

        Returns
        -------
        dict[int, int]
            By partition, of those that hold something: the offset after what is committed.
        """
        tps = [TopicPartition(self.settings.topic(topic), n) for n in range(self.partitions(topic))]
        with self._doing(f"looking where {self.settings.topic(topic)} ends"):
            first, end = (
                self._asked(partial(_offsets, dict.fromkeys(tps, which)))
                for which in (OffsetSpec.EARLIEST, OffsetSpec.LATEST)
            )
        return {tp.partition: end[tp] for tp in tps if first[tp] < end[tp]}

    def positions(self, topic: str, reader: str) -> dict[int, int]:
        """Say how far a reader has come in the partitions of a topic.

        Parameters
        ----------
        topic
            Without the prefix.
        reader
            Its name: a group, without the prefix.

        Returns
        -------
        dict[int, int]
            By partition, of those in which it ever committed.
        """
        group = self.settings.prefix + reader
        tps = [TopicPartition(self.settings.topic(topic), n) for n in range(self.partitions(topic))]
        with self._doing(f"looking where {group} is"):
            places = self._asked(lambda client: client.list_group_offsets({group: tps}))[group]
        return {tp.partition: int(place.offset) for tp, place in places.items() if place.offset >= 0}

    def retain(self, topic: str, retention: Retention) -> int:
        """Leave it to the brokers, which keep of a topic what its settings say.

        Parameters
        ----------
        topic
            Any that is not compacted.
        retention
            Not looked at: `gridsense topics` writes it into the topic's settings.

        Returns
        -------
        int
            0.

        Raises
        ------
        LogError
            The topic is compacted.
        """
        del retention
        if topic in COMPACTED:
            raise LogError(f"{self.settings.topic(topic)} is compacted: it has no retention")
        return 0

    def close(self) -> None:
        """Let go of all connections; see `streams.log.Log`."""
        if self._producer is not None:
            discard(self._producer)
        clients = [feed.client for feed in self._feeds.values()] + [table.client for table in self._tables.values()]
        for client in (*clients, self._peeker, self._admin):
            if client is not None:
                with suppress(errors.KafkaError, OSError):
                    client.close()
        self._producer = self._peeker = self._admin = None
        self._feeds.clear()
        self._tables.clear()
        self._edges.clear()
        self._partitions.clear()

    @contextmanager
    def _doing(self, what: str) -> Iterator[None]:
        """Translate errors, and begin anew after one."""
        try:
            with translated(f"{self.settings.place}: {what}"):
                yield
        except LogError:
            self.close()
            raise

    def _asked(self, ask: Callable[[KafkaAdminClient], _T]) -> _T:
        """Ask the servers, again where the one that knows is not ready yet."""
        deadline_s = time.monotonic() + self.settings.request_s
        while True:
            try:
                if self._admin is None:
                    self._admin = admin(self.settings)
                return ask(self._admin)
            except errors.UnknownTopicOrPartitionError:
                raise
            except errors.RetriableError:
                if time.monotonic() > deadline_s:
                    raise
                time.sleep(PAUSE_S)

    def _acknowledged(self, future: Any) -> None:
        """Wait for an acknowledgement; the producer gives up before we do."""
        future.get(self.settings.request_s * (RETRY_S + 1))

    def _bound(self, topic: str, which: OffsetSpec, partition: int | None = None) -> int:
        """Ask where a partition begins, or where what is committed ends."""
        self.partitions(topic)  # who may not look at it is told so here alone
        tp = TopicPartition(self.settings.topic(topic), self.partition if partition is None else partition)
        with self._doing(f"looking at {tp.topic} {tp.partition}"):
            return self._asked(partial(_offsets, {tp: which}))[tp]

    def _feed(self, topic: str) -> _Feed:
        if topic not in self._feeds:
            feed = _Feed(
                consumer(self.settings, wait_s=WAIT_S), TopicPartition(self.settings.topic(topic), self.partition)
            )
            self._feeds[topic] = feed
            feed.client.assign([feed.tp])
        return self._feeds[topic]

    def _turn(self, topic: str, feed: _Feed, offset: int) -> tuple[Lost, ...]:
        """Go on elsewhere, or where the partition begins now; say what is missing before that."""
        end = self._bound(topic, OffsetSpec.LATEST)
        if offset > end:
            raise LogError(
                f"{feed.tp.topic} {feed.tp.partition} ends at {end}, and {offset} was to be read: the topic is another"
                " one; begin anew at 0"
            )
        first = self._bound(topic, OffsetSpec.EARLIEST)
        feed.next = max(offset, first)
        feed.fetched.clear()
        feed.client.seek(feed.tp, feed.next)
        return (Lost(offset, first - 1, "expired"),) if offset < first and topic not in COMPACTED else ()

    def _fill(self, topic: str, feed: _Feed) -> None:
        """Fetch what comes next, if anything is there."""
        if not feed.fetched:
            feed.fetched.extend(feed.client.poll(0).get(feed.tp, ()))
        if feed.fetched:
            return
        end, clock = self._bound(topic, OffsetSpec.LATEST), _Patience(self.settings.request_s)
        while not feed.fetched and int(feed.client.position(feed.tp)) < end:
            feed.fetched.extend(feed.client.poll(_ms(WAIT_S)).get(feed.tp, ()))
            clock.check(came=bool(feed.fetched))

    def _newest(self, topic: str, first: int, end: int) -> list[Entry]:
        """Read the last entries of a partition; what stands at its very end may be no entry."""
        newest, start, back = list[Entry](), end, 1
        while not newest and start > first:
            start = max(end - back, first)
            newest = more = self._peek(topic, start, end)
            while more and more[-1].offset + 1 < end:
                newest, more = more, self._peek(topic, more[-1].offset + 1, end)
            newest = more or newest
            back *= NEAR
        return newest

    def _peek(self, topic: str, offset: int, end: int) -> list[Entry]:
        """Read the first entries from an offset on, apart from where `read` is."""
        tp = TopicPartition(self.settings.topic(topic), self.partition)
        if self._peeker is None:
            self._peeker = consumer(self.settings, records=NEAR, fetch_bytes=1 << 16, wait_s=0.0)
        self._peeker.assign([tp])
        self._peeker.seek(tp, offset)
        clock = _Patience(self.settings.request_s)
        while int(self._peeker.position(tp)) < end:
            fetched = self._peeker.poll(_ms(WAIT_S)).get(tp, ())
            if entries := [entry_of(record) for record in fetched if record.offset < end]:
                return entries
            clock.check(came=bool(fetched))
        return []


class _Patience:
    """A wait that goes on while something comes."""

    def __init__(self, request_s: float) -> None:
        self._request_s = request_s
        self._deadline_s = time.monotonic() + request_s

    def check(self, *, came: bool) -> None:
        """Give up where nothing has come for too long."""
        if came:
            self._deadline_s = time.monotonic() + self._request_s
        elif time.monotonic() > self._deadline_s:
            raise errors.KafkaTimeoutError(f"nothing came for {self._request_s:g} s")


def _check(told: Iterable[type[errors.KafkaError]]) -> None:
    for kind in told:
        if kind is not errors.NoError:
            raise kind


def _ms(time_s: float) -> int:
    return round(time_s * 1e3)


def _offsets(wanted: Mapping[TopicPartition, OffsetSpec], client: KafkaAdminClient) -> dict[TopicPartition, int]:
    found = client.list_partition_offsets(dict(wanted), IsolationLevel.READ_COMMITTED)
    return {tp: int(one.offset) for tp, one in found.items()}
