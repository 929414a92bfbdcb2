"""A slow, obvious C37.118 decoder: one frame, one PMU, one field at a time, in the order of the standard's tables.

And builders of streams to decode. Nothing here is shared with `streams.c37118.samples`.
"""

from __future__ import annotations

import cmath
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from streams.c37118.configuration import (
    AnalogDefinition,
    ConfigurationFrame,
    DigitalDefinition,
    PhasorDefinition,
    PmuConfiguration,
)
from streams.c37118.frame import FrameType
from streams.channels import Phase


def crc(data: bytes) -> int:
    """CRC-CCITT bit by bit, annex B."""
    register = 0xFFFF
    for byte in data:
        register ^= byte << 8
        for _ in range(8):
            register = (register << 1 ^ (0x1021 if register & 0x8000 else 0)) & 0xFFFF
    return register


@dataclass
class DecodedFrame:
    """One data frame."""

    time_ns: int
    time_flags: int
    stat: list[int]
    values: list[list[float]]


def decode_frame(configuration: ConfigurationFrame, frame: bytes) -> DecodedFrame:
    """Decode one data frame."""
    assert frame[0] == 0xAA
    assert frame[1] >> 4 == 0
    size, id_code, soc, fracsec = struct.unpack(">HHII", frame[2:14])
    assert size == len(frame)
    assert id_code == configuration.id_code
    assert struct.unpack(">H", frame[-2:])[0] == crc(frame[:-2])
    at = 14

    def take(form: str) -> float:
        nonlocal at
        (value,) = struct.unpack_from(">" + form, frame, at)
        at += struct.calcsize(form)
        return float(value)

    exact = soc + Fraction(fracsec & 0xFFFFFF, configuration.time_base)
    time_ns = math.floor(exact * 10**9 + Fraction(1, 2))
    out = DecodedFrame(time_ns, fracsec >> 24, [], [])
    cfg3 = configuration.kind is FrameType.CFG3
    for pmu in configuration.pmus:
        out.stat.append(int(take("H")))
        values: list[float] = []
        for phasor in pmu.phasors:
            values += _phasor(pmu, phasor, take, cfg3=cfg3)
        if pmu.float_frequency:
            values += [take("f"), take("f")]
        else:
            deviation, rocof = take("h"), take("h")
            values.append(math.nan if deviation == -32768 else pmu.nominal_hz + deviation / 1000)
            values.append(math.nan if rocof == -32768 else rocof / 100)
        for analog in pmu.analogs:
            value = take("f" if pmu.float_analogs else "h")
            if not pmu.float_analogs and value == -32768:
                value = math.nan
            values.append(value * analog.scale + analog.offset if cfg3 else value)
        values += [take("H") for _ in pmu.digitals]
        out.values.append(values)
    assert at == len(frame) - 2
    return out


def _phasor(pmu: PmuConfiguration, phasor: PhasorDefinition, take, *, cfg3: bool) -> list[float]:  # noqa: ANN001 - a local
    if pmu.float_phasors:
        first, second = take("f"), take("f")
        scale = phasor.scale if cfg3 else 1.0
    else:
        first, second = take("H" if pmu.polar else "h"), take("h")
        scale = phasor.scale
        if second == -32768 or (not pmu.polar and first == -32768):
            return [math.nan, math.nan]
    if pmu.polar:
        magnitude, angle = first, second if pmu.float_phasors else second / 1e4
    else:
        value = complex(first, second)
        magnitude, angle = abs(value), cmath.phase(value)
    degrees = math.degrees(angle)
    if cfg3 and phasor.angle_offset_rad:
        degrees -= math.degrees(phasor.angle_offset_rad)
        if degrees > 180:
            degrees -= 360
        elif degrees < -180:
            degrees += 360
    return [magnitude * scale, degrees]


def random_configuration(
    rng: np.random.Generator, kind: FrameType = FrameType.CFG2, pmus: int | None = None, id_code: int = 7
) -> ConfigurationFrame:
    """Any configuration: formats, counts and scales at random."""
    return ConfigurationFrame(
        id_code=id_code,
        pmus=tuple(random_pmu(rng, i, kind) for i in range(pmus or int(rng.integers(1, 6)))),
        data_rate=int(rng.choice([30, 60, 50, 1, -5])),
        time_base=int(rng.choice([1_000_000, 16_777_215, 1, 65_536, 600, 720])),
        kind=kind,
    )


