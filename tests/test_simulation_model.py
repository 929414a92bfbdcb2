"""The model PMU, the data faults and the labels, on a grid of three buses that nobody had to simulate."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from scripts.simulation import datafaults, labels
from scripts.simulation.grid import Grid, Placement, _table
from scripts.simulation.measurement import FREQ, I_MAG, V_ANG, V_MAG, Simulated, add_noise, measure, quantise
from scripts.simulation.recording import Recording, record, write_recording
from scripts.simulation.scenarios import SCENARIOS, NotSeenError, check_stays_together
from streams.archives import read_parquet

ROOT = Path(__file__).parents[1]
SECOND = 30
Array = NDArray[np.float64]


def branch(idx: str, one: int, two: int) -> dict[str, Any]:
    zero = dict.fromkeys(("b", "g", "b1", "g1", "b2", "g2", "phi"), 0.0)
    return {"idx": idx, "bus1": one, "bus2": two, "u": 1.0, "r": 0.01, "x": 0.1, "tap": 1.0, **zero}


@pytest.fixture
def placement() -> Placement:
    grid = Grid(
        {
            "case": "npcc",
            "mva": 100.0,
            "nominal_hz": 60.0,
            "areas": {"1": "NORTH", "2": "SOUTH"},
            "buses": [
                {"idx": 1, "name": "ALPHA", "kv": 345.0, "area": "1", "v": 1.0, "a": 0.2},
                {"idx": 2, "name": "BETA", "kv": 345.0, "area": "1", "v": 1.0, "a": 0.0},
                {"idx": 3, "name": "BETA", "kv": 115.0, "area": "2", "v": 1.0, "a": -0.1},
            ],
            "lines": [branch("L1", 1, 2), branch("L2", 2, 3), branch("L3", 1, 3)],
            "loads": [{"idx": "D", "bus": 3, "p": 5.0, "q": 1.0}],
            "machines": [{"model": "GENROU", "idx": "G", "bus": 1, "p": 4.0, "exciter": ["IEEEX1", "X"]}],
        }
    )
    buses = np.array([0, 1, 2])
    branches = np.array([[0, 0], [0, 1], [1, 1]])
    return Placement(grid, buses, branches, _table(grid, buses, branches))


def run(
    volts: Callable[[Array], Array] = np.ones_like,
    hz: float = 0.0,
    seconds: float = 4.0,
    opened: dict[int, float] | None = None,
) -> Simulated:
    t = np.arange(-60, round(120 * (seconds + 0.5))) / 120
    magnitude = np.stack([volts(t), np.ones_like(t), np.ones_like(t)], 1)
    angles = 2 * np.pi * hz * t[:, None] + np.array([0.2, 0.0, -0.1])
    return Simulated(t, magnitude, angles, seconds, opened or {})


def recording(placement: Placement, seconds: float = 60.0) -> Recording:
    rng = np.random.default_rng(1)
    return record(add_noise(measure(run(seconds=seconds), placement), placement, rng), placement, labels.NS)


def test_names_are_unique_and_say_the_voltage(placement: Placement) -> None:
    assert [p.name for p in placement.table.pmus] == ["ALPHA", "BETA 345", "BETA 115"]
    assert [p.source for p in placement.table.pmus] == ["NORTH", "NORTH", "SOUTH"]
    assert [p.id_code for p in placement.table.pmus] == [1001, 1002, 2001]


def test_a_steady_grid_off_nominal_is_reported_exactly(placement: Placement) -> None:
    out = measure(run(hz=0.05), placement)
    assert out.shape == (120, 3, 6)
    # a triangular window of two cycles is not quite flat at 0.05 Hz off
    assert out[..., V_MAG] == pytest.approx(np.broadcast_to([345e3, 345e3, 115e3], (120, 3)) / np.sqrt(3), rel=1e-4)
    assert out[..., FREQ] == pytest.approx(60.05, abs=1e-9)
    time_s = np.arange(120) / 30
    expected = 360 * 0.05 * time_s[:, None] + np.rad2deg([0.2, 0.0, -0.1])
    turns = (out[..., V_ANG] - expected) / 360
    assert turns == pytest.approx(np.round(turns), abs=1e-9)


def test_current_follows_ohm_and_stops_when_the_line_opens(placement: Placement) -> None:
    out = measure(run(opened={0: 2.0}), placement)
    per_unit = abs((np.exp(0.2j) - 1) / (0.01 + 0.1j))
    amps = per_unit * 100e3 / (np.sqrt(3) * 345)
    assert out[:55, 0, I_MAG] == pytest.approx(amps, rel=1e-6)
    assert out[65:, :2, I_MAG] == pytest.approx(0, abs=1e-6)
    assert out[65:, 2, I_MAG].min() > 1


def test_a_step_takes_two_cycles_and_leaves_no_echo(placement: Placement) -> None:
    # the integrator's own steps: one on either side of the jump, 0.1 ms apart
    t = np.sort(np.concatenate([run().time_s, [2.0001]]))
    step = Simulated(
        t, np.stack([np.where(t > 2.00005, 0.5, 1.0)] + [np.ones_like(t)] * 2, 1), np.zeros((len(t), 3)), 4.0, {}
    )
    volts = measure(step, placement)[:, 0, V_MAG] / (345e3 / np.sqrt(3))
    assert volts[:59] == pytest.approx(1)
    assert volts[60] == pytest.approx(0.75, abs=0.04)  # a sample of 480 Hz lies exactly on the jump
    assert volts[62:] == pytest.approx(0.5)


def test_quantised_values_wrap_and_keep_gaps(placement: Placement) -> None:
    values = np.full((2, 3, 6), 60.00049)
    values[..., V_ANG] = 181.0
    values[1, 0] = np.nan
    out = quantise(values, placement)
    assert out[0, 0, V_ANG] == -179
    assert out[0, 0, FREQ] == np.float32(60.0)
    assert np.isnan(out[1, 0]).all()


@pytest.mark.parametrize("kind", datafaults.KINDS)
def test_data_faults_stay_in_their_place_and_time(placement: Placement, kind: str) -> None:
    clean, broken = recording(placement), recording(placement)
    label = datafaults.apply_fault(kind, broken, 1, 20.0, np.random.default_rng(2))
    span = slice(20 * SECOND, round(label.end_s * SECOND))
    assert label.cause in {"data", "comms"}
    assert label.onset_s == 20.0
    reached = [p.name in label.pmus for p in placement.table.pmus]
    a, b = quantise(clean.values, placement), quantise(broken.values, placement)
    if kind == "angle_wrap":  # turns all angles by one constant first
        broken.values[..., datafaults.ANGLES] -= (broken.values - clean.values)[0, 0, V_ANG]
        b = quantise(broken.values, placement)
    outside = np.ones(len(a), bool)
    outside[span] = False
    close = np.isclose(a, b, atol=5e-3, rtol=0) | (np.abs(np.abs(a - b) - 360) < 5e-3)
    assert close[outside].all()
    assert close[:, ~np.array(reached)].all()
    changed = ~close[span, 1].all() or (clean.stat != broken.stat).any() or not broken.sent.all()
    assert changed


def test_blemishes_are_single_frames_and_many(placement: Placement) -> None:
    blemished = recording(placement, 240.0)
    rows = datafaults.add_blemishes(blemished, np.random.default_rng(3))
    assert (
        {"dropout", "lost_frame"}
        <= {r.kind for r in rows}
        <= {"dropout", "lost_frame", "frequency_spike", "voltage_step"}
    )
    dropped = blemished.values[..., FREQ] == 0
    assert dropped.sum() == sum(r.kind == "dropout" for r in rows)
    assert np.isnan(blemished.values[dropped][:, :FREQ]).all()


def test_written_stream_comes_back_without_the_frames_never_sent(placement: Placement, tmp_path: Path) -> None:
    out = recording(placement, 4.0)
    out.sent[10:20, 0] = False
    write_recording(tmp_path / "x.parquet", out)
    batches = {b.table.pmus[0].source: b for b in read_parquet(tmp_path / "x.parquet")}
    assert len(batches["NORTH"].time_ns) == 110
    assert len(batches["SOUTH"].time_ns) == 120
    expected = quantise(out.values, placement)
    assert np.array_equal(batches["NORTH"].values, np.delete(expected[:, :2], np.s_[10:20], axis=0))
    assert np.array_equal(batches["SOUTH"].values, expected[:, 2:])


def test_labels_are_written_in_order_with_utc_times(tmp_path: Path) -> None:
    made = [
        labels.Label("stuck", "data", 15.0, 30.0, "B", ("B",), 450.0, "frames"),
        labels.Label("fault", "grid", 2.4567, 2.5234, "A", ("A",), 0.512345678, "pu", "note"),
    ]
    labels.write_labels(tmp_path / "x.json", made, 1_772_366_400 * labels.NS)
    rows = json.loads((tmp_path / "x.json").read_text())
    assert [r["kind"] for r in rows] == ["fault", "stuck"]
    assert rows[0]["onset"] == "2026-03-01T12:00:02.457Z"
    assert rows[0]["end"] == "2026-03-01T12:00:02.523Z"
    assert list(rows[0]) == ["kind", "cause", "onset", "end", "element", "pmus", "size", "unit", "note"]
    assert rows[0]["size"] == 0.51235


@pytest.mark.parametrize("name", [n for n in SCENARIOS if n not in {"line_trip", "fault_trip", "fault_4", "fault_6"}])
def test_scenarios_say_how_much(placement: Placement, name: str) -> None:
    event = SCENARIOS[name](placement.grid, np.random.default_rng(0), 25.0)
    assert event.label.size > 0
    assert event.actions[0]["at_s"] == 25.0
    expected = {"generator_trip": 400.0, "load_step": 125.0, "load_rejection": 500.0}
    assert event.label.size == pytest.approx(expected.get(name, event.label.size))


def test_a_grid_that_falls_apart_is_refused(placement: Placement) -> None:
    check_stays_together(run(), placement)
    with pytest.raises(NotSeenError, match="falls apart"):
        check_stays_together(run(hz=0.8), placement)
    with pytest.raises(NotSeenError, match="from where it began"):
        check_stays_together(run(volts=lambda t: np.where(t > 1, 0.8, 1.0)), placement)


def test_command_line_teaches() -> None:
    program = [sys.executable, ROOT / "scripts" / "simulate_grid.py"]
    text = subprocess.run([*program, "--help"], capture_output=True, text=True, check=True).stdout
    for word in ("corpus", "ambient", "bundle", "examples:", "GPL-3"):
        assert word in text
    wrong = subprocess.run([*program, "corpus"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2


def test_product_never_imports_the_simulator() -> None:
    for package in ("gridsense", "streams", "baselines", "models"):
        for path in (ROOT / package).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            assert "import andes" not in text
            assert "scripts.simulation" not in text
