"""Writes to Kafka as the only one of its name: all or none of each write, and it is known afterwards which.

In: records, and a number for each write. Out: records in their topics, and the number of the newest write that took
place, in one transaction. Whoever wrote under this name before is fenced. It keeps nothing and tries nothing again.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from kafka import KafkaConsumer, KafkaProducer, OffsetAndMetadata, TopicPartition, errors
from kafka.structs import ConsumerGroupMetadata

from streams.errors import UnreachableError
from streams.kafka.clients import consumer, discard, producer, translated
from streams.kafka.lease import Lease
from streams.kafka.log import KafkaLog
from streams.kafka.partitions import partition_of
from streams.kafka.records import entry_of, headers_of
from streams.kafka.settings import KafkaSettings
from streams.log import FRAMES, LEASE, Entry, Record

SLICE_S = 0.25
"""Of a wait for the servers."""
TAIL_FETCH_BYTES = 4 << 20
"""Of one answer for one partition of the tail."""


class SoleWriter:
    """A log in which one process of a name writes, or one of two: `streams.gateway.spill.Target` on Kafka.

    After an error it is of no more use: close it. `write` may be called from another thread than the rest, where both
    do not happen at once.

    Parameters
    ----------
    settings
        Of Kafka.
    name
        Of its transactions and of the group whose offset holds the number of the newest write, without the prefix.
    standby
        Whether there may be another one of the name: the one with the lease writes.
    session_s
        Silence after which the other one gets the lease.
    transaction_s
        After which the servers abort a transaction that was not finished.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        name: str,
        *,
        standby: bool = False,
        session_s: float = 10.0,
        transaction_s: float = 10.0,
    ) -> None:
        self._settings = settings
        self._name = name
        self._transaction_s = transaction_s
        self._log = KafkaLog(settings)
        self._lease = Lease(settings, f"{name}-lease", session_s) if standby else None
        self._place = TopicPartition(settings.topic(LEASE), 0)
        self._reader: KafkaConsumer | None = None
        self._producer: KafkaProducer | None = None

    def held(self) -> bool:
        """Say whether this process is the one that may write.

        Returns
        -------
        bool
            True where no other may be there.
        """
        return self._lease is None or self._lease.held()

    def place(self) -> tuple[int, int]:
        """Say which write of the name was the newest, whoever did it.

        Returns
        -------
        tuple[int, int]
            Its number, and the arrival of its newest record; zeros where there was none, or none for so long that the
            servers have forgotten it (a week, as a rule).
        """
        with translated(f"{self._settings.place}: the newest write of group {self._settings.prefix}{self._name}"):
            if self._reader is None:
                self._reader = consumer(self._settings, group=self._name)
            found = self._reader.committed(self._place, metadata=True, timeout_ms=round(self._settings.request_s * 1e3))
        return (int(found.offset), int(found.metadata)) if found is not None and found.metadata else (0, 0)

    def settle(self) -> tuple[int, int]:
        """Fence whoever wrote under this name, end what was unfinished, and say which write was the newest.

        Returns
        -------
        tuple[int, int]
            As `place`; it stays so until `write`.
        """
        with translated(f"{self._settings.place}: transactional id {self._settings.prefix}{self._name}"):
            if self._producer is None:
                self._producer = producer(
                    self._settings, transactional_id=self._name, transaction_s=self._transaction_s, linger_ms=0
                )
                self._producer.init_transactions()
        return self.place()

    def write(self, records: Sequence[tuple[str, Record]], number: int) -> None:
        """Write records, all or none; after `settle`.

        Where it fails nobody knows whether they were written, until somebody of the name settles that.

        Parameters
        ----------
        records
            Each with its topic, in order; at least one.
        number
            Of this write.

        Raises
        ------
        UnreachableError
            Not settled, or no answer in time.
        """
        if self._producer is None:
            raise UnreachableError(f"{self._settings.prefix}{self._name}: not settled yet")
        covered_ns = max(record.time_ns for _, record in records)
        partitions = {topic: self._log.partitions(topic) for topic in {topic for topic, _ in records}}
        with translated(f"{self._settings.place}: transactional id {self._settings.prefix}{self._name}"):
            self._transact(self._producer, records, partitions, OffsetAndMetadata(number, str(covered_ns), -1))

    def tail(self, keys: Collection[str], since_ns: int) -> Iterable[Entry]:
        """Read the end of `FRAMES`, of the partitions of some connections.

        Parameters
        ----------
        keys
            Of the connections.
        since_ns
            Everything that was written after this time is read, at least; what came after it was.

        Returns
        -------
        Iterable[Entry]
            In the order of each partition; those of other connections too.
        """
        partitions = self._log.partitions(FRAMES)
        wanted = {partition_of(key, partitions, self._settings.regions) for key in keys}
        return self._read([TopicPartition(self._settings.topic(FRAMES), n) for n in sorted(wanted)], since_ns)

    def latest(self, topic: str) -> Mapping[str, Entry]:
        """Read the newest entry of each key of a compacted topic.

        Parameters
        ----------
        topic
            Which.

        Returns
        -------
        Mapping[str, Entry]
            By key.
        """
        return self._log.latest(topic)

    def close(self) -> None:
        """Let go of the lease and of all connections."""
        if self._producer is not None:
            discard(self._producer)
            self._producer = None
        if self._lease is not None:
            self._lease.close()
        if self._reader is not None:
            with suppress(errors.KafkaError, OSError):
                self._reader.close(autocommit=False, timeout_ms=1000)
            self._reader = None
        self._log.close()

    def _transact(
        self,
        client: KafkaProducer,
        records: Sequence[tuple[str, Record]],
        partitions: Mapping[str, int],
        place: OffsetAndMetadata,
    ) -> None:
        """One transaction. Every acknowledgement is waited for: a commit can hide that a batch has failed."""
        deadline_s = time.monotonic() + min(self._settings.request_s, self._transaction_s)
        transactions = client._transaction_manager  # noqa: SLF001 - the public methods wait forever
        client.begin_transaction()
        nobody = ConsumerGroupMetadata(group_id=self._settings.prefix + self._name)
        placed = transactions.send_offsets_to_transaction({self._place: place}, nobody)
        futures = [
            client.send(
                self._settings.topic(topic),
                record.value,
                record.key.encode(),
                headers_of(record.time_ns, record.note),
                partition_of(record.key, partitions[topic], self._settings.regions),
            )
            for topic, record in records
        ]
        try:
            _await(client, placed, deadline_s)
            for future in futures:
                future.get(max(deadline_s - time.monotonic(), 0.0))
            _await(client, transactions.begin_commit(), deadline_s)
        except errors.KafkaError as error:
            if type(error) is errors.KafkaError:  # "because we are in an error state": it is said nowhere else in which
                raise transactions.last_error or error from error
            raise

    def _read(self, tps: Sequence[TopicPartition], since_ns: int) -> Iterator[Entry]:
        request_ms = round(self._settings.request_s * 1e3)
        with translated(f"{self._settings.place}: reading the end of {self._settings.topic(FRAMES)}"):
            client = consumer(self._settings, fetch_bytes=TAIL_FETCH_BYTES)
            try:
                client.assign(list(tps))
                ends: dict[TopicPartition, int] = client.end_offsets(list(tps), timeout_ms=request_ms)
                found: dict[TopicPartition, Any] = client.offsets_for_times(
                    dict.fromkeys(tps, since_ns // 1_000_000), timeout_ms=request_ms
                )
                for tp in tps:
                    client.seek(tp, found[tp].offset if found.get(tp) else ends[tp])
                silent_s = time.monotonic()
                while any(int(client.position(tp)) < end for tp, end in ends.items()):
                    fetched = client.poll(round(SLICE_S * 1e3))
                    for batch in fetched.values():
                        yield from map(entry_of, batch)
                    if fetched:
                        silent_s = time.monotonic()
                    elif time.monotonic() - silent_s > self._settings.request_s:
                        raise UnreachableError("the end of the log cannot be read: no answer")
            finally:
                client.close(autocommit=False)


def _await(client: KafkaProducer, result: Any, deadline_s: float) -> None:
    client._sender.wakeup()  # noqa: SLF001 - as the public methods do
    while not result.wait(round(SLICE_S * 1e3)):
        if time.monotonic() >= deadline_s:
            raise errors.KafkaTimeoutError("the servers do not answer")
