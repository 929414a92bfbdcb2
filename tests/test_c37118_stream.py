"""The stream parser: any cuts, any damage, any order; and what it may never do."""

from __future__ import annotations

import os
import random
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from fastcrc.crc16 import ibm_3740
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.block import FrameBatch
from streams.c37118.configuration import ConfigurationFrame, PhasorDefinition, PmuConfiguration, encode_configuration
from streams.c37118.frame import CommandFrame, FrameType, HeaderFrame, Stamp, encode_command, encode_header
from streams.c37118.samples import compile_layout, encode
from streams.c37118.stream import Item, Protocol, Refusal, RefusedFrame, StreamParser
from streams.captures import read_capture
from tests.reference.c37118 import crc, decode_frame, random_configuration, random_frame, seal, values_array

REAL = Path(__file__).parents[1].parent / "shared" / "data" / "real"
SHELBY = REAL / "shelby" / "Sample1344.PmuCapture"
CAPTURES = REAL / "c37118_pcaps"


def shelby() -> bytes:
    if not SHELBY.exists():
        pytest.skip(f"{SHELBY} is not there: the shared captures come beside the checkout")
    return SHELBY.read_bytes()


def stream(seed: int = 0, frames: int = 12, kind: FrameType = FrameType.CFG2, id_code: int = 7) -> tuple[bytes, bytes]:
    """A configuration's bytes, and those of data frames of one size."""
    rng = np.random.default_rng(seed)
    configuration = random_configuration(rng, kind, id_code=id_code)
    data = b"".join(random_frame(configuration, rng, 1_700_000_000 + i) for i in range(frames))
    return b"".join(encode_configuration(configuration)), data


def flat(items: list[Item]) -> list[object]:
    """What came out, without the seams between batches."""
    out: list[object] = []
    for item in items:
        if isinstance(item, FrameBatch):
            names = tuple(p.name for p in item.table.pmus)
            for t, time in enumerate(item.time_ns.tolist()):
                stat = item.stat[t].tobytes()
                out.append((names, time, int(item.time_flags[t]), stat, item.values[t].tobytes()))
        else:
            out.append(item)
    return out


def run(pieces: list[bytes]) -> tuple[list[object], StreamParser]:
    parser = StreamParser("s")
    items = [item for piece in pieces for item in parser.feed(piece)]
    return flat(items + parser.finish()), parser


def messy() -> bytes:
    """Everything that may happen to a stream, in one."""
    configuration, data = stream(1)
    size = int.from_bytes(data[2:4], "big")
    other_configuration, other = stream(2, id_code=8)
    new_configuration, new = stream(3)
    rng = np.random.default_rng(4)
    damaged = bytearray(data)
    damaged[size + 20] ^= 1  # the second frame's payload
    damaged[4 * size + 3] ^= 0x40  # the fifth frame's size
    damaged[7 * size] = 0  # the eighth frame's sync word
    command = encode_command(CommandFrame(7, Stamp(5), 2))
    header = encode_header(HeaderFrame(7, Stamp(6), b"hello"))
    return b"".join(
        (
            rng.bytes(100), data, configuration, data, rng.bytes(500), b"\xaa\x01\xff\xff\x00\x07", header,
            bytes(damaged), other_configuration, command, other, data, new, new_configuration, new, new[: size // 2],
        )
    )  # fmt: skip


def test_all_kinds_of_trouble_are_counted_and_nothing_good_is_lost() -> None:
    _, parser = run([messy()])
    counts = parser.counts
    assert counts.frames_by_type["data"] == 12 + 12 + 9 + 12 + 12 + 12 + 12
    assert counts.frames_decoded == 12 + 9 + 12 + 12 + 12
    assert counts.frames_by_type["header"] == counts.frames_by_type["command"] == 1
    assert counts.frames_by_type["cfg2"] == 3
    assert counts.refused[Refusal.NO_CONFIGURATION] == 12
    assert counts.refused[Refusal.SIZE] == 12
    assert counts.crc_errors == counts.refused[Refusal.CRC] >= 2
    assert counts.bytes_skipped >= 600


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, len(messy())), max_size=40))
def test_output_does_not_depend_on_the_cuts(cuts: list[int]) -> None:
    data = messy()
    at = sorted({0, len(data), *cuts})
    items, parser = run([data[a:b] for a, b in pairwise(at)])
    expected_items, expected = run([data])
    assert parser.counts == expected.counts
    key = repr  # interleaved streams may come out in another order of batches
    assert sorted(map(key, items)) == sorted(map(key, expected_items))


