"""Files of captured streams in, pieces of byte streams out, and through the parser their frames.

Reads pcap and pcapng (Ethernet, VLAN, Linux cooked, loopback, raw IP; TCP put together in sequence, UDP, IP fragments),
raw byte streams and the PMU Connection Tester's .PmuCapture, told apart by what they hold, not by their names. It needs
no tshark, scores nothing and writes nothing.
"""

from __future__ import annotations

import ipaddress
import struct
from collections import ChainMap, Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import dpkt
import numpy as np
from numpy.typing import DTypeLike

from streams.block import FrameBatch
from streams.c37118.configuration import ConfigurationFrame
from streams.c37118.frame import FrameType
from streams.c37118.stream import Counts, Item, Protocol, StreamParser
from streams.errors import CaptureError

_PIECE = 1 << 20  # bytes of a raw stream read at a time
_TOGETHER_NS = 500_000_000  # capture time whose packets are parsed together
_TOGETHER_BYTES = 1 << 18
_HELD_SEGMENTS = 64  # TCP segments kept behind a gap before it is taken as lost
_HELD_FRAGMENTS = 256
_MAX_PACKET = 1 << 18  # bytes: more than any link carries, so a damaged length is seen
_SECOND = 1_000_000_000

_PCAP_MAGIC = {
    b"\xa1\xb2\xc3\xd4": (">", 1000),
    b"\xd4\xc3\xb2\xa1": ("<", 1000),
    b"\xa1\xb2\x3c\x4d": (">", 1),
    b"\x4d\x3c\xb2\xa1": ("<", 1),
}
"""Byte order and nanoseconds a tick by a pcap file's first four bytes."""

_PCAPNG_MAGIC = b"\x0a\x0d\x0d\x0a"
_SECTION, _INTERFACE, _OLD_PACKET, _PACKET = 0x0A0D0D0A, 1, 2, 6
_MAX_BLOCK = 1 << 26

_GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive bytes of one direction of one connection.

    Attributes
    ----------
    flow
        Which connection and direction: the bytes of one flow belong together.
    source
        Who sent them: address and port, or the file's name.
    arrival_ns
        When they were captured; None where the file does not say.
    data
        The bytes.
    """

    flow: str
    source: str
    arrival_ns: int | None
    data: bytes


@dataclass(frozen=True, slots=True)
class PmuSummary:
    """One PMU of a capture.

    Attributes
    ----------
    id_code
        ID code of the data source.
    station
        Station name.
    phasors
        Number of phasors.
    analogs
        Number of analogs.
    digitals
        Number of digital words.
    nominal_hz
        50 or 60.
    """

    id_code: int
    station: str
    phasors: int
    analogs: int
    digitals: int
    nominal_hz: int


@dataclass(frozen=True, slots=True)
class CaptureSummary:
    """What a capture holds: the figures of ``gridsense inspect``.

    Attributes
    ----------
    frames_total
        Intact frames of all types.
    frames_by_type
        Intact frames by type.
    frames_decoded
        Data frames that became values.
    crc_errors
        Frames whose check word did not fit.
    bytes_skipped
        Bytes of synchrophasor streams that belong to no frame.
    refused
        Refused frames by reason.
    packets_skipped
        Packets that could not be read: damaged, or cut off at the end of the file.
    rate_hz
        Configured reporting rate; where there are several, the one of most frames. None without data frames.
    first_time
        Earliest time stamp of a data frame, RFC 3339, UTC; None without data frames.
    last_time
        Latest.
    pmus
        In the order of their streams.
    """

    frames_total: int
    frames_by_type: dict[str, int]
    frames_decoded: int
    crc_errors: int
    bytes_skipped: int
    refused: dict[str, int]
    packets_skipped: int
    rate_hz: float | None
    first_time: str | None
    last_time: str | None
    pmus: tuple[PmuSummary, ...]


@dataclass(slots=True)
class CaptureReader:
    """Iterates over what a capture's streams say: pairs of source and item, in order of capture.

    A data frame finds its configuration wherever in the capture that stands: in its own stream, else in one of the same
    host, else in any of the same ID code. Connections that hold no synchrophasor frame are left out, of the counts too.

    Attributes
    ----------
    path
        The file.
    dtype
        float32 for the pipeline, float64 for exact archives.
    counts
        Of what the last iteration has read so far.
    packets_skipped
        Packets that the last iteration could not read.
    """

    path: Path
    dtype: DTypeLike = np.float32
    counts: Counts = field(default_factory=Counts)
    packets_skipped: int = 0

    def __iter__(self) -> Iterator[tuple[str, Item]]:
        """Read the file from its start, twice: for its configurations, then for everything.

        A `CaptureError` says that it cannot be read as a capture.

        Yields
        ------
        tuple[str, Item]
            Source, and what it said.
        """
        book = _Book()
        for flow, _, item in self._read(book, values=False):
            book.note(flow, item, newest=False)
        self.counts = Counts()
        for flow, source, item in self._read(book, values=True):
            book.note(flow, item, newest=True)
            yield source, item

    def _read(self, book: _Book, *, values: bool) -> Iterator[tuple[str, str, Item]]:
        flows: dict[str, _Flow] = {}
        waiting: dict[str, _Flow] = {}
        since: int | None = None
        held = 0
        packets = _Packets(self.path)
        for chunk in _chunks(self.path, packets):
            flow = flows.get(chunk.flow)
            if flow is None:
                initial = book.initial.get(chunk.flow)
                known = book.known(chunk.flow)
                parser = StreamParser(chunk.source, self.dtype, known, initial=initial, values=values)
                flow = flows[chunk.flow] = _Flow(chunk.flow, chunk.source, parser)
            flow.segments.append((chunk.arrival_ns, chunk.data))
            waiting[chunk.flow] = flow
            held += len(chunk.data)
            now = chunk.arrival_ns
            since = now if since is None else since
            if now is None or since is None or abs(now - since) >= _TOGETHER_NS or held >= _TOGETHER_BYTES:
                for each in waiting.values():
                    yield from each.parse()
                waiting.clear()
                since, held = None, 0
        for flow in flows.values():
            yield from flow.parse()
            yield from flow.finish()
            if flow.parser.protocol is not Protocol.UNKNOWN and values:
                self.counts.add(flow.parser.counts)
        self.packets_skipped = packets.skipped


def read_capture(path: Path) -> Iterator[Chunk]:
    """Read the byte streams of a file.

    A `CaptureError` says that it is missing, empty, or holds none of the formats.

    Parameters
    ----------
    path
        The file.

    Yields
    ------
    Chunk
        Pieces, in order of capture; each flow's in the order in which they were sent.
    """
    yield from _chunks(path, _Packets(path))


def read_frames(path: Path, dtype: DTypeLike = np.float32) -> Iterator[tuple[str, Item]]:
    """Read the frames of a file; a `CaptureError` where it cannot be read as a capture.

    Parameters
    ----------
    path
        The file.
    dtype
        float32 for the pipeline, float64 for exact archives.

    Returns
    -------
    Iterator[tuple[str, Item]]
        Source, and what it said: configurations, batches of data, headers, commands, refused frames.
    """
    return iter(CaptureReader(path, dtype))


def summary(path: Path) -> CaptureSummary:
    """Say what a file holds; a `CaptureError` where it cannot be read as a capture.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    CaptureSummary
        Counts, times and PMUs.
    """
    reader = CaptureReader(path)
    rates: Counter[float] = Counter()
    streams: dict[tuple[str, int], ConfigurationFrame] = {}
    times: list[int] = []
    for source, item in reader:
        if isinstance(item, FrameBatch):
            rates[item.rate_hz] += len(item.time_ns)
            times = [min([*times, int(item.time_ns.min())]), max([*times, int(item.time_ns.max())])]
        elif isinstance(item, ConfigurationFrame):
            key = (source, item.id_code)
            if item.kind is not FrameType.CFG1 or streams.get(key, item).kind is FrameType.CFG1:
                streams[key] = item
    counts = reader.counts
    pmus = [
        PmuSummary(p.id_code, p.station, len(p.phasors), len(p.analogs), len(p.digitals), p.nominal_hz)
        for configuration in streams.values()
        for p in configuration.pmus
    ]
    return CaptureSummary(
        frames_total=counts.frames_total,
        frames_by_type=dict(counts.frames_by_type),
        frames_decoded=counts.frames_decoded,
        crc_errors=counts.crc_errors,
        bytes_skipped=counts.bytes_skipped,
        refused={str(reason): n for reason, n in counts.refused.items()},
        packets_skipped=reader.packets_skipped,
        rate_hz=rates.most_common(1)[0][0] if rates else None,
        first_time=_rfc3339(times[0]) if times else None,
        last_time=_rfc3339(times[1]) if times else None,
        pmus=tuple(pmus),
    )


def _rfc3339(time_ns: int) -> str:
    seconds, rest = divmod(time_ns, _SECOND)
    fraction = f"{rest // 1000:06d}" if rest % 1000 == 0 else f"{rest:09d}"
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{fraction}Z"


@dataclass(slots=True)
class _Flow:
    """One direction of a connection on its way through the parser."""

    name: str
    source: str
    parser: StreamParser
    segments: list[tuple[int | None, bytes]] = field(default_factory=list)

    def parse(self) -> Iterator[tuple[str, str, Item]]:
        items = self.parser.feed_segments(self.segments)
        self.segments = []
        return self._named(items)

    def finish(self) -> Iterator[tuple[str, str, Item]]:
        return self._named(self.parser.finish())

    def _named(self, items: list[Item]) -> Iterator[tuple[str, str, Item]]:
        # what an unrecognised stream seemed to hold was chance
        recognised = self.parser.protocol is not Protocol.UNKNOWN
        return ((self.name, self.source, item) for item in (items if recognised else ()))


class _Book:
    """Configurations of a whole capture: by flow's host and ID code, and by ID code alone."""

    def __init__(self) -> None:
        self.initial: dict[str, ConfigurationFrame] = {}
        """IEEE 1344's, which name no ID code in their data: by flow."""
        self._by_host: dict[str, dict[int, ConfigurationFrame]] = {}
        self._by_code: dict[int, ConfigurationFrame] = {}

    def known(self, flow: str) -> ChainMap[int, ConfigurationFrame]:
        return ChainMap(self._by_host.setdefault(_host(flow), {}), self._by_code)

    def note(self, flow: str, item: Item, *, newest: bool) -> None:
        """Enter a configuration; an older one gives way only to the newest, a CFG-1 to any."""
        if not isinstance(item, ConfigurationFrame):
            return
        self.initial.setdefault(flow, item)
        for book in (self._by_host.setdefault(_host(flow), {}), self._by_code):
            old = book.get(item.id_code)
            better = newest and item.kind is not FrameType.CFG1
            if old is None or better or (old.kind is FrameType.CFG1 and item.kind is not FrameType.CFG1):
                book[item.id_code] = item


