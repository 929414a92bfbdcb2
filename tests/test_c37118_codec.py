"""Configurations and data frames: the fast decoder against the slow one, and both ways."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.block import FrameBatch
from streams.c37118.configuration import (
    AnalogDefinition,
    ConfigurationFrame,
    DigitalDefinition,
    Location,
    PhasorDefinition,
    PmuConfiguration,
    channel_table,
    decode_configuration,
    encode_configuration,
)
from streams.c37118.frame import (
    CommandFrame,
    FrameType,
    HeaderFrame,
    Stamp,
    decode_command,
    decode_header,
    encode_command,
    encode_header,
    read_prefix,
)
from streams.c37118.samples import compile_layout, decode, encode
from streams.channels import Phase, Quantity
from streams.errors import ConfigurationError, FrameError
from tests.reference.c37118 import crc, decode_frame, random_configuration, random_frame, values_array

KINDS = st.sampled_from([FrameType.CFG1, FrameType.CFG2, FrameType.CFG3])
SEEDS = st.integers(0, 2**32 - 1)


def one_pmu(**fields: object) -> ConfigurationFrame:
    pmu = PmuConfiguration("S", 1, 60, (PhasorDefinition("VA", scale=1.0),), polar=False)
    return ConfigurationFrame(1, (replace(pmu, **fields),), 30)  # type: ignore[arg-type]  # names are checked by replace


@settings(max_examples=100, deadline=None)
@given(SEEDS, KINDS)
def test_decode_equals_the_slow_decoder(seed: int, kind: FrameType) -> None:
    rng = np.random.default_rng(seed)
    configuration = random_configuration(rng, kind)
    frames = [random_frame(configuration, rng) for _ in range(5)]
    layout = compile_layout(configuration)
    slow = [decode_frame(configuration, f) for f in frames]
    expected = values_array(slow, layout.table.width)
    # a turned angle is a difference of two angles: its error is absolute, that of 180 degrees
    for dtype, tolerance, least in ((np.float64, 1e-13, 1.0), (np.float32, 3e-7, 180.0)):
        batch = decode(layout, b"".join(frames), dtype=dtype)
        assert batch.values.dtype == dtype
        assert batch.time_ns.tolist() == [f.time_ns for f in slow]
        assert batch.arrival_ns.tolist() == batch.time_ns.tolist()
        assert batch.time_flags.tolist() == [f.time_flags for f in slow]
        assert batch.stat.tolist() == [f.stat for f in slow]
        scale = np.maximum(np.abs(expected), least)
        # an angle offset may leave +180 on one side and -180 on the other
        off = np.abs(batch.values - expected)
        off = np.minimum(off, np.abs(off - 360.0))
        np.testing.assert_array_equal(np.isnan(batch.values), np.isnan(expected))
        assert np.nanmax(off / scale, initial=0.0) <= tolerance * 4


@settings(max_examples=100, deadline=None)
@given(SEEDS, KINDS)
def test_float64_brings_every_bit_back(seed: int, kind: FrameType) -> None:
    rng = np.random.default_rng(seed)
    configuration = random_configuration(rng, kind)
    frames = b"".join(random_frame(configuration, rng) for _ in range(4))
    layout = compile_layout(configuration)
    assert encode(layout, decode(layout, frames, dtype=np.float64)) == frames


@settings(max_examples=100, deadline=None)
@given(SEEDS, KINDS)
def test_configuration_both_ways(seed: int, kind: FrameType) -> None:
    configuration = random_configuration(np.random.default_rng(seed), kind)
    frames = encode_configuration(configuration)
    decoded = decode_configuration(frames)
    assert decoded == configuration
    assert encode_configuration(decoded) == frames


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 0.0, -0.0, 1e-45, 3.4e38])
@pytest.mark.parametrize("polar", [True, False])
def test_extreme_floats_come_back(value: float, *, polar: bool) -> None:
    configuration = one_pmu(polar=polar)
    layout = compile_layout(configuration)
    raw = np.zeros(1, layout.frame)
    raw["size"] = layout.size
    raw["soc"] = 1
    raw["pmus0"]["phasors"][0, 0, 0] = (value, 0.0) if polar else (value, value)
    raw["pmus0"]["frequency"] = value
    batch = decode(layout, raw.tobytes(), dtype=np.float64)
    again = np.frombuffer(encode(layout, batch), layout.frame)
    np.testing.assert_array_equal(again["pmus0"]["frequency"], raw["pmus0"]["frequency"])
    if polar or math.isfinite(value):
        np.testing.assert_array_equal(again["pmus0"]["phasors"], raw["pmus0"]["phasors"])
    else:
        assert not np.isfinite(again["pmus0"]["phasors"]).any()


def test_axes_come_back_exactly() -> None:
    configuration = one_pmu()
    layout = compile_layout(configuration)
    raw = np.zeros(8, layout.frame)
    raw["pmus0"]["phasors"][:, 0, 0] = [
        (1e5, 0), (0, 1e5), (-1e5, 0), (0, -1e5), (1, 1), (-1, 1), (-3, -3), (1e5, 1e-5),
    ]  # fmt: skip
    batch = decode(layout, raw.tobytes(), dtype=np.float64)
    assert batch.values[:4, 0, 1].tolist() == [0.0, 90.0, 180.0, -90.0]
    again = np.frombuffer(encode(layout, batch), layout.frame)
    np.testing.assert_array_equal(again["pmus0"]["phasors"], raw["pmus0"]["phasors"])


def test_second_half_of_a_second_and_large_soc() -> None:
    configuration = replace(one_pmu(), time_base=16_777_215)
    layout = compile_layout(configuration)
    raw = np.zeros(3, layout.frame)
    raw["soc"] = [1_700_000_000, 1_700_000_000, 0xFFFFFFFF]
    raw["fracsec"] = [12_582_911, 0xFF000000 | 16_777_214, 8_388_608]
    batch = decode(layout, raw.tobytes())
    assert batch.time_ns.tolist() == [1_700_000_000_749_999_985, 1_700_000_000_999_999_940, 4_294_967_295_500_000_030]
    assert batch.time_flags.tolist() == [0, 255, 0]


def test_integer_filler_is_nan_and_magnitudes_are_unsigned() -> None:
    configuration = one_pmu(polar=True, float_phasors=False, float_frequency=False, float_analogs=False)
    analogs = (AnalogDefinition("a"),)
    configuration = replace(configuration, pmus=(replace(configuration.pmus[0], analogs=analogs),))
    layout = compile_layout(configuration)
    raw = np.zeros(2, layout.frame)
    records = raw["pmus0"]
    records["phasors"] = -32768
    records["frequency"] = -32768
    records["analogs"] = -32768
    records["phasors"][0, 0, 0] = (-1, 15708)  # 65535 counts, 1.5708 rad
    records["frequency"][0] = (-500, 25)
    records["analogs"][0] = -7
    batch = decode(layout, raw.tobytes(), dtype=np.float64)
    np.testing.assert_allclose(batch.values[0, 0], [65535.0, math.degrees(1.5708), 59.5, 0.25, -7.0])
    assert np.isnan(batch.values[1]).all()


def test_a_value_too_large_for_its_field_is_refused() -> None:
    configuration = one_pmu(polar=True, float_phasors=False)
    layout = compile_layout(configuration)
    batch = decode(layout, bytes(layout.size), dtype=np.float64)
    values = batch.values.copy()
    values[0, 0, 0] = 70_000.0
    with pytest.raises(FrameError, match="magnitude of 70000 counts does not fit"):
        encode(layout, replace(batch, values=values))
    with pytest.raises(FrameError, match="do not fit a configuration"):
        encode(layout, replace(batch, values=values[:, :, :1]))


def test_cfg3_scales_floats_too_and_turns_angles() -> None:
    phasor = PhasorDefinition("VA", scale=1000.0, phase=Phase.A, angle_offset_rad=math.pi / 2)
    analog = AnalogDefinition("t", scale=0.5, offset=-40.0)
    configuration = replace(one_pmu(phasors=(phasor,), analogs=(analog,), polar=True), kind=FrameType.CFG3)
    layout = compile_layout(configuration)
    raw = np.zeros(1, layout.frame)
    raw["pmus0"]["phasors"] = (2.0, -3.0)
    raw["pmus0"]["analogs"] = 100.0
    values = decode(layout, raw.tobytes(), dtype=np.float64).values[0, 0]
    np.testing.assert_allclose(values[[0, 1, 4]], [2000.0, math.degrees(-3.0) - 90 + 360, 10.0], rtol=1e-7)


def test_layouts_decide_the_number_of_groups_not_pmus() -> None:
    rng = np.random.default_rng(1)
    configuration = random_configuration(rng, pmus=3)
    configuration = replace(configuration, pmus=configuration.pmus * 40)
    layout = compile_layout(configuration)
    assert len(layout.groups) <= 3
    frames = [random_frame(configuration, rng) for _ in range(3)]
    expected = values_array([decode_frame(configuration, f) for f in frames], layout.table.width)
    np.testing.assert_allclose(decode(layout, b"".join(frames), dtype=np.float64).values, expected, rtol=1e-12)


def test_blocks_of_frames_join_without_a_seam() -> None:
    rng = np.random.default_rng(2)
    configuration = random_configuration(rng, pmus=200)
    layout = compile_layout(configuration)
    frames = [random_frame(configuration, rng) for _ in range(1 + 2 * (1 << 18) // layout.size)]
    whole = decode(layout, b"".join(frames), dtype=np.float64)
    single = [decode(layout, f, dtype=np.float64) for f in frames]
    np.testing.assert_array_equal(whole.values, np.concatenate([b.values for b in single]))
    np.testing.assert_array_equal(whole.stat, np.concatenate([b.stat for b in single]))


def test_continued_cfg3_is_put_together_in_order() -> None:
    pmu = PmuConfiguration("x" * 255, 1, 60, tuple(PhasorDefinition("p" * 250) for _ in range(9)))
    configuration = ConfigurationFrame(9, (pmu,) * 300, 30, kind=FrameType.CFG3)
    frames = encode_configuration(configuration)
    assert [int.from_bytes(f[14:16], "big") for f in frames][:2] == [1, 2]
    assert int.from_bytes(frames[-1][14:16], "big") == 0xFFFF
    assert max(map(len, frames)) <= 65535
    assert decode_configuration(frames) == configuration
    with pytest.raises(ConfigurationError, match="CONT_IDX"):
        decode_configuration(frames[::-1])
    with pytest.raises(ConfigurationError, match="CONT_IDX"):
        decode_configuration(frames[:-1])
    with pytest.raises(ConfigurationError, match="use CFG-3"):
        encode_configuration(replace(configuration, pmus=(replace(pmu, station="x"),) * 300, kind=FrameType.CFG2))


def test_cfg3_details_survive() -> None:
    where = Location(bytes(range(16)), 59.5, 10.75, 100.0, "P", 100_000, 50_000)
    pmu = PmuConfiguration(
        "Ærø 3 / øst",
        1,
        50,
        (PhasorDefinition("Uß", True, 2.5, Phase.NEGATIVE, 0.5, 0x8400, 7),),
        location=where,
    )
    configuration = ConfigurationFrame(9, (pmu,), -5, kind=FrameType.CFG3, stamp=Stamp(5, 6, 7), version=2)
    assert decode_configuration(encode_configuration(configuration)) == configuration


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"pmus": ()}, "NUM_PMU is 0"),
        ({"time_base": 0}, "TIME_BASE"),
        ({"data_rate": 40_000}, "field"),
        ({"id_code": 70_000}, "ID code"),
    ],
)
def test_an_impossible_configuration_is_refused(field: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        encode_configuration(replace(one_pmu(), **field))  # type: ignore[arg-type]  # names are checked by replace


@pytest.mark.parametrize("where", [14, 17, 18, 19, 39, 40, 41, 42, 43, 44, 45, 46])
def test_a_contradictory_configuration_is_refused_not_believed(where: int) -> None:
    (frame,) = encode_configuration(one_pmu())
    body = bytearray(frame[:-2])
    body[where] ^= 0xFF
    damaged = bytes(body) + crc(bytes(body)).to_bytes(2, "big")
    try:
        decoded = decode_configuration(damaged)
    except FrameError:
        return
    assert decoded.data_size <= 65535


@pytest.mark.parametrize(
    ("rate", "rate_hz"), [(30, 30.0), (1, 1.0), (-1, 1.0), (-5, 0.2), (0, 0.0), (120, 120.0), (-32767, 1 / 32767)]
)
def test_data_rate_below_zero_means_seconds_a_frame(rate: int, rate_hz: float) -> None:
    (frame,) = encode_configuration(replace(one_pmu(), data_rate=rate))
    assert decode_configuration(frame).rate_hz == pytest.approx(rate_hz, rel=1e-15)


def test_names_are_padded_latin_or_utf8() -> None:
    (frame,) = encode_configuration(one_pmu(station="Zürich"))
    assert decode_configuration(frame).pmus[0].station == "Zürich"
    body = frame[:-2].replace("Zürich".encode().ljust(16), b"Z\xfcrich".ljust(16, b"\0"))
    assert decode_configuration(body + crc(body).to_bytes(2, "big")).pmus[0].station == "Zürich"
    with pytest.raises(ConfigurationError, match="exceeds 16 bytes"):
        encode_configuration(one_pmu(station="a station's long name"))


def test_channel_table_names_are_unique_and_phases_guessed_with_care() -> None:
    names = ["VA", "VB", "I_C", "V1LPM", "IALPM", "VPOS", "VAB", "Bus 2", "PHASE C", "Cordova", "VCN", "BUS1 VA", "I2"]
    expected = ["A", "B", "C", "1", "A", "1", "", "", "C", "", "C", "A", "2"]
    pmu = PmuConfiguration("Same", 5, 60, tuple(PhasorDefinition(n) for n in names), (AnalogDefinition("MW"),))
    pmu = replace(pmu, digitals=(DigitalDefinition(("",) * 16),))
    other = replace(pmu, id_code=6, phasors=tuple(PhasorDefinition(n, is_current=True) for n in ("V1", "V2", "V3")))
    unnamed = replace(pmu, station="", phasors=())
    table = channel_table(ConfigurationFrame(1, (pmu, other, other, unnamed), 30), "here")
    assert [p.name for p in table.pmus] == ["Same 5", "Same 6", "Same 6 #2", "PMU 5"]
    assert [c.phase for c in table.pmus[0].channels[:26:2]] == [Phase(e) for e in expected]
    assert [c.phase for c in table.pmus[1].channels[:6]] == [Phase.UNKNOWN] * 6
    assert [c.quantity for c in table.pmus[1].channels] == [
        *[Quantity.CURRENT_MAGNITUDE, Quantity.CURRENT_ANGLE] * 3,
        Quantity.FREQUENCY,
        Quantity.ROCOF,
        Quantity.ANALOG,
        Quantity.DIGITAL,
    ]
    assert {p.source for p in table.pmus} == {"here"}


def test_header_and_command_both_ways() -> None:
    stamp = Stamp(1_700_000_000, 123_456, 0x2F)
    header = HeaderFrame(7, stamp, "Håndskrevet".encode())
    command = CommandFrame(7, stamp, 8, b"more")
    assert decode_header(encode_header(header)) == header
    assert decode_command(encode_command(command)) == command
    assert stamp.time_ns(1_000_000) == 1_700_000_000_123_456_000
    with pytest.raises(FrameError, match="asked for"):
        decode_header(encode_command(command))
    with pytest.raises(FrameError, match="damaged"):
        read_prefix(encode_command(command)[:-1] + b"\0")
    with pytest.raises(FrameError, match="FRAMESIZE"):
        read_prefix(encode_command(command)[:-1])
    with pytest.raises(FrameError, match="exceeds"):
        encode_header(HeaderFrame(7, stamp, bytes(65535)))


def test_a_batch_made_by_hand_encodes() -> None:
    configuration = one_pmu(polar=True)
    layout = compile_layout(configuration, "made")
    batch = FrameBatch(
        layout.table,
        30.0,
        np.array([999_999_999, 10**18 + 33_333_333], np.int64),
        np.array([0, 0x2F], np.uint8),
        np.array([[0], [0x2000]], np.uint16),
        np.array([[[300e3, 10.0, 60.01, 0.1]], [[299e3, -179.5, 59.99, np.nan]]], np.float32),
        np.zeros(2, np.int64),
    )
    decoded = decode(layout, encode(layout, batch), arrival_ns=5)
    assert decoded.time_ns.tolist() == [1_000_000_000, 10**18 + 33_333_000]  # to a TIME_BASE of 1e-6 s
    assert decoded.arrival_ns.tolist() == [5, 5]
    np.testing.assert_array_equal(decoded.stat, batch.stat)
    np.testing.assert_array_equal(decoded.time_flags, batch.time_flags)
    np.testing.assert_allclose(decoded.values, batch.values, rtol=2e-7)
