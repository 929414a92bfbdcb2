"""A small grid for tests of the middle of the way: ambient as measured on transmission PMUs, ready to be spoilt."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streams.align import Aligned, grid_of
from streams.channels import Channel, ChannelTable, Phase, Pmu, Quantity

START_S = 1_700_000_000

VM, VA = Quantity.VOLTAGE_MAGNITUDE, Quantity.VOLTAGE_ANGLE
IM, IA = Quantity.CURRENT_MAGNITUDE, Quantity.CURRENT_ANGLE


def phasor(
    name: str, *, current: bool = False, phase: Phase = Phase.UNKNOWN, nominal: float | None = None
) -> list[Channel]:
    m, a = (IM, IA) if current else (VM, VA)
    return [Channel(name, m, phase, "A" if current else "V", nominal), Channel(name, a, phase, "deg")]


HERTZ = [Channel("f", Quantity.FREQUENCY, unit="Hz"), Channel("f", Quantity.ROCOF, unit="Hz/s")]


def one_phasor(nominal: float | None = None) -> tuple[Channel, ...]:
    return (*phasor("V1", nominal=nominal), *phasor("I1", current=True), *HERTZ)


def three_phase() -> tuple[Channel, ...]:
    out: list[Channel] = []
    for phase in (Phase.A, Phase.B, Phase.C):
        out += phasor(f"V{phase}", phase=phase)
    for phase in (Phase.A, Phase.B, Phase.C):
        out += phasor(f"I{phase}", phase=phase, current=True)
    return (*out, *HERTZ, Channel("MW", Quantity.ANALOG), Channel("D", Quantity.DIGITAL))


def table_of(*layouts: tuple[Channel, ...], nominal_hz: int = 60) -> ChannelTable:
    return ChannelTable(tuple(Pmu(f"P{i}", i + 1, f"P{i}", nominal_hz, c, "src") for i, c in enumerate(layouts)))


def ambient(
    table: ChannelTable, frames: int, rate_hz: float = 30.0, seed: int = 0, offset_hz: float = -0.013
) -> Aligned:
    """Frequency 0.17 mHz rms quantised to 1 mHz, magnitudes 2e-5, angles 0.0016 deg; slow common wander."""
    rng = np.random.default_rng(seed)
    s, c = len(table.pmus), table.width
    t = np.arange(frames) / rate_hz
    hertz = offset_hz + 0.004 * np.sin(2 * np.pi * t / 40)
    turned = np.cumsum(hertz) / rate_hz * 360
    values = np.full((frames, s, c), np.nan, np.float32)
    shift = {Phase.B: -120.0, Phase.C: 120.0}
    for p, pmu in enumerate(table.pmus):
        own = rng.uniform(-40, 40)
        for k, channel in enumerate(pmu.channels):
            noise = rng.standard_normal(frames)
            lag = -20.0 if channel.quantity is IA else 0.0
            if channel.quantity is VM:
                x = (channel.nominal or 300e3) * (1 + 2e-5 * noise)
            elif channel.quantity is IM:
                x = 500 * (1 + 1e-4 * noise)
            elif channel.quantity in (VA, IA):
                x = (turned + own + lag + shift.get(channel.phase, 0.0) + 0.0016 * noise + 180) % 360 - 180
            elif channel.quantity is Quantity.FREQUENCY:
                x = np.round(pmu.nominal_hz + hertz + 0.00017 * noise, 3)
            elif channel.quantity is Quantity.ROCOF:
                x = 0.01 * noise
            else:
                x = np.full(frames, 7.0)
            values[:, p, k] = x
    slots = int(START_S * rate_hz) + np.arange(frames)
    return Aligned(
        table, rate_hz, grid_of(rate_hz).time(slots), values, np.zeros((frames, s), np.uint16),
        np.ones((frames, s), bool), np.zeros((frames, s), np.uint8),
    )  # fmt: skip


def part(aligned: Aligned, lo: int, hi: int) -> Aligned:
    rows = slice(lo, hi)
    return Aligned(
        aligned.table, aligned.rate_hz, aligned.time_ns[rows], aligned.values[rows], aligned.stat[rows],
        aligned.received[rows], aligned.time_flags[rows],
    )  # fmt: skip


def channel(table: ChannelTable, pmu: int, quantity: Quantity, nth: int = 0) -> int:
    return [c for c, x in enumerate(table.pmus[pmu].channels) if x.quantity is quantity][nth]


def spoil(aligned: Aligned, seed: int, strokes: int = 25) -> Aligned:
    """Every kind of data fault (and some faults of the grid) at random places; in place."""
    rng = np.random.default_rng(seed)
    frames, pmus, _ = aligned.values.shape
    present = aligned.table.present
    for _ in range(strokes):
        t, s = int(rng.integers(frames)), int(rng.integers(pmus))
        n = int(rng.choice([1, 1, 1, 3, 30, 90]))
        k = int(rng.choice(np.flatnonzero(present[s])))
        rows: NDArray[np.intp] = np.arange(t, min(t + n, frames))
        match int(rng.integers(9)):
            case 0:
                aligned.values[rows, s], aligned.received[rows, s] = np.nan, False
                aligned.stat[rows, s] = 0
            case 1:
                aligned.values[rows, s, k] = np.nan
            case 2:
                aligned.values[rows, s, k] = 0
            case 3:
                aligned.values[rows, s, k] = aligned.values[t, s, k]
            case 4:
                aligned.values[rows, s] = aligned.values[t, s]
            case 5:
                aligned.values[t, s, k] *= 1 + rng.normal()
            case 6:
                aligned.stat[rows, s] |= 1 << int(rng.integers(4, 16))
            case 7:
                aligned.time_flags[rows] = int(rng.integers(16))
            case _:
                hit = aligned.table.where(VM)[s]
                aligned.values[np.ix_(rows[:5], [s], np.flatnonzero(hit))] *= 0.3
    return aligned