def _host(flow: str) -> str:
    return flow.split(" ")[1].rpartition(":")[0] if " " in flow else flow


def _chunks(path: Path, packets: _Packets) -> Iterator[Chunk]:
    try:
        with path.open("rb") as file:
            head = file.read(_PIECE)
            if not head:
                raise CaptureError(f"{path} is empty: nothing was captured")
            if head[:2] == _GZIP_MAGIC:
                raise CaptureError(f"{path} is compressed: gunzip it first")
            if head[:4] in _PCAP_MAGIC or head[:4] == _PCAPNG_MAGIC:
                file.seek(0)
                yield from packets.read(file)
                return
            parser = StreamParser(values=False)
            parser.feed(head)
            parser.finish()
            if parser.protocol is Protocol.UNKNOWN:
                raise CaptureError(
                    f"{path} is no pcap, pcapng or synchrophasor stream:"
                    f" there is no intact frame in its first {len(head)} bytes"
                )
            while head:
                yield Chunk(path.name, path.name, None, head)
                head = file.read(_PIECE)
    except OSError as error:
        raise CaptureError(f"{path} cannot be read: {error.strerror or error}") from error


class _Packets:
    """Packets of a pcap or pcapng file, as chunks of byte streams."""

    def __init__(self, path: Path) -> None:
        self.skipped = 0
        self._path = path
        self._connections: dict[str, _Connection] = {}
        self._fragments: dict[tuple[Any, ...], dict[int, tuple[bytes, bool]]] = {}

    def read(self, file: IO[bytes]) -> Iterator[Chunk]:
        magic = file.read(4)
        records = self._pcapng(file) if magic == _PCAPNG_MAGIC else self._pcap(file, *_PCAP_MAGIC[magic])
        for arrival_ns, link, packet in records:
            try:
                ip = _LINKS.get(link, _nothing)(packet)
                chunks = list(self._transport(ip, arrival_ns)) if ip is not None else []
            except (dpkt.Error, struct.error, IndexError, ValueError, AttributeError, KeyError, TypeError):
                # a third-party decoder over arbitrary bytes: whatever it stumbles over is a packet we cannot read
                self.skipped += 1
                continue
            yield from chunks
        for connection in self._connections.values():
            yield from connection.give_up()

    def _pcap(self, file: IO[bytes], order: str, tick_ns: int) -> Iterator[tuple[int, int, bytes]]:
        rest = file.read(20)
        if len(rest) < 20:
            raise CaptureError(f"{self._path} ends within its pcap header: the capture was cut off")
        link = struct.unpack(order + "I", rest[16:])[0] & 0x0FFFFFFF
        record = struct.Struct(order + "IIII")
        while header := file.read(16):
            if len(header) < 16:
                self.skipped += 1
                return
            seconds, ticks, length, _ = record.unpack(header)
            packet = file.read(length) if length <= _MAX_PACKET else b""
            if len(packet) < length or not length:
                self.skipped += 1
                if length:
                    return
            yield seconds * _SECOND + ticks * tick_ns, link, packet

    def _pcapng(self, file: IO[bytes]) -> Iterator[tuple[int, int, bytes]]:
        links: list[tuple[int, Callable[[int], int]]] = []
        for order, kind, body in self._blocks(file):
            if kind == _SECTION:
                links = []
            elif kind == _INTERFACE:
                links.append(_interface(order, body))
            elif kind in (_PACKET, _OLD_PACKET):
                number, high, low, length = struct.unpack(order + "IIII", body[:16].ljust(16, b"\xff"))
                if kind == _OLD_PACKET:
                    (number,) = struct.unpack(order + "H", body[:2].ljust(2, b"\xff"))
                if number >= len(links):
                    self.skipped += 1  # a packet of an interface that was never described
                    continue
                link, to_ns = links[number]
                yield to_ns(high << 32 | low), link, body[20 : 20 + length]

    def _blocks(self, file: IO[bytes]) -> Iterator[tuple[str, int, bytes]]:
        """Blocks of a pcapng file: byte order, type, body. The first four bytes have been read."""
        order, first, start = "", True, _PCAPNG_MAGIC
        while start:
            head = file.read(8)
            if start == _PCAPNG_MAGIC:
                order = ">" if head[4:] == b"\x1a\x2b\x3c\x4d" else "<"
            kind, length = struct.unpack(order + "II", (start + head[:4]).ljust(8, b"\0"))
            body = head[4:] + (file.read(length - 12) if 12 <= length <= _MAX_BLOCK else b"")
            if len(start) < 4 or len(body) != length - 8 or length % 4:
                if first:
                    raise CaptureError(f"{self._path} ends within its pcapng header: the capture was cut off")
                self.skipped += 1
                return
            yield order, kind, body[:-4]
            first, start = False, file.read(4)

    def _transport(self, ip: Any, arrival_ns: int) -> Iterator[Chunk]:
        """Follow TCP and UDP; every field comes from dpkt, which has no types."""
        segment = self._whole(ip)
        if isinstance(segment, dpkt.udp.UDP):
            name, source = _names("udp", ip, segment)
            if segment.data:
                yield Chunk(name, source, arrival_ns, bytes(segment.data))
        elif isinstance(segment, dpkt.tcp.TCP):
            name, source = _names("tcp", ip, segment)
            connection = self._connections.get(name)
            if connection is None:
                connection = self._connections[name] = _Connection(name, source)
            yield from connection.take(segment.seq, segment.flags, bytes(segment.data), arrival_ns)

    def _whole(self, ip: Any) -> Any:
        """Transport packet of an IP packet; None until all of its fragments are there."""
        if isinstance(ip, dpkt.ip.IP):
            if not (ip.mf or ip.offset):
                return ip.data
            key, offset, more, protocol, part = (ip.src, ip.dst, ip.id, ip.p), ip.offset * 8, bool(ip.mf), ip.p, ip.data
        else:
            header = ip.extension_hdrs.get(dpkt.ip.IP_PROTO_FRAGMENT)
            if header is None or not (header.frag_off or header.m_flag):
                return ip.data
            protocol = header.nxt
            key, offset, more, part = (ip.src, ip.dst, header.id, protocol), header.frag_off * 8, header.m_flag, ip.data
        parts = self._fragments.setdefault(key, {})
        parts[offset] = (bytes(part), bool(more))
        if len(self._fragments) > _HELD_FRAGMENTS:
            del self._fragments[next(iter(self._fragments))]
            self.skipped += 1
        at, data = 0, b""
        while at in parts:
            piece, more = parts[at]
            data += piece
            at += len(piece)
            if not more:
                del self._fragments[key]
                return {6: dpkt.tcp.TCP, 17: dpkt.udp.UDP}.get(protocol, lambda _: None)(data)
            if not piece:
                break
        return None


