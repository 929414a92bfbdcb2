"""CSV archives: names guessed or mapped, times and rates understood, faults told by line and column."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.archives import measure, open_archive, read_archive
from streams.archives.clock import detect_rate
from streams.archives.placing import guess
from streams.block import FrameBatch
from streams.channels import Phase, Quantity
from streams.errors import ArchiveError

Q = Quantity
START_NS = 1_700_000_000_000_000_000


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "history.csv"
    path.write_text(text, encoding="utf-8")
    return path


def read(path: Path, channels: Path | None = None, rows: int = 65_536) -> list[FrameBatch]:
    return list(read_archive(open_archive(path, channels), rows=rows, dtype=np.float64))


def rows_of(count: int, values: str = "1.01,60.0", step_s: float = 1 / 30) -> str:
    return "".join(f"{1_700_000_000 + i * step_s:.6f},{values}\n" for i in range(count))


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (
            ["V_101", "A_101", "F_101", "R_101"],
            [("101", Q.VOLTAGE_MAGNITUDE), ("101", Q.VOLTAGE_ANGLE), ("101", Q.FREQUENCY), ("101", Q.ROCOF)],
        ),
        (["V_1", "A_1", "V_2"], [("1", Q.VOLTAGE_MAGNITUDE), ("1", Q.VOLTAGE_ANGLE), ("2", Q.VOLTAGE_MAGNITUDE)]),
        (["VA_mag", "VA_ang"], [("file", Q.VOLTAGE_MAGNITUDE), ("file", Q.VOLTAGE_ANGLE)]),
        (["Bus1.VM", "Bus1.VA"], [("Bus1", Q.VOLTAGE_MAGNITUDE), ("Bus1", Q.VOLTAGE_ANGLE)]),
        (["VA", "VB"], [("file", Q.VOLTAGE_MAGNITUDE), ("file", Q.VOLTAGE_MAGNITUDE)]),
        (["freq", "ROCOF", "dF/dt [Hz/s]"], [("file", Q.FREQUENCY), ("file", Q.ROCOF), ("file", Q.ROCOF)]),
        (["STATION:VA.ANG", "STATION:STAT"], [("STATION", Q.VOLTAGE_ANGLE), ("STATION", None)]),
        (["S-PA1:IPHM", "S-PA1:IPHA"], [("S PA1", Q.CURRENT_MAGNITUDE), ("S PA1", Q.CURRENT_ANGLE)]),
        (["Active Power (MW)", "Q_7"], [("file", Q.ACTIVE_POWER), ("7", Q.REACTIVE_POWER)]),
        (["S1 Analog 1", "S1 DIG1"], [("S1", Q.ANALOG), ("S1", Q.DIGITAL)]),
        (["A%2EB.VA.voltage_angle", "A%2EB.stat"], [("A.B", Q.VOLTAGE_ANGLE), ("A.B", None)]),
    ],
)
def test_names_tell_the_channels(columns: list[str], expected: list[tuple[str, Quantity | None]]) -> None:
    plan = guess(["time", *columns], {}, "file")
    assert [(p.pmu, p.quantity) for p in plan.placements] == expected
    assert plan.guessed


def test_phase_and_phasor_are_paired() -> None:
    plan = guess(["time", "VA_mag", "VA_ang", "IB_ang", "IB_mag", "V1LPM_mag"], {}, "file")
    assert [(p.channel, p.phase) for p in plan.placements] == [
        ("VA", Phase.A),
        ("VA", Phase.A),
        ("IB", Phase.B),
        ("IB", Phase.B),
        ("V1", Phase.POSITIVE),
    ]


@pytest.mark.parametrize(
    ("columns", "named"),
    [(["V_1", "Breaker 7"], "'Breaker 7'"), (["VA"], "'VA'"), (["A_101", "F_101"], "'A_101'"), (["V_1", ""], "''")],
)
def test_what_cannot_be_placed_is_refused_by_name(columns: list[str], named: str) -> None:
    with pytest.raises(ArchiveError, match=r"cannot tell what this column is.*--channels") as refused:
        guess(["time", *columns], {}, "file")
    assert named in str(refused.value)


def test_values_units_and_empty_cells(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "Timestamp,VA_mag,VA_ang,freq,P_1\n,kV,rad,Hz,MW\n"
        + "".join(f"2026-01-31T12:00:{i / 10:06.3f}Z,400.5,1.5,{'' if i == 2 else 50.01},12\n" for i in range(10)),
    )
    archive = open_archive(path)
    assert archive.description.rate_hz == 10
    (batch,) = read(path)
    assert batch.table == archive.description.table
    first, second = batch.table.pmus
    assert (first.name, first.nominal_hz, second.name) == ("history", 50, "1")
    assert [c.unit for c in first.channels] == ["V", "deg", "Hz"]
    assert batch.values[0, 0].tolist() == pytest.approx([400_500, np.degrees(1.5), 50.01])
    assert np.isnan(batch.values[2, 0, 2])
    assert np.isfinite(batch.values[[0, 1, 3], 0, 2]).all()
    assert batch.values[0, 1, 0] == 12e6
    assert np.isnan(batch.values[0, 1, 1])  # padding
    assert batch.time_ns[0] == np.datetime64("2026-01-31T12:00:00", "ns").astype(np.int64)


def test_per_unit_is_seen_and_said(tmp_path: Path) -> None:
    archive = open_archive(write(tmp_path, "time,V_7,F_7\n" + rows_of(20)))
    assert [c.unit for c in archive.description.table.pmus[0].channels] == ["pu", "Hz"]
    assert "1 voltage magnitudes of about 1 are taken as per unit" in archive.notes


def test_a_map_is_the_authority(tmp_path: Path) -> None:
    path = write(tmp_path, "t,x,y,z\n" + "".join(f"{i / 30:.6f},{i},2,3\n" for i in range(30)))
    channels = tmp_path / "map.csv"
    channels.write_text(
        "column,pmu,quantity,phase,unit,nominal\nx,North,voltage_magnitude,1,kV,345\nz,South,digital,,,\n"
    )
    (batch,) = read(path, channels)
    north, south = batch.table.pmus
    (channel,) = north.channels
    assert (north.name, channel.quantity, channel.phase, channel.nominal) == (
        "North",
        Q.VOLTAGE_MAGNITUDE,
        Phase.POSITIVE,
        345_000,
    )
    assert south.channels[0].quantity is Q.DIGITAL
    assert batch.values[3, 0, 0] == 3000
    assert open_archive(path, channels).plan.ignored == ("y",)
    assert batch.time_ns[:2].tolist() == [0, 33_333_000]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("column,pmu\nx,N\n", "the map lacks quantity"),
        ("column,pmu,quantity\nw,N,rocof\n", "line 2: the data has no column 'w'"),
        ("column,pmu,quantity\nx,N,volts\n", "'volts' is no quantity; known are voltage_magnitude"),
        ("column,pmu,quantity,phase\nx,N,rocof,R\n", "'R' is no phase"),
        ("column,pmu,quantity,phase,unit\nx,N,rocof,,kV\n", "'kV' is no unit of rocof"),
        ("column,pmu,quantity,phase,unit,nominal\nx,N,rocof,,,high\n", "'high' is no number"),
        ("column,pmu,quantity\nx,N,rocof\nx,N,rocof\n", "names the column 'x' 2 times"),
        ("column,pmu,quantity\n", "has no rows"),
    ],
)
def test_a_faulty_map_is_told_by_line(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, "time,x\n" + rows_of(5, "1"))
    channels = tmp_path / "map.csv"
    channels.write_text(text)
    with pytest.raises(ArchiveError, match=r"map\.csv") as refused:
        open_archive(path, channels)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("stamps", "expected_ns"),
    [
        (["1700000000.25", "1700000000.5"], [250_000_000, 500_000_000]),
        (["1700000000250", "1700000000500"], [250_000_000, 500_000_000]),
        (["1700000000250000", "1700000000500000"], [250_000_000, 500_000_000]),
        (["1700000000250000001", "1700000000500000001"], [250_000_001, 500_000_001]),
        (["2023-11-14T22:13:20.25", "2023-11-14T22:13:20.50"], [250_000_000, 500_000_000]),
        (["2023-11-14 22:13:20.250Z", "2023-11-14 22:13:20.500Z"], [250_000_000, 500_000_000]),
        (["2023-11-14T23:13:20.25+01:00", "2023-11-14T23:13:20.5+01:00"], [250_000_000, 500_000_000]),
        (["2023/11/14 22:13:20.25 UTC", "2023/11/14 22:13:20.50 UTC"], [250_000_000, 500_000_000]),
    ],
)
def test_time_in_many_spellings(tmp_path: Path, stamps: list[str], expected_ns: list[int]) -> None:
    path = write(tmp_path, "utc,V_1\n" + "".join(f"{s},1\n" for s in stamps))
    (batch,) = read(path)
    assert (batch.time_ns - START_NS).tolist() == expected_ns
    assert batch.rate_hz == 4


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("0,1\n1,x\n", "line 3, column 'V_1': 'x' is not a number"),
        ("0,1\n1\n", "line 3: Expected 2 columns, got 1"),
        ("0,1\n1,1\n1,2\n", "line 4: the time 1970-01-01T00:00:01.000000000Z stands twice"),
        ("0,1\n2,1\n1,2\n", "line 4: the time 1970-01-01T00:00:01.000000000Z is before"),
        ("0,1\nsoon,1\n", "line 3, column 'time': 'soon' is no time; write ISO 8601"),
        ("0,1\n,1\n", "line 3, column 'time': no time"),
        ("", "there are no rows of values"),
        ("0,1\n", "one row tells no reporting rate"),
        ("0,1\n0.001,1\n0.002,1\n", "rates from 1 a minute to 120 a second can be read"),
    ],
)
def test_faults_are_told_by_line_and_column(tmp_path: Path, body: str, message: str) -> None:
    path = write(tmp_path, "time,V_1\n" + body)
    with pytest.raises(ArchiveError, match=r"history\.csv") as refused:
        read(path)
    assert message in str(refused.value)


def test_faults_far_down_the_file_are_told_too(tmp_path: Path) -> None:
    path = write(tmp_path, "time,V_1\nUTC,V\n" + rows_of(3000, "1") + "1700001000,oops\n")
    with pytest.raises(ArchiveError, match="line 3003, column 'V_1': 'oops' is not a number"):
        read(path)
    path = write(tmp_path, "time,V_1\nUTC,V\n" + rows_of(3000, "1") + "1700000000,1\n")
    with pytest.raises(ArchiveError, match=r"line 3003: the time .* is before"):
        read(path, rows=500)


def test_other_dialects(tmp_path: Path) -> None:
    path = write(tmp_path, "\ufeff# exported\nZeit;x\n")
    with pytest.raises(ArchiveError, match="no time column among 'Zeit', 'x'"):
        open_archive(path)
    path = write(tmp_path, "\ufefftime;V_1;F_1\n0,0;1,02;50,1\n0,5;1,03;50,2\n")
    (batch,) = read(path)
    assert batch.values[:, 0].tolist() == [[1.02, 50.1], [1.03, 50.2]]
    path = write(tmp_path, "time\tV_1\n0\t1\n1\t2\n")
    assert read(path)[0].values[:, 0, 0].tolist() == [1, 2]
    with pytest.raises(ArchiveError, match="2 columns are called 'V_1'"):
        open_archive(write(tmp_path, "time,V_1,V_1\n0,1,1\n1,1,1\n"))
    with pytest.raises(ArchiveError, match="is empty"):
        open_archive(write(tmp_path, ""))


def test_chunks_are_the_whole(tmp_path: Path) -> None:
    path = write(tmp_path, "time,V_1,F_1\n" + "".join(f"{i / 30:.6f},{i},60\n" for i in range(1000)))
    whole = read(path)[0]
    parts = read(path, rows=64)
    assert max(len(b.time_ns) for b in parts) <= 64
    assert np.array_equal(np.concatenate([b.values for b in parts]), whole.values)
    assert np.array_equal(np.concatenate([b.time_ns for b in parts]), whole.time_ns)
    span = measure(open_archive(path))
    assert (span.frames, span.first_ns, span.last_ns) == (1000, 0, 33_300_000_000)


def test_foreign_parquet_is_read_like_csv(tmp_path: Path) -> None:
    time = pa.array(START_NS + np.arange(50) * 20_000_000).cast(pa.timestamp("ns"))
    table = pa.table({"timestamp": time, "Bus1.VM": np.arange(50.0), "Bus1.F": pa.array([None] + [50.0] * 49)})
    pq.write_table(table, tmp_path / "theirs.parquet")
    archive = open_archive(tmp_path / "theirs.parquet")
    assert archive.description.rate_hz == 50
    (batch,) = list(read_archive(archive))
    assert batch.table.pmus[0].nominal_hz == 50
    assert np.isnan(batch.values[0, 0, 1])
    assert batch.time_ns[0] == START_NS


@settings(max_examples=150, deadline=None)
@given(
    rate=st.sampled_from([1 / 30, 0.1, 0.2, 0.5, 1.0, 5, 10, 12, 15, 20, 25, 30, 48, 50, 60, 100, 120]),
    rows=st.integers(150, 600),
    jitter=st.sampled_from([0.0, 0.05, 0.2]),
    missing=st.sampled_from([0.0, 0.02, 0.3]),
    coarse=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_rate_is_found(rate: float, rows: int, jitter: float, missing: float, seed: int, *, coarse: bool) -> None:
    rng = np.random.default_rng(seed)
    slot = np.flatnonzero(rng.random(rows) >= missing)
    time_ns = START_NS + ((slot + rng.uniform(-jitter, jitter, len(slot))) / rate * 1e9).astype(np.int64)
    if coarse:
        time_ns = time_ns // 1_000_000 * 1_000_000
    assert detect_rate(time_ns) == rate


def test_an_odd_rate_stays_odd() -> None:
    assert detect_rate((np.arange(500) / 29.97 * 1e9).astype(np.int64)) == pytest.approx(29.97, abs=0.001)
