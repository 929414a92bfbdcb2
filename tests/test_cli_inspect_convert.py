"""The command line: what it prints, what it writes, how it ends."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from gridsense.cli import run
from streams.archives import open_archive, read_archive, read_description, write_parquet
from streams.block import FrameBatch
from streams.c37118.configuration import (
    AnalogDefinition,
    ConfigurationFrame,
    DigitalDefinition,
    PhasorDefinition,
    PmuConfiguration,
    encode_configuration,
)
from streams.c37118.samples import compile_layout, encode
from streams.captures import read_capture, read_frames
from streams.channels import UNITS, Channel, ChannelTable, Pmu, Quantity

REAL = Path(__file__).parents[1].parent / "shared" / "data" / "real"
CAPTURES = (
    "c37118_pcaps/C37.118_1PMU_TCP.pcap",
    "c37118_pcaps/C37.118_1PMU_UDP.pcap",
    "c37118_pcaps/C37.118_2PMUsInSync_TCP.pcap",
    "c37118_pcaps/C37.118_4in1PMU_TCP.pcap",
)
START_NS = 1_700_000_000_000_000_000


def real(name: str) -> Path:
    path = REAL / name
    if not path.exists():
        pytest.skip(f"the shared capture {name} is not beside this checkout")
    return path


def data_frames(path: Path) -> dict[int, list[bytes]]:
    """Data frames of a file by ID code, cut by their own size fields (a walk that the product does not share)."""
    flows: dict[str, bytes] = defaultdict(bytes)
    for chunk in read_capture(path):
        flows[chunk.flow] += chunk.data
    frames: dict[int, list[bytes]] = defaultdict(list)
    for octets in (o for o in flows.values() if o[0] == 0xAA):  # the capture holds other connections too
        at = 0
        while at + 4 <= len(octets):
            assert octets[at] == 0xAA
            size = int.from_bytes(octets[at + 2 : at + 4], "big")
            if octets[at + 1] >> 4 == 0:
                frames[int.from_bytes(octets[at + 4 : at + 6], "big")].append(octets[at : at + size])
            at += size
    return frames


def example_stream(*, integer: bool, id_code: int = 7, rate: int = 30, shift_ns: int = 0) -> tuple[bytes, FrameBatch]:
    """A made concentrator stream of two PMUs: configuration and 40 data frames, and what they say."""
    pmus = tuple(
        PmuConfiguration(
            f"Station {id_code}.{k}",
            id_code + k,
            50,
            (PhasorDefinition("VA", scale=10.0), PhasorDefinition("IA", is_current=True, scale=0.01)),
            (AnalogDefinition("oil 1"),),
            (DigitalDefinition(tuple(f"b{i}" for i in range(16))),),
            polar=k == 0,
            float_phasors=not integer,
            float_analogs=not integer,
            float_frequency=not integer,
        )
        for k in range(2)
    )
    configuration = ConfigurationFrame(id_code, pmus, rate)
    layout = compile_layout(configuration, "made")
    rng = np.random.default_rng(id_code)
    values = np.zeros((40, 2, layout.table.width))
    for s, pmu in enumerate(layout.table.pmus):
        for c, channel in enumerate(pmu.channels):
            low, high = {
                Quantity.VOLTAGE_MAGNITUDE: (1e5, 2e5),
                Quantity.CURRENT_MAGNITUDE: (10, 90),
                Quantity.FREQUENCY: (49.9, 50.1),
                Quantity.DIGITAL: (0, 65535),
            }.get(channel.quantity, (-100, 100))
            values[:, s, c] = rng.uniform(low, high, 40)
            if channel.quantity in (Quantity.DIGITAL, Quantity.ANALOG):
                values[:, s, c] = np.round(values[:, s, c])
    step_ns = 1e9 / rate if rate > 0 else -rate * 1e9
    time_ns = START_NS + shift_ns + np.round(np.arange(40) * step_ns).astype(np.int64)
    batch = FrameBatch(
        layout.table,
        configuration.rate_hz,
        time_ns,
        rng.integers(0, 128, 40, dtype=np.uint8),
        rng.integers(0, 1024, (40, 2), dtype=np.uint16),
        values,
        time_ns,
    )
    return b"".join(encode_configuration(configuration)) + encode(layout, batch), batch


@pytest.mark.parametrize("name", CAPTURES)
def test_a_real_capture_comes_back_byte_for_byte(name: str, tmp_path: Path) -> None:
    source, archive, again = real(name), tmp_path / "a.parquet", tmp_path / "a.c37118"
    assert run(["convert", str(source), str(archive)]) == 0
    assert run(["convert", str(archive), str(again)]) == 0
    want = data_frames(source)
    assert sum(map(len, want.values())) > 250
    assert data_frames(again) == want


@pytest.mark.parametrize("integer", [True, False])
@pytest.mark.parametrize("rate", [30, 120, -2])
def test_a_made_stream_comes_back_byte_for_byte(tmp_path: Path, rate: int, *, integer: bool) -> None:
    octets, _ = example_stream(integer=integer, rate=rate)
    source = tmp_path / "a.bin"
    source.write_bytes(octets)
    assert run(["convert", str(source), str(tmp_path / "a.parquet")]) == 0
    assert run(["convert", str(tmp_path / "a.parquet"), str(tmp_path / "b.bin")]) == 0
    assert data_frames(tmp_path / "b.bin") == data_frames(source)


def test_every_value_stands_in_the_parquet_as_it_was_sent(tmp_path: Path) -> None:
    source = real(CAPTURES[3])
    assert run(["convert", str(source), str(tmp_path / "a.parquet")]) == 0
    table = pq.read_table(tmp_path / "a.parquet").to_pandas()
    batches = [i for _, i in read_frames(source, np.float64) if isinstance(i, FrameBatch)]
    values = np.concatenate([b.values for b in batches])
    assert np.array_equal(table["time"].astype("int64"), np.concatenate([b.time_ns for b in batches]))
    checked = 0
    for s, pmu in enumerate(batches[0].table.pmus):
        assert np.array_equal(table[f"{pmu.name}.stat"], np.concatenate([b.stat for b in batches])[:, s])
        for c, channel in enumerate(pmu.channels):
            column = f"{pmu.name}.{channel.name}.{channel.quantity}"
            if column in table:
                assert np.array_equal(table[column], values[:, s, c], equal_nan=True)
                checked += 1
    assert checked > 60


def test_ieee_1344_becomes_c37118(tmp_path: Path) -> None:
    source = real("shelby/Sample1344.PmuCapture")
    assert run(["convert", str(source), str(tmp_path / "a.parquet")]) == 0
    assert run(["convert", str(tmp_path / "a.parquet"), str(tmp_path / "a.c37118")]) == 0
    want = [i for _, i in read_frames(source, np.float64) if isinstance(i, FrameBatch)]
    got = [i for _, i in read_frames(tmp_path / "a.c37118", np.float64) if isinstance(i, FrameBatch)]
    assert sum(len(b.time_ns) for b in got) == 973
    for name in ("time_ns", "stat", "values"):
        ours = np.concatenate([getattr(b, name) for b in got])
        theirs = np.concatenate([getattr(b, name) for b in want])
        assert np.allclose(ours, theirs, rtol=1e-12, atol=0, equal_nan=True), name


def test_two_connections_stand_side_by_side(tmp_path: Path) -> None:
    source = real(CAPTURES[2])
    assert run(["convert", str(source), str(tmp_path / "a.parquet")]) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["a.parquet"]
    file = pq.read_table(tmp_path / "a.parquet")
    assert file.num_rows == 1501
    assert len(read_description(tmp_path / "a.parquet").configurations) == 2
    # both stamp the same instants, one to 1/16777215 s: rows meet on the grid, stamps stay as sent
    whole = file["time"].cast("int64").to_numpy()
    assert (whole % 20_000_000 == 0).all()
    assert (np.diff(whole) == 20_000_000).all()
    sources = [n for n in file.column_names if n.endswith(".time")]
    assert len(sources) == 2
    batches = [i for _, i in read_frames(source) if isinstance(i, FrameBatch)]
    sent = {b.table.pmus[0].name: [] for b in batches}
    for b in batches:
        sent[b.table.pmus[0].name].append(b.time_ns)
    read = {b.table.pmus[0].name: [] for b in batches}
    for b in read_archive(open_archive(tmp_path / "a.parquet")):
        read[b.table.pmus[0].name].append(b.time_ns)
    for name, stamps in sent.items():
        assert np.array_equal(np.concatenate(read[name]), np.concatenate(stamps))


def test_what_cannot_stand_side_by_side_gets_files_of_its_own(tmp_path: Path) -> None:
    first, _ = example_stream(integer=False)
    second, _ = example_stream(integer=False, id_code=20, rate=60)
    (tmp_path / "both.raw").write_bytes(first + second)
    assert run(["convert", str(tmp_path / "both.raw"), str(tmp_path / "out.parquet")]) == 0
    written = sorted(p.name for p in tmp_path.glob("out*"))
    assert written == ["out-both.raw-2.parquet", "out-both.raw.parquet"]
    assert {read_description(tmp_path / n).rate_hz for n in written} == {30.0, 60.0}


def test_a_source_that_was_silent_has_nulls(tmp_path: Path) -> None:
    def table(source: str) -> ChannelTable:
        frequency = Channel("frequency", Quantity.FREQUENCY, unit="Hz", nominal=50.0)
        return ChannelTable((Pmu(source, 1, source, 50, (frequency,), source),))

    from streams.archives import join_parquet  # noqa: PLC0415  # beside its only use

    time_ns = START_NS + np.arange(100) * 20_000_000
    for source, rows in (("a", np.arange(100)), ("b", np.r_[0:30, 60:90])):
        batch = FrameBatch(
            table(source),
            50.0,
            time_ns[rows],
            np.zeros(len(rows), np.uint8),
            np.full((len(rows), 1), 3, np.uint16),
            rows[:, None, None].astype(np.float64),
            time_ns[rows],
        )
        write_parquet(tmp_path / f"{source}.parquet", batch)
    assert join_parquet([tmp_path / "a.parquet", tmp_path / "b.parquet"], tmp_path / "ab.parquet") == 100
    joined = pq.read_table(tmp_path / "ab.parquet")
    assert joined["b.stat"].null_count == 40
    assert joined["b.frequency.frequency"].null_count == 40
    assert joined["a.stat"].null_count == 0
    got = {b.table.pmus[0].name: b for b in read_archive(open_archive(tmp_path / "ab.parquet"))}
    assert got["b"].values[:, 0, 0].tolist() == [*range(30), *range(60, 90)]
    assert np.array_equal(got["b"].time_ns, time_ns[np.r_[0:30, 60:90]])


def test_an_archive_without_configuration_becomes_c37118(tmp_path: Path) -> None:
    rows = "".join(f"{i / 30:.6f},{100 + i},{-i},50.02,7,{i}\n" for i in range(60))
    (tmp_path / "h.csv").write_text("time,VA_mag,VA_ang,freq,P,Digital 1\n" + rows)
    assert run(["convert", str(tmp_path / "h.csv"), str(tmp_path / "h.c37118")]) == 0
    batches = [i for _, i in read_frames(tmp_path / "h.c37118") if isinstance(i, FrameBatch)]
    values = np.concatenate([b.values for b in batches])
    (pmu,) = batches[0].table.pmus
    assert (pmu.name, pmu.nominal_hz, batches[0].rate_hz) == ("h", 50, 30)
    assert [c.quantity for c in pmu.channels] == [
        Quantity.VOLTAGE_MAGNITUDE,
        Quantity.VOLTAGE_ANGLE,
        Quantity.FREQUENCY,
        Quantity.ROCOF,
        Quantity.ANALOG,
        Quantity.DIGITAL,
    ]
    assert values[10, 0] == pytest.approx([110, -10, 50.02, np.nan, 7, 10], nan_ok=True, abs=1e-4)


def test_inspect_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(real("shelby/Sample1344.PmuCapture")), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["frames_decoded"] == found["frames_by_type"]["data"] == 973
    assert (found["crc_errors"], found["bytes_skipped"], found["rate_hz"]) == (0, 0, 30)
    assert found["frames_total"] == sum(found["frames_by_type"].values())
    assert found["pmus"] == [
        {"id_code": 2, "station": "Shelby", "phasors": 5, "analogs": 0, "digitals": 1, "nominal_hz": 60}
    ]
    assert found["first_time"].startswith("2007-04-26T19:15:12.")
    assert found["last_time"].endswith("Z")


def test_inspect_says_the_same_of_a_stream_and_its_archive(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    octets, batch = example_stream(integer=False)
    (tmp_path / "a.bin").write_bytes(octets)
    assert run(["convert", str(tmp_path / "a.bin"), str(tmp_path / "a.parquet")]) == 0
    capsys.readouterr()
    reports = []
    for name in ("a.bin", "a.parquet"):
        assert run(["inspect", str(tmp_path / name), "--json"]) == 0
        reports.append(json.loads(capsys.readouterr().out))
    for key in ("frames_decoded", "crc_errors", "bytes_skipped", "rate_hz", "first_time", "last_time", "pmus"):
        assert reports[0][key] == reports[1][key], key
    assert reports[0]["frames_decoded"] == len(batch.time_ns)


def test_inspect_for_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    octets, _ = example_stream(integer=True)
    (tmp_path / "a.bin").write_bytes(octets[:-3] + b"\0\0\0")
    assert run(["inspect", str(tmp_path / "a.bin")]) == 0
    shown = capsys.readouterr().out
    for part in ("Station 7.0", "Station 7.1", "39 data frames", "30 frames a second", "2 PMUs"):
        assert part in shown
    (tmp_path / "h.csv").write_text("time,V_1,F_1\n0,1,60\n0.1,1,60\n")
    assert run(["inspect", str(tmp_path / "h.csv")]) == 0
    shown = capsys.readouterr().out
    for part in ("columns are taken as", "voltage magnitude", "per unit", "10 frames a second"):
        assert part in shown


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["inspect"], 2, "FILE"),
        (["explode"], 2, "explode"),
        (["inspect", "{absent}"], 3, "absent.pcap: cannot be read: No such file"),
        (["inspect", "{folder}"], 3, "no archive is in this folder"),
        (["inspect", "{noise}"], 3, "noise.bin"),
        (["inspect", "{empty}"], 3, "empty"),
        (["convert", "{table}", "{folder}/x.txt"], 2, "write .parquet for an archive, .cfg or .cff"),
        (["convert", "{table}", "{table}"], 2, "write .parquet"),
        (["convert", "{table}", "{folder}/no/x.parquet"], 2, "no such folder"),
        (["convert", "{unplaced}", "{folder}/x.parquet"], 3, "'Breaker 7'"),
        (["convert", "{capture}", "{folder}/x.c37118"], 2, "is a capture; convert it to .parquet"),
        (["convert", "{capture}", "{folder}/x.parquet", "--channels", "{table}"], 2, "--channels is for tables"),
        (["convert", "{table}", "{folder}/x.parquet", "--channels", "{absent}"], 3, "channel map cannot be read"),
    ],
)
def test_errors_are_one_line_and_an_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, message: str
) -> None:
    (tmp_path / "noise.bin").write_bytes(np.random.default_rng(1).bytes(5000))
    (tmp_path / "empty.csv").write_bytes(b"")
    (tmp_path / "table.csv").write_text("time,V_1\n0,1\n1,1\n")
    (tmp_path / "unplaced.csv").write_text("time,Breaker 7\n0,1\n1,1\n")
    (tmp_path / "capture.bin").write_bytes(example_stream(integer=False)[0])
    places = {
        "absent": tmp_path / "absent.pcap",
        "folder": tmp_path,
        "noise": tmp_path / "noise.bin",
        "empty": tmp_path / "empty.csv",
        "table": tmp_path / "table.csv",
        "unplaced": tmp_path / "unplaced.csv",
        "capture": tmp_path / "capture.bin",
    }
    assert run([w.format(**places) for w in words]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert captured.err.count("\n") == 1
    assert not list(tmp_path.glob("*.part"))


def test_debug_shows_where_it_came_from(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="cannot be read"):
        run(["inspect", str(tmp_path / "absent"), "--debug"])


def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(example_stream(integer=False)[0])
    program = f"{sys.executable} -c 'from gridsense.cli import main; main()' inspect {tmp_path}/a.bin --json"
    root = Path(__file__).parents[1]
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{program} | true"], cwd=root, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    top = capsys.readouterr().out
    assert "inspect" in top
    assert "Exit codes" in top
    assert run(["convert", "--help"]) == 0
    shown = capsys.readouterr().out
    for part in ("gridsense convert capture.pcap capture.parquet", "column,pmu,quantity,phase,unit,nominal", "UTC"):
        assert part in shown


def test_a_configuration_that_changes_gets_a_file_each(tmp_path: Path) -> None:
    first, _ = example_stream(integer=False)
    _, batch = example_stream(integer=False, shift_ns=2_000_000_000)
    pmu = PmuConfiguration("Station 7.0", 7, 50, (PhasorDefinition("VB"),))
    configuration = ConfigurationFrame(7, (pmu,), 30)
    layout = compile_layout(configuration, "made")
    changed = replace(batch, table=layout.table, stat=batch.stat[:, :1], values=np.ones((40, 1, layout.table.width)))
    second = b"".join(encode_configuration(configuration)) + encode(layout, changed)
    (tmp_path / "a.raw").write_bytes(first + second)
    assert run(["convert", str(tmp_path / "a.raw"), str(tmp_path / "out.parquet")]) == 0
    tables = [read_description(p).table for p in sorted(tmp_path.glob("out-*.parquet"))]
    assert sorted(len(t.pmus) for t in tables) == [1, 2]


def test_long_names_and_missing_angles_need_no_configuration(tmp_path: Path) -> None:
    channel = Channel("a phasor with a long name", Quantity.VOLTAGE_MAGNITUDE, unit=UNITS[Quantity.VOLTAGE_MAGNITUDE])
    table = ChannelTable((Pmu("a station with a long name", 0, "", 60, (channel,), "x"),))
    time_ns = START_NS + np.arange(10) * 100_000_000
    batch = FrameBatch(
        table,
        10.0,
        time_ns,
        np.zeros(10, np.uint8),
        np.zeros((10, 1), np.uint16),
        np.arange(10.0)[:, None, None],
        time_ns,
    )
    write_parquet(tmp_path / "a.parquet", batch)
    assert run(["convert", str(tmp_path / "a.parquet"), str(tmp_path / "a.c37118")]) == 0
    (got,) = [i for _, i in read_frames(tmp_path / "a.c37118") if isinstance(i, FrameBatch)]
    assert got.table.pmus[0].name == "a station with a long name"
    assert got.values[:, 0, 0].tolist() == list(range(10))
    assert np.isnan(got.values[:, 0, 1]).all()
