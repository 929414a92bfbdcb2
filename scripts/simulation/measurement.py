"""A PMU: bus phasors at the integrator's steps in, reported values at 30 frames a second out.

In: time, voltages and angles of all buses from a simulation. Out: `(T, S, 6)` values as a P-class device with a
measured transmission PMU's noise would report them, not yet quantised. It knows no events and no data faults.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.signal import oaconvolve

from scripts.simulation.grid import Placement

RATE_HZ = 30
FINE_HZ = 480
"""Rate on which the filters run; a multiple of the reporting rate."""
LEAD_S = 0.4
"""Simulated before and after a stream; more than half the length of all filters together."""

V_MAG, V_ANG, I_MAG, I_ANG, FREQ, ROCOF = range(6)

VOLTAGE_NOISE, ANGLE_NOISE_DEG, FREQUENCY_NOISE_HZ = 2e-5, 0.0016, 1.7e-4
"""Root mean square, as measured on transmission PMUs (voltage relative, angle in degrees, frequency in Hz)."""
ROCOF_NOISE_HZ_S = 5e-3
CURRENT_NOISE = 5e-5
"""Root mean square of each of the two components, relative to the nominal current."""
FREQUENCY_STEP_HZ, ROCOF_STEP_HZ_S = 1e-3, 2.0**-7
ANGLE_STEP_DEG = 2.0**-9
MAGNITUDE_STEP = 1e-5
"""Relative to nominal; rounded to a power of two of the unit, which leaves zeros in the mantissa for the packer."""
FREQUENCY_LIMIT_HZ = 5.0
"""A device reports no deviation beyond this; a faulted phasor has no frequency worth the name."""

_PHASOR = np.bartlett(2 * FINE_HZ // 60 + 1)
_SLOPE = np.hanning(4 * FINE_HZ // 60 + 1)


@dataclass(frozen=True, slots=True)
class Simulated:
    """What a simulation left.

    Attributes
    ----------
    time_s
        `(N,)`: the integrator's own, uneven steps, from before 0 to after `duration_s`.
    volts
        `(N, buses)` per unit.
    angles
        `(N, buses)` radians, not wrapped, in a frame that turns at nominal frequency.
    duration_s
        Length of the stream.
    opened
        By branch: when it was tripped.
    """

    time_s: NDArray[np.float64]
    volts: NDArray[np.float64]
    angles: NDArray[np.float64]
    duration_s: float
    opened: dict[int, float]


def _smooth(
    values: NDArray[np.complex128] | NDArray[np.float64], window: NDArray[np.float64]
) -> NDArray[np.complex128]:
    """Convolve each column with a window of unit sum; the edges are the caller's to cut."""
    out: NDArray[np.complex128] = oaconvolve(values, (window / window.sum())[:, None], mode="same", axes=0)
    return out


def reporting_times(duration_s: float) -> NDArray[np.float64]:
    """`(T,)`: seconds from the start of the stream."""
    return np.arange(round(duration_s * RATE_HZ)) / RATE_HZ


def phasors(
    run: Simulated, placement: Placement, pmus: NDArray[np.int64], fine_s: NDArray[np.float64]
) -> tuple[NDArray[np.complex128], NDArray[np.complex128]]:
    """Voltage and current phasors of some PMUs, per unit, unfiltered, on a fine grid of times.

    Parameters
    ----------
    run
        The simulation. ANDES writes a step on either side of each switching, 0.1 ms apart, so that straight lines
        between its steps do not smear a jump.
    placement
        Where the PMUs stand.
    pmus
        `(n,)`: which of them.
    fine_s
        `(F,)`.

    Returns
    -------
    tuple[NDArray[np.complex128], NDArray[np.complex128]]
        Two of `(F, n)`.
    """
    grid = placement.grid
    pairs = grid.ends[placement.branches[pmus, 0]]
    columns = np.unique(np.concatenate([placement.buses[pmus], pairs.ravel()]))
    bus = np.empty((len(fine_s), len(columns)), complex)
    for n, column in enumerate(columns):
        volts = np.interp(fine_s, run.time_s, run.volts[:, column])
        bus[:, n] = volts * np.exp(1j * np.interp(fine_s, run.time_s, run.angles[:, column]))
    currents = np.empty((len(fine_s), len(pmus)), complex)
    for n, (branch, end) in enumerate(placement.branches[pmus].tolist()):
        currents[:, n] = grid.current(branch, end, bus[:, np.searchsorted(columns, grid.ends[branch])])
        currents[fine_s >= run.opened.get(branch, np.inf), n] = 0
    return bus[:, np.searchsorted(columns, placement.buses[pmus])], currents


