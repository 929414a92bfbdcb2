"""Bytes as a connection delivers them in, whole frames out.

In: pieces of a byte stream, cut anywhere, damaged anywhere. Out: configurations, batches of data, headers, commands,
and each refused frame with its reason. What comes out does not depend on how the bytes were cut. IEEE 1344 is
recognised by its configuration frame. It opens no connection and puts nothing in order of time.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, StrEnum
from types import MappingProxyType
from typing import Any

import numpy as np
from fastcrc.crc16 import ibm_3740
from numpy.typing import DTypeLike

from streams import ieee1344
from streams.block import FrameBatch
from streams.c37118.configuration import (
    CONFIGURATIONS,
    LAST_FRAGMENT,
    ConfigurationFrame,
    decode_configuration,
)
from streams.c37118.frame import (
    EPOCH,
    MIN_SIZE,
    PREFIX_SIZE,
    SYNC,
    CommandFrame,
    FrameType,
    HeaderFrame,
    decode_command,
    decode_header,
)
from streams.c37118.samples import CONFIGURATION_CHANGES, Layout, compile_layout, decode
from streams.channels import ChannelTable
from streams.errors import FrameError

MAX_CONFIGURATION = 1 << 24
"""Bytes of a continued CFG-3 that are kept at most."""

_HEAD = struct.Struct(">BBHH")
_RUN = 64  # frames looked ahead for at first; grows while they come
_LONGEST_RUN = 1 << 16
_KINDS = frozenset(FrameType)


class Refusal(StrEnum):
    """Why a frame was refused."""

    CRC = "crc"
    """Its check word does not fit."""
    NO_CONFIGURATION = "no_configuration"
    """A data frame of an ID code whose configuration has not been seen."""
    SIZE = "size"
    """A data frame whose size does not fit its configuration: that has changed, request it again."""
    CONFIGURATION = "configuration"
    """A configuration frame that contradicts itself."""
    FRAGMENT = "fragment"
    """A continued CFG-3 of which frames are missing."""
    MALFORMED = "malformed"
    """Too short for what it claims to be."""
    TRUNCATED = "truncated"
    """The stream ended in the middle of it."""


@dataclass(frozen=True, slots=True)
class RefusedFrame:
    """A frame that was not used.

    Attributes
    ----------
    reason
        Why not.
    frame
        Its bytes, as far as its size field can be believed.
    detail
        For people.
    """

    reason: Refusal
    frame: bytes
    detail: str = ""


Item = ConfigurationFrame | FrameBatch | HeaderFrame | CommandFrame | RefusedFrame


@dataclass(slots=True)
class Counts:
    """What a stream has held so far.

    Attributes
    ----------
    frames_by_type
        Intact frames by type: ``data``, ``header``, ``cfg1``, ``cfg2``, ``cfg3``, ``command``; of IEEE 1344
        ``configuration``.
    frames_decoded
        Data frames that became values.
    crc_errors
        Frames whose check word did not fit.
    bytes_skipped
        Bytes that belong to no frame.
    changes_announced
        Data frames with STAT bit 10: the configuration is about to change.
    refused
        Refused frames by reason.
    """

    frames_by_type: Counter[str] = field(default_factory=Counter)
    frames_decoded: int = 0
    crc_errors: int = 0
    bytes_skipped: int = 0
    changes_announced: int = 0
    refused: Counter[Refusal] = field(default_factory=Counter)

    @property
    def frames_total(self) -> int:
        """Intact frames."""
        return self.frames_by_type.total()

    def add(self, other: Counts) -> None:
        """Add another stream's counts to these.

        Parameters
        ----------
        other
            Left as it is.
        """
        self.frames_by_type.update(other.frames_by_type)
        self.frames_decoded += other.frames_decoded
        self.crc_errors += other.crc_errors
        self.bytes_skipped += other.bytes_skipped
        self.changes_announced += other.changes_announced
        self.refused.update(other.refused)


class Protocol(Enum):
    """Which standard a stream speaks."""

    UNKNOWN = "unknown"
    C37118 = "C37.118"
    IEEE1344 = "IEEE 1344"


@dataclass(slots=True)
class _Runs:
    """Intact data frames of one layout, waiting to be decoded together."""

    layout: Layout
    starts: list[int] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)


class StreamParser:
    """Finds, checks and decodes the frames of one byte stream.

    A stream may carry several ID codes: each has its own configuration, and the newest CFG-2 or CFG-3 counts (a CFG-1
    only until one of them comes).

    Parameters
    ----------
    source
        Name of the connection or file, for the channel tables.
    dtype
        float32 for the pipeline, float64 for exact archives.
    known
        Configurations by ID code to fall back on while the stream has shown none of its own; the owner may change it.
    initial
        IEEE 1344 only: the stream's configuration, where it was seen elsewhere.
    values
        False to check and count frames without decoding data.
    """

    def __init__(
        self,
        source: str = "",
        dtype: DTypeLike = np.float32,
        known: Mapping[int, ConfigurationFrame] = MappingProxyType({}),
        *,
        initial: ConfigurationFrame | None = None,
        values: bool = True,
    ) -> None:
        self.counts = Counts()
        self.protocol = Protocol.UNKNOWN
        self._source = source
        self._dtype = dtype
        self._known = known
        self._values = values
        self._layouts: dict[int, Layout] = {}
        self._fallbacks: dict[int, Layout] = {}
        self._fragments: dict[int, list[bytes]] = {}
        self._rest = b""
        self._last_arrival_ns: int | None = None
        self._synchronised = True  # a stream is taken to start with a frame, until it shows otherwise
        if initial is not None and initial.version == ieee1344.VERSION:
            self.protocol = Protocol.IEEE1344
            self._layouts[initial.id_code] = ieee1344.compile_layout(initial, source)

    def feed(self, data: bytes, arrival_ns: int | None = None) -> list[Item]:
        """Take bytes in.

        Parameters
        ----------
        data
            The next bytes of the stream.
        arrival_ns
            When they came; None where nobody knows.

        Returns
        -------
        list[Item]
            What they completed: data frames of one configuration that follow each other are one batch.
        """
        return self.feed_segments([(arrival_ns, data)])

    def feed_segments(self, segments: Sequence[tuple[int | None, bytes]]) -> list[Item]:
        """Take several pieces in at once, so that their frames become one batch.

        Parameters
        ----------
        segments
            Arrival time and bytes of each piece, in order. The first arrival decides whether arrivals are known at all.

        Returns
        -------
        list[Item]
            As of `feed`.
        """
        arrival = _Arrivals(len(self._rest), segments)
        pieces = [data for _, data in segments]
        whole = b"".join((self._rest, *pieces)) if self._rest or len(pieces) != 1 else bytes(pieces[0])
        if segments:
            self._last_arrival_ns = segments[-1][0]
        return self._parse(whole, arrival, final=False)

    def finish(self) -> list[Item]:
        """Take the stream as ended: look for whole frames in what was waited for.

        Returns
        -------
        list[Item]
            What was found. The parser may be fed again, as from a new connection.
        """
        arrival = _Arrivals(len(self._rest), [(self._last_arrival_ns, b"")])
        items = self._parse(self._rest, arrival, final=True)
        self._synchronised = True
        self._fragments.clear()
        return items

    def tables(self) -> dict[int, ChannelTable]:
        """Name the axes of each stream whose configuration is known.

        Returns
        -------
        dict[int, ChannelTable]
            By ID code.
        """
        return {code: layout.table for code, layout in self._layouts.items()}

    def configurations(self) -> dict[int, ConfigurationFrame]:
        """Give the configurations in force.

        Returns
        -------
        dict[int, ConfigurationFrame]
            By ID code; another parser that is fed them in this order decodes as this one.
        """
        return {code: layout.configuration for code, layout in self._layouts.items()}

    @property
    def unfinished(self) -> bool:
        """Bytes wait for more: a frame has begun and not ended."""
        return bool(self._rest)

    def _parse(self, data: bytes, arrival: _Arrivals, *, final: bool) -> list[Item]:
        """Walk from frame to frame; keep the bytes that nothing can be said about yet."""
        walk = _Walk(data, memoryview(data), arrival)
        at, end = 0, len(data)
        while at < end:
            verdict, size = self._judge(data, at)
            if verdict is _Verdict.FRAME and ibm_3740(walk.octets[at : at + size]):
                verdict = _Verdict.DAMAGED
            if verdict is _Verdict.FRAME:
                self._synchronised = True
                at = self._accept(walk, at, size)
                continue
            if verdict is _Verdict.DAMAGED and self._synchronised:
                followed = self._starts(data, at + size)
                whole = followed or (final and at + size == end)
                bound = self._bound(walk, at, size, final=final) if whole else size
                if (followed is None and not final) or bound < 0:
                    break
                self.counts.crc_errors += 1
                self._refuse(walk, Refusal.CRC, data[at : at + bound], "the check word does not fit")
                if whole:
                    at += bound
                    continue
            elif verdict is _Verdict.WAIT:
                if not final:
                    break
                if self._synchronised and self.protocol is not Protocol.UNKNOWN:
                    self._refuse(walk, Refusal.TRUNCATED, data[at:], "the stream ended in the middle of a frame")
            self._synchronised = False
            following = self._search(data, at + 1)
            self.counts.bytes_skipped += following - at
            at = following
        walk.items += self._decoded(walk)
        self._rest = data[at:]
        return walk.items

    def _judge(self, data: bytes, at: int) -> tuple[_Verdict, int]:
        """Say what starts here, CRC aside, and how long it claims to be."""
        if self.protocol is Protocol.C37118 or (self.protocol is Protocol.UNKNOWN and data[at] == SYNC):
            size = self._judge_c37118(data, at)
        else:
            size = self._judge_1344(data, at)
        if size <= 0:
            return (_Verdict.NOTHING if size == 0 else _Verdict.WAIT), 0
        layout = self._layouts.get(int.from_bytes(data[at + 4 : at + 6], "big"))
        if layout is not None and size > layout.size and self.protocol is Protocol.C37118 and data[at + 1] >> 4 == 0:
            # a damaged size, or a new configuration: a sync word where the frame should have ended tells
            followed = self._starts(data, at + layout.size)
            if followed:
                return _Verdict.DAMAGED, layout.size
            if followed is None:
                return _Verdict.WAIT, size
        return (_Verdict.WAIT if at + size > len(data) else _Verdict.FRAME), size

    def _judge_c37118(self, data: bytes, at: int) -> int:
        """Bytes that a C37.118 frame starting here would have; 0 where none can, -1 where too few bytes are there."""
        if data[at] != SYNC:
            return 0
        if len(data) - at < _HEAD.size:
            return -1
        _, kind, size, id_code = _HEAD.unpack_from(data, at)
        if kind >> 4 not in _KINDS or size < MIN_SIZE:
            return 0
        strange = self._layouts and id_code not in self._layouts and id_code not in self._known
        # among chance bytes, waiting for up to 65,535 of them would hold a slow stream up for long
        return 0 if strange and not self._synchronised else int(size)

    def _judge_1344(self, data: bytes, at: int) -> int:
        """As `_judge_c37118`, of an IEEE 1344 frame: without a sync word, only a configuration is unmistakable."""
        left = len(data) - at
        if left < ieee1344.LEAST:
            return -1
        kind, size = ieee1344.frame_type(data, at), ieee1344.frame_size(data, at)
        if kind == ieee1344.CONFIGURATION:
            plausible = ieee1344.looks_like_configuration(data, at)
            if not plausible and left < ieee1344.SURE:
                return -1
        elif self.protocol is Protocol.UNKNOWN:
            plausible = False
        elif kind == ieee1344.HEADER:
            plausible = size >= ieee1344.LEAST
        else:
            plausible = kind == 0 and any(size == layout.size for layout in self._layouts.values())
        return size if plausible else 0

    def _starts(self, data: bytes, at: int) -> bool | None:
        """Whether a frame may start here; None where too few bytes are there to say."""
        if self.protocol is Protocol.IEEE1344:
            size = self._judge_1344(data, at) if at < len(data) else -1
            return None if size < 0 else size > 0
        if len(data) < at + 2:
            return None
        return data[at] == SYNC and data[at + 1] >> 4 in _KINDS

    def _bound(self, walk: _Walk, at: int, size: int, *, final: bool) -> int:
        """Bytes of a damaged frame up to where an intact one starts in it: it was cut short; -1: too few to say."""
        data, end = walk.data, len(walk.data)
        if data[at] != SYNC or self.protocol is Protocol.IEEE1344:
            return size
        own = data[at + 4 : at + 6]
        start = data.find(SYNC, at + 1, at + size)
        while start >= 0:
            claimed = self._judge_c37118(data, start)
            id_code = data[start + 4 : start + 6]
            ours = id_code == own or int.from_bytes(id_code, "big") in {*self._layouts, *self._known}
            if not final and (claimed < 0 or (ours and start + claimed > end)):
                return -1
            if claimed > 0 and ours and start + claimed <= end and not ibm_3740(walk.octets[start : start + claimed]):
                return start - at
            start = data.find(SYNC, start + 1, at + size)
        return size

    def _search(self, data: bytes, at: int) -> int:
        """Find the next place where a frame may start."""
        if self.protocol is Protocol.IEEE1344:
            return at
        found = data.find(SYNC, at)
        found = len(data) if found < 0 else found
        if self.protocol is Protocol.UNKNOWN:
            other = data.find(ieee1344.MARK, at + ieee1344.MARK_AT) - ieee1344.MARK_AT
            # what starts in the last bytes shows its mark only later
            other = other if other >= at else max(at, len(data) - ieee1344.MARK_AT - 1)
            found = min(found, other)
        return found

    def _accept(self, walk: _Walk, at: int, size: int) -> int:
        """Take an intact frame, and those like it that follow; say where the next starts."""
        if self.protocol is Protocol.UNKNOWN:
            self.protocol = Protocol.C37118 if walk.data[at] == SYNC else Protocol.IEEE1344
        if self.protocol is Protocol.IEEE1344:
            kind = ieee1344.frame_type(walk.data, at)
            if kind == 0:
                return self._take_data(walk, at, next(iter(self._layouts.values())))
            self._take_1344(walk, walk.data[at : at + size], kind)
            return at + size
        _, sync, _, id_code = _HEAD.unpack_from(walk.data, at)
        kind = FrameType(sync >> 4)
        if kind is not FrameType.DATA:
            self._take_other(walk, kind, id_code, walk.data[at : at + size])
            return at + size
        layout = self._layouts.get(id_code) or self._fallback(id_code, size)
        if layout is not None and layout.size == size:
            return self._take_data(walk, at, layout)
        self.counts.frames_by_type["data"] += 1
        frame = walk.data[at : at + size]
        if layout is None:
            self._refuse(walk, Refusal.NO_CONFIGURATION, frame, f"no configuration of ID code {id_code} has been seen")
        else:
            detail = f"ID code {id_code}: {size} bytes, its configuration says {layout.size}; request it again"
            self._refuse(walk, Refusal.SIZE, frame, detail)
        return at + size

    def _take_data(self, walk: _Walk, at: int, layout: Layout) -> int:
        """Take an intact data frame, and at one look those of the same stream right behind it."""
        size = layout.size
        count = 1
        room = min((len(walk.data) - at) // size, walk.ahead)
        head = _HEAD.size
        nameless = self.protocol is Protocol.IEEE1344
        if room > 1 and (nameless or walk.data[at + size : at + size + head] == walk.data[at : at + head]):
            rows = np.frombuffer(walk.data, np.uint8, room * size, at).reshape(room, size)
            if nameless:
                alike = (rows[:, 4] >> 5 == 0) & ((rows[:, 6] & 7) == size >> 8) & (rows[:, 7] == size & 255)
            else:
                alike = (rows[:, :head] == rows[0, :head]).all(1)
            run = room if alike.all() else int(alike.argmin())
            # One call for all frames cuts them faster than a slice each.
            frames = np.frombuffer(walk.data, np.dtype((np.void, size)), run - 1, at + size).tolist()
            count = 1 + next((i for i, crc in enumerate(map(ibm_3740, frames)) if crc), run - 1)
            walk.ahead = min(walk.ahead * 4, _LONGEST_RUN) if count == walk.ahead else _RUN
        self.counts.frames_by_type["data"] += count
        runs = walk.runs.get(id(layout))
        if runs is None:
            runs = walk.runs[id(layout)] = _Runs(layout)
        if runs.starts and runs.starts[-1] + runs.counts[-1] * size == at:
            runs.counts[-1] += count
        else:
            runs.starts.append(at)
            runs.counts.append(count)
        return at + count * size

    def _take_other(self, walk: _Walk, kind: FrameType, id_code: int, frame: bytes) -> None:
        """Take an intact frame that is not data."""
        self.counts.frames_by_type[kind.name.lower()] += 1
        try:
            if kind is FrameType.HEADER:
                walk.items.append(decode_header(frame))
            elif kind is FrameType.COMMAND:
                walk.items.append(decode_command(frame))
            else:
                frames = self._collect(walk, kind, id_code, frame)
                if frames:
                    self._configure(walk, decode_configuration(frames), compile_layout)
        except FrameError as error:
            reason = Refusal.CONFIGURATION if kind in CONFIGURATIONS else Refusal.MALFORMED
            self._refuse(walk, reason, frame, str(error))

    def _take_1344(self, walk: _Walk, frame: bytes, kind: int) -> None:
        if kind == ieee1344.HEADER:
            self.counts.frames_by_type["header"] += 1
            walk.items.append(HeaderFrame(0, EPOCH, frame[8:-2], ieee1344.VERSION))
            return
        self.counts.frames_by_type["configuration"] += 1
        try:
            self._configure(walk, ieee1344.decode_configuration(frame), ieee1344.compile_layout)
        except FrameError as error:
            self._refuse(walk, Refusal.CONFIGURATION, frame, str(error))

    def _collect(self, walk: _Walk, kind: FrameType, id_code: int, frame: bytes) -> list[bytes]:
        """All frames of a configuration, or nothing while a continued CFG-3 has not ended."""
        index = int.from_bytes(frame[PREFIX_SIZE : PREFIX_SIZE + 2], "big")
        if kind is not FrameType.CFG3 or index == 0:
            return [frame]
        parts = self._fragments.setdefault(id_code, [])
        if index == 1 and parts:
            self._refuse(walk, Refusal.FRAGMENT, parts[0], f"CFG-3 of ID code {id_code} starts anew")
            parts.clear()
        expected = len(parts) + 1
        fits = index == expected or (index == LAST_FRAGMENT and expected > 1)
        kept = sum(map(len, parts)) + len(frame)
        if not fits or kept > MAX_CONFIGURATION:
            del self._fragments[id_code]
            detail = f"CFG-3 of ID code {id_code}: CONT_IDX {index} where {expected} was due, {kept} bytes"
            self._refuse(walk, Refusal.FRAGMENT, frame, detail)
            return []
        parts.append(frame)
        return self._fragments.pop(id_code) if index == LAST_FRAGMENT else []

    def _configure(
        self,
        walk: _Walk,
        configuration: ConfigurationFrame,
        compiler: Callable[[ConfigurationFrame, str], Layout],
    ) -> None:
        """Put a configuration into force, unless it only repeats the one that is."""
        walk.items += self._decoded(walk)
        walk.items.append(configuration)
        if self.protocol is Protocol.IEEE1344:
            self._layouts = {k: v for k, v in self._layouts.items() if k == configuration.id_code}
        old = self._layouts.get(configuration.id_code)
        if old is not None:
            if configuration.kind is FrameType.CFG1 and old.configuration.kind is not FrameType.CFG1:
                return
            if replace(old.configuration, stamp=configuration.stamp) == configuration:
                return
        self._layouts[configuration.id_code] = compiler(configuration, self._source)

    def _fallback(self, id_code: int, size: int) -> Layout | None:
        """Layout of a configuration known from elsewhere, if its data frames have this size."""
        configuration = self._known.get(id_code)
        if configuration is None or configuration.version == ieee1344.VERSION or configuration.data_size != size:
            return None
        layout = self._fallbacks.get(id_code)
        if layout is None or layout.configuration is not configuration:
            layout = self._fallbacks[id_code] = compile_layout(configuration, self._source)
        return layout

    def _decoded(self, walk: _Walk) -> list[Item]:
        """Decode what has run up."""
        batches: list[Item] = [self._decode(walk, runs) for runs in walk.runs.values() if self._values]
        walk.runs.clear()
        return batches

    def _decode(self, walk: _Walk, runs: _Runs) -> FrameBatch:
        layout, size = runs.layout, runs.layout.size
        spans = [np.frombuffer(walk.data, np.uint8, c * size, s) for s, c in zip(runs.starts, runs.counts, strict=True)]
        frames = (spans[0] if len(spans) == 1 else np.concatenate(spans)).view(layout.frame)
        arrival_ns = walk.arrival.of(runs, size)
        to_batch = ieee1344.decode if self.protocol is Protocol.IEEE1344 else decode
        batch = to_batch(layout, frames, arrival_ns, self._dtype)
        self.counts.frames_decoded += len(frames)
        self.counts.changes_announced += int(((batch.stat & CONFIGURATION_CHANGES) != 0).any(1).sum())
        return batch

    def _refuse(self, walk: _Walk, reason: Refusal, frame: bytes, detail: str) -> None:
        self.counts.refused[reason] += 1
        walk.items.append(RefusedFrame(reason, frame, detail))


class _Verdict(Enum):
    NOTHING = 0
    WAIT = 1
    FRAME = 2
    DAMAGED = 3


class _Arrivals:
    """Which piece completed a frame, and when that came."""

    def __init__(self, kept: int, segments: Sequence[tuple[int | None, bytes]]) -> None:
        self._ends = kept + np.cumsum([len(data) for _, data in segments])
        self._times = [time for time, _ in segments]

    def of(self, runs: _Runs, size: int) -> Any:
        """Arrival of each frame: an array, one number for all, or None."""
        if len(self._times) == 1 or self._times[0] is None:
            return self._times[0]
        ends = np.concatenate([s + size * np.arange(1, c + 1) for s, c in zip(runs.starts, runs.counts, strict=True)])
        return np.array(self._times, np.int64)[np.searchsorted(self._ends, ends)]


@dataclass(slots=True)
class _Walk:
    """One walk through bytes: what it has found so far."""

    data: bytes
    octets: memoryview
    arrival: _Arrivals
    items: list[Item] = field(default_factory=list)
    runs: dict[int, _Runs] = field(default_factory=dict)
    ahead: int = _RUN
