"""Runs the physics: the one file that imports ANDES, and it runs only in `.venv-andes`.

In: one JSON object a line on standard input. Out: one JSON object a line on standard output, and the bus phasors of a
run in an `.npz`. It chooses nothing: which element, when and how much stands in the request. It knows nothing of PMUs.

Requests: `{"op": "describe"}`, and `{"op": "simulate", "seed", "duration_s", "step_s", "actions", "out"}`. Answers:
`{"progress": 0.4}` any number of times, then `{"ok": true, ...}` or `{"ok": false, "error": "..."}`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import andes
import numpy as np

CASES = {"npcc": "npcc/npcc.xlsx", "ieee39": "ieee39/ieee39_full.xlsx", "wecc": "wecc/wecc_full.xlsx"}
MACHINES = ("GENROU", "GENCLS")
EXCITERS = ("IEEEX1", "EXST1", "ESDC2A", "ESST3A")
GOVERNORS = ("TGOV1", "TGOV1N", "IEEEG1")
SHIPPED_DISTURBANCES = ("Toggle", "Fault", "Alter")

WARM_S = 20.0
"""Simulated first and thrown away, so that load noise, governors and secondary control are stationary at time 0."""
MARGIN_S = 0.5
"""Kept before time 0 and after the end, so that the edges of measurement filters fall outside."""

LOAD_SIGMA, LOAD_TAU_S, LOAD_LAG_S = 0.004, 2.0, 0.2
COMMON_SIGMA, COMMON_TAU_S = 0.0025, 15.0
SECONDARY_TAU_S = 25.0
"""Integral time of secondary control: without one, frequency would wander off after every lost machine."""
IMPEDANCE_SHARE = 0.6
"""Of every load; the rest draws constant current. Constant power would collapse under a fault."""


def load(case: str) -> Any:
    """Load a case without the disturbances that it ships with."""
    system = andes.load(andes.get_case(CASES[case]), setup=False, no_output=True, default_config=True)
    for name in SHIPPED_DISTURBANCES:
        model = getattr(system, name)
        for i in range(model.n):
            model.u.v[i] = 0
    return system


def describe(case: str) -> dict[str, Any]:
    """Solve the power flow and list what a scenario can choose from (per unit on `mva`, radians, kV)."""
    system = load(case)
    system.setup()
    if not system.PFlow.run():
        raise RuntimeError(f"{case}: the power flow does not converge")
    bus = system.Bus
    line = system.Line
    named = dict(zip(system.Area.idx.v, system.Area.name.v, strict=True))
    controls: dict[Any, dict[str, Any]] = {}
    for kind, names in (("exciter", EXCITERS), ("governor", GOVERNORS)):
        for name in names:
            model = getattr(system, name)
            for idx, machine in zip(model.idx.v, model.syn.v, strict=True):
                controls.setdefault(machine, {})[kind] = [name, idx]
    static = {g: float(p) for m in (system.PV, system.Slack) for g, p in zip(m.idx.v, m.p.v, strict=True)}
    machines = []
    shares: dict[Any, int] = {}
    for name in MACHINES:
        model = getattr(system, name)
        for gen in model.gen.v:
            shares[gen] = shares.get(gen, 0) + 1
        machines += [
            {"model": name, "idx": i, "bus": b, "p": static[g] / shares[g], "inertia": float(h), **controls.get(i, {})}
            for i, b, g, h in zip(model.idx.v, model.bus.v, model.gen.v, model.M.v, strict=True)
        ]
    return {
        "case": case,
        "mva": float(system.config.mva),
        "nominal_hz": float(system.config.freq),
        "areas": {str(a): str(named.get(a) or f"AREA {a}") for a in sorted(set(bus.area.v))},
        "buses": [
            {"idx": i, "name": str(n), "kv": float(kv), "area": str(a), "v": float(v), "a": float(d)}
            for i, n, kv, a, v, d in zip(bus.idx.v, bus.name.v, bus.Vn.v, bus.area.v, bus.v.v, bus.a.v, strict=True)
        ],
        "lines": [
            {"idx": line.idx.v[k], "bus1": line.bus1.v[k], "bus2": line.bus2.v[k]}
            | {f: float(getattr(line, f).v[k]) for f in ("u", "r", "x", "b", "g", "b1", "g1", "b2", "g2", "tap", "phi")}
            for k in range(line.n)
        ],
        "loads": [
            {"idx": i, "bus": b, "p": float(p), "q": float(q)}
            for i, b, p, q in zip(system.PQ.idx.v, system.PQ.bus.v, system.PQ.p0.v, system.PQ.q0.v, strict=True)
        ],
        "machines": machines,
    }


class Noise:
    """Load noise: one Ornstein-Uhlenbeck process a load and quantity, smoothed, and a slower one common to all.

    The smoothing is why angles have no white noise of the integrator's step in them: consumers are switched at random,
    but a bus feeds thousands of them.
    """

    def __init__(self, loads: int, rng: np.random.Generator, pace: float = 1.0) -> None:
        self.rng = rng
        self.pace = pace
        # Start from the stationary law; the warm-up settles the lag and the machines.
        self.fast = LOAD_SIGMA * rng.standard_normal((2, loads))
        self.smooth = self.fast.copy()
        self.common = COMMON_SIGMA * rng.standard_normal()

    def step(self, dt: float) -> np.ndarray:
        """Advance by `dt` seconds; `(2, loads)` relative deviations of P and Q."""
        if dt > 0:
            dt *= self.pace
            keep = np.exp(-dt / LOAD_TAU_S)
            self.fast = keep * self.fast + LOAD_SIGMA * np.sqrt(1 - keep**2) * self.rng.standard_normal(self.fast.shape)
            keep = np.exp(-dt / LOAD_LAG_S)
            self.smooth = keep * self.smooth + (1 - keep) * self.fast
            keep = np.exp(-dt / COMMON_TAU_S)
            self.common = keep * self.common + COMMON_SIGMA * np.sqrt(1 - keep**2) * self.rng.standard_normal()
        return self.smooth + self.common


def prepare(case: str, actions: list[dict[str, Any]]) -> Any:
    """Load a case with its switchings, ready to run."""
    system = load(case)
    for action in actions:
        if action["do"] == "trip":
            system.add("Toggle", {"model": action["model"], "dev": action["idx"], "t": action["at_s"] + WARM_S})
        elif action["do"] == "fault":
            start, stop = action["at_s"] + WARM_S, action["until_s"] + WARM_S
            system.add("Fault", {"bus": action["bus"], "tf": start, "tc": stop, "xf": action["x"], "rf": 0.0})
    system.setup()
    for power, impedance, current in (("p2p", "p2z", "p2i"), ("q2q", "q2z", "q2i")):
        setattr(system.PQ.config, power, 0.0)
        setattr(system.PQ.config, impedance, IMPEDANCE_SHARE)
        setattr(system.PQ.config, current, 1 - IMPEDANCE_SHARE)
    if not system.PFlow.run():
        raise RuntimeError(f"{case}: the power flow does not converge")
    return system


def swing(action: dict[str, Any], t: float) -> float:
    """Deviation at a time: a sine while the action lasts, else 0."""
    on = action["at_s"] <= t < action["until_s"]
    return on * action["amplitude"] * float(np.sin(2 * np.pi * action["frequency_hz"] * (t - action["at_s"])))


def references(system: Any, actions: list[dict[str, Any]]) -> Callable[[float], None]:
    """Build the function that swings voltage references, as a function of time."""
    moved = []
    for action in actions:
        if action["do"] == "oscillate":
            model = getattr(system, action["model"])
            reference = model.vref0.v
            k = list(model.idx.v).index(action["idx"])
            moved.append((reference, k, float(reference[k]), action))

    def apply(t: float) -> None:
        for reference, k, base, action in moved:
            reference[k] = base + swing(action, t)

    return apply


def secondary_control(system: Any) -> Callable[[float], None]:
    """Build the function that returns frequency to nominal, slowly, through the governors' auxiliary input."""
    governors = []
    for name in GOVERNORS:
        model = getattr(system, name)
        if model.n:
            # TGOV1 adds the auxiliary signal to the speed error, the others to the power reference.
            gain = {"TGOV1": lambda m: np.ones(m.n), "TGOV1N": lambda m: 1 / m.R.v, "IEEEG1": lambda m: m.K.v}[name]
            governors.append((model.paux0.v, np.asarray(gain(model))))
    speeds = np.concatenate([np.asarray(getattr(system, m).omega.a, int) for m in MACHINES])
    inertia = np.concatenate([np.asarray(getattr(system, m).M.v, float) for m in MACHINES])
    state = {"integral": 0.0}

    def apply(dt: float) -> None:
        on = np.concatenate([np.asarray(getattr(system, m).u.v, float) for m in MACHINES]) * inertia
        error = float(on @ (1 - system.dae.x[speeds]) / on.sum())
        state["integral"] += error * dt / SECONDARY_TAU_S
        for reference, gain in governors:
            reference[:] = state["integral"] * gain

    return apply