@dataclass(slots=True)
class _Connection:
    """One direction of a TCP connection: segments in, bytes in sequence out."""

    name: str
    source: str
    start: int = 0
    """Sequence number of the first byte."""
    due: int | None = None
    """Place of the next byte, counted on beyond 32 bits; None before the first segment."""
    held: dict[int, bytes] = field(default_factory=dict)
    """Segments behind a gap, by place."""
    last_ns: int = 0

    def take(self, sequence: int, flags: int, data: bytes, arrival_ns: int) -> Iterator[Chunk]:
        self.last_ns = arrival_ns
        opening = bool(flags & dpkt.tcp.TH_SYN)
        sequence += opening
        if self.due is None or (opening and sequence != self.start):
            yield from self.give_up()
            self.start = self.due = sequence
        if not data:
            return
        place = self.due + ((sequence - self.due + (1 << 31)) & 0xFFFFFFFF) - (1 << 31)
        self.held[place] = max(self.held.get(place, b""), data, key=len)
        yield from self._deliver()
        while len(self.held) > _HELD_SEGMENTS:
            yield from self._jump()

    def give_up(self) -> Iterator[Chunk]:
        """Take every gap as lost."""
        while self.held:
            yield from self._jump()

    def _jump(self) -> Iterator[Chunk]:
        self.due = min(self.held)
        yield from self._deliver()

    def _deliver(self) -> Iterator[Chunk]:
        """Hand over what is in sequence; of bytes that came twice, the first."""
        while self.due is not None and self.held and (place := min(self.held)) <= self.due:
            data = self.held.pop(place)[self.due - place :]
            self.due += len(data)
            if data:
                yield Chunk(self.name, self.source, self.last_ns, data)


