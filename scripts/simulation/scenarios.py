"""What happens in the grid: which element, when and how much.

In: the solved grid and a draw. Out: actions for the worker, and the label that they earn. Elements are drawn among
those whose loss matters: a line that carries nothing is no event.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scripts.simulation.grid import NETWORK_KV, Grid, Placement
from scripts.simulation.labels import Label
from scripts.simulation.measurement import Simulated

MIN_LINE_MW = 100.0
MACHINE_MW = (200.0, 1250.0)
MIN_LOAD_MW = 400.0
REJECTED_MW = (200.0, 800.0)
LOAD_STEP = 0.25
CYCLE_S = 1 / 60
OSCILLATION_HZ = (0.2, 1.5)
OSCILLATION_S = 30.0
EXCITER_SHARE = 0.7
"""Of the forced oscillations; a load swings in the rest."""
AFFECTED = 6
"""PMUs named in a label."""
SEEN_PU = 0.002
"""At some PMU the voltage phasor must jump at least so far (per unit; 0.1 degrees), or another element is drawn. It is
a hundred times the noise, and seven times what ambient moves between two frames."""
FAULT_PU = 0.88
"""A fault must pull the voltage at some PMU below this."""
OSCILLATION_PU = 0.004
"""An oscillation must move some PMU's voltage phasor so far, and `OVER_AMBIENT` times as far as ambient does."""
OVER_AMBIENT = 4.0
OSCILLATION_LOOK_S = 12.0
LASTING_PU = 0.08
"""So far may a PMU's voltage stand from where it began in the end: beyond, relays would act that nobody simulates."""


@dataclass(frozen=True, slots=True)
class GridEvent:
    """One disturbance.

    Attributes
    ----------
    label
        What it is; its `pmus` are known after the simulation only.
    actions
        For the worker.
    opened
        By branch: when it is tripped.
    """

    label: Label
    actions: tuple[dict[str, Any], ...]
    opened: dict[int, float] = field(default_factory=dict)


def _pick(rng: np.random.Generator, among: list[Any]) -> Any:
    return among[int(rng.integers(len(among)))]


def _lines(grid: Grid) -> list[int]:
    """Lines that carry something and whose loss leaves the grid in one piece."""
    full = [k for k in range(len(grid.ends)) if abs(grid.flows_mw[k]) >= MIN_LINE_MW and grid.is_line(k)]
    return [k for k in full if min(grid.kv[grid.ends[k]]) >= NETWORK_KV and grid.connected_without(k)]


def _fault(grid: Grid, rng: np.random.Generator, at_s: float, cycles: int) -> GridEvent:
    network = [k for k in range(len(grid.kv)) if grid.degree[k] > 2 and grid.kv[k] >= NETWORK_KV]
    column = _pick(rng, network)
    until_s = at_s + cycles * CYCLE_S
    action = {"do": "fault", "bus": grid.about["buses"][column]["idx"], "at_s": at_s, "until_s": until_s,
              "x": float(rng.uniform(0.001, 0.015))}  # fmt: skip
    label = Label("fault", "grid", at_s, until_s, grid.bus_name(column), (), 0.0, "pu", f"three-phase, {cycles} cycles")
    return GridEvent(label, (action,))


def fault_4(grid: Grid, rng: np.random.Generator, at_s: float) -> GridEvent:
    """Three-phase fault, gone after 4 cycles."""
    return _fault(grid, rng, at_s, 4)


def fault_6(grid: Grid, rng: np.random.Generator, at_s: float) -> GridEvent:
    """Three-phase fault, gone after 6 cycles."""
    return _fault(grid, rng, at_s, 6)


def fault_trip(grid: Grid, rng: np.random.Generator, at_s: float) -> GridEvent:
    """Three-phase fault at one end of a line, cleared after 5 cycles by opening the line."""
    k = _pick(rng, _lines(grid))
    column = int(_pick(rng, grid.ends[k].tolist()))
    until_s = at_s + 5 * CYCLE_S
    bus, line = grid.about["buses"][column]["idx"], grid.about["lines"][k]["idx"]
    actions = (
        {"do": "fault", "bus": bus, "at_s": at_s, "until_s": until_s, "x": float(rng.uniform(0.001, 0.015))},
        {"do": "trip", "model": "Line", "idx": line, "at_s": until_s},
    )
    flow = abs(grid.flows_mw[k])
    note = f"three-phase at {grid.bus_name(column)}, cleared after 5 cycles by opening a line of {flow:.0f} MW"
    return GridEvent(
        Label("fault", "grid", at_s, until_s, grid.line_name(k), (), 0.0, "pu", note), actions, {k: until_s}
    )


