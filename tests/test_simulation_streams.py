"""The bundled streams are what they claim to be: size, channels, noise, labels, and events that can be seen."""

import json
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from streams.archives import read_description, read_parquet
from streams.channels import ChannelTable, Quantity

DEMO = Path(__file__).parents[1] / "gridsense" / "demo"
STREAMS = ("ambient", "demo")
V_MAG, V_ANG, _I_MAG, _I_ANG, FREQ, _ROCOF = range(6)
GRID_KINDS = {"fault", "line_trip", "generator_trip", "load_step", "load_rejection", "forced_oscillation"}


@cache
def stream(name: str) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.uint16], ChannelTable]:
    """Time `(T,)` in ns, values `(T, S, 6)` with NaN where a source sent nothing, STAT `(T, S)`, and the table."""
    path = DEMO / f"{name}.parquet"
    table = read_description(path).table
    batches = list(read_parquet(path, rows=1_000_000))
    time_ns = np.unique(np.concatenate([b.time_ns for b in batches]))
    values = np.full((len(time_ns), len(table.pmus), 6), np.nan, np.float32)
    stat = np.zeros((len(time_ns), len(table.pmus)), np.uint16)
    for batch in batches:
        rows = np.searchsorted(time_ns, batch.time_ns)
        columns = [table.index[p.name] for p in batch.table.pmus]
        values[np.ix_(rows, columns)] = batch.values
        stat[np.ix_(rows, columns)] = batch.stat
    return time_ns, values, stat, table


@cache
def labels() -> list[dict[str, Any]]:
    rows = json.loads((DEMO / "demo.json").read_text())
    return [r | {k: np.datetime64(r[k][:-1], "ns").astype(np.int64) for k in ("onset", "end")} for r in rows]


def per_unit(values: NDArray[np.float32], table: ChannelTable) -> NDArray[np.float64]:
    nominal = np.array([p.channels[V_MAG].nominal for p in table.pmus])
    return values[..., V_MAG].astype(float) / nominal


def unwrapped(values: NDArray[np.float32]) -> NDArray[np.float64]:
    angles = values[..., V_ANG].astype(float)
    for column in angles.T:
        sent = np.isfinite(column)
        column[sent] = np.unwrap(column[sent], period=360)
    return angles