def _interface(order: str, body: bytes) -> tuple[int, Callable[[int], int]]:
    """Link type and clock of a pcapng interface description."""
    (link,) = struct.unpack(order + "H", body[:2].ljust(2, b"\xff"))
    at, resolution, offset = 8, 6, 0
    while at + 4 <= len(body):
        code, length = struct.unpack(order + "HH", body[at : at + 4])
        value = body[at + 4 : at + 4 + length]
        if code == 9 and value:
            resolution = value[0]
        elif code == 14 and len(value) == 8:
            (offset,) = struct.unpack(order + "q", value)
        at += 4 + (length + 3) // 4 * 4
    ticks = 2 ** (resolution & 127) if resolution & 128 else 10**resolution
    return link, lambda count: offset * _SECOND + count * _SECOND // ticks


def _names(protocol: str, ip: Any, segment: Any) -> tuple[str, str]:
    """Flow and source of a transport packet."""
    sender = f"{ipaddress.ip_address(ip.src)}:{segment.sport}"
    return f"{protocol} {sender} {ipaddress.ip_address(ip.dst)}:{segment.dport}", sender


def _network(packet: Any) -> Any:
    """IP packet inside a link-layer packet; None where there is none."""
    inner = packet.data
    return inner if isinstance(inner, dpkt.ip.IP | dpkt.ip6.IP6) else None


def _raw_ip(packet: bytes) -> Any:
    return dpkt.ip6.IP6(packet) if packet[0] >> 4 == 6 else dpkt.ip.IP(packet)


def _nothing(packet: bytes) -> Any:
    raise ValueError(f"{len(packet)} bytes of a link type that is not read")


_LINKS: dict[int, Callable[[bytes], Any]] = {
    0: lambda packet: _network(dpkt.loopback.Loopback(packet)),
    1: lambda packet: _network(dpkt.ethernet.Ethernet(packet)),
    12: _raw_ip,
    14: _raw_ip,
    101: _raw_ip,
    108: lambda packet: _network(dpkt.loopback.Loopback(packet)),
    113: lambda packet: _network(dpkt.sll.SLL(packet)),
    228: _raw_ip,
    229: _raw_ip,
    276: lambda packet: _network(dpkt.sll2.SLL2(packet)),
}
"""What finds the IP packet, by the link types of tcpdump.org."""
