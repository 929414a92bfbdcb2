"""One source's entries of one batch in, its frames by day and configuration out; and what could not be used, raw.

Everything that is carried from batch to batch is one byte string: the configurations in force. So a batch decodes in
the same way whether the program ran on or was started for it. It opens no file.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from streams.archives import take
from streams.block import FrameBatch
from streams.c37118.configuration import ConfigurationFrame, channel_table, encode_configuration
from streams.c37118.frame import EPOCH, MIN_SIZE, SYNC, FrameType
from streams.c37118.stream import Item, RefusedFrame, StreamParser
from streams.channels import ChannelTable
from streams.errors import FrameError
from streams.log import Entry

log = logging.getLogger(__name__)

_PIECE_BYTES = 1 << 22
_DAY_NS = 86_400_000_000_000
_KINDS = frozenset(FrameType)


@dataclass(frozen=True, slots=True)
class Stream:
    """A stream under one configuration.

    Attributes
    ----------
    kind
        Eight hexadecimal digits that stand for the configuration, its time aside.
    configuration
        Its frames, for an archive's metadata; empty where they cannot be written.
    """

    kind: str
    configuration: bytes


@dataclass(slots=True)
class Decoded:
    """What a source's entries came to.

    Attributes
    ----------
    frames
        By day (days since 1970, UTC) and stream, in order of arrival.
    undecoded
        Raw bytes of frames and entries that could not be used.
    in_force
        Configuration frames to begin the next batch with.
    others
        Header and command frames: looked at, not kept.
    """

    frames: dict[tuple[int, Stream], list[FrameBatch]] = field(default_factory=dict)
    undecoded: list[bytes] = field(default_factory=list)
    in_force: bytes = b""
    others: int = 0


def decode(source: str, entries: Sequence[Entry], in_force: bytes, known: bytes) -> Decoded:
    """Decode a source's entries.

    Parameters
    ----------
    source
        Key of the entries.
    entries
        In order.
    in_force
        Configuration frames that the stream has shown before.
    known
        Configuration frames for streams that have shown none.

    Returns
    -------
    Decoded
        Every frame once: decoded, or raw.
    """
    reading = _Reading(source, in_force, known)
    for piece in _pieces(entries):
        reading.take(piece)
    return reading.finish()


class _Reading:
    """A source on its way through a batch."""

    def __init__(self, source: str, in_force: bytes, known: bytes) -> None:
        self._source = source
        self._known = _configurations(known)
        self._parser = StreamParser(source, np.float64, self._known)
        self._in_force: dict[int, ConfigurationFrame] = {}
        self._streams: dict[int, tuple[ChannelTable, Stream]] = {}  # holds the table, so that its id stays its own
        self._out = Decoded()
        self._sort(self._parser.feed(in_force))

    def take(self, entries: Sequence[Entry]) -> None:
        """Decode some entries; one that is not whole frames is kept raw."""
        whole = [_is_whole(e.value) for e in entries]
        self._out.undecoded += [e.value for e, fits in zip(entries, whole, strict=True) if not fits]
        segments = [(e.time_ns, e.value) for e, fits in zip(entries, whole, strict=True) if fits]
        self._sort(self._parser.feed_segments(segments))

    def finish(self) -> Decoded:
        """Say what it all came to."""
        self._sort(self._parser.finish())
        self._out.in_force = b"".join(_encoded(c) for c in self._in_force.values())
        return self._out

    def _sort(self, items: Sequence[Item]) -> None:
        for item in items:
            match item:
                case FrameBatch():
                    self._file(item)
                case ConfigurationFrame():
                    old = self._in_force.get(item.id_code)
                    if old is None or item.kind is not FrameType.CFG1 or old.kind is FrameType.CFG1:
                        self._in_force[item.id_code] = item
                case RefusedFrame():
                    self._out.undecoded.append(item.frame)
                case _:
                    self._out.others += 1

    def _file(self, batch: FrameBatch) -> None:
        """Part a batch by day."""
        stream = self._stream(batch.table)
        days = batch.time_ns // _DAY_NS
        for day in np.unique(days).tolist():
            rows = days == day
            part = batch if rows.all() else take(batch, rows)
            self._out.frames.setdefault((day, stream), []).append(part)

    def _stream(self, table: ChannelTable) -> Stream:
        """Find the configuration under which the parser decoded; falling back on one puts it in force."""
        found = self._streams.get(id(table))
        if found is None:
            candidates = (*self._in_force.values(), *self._known.values())
            configuration = next(c for c in candidates if channel_table(c, self._source) == table)
            self._in_force.setdefault(configuration.id_code, configuration)
            stateless = replace(configuration, stamp=EPOCH)
            octets = _encoded(stateless)
            kind = hashlib.sha256(octets or repr(stateless).encode()).hexdigest()[:8]
            found = self._streams[id(table)] = table, Stream(kind, octets)
        return found[1]


def _pieces(entries: Sequence[Entry]) -> Iterator[Sequence[Entry]]:
    """Cut entries into runs of some megabytes."""
    start = held = 0
    for i, entry in enumerate(entries):
        held += len(entry.value)
        if held >= _PIECE_BYTES:
            yield entries[start : i + 1]
            start, held = i + 1, 0
    if start < len(entries):
        yield entries[start:]


def _is_whole(value: bytes) -> bool:
    """Tell whether bytes are C37.118 frames from end to end, by their heads; no bytes are none."""
    at, end = 0, len(value)
    while at + MIN_SIZE <= end and value[at] == SYNC and value[at + 1] >> 4 in _KINDS:
        size = value[at + 2] << 8 | value[at + 3]
        if size < MIN_SIZE:
            return False
        at += size
    return at == end > 0


def _configurations(frames: bytes) -> Mapping[int, ConfigurationFrame]:
    """Read configuration frames; a damaged one is as if it were not there."""
    parser = StreamParser()
    items = [*parser.feed(frames), *parser.finish()]
    return {item.id_code: item for item in items if isinstance(item, ConfigurationFrame)}


def _encoded(configuration: ConfigurationFrame) -> bytes:
    """Write a configuration; empty where that cannot be done, which is said."""
    try:
        return b"".join(encode_configuration(configuration))
    except FrameError as error:
        log.warning("a configuration of ID code %d cannot be kept: %s", configuration.id_code, error)
        return b""
