"""Captures: link types, lost and repeated segments, fragments, cut-off files; the same stream, however captured."""

from __future__ import annotations

import json
import random
import struct
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from streams.block import FrameBatch
from streams.c37118.configuration import ConfigurationFrame, encode_configuration
from streams.c37118.frame import CommandFrame, Stamp, encode_command
from streams.captures import CaptureReader, CaptureSummary, read_capture, read_frames, summary
from streams.errors import CaptureError
from tests.reference.c37118 import random_configuration, random_frame

REAL = Path(__file__).parents[1].parent / "shared" / "data" / "real"
FIN, SYN, ACK = 1, 2, 16
SERVER, CLIENT = bytes([192, 168, 0, 241]), bytes([192, 168, 0, 20])


def shared(name: str) -> Path:
    path = REAL / name
    if not path.exists():
        pytest.skip(f"{path} is not there: the shared captures come beside the checkout")
    return path


def stream(seed: int = 0, frames: int = 40, id_code: int = 7) -> tuple[bytes, bytes]:
    rng = np.random.default_rng(seed)
    configuration = random_configuration(rng, id_code=id_code)
    return (
        b"".join(encode_configuration(configuration)),
        b"".join(random_frame(configuration, rng, 1_700_000_000 + i) for i in range(frames)),
    )


def tcp(sequence: int, data: bytes, flags: int = ACK, *, back: bool = False, port: int = 5000) -> bytes:
    """An IPv4 packet from the server, or from the client."""
    ports = (port, 4712) if back else (4712, port)
    segment = struct.pack(">HHIIBBHHH", *ports, sequence & 0xFFFFFFFF, 0, 0x50, flags, 8192, 0, 0) + data
    return ipv4(segment, 6, *((CLIENT, SERVER) if back else (SERVER, CLIENT)))


def udp(data: bytes, port: int = 4713) -> bytes:
    return struct.pack(">HHHH", port, 4713, 8 + len(data), 0) + data


def ipv4(payload: bytes, protocol: int, source: bytes, target: bytes, *, fragment: int = 0, ident: int = 0) -> bytes:
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(payload), ident, fragment, 64, protocol, 0)
    return head + source + target + payload


def ethernet(packet: bytes, kind: int = 0x0800, tag: bytes = b"") -> bytes:
    return bytes(12) + tag + struct.pack(">H", kind) + packet


def pcap(packets: list[bytes], link: int = 1, order: str = "<", nanoseconds: bool = False) -> bytes:  # noqa: FBT001, FBT002 - a builder's switch
    magic = 0xA1B23C4D if nanoseconds else 0xA1B2C3D4
    out = struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, 1 << 18, link)
    for i, packet in enumerate(packets):
        out += struct.pack(order + "IIII", 1_700_000_000, i, len(packet), len(packet)) + packet
    return out


def block(order: str, kind: int, body: bytes) -> bytes:
    body += bytes(-len(body) % 4)
    length = struct.pack(order + "I", 12 + len(body))
    return struct.pack(order + "I", kind) + length + body + length


def pcapng(packets: list[bytes], order: str = "<", resolution: int | None = None) -> bytes:
    """Two interfaces: one of a link type that is not read, one Ethernet on which the packets are."""
    options = b"" if resolution is None else struct.pack(order + "HHBxxxHH", 9, 1, resolution, 0, 0)
    out = block(order, 0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1))
    out += block(order, 1, struct.pack(order + "HHI", 147, 0, 0)) + block(order, 4, b"names" * 3)
    out += block(order, 1, struct.pack(order + "HHI", 1, 0, 0) + options)
    ticks = 10 ** (6 if resolution is None else resolution)
    for i, packet in enumerate(packets):
        now = 1_700_000_000 * ticks + i
        head = struct.pack(order + "IIIII", 1, now >> 32, now & 0xFFFFFFFF, len(packet), len(packet))
        out += block(order, 6, head + packet)
    return out


def decoded(path: Path) -> tuple[list[tuple[int, bytes]], CaptureReader]:
    reader = CaptureReader(path)
    out: list[tuple[int, bytes]] = []
    for _, item in reader:
        if isinstance(item, FrameBatch):
            out += [(t, v.tobytes()) for t, v in zip(item.time_ns.tolist(), item.values, strict=True)]
    return out, reader


