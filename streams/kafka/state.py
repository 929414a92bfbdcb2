"""Pieces of snapshots on a compacted topic of Kafka's.

In: pieces with their keys. Out: the offsets where they stand, and the pieces that stand at some offsets. Which pieces
are a snapshot, and which snapshot counts, is said elsewhere (`streams.kafka.member.Place`); nothing here is valid by
having been written.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

from kafka import KafkaConsumer, KafkaProducer, TopicPartition, errors

from streams.errors import LogError, UnreachableError
from streams.kafka.clients import consumer, discard, producer, translated
from streams.kafka.settings import KafkaSettings

PIECE_BYTES = 1_000_000
"""Of a piece, at most: with its key it passes where a topic takes the usual 1 MiB."""
FLIGHT_BYTES = 4 * PIECE_BYTES
"""Of pieces that were sent and not yet acknowledged."""
RATE_BYTES_S = 12_000_000
"""Written, at most, where nobody is in a hurry: what else this process and the servers do goes on beside it."""
POLL_S = 0.5
NEAR = 16
"""Offsets that are read over rather than sought past."""


class StateTopic:
    """A compacted topic as a store of pieces, by partition, offset and key. It belongs to one thread.

    Every method may raise a `streams.errors.LogError`: `UnreachableError`, `DeniedError` and `LogFullError` are some.

    Parameters
    ----------
    settings
        Of Kafka.
    topic
        Without the prefix: `streams.log.STATE`, for example.
    """

    def __init__(self, settings: KafkaSettings, topic: str) -> None:
        self.settings = settings
        self.topic = settings.topic(topic)
        self._producer: KafkaProducer | None = None

    def put(
        self, partition: int, pieces: Iterable[tuple[str, bytes]], hurry: threading.Event | None = None
    ) -> list[int]:
        """Write pieces; they are safe on return.

        Parameters
        ----------
        partition
            Of the topic.
        pieces
            Keys and values, taken one by one as they are sent. Compaction keeps the newest of a key.
        hurry
            While it is set, as fast as the topic takes it; else at `RATE_BYTES_S` at most.

        Returns
        -------
        list[int]
            Their offsets, in order. Where this raises, some pieces may have been written.

        Raises
        ------
        LogError
            A piece is larger than `PIECE_BYTES`.
        """
        offsets: list[int] = []
        flight: deque[tuple[int, Any]] = deque()
        began_s, sent, flying = time.monotonic(), 0, 0
        hurry = hurry or threading.Event()
        with self._writing(partition) as client:
            for key, value in pieces:
                if len(value) > PIECE_BYTES:
                    raise LogError(f"{self.topic}: piece {key} has {len(value)} bytes: cut it at {PIECE_BYTES}")
                while flight and flying + len(value) > FLIGHT_BYTES:
                    size, future = flight.popleft()
                    offsets.append(self._acknowledged(future))
                    flying -= size
                early_s = began_s + sent / RATE_BYTES_S - time.monotonic()
                if early_s > 0:
                    hurry.wait(early_s)
                flight.append((len(value), client.send(self.topic, value, key.encode(), partition=partition)))
                sent += len(value)
                flying += len(value)
            offsets.extend(self._acknowledged(future) for _, future in flight)
        return offsets

    def drop(self, partition: int, keys: Iterable[str]) -> None:
        """Have compaction forget keys; they are forgotten by `keys` at once.

        Parameters
        ----------
        partition
            Of the topic.
        keys
            Any; one that is not there does no harm.
        """
        with self._writing(partition) as client:
            for future in [client.send(self.topic, None, key.encode(), partition=partition) for key in keys]:
                self._acknowledged(future)

    def get(self, partition: int, offsets: Sequence[int]) -> list[bytes]:
        """Read the pieces that stand at some offsets.

        Parameters
        ----------
        partition
            Of the topic.
        offsets
            As `put` returned them.

        Returns
        -------
        list[bytes]
            One for each offset, in the order of the offsets given.

        Raises
        ------
        LogError
            At an offset nothing stands any more: compaction took it, or nothing was ever there.
        """
        wanted = deque(sorted(set(offsets)))
        found: dict[int, bytes] = {}
        with self._reading(partition) as (client, tp, end):
            if wanted:
                client.seek(tp, wanted[0])
            while wanted:
                records, position = self._fetched(client, tp) if wanted[0] < end else ([], end)
                for record in records:
                    if wanted and record.offset == wanted[0] and record.value is not None:
                        found[wanted.popleft()] = record.value
                    if not wanted or record.offset > wanted[0]:
                        break
                if wanted and (position > wanted[0] or wanted[0] >= end):
                    raise LogError(f"{self.topic} {partition}: nothing stands at {wanted[0]} (any more)")
                if wanted and wanted[0] - position > NEAR:
                    client.seek(tp, wanted[0])
        return [found[offset] for offset in offsets]

    def keys(self, partition: int) -> dict[str, int]:
        """Read which keys there are. This reads the whole partition.

        Parameters
        ----------
        partition
            Of the topic.

        Returns
        -------
        dict[str, int]
            Offset of the newest piece of each.
        """
        newest: dict[str, int] = {}
        with self._reading(partition) as (client, tp, end):
            position = int(client.beginning_offsets([tp])[tp])
            client.seek(tp, position)
            while position < end:
                records, position = self._fetched(client, tp)
                for record in records:
                    key = (record.key or b"").decode(errors="replace")
                    if record.value is None:
                        newest.pop(key, None)
                    else:
                        newest[key] = record.offset
        return newest

    def close(self) -> None:
        """Let go of the topic."""
        if self._producer is not None:
            discard(self._producer)
            self._producer = None

    @contextmanager
    def _writing(self, partition: int) -> Iterator[KafkaProducer]:
        """Lend the producer; after a failure it is of no more use."""
        if self._producer is None:
            self._producer = producer(self.settings)
        try:
            with translated(f"{self.settings.place}: {self.topic} {partition}"):
                yield self._producer
        except BaseException:
            self.close()
            raise

    def _acknowledged(self, future: Any) -> int:
        return int(future.get(self.settings.request_s).offset)

    @contextmanager
    def _reading(self, partition: int) -> Iterator[tuple[KafkaConsumer, TopicPartition, int]]:
        """Lend a consumer, with where the partition ends now."""
        tp = TopicPartition(self.topic, partition)
        with closing(consumer(self.settings)) as client, translated(f"{self.settings.place}: {self.topic} {partition}"):
            client.assign([tp])
            yield client, tp, int(client.end_offsets([tp])[tp])

    def _fetched(self, client: KafkaConsumer, tp: TopicPartition) -> tuple[list[Any], int]:
        """Fetch what comes next, and say where to go on then."""
        deadline_s = time.monotonic() + self.settings.request_s
        before = client.position(tp)
        while time.monotonic() < deadline_s:
            try:
                records = client.poll(round(POLL_S * 1e3)).get(tp, [])
            except errors.OffsetOutOfRangeError as error:
                raise LogError(f"{self.topic} {tp.partition}: nothing stands at {before} any more") from error
            position = int(client.position(tp))
            if records or position != before:
                return records, position
        raise UnreachableError(f"{self.topic} {tp.partition}: no answer within {self.settings.request_s:g} s")
