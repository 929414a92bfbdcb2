"""Files in, the data frames of each of their streams out, in order of the times at which they are due.

Captured C37.118 comes untouched; archives and IEEE 1344 are encoded: what came from C37.118 under its own
configuration. What is no intact data frame of a known configuration is left out, counted and said. It sends nothing.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gridsense.encoding import Encoder, made_encoder, stored_encoder
from gridsense.errors import InputError
from gridsense.simulator.frames import Octets, times
from gridsense.sources import open_source
from streams.archives import Archive, read_archive
from streams.block import FrameBatch
from streams.c37118.configuration import ConfigurationFrame, channel_table
from streams.c37118.frame import MIN_SIZE, SYNC, FrameType, crc_fits
from streams.captures import CaptureReader, read_capture
from streams.channels import ChannelTable
from streams.errors import FrameError

log = logging.getLogger(__name__)

READ_S = 4.0
"""Event time of an archive that is read at once, about."""
ROUND_NS = 1_000_000_000
"""Time of a round of frames."""

_LEAST_ROWS = 32
_TOGETHER_BYTES = 1 << 20
_C37118_2011 = 2


@dataclass(frozen=True, slots=True)
class Track:
    """One stream of a file.

    Attributes
    ----------
    name
        Of its source in an archive; host and port in a capture, with the ID code behind where one source carries
        several streams.
    configuration
        Under which its data frames stand.
    """

    name: str
    configuration: ConfigurationFrame


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive data frames of one stream.

    Attributes
    ----------
    stream
        Place of the stream.
    due_ns
        `(T,)` when each is due, on the clock of the recording; never falling.
    octets
        `(T, size)` the frames.
    """

    stream: int
    due_ns: NDArray[np.int64]
    octets: Octets


@dataclass(frozen=True, slots=True)
class Reel:
    """A way to read some streams from their beginning, as often as wanted.

    Attributes
    ----------
    tracks
        What it holds.
    read
        Starts reading: lists of pieces, `Piece.stream` being a place in `tracks`, about in order of time.
    """

    tracks: tuple[Track, ...]
    read: Callable[[], Iterator[list[Piece]]]


def open_reels(files: Sequence[Path], channels: Path | None = None) -> list[Reel]:
    """Open files.

    Parameters
    ----------
    files
        Captures and archives.
    channels
        Map of the columns, for tables of somebody else's.

    Returns
    -------
    list[Reel]
        One or two of each file.

    Raises
    ------
    InputError
        If a file holds nothing that can be served.
    """
    reels: list[Reel] = []
    for file in files:
        source = open_source(file, channels)
        try:
            found = [_archive_reel(source)] if isinstance(source, Archive) else _capture_reels(file)
        except FrameError as error:
            raise InputError(f"{file}: cannot be said in C37.118: {error}") from error
        if not found:
            raise InputError(f"{file}: no data frame in it could be decoded; `gridsense inspect {file}` says why")
        reels += found
    return reels


def rounds(reels: Sequence[Reel]) -> Iterator[list[Piece]]:
    """Read all reels once, side by side.

    Parameters
    ----------
    reels
        From `open_reels`.

    Yields
    ------
    list[Piece]
        What is due in one second; `Piece.stream` counts the tracks of all reels.
    """
    feeds, first = [], 0
    for reel in reels:
        feeds.append(_Feed(reel.read(), first))
        first += len(reel.tracks)
    while True:
        ahead = [due for feed in feeds if (due := feed.due_ns()) is not None]
        if not ahead:
            return
        horizon = min(ahead) + ROUND_NS
        yield [piece for feed in feeds for piece in feed.until(horizon)]


class _Feed:
    """One reel, read up to a moment at a time."""

    def __init__(self, groups: Iterator[list[Piece]], first: int) -> None:
        self._groups, self._first = groups, first
        self._held: list[Piece] = []
        self._newest: dict[int, int] = {}

    def due_ns(self) -> int | None:
        """When its next frame is due; None at the end."""
        while not self._held and self._read():
            pass
        return min((int(p.due_ns[0]) for p in self._held), default=None)

    def until(self, horizon_ns: int) -> list[Piece]:
        """Give out what is due before a moment, having read somewhat past it: streams of one file take turns."""
        while max(self._newest.values(), default=0) < horizon_ns + ROUND_NS and self._read():
            pass
        out: list[Piece] = []
        kept: list[Piece] = []
        for piece in self._held:
            cut = int(np.searchsorted(piece.due_ns, horizon_ns))
            if cut:
                out.append(piece if cut == len(piece.due_ns) else _part(piece, slice(0, cut)))
            if cut < len(piece.due_ns):
                kept.append(_part(piece, slice(cut, None)))
        self._held = kept
        return out

    def _read(self) -> bool:
        group = next(self._groups, None)
        if group is None:
            return False
        for piece in group:
            stream = piece.stream + self._first
            due_ns = _rising(piece.due_ns, self._newest.get(stream))
            self._newest[stream] = int(due_ns[-1])
            self._held.append(Piece(stream, due_ns, piece.octets))
        return True


