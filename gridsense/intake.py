"""Entries of the log in, turns for the pipeline out: decoded, in order, and the same however they were read.

The log is the only clock: wall-clock time passes when a mark says so, and a source that is new, or whose
configuration has changed, joins at a moment that the entries' own times name. So whoever reads the same entries again,
in pieces of any size, feeds the same to the pipeline. It judges nothing.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass

import msgspec

from gridsense.errors import StoreError
from streams.block import FrameBatch
from streams.c37118.configuration import ConfigurationFrame, encode_configuration
from streams.c37118.stream import Item, RefusedFrame, StreamParser
from streams.channels import ChannelTable
from streams.log import Entry, is_mark

log = logging.getLogger(__name__)

JOIN_NS = 500_000_000
"""How long sources that are new gather before they join together: each joining lays everything out anew. Shorter than
the lateness, so that a source that only changed its configuration misses nothing."""

SILENT_NS = 1_000_000_000
"""Nothing of use having come for so long, records that cannot be used say at least what time it is."""

_SILENT_FRAMES = 3
"""It is no silence before so many frames are missing."""

_HEAD_BYTES = 6
"""Of a data frame: sync word, size and ID code."""

KEYS_MOST = 10_000
"""Connections at most: whoever may write into the log could name any number."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What the pipeline is fed at once.

    Attributes
    ----------
    batches
        Stream and frames.
    now_ns
        What time it is, where the log says so; else None.
    """

    batches: list[tuple[str, FrameBatch]]
    now_ns: int | None = None


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A frame that could not be used.

    Attributes
    ----------
    time_ns
        About when it came.
    key
        Connection.
    reason
        A `streams.c37118.stream.Refusal`, ``rate``, ``no_pmu``, ``garbage`` or ``empty``; ``key`` or ``region`` where
        there are too many; ``pipeline`` where that could not take it.
    frame
        Its bytes.
    detail
        For people.
    """

    time_ns: int
    key: str
    reason: str
    frame: bytes
    detail: str


class _Memory(msgspec.Struct):
    """What an intake remembers."""

    clock_ns: int
    rate_hz: float
    configurations: dict[str, dict[int, bytes]]
    joined: list[str]
    came_ns: int


