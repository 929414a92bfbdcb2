"""Frames out of bytes that are cut and damaged anywhere, compared with the stream parser's idea of a good frame."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.c37118.configuration import decode_configuration, encode_configuration
from streams.c37118.frame import FrameType, HeaderFrame, Stamp, encode_header
from streams.c37118.stream import StreamParser
from streams.errors import FrameError
from streams.gateway.framing import Framer, Piece
from streams.gateway.status import Reason
from tests.reference.c37118 import random_configuration, random_frame

MANY = 1 << 20


class Parser(StreamParser):
    """The stream parser, writing down the frames that it takes."""

    def __init__(self) -> None:
        super().__init__("s")
        self.good: list[bytes] = []

    def _accept(self, walk, at: int, size: int) -> int:  # noqa: ANN001 - the parser's own
        following = super()._accept(walk, at, size)
        self.good.append(walk.data[at:following])
        return following


def sound(seed: int, frames: int = 12) -> tuple[bytes, bytes]:
    rng = np.random.default_rng(seed)
    configuration = random_configuration(rng, FrameType.CFG2, pmus=2)
    data = b"".join(random_frame(configuration, rng, 1_700_000_000 + i) for i in range(frames))
    return b"".join(encode_configuration(configuration)), data


def damaged(seed: int) -> bytes:
    """A stream that begins well, then has flipped bits, gaps, chance bytes and a configuration that changes."""
    rng = np.random.default_rng(seed)
    configuration, data = sound(seed, 20)
    foreign = random_frame(random_configuration(rng, pmus=1, id_code=9), rng, 1_700_000_000)
    changed, other = sound(seed + 1, 6)
    spoilt = bytearray(data)
    for at in rng.integers(0, len(spoilt), 5):
        spoilt[at] ^= 1 << rng.integers(8)
    gap = int(rng.integers(len(data)))
    header = encode_header(HeaderFrame(7, Stamp(6), b"hello"))
    return b"".join(
        (
            configuration, data, bytes(spoilt), rng.bytes(int(rng.integers(300))), data[gap:], foreign, header, data,
            b"\xaa\x01\xff\xff\x00\x07", data, changed, other, other[: len(other) // 7],
        )
    )  # fmt: skip


def cut(pieces: list[bytes], *, quick: bool = True) -> list[Piece]:
    framer = Framer(MANY)
    out: list[Piece] = []
    for number, data in enumerate([*pieces, b""]):
        final = number == len(pieces)
        whole = framer.match(data) if quick and not final else b""
        if whole:
            size = framer._size
            out += [Piece(whole[at : at + size]) for at in range(0, len(whole), size)]
            continue
        for piece in framer.feed(data, final=final):
            out.append(piece)
            if piece.reason is None and piece.value[1] >> 4 == FrameType.CFG2:
                known = decode_configuration(piece.value)
                framer.expect(known.id_code, known.data_size)
    return out


def pieces_of(data: bytes, cuts: list[int]) -> list[bytes]:
    return [data[a:b] for a, b in pairwise(sorted({0, len(data), *(c % len(data) for c in cuts)}))]


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10_000), st.lists(st.integers(0, 1 << 20), max_size=60))
def test_whatever_the_damage_and_the_cuts_the_frames_are_those_of_the_parser(seed: int, cuts: list[int]) -> None:
    data = damaged(seed)
    parser = Parser()
    parser.feed(data)
    parser.finish()
    found = cut(pieces_of(data, cuts))
    assert b"".join(p.value for p in found if p.reason is None) == b"".join(parser.good)
    assert b"".join(p.value for p in found) == data, "every byte comes out once, in order"


def test_a_sound_stream_cut_at_every_place() -> None:
    configuration, data = sound(3, 3)
    size = len(data) // 3
    whole = configuration + data
    for at in range(len(whole)):
        found = cut([whole[:at], whole[at:]] if at else [whole])
        assert [p.value for p in found] == [configuration, *(data[i : i + size] for i in range(0, len(data), size))]
        assert not any(p.reason for p in found)


def test_a_frame_that_was_cut_short_takes_no_sound_one_with_it() -> None:
    configuration, data = sound(3, 12)
    size = len(data) // 12
    frames = [data[at : at + size] for at in range(0, len(data), size)]
    for lost in range(size, len(configuration) - size, size):
        short = configuration[:-lost]
        for before in (configuration, b""):
            whole = before + short + configuration + data
            for pieces in ([whole], [whole[at : at + 1] for at in range(len(whole))]):
                found = cut(pieces)
                sent = [*[before][: len(before)], configuration, *frames]
                assert [p.value for p in found if p.reason is None] == sent
        found = cut([configuration, short + data])
        assert found == [Piece(configuration), Piece(short, Reason.CRC), *map(Piece, frames)]


def test_byte_by_byte() -> None:
    data = damaged(5)
    good = [p.value for p in cut([data]) if p.reason is None]
    assert [p.value for p in cut([data[i : i + 1] for i in range(len(data))]) if p.reason is None] == good


def test_the_quick_way_takes_what_the_slow_one_takes() -> None:
    configuration, data = sound(6, 40)
    size = len(data) // 40
    pieces = [configuration, data[:size], data[size : 5 * size], data[5 * size : -7], data[-7:]]
    assert cut(pieces) == cut(pieces, quick=False)
    framer = Framer(MANY)
    framer.expect(7, size)
    list(framer.feed(data[:size]))
    assert framer.match(data[size : 5 * size]) == data[size : 5 * size]
    spoilt = bytearray(data[size : 5 * size])
    spoilt[2 * size + 9] ^= 4
    assert framer.match(bytes(spoilt)) == b""
    assert [p.reason for p in framer.feed(bytes(spoilt))] == [None, None, Reason.CRC, None]


def test_endless_garbage_ends() -> None:
    framer = Framer(100_000)
    for _ in range(10):
        assert [p.reason for p in framer.feed(bytes(10_000))] == [Reason.GARBAGE]
    with pytest.raises(FrameError, match="without a whole frame"):
        list(framer.feed(b"\0"))
    assert framer.awaited is None, "it begins anew"


def test_long_frames_that_are_none_cost_little_work() -> None:
    framer = Framer(100_000)
    flood = b"\xaa\x01\xff\xef\x00\x07" * 15_000
    computed: list[int] = []

    def drain() -> None:
        for _ in framer.feed(flood):
            computed.append(framer._vain_bytes)  # noqa: PERF401 - what came before the error is kept

    with pytest.raises(FrameError, match="without a whole frame"):
        drain()
    assert 16 * 100_000 < max(computed) <= 16 * 100_000 + 65_535