def _part(piece: Piece, rows: slice) -> Piece:
    return Piece(piece.stream, piece.due_ns[rows], piece.octets[rows])


def _rising(time_ns: NDArray[np.int64], last_ns: int | None) -> NDArray[np.int64]:
    """Find when frames leave, in their order: a late one at once, one stamped far ahead of its successor with that."""
    after_last = time_ns[-2] + ROUND_NS if len(time_ns) > 1 else time_ns[-1]
    due_ns = np.minimum(time_ns, np.append(time_ns[1:], after_last))
    if last_ns is not None:
        due_ns[0] = max(due_ns[0], last_ns)
    return np.maximum.accumulate(due_ns)


def _archive_reel(archive: Archive) -> Reel:
    """Take the streams of an archive, one a source."""
    description = archive.description
    encoders: dict[str, Encoder] = {}
    taken: set[int] = set()
    for place, source in enumerate(dict.fromkeys(p.source for p in description.table.pmus), 1):
        stored = description.configurations.get(source)
        if stored:
            encoder = stored_encoder(stored, source)
        else:
            table = ChannelTable(tuple(p for p in description.table.pmus if p.source == source))
            encoder = made_encoder(table, description.rate_hz, place)
            code = encoder.configuration.id_code
            while code in taken:  # what was made up here gives way
                code = code % 0xFFFE + 1
            encoder = replace(encoder, configuration=replace(encoder.configuration, id_code=code))
        taken.add(encoder.configuration.id_code)
        encoders[source] = encoder
    places = {source: place for place, source in enumerate(encoders)}
    name = archive.path.stem

    def read() -> Iterator[list[Piece]]:
        rows = max(_LEAST_ROWS, round(READ_S * description.rate_hz))
        group: dict[int, Piece] = {}
        for batch in read_archive(archive, rows=rows, dtype=np.float64):
            place = places[batch.table.pmus[0].source]
            if place in group:
                yield list(group.values())
                group = {}
            if len(batch.time_ns):
                group[place] = _encoded(place, encoders[batch.table.pmus[0].source], batch, archive.path)
        yield list(group.values())

    return Reel(tuple(Track(source or name, e.configuration) for source, e in encoders.items()), read)


def _encoded(place: int, encoder: Encoder, batch: FrameBatch, path: Path) -> Piece:
    try:
        text = encoder.encode(batch)
    except FrameError as error:
        raise InputError(f"{path}: cannot be said in C37.118: {error}") from error
    octets = np.frombuffer(text, np.uint8).reshape(len(batch.time_ns), -1)
    return Piece(place, batch.time_ns, octets)


def _capture_reels(path: Path) -> list[Reel]:
    """Find the streams of a capture, those of IEEE 1344 apart: they are said in C37.118."""
    streams = _streams_of(path)
    shared = Counter(source for source, _ in streams)
    modern: dict[tuple[str, int], Track] = {}
    older: dict[str, tuple[Track, Encoder]] = {}
    for (source, code), configuration in streams.items():
        name = source if shared[source] == 1 else f"{source}#{code}"
        if configuration.version:
            modern[source, code] = Track(name, configuration)
        else:
            translated = replace(configuration, version=_C37118_2011)
            older[source] = Track(name, translated), Encoder(translated, source)
    reels = []
    if modern:
        reels.append(Reel(tuple(modern.values()), lambda: _captured(path, modern)))
    if older:
        reels.append(Reel(tuple(track for track, _ in older.values()), lambda: _translated(path, older)))
    return reels


def _streams_of(path: Path) -> dict[tuple[str, int], ConfigurationFrame]:
    """Find which source sends data of which ID code, and under which configuration."""
    seen: list[tuple[str, ConfigurationFrame]] = []
    frames: dict[int, tuple[str, ChannelTable, int]] = {}  # holds the table, so that its id stays its own
    for source, item in CaptureReader(path):
        if isinstance(item, ConfigurationFrame):
            seen.append((source, item))
        elif isinstance(item, FrameBatch):
            _, _, before = frames.get(id(item.table), ("", item.table, 0))
            frames[id(item.table)] = source, item.table, before + len(item.time_ns)
    streams: dict[tuple[str, int], ConfigurationFrame] = {}
    for source, table, count in frames.values():
        configuration = _behind(table, source, seen)
        if configuration is None or not count:
            continue
        first = streams.setdefault((source, configuration.id_code), configuration)
        if replace(first, stamp=configuration.stamp) != configuration:
            log.warning("%s: %s changes its configuration; it is served under its first alone", path, source)
    return streams