def line_trip(grid: Grid, rng: np.random.Generator, at_s: float) -> GridEvent:
    """Open a loaded line."""
    k = _pick(rng, _lines(grid))
    action = {"do": "trip", "model": "Line", "idx": grid.about["lines"][k]["idx"], "at_s": at_s}
    label = Label("line_trip", "grid", at_s, at_s, grid.line_name(k), (), abs(grid.flows_mw[k]), "MW", "flow before")
    return GridEvent(label, (action,), {k: at_s})


def generator_trip(grid: Grid, rng: np.random.Generator, at_s: float) -> GridEvent:
    """Lose a machine."""
    low, high = (p / grid.about["mva"] for p in MACHINE_MW)
    machine = _pick(rng, [m for m in grid.about["machines"] if low <= m["p"] <= high])
    action = {"do": "trip", "model": machine["model"], "idx": machine["idx"], "at_s": at_s}
    element = f"{machine['idx']} at {grid.bus_name(grid.place[machine['bus']])}"
    power = machine["p"] * grid.about["mva"]
    return GridEvent(Label("generator_trip", "grid", at_s, at_s, element, (), power, "MW", "output before"), (action,))


def _large_loads(grid: Grid) -> list[Any]:
    return [x for x in grid.about["loads"] if x["p"] * grid.about["mva"] >= MIN_LOAD_MW]


def load_step(grid: Grid, rng: np.random.Generator, at_s: float) -> GridEvent:
    """Let a large load grow by a quarter at once."""
    load = _pick(rng, _large_loads(grid))
    power = load["p"] * grid.about["mva"]
    action = {"do": "scale_load", "idx": load["idx"], "factor": 1 + LOAD_STEP, "at_s": at_s}
    element = f"{load['idx']} at {grid.bus_name(grid.place[load['bus']])}"
    note = f"{100 * LOAD_STEP:.0f} % of {power:.0f} MW"
    return GridEvent(Label("load_step", "grid", at_s, at_s, element, (), LOAD_STEP * power, "MW", note), (action,))


def load_rejection(grid: Grid, rng: np.random.Generator, at_s: float) -> GridEvent:
    """Lose a whole load."""
    low, high = (p / grid.about["mva"] for p in REJECTED_MW)
    load = _pick(rng, [x for x in grid.about["loads"] if low <= x["p"] <= high])
    action = {"do": "scale_load", "idx": load["idx"], "factor": 0.0, "at_s": at_s}
    element = f"{load['idx']} at {grid.bus_name(grid.place[load['bus']])}"
    power = load["p"] * grid.about["mva"]
    return GridEvent(Label("load_rejection", "grid", at_s, at_s, element, (), power, "MW", "load before"), (action,))


def forced_oscillation(grid: Grid, rng: np.random.Generator, at_s: float) -> GridEvent:
    """Something swings for half a minute: the voltage reference of a large machine, or a large load."""
    frequency = float(np.exp(rng.uniform(*np.log(OSCILLATION_HZ))))
    until_s = at_s + OSCILLATION_S
    wave = {"frequency_hz": frequency, "at_s": at_s, "until_s": until_s}
    if rng.random() < EXCITER_SHARE:
        able = [m for m in grid.about["machines"] if "exciter" in m and m["p"] * grid.about["mva"] >= MACHINE_MW[0]]
        machine = _pick(rng, able)
        model, idx = machine["exciter"]
        amplitude = float(rng.uniform(0.02, 0.05))
        action = {"do": "oscillate", "model": model, "idx": idx, "amplitude": amplitude, **wave}
        element = f"{idx} of {machine['idx']} at {grid.bus_name(grid.place[machine['bus']])}"
        note = f"voltage reference +-{amplitude:.3f} pu"
    else:
        load = _pick(rng, _large_loads(grid))
        amplitude = float(rng.uniform(0.03, 0.08))
        action = {"do": "swing_load", "idx": load["idx"], "amplitude": amplitude, **wave}
        element = f"{load['idx']} at {grid.bus_name(grid.place[load['bus']])}"
        note = f"load of {load['p'] * grid.about['mva']:.0f} MW +-{100 * amplitude:.0f} %"
    return GridEvent(Label("forced_oscillation", "grid", at_s, until_s, element, (), frequency, "Hz", note), (action,))


SCENARIOS: dict[str, Callable[[Grid, np.random.Generator, float], GridEvent]] = {
    "fault_4": fault_4,
    "fault_6": fault_6,
    "fault_trip": fault_trip,
    "line_trip": line_trip,
    "generator_trip": generator_trip,
    "load_step": load_step,
    "load_rejection": load_rejection,
    "forced_oscillation": forced_oscillation,
}
"""Grid events by the name that the command line knows."""