def random_pmu(rng: np.random.Generator, number: int, kind: FrameType) -> PmuConfiguration:
    """Any PMU."""
    cfg3 = kind is FrameType.CFG3

    def real(low: float, high: float) -> float:
        return float(np.float32(rng.uniform(low, high)))

    phasors = tuple(
        PhasorDefinition(
            f"P{i}",
            is_current=bool(rng.integers(2)),
            scale=real(0.5, 50) if cfg3 else int(rng.integers(1, 1 << 24)) / 1e5,
            phase=Phase(rng.choice(["A", "B", "C", "0", "1", "2", ""])) if cfg3 else Phase.UNKNOWN,
            angle_offset_rad=real(-3, 3) if cfg3 and rng.integers(2) else 0.0,
        )
        for i in range(int(rng.integers(0, 5)))
    )
    analogs = tuple(
        AnalogDefinition(
            f"A{i}",
            scale=real(0.5, 2) if cfg3 else float(rng.integers(-1000, 1000)),
            offset=real(-10, 10) if cfg3 else 0.0,
        )
        for i in range(int(rng.integers(0, 4)))
    )
    digitals = tuple(
        DigitalDefinition(tuple(f"D{i}.{b}" for b in range(16)), int(rng.integers(65536)), int(rng.integers(65536)))
        for i in range(int(rng.integers(0, 3)))
    )
    polar, phasor, analog, frequency = (bool(b) for b in rng.integers(0, 2, 4))
    return PmuConfiguration(
        f"Station {number}",
        number + 1,
        int(rng.choice([50, 60])),
        phasors,
        analogs,
        digitals,
        polar=polar,
        float_phasors=phasor,
        float_analogs=analog,
        float_frequency=frequency,
        change_count=int(rng.integers(65536)),
    )


def random_frame(configuration: ConfigurationFrame, rng: np.random.Generator, soc: int = 1_700_000_000) -> bytes:
    """One data frame of reasonable values, now and then absent ones; written field by field."""
    fraction = int(rng.integers(configuration.time_base))
    body = struct.pack(">II", soc, int(rng.integers(256)) << 24 | fraction)
    for pmu in configuration.pmus:
        body += struct.pack(">H", int(rng.integers(65536)))
        for _ in pmu.phasors:
            body += _random_phasor(pmu, rng)
        if pmu.float_frequency:
            body += struct.pack(">ff", rng.normal(pmu.nominal_hz, 0.1), rng.normal())
        else:
            body += struct.pack(">hh", *rng.integers(-32768, 32768, 2))
        for _ in pmu.analogs:
            body += (
                struct.pack(">f", rng.normal(0, 1e4))
                if pmu.float_analogs
                else struct.pack(">h", int(rng.integers(-32768, 32768)))
            )
        for _ in pmu.digitals:
            body += struct.pack(">H", int(rng.integers(65536)))
    return seal(b"\xaa\x02" + struct.pack(">HH", len(body) + 8, configuration.id_code) + body)


def _random_phasor(pmu: PmuConfiguration, rng: np.random.Generator) -> bytes:
    absent = rng.random() < 0.05
    if pmu.float_phasors:
        if absent:
            return struct.pack(">ff", math.nan, math.nan)
        if pmu.polar:
            return struct.pack(">ff", rng.lognormal(11), rng.uniform(-math.pi, math.pi))
        return struct.pack(">ff", rng.normal(0, 1e5), rng.normal(0, 1e5))
    if absent:
        return b"\x80\x00\x80\x00"
    if pmu.polar:
        return struct.pack(">Hh", int(rng.integers(65536)), int(rng.integers(-31416, 31417)))
    return struct.pack(">hh", *rng.integers(-32767, 32768, 2))


def seal(frame: bytes) -> bytes:
    """Append the CRC."""
    return frame + struct.pack(">H", crc(frame))


def values_array(frames: Sequence[DecodedFrame], width: int) -> np.ndarray:
    """`(T, S, C)` of decoded frames, padded with NaN."""
    out = np.full((len(frames), len(frames[0].values), width), np.nan)
    for t, frame in enumerate(frames):
        for s, values in enumerate(frame.values):
            out[t, s, : len(values)] = values
    return out