def _behind(
    table: ChannelTable, source: str, seen: Sequence[tuple[str, ConfigurationFrame]]
) -> ConfigurationFrame | None:
    """Find the configuration behind a table: the newest that says the same, of its own source before another's."""
    for own in (True, False):
        for name, configuration in reversed(seen):
            if (name == source) is own and channel_table(configuration, table.pmus[0].source) == table:
                return configuration
    return None


def _translated(path: Path, older: dict[str, tuple[Track, Encoder]]) -> Iterator[list[Piece]]:
    """Frames of IEEE 1344, said in C37.118."""
    places = {source: place for place, source in enumerate(older)}
    for source, item in CaptureReader(path, np.float64):
        if source in places and isinstance(item, FrameBatch) and len(item.time_ns):
            yield [_encoded(places[source], older[source][1], item, path)]


def _captured(path: Path, tracks: dict[tuple[str, int], Track]) -> Iterator[list[Piece]]:
    """Read the data frames of C37.118 as they were captured."""
    sorter = _Sorter(tracks)
    cutters: dict[str, _Cutter] = {}
    since_ns: int | None = None
    for chunk in read_capture(path):
        if chunk.flow not in cutters:
            cutters[chunk.flow] = _Cutter(chunk.source)
        sorter.take(chunk.source, cutters[chunk.flow].cut(chunk.data))
        now_ns = chunk.arrival_ns
        since_ns = now_ns if since_ns is None else since_ns
        passed = now_ns is None or since_ns is None or abs(now_ns - since_ns) >= ROUND_NS
        if passed or sorter.held_bytes >= _TOGETHER_BYTES:
            yield sorter.pieces()
            since_ns = None
    for cutter in cutters.values():
        sorter.take(cutter.source, cutter.cut(b"", final=True))
    yield sorter.pieces()
    if sorter.left_out:
        log.warning("%s: %d data frames of no known configuration are not served", path, sorter.left_out)


class _Sorter:
    """Frames of a capture in, a piece for each stream out."""

    def __init__(self, tracks: dict[tuple[str, int], Track]) -> None:
        self.left_out = 0
        self.held_bytes = 0
        self._sizes = {key: track.configuration.data_size for key, track in tracks.items()}
        self._bases = {key: track.configuration.time_base for key, track in tracks.items()}
        self._held: dict[tuple[str, int], list[bytes]] = {key: [] for key in tracks}

    def take(self, source: str, frames: list[bytes]) -> None:
        """Hold the data frames of known streams."""
        for frame in frames:
            if frame[1] >> 4 != FrameType.DATA:
                continue
            key = source, int.from_bytes(frame[4:6], "big")
            if self._sizes.get(key) == len(frame):
                self._held[key].append(frame)
                self.held_bytes += len(frame)
            else:
                self.left_out += 1

    def pieces(self) -> list[Piece]:
        """Give out what is held."""
        out = []
        for place, (key, frames) in enumerate(self._held.items()):
            if frames:
                octets = np.frombuffer(b"".join(frames), np.uint8).reshape(len(frames), -1)
                out.append(Piece(place, times(octets, self._bases[key]), octets))
                frames.clear()
        self.held_bytes = 0
        return out


class _Cutter:
    """Bytes of one direction of a connection in, its intact frames out."""

    def __init__(self, source: str) -> None:
        self.source = source
        self._rest = b""

    def cut(self, data: bytes, *, final: bool = False) -> list[bytes]:
        """Find whole frames; what does not check is stepped over."""
        data = self._rest + data
        out: list[bytes] = []
        at = data.find(SYNC)
        while at >= 0:
            size = int.from_bytes(data[at + 2 : at + 4], "big")
            short = len(data) < at + 4 or (size >= MIN_SIZE and len(data) < at + size)
            if short and not final:
                break
            frame = data[at : at + size]
            if size >= MIN_SIZE and not short and crc_fits(frame):
                out.append(frame)
                at += size - 1
            at = data.find(SYNC, at + 1)
        self._rest = data[at:] if at >= 0 else b""
        return out