def white(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Root mean square of the white noise in each column: what third differences leave of it."""
    return np.diff(x, 3, axis=0).std(0) / np.sqrt(20)


def index(time_ns: NDArray[np.int64], at_ns: int) -> int:
    return int(np.searchsorted(time_ns, at_ns))


def test_bundle_is_small() -> None:
    assert sum(f.stat().st_size for f in DEMO.iterdir() if f.is_file()) <= 10_000_000


@pytest.mark.parametrize("name", STREAMS)
def test_table(name: str) -> None:
    description = read_description(DEMO / f"{name}.parquet")
    pmus = description.table.pmus
    assert description.rate_hz == 30
    assert len(pmus) >= 50
    assert len({p.name for p in pmus}) == len({p.id_code for p in pmus}) == len(pmus)
    assert 4 <= len({p.source for p in pmus}) <= 5
    assert all(len(p.station.encode("ascii")) <= 16 for p in pmus)
    expected = [
        Quantity.VOLTAGE_MAGNITUDE,
        Quantity.VOLTAGE_ANGLE,
        Quantity.CURRENT_MAGNITUDE,
        Quantity.CURRENT_ANGLE,
        Quantity.FREQUENCY,
        Quantity.ROCOF,
    ]
    for pmu in pmus:
        assert [c.quantity for c in pmu.channels] == expected
        assert [c.unit for c in pmu.channels] == ["V", "deg", "A", "deg", "Hz", "Hz/s"]
        assert pmu.channels[V_MAG].nominal > 1000


def test_both_streams_have_one_table() -> None:
    ambient, demo = (read_description(DEMO / f"{n}.parquet").table for n in STREAMS)
    assert ambient == demo


@pytest.mark.parametrize(("name", "minutes"), [("ambient", (4, 5)), ("demo", (5, 6))])
def test_times_stand_on_the_grid(name: str, minutes: tuple[int, int]) -> None:
    time_ns, *_ = stream(name)
    frame = np.arange(len(time_ns))
    assert np.array_equal(time_ns - time_ns[0], (frame * 1_000_000_000 + 15) // 30)
    assert minutes[0] * 1800 <= len(time_ns) <= minutes[1] * 1800


def test_streams_do_not_overlap() -> None:
    ambient, demo = (stream(n)[0] for n in STREAMS)
    assert ambient[-1] < demo[0]


def test_ambient_is_clean() -> None:
    _time_ns, values, stat, _table = stream("ambient")
    assert np.isfinite(values).all()
    assert not stat.any()


def test_ambient_noise_is_that_of_transmission_pmus() -> None:
    _time_ns, values, _stat, table = stream("ambient")
    volts, degrees = white(per_unit(values, table)), white(unwrapped(values))
    assert 1.5e-5 < np.median(volts) < 3e-5
    assert volts.max() < 5e-5
    assert 1.3e-3 < np.median(degrees) < 2.5e-3
    assert degrees.max() < 4e-3
    # 0.17 mHz of noise under steps of 1 mHz, which add 0.29 mHz
    hertz = white(values[..., FREQ].astype(float))
    assert 0.25e-3 < np.median(hertz) < 0.45e-3


def test_ambient_frequency_wanders_by_some_millihertz() -> None:
    _time_ns, values, _stat, _table = stream("ambient")
    mean = values[..., FREQ].astype(float).mean(1)
    assert 2e-3 < mean.std() < 6e-3
    assert abs(mean.mean() - 60) < 2e-3


def test_ambient_is_stationary_from_its_first_second() -> None:
    _time_ns, values, _stat, table = stream("ambient")
    volts = per_unit(values, table)
    first, rest = np.diff(volts[:150], axis=0).std(0), np.diff(volts, axis=0).std(0)
    assert (first < 1.5 * rest).all()
    assert (first > 0.6 * rest).all()


def test_values_are_quantised_as_a_device_would() -> None:
    _time_ns, values, _stat, _table = stream("ambient")
    assert np.abs(values[..., FREQ] * 1000.0 - np.round(values[..., FREQ] * 1000.0)).max() < 3e-3
    assert np.array_equal(values[..., V_ANG] * 512, np.round(values[..., V_ANG] * 512))
    assert values[..., V_ANG].min() >= -180
    assert values[..., V_ANG].max() <= 180


def test_frequency_is_the_slope_of_the_angle() -> None:
    _time_ns, values, _stat, _table = stream("ambient")
    slope = 60 + np.diff(unwrapped(values), axis=0) * 30 / 360
    middle = (values[1:, :, FREQ].astype(float) + values[:-1, :, FREQ]) / 2
    assert (slope - middle).std() < 0.6e-3


def test_labels_lie_inside_the_stream_and_name_its_pmus() -> None:
    time_ns, _values, _stat, table = stream("demo")
    names = set(table.index)
    for label in labels():
        assert time_ns[0] < label["onset"] <= label["end"] < time_ns[-1]
        assert label["cause"] in {"grid", "data", "comms"}
        assert (label["kind"] in GRID_KINDS) == (label["cause"] == "grid")
        assert label["element"]
        assert label["pmus"]
        assert set(label["pmus"]) <= names
    assert not json.loads((DEMO / "ambient.json").read_text())


def test_demo_has_grid_events_of_many_kinds_far_apart() -> None:
    grid = [label for label in labels() if label["cause"] == "grid"]
    assert len(grid) >= 6
    assert {"fault", "line_trip", "generator_trip", "load_step", "forced_oscillation"} <= {g["kind"] for g in grid}
    gaps = [(b["onset"] - a["end"]) / 1e9 for a, b in pairwise(grid)]
    assert min(gaps) > 27
    assert len([label for label in labels() if label["cause"] != "grid"]) >= 6


@pytest.mark.parametrize("kind", sorted(GRID_KINDS - {"forced_oscillation"}))
def test_switchings_show_at_the_first_pmu_named(kind: str) -> None:
    time_ns, values, _stat, table = stream("demo")
    volts, angles = per_unit(values, table), unwrapped(values)
    for label in (x for x in labels() if x["kind"] == kind):
        s, k = table.index[label["pmus"][0]], index(time_ns, label["onset"])
        angle = angles[:, s] - np.nanmedian(angles, axis=1)
        moved = max(np.ptp(volts[k - 4 : k + 6, s]), np.deg2rad(np.ptp(angle[k - 4 : k + 6])))
        before = max(np.ptp(volts[k - 24 : k - 14, s]), np.deg2rad(np.ptp(angle[k - 24 : k - 14])))
        assert moved > 1.5e-3
        assert moved > 3 * before


def test_faults_pull_the_voltage_down_for_some_frames_only() -> None:
    time_ns, values, _stat, table = stream("demo")
    volts = per_unit(values, table)
    for label in (x for x in labels() if x["kind"] == "fault"):
        k = index(time_ns, label["onset"])
        low = (volts[k - 3 : k + 12, table.index[label["pmus"][0]]] < 0.9).sum()
        assert 1 <= low <= 6
        assert label["size"] < 0.9


def test_a_lost_machine_pulls_the_frequency_down_everywhere() -> None:
    time_ns, values, _stat, _table = stream("demo")
    label = next(x for x in labels() if x["kind"] == "generator_trip")
    k = index(time_ns, label["onset"])
    hertz = np.nanmedian(values[..., FREQ].astype(float), axis=1)
    assert hertz[k + 150 : k + 300].mean() < hertz[k - 60 : k].mean() - 0.008


def test_forced_oscillation_stands_at_its_frequency() -> None:
    time_ns, values, _stat, table = stream("demo")
    label = next(x for x in labels() if x["kind"] == "forced_oscillation")
    assert label["unit"] == "Hz"
    span = slice(index(time_ns, label["onset"]) + 90, index(time_ns, label["end"]))
    volts = per_unit(values, table)[span, [table.index[n] for n in label["pmus"][:3]]]
    keep = np.isfinite(volts).all(1)
    t, volts = np.arange(len(volts))[keep] / 30, volts[keep]
    volts -= np.vander(t, 3) @ np.linalg.lstsq(np.vander(t, 3), volts, rcond=None)[0]
    hertz = np.linspace(0.1, 2, 200)
    power = np.abs(np.exp(-2j * np.pi * hertz[:, None] * t) @ volts).sum(1)
    assert hertz[np.argmax(power)] == pytest.approx(label["size"], abs=0.05)


@pytest.mark.parametrize("label", [x for x in labels() if x["cause"] != "grid"], ids=lambda x: x["kind"])
def test_data_faults_are_where_the_label_says(label: dict[str, Any]) -> None:
    time_ns, values, stat, table = stream("demo")
    on = slice(index(time_ns, label["onset"]), index(time_ns, label["end"]))
    s = table.index[label["pmus"][0]]
    here = values[on, s]
    match label["kind"]:
        case "pmu_silent" | "source_silent":
            silent = np.isnan(values[on]).all(2)
            affected = [table.index[n] for n in label["pmus"]]
            assert silent[:, affected].all()
            assert silent.mean() < 1.5 * len(affected) / silent.shape[1]
            assert not np.isnan(values[on.stop + 3 : on.stop + 60, s]).all(1).all()
        case "stuck":
            sent = here[np.isfinite(here).all(1)]
            assert len(np.unique(sent, axis=0)) == 1
        case "data_invalid":
            assert (stat[on, s] == 0x4000).mean() > 0.95
        case "sync_lost":
            assert ((stat[on, s] & 0x2000) != 0).mean() > 0.95
        case "frequency_spikes":
            assert (np.abs(here[:, FREQ] - 60) > 0.2).sum() >= label["size"]
        case "clock_drift":
            others = unwrapped(values)[on] - unwrapped(values)[on.start]
            drift = others[:, s] - np.nanmedian(others, axis=1)
            assert drift[np.isfinite(drift)][-1] == pytest.approx(
                360 * 60 * label["size"] * 1e-6 * len(here) / 30, rel=0.4
            )
        case "ratio_drift":
            volts = per_unit(values, table)[:, s]
            change = 100 * (np.nanmedian(volts[on.stop - 30 : on.stop]) / np.nanmedian(volts[on.start - 30 : on.start]))
            assert change - 100 == pytest.approx(label["size"], abs=0.5)
        case other:
            pytest.fail(f"no check for {other}")