class NotSeenError(Exception):
    """The drawn element's loss moves no PMU enough to be called an event, or breaks the grid."""


def _phasors(run: Simulated, placement: Placement, times_s: NDArray[np.float64]) -> NDArray[np.complex128]:
    """`(n, S)`: voltage phasors at some times, per unit, in the frame of the mean angle."""
    volts, angles = (
        np.stack([np.interp(times_s, run.time_s, x[:, k]) for k in range(x.shape[1])], 1)
        for x in (run.volts, run.angles)
    )
    phasors: NDArray[np.complex128] = volts * np.exp(1j * (angles - angles.mean(1, keepdims=True)))
    return phasors[:, placement.buses]


def _jump(run: Simulated, placement: Placement, onset_s: float) -> NDArray[np.float64]:
    """`(S,)`: how far each PMU's voltage phasor jumps at a switching, per unit; ambient has no time to move it."""
    before, after = _phasors(run, placement, onset_s + np.array([-0.002, 0.012]))
    jump: NDArray[np.float64] = np.abs(after - before)
    return jump


def _amplitude(run: Simulated, placement: Placement, start_s: float, hz: float) -> NDArray[np.float64]:
    """`(S,)`: amplitude of each PMU's voltage phasor at one frequency, per unit, over whole periods from `start_s`."""
    length_s = max(1, round(OSCILLATION_LOOK_S * hz)) / hz
    times_s = start_s + np.arange(0, length_s, 1 / 60)
    phasors = _phasors(run, placement, times_s)
    trend = np.vander(times_s - start_s, 3).astype(complex)
    wave = np.exp(2j * np.pi * hz * times_s)
    design = np.column_stack([trend, wave, wave.conj()])
    fit = np.linalg.lstsq(design, phasors, rcond=None)[0]
    amplitude: NDArray[np.float64] = np.abs(fit[-2:]).sum(0)
    return amplitude


def finish_label(event: GridEvent, run: Simulated, placement: Placement) -> Label:
    """Complete a label with what the simulation showed.

    Parameters
    ----------
    event
        What was asked for.
    run
        What became of it.
    placement
        Where the PMUs stand.

    Returns
    -------
    Label
        With the PMUs that it moved most, most first.

    Raises
    ------
    NotSeenError
        If none moved enough.
    """
    label = event.label
    if label.kind == "forced_oscillation":
        moved = _amplitude(run, placement, label.onset_s + 2, label.size)
        before = _amplitude(run, placement, label.onset_s - 2 - OSCILLATION_LOOK_S, label.size)
        if moved.max() < max(OSCILLATION_PU, OVER_AMBIENT * before[np.argmax(moved)]):
            raise NotSeenError(
                f"{label.element} swings no PMU by more than {moved.max():.4f} pu at {label.size:.2f} Hz"
            )
        how = "swings with an amplitude of"
    else:
        moved = _jump(run, placement, label.onset_s)
        if moved.max() < SEEN_PU:
            raise NotSeenError(f"{label.kind} of {label.element}: the nearest PMU jumps by {moved.max():.4f} pu only")
        how = "jumps by"
    order = np.argsort(-moved)[:AFFECTED]
    names = tuple(placement.table.pmus[s].name for s in order)
    note = f"{label.note}; {names[0]} {how} {moved.max():.3g} pu"
    if label.kind == "fault":
        rows = (run.time_s > label.onset_s + 1e-3) & (run.time_s < label.end_s - 1e-3)
        lowest = float(run.volts[rows][:, placement.buses].min())
        if lowest > FAULT_PU:
            raise NotSeenError(f"fault at {label.element}: no PMU below {lowest:.3f} pu")
        return replace(label, pmus=names, note=note, size=lowest)
    return replace(label, pmus=names, note=note)


def check_stays_together(run: Simulated, placement: Placement) -> None:
    """Refuse a run that ends with the grid falling apart, or where protection would have acted.

    Parameters
    ----------
    run
        The simulation.
    placement
        Where the PMUs stand.

    Raises
    ------
    NotSeenError
        If a bus ends far from nominal voltage or frequency.
    """
    last = run.time_s > run.duration_s - 2
    speed = np.diff(run.angles[last], axis=0) / np.diff(run.time_s[last])[:, None] / (2 * np.pi)
    volts = run.volts[last][:, placement.buses]
    change = float(np.abs(volts - np.abs(placement.grid.start[:, placement.buses])).max())
    if not np.isfinite(run.volts).all() or np.abs(speed).max() > 0.5 or run.volts[last].min() < 0.6:
        raise NotSeenError("the grid falls apart")
    if change > LASTING_PU:
        raise NotSeenError(f"a voltage ends {change:.2f} pu from where it began")