def test_byte_by_byte_is_no_different() -> None:
    for data in (messy(), shelby()[:3000]):
        items, parser = run([data[i : i + 1] for i in range(len(data))])
        expected_items, expected = run([data])
        assert parser.counts == expected.counts
        assert sorted(map(repr, items)) == sorted(map(repr, expected_items))


def test_one_damaged_frame_costs_one_frame() -> None:
    configuration, data = stream(5, frames=30)
    size = int.from_bytes(data[2:4], "big")
    for at in range(size):
        damaged = bytearray(configuration + data)
        damaged[len(configuration) + 10 * size + at] ^= 0x55
        _, parser = run([bytes(damaged)])
        assert parser.counts.frames_decoded == 29, at
        assert parser.counts.bytes_skipped in (0, size), at


def test_values_are_those_of_the_slow_decoder() -> None:
    rng = np.random.default_rng(6)
    configuration = random_configuration(rng)
    frames = [random_frame(configuration, rng) for _ in range(300)]
    parser = StreamParser("s", np.float64)
    (shown, batch) = parser.feed(b"".join(encode_configuration(configuration)) + b"".join(frames), arrival_ns=77)
    assert isinstance(batch, FrameBatch)
    assert shown == configuration
    expected = values_array([decode_frame(configuration, f) for f in frames], batch.table.width)
    np.testing.assert_allclose(batch.values, expected, rtol=1e-12, atol=1e-12)
    assert set(batch.arrival_ns.tolist()) == {77}
    assert batch.table.pmus[0].source == "s"


def test_arrival_is_that_of_the_piece_that_completed_a_frame() -> None:
    configuration, data = stream(7, frames=4)
    size = len(data) // 4
    parser = StreamParser()
    parser.feed(configuration)
    assert parser.feed(data[:10], 1) == []
    (batch,) = parser.feed_segments([(2, data[10:size]), (3, data[size : 3 * size - 1]), (4, data[3 * size - 1 :])])
    assert isinstance(batch, FrameBatch)
    assert batch.arrival_ns.tolist() == [2, 3, 4, 4]


def test_interleaved_id_codes_keep_their_configurations() -> None:
    configuration, data = stream(8, frames=50)
    other_configuration, other = stream(9, frames=50, id_code=8)
    size, other_size = len(data) // 50, len(other) // 50
    mixed = b"".join(data[i * size : (i + 1) * size] + other[i * other_size : (i + 1) * other_size] for i in range(50))
    parser = StreamParser()
    items = parser.feed(configuration + other_configuration + mixed)
    batches = [item for item in items if isinstance(item, FrameBatch)]
    assert [len(b.time_ns) for b in batches] == [50, 50]
    assert flat(batches) == flat(run([configuration + data])[1].feed(data) + run([other_configuration])[1].feed(other))


def test_a_repeated_configuration_changes_nothing_and_cfg1_does_not_displace_cfg2() -> None:
    configuration, data = stream(10)
    size = len(data) // 12
    rng = np.random.default_rng(11)
    cfg1 = b"".join(encode_configuration(random_configuration(rng, FrameType.CFG1)))
    parser = StreamParser()
    items = parser.feed(configuration + data[: 6 * size] + configuration + cfg1 + data[6 * size :])
    batches = [item for item in items if isinstance(item, FrameBatch)]
    assert [len(b.time_ns) for b in batches] == [6, 6]
    assert batches[0].table is batches[1].table
    assert not parser.counts.refused


def test_cfg1_serves_until_something_better_comes() -> None:
    configuration, data = stream(12, kind=FrameType.CFG1)
    parser = StreamParser()
    assert parser.feed(configuration + data)
    assert parser.counts.frames_decoded == 12


