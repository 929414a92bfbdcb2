"""What a receiver asks and is answered: commands found however they come, configurations that mean the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gridsense.simulator.commands import GARBAGE_BYTES, Answers, CommandFinder
from gridsense.simulator.script import ServedStream
from streams.block import FrameBatch
from streams.c37118.configuration import (
    AnalogDefinition,
    ConfigurationFrame,
    DigitalDefinition,
    PhasorDefinition,
    PmuConfiguration,
    decode_configuration,
)
from streams.c37118.frame import (
    EPOCH,
    Command,
    CommandFrame,
    FrameType,
    HeaderFrame,
    decode_header,
    encode_command,
    encode_header,
    read_prefix,
)
from streams.c37118.samples import compile_layout, decode, encode
from streams.c37118.stream import StreamParser

NOW_NS = 1_800_000_000 * 10**9 + 250_000_000
PMU = PmuConfiguration(
    "Bus 7",
    7,
    50,
    (PhasorDefinition("VA", scale=2.5), PhasorDefinition("IA", is_current=True, scale=0.125)),
    (AnalogDefinition("power", kind=1, scale=7.0),),
    (DigitalDefinition(tuple(f"bit {i}" for i in range(16))),),
)
INTEGERS = replace(PMU, float_phasors=False, float_analogs=False, float_frequency=False)


def served(*pmus: PmuConfiguration, kind: FrameType = FrameType.CFG2, version: int = 2) -> ServedStream:
    return ServedStream("bus", ConfigurationFrame(9, pmus, 50, 1_000_000, kind, EPOCH, version))


def command(code: int, number: int, extended: bytes = b"") -> bytes:
    return encode_command(CommandFrame(code, EPOCH, number, extended))


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_commands_are_found_however_they_are_cut_and_what_is_none_is_counted(data: st.DataObject) -> None:
    other = encode_header(HeaderFrame(1, EPOCH, b"no command"))
    good = st.builds(command, st.integers(1, 9), st.integers(0, 9), st.binary(max_size=6))
    # without 0xAA, chance bytes are garbage beyond doubt
    rubbish = st.lists(st.integers(0, 0xA9), min_size=1, max_size=9).map(bytes)
    damaged = good.map(lambda f: f[:-1] + bytes([f[-1] ^ 1]))
    parts = data.draw(st.lists(st.one_of(good.map(lambda f: (f, 1)), rubbish.map(lambda f: (f, 0)))))
    spoiled = data.draw(st.one_of(damaged, st.just(other), st.just(b"\xaa\x41\x00\x05"), st.just(b"")))
    parts.insert(data.draw(st.integers(0, len(parts))), (spoiled, 0))
    text = b"".join(part for part, _ in parts)
    expected = [part for part, is_good in parts if is_good]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    finder = CommandFinder()
    found = [f for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True) for f in finder.feed(text[a:b])]
    assert found == expected
    waiting = finder.feed(b"\0" * 70_000)  # ends whatever was waited for
    assert waiting == []
    assert finder.garbage == len(text) + 70_000 - sum(map(len, expected))


def test_a_connection_without_commands_is_hopeless_and_holds_little() -> None:
    finder = CommandFinder()
    for _ in range(1000):
        finder.feed(b"\xaa\x41\xff\xff" + b"x" * 1020)
        assert len(finder._rest) <= 0xFFFF
    assert finder.hopeless
    assert finder.garbage > GARBAGE_BYTES
    finder = CommandFinder()
    for _ in range(1000):
        finder.feed(b"x" * 200 + command(1, 2))
    assert not finder.hopeless
    assert finder.garbage == 200_000


def test_the_largest_command_is_not_hopeless() -> None:
    finder = CommandFinder()
    text = command(1, Command.EXTENDED, bytes(65_000))
    for at in range(0, len(text), 1000):
        found = finder.feed(text[at : at + 1000])
        assert not finder.hopeless
    assert found == [text]


def some_frames(configuration: ConfigurationFrame) -> bytes:
    rng = np.random.default_rng(3)
    layout = compile_layout(configuration)
    values = rng.uniform(1, 50, (20, len(configuration.pmus), layout.table.width))
    values[..., 4] = 50 + rng.normal(0, 0.01, values.shape[:2])
    values[..., -2:] = np.rint(values[..., -2:])
    time_ns = NOW_NS + np.arange(20) * 20_000_000
    stat = np.zeros(values.shape[:2], np.uint16)
    return encode(layout, FrameBatch(layout.table, 50.0, time_ns, np.zeros(20, np.uint8), stat, values, time_ns))


@pytest.mark.parametrize("pmu", [PMU, INTEGERS])
@pytest.mark.parametrize("own", [FrameType.CFG2, FrameType.CFG3])
def test_data_mean_the_same_under_every_configuration_that_is_answered(pmu: PmuConfiguration, own: FrameType) -> None:
    stream = served(pmu, pmu, kind=own)
    answers = Answers(stream)
    frames = some_frames(stream.configuration)
    expected = decode(compile_layout(stream.configuration), frames)
    for kind in (FrameType.CFG1, FrameType.CFG2, FrameType.CFG3):
        configuration = decode_configuration(answers.configuration(NOW_NS, kind))
        batch = decode(compile_layout(configuration), frames)
        np.testing.assert_allclose(batch.values, expected.values, rtol=2e-7, err_msg=kind.name)
        assert batch.table == expected.table
        assert configuration.stamp.time_ns(configuration.time_base) == NOW_NS
        # scales and offsets that CFG-2 cannot say are answered with the CFG-3
        assert configuration.kind is (FrameType.CFG3 if own is FrameType.CFG3 else kind)


def test_a_plain_cfg3_can_be_asked_for_as_cfg2() -> None:
    plain = replace(PMU, phasors=(PhasorDefinition("VA"),), analogs=())
    answers = Answers(served(plain, kind=FrameType.CFG3))
    assert decode_configuration(answers.configuration(NOW_NS, FrameType.CFG2)).kind is FrameType.CFG2


def test_long_names_are_answered_with_a_cfg3() -> None:
    stream = served(replace(PMU, station="a station with a very long name"))
    frames = Answers(stream).configuration(NOW_NS, FrameType.CFG2)
    (item,) = StreamParser().feed(b"".join(frames))
    assert isinstance(item, ConfigurationFrame)
    assert item.kind is FrameType.CFG3
    assert item.pmus[0].station == "a station with a very long name"


def test_the_edition_of_2005_knows_no_cfg3() -> None:
    answers = Answers(served(PMU, version=1))
    assert answers.configuration(NOW_NS, FrameType.CFG3) == []
    assert [read_prefix(f).version for f in answers.configuration(NOW_NS)] == [1]


def test_a_capture_that_held_only_a_cfg1_is_served_under_a_cfg2() -> None:
    (frame,) = Answers(served(PMU, kind=FrameType.CFG1)).configuration(NOW_NS)
    assert read_prefix(frame).frame_type is FrameType.CFG2


def test_the_header_says_what_serves_now() -> None:
    header = decode_header(Answers(ServedStream("Zürich", served(PMU).configuration)).header(NOW_NS))
    assert header.id_code == 9
    assert b"Z?rich, 1 PMU, recorded" in header.text
    assert header.stamp.time_ns(1_000_000) == NOW_NS
