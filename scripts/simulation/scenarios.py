"""What happens in the grid: which element, when and how much.

In: the solved grid and a draw. Out: actions for the worker, and the label that they earn. Elements are drawn among those
whose loss matters: a line that carries nothing is no event.
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
AFFECTED = 6
"""PMUs named in a label."""
SEEN_PU = {"fault": 0.12, "line_trip": 0.004, "generator_trip": 0.002, "load_step": 0.002, "load_rejection": 0.002,
           "forced_oscillation": 0.003}  # fmt: skip
"""By kind: at some PMU the voltage phasor must move at least so far within a second (per unit), or another is drawn."""


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
    note = f"three-phase at {grid.bus_name(column)}, cleared after 5 cycles by opening a line of {abs(grid.flows_mw[k]):.0f} MW"
    return GridEvent(Label("fault", "grid", at_s, until_s, grid.line_name(k), (), 0.0, "pu", note), actions, {k: until_s})


def line_trip(grid: Grid, rng: np.random.Generator, at_s: float) -> GridEvent:
    """A loaded line opens."""
    k = _pick(rng, _lines(grid))
    action = {"do": "trip", "model": "Line", "idx": grid.about["lines"][k]["idx"], "at_s": at_s}
    label = Label("line_trip", "grid", at_s, at_s, grid.line_name(k), (), abs(grid.flows_mw[k]), "MW", "flow before")
    return GridEvent(label, (action,), {k: at_s})


def generator_trip(grid: Grid, rng: np.random.Generator, at_s: float) -> GridEvent:
    """A machine is lost."""
    low, high = (p / grid.about["mva"] for p in MACHINE_MW)
    machine = _pick(rng, [m for m in grid.about["machines"] if low <= m["p"] <= high])
    action = {"do": "trip", "model": machine["model"], "idx": machine["idx"], "at_s": at_s}
    element = f"{machine['idx']} at {grid.bus_name(grid.place[machine['bus']])}"
    power = machine["p"] * grid.about["mva"]
    return GridEvent(Label("generator_trip", "grid", at_s, at_s, element, (), power, "MW", "output before"), (action,))


def load_step(grid: Grid, rng: np.random.Generator, at_s: float) -> GridEvent:
    """A large load grows by a quarter at once."""
    load = _pick(rng, [x for x in grid.about["loads"] if x["p"] * grid.about["mva"] >= MIN_LOAD_MW])
    power = load["p"] * grid.about["mva"]
    action = {"do": "scale_load", "idx": load["idx"], "factor": 1 + LOAD_STEP, "at_s": at_s}
    element = f"{load['idx']} at {grid.bus_name(grid.place[load['bus']])}"
    note = f"{100 * LOAD_STEP:.0f} % of {power:.0f} MW"
    return GridEvent(Label("load_step", "grid", at_s, at_s, element, (), LOAD_STEP * power, "MW", note), (action,))


def load_rejection(grid: Grid, rng: np.random.Generator, at_s: float) -> GridEvent:
    """A load is lost whole."""
    low, high = (p / grid.about["mva"] for p in REJECTED_MW)
    load = _pick(rng, [x for x in grid.about["loads"] if low <= x["p"] <= high])
    action = {"do": "scale_load", "idx": load["idx"], "factor": 0.0, "at_s": at_s}
    element = f"{load['idx']} at {grid.bus_name(grid.place[load['bus']])}"
    power = load["p"] * grid.about["mva"]
    return GridEvent(Label("load_rejection", "grid", at_s, at_s, element, (), power, "MW", "load before"), (action,))


def forced_oscillation(grid: Grid, rng: np.random.Generator, at_s: float) -> GridEvent:
    """The voltage reference or the governor of a large machine swings."""
    control = str(rng.choice(["exciter", "governor"]))
    able = [m for m in grid.about["machines"] if control in m and m["p"] * grid.about["mva"] >= MACHINE_MW[0]]
    machine = _pick(rng, able)
    model, idx = machine[control]
    frequency = float(np.exp(rng.uniform(*np.log(OSCILLATION_HZ))))
    # A governor follows fast swings badly, and counts in per unit of speed (TGOV1) or of power (the others).
    amplitude = 0.04 if control == "exciter" else {"TGOV1": 0.006, "TGOV1N": 0.1, "IEEEG1": 0.1}[model]
    amplitude *= float(rng.uniform(0.7, 1.5))
    until_s = at_s + OSCILLATION_S
    action = {"do": "oscillate", "model": model, "idx": idx, "control": control, "amplitude": amplitude,
              "frequency_hz": frequency, "at_s": at_s, "until_s": until_s}  # fmt: skip
    element = f"{idx} of {machine['idx']} at {grid.bus_name(grid.place[machine['bus']])}"
    note = f"{control} reference +-{amplitude:.3g} pu"
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


def _movement(run: Simulated, placement: Placement, onset_s: float, until_s: float) -> NDArray[np.float64]:
    """`(S,)`: how far each PMU's voltage phasor moves within a window, per unit, in the frame of the mean angle."""
    before = int(np.searchsorted(run.time_s, onset_s - 1e-3)) - 1
    rows = slice(before, int(np.searchsorted(run.time_s, until_s)))
    angles = run.angles[rows]
    relative = angles - angles.mean(1, keepdims=True)
    phasors = (run.volts[rows] * np.exp(1j * relative))[:, placement.buses]
    moved: NDArray[np.float64] = np.abs(phasors - phasors[0]).max(0)
    return moved


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
        With the PMUs that moved most in the first second (an oscillation: five), most first.

    Raises
    ------
    NotSeenError
        If none moved enough.
    """
    label = event.label
    oscillates = label.kind == "forced_oscillation"
    moved = _movement(run, placement, label.onset_s, label.onset_s + (5.0 if oscillates else 1.0))
    if moved.max() < SEEN_PU[label.kind]:
        raise NotSeenError(f"{label.kind} of {label.element}: the furthest PMU moves by {moved.max():.4f} pu only")
    order = np.argsort(-moved)[:AFFECTED]
    names = tuple(placement.table.pmus[s].name for s in order)
    note = f"{label.note}; {names[0]} moves by {moved.max():.3g} pu"
    if label.kind == "fault":
        rows = (run.time_s > label.onset_s + 1e-3) & (run.time_s < label.end_s - 1e-3)
        return replace(label, pmus=names, note=note, size=float(run.volts[rows][:, placement.buses].min()))
    return replace(label, pmus=names, note=note)


def check_stays_together(run: Simulated) -> None:
    """Refuse a run that ends with the grid falling apart.

    Parameters
    ----------
    run
        The simulation.

    Raises
    ------
    NotSeenError
        If a bus ends far from nominal voltage or frequency.
    """
    last = run.time_s > run.duration_s - 2
    speed = np.diff(run.angles[last], axis=0) / np.diff(run.time_s[last])[:, None] / (2 * np.pi)
    if np.abs(speed).max() > 0.5 or run.volts[last].min() < 0.6 or not np.isfinite(run.volts).all():
        raise NotSeenError("the grid falls apart")