def test_continued_cfg3_through_the_stream() -> None:
    pmu = PmuConfiguration("x" * 255, 1, 60, tuple(PhasorDefinition("p" * 250) for _ in range(9)))
    configuration = ConfigurationFrame(9, (pmu,) * 100, 30, kind=FrameType.CFG3)
    frames = encode_configuration(configuration)
    assert len(frames) > 2
    rng = np.random.default_rng(13)
    data = random_frame(configuration, rng)
    command = encode_command(CommandFrame(9, Stamp(), 2))
    parser = StreamParser()
    items = parser.feed(frames[0] + command + b"".join(frames[1:]) + data)
    assert [type(i) for i in items] == [CommandFrame, ConfigurationFrame, FrameBatch]
    assert items[1] == configuration
    assert parser.counts.frames_by_type["cfg3"] == len(frames)
    for order in ([1], [0, 2], [0, 0, *range(1, len(frames))]):
        parser = StreamParser()
        items = parser.feed(b"".join(frames[i] for i in order))
        assert parser.counts.refused[Refusal.FRAGMENT] == 1
        assert (configuration in items) == (len(order) > 2)


def test_announced_changes_are_counted() -> None:
    configuration, data = stream(14, frames=1)
    body = bytearray(data[:-2])
    body[14:16] = b"\x04\x00"
    (*_, batch) = StreamParser().feed(configuration + seal(bytes(body)))
    assert isinstance(batch, FrameBatch)
    parser = StreamParser()
    parser.feed(configuration + seal(bytes(body)) + seal(bytes(body)))
    assert parser.counts.changes_announced == 2


def test_known_configurations_stand_in_only_where_the_size_fits() -> None:
    rng = np.random.default_rng(15)
    configuration = random_configuration(rng)
    data = random_frame(configuration, rng)
    known: dict[int, ConfigurationFrame] = {}
    parser = StreamParser(known=known)
    assert isinstance(parser.feed(data)[0], RefusedFrame)
    known[7] = replace(configuration, pmus=configuration.pmus * 2)
    assert isinstance(parser.feed(data)[0], RefusedFrame)
    known[7] = configuration
    assert isinstance(parser.feed(data)[0], FrameBatch)


def test_truncated_end_is_refused_once() -> None:
    configuration, data = stream(16)
    items, parser = run([configuration + data[:-3]])
    assert isinstance(items[-1], RefusedFrame)
    assert items[-1].reason is Refusal.TRUNCATED
    assert parser.counts.frames_decoded == 11
    assert parser.counts.crc_errors == 0


def test_shelby_speaks_ieee_1344() -> None:
    (configuration, batch) = StreamParser("shelby").feed(shelby())
    assert isinstance(configuration, ConfigurationFrame)
    assert isinstance(batch, FrameBatch)
    assert len(batch.time_ns) == 973
    pmu = configuration.pmus[0]
    # from Sample1344.Configuration.xml beside it
    assert (pmu.station, pmu.id_code, pmu.nominal_hz, configuration.rate_hz) == ("Shelby", 2, 60, 30.0)
    assert [p.name for p in pmu.phasors] == ["Bus 1", "Bus 2", "Cordova", "Dell", "Lagoon Creek"]
    assert [round(p.scale * 1e5) for p in pmu.phasors] == [2466979, 2466979, 36621, 54931, 54931]
    assert [p.is_current for p in pmu.phasors] == [False, False, True, True, True]
    assert [d.labels[0] for d in pmu.digitals] == ["Digital1"]
    assert configuration.stamp.soc == (633132117120000000 - 621355968000000000) // 10**7
    steps = np.diff(batch.time_ns)
    assert abs(steps - 1e9 / 30).max() <= 1
    assert (batch.stat == 0).all()
    # the first data frame, by hand: f184 2d22 at 24.66979 V a count, ffdf mHz, ffc3 centihertz a second
    first = batch.values[0, 0]
    np.testing.assert_allclose(first[0], np.hypot(-3708, 11554) * 24.66979, rtol=1e-6)
    np.testing.assert_allclose(first[1], np.degrees(np.arctan2(11554, -3708)), rtol=1e-6)
    np.testing.assert_allclose(first[10:], [60 - 0.033, -0.61, 0.0], rtol=1e-6)


def test_1344_status_becomes_stat() -> None:
    data = shelby()
    frames = bytearray(data[160 : 160 + 4 * 36])
    for i, bits in enumerate((0x0024, 0x8024, 0x4024, 0xC024)):
        frames[36 * i + 6 : 36 * i + 8] = bits.to_bytes(2, "big")
        frames[36 * i + 34 : 36 * i + 36] = crc(bytes(frames[36 * i : 36 * i + 34])).to_bytes(2, "big")
    (_, batch) = StreamParser().feed(data[:160] + bytes(frames))
    assert isinstance(batch, FrameBatch)
    assert batch.stat[:, 0].tolist() == [0, 0x2000, 0xC000, 0xE000]