class Intake:
    """Decodes the entries of a log.

    Parameters
    ----------
    configured
        Asked for the configuration frames of a connection whose data come before its configuration: from the compacted
        topic. Empty where there is none.

    Attributes
    ----------
    clock_ns
        What time it is by the entries.
    frames, bytes
        Data frames decoded and bytes taken in, by connection.
    newest_ns
        When the newest entry of each connection came.
    dropped
        By connection and reason: frames that could not be used.
    dead
        The same frames, until somebody takes them away.
    """

    def __init__(self, configured: Callable[[str], bytes] = lambda _: b"") -> None:
        self._configured = configured
        self.clock_ns = 0
        self.frames: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.newest_ns: dict[str, int] = {}
        self.dead: list[DeadLetter] = []
        self.dropped: dict[str, Counter[str]] = {}
        self._rate_hz = 0.0
        self._parsers: dict[str, StreamParser] = {}
        self._configurations: dict[str, dict[int, bytes]] = {}
        self._tables: dict[str, ChannelTable | None] = {}
        self._plain: dict[str, set[bytes]] = {}
        self._segments: dict[str, list[tuple[int, bytes]]] = {}
        self._batches: list[tuple[str, FrameBatch]] = []
        self._joining: list[tuple[str, FrameBatch]] = []
        self._waiting: set[str] = set()
        self._join_ns = 0
        self._came_ns = 0
        self._misfits: set[str] = set()

    def take(self, entries: Sequence[Entry]) -> Iterator[Turn]:
        """Take entries in.

        Parameters
        ----------
        entries
            In the order of the log, following those before.

        Yields
        ------
        Turn
            For the pipeline.
        """
        for entry in entries:
            # Rising with every entry, whatever the writers' clocks said: the order of arrival is the order of the log.
            self.clock_ns = max(self.clock_ns + 1, entry.time_ns)
            if self._joining and self.clock_ns >= self._join_ns:
                yield from self._joined()
            key = entry.key
            if is_mark(key, entry.value):
                yield from self._ready()
                self._came_ns = self.clock_ns
                yield Turn([], self.clock_ns)
                continue
            if not entry.value:
                self._drop(DeadLetter(self.clock_ns, key, "empty", b"", "there is nothing in it"))
                yield from self._passed()
                continue
            if key not in self._parsers and len(self._parsers) >= KEYS_MOST:
                detail = f"there are {KEYS_MOST} connections already, and {key!r} is none of them"
                self._drop(DeadLetter(self.clock_ns, "", "key", entry.value, detail))
                yield from self._passed()
                continue
            self.bytes[key] += len(entry.value)
            self.newest_ns[key] = self.clock_ns
            # Only plain data may wait and be decoded with what follows: the rest decides who joins when, and what a
            # damaged record leaves over is no part of the next.
            if _is_plain(entry.value, self._plain.get(key, frozenset())):
                self._segments.setdefault(key, []).append((self.clock_ns, entry.value))
                continue
            self._decode(key, self._segments.pop(key, []))
            self._decode(key, [(self.clock_ns, entry.value)])
            yield from self._passed()
        yield from self._ready()

    def finish(self) -> Iterator[Turn]:
        """Let everybody join who waits: no more entries will come.

        Yields
        ------
        Turn
            For the pipeline.
        """
        if self._joining:
            yield from self._joined()

    @property
    def rate_hz(self) -> float:
        """Reporting rate of all, frames a second; 0 before the first frame."""
        return self._rate_hz

    @property
    def settled(self) -> bool:
        """Nobody waits to join: what is remembered can be taken down."""
        return not self._joining

    def freeze(self) -> bytes:
        """Take down what is remembered.

        Returns
        -------
        bytes
            For `thaw`.

        Raises
        ------
        ValueError
            If somebody waits to join.
        """
        if not self.settled:
            raise ValueError("sources wait to join; take the intake down when it is settled")
        joined = [name for name, table in self._tables.items() if table is not None]
        # Those too of which no configuration is known: nobody is asked for it a second time.
        configurations = {key: self._configurations.get(key, {}) for key in self._parsers}
        return msgspec.msgpack.encode(_Memory(self.clock_ns, self._rate_hz, configurations, joined, self._came_ns))

    def thaw(self, frozen: bytes, tables: dict[str, ChannelTable]) -> None:
        """Go on from what was taken down.

        Parameters
        ----------
        frozen
            From `freeze`.
        tables
            Of the streams that have joined, as the pipeline has them.

        Raises
        ------
        StoreError
            If it was written by another version, or is damaged.
        """
        try:
            memory = msgspec.msgpack.decode(frozen, type=_Memory)
        except msgspec.MsgspecError as error:
            raise StoreError(f"the snapshot of the connections cannot be read: {error}") from error
        self.clock_ns, self._rate_hz, self._came_ns = memory.clock_ns, memory.rate_hz, memory.came_ns
        self._configurations = memory.configurations
        for key, frames in memory.configurations.items():
            self._parsers[key] = parser = StreamParser(key)
            parser.feed(b"".join(frames.values()))
        self._tables = {name: tables.get(name) for name in memory.joined}

    def _ready(self) -> Iterator[Turn]:
        """Decode what has waited, and give out what is there."""
        waiting, self._segments = self._segments, {}
        for key, segments in waiting.items():
            self._decode(key, segments)
        if self._batches:
            batches, self._batches = self._batches, []
            yield Turn(batches)

    def _passed(self) -> Iterator[Turn]:
        """Say what time it is where records come, and for long none that can be used: then nobody marks it."""
        silent_ns = max(SILENT_NS, round(_SILENT_FRAMES * 1e9 / (self._rate_hz or _SILENT_FRAMES)))
        if self.clock_ns - self._came_ns < silent_ns:
            return
        yield from self._ready()  # what waits is newer
        if self.clock_ns - self._came_ns >= silent_ns:
            self._came_ns = self.clock_ns
            yield Turn([], self.clock_ns)

    def _joined(self) -> Iterator[Turn]:
        """Let those who wait join, after what came from the others until now."""
        yield from self._ready()
        joining, self._joining = self._joining, []
        self._waiting.clear()
        for name, batch in joining:
            self._tables[name] = batch.table
        yield Turn(joining)

    def _decode(self, key: str, segments: Sequence[tuple[int, bytes]]) -> None:
        """Decode one record, or plain ones that have waited."""
        if not segments:
            return
        time_ns, value = segments[-1]
        parser = self._parsers.get(key)
        if parser is None:
            parser = self._parsers[key] = StreamParser(key)
            self._note(key, parser, parser.feed(self._configured(key)), time_ns)
        skipped = parser.counts.bytes_skipped
        items = parser.feed_segments(segments) + parser.finish()
        refused = any(isinstance(item, RefusedFrame) for item in items)
        if refused and len(segments) > 1:
            # Once more, one by one: so each is refused at its own time.
            for segment in segments:
                self._decode(key, [segment])
            return
        if parser.counts.bytes_skipped > skipped and not refused:
            self._drop(DeadLetter(time_ns, key, "garbage", value, "bytes that belong to no frame"))
        self._note(key, parser, items, time_ns)
        placed = [self._place(key, item) for item in items if isinstance(item, FrameBatch)]
        if placed == [True] and len(items) == 1 and _is_plain(value, {value[:_HEAD_BYTES]}):
            self._plain.setdefault(key, set()).add(value[:_HEAD_BYTES])

    def _note(self, key: str, parser: StreamParser, items: list[Item], time_ns: int) -> None:
        """Remember configurations, and what could not be used."""
        for item in items:
            if isinstance(item, RefusedFrame):
                self._drop(DeadLetter(time_ns, key, item.reason, item.frame, item.detail))
        if any(isinstance(item, ConfigurationFrame) for item in items):
            self._plain.pop(key, None)
            self._configurations[key] = {
                code: b"".join(encode_configuration(one)) for code, one in parser.configurations().items()
            }

    def _place(self, key: str, batch: FrameBatch) -> bool:
        """Give a batch out, or let it wait until its stream has joined; say whether it was given out."""
        if not batch.table.pmus:
            for arrival_ns in batch.arrival_ns.tolist():
                self._drop(DeadLetter(arrival_ns, key, "no_pmu", b"", "its configuration names no PMU"))
            return False
        name = f"{key}#{batch.table.pmus[0].id_code}"
        self._rate_hz = self._rate_hz or batch.rate_hz
        if batch.rate_hz != self._rate_hz:
            self._refuse(key, name, batch)
            return False
        self.frames[key] += len(batch.time_ns)
        self._came_ns = max(self._came_ns, int(batch.arrival_ns[-1]))
        table = self._tables.get(name)
        if name in self._waiting or (table is not batch.table and table != batch.table):
            if not self._joining:
                self._join_ns = int(batch.arrival_ns[0]) + JOIN_NS
            self._joining.append((name, batch))
            self._waiting.add(name)
            self._plain.pop(key, None)
            return False
        self._tables[name] = batch.table
        self._batches.append((name, batch))
        return True

    def _refuse(self, key: str, name: str, batch: FrameBatch) -> None:
        """Count the frames of a stream at another rate."""
        detail = f"{name} reports at {batch.rate_hz:g} Hz, the others at {self._rate_hz:g} Hz"
        if name not in self._misfits:
            log.error("%s: its frames are refused; set its device to that rate, or run it by itself", detail)
            self._misfits.add(name)
        for arrival_ns in batch.arrival_ns.tolist():
            self._drop(DeadLetter(arrival_ns, key, "rate", b"", detail))

    def _drop(self, letter: DeadLetter) -> None:
        """Count a frame that cannot be used, and keep it for whoever puts it aside."""
        self.dropped.setdefault(letter.key, Counter())[letter.reason] += 1
        self.dead.append(letter)


def _is_plain(value: bytes, heads: Container[bytes]) -> bool:
    """Tell whole data frames one after another, with one of these heads."""
    head = value[:_HEAD_BYTES]
    if head not in heads:
        return False
    size = int.from_bytes(head[2:4], "big")
    if len(value) == size:
        return True
    return len(value) % size == 0 and all(value.startswith(head, at) for at in range(size, len(value), size))