def measure(run: Simulated, placement: Placement) -> NDArray[np.float64]:
    """Report a simulation without noise.

    A triangular window of two cycles makes the phasors (a P-class filter, and its time stamp is its middle); frequency
    is the slope of the angle over a further four cycles, ROCOF the slope of that.

    Parameters
    ----------
    run
        The simulation.
    placement
        Where the PMUs stand.

    Returns
    -------
    NDArray[np.float64]
        `(T, S, 6)`: voltage (V, line to neutral; degrees, not wrapped), current (A; degrees), frequency (Hz), ROCOF.
    """
    every = FINE_HZ // RATE_HZ
    frames = len(reporting_times(run.duration_s))
    lead = round(LEAD_S * FINE_HZ)
    fine_s = (np.arange(frames * every + 2 * lead) - lead) / FINE_HZ
    reported = slice(lead, lead + frames * every, every)
    kv = placement.grid.kv[placement.buses]
    volts_base = kv * 1e3 / np.sqrt(3)
    amps_base = placement.grid.about["mva"] * 1e3 / (np.sqrt(3) * kv)
    nominal_hz = placement.grid.about["nominal_hz"]
    out = np.empty((frames, len(kv), 6))
    for pmus in np.array_split(np.arange(len(kv)), max(1, len(kv) // 8)):  # a few at a time: memory
        volts, amps = (_smooth(x, _PHASOR) for x in phasors(run, placement, pmus, fine_s))
        angle = np.unwrap(np.angle(volts), axis=0)
        slope = np.gradient(angle, 1 / FINE_HZ, axis=0) / (2 * np.pi)
        frequency = _smooth(slope, _SLOPE).real.clip(-FREQUENCY_LIMIT_HZ, FREQUENCY_LIMIT_HZ)
        rocof = np.gradient(frequency, 1 / FINE_HZ, axis=0)
        out[:, pmus, V_MAG] = np.abs(volts[reported]) * volts_base[pmus]
        out[:, pmus, V_ANG] = np.rad2deg(angle[reported])
        out[:, pmus, I_MAG] = np.abs(amps[reported]) * amps_base[pmus]
        out[:, pmus, I_ANG] = np.rad2deg(np.angle(amps[reported]))
        out[:, pmus, FREQ] = nominal_hz + frequency[reported]
        out[:, pmus, ROCOF] = rocof[reported]
    return out


def nominals(placement: Placement) -> NDArray[np.float64]:
    """`(S, 6)`: nominal value of each channel; 1 where it has none."""
    return np.array([[c.nominal or 1.0 for c in p.channels] for p in placement.table.pmus])


def add_noise(clean: NDArray[np.float64], placement: Placement, rng: np.random.Generator) -> NDArray[np.float64]:
    """Add a transmission PMU's noise, and turn all angles by one random constant (the zero of time is nobody's).

    Parameters
    ----------
    clean
        `(T, S, 6)` of `measure`.
    placement
        Where the PMUs stand.
    rng
        The draw.

    Returns
    -------
    NDArray[np.float64]
        `(T, S, 6)`, angles not wrapped.
    """
    out = clean.copy()
    draw = rng.standard_normal(clean.shape)
    out[..., V_MAG] *= 1 + VOLTAGE_NOISE * draw[..., V_MAG]
    out[..., V_ANG] += ANGLE_NOISE_DEG * draw[..., V_ANG]
    noise = CURRENT_NOISE * nominals(placement)[:, I_MAG] * (draw[..., I_MAG] + 1j * draw[..., I_ANG])
    current = clean[..., I_MAG] * np.exp(1j * np.deg2rad(clean[..., I_ANG])) + noise
    out[..., I_MAG], out[..., I_ANG] = np.abs(current), np.rad2deg(np.angle(current))
    out[..., FREQ] += FREQUENCY_NOISE_HZ * draw[..., FREQ]
    out[..., ROCOF] += ROCOF_NOISE_HZ_S * draw[..., ROCOF]
    turn = rng.uniform(-180, 180)
    out[..., [V_ANG, I_ANG]] += turn
    return out


def quantise(values: NDArray[np.float64], placement: Placement) -> NDArray[np.float32]:
    """Round to a device's resolution and wrap angles to [-180, 180).

    Parameters
    ----------
    values
        `(T, S, 6)`.
    placement
        Where the PMUs stand.

    Returns
    -------
    NDArray[np.float32]
        `(T, S, 6)`; NaN stays.
    """
    step = np.empty((len(placement.table.pmus), 6))
    step[:] = 2.0 ** np.round(np.log2(MAGNITUDE_STEP * nominals(placement)))
    step[:, [V_ANG, I_ANG]] = ANGLE_STEP_DEG
    step[:, FREQ], step[:, ROCOF] = FREQUENCY_STEP_HZ, ROCOF_STEP_HZ_S
    out = np.round(values / step) * step
    out[..., [V_ANG, I_ANG]] = (out[..., [V_ANG, I_ANG]] + 180) % 360 - 180
    return out.astype(np.float32)
