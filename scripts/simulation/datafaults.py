"""What goes wrong between the grid and the reader: ordinary blemishes, and labelled data faults.

In: a recording. Out: the same recording, changed in place, and a label a fault. The grid is never touched: whoever sees
a grid event in these has been fooled.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from scripts.simulation.labels import Label
from scripts.simulation.measurement import (
    ANGLE_NOISE_DEG,
    FREQ,
    FREQUENCY_NOISE_HZ,
    I_ANG,
    I_MAG,
    RATE_HZ,
    ROCOF,
    ROCOF_NOISE_HZ_S,
    V_ANG,
    V_MAG,
    VOLTAGE_NOISE,
)
from scripts.simulation.recording import STAT_ABSENT, STAT_ERROR, STAT_UNSYNCHRONISED, Recording

DROPOUTS_PER_PMU_HOUR = 20.0
SPIKES_PER_PMU_HOUR = 6.0
VOLTAGE_STEPS_PER_PMU_HOUR = 3.0
LOST_FRAMES_PER_SOURCE_HOUR = 30.0

ANGLES = [V_ANG, I_ANG]
MAGNITUDES = [V_MAG, I_MAG]


def add_blemishes(recording: Recording, rng: np.random.Generator) -> list[Label]:
    """Scatter what every real stream has: single frames dropped, spiked or lost, and small steps of one voltage.

    Parameters
    ----------
    recording
        Changed in place.
    rng
        The draw.

    Returns
    -------
    list[Label]
        What was scattered; too small and too many to be anybody's events, so kept apart from the labels of those.
    """
    frames, pmus = recording.stat.shape
    names = [p.name for p in recording.placement.table.pmus]
    hours = recording.duration_s / 3600
    out = []

    def scatter(per_hour: float, across: int) -> list[tuple[int, int]]:
        count = rng.poisson(per_hour * hours * across)
        return [(int(t), int(s)) for t, s in zip(rng.integers(5, frames - 5, count), rng.integers(0, across, count),
                                                 strict=True)]  # fmt: skip

    for t, s in scatter(VOLTAGE_STEPS_PER_PMU_HOUR, pmus):
        size = float(rng.choice([-1, 1]) * rng.uniform(3e-4, 1e-3))
        recording.values[t:, s, V_MAG] *= 1 + size
        out.append(Label("voltage_step", "data", t / RATE_HZ, t / RATE_HZ, names[s], (names[s],), 100 * size, "%"))
    for t, s in scatter(SPIKES_PER_PMU_HOUR, pmus):
        _spike(recording, t, s, rng)
        out.append(Label("frequency_spike", "data", t / RATE_HZ, t / RATE_HZ, names[s], (names[s],), 0.5, "Hz"))
    for t, s in scatter(DROPOUTS_PER_PMU_HOUR, pmus):
        _drop_out(recording, t, s)
        out.append(Label("dropout", "data", t / RATE_HZ, t / RATE_HZ, names[s], (names[s],), 1, "frame"))
    sources = recording.placement.sources
    for t, k in scatter(LOST_FRAMES_PER_SOURCE_HOUR, len(sources)):
        recording.sent[t, k] = False
        out.append(Label("lost_frame", "comms", t / RATE_HZ, t / RATE_HZ, sources[k], (), 1, "frame"))
    return out


def _spike(recording: Recording, t: int, s: int, rng: np.random.Generator) -> None:
    """One frame with frequency half a hertz off, and an angle that jumped with it."""
    sign = rng.choice([-1, 1])
    size = rng.uniform(0.3, 0.7)
    recording.values[t, s, FREQ] += sign * size
    recording.values[t, s, ROCOF] += sign * size * RATE_HZ / 2
    recording.values[t, s, ANGLES] += sign * 360 * size / RATE_HZ


def _drop_out(recording: Recording, t: int, s: int) -> None:
    """One frame with frequency zero and the rest not a number."""
    recording.values[t, s] = np.nan
    recording.values[t, s, FREQ] = 0


Span = slice
_Fault = Callable[[Recording, int, Span, NDArray[np.float64], np.random.Generator], tuple[float, str, str]]
"""Recording, PMU, frames, seconds since onset at those frames, draw; the size, its unit and a note."""


def _clock_drift(
    recording: Recording, s: int, span: Span, since_s: NDArray[np.float64], rng: np.random.Generator
) -> tuple[float, str, str]:
    rate = float(rng.choice([-1, 1]) * rng.uniform(8e-6, 40e-6))
    hz = recording.placement.table.pmus[s].nominal_hz
    recording.values[span, s, V_ANG] += 360 * hz * rate * since_s
    recording.values[span, s, I_ANG] += 360 * hz * rate * since_s
    recording.values[span, s, FREQ] += hz * rate
    return 1e6 * rate, "us/s", "angles ramp, then jump back when the clock locks again; STAT says nothing"


def _stuck(
    recording: Recording, s: int, span: Span, _since_s: NDArray[np.float64], _rng: np.random.Generator
) -> tuple[float, str, str]:
    recording.values[span, s] = recording.values[span.start, s]
    return float(span.stop - span.start), "frames", "every value repeats the first one"


def _ratio_drift(
    recording: Recording, s: int, span: Span, since_s: NDArray[np.float64], rng: np.random.Generator
) -> tuple[float, str, str]:
    size = float(rng.choice([-1, 1]) * rng.uniform(0.01, 0.02))
    ramp = np.clip(since_s / (0.7 * since_s[-1]), 0, 1)
    recording.values[span, s, V_MAG] *= 1 + size * ramp
    return 100 * size, "%", "voltage transformer: the magnitude ramps and springs back, the neighbours' do not"


def _ratio_step(
    recording: Recording, s: int, span: Span, _since_s: NDArray[np.float64], rng: np.random.Generator
) -> tuple[float, str, str]:
    size = float(rng.choice([-1, 1]) * rng.uniform(0.01, 0.02))
    recording.values[span, s, V_MAG] *= 1 + size
    return 100 * size, "%", "voltage transformer: the magnitude steps and springs back, the neighbours' do not"


def _sync_lost(
    recording: Recording, s: int, span: Span, since_s: NDArray[np.float64], rng: np.random.Generator
) -> tuple[float, str, str]:
    recording.stat[span, s] = STAT_UNSYNCHRONISED
    wander = np.cumsum(rng.standard_normal(len(since_s))) * 0.2
    recording.values[span, s, V_ANG] += wander
    recording.values[span, s, I_ANG] += wander
    return float(STAT_UNSYNCHRONISED), "STAT", "out of sync, and says so; its angles wander"


def _data_invalid(
    recording: Recording, s: int, span: Span, since_s: NDArray[np.float64], rng: np.random.Generator
) -> tuple[float, str, str]:
    recording.stat[span, s] = STAT_ERROR
    recording.values[span, s] *= rng.uniform(0.3, 1.0, (len(since_s), 1))
    return float(STAT_ERROR), "STAT", "PMU error, and says so; its values are rubbish"


def _spikes(
    recording: Recording, s: int, span: Span, since_s: NDArray[np.float64], rng: np.random.Generator
) -> tuple[float, str, str]:
    count = 8
    for t in np.sort(rng.choice(np.arange(2, len(since_s) - 2, 3), count, replace=False)):
        _spike(recording, span.start + int(t), s, rng)
    return float(count), "spikes", "single frames, half a hertz, with the angle"


def _dropouts(
    recording: Recording, s: int, span: Span, since_s: NDArray[np.float64], rng: np.random.Generator
) -> tuple[float, str, str]:
    count = 12
    for t in rng.choice(np.arange(0, len(since_s), 2), count, replace=False):
        _drop_out(recording, span.start + int(t), s)
    return float(count), "frames", "single frames: frequency 0, the rest not a number"


def _pmu_silent(
    recording: Recording, s: int, span: Span, since_s: NDArray[np.float64], _rng: np.random.Generator
) -> tuple[float, str, str]:
    recording.values[span, s] = np.nan
    recording.stat[span, s] = STAT_ABSENT
    return len(since_s) / RATE_HZ, "s", "the concentrator fills in: not a number, STAT absent"


def _source_silent(
    recording: Recording, s: int, span: Span, since_s: NDArray[np.float64], _rng: np.random.Generator
) -> tuple[float, str, str]:
    recording.sent[span, recording.placement.source_of[s]] = False
    return len(since_s) / RATE_HZ, "s", "no frame came"


def _phases_swapped(
    recording: Recording, s: int, span: Span, since_s: NDArray[np.float64], rng: np.random.Generator
) -> tuple[float, str, str]:
    # Two phases swapped turn positive into negative sequence; what is left of the positive is the unbalance.
    left = rng.uniform(0.004, 0.012)
    recording.values[span, s, V_MAG] *= left
    recording.values[span, s, V_ANG] += rng.uniform(60, 180) + rng.standard_normal(len(since_s)) * 0.3
    return (
        100 * left,
        "% left",
        "two phases swapped: almost no positive sequence voltage is left, without any frequency change",
    )


def _phase_reversed(
    recording: Recording, s: int, span: Span, _since_s: NDArray[np.float64], _rng: np.random.Generator
) -> tuple[float, str, str]:
    recording.values[span, s, V_ANG] += 180
    return 180.0, "deg", "voltage connected the wrong way round"


def _scaling(
    recording: Recording, s: int, span: Span, _since_s: NDArray[np.float64], rng: np.random.Generator
) -> tuple[float, str, str]:
    factor = float(rng.choice([3**0.5, 3**-0.5, 1e-3]))
    recording.values[span, s, V_MAG] *= factor
    return factor, "times", "voltage scaled wrongly (line to line for line to neutral, or kilovolts for volts)"


def _noisy(
    recording: Recording, s: int, span: Span, since_s: NDArray[np.float64], rng: np.random.Generator
) -> tuple[float, str, str]:
    times = float(rng.uniform(20, 60))
    draw = times * rng.standard_normal((len(since_s), 6))
    recording.values[span, s, V_MAG] *= 1 + VOLTAGE_NOISE * draw[:, V_MAG]
    recording.values[span, s, V_ANG] += ANGLE_NOISE_DEG * draw[:, V_ANG]
    recording.values[span, s, FREQ] += FREQUENCY_NOISE_HZ * draw[:, FREQ]
    recording.values[span, s, ROCOF] += ROCOF_NOISE_HZ_S * draw[:, ROCOF]
    return times, "times", "noise of voltage, angle, frequency and ROCOF"


def _angle_wrap(
    recording: Recording, s: int, span: Span, since_s: NDArray[np.float64], rng: np.random.Generator
) -> tuple[float, str, str]:
    # The zero of all angles is free: turn the stream so that this PMU stands at 180 degrees in the middle of it.
    middle = (span.start + span.stop) // 2
    recording.values[..., ANGLES] += 180 - recording.values[middle, s, V_ANG]
    near = recording.values[span, s, V_ANG]
    wrong = rng.random(len(since_s)) < 0.25
    recording.values[span, s, V_ANG] = np.where(wrong, near * rng.uniform(-0.02, 0.02, len(since_s)), near)
    return float(wrong.sum()), "frames", "the mean of angles on both sides of 180 degrees, near 0"


KINDS: dict[str, tuple[_Fault, float]] = {
    "clock_drift": (_clock_drift, 15.0),
    "stuck": (_stuck, 15.0),
    "ratio_drift": (_ratio_drift, 18.0),
    "ratio_step": (_ratio_step, 12.0),
    "sync_lost": (_sync_lost, 15.0),
    "data_invalid": (_data_invalid, 5.0),
    "frequency_spikes": (_spikes, 10.0),
    "dropouts": (_dropouts, 10.0),
    "pmu_silent": (_pmu_silent, 15.0),
    "source_silent": (_source_silent, 10.0),
    "phases_swapped": (_phases_swapped, 12.0),
    "phase_reversed": (_phase_reversed, 12.0),
    "scaling": (_scaling, 12.0),
    "noisy": (_noisy, 15.0),
    "angle_wrap": (_angle_wrap, 10.0),
}
"""Each data fault, and how long it lasts."""


def apply_fault(kind: str, recording: Recording, s: int, onset_s: float, rng: np.random.Generator) -> Label:
    """Break one PMU (or its whole concentrator) for a while.

    Parameters
    ----------
    kind
        One of `KINDS`.
    recording
        Changed in place.
    s
        Which PMU.
    onset_s
        Seconds from the start.
    rng
        The draw.

    Returns
    -------
    Label
        What was done.
    """
    fault, lasts_s = KINDS[kind]
    span = slice(round(onset_s * RATE_HZ), round((onset_s + lasts_s) * RATE_HZ))
    since_s = np.arange(span.stop - span.start) / RATE_HZ
    size, unit, note = fault(recording, s, span, since_s, rng)
    pmus = recording.placement.table.pmus
    whole = kind == "source_silent"
    element = pmus[s].source if whole else pmus[s].name
    names = tuple(p.name for p in pmus if p.source == element) if whole else (element,)
    cause = "comms" if kind in {"source_silent", "pmu_silent"} else "data"
    return Label(kind, cause, onset_s, onset_s + lasts_s, element, names, size, unit, note)