def raw(tmp_path: Path, data: bytes) -> list[tuple[int, bytes]]:
    path = tmp_path / "raw.bin"
    path.write_bytes(data)
    return decoded(path)[0]


def segments(data: bytes, start: int, size: int) -> list[bytes]:
    """A connection from SYN to FIN, in segments."""
    packets = [tcp(start, b"", SYN | ACK)]
    at = range(0, len(data), size)
    packets += [tcp(start + 1 + i, data[i : i + size]) for i in at]
    return [*packets, tcp(start + 1 + len(data), b"", FIN | ACK)]


@pytest.mark.parametrize("start", [0, 1000, 0xFFFFFFFF - 700])
def test_tcp_repeated_overlapping_and_out_of_order_is_put_in_sequence(tmp_path: Path, start: int) -> None:
    configuration, data = stream(1)
    whole = configuration + data
    packets = segments(whole, start, 333)
    rng = random.Random(start)  # noqa: S311 - a seeded shuffle, no secret
    packets += [packets[5], packets[7]]
    packets.insert(9, tcp(start + 1 + 500, whole[500:1500]))  # overlaps what came and what comes
    for i in range(2, len(packets) - 5, 4):
        window = packets[i : i + 4]
        rng.shuffle(window)
        packets[i : i + 4] = window
    packets.insert(0, tcp(77, encode_command(CommandFrame(7, Stamp(), 5)), back=True))
    path = tmp_path / "x.pcap"
    path.write_bytes(pcap([ethernet(p) for p in packets]))
    got, reader = decoded(path)
    assert got == raw(tmp_path, whole)
    assert len(got) == 40
    assert reader.counts.frames_by_type == {"command": 1, "cfg2": 1, "data": 40}
    assert reader.counts.bytes_skipped == reader.counts.crc_errors == reader.packets_skipped == 0


def test_a_lost_segment_costs_its_frames_only(tmp_path: Path) -> None:
    configuration, data = stream(2, frames=200)
    size = len(data) // 200
    packets = segments(configuration + data, 5, size)
    first = len(configuration) // size + 3
    del packets[first + 50]
    path = tmp_path / "x.pcap"
    path.write_bytes(pcap([ethernet(p) for p in packets]))
    got, _ = decoded(path)
    expected = raw(tmp_path, configuration + data)
    assert 197 <= len(got) < 200
    assert set(got) < set(expected)


def test_a_new_connection_from_the_same_ports_starts_anew(tmp_path: Path) -> None:
    configuration, data = stream(3)
    packets = segments(configuration + data, 5, 400) + segments(data, 3_000_000_000, 400)
    path = tmp_path / "x.pcap"
    path.write_bytes(pcap([ethernet(p) for p in packets]))
    got, reader = decoded(path)
    assert len(got) == 80
    assert reader.counts.bytes_skipped == 0


def test_every_link_type_and_byte_order_says_the_same(tmp_path: Path) -> None:
    configuration, data = stream(4)
    whole = configuration + data
    expected = raw(tmp_path, whole)
    packets = segments(whole, 9, 700)
    vlan = struct.pack(">HH", 0x8100, 5)
    v6 = [
        struct.pack(">IHBB", 6 << 28, len(p) - 20, 6, 64) + bytes(15) + b"\1" + bytes(15) + b"\2" + p[20:]
        for p in packets
    ]
    files = {
        "ethernet": pcap([ethernet(p) for p in packets]),
        "big endian, nanoseconds": pcap([ethernet(p) for p in packets], order=">", nanoseconds=True),
        "vlan": pcap([ethernet(p, tag=vlan) for p in packets]),
        "cooked": pcap([struct.pack(">HHH8sH", 0, 1, 6, bytes(8), 0x0800) + p for p in packets], 113),
        "cooked 2": pcap([struct.pack(">HHIHBB8s", 0x0800, 0, 1, 1, 0, 6, bytes(8)) + p for p in packets], 276),
        "raw": pcap(packets, 101),
        "loopback": pcap([struct.pack("<I", 2) + p for p in packets], 0),
        "ipv6": pcap([ethernet(p, 0x86DD) for p in v6]),
        "raw ipv6": pcap(v6, 229),
        "pcapng": pcapng([ethernet(p) for p in packets]),
        "pcapng big endian, nanoseconds": pcapng([ethernet(p) for p in packets], ">", 9),
    }
    for name, content in files.items():
        path = tmp_path / "no-extension"
        path.write_bytes(content)
        got, reader = decoded(path)
        assert got == expected, name
        assert reader.packets_skipped == 0, name


