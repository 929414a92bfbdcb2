"""Measurements made up for conversations with peers: what is put on the wire, and what anybody must read off it.

A scene holds the numbers as they are sent (counts where the format is an integer), so that a peer can be told them, and
the measurements that they stand for, by the formulas of the standard written out here and nowhere else in the project.
It neither encodes nor decodes a frame.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streams.block import FrameBatch
from streams.c37118.configuration import (
    AnalogDefinition,
    ConfigurationFrame,
    PhasorDefinition,
    PmuConfiguration,
    channel_table,
)

RATE = 30
HEADER = "GridSense asks, somebody else answers"
START_SOC = 1_772_366_399
"""Two frames before a whole second: the first frames cross it."""
SOURCE = "peer"
STEP_V = 1e-5
STEP_RAD = 1e-4


@dataclass(frozen=True, slots=True)
class Form:
    """Formats of all PMUs of a stream.

    Attributes
    ----------
    polar
        Phasors as magnitude and angle, else real and imaginary part.
    float_phasors
        As float32, else as 16-bit integers.
    float_frequency
        Frequency and ROCOF as float32, else as 16-bit integers; analogs alike.
    """

    polar: bool
    float_phasors: bool
    float_frequency: bool

    @property
    def words(self) -> str:
        """For people."""
        axes = "polar" if self.polar else "rectangular"
        kinds = {True: "float", False: "integer"}
        return f"{kinds[self.float_phasors]} {axes} phasors, {kinds[self.float_frequency]} frequency"


@dataclass(frozen=True, slots=True)
class Scene:
    """What is said.

    Attributes
    ----------
    configuration
        Under which it is sent.
    form
        Of all PMUs.
    batch
        What the numbers mean, `(T, S, C)`, float64.
    sent
        `(T, S, P, 2)`: phasors as sent.
    frequency, rocof
        `(T, S)`: as sent.
    analog
        `(T, S, A)`: as sent.
    """

    configuration: ConfigurationFrame
    form: Form
    batch: FrameBatch
    sent: NDArray[np.float64]
    frequency: NDArray[np.float64]
    rocof: NDArray[np.float64]
    analog: NDArray[np.float64]

    @property
    def frames(self) -> int:
        """How many frames."""
        return len(self.batch.time_ns)


def make_scene(form: Form, pmus: int, frames: int, *, seed: int = 1, plain: bool = True) -> Scene:
    """Draw a scene.

    Parameters
    ----------
    form
        Formats.
    pmus
        PMUs in a frame.
    frames
        Data frames.
    seed
        Of the draw.
    plain
        All STAT bits 0; else drawn, but for those that are undefined or change the configuration.

    Returns
    -------
    Scene
        Two voltages, a current and an analog of each PMU, 60 and 50 Hz in turn where frequencies are integers.
    """
    rng = np.random.default_rng(seed)
    drawn = [
        PmuConfiguration(
            station=f"Substation {s + 1}",
            id_code=40 + s,
            nominal_hz=50 if s % 2 else 60,
            phasors=(
                PhasorDefinition("VA bus 1", scale=9.15527),
                PhasorDefinition("VB bus 1", scale=9.15527),
                PhasorDefinition("I line 12", is_current=True, scale=0.45776),
            ),
            analogs=(AnalogDefinition("tap changer", kind=1),),
            polar=form.polar,
            float_phasors=form.float_phasors,
            float_analogs=form.float_frequency,
            float_frequency=form.float_frequency,
        )
        for s in range(pmus)
    ]
    configuration = ConfigurationFrame(drawn[0].id_code if pmus == 1 else 700, tuple(drawn), RATE)
    shape = (frames, pmus, 3)
    angle_rad = rng.uniform(-np.pi, np.pi, shape)
    counts = rng.uniform(100.0, 32_000.0 if not form.polar else 65_000.0, shape)
    scale = np.array([p.scale for p in drawn[0].phasors])
    if form.float_phasors:
        one, other = (counts * scale, angle_rad) if form.polar else _apart(counts * scale, angle_rad)
        sent = np.stack([one, other], axis=-1).astype(np.float32).astype(np.float64)
        meant = sent
    else:
        one, other = (counts, angle_rad / STEP_RAD) if form.polar else _apart(counts, angle_rad)
        sent = np.rint(np.stack([one, other], axis=-1))
        meant = sent * np.stack([scale, np.full(3, STEP_RAD) if form.polar else scale], axis=-1)
    magnitude, angle_rad = (
        (meant[..., 0], meant[..., 1])
        if form.polar
        else (np.hypot(meant[..., 0], meant[..., 1]), np.arctan2(meant[..., 1], meant[..., 0]))
    )
    nominal_hz = np.array([p.nominal_hz for p in drawn])
    deviation_mhz = np.rint(rng.normal(0, 200, shape[:2]))
    rocof = np.rint(rng.normal(0, 100, shape[:2]))
    analog = np.rint(rng.normal(0, 5000, (*shape[:2], 1)))
    if form.float_frequency:
        frequency = (nominal_hz + deviation_mhz / 1000).astype(np.float32).astype(np.float64)
        rocof = (rocof / 100).astype(np.float32).astype(np.float64)
        analog = (analog / 7).astype(np.float32).astype(np.float64)
        frequency_hz, rocof_hz_s = frequency, rocof
    else:
        frequency, frequency_hz, rocof_hz_s = deviation_mhz, nominal_hz + deviation_mhz / 1000, rocof / 100
    phasors = np.stack([magnitude, np.degrees(angle_rad)], axis=-1).reshape(*shape[:2], 6)
    values = np.concatenate([phasors, frequency_hz[..., None], rocof_hz_s[..., None], analog], axis=-1)
    ticks = np.arange(frames) + RATE - 2
    fraction = np.rint((ticks % RATE) * (configuration.time_base / RATE)).astype(np.int64)
    time_ns = (START_SOC + ticks // RATE) * 1_000_000_000 + fraction * (1_000_000_000 // configuration.time_base)
    stat = np.zeros((frames, pmus), np.uint16)
    if not plain:
        # that the configuration will change would be news to the gateway; trigger reasons from 8 on are undefined
        stat[:] = rng.integers(0, 1 << 16, stat.shape) & ~(1 << 10 | 1 << 3)
    table = channel_table(configuration, SOURCE)
    batch = FrameBatch(table, float(RATE), time_ns, np.zeros(frames, np.uint8), stat, values, time_ns)
    return Scene(configuration, form, batch, sent, frequency, rocof, analog)


def _apart(size: NDArray[np.float64], angle_rad: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    return size * np.cos(angle_rad), size * np.sin(angle_rad)


def told(scene: Scene) -> str:
    """Put a scene into the words in which a peer's server is told it.

    Parameters
    ----------
    scene
        What it shall send.

    Returns
    -------
    str
        JSON.
    """
    integers = not scene.form.float_phasors, not scene.form.float_frequency
    c = scene.configuration
    soc, rest_ns = np.divmod(scene.batch.time_ns, 1_000_000_000)
    fraction = rest_ns * c.time_base // 1_000_000_000
    frames = [
        {
            "soc": int(soc[t]),
            "fraction": int(fraction[t]),
            "pmus": [
                {
                    "stat": int(scene.batch.stat[t, s]),
                    "phasors": _numbers(scene.sent[t, s], whole=integers[0]),
                    "frequency": _numbers(scene.frequency[t, s], whole=integers[1]),
                    "rocof": _numbers(scene.rocof[t, s], whole=integers[1]),
                    "analog": _numbers(scene.analog[t, s], whole=integers[1]),
                }
                for s in range(len(c.pmus))
            ],
        }
        for t in range(scene.frames)
    ]
    stations = [
        {
            "name": p.station,
            "id_code": p.id_code,
            "nominal_hz": p.nominal_hz,
            "polar": p.polar,
            "float_phasors": p.float_phasors,
            "float_analogs": p.float_analogs,
            "float_frequency": p.float_frequency,
            "phasors": [
                {"name": d.name, "is_current": d.is_current, "steps": round(d.scale / STEP_V)} for d in p.phasors
            ],
            "analogs": [a.name for a in p.analogs],
        }
        for p in c.pmus
    ]
    document = {"id_code": c.id_code, "rate": c.data_rate, "time_base": c.time_base, "header": HEADER}
    return json.dumps(document | {"stations": stations, "frames": frames})


def _numbers(values: NDArray[np.float64], *, whole: bool) -> Any:
    return values.astype(np.int64).tolist() if whole else values.tolist()
