"""The stream parser: any cuts, any damage, any order; and what it may never do."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.block import FrameBatch
from streams.c37118.configuration import ConfigurationFrame, PhasorDefinition, PmuConfiguration, encode_configuration
from streams.c37118.frame import CommandFrame, FrameType, HeaderFrame, Stamp, encode_command, encode_header
from streams.c37118.stream import Item, Protocol, RefusedFrame, Refusal, StreamParser
from tests.reference.c37118 import crc, decode_frame, random_configuration, random_frame, seal, values_array

SHELBY = Path(__file__).parents[1].parent / "shared" / "data" / "real" / "shelby" / "Sample1344.PmuCapture"


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
            rng.bytes(100), data, configuration, data, rng.bytes(500), b"\xaa\x01\xff\xff\x00\x07", header, bytes(damaged),
            other_configuration, command, *(d for d in (other, data)), new, new_configuration, new, new[: size // 2],
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
    items, parser = run([data[a:b] for a, b in zip(at, at[1:], strict=False)])
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
    mixed = b"".join(
        data[i * size : (i + 1) * size] + other[i * other_size : (i + 1) * other_size] for i in range(50)
    )
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


def mutations(rng: np.random.Generator, frames: list[bytes]) -> bytes:
    """A frame with something done to it: bits, bytes, cuts, repeats, lies about its size; now and then a true CRC after."""
    frame = bytearray(frames[int(rng.integers(len(frames)))])
    for _ in range(int(rng.integers(1, 4))):
        at, kind = int(rng.integers(len(frame))), int(rng.integers(7))
        if kind == 0:
            frame[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            frame[at] = int(rng.integers(256))
        elif kind == 2:
            del frame[at : at + int(rng.integers(1, 9))]
        elif kind == 3:
            frame[at:at] = rng.bytes(int(rng.integers(1, 9)))
        elif kind == 4:
            frame[at : at + 2] = int(rng.choice([0, 1, 0x7FFF, 0x8000, 0xFFFF])).to_bytes(2, "big")
        elif kind == 5 and len(frame) > 4:
            frame[2:4] = int(rng.integers(65536)).to_bytes(2, "big")
        elif kind == 6 and len(frame) > 20:
            frame[14:20] = rng.bytes(6)
        if not frame:
            return b"\xaa"
    if rng.random() < 0.3 and len(frame) > 16:  # a lie with a good CRC: what an attacker or a bad device sends
        frame[2:4] = len(frame).to_bytes(2, "big")
        frame[-2:] = crc(bytes(frame[:-2])).to_bytes(2, "big")
    return bytes(frame)


def test_200_000_mutated_frames() -> None:
    rng = np.random.default_rng(20)
    frames: list[bytes] = []
    good: set[bytes] = set()
    for seed, kind in enumerate([FrameType.CFG1, FrameType.CFG2, FrameType.CFG3] * 3):
        configuration = random_configuration(rng, kind, pmus=1 + seed % 3, id_code=1 + seed)
        frames += encode_configuration(configuration)
        frames += [random_frame(configuration, rng) for _ in range(4)]
    frames += [encode_command(CommandFrame(7, Stamp(5), 2)), encode_header(HeaderFrame(7, Stamp(6), b"hello"))]
    # each base mutation is sent in many company: 20,000 of them, ten times in another order
    mutated = [mutations(rng, frames) for _ in range(20_000)]
    parser = StreamParser()
    accepted = 0
    peak_after_first = 0
    tracemalloc.start()
    for turn in range(10):
        order = rng.permutation(len(mutated))
        for at in range(0, len(order), 50):
            piece = b"".join(mutated[i] for i in order[at : at + 50]) + frames[at // 50 % len(frames)]
            before = parser.counts.frames_by_type["data"]
            items = parser.feed(piece, 1)
            decoded = sum(len(i.time_ns) for i in items if isinstance(i, FrameBatch))
            accepted += decoded
            refused = sum(1 for i in items if isinstance(i, RefusedFrame) and _is_data(i))
            assert decoded + refused == parser.counts.frames_by_type["data"] - before
        if turn == 0:
            peak_after_first = tracemalloc.get_traced_memory()[0]
    current, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    parser.finish()
    assert accepted == parser.counts.frames_decoded > 0
    assert parser.counts.crc_errors > 10_000
    assert current < peak_after_first + (1 << 20)
    assert peak < 64 << 20
    assert not good


def _is_data(item: RefusedFrame) -> bool:
    return item.reason in (Refusal.NO_CONFIGURATION, Refusal.SIZE)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_no_mutated_frame_is_accepted_with_a_wrong_crc(seed: int) -> None:
    """Every frame that is accepted alone has the CRC of the bit-by-bit definition."""
    rng = np.random.default_rng(seed)
    configuration, data = stream(seed % 97, frames=1)
    frame = mutations(rng, [data, configuration])
    parser = StreamParser()
    parser.feed(configuration)
    total = parser.counts.frames_total
    parser.feed(frame)
    parser.finish()
    whole = [
        frame[a:b]
        for a in range(len(frame))
        if frame[a] == 0xAA and len(frame) - a >= 16
        for b in [a + int.from_bytes(frame[a + 2 : a + 4], "big")]
        if 16 <= b - a and b <= len(frame) and crc(frame[a : b - 2]) == int.from_bytes(frame[b - 2 : b], "big")
    ]
    assert parser.counts.frames_total - total <= len(whole)