@pytest.mark.parametrize(
    ("content", "tick_ns"),
    [(pcap, 1000), (lambda p: pcap(p, nanoseconds=True), 1), (pcapng, 1000), (lambda p: pcapng(p, resolution=9), 1)],
)
def test_arrival_times_are_exact(tmp_path: Path, content: object, tick_ns: int) -> None:
    configuration, data = stream(5, frames=3)
    assert callable(content)
    packets = [ethernet(ipv4(udp(d), 17, SERVER, CLIENT)) for d in (configuration, *three(data))]
    path = tmp_path / "x"
    path.write_bytes(content(packets))
    times = [item.arrival_ns.tolist() for _, item in read_frames(path) if isinstance(item, FrameBatch)]
    assert times == [[1_700_000_000 * 10**9 + i * tick_ns for i in (1, 2, 3)]]
    chunks = list(read_capture(path))
    assert [c.data for c in chunks] == [configuration, *three(data)]
    assert {c.source for c in chunks} == {"192.168.0.241:4713"}


def three(data: bytes) -> list[bytes]:
    size = len(data) // 3
    return [data[i * size : (i + 1) * size] for i in range(3)]


def test_udp_data_finds_its_configuration_after_it_and_on_another_connection(tmp_path: Path) -> None:
    configuration, data = stream(6, frames=3)
    other_configuration, other = stream(7, frames=3, id_code=8)
    packets = [ethernet(ipv4(udp(d), 17, SERVER, CLIENT)) for d in three(data) + three(other)]
    packets += [ethernet(p) for p in segments(configuration, 5, 50)]
    packets += [ethernet(ipv4(udp(other_configuration, 4999), 17, SERVER, CLIENT))]
    path = tmp_path / "x.pcap"
    path.write_bytes(pcap(packets))
    got, reader = decoded(path)
    assert len(got) == reader.counts.frames_decoded == 6
    assert not reader.counts.refused


def test_a_configuration_after_the_data_serves_raw_and_1344_streams_too(tmp_path: Path) -> None:
    configuration, data = stream(8)
    assert raw(tmp_path, data + configuration) == raw(tmp_path, configuration + data)
    shelby = shared("shelby/Sample1344.PmuCapture").read_bytes()
    assert raw(tmp_path, shelby[160:] + shelby[:160]) == raw(tmp_path, shelby)