def load_powers(system: Any, actions: list[dict[str, Any]], noise: Noise) -> Callable[[float, float], None]:
    """Build the function that sets every load: noise, steps and swings."""
    loads = system.PQ
    active = [np.asarray(getattr(loads, n).v) for n in ("Ppf", "Req", "Ipeq")]
    reactive = [np.asarray(getattr(loads, n).v) for n in ("Qpf", "Xeq", "Iqeq")]
    bases = [[x.copy() for x in active], [x.copy() for x in reactive]]
    place = {idx: k for k, idx in enumerate(loads.idx.v)}
    stepped = [(place[a["idx"]], a) for a in actions if a["do"] == "scale_load"]
    swung = [(place[a["idx"]], a) for a in actions if a["do"] == "swing_load"]

    def apply(t: float, dt: float) -> None:
        scale = np.ones(loads.n)
        for k, action in stepped:
            if t >= action["at_s"]:
                scale[k] *= action["factor"]
        for k, action in swung:
            scale[k] += swing(action, t)
        factors = scale * (1 + noise.step(dt))
        for arrays, base, factor in zip((active, reactive), bases, factors, strict=True):
            for array, start in zip(arrays, base, strict=True):
                array[:] = start * factor

    return apply


class Recorder:
    """Keeps the bus phasors of every step from just before time 0."""

    def __init__(self, system: Any) -> None:
        self.dae = system.dae
        self.columns = np.concatenate([np.asarray(system.Bus.v.a, int), np.asarray(system.Bus.a.a, int)])
        self.times: list[float] = []
        self.rows: list[np.ndarray] = []

    def keep(self, t: float) -> None:
        """Keep the state that the integrator reached at `t` seconds (of the stream)."""
        if t >= -MARGIN_S:
            self.times.append(t)
            self.rows.append(self.dae.y[self.columns])

    def save(self, path: str) -> None:
        """Write time, voltages (per unit) and angles (radians)."""
        volts, angles = np.split(np.array(self.rows), 2, axis=1)
        np.savez(path, t=np.array(self.times), v=volts, a=angles)