def test_1344_resynchronises() -> None:
    data = shelby()
    damaged = bytearray(data)
    damaged[160 + 36 * 10 + 20] ^= 1
    garbage = np.random.default_rng(0).bytes(200)
    items, parser = run([garbage + bytes(damaged[: 160 + 36 * 500]) + garbage + data[160 + 36 * 500 :]])
    assert parser.protocol is Protocol.IEEE1344
    assert parser.counts.frames_decoded == 972
    assert parser.counts.crc_errors == parser.counts.refused[Refusal.CRC] == 1
    assert parser.counts.bytes_skipped == 400
    assert items


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=3000))
def test_chance_bytes_are_no_stream(data: bytes) -> None:
    items, parser = run([data])
    assert parser.protocol is Protocol.UNKNOWN
    assert not [i for i in items if not isinstance(i, RefusedFrame)]
    assert parser.counts.bytes_skipped == len(data)


def mutate(rng: random.Random, frame: bytes) -> bytes:
    """A frame with something done to it: bits, bytes, cuts, repeats, lies about its size; now and then a true CRC."""
    out = bytearray(frame)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(out) or 1)
        match rng.randrange(7):
            case 0:
                out[at : at + 1] = bytes(b ^ 1 << rng.randrange(8) for b in out[at : at + 1])
            case 1:
                out[at : at + 1] = rng.randbytes(1)
            case 2:
                del out[at : at + rng.randint(1, 8)]
            case 3:
                out[at:at] = rng.randbytes(rng.randint(1, 8))
            case 4:
                out[at : at + 2] = rng.choice([0, 1, 0x7FFF, 0x8000, 0xFFFF]).to_bytes(2, "big")
            case 5:
                out[2:4] = rng.randbytes(2)
            case 6:
                out[14:20] = rng.randbytes(6)
    if rng.random() < 0.3 and len(out) > 16:  # a lie with a good CRC: what a bad device or an attacker sends
        out[2:4] = len(out).to_bytes(2, "big")
        out[-2:] = ibm_3740(bytes(out[:-2])).to_bytes(2, "big")
    return bytes(out)