def test_fragmented_datagrams_are_put_together(tmp_path: Path) -> None:
    configuration, data = stream(9, frames=3)
    packets = []
    for ident, datagram in enumerate([configuration, *three(data)]):
        payload = udp(datagram)
        cuts = [*range(0, len(payload), 40), len(payload)]
        parts = [(a, payload[a:b], b < len(payload)) for a, b in pairwise(cuts)]
        packets += [
            ethernet(ipv4(part, 17, SERVER, CLIENT, fragment=at // 8 | more << 13, ident=ident))
            for at, part, more in reversed(parts)
        ]
    path = tmp_path / "x.pcap"
    path.write_bytes(pcap(packets))
    got, reader = decoded(path)
    assert len(got) == 3
    assert reader.counts.bytes_skipped == 0


def test_foreign_traffic_and_broken_packets_are_left_out(tmp_path: Path) -> None:
    configuration, data = stream(10)
    rng = np.random.default_rng(0)
    packets = [ethernet(p) for p in segments(configuration + data, 5, 400)]
    foreign = [ethernet(tcp(1 + 1000 * i, rng.bytes(1000), port=80)) for i in range(50)]
    broken = [rng.bytes(int(rng.integers(60))) for _ in range(50)] + [ethernet(p[:30]) for p in packets[:5]]
    path = tmp_path / "x.pcap"
    path.write_bytes(pcap(foreign + packets[:3] + broken + packets[3:]))
    got, reader = decoded(path)
    assert len(got) == 40
    assert reader.counts.bytes_skipped == reader.counts.crc_errors == 0


@pytest.mark.parametrize("build", [pcap, pcapng])
def test_a_truncated_end_is_counted_wherever_it_is(tmp_path: Path, build: object) -> None:
    configuration, data = stream(11, frames=3)
    assert callable(build)
    packets = [ethernet(ipv4(udp(d), 17, SERVER, CLIENT)) for d in (configuration, *three(data))]
    whole = build(packets)
    start = len(build(packets[:1]))
    path = tmp_path / "x"
    for cut in range(start, len(whole)):
        path.write_bytes(whole[:cut])
        got, reader = decoded(path)
        at_a_packet = any(cut == len(build(packets[:n])) for n in range(5))
        assert reader.packets_skipped == (0 if at_a_packet else 1), cut
        assert len(got) == max(n for n in range(4) if len(build(packets[: n + 1])) <= cut)
    for cut in range(1, len(build([])) if build is pcap else 28):
        path.write_bytes(whole[:cut])
        with pytest.raises(CaptureError):
            decoded(path)


@pytest.mark.parametrize("mode", ["missing", "empty", "text", "noise", "folder", "gzip"])
def test_what_is_no_capture_is_refused_by_name(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "file"
    contents = {"empty": b"", "text": b"time,VA,IA\n" * 1000, "noise": np.random.default_rng(0).bytes(1 << 16)}
    contents["gzip"] = b"\x1f\x8b" + bytes(100)
    if mode == "folder":
        path.mkdir()
    elif mode != "missing":
        path.write_bytes(contents[mode])
    for function in (summary, lambda p: list(read_capture(p)), lambda p: list(read_frames(p))):
        with pytest.raises(CaptureError, match=str(path)):
            function(path)


def test_mutated_captures_raise_nothing_else(tmp_path: Path) -> None:
    configuration, data = stream(12, frames=5)
    packets = [ethernet(p) for p in segments(configuration + data, 5, 300)]
    packets += [ethernet(ipv4(udp(data[:500]), 17, SERVER, CLIENT, fragment=0x2000, ident=5))]
    rng = random.Random(13)  # noqa: S311 - a seeded mutator, no secret
    path = tmp_path / "x"
    for build in (pcap, pcapng):
        whole = build(packets)
        for _ in range(150):
            damaged = bytearray(whole)
            for _ in range(rng.randint(1, 6)):
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
            path.write_bytes(damaged)
            try:
                got = summary(path)
            except CaptureError:
                continue
            assert got.frames_decoded <= 6


def test_summary_of_shelby() -> None:
    got = summary(shared("shelby/Sample1344.PmuCapture"))
    assert got == CaptureSummary(
        frames_total=974,
        frames_by_type={"configuration": 1, "data": 973},
        frames_decoded=973,
        crc_errors=0,
        bytes_skipped=0,
        refused={},
        packets_skipped=0,
        rate_hz=30.0,
        first_time="2007-04-26T19:15:12.666666667Z",
        last_time="2007-04-26T19:15:45.066666667Z",
        pmus=got.pmus,
    )
    assert [asdict(p) for p in got.pmus] == [
        {"id_code": 2, "station": "Shelby", "phasors": 5, "analogs": 0, "digitals": 1, "nominal_hz": 60}
    ]
    assert json.loads(json.dumps(asdict(got)))["frames_decoded"] == 973


def test_summary_of_a_concentrator() -> None:
    got = summary(shared("c37118_pcaps/C37.118_4in1PMU_TCP.pcap"))
    assert (got.frames_total, got.frames_decoded, got.rate_hz) == (1353, 1342, 50.0)
    assert (got.first_time, got.last_time) == ("2008-08-01T16:10:02.140000Z", "2008-08-01T16:10:32.500000Z")
    assert [(p.id_code, p.station, p.phasors, p.analogs, p.digitals, p.nominal_hz) for p in got.pmus] == [
        (61, "PMU1", 3, 0, 1, 50),
        (62, "PMU2", 14, 8, 1, 50),
        (63, "PMU3", 14, 4, 1, 50),
        (64, "PMU4", 14, 0, 1, 50),
    ]


def test_two_sources_in_one_capture_keep_their_names() -> None:
    path = shared("c37118_pcaps/C37.118_2PMUsInSync_TCP.pcap")
    sources = {
        source: [p.station for p in item.pmus]
        for source, item in read_frames(path)
        if isinstance(item, ConfigurationFrame)
    }
    assert sources == {"192.168.0.241:4712": ["Blue PMU"], "192.168.0.60:4712": ["PMU1"]}
    for source, item in read_frames(path):
        if isinstance(item, FrameBatch):
            assert {p.source for p in item.table.pmus} == {source}
            assert (np.diff(item.arrival_ns) >= 0).all()