def simulate(case: str, request: dict[str, Any]) -> dict[str, Any]:
    """Run one simulation and write its bus phasors to `request["out"]`."""
    system = prepare(case, request["actions"])
    for name in MACHINES:
        machines = getattr(system, name)
        machines.M.v[:] = np.asarray(machines.M.v, float) * request.get("inertia", 1.0)
    config = system.TDS.config
    end_s = request["duration_s"] + MARGIN_S
    config.tf, config.tstep = end_s + WARM_S + MARGIN_S, request["step_s"]
    config.fixt, config.shrinkt, config.criteria, config.no_tqdm = 1, 1, 0, 1
    config.save_every = 0  # ANDES would keep every variable of every step; we keep the bus phasors
    system.TDS.init()  # so that the loads' constants exist

    noise = Noise(system.PQ.n, np.random.default_rng(request["seed"]), request.get("pace", 1.0))
    set_loads = load_powers(system, request["actions"], noise)
    move = references(system, request["actions"])
    control = secondary_control(system)
    recorder = Recorder(system)
    last = {"t": -WARM_S, "said": -WARM_S}

    def before_step(now: Any, _system: Any) -> None:
        t = float(now) - WARM_S  # `now` is a 0-d array that changes in place
        dt = t - last["t"]
        if dt > 0:
            recorder.keep(last["t"])
            control(dt)
        set_loads(t, max(dt, 0.0))
        move(t)
        last["t"] = t
        if t - last["said"] >= 1:
            last["said"] = t
            say({"progress": min(1.0, (t + WARM_S) / (end_s + WARM_S))})

    system.TDS.callpert = before_step
    began = time.process_time()
    system.TDS.run(no_summary=True)
    reached = float(system.dae.t) - WARM_S
    if reached < end_s:
        return {"ok": False, "error": f"the simulation broke off at {reached:.2f} s", "reached_s": reached}
    recorder.save(request["out"])
    return {"cpu_s": round(time.process_time() - began, 2)}


def say(answer: dict[str, Any]) -> None:
    """Write one answer."""
    print(json.dumps(answer), file=ANSWERS, flush=True)


def main() -> None:
    """Answer requests until the input ends."""
    andes.config_logger(50)
    case = sys.argv[1]
    for line in sys.stdin:
        request = json.loads(line)
        try:
            done = describe(case) if request["op"] == "describe" else simulate(case, request)
        except (RuntimeError, ValueError, ArithmeticError, KeyError) as error:
            say({"ok": False, "error": f"{type(error).__name__}: {error}"})
        else:
            say({"ok": True} | done)


if __name__ == "__main__":
    # ANDES prints as it pleases; answers have a descriptor of their own.
    ANSWERS = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    main()
