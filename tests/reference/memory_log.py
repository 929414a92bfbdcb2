"""The log port on lists: slow, obvious, and full or out of order whenever a test says so."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from streams.errors import LogError, LogFullError
from streams.log import READ_BYTES, Entry, Extent, Reading, Record, Retention


class MemoryLog:
    """Keeps all; any thread may write and read."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._topics: dict[str, list[Record]] = {}
        self._positions: dict[tuple[str, str], int] = {}
        self.full = False
        self.broken = False
        self.closed = 0

    def append(self, topic: str, records: Sequence[Record]) -> int:
        with self._lock:
            if self.full:
                raise LogFullError("the log is full: the test says so")
            if self.broken:
                raise LogError("the log is broken: the test says so")
            kept = self._topics.setdefault(topic, [])
            kept += records
            return len(kept)

    def read(self, topic: str, offset: int, limit: int = READ_BYTES) -> Reading:
        entries: list[Entry] = []
        with self._lock:
            for place, record in enumerate(self._topics.get(topic, [])[offset:], offset):
                if limit <= 0:
                    break
                entries.append(Entry(place, *record))
                limit -= len(record.value)
        return Reading(entries, offset + len(entries))

    def latest(self, topic: str) -> dict[str, Entry]:
        return {entry.key: entry for entry in self.read(topic, 0, 1 << 40).entries}

    def extent(self, topic: str) -> Extent:
        kept = self.records(topic)
        times = [record.time_ns for record in kept] or [0]
        return Extent(0, len(kept), len(kept), sum(len(r.value) for r in kept), min(times), max(times))

    def commit(self, topic: str, reader: str, offset: int) -> None:
        self._positions[topic, reader] = offset

    def position(self, topic: str, reader: str) -> int | None:
        return self._positions.get((topic, reader))

    def retain(self, topic: str, retention: Retention) -> int:
        raise NotImplementedError

    def close(self) -> None:
        self.closed += 1

    def records(self, topic: str, key: str | None = None) -> list[Record]:
        """All of a topic, or those of one key."""
        with self._lock:
            return [r for r in self._topics.get(topic, []) if key in (None, r.key)]

    def bytes(self, topic: str, key: str) -> bytes:
        """The values of one key, one after another."""
        return b"".join(record.value for record in self.records(topic, key))