def real_frames() -> list[bytes]:
    """Frames of the real captures, where they are there."""
    frames: list[bytes] = []
    for path in sorted(CAPTURES.glob("*.pcap")):
        stream = b"".join(chunk.data for chunk in read_capture(path))
        at = 0
        while at + 4 < len(stream) and len(frames) < 400:
            size = int.from_bytes(stream[at + 2 : at + 4], "big")
            frames.append(stream[at : at + size])
            at += size
    return frames[:: max(1, len(frames) // 60)]


def resident_bytes() -> int:
    """Memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_200_000_mutated_frames() -> None:
    """No exception, nothing accepted that the bit-by-bit CRC would refuse, memory flat."""
    generator = np.random.default_rng(20)
    frames = real_frames()
    for seed, kind in enumerate([FrameType.CFG1, FrameType.CFG2, FrameType.CFG3] * 3):
        configuration = random_configuration(generator, kind, pmus=1 + seed % 3, id_code=1 + seed)
        frames += encode_configuration(configuration)
        frames += [random_frame(configuration, generator) for _ in range(4)]
    frames += [encode_command(CommandFrame(7, Stamp(5), 2)), encode_header(HeaderFrame(7, Stamp(6), b"hello"))]
    rng = random.Random(21)  # noqa: S311 - a seeded mutator, no secret
    parser = StreamParser()
    decoded = refused = sent = 0
    settled = 0
    for turn in range(4000):
        good = rng.choice(frames)
        piece = b"".join([mutate(rng, rng.choice(frames)) for _ in range(50)]) + good
        sent += 50
        for item in parser.feed(piece, 1):
            if isinstance(item, FrameBatch):
                decoded += len(item.time_ns)
                assert item.values.shape == (len(item.time_ns), len(item.table.pmus), item.table.width)
            elif isinstance(item, RefusedFrame):
                refused += 1
        if turn == 1000:
            settled = resident_bytes()
    counts = parser.counts
    assert sent == 200_000
    assert decoded == counts.frames_decoded > 1000
    assert refused == counts.refused.total() > 10_000
    assert counts.crc_errors == counts.refused[Refusal.CRC] > 10_000
    assert resident_bytes() < settled + (8 << 20)


def test_every_accepted_mutation_has_the_crc_of_the_definition() -> None:
    """One mutated frame at a time: as many frames come out as places in it hold a frame with a true CRC, at most."""
    rng = random.Random(22)  # noqa: S311 - a seeded mutator, no secret
    configuration, data = stream(5, frames=3)
    size = len(data) // 3
    frames = [configuration, *(data[i * size : (i + 1) * size] for i in range(3))]
    accepted = 0
    for _ in range(1500):
        frame = mutate(rng, rng.choice(frames))
        parser = StreamParser()
        parser.feed(configuration)
        parser.feed(frame)
        parser.finish()
        true = [
            at
            for at in range(len(frame) - 15)
            if frame[at] == 0xAA
            and 16 <= (length := int.from_bytes(frame[at + 2 : at + 4], "big")) <= len(frame) - at
            and crc(frame[at : at + length - 2]) == int.from_bytes(frame[at + length - 2 : at + length], "big")
        ]
        found = parser.counts.frames_total - 1
        assert found <= len(true)
        accepted += found
    assert accepted > 100


def test_a_frame_that_was_cut_short_takes_no_sound_one_with_it() -> None:
    """Where it claims to end another may start, or two bytes in the midst of one look like a start."""
    configuration, data = stream(11)
    size = len(data) // 12
    for lost in range(size, len(data), size):
        _, parser = run([configuration, data, configuration[:-lost], data])
        assert parser.counts.frames_decoded == 24, lost
        assert parser.counts.crc_errors == 1
    for seed, kept in ((2, 683), (12, 687), (15, 945)):
        configuration, data = stream(seed)
        behind = len(configuration) - kept
        assert configuration[behind] == 0xAA
        assert configuration[behind + 1] >> 4 in set(FrameType)
        for pieces in (
            [configuration[:kept], configuration, data],
            [bytes([b]) for b in configuration[:kept] + configuration + data],
        ):
            _, parser = run(pieces)
            assert parser.counts.frames_decoded == 12
            assert parser.counts.crc_errors == 1


def straddles(data: bytes, border: int) -> bool:
    """Whether bytes before the border make a frame with a true CRC together with bytes behind it."""
    claims = [(at, int.from_bytes(data[at + 2 : at + 4], "big")) for at in range(border) if data[at] == 0xAA]
    return any(border < at + size <= len(data) and size >= 16 and crc(data[at : at + size]) == 0 for at, size in claims)


def test_a_check_word_that_fits_by_chance_makes_a_frame() -> None:
    """Once in 65,536: nine bytes of a configuration, and all but the last nine of it, are a frame to anybody."""
    configuration, data = stream(11)
    assert straddles(configuration[:9] + configuration, 9)
    items, parser = run([configuration[:9], configuration, data, configuration, data])
    assert [item.reason for item in items if isinstance(item, RefusedFrame)] == [
        Refusal.CONFIGURATION,
        *[Refusal.NO_CONFIGURATION] * 12,
    ]
    assert parser.counts.frames_decoded == 12


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_bytes_between_good_frames_raise_nothing(data: st.DataObject) -> None:
    configuration, frames = stream(data.draw(st.integers(0, 20)))
    good = st.sampled_from([configuration, frames, frames[: len(frames) // 12]])
    cut = good.flatmap(lambda f: st.integers(0, len(f)).map(lambda n: f[:n]))
    pieces = data.draw(st.lists(st.one_of(st.binary(max_size=60), good, cut), max_size=12))
    items, parser = run([*pieces, configuration, frames, configuration])
    assert items
    before = b"".join(pieces)
    if not straddles(before + configuration + frames, len(before)):
        assert parser.counts.frames_decoded >= 11


def test_shelby_goes_on_as_c37118() -> None:
    """What a 1344 PMU sent can be sent again in C37.118's frames, to the bit and the sample count."""
    (configuration, batch) = StreamParser("shelby", np.float64).feed(shelby())
    assert isinstance(configuration, ConfigurationFrame)
    assert isinstance(batch, FrameBatch)
    forwarded = replace(configuration, version=2)
    layout = compile_layout(forwarded, "shelby")
    sent = b"".join(encode_configuration(forwarded)) + encode(layout, batch)
    (again, received) = StreamParser("shelby", np.float64).feed(sent)
    assert again == forwarded
    assert flat([received]) == flat([batch])
