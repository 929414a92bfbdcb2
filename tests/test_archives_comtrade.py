"""COMTRADE records: every form read, values and times checked by hand and by the `comtrade` package, round trips."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path

import comtrade
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gridsense.cli import run
from streams.archives import (
    is_archive,
    join_parquet,
    measure,
    open_archive,
    read_archive,
    take,
    write_parquet,
    write_record,
)
from streams.archives.metadata import Description
from streams.block import FrameBatch
from streams.channels import UNITS, Channel, ChannelTable, Phase, Pmu, Quantity
from streams.errors import ArchiveError
from tests.reference.small_grid import small_grid

Q = Quantity
NOON_NS = int(np.datetime64("2026-03-01T12:00:00", "ns").astype(np.int64))
FORMS = {"BINARY": ("h", -(2**15)), "BINARY32": ("i", -(2**31)), "FLOAT32": ("f", float(np.finfo("f4").min))}
ANALOGS = (
    "1,VA_mag,A,bus,kV,0.5,100,0,-32767,32767,1,1,P",
    "2,VA_ang,A,bus,rad,0.001,0,0,-32767,32767,1,1,P",
    "3,freq,,,Hz,0.001,60,0,-32767,32767,1,1,P",
)
STORED = ((600, 500, 1), (602, None, 2), (604, -500, None), (606, -1000, 4))
"""Stored numbers by row; None is missing."""
EXPECTED = np.array(
    [
        [400_000, np.degrees(0.5), 60.001],
        [401_000, np.nan, 60.002],
        [402_000, np.degrees(-0.5), np.nan],
        [403_000, np.degrees(-1), 60.004],
    ]
)
STATUSES = (*(f"{n},relay {n},,,0" for n in range(1, 18)), "18,breaker,,,1")


def configuration(
    form: str,
    *,
    revision: str = "1999",
    analogs: Sequence[str] = ANALOGS,
    statuses: Sequence[str] = (),
    rates: Sequence[str] = ("1", "25,4"),
    start: str = "01/03/2026,12:00:00.000000",
    tail: Sequence[str] = ("1",),
) -> str:
    first = "Station 1,device" + (f",{revision}" if revision != "1991" else "")
    counts = f"{len(analogs) + len(statuses)},{len(analogs)}A,{len(statuses)}D"
    lines = [first, counts, *analogs, *statuses, "60", *rates, start, start, form, *tail]
    return "".join(f"{line}\r\n" for line in lines)


def values(
    form: str,
    rows: Sequence[Sequence[float | None]] = STORED,
    *,
    stamps: Sequence[int] | None = None,
    numbers: Sequence[int] | None = None,
    bits: Sequence[Sequence[int]] = (),
    missing: str = "99999",
) -> bytes:
    stamps = stamps or [40_000 * i for i in range(len(rows))]
    numbers = numbers or range(1, len(rows) + 1)
    out = b""
    for i, (number, stamp, row) in enumerate(zip(numbers, stamps, rows, strict=True)):
        states = bits[i] if bits else ()
        if form == "ASCII":
            cells = [str(number), str(stamp), *(missing if v is None else str(v) for v in row), *map(str, states)]
            out += ",".join(cells).encode() + b"\r\n"
            continue
        code, absent = FORMS[form]
        words = [sum(bit << k for k, bit in enumerate(states[w : w + 16])) for w in range(0, len(states), 16)]
        stored = [absent if v is None else v for v in row]
        out += struct.pack(f"<II{len(row)}{code}{len(words)}H", number, stamp, *stored, *words)
    return out


def write(tmp_path: Path, cfg: str | bytes, dat: bytes, name: str = "history") -> Path:
    path = tmp_path / f"{name}.cfg"
    path.write_bytes(cfg if isinstance(cfg, bytes) else cfg.encode())
    path.with_suffix(".dat").write_bytes(dat)
    return path


def read(path: Path, channels: Path | None = None, rows: int = 65_536) -> FrameBatch:
    batches = list(read_archive(open_archive(path, channels), rows=rows, dtype=np.float64))
    return FrameBatch(
        batches[0].table,
        batches[0].rate_hz,
        *(
            np.concatenate([getattr(b, name) for b in batches])
            for name in ("time_ns", "time_flags", "stat", "values", "arrival_ns")
        ),
    )


def third_party(path: Path) -> comtrade.Comtrade:
    return comtrade.load(str(path), ignore_warnings=True, use_numpy_arrays=True, use_double_precision=True)


@pytest.mark.parametrize("form", ["ASCII", "BINARY", "BINARY32", "FLOAT32"])
@pytest.mark.parametrize("combined", [False, True])
def test_one_table_in_every_form(tmp_path: Path, form: str, *, combined: bool) -> None:
    states = [[i % 2] * 17 + [1 - i % 2] for i in range(4)]
    cfg, dat = configuration(form, statuses=STATUSES), values(form, bits=states)
    path = write(tmp_path, cfg, dat)
    if combined:
        size = f": {len(dat)}" if form != "ASCII" else ""
        head = (
            f"--- file type: CFG ---\r\n{cfg}--- file type: HDR ---\r\nwords\r\n--- file type: DAT {form}{size} ---\r\n"
        )
        path = tmp_path / "whole.cff"
        path.write_bytes(head.encode() + dat)
    assert is_archive(path)
    batch = read(path)
    (pmu,) = batch.table.pmus
    assert (pmu.name, pmu.nominal_hz, batch.rate_hz) == ("Station 1", 60, 25)
    assert [(c.quantity, c.phase, c.unit) for c in pmu.channels[:3]] == [
        (Q.VOLTAGE_MAGNITUDE, Phase.A, "V"),
        (Q.VOLTAGE_ANGLE, Phase.A, "deg"),
        (Q.FREQUENCY, Phase.UNKNOWN, "Hz"),
    ]
    assert pmu.channels[0].name == pmu.channels[1].name
    assert [c.name for c in pmu.channels[3:]] == [f"relay {n}" for n in range(1, 18)] + ["breaker"]
    np.testing.assert_allclose(batch.values[:, 0, :3], EXPECTED, rtol=1e-12)
    assert batch.values[:, 0, 3:].tolist() == states
    assert (batch.time_ns - NOON_NS).tolist() == [0, 40_000_000, 80_000_000, 120_000_000]
    theirs = third_party(path)
    scale = [1000, 180 / np.pi, 1]
    read_by_them = np.array(theirs.analog).T
    if form == "FLOAT32":  # the package knows no missing value there
        read_by_them[np.isnan(EXPECTED)] = np.nan
    np.testing.assert_allclose(read_by_them * scale, EXPECTED, rtol=1e-12)
    assert np.array(theirs.status).T.tolist() == states
    assert open_archive(path).form == "comtrade"


def test_the_revision_of_1991(tmp_path: Path) -> None:
    cfg = configuration(
        "ASCII",
        revision="1991",
        analogs=[a.rsplit(",", 3)[0] for a in ANALOGS],
        statuses=["1,breaker,0"],
        start="03/01/26,12:00:00.000000",
        tail=(),
    )
    dat = values("ASCII", bits=[[0], [1], [1], [0]], missing="")
    batch = read(write(tmp_path, cfg, dat + b"\x1a"))
    np.testing.assert_allclose(batch.values[:, 0, :3], EXPECTED, rtol=1e-12)
    assert batch.values[:, 0, 3].tolist() == [0, 1, 1, 0]
    assert batch.time_ns[0] == NOON_NS


@pytest.mark.parametrize(
    ("revision", "tail", "hours"),
    [
        ("1999", ("1",), 0),
        ("2013", ("1", "0,0", "0,0"), 0),
        ("2013", ("1", "-5,-5", "0,0"), 5),
        ("2013", ("1", "+5h30,0", "0,0"), -5.5),
        ("2013", ("1", "0,-8", "0,0"), 0),
        ("2013", ("1", "x,-8", "0,0"), 0),
    ],
)
def test_times_become_utc(tmp_path: Path, revision: str, tail: Sequence[str], hours: float) -> None:
    archive = open_archive(write(tmp_path, configuration("ASCII", revision=revision, tail=tail), values("ASCII")))
    assert measure(archive).first_ns == NOON_NS + hours * 3600 * 10**9
    said = any("states no time zone; its times are taken as UTC" in note for note in archive.notes)
    assert said == (revision == "1999" or tail[1].startswith("x"))


@pytest.mark.parametrize(
    ("start", "timemult", "stamps", "expected_ns"),
    [
        ("01/03/2026,12:00:00.000000", "1", [0, 40_000, 80_001, 120_000], [0, 40_000_000, 80_001_000, 120_000_000]),
        ("01/03/2026,12:00:00.000000", "40", [0, 1000, 2000, 3000], [0, 40_000_000, 80_000_000, 120_000_000]),
        ("01/03/2026,12:00:00.000000007", "1", [0, 40_000_001, 80_000_000, 120_000_000], [7, 40_000_008, 80_000_007, 120_000_007]),  # noqa: E501 - one case, one line
    ],
)  # fmt: skip
def test_stamps_tell_the_time_where_no_rate_does(
    tmp_path: Path, start: str, timemult: str, stamps: list[int], expected_ns: list[int]
) -> None:
    cfg = configuration("FLOAT32", revision="2013", rates=("0", "0,4"), start=start, tail=(timemult, "0,0", "0,0"))
    path = write(tmp_path, cfg, values("FLOAT32", stamps=stamps))
    batch = read(path)
    assert (batch.time_ns - NOON_NS).tolist() == expected_ns
    assert batch.rate_hz == 25
    assert third_party(path).time.tolist() == pytest.approx([s / 1e9 - expected_ns[0] / 1e9 for s in expected_ns])


def test_a_rounded_start_is_a_reporting_time(tmp_path: Path) -> None:
    cfg = configuration("BINARY", rates=("1", "30,4"), start="01/03/2026,12:00:00.033333")
    batch = read(write(tmp_path, cfg, values("BINARY")))
    assert (batch.time_ns - NOON_NS).tolist() == [33_333_333, 66_666_667, 100_000_000, 133_333_333]
    cfg = configuration("BINARY", rates=("1", "30,4"), start="01/03/2026,12:00:00.020000")
    batch = read(write(tmp_path, cfg, values("BINARY")))
    assert (batch.time_ns - NOON_NS).tolist() == [20_000_000, 53_333_333, 86_666_667, 120_000_000]


def test_old_binary_rows_are_missing_by_all_ones_and_rows_may_count_from_0(tmp_path: Path) -> None:
    analogs = [ANALOGS[2].rsplit(",", 3)[0]]
    cfg = configuration("BINARY", revision="1991", analogs=analogs, start="03/01/2026,12:00:00.000000", tail=())
    batch = read(write(tmp_path, cfg, values("BINARY", [(1,), (-1,), (-(2**15),), (4,)], numbers=[0, 1, 2, 3])))
    np.testing.assert_allclose(batch.values[:, 0, 0], [60.001, np.nan, 27.232, 60.004])
    assert (batch.time_ns - NOON_NS).tolist() == [0, 40_000_000, 80_000_000, 120_000_000]


def test_missing_rows_are_gaps_and_chunks_are_the_whole(tmp_path: Path) -> None:
    path = write(tmp_path, configuration("BINARY"), values("BINARY", numbers=[1, 2, 7, 9]))
    batch = read(path)
    assert (batch.time_ns - NOON_NS).tolist() == [0, 40_000_000, 240_000_000, 320_000_000]
    parts = read(path, rows=3)
    assert np.array_equal(parts.time_ns, batch.time_ns)
    assert np.array_equal(parts.values, batch.values, equal_nan=True)


@pytest.mark.parametrize(("flag", "factor"), [("P", 1), ("S", 2000)])
def test_secondary_values_become_primary_ones(tmp_path: Path, flag: str, factor: float) -> None:
    analogs = [
        f"1,VA_mag,A,,V,0.1,0,0,-32767,32767,230000,115,{flag}",
        f"2,VA_ang,A,,deg,1,0,0,-32767,32767,230000,115,{flag}",
    ]
    path = write(tmp_path, configuration("BINARY", analogs=analogs), values("BINARY", [(i + 664, i) for i in range(4)]))
    batch = read(path)
    assert batch.values[:, 0, 0] == pytest.approx([(66.4 + i / 10) * factor for i in range(4)])
    assert batch.values[:, 0, 1].tolist() == [0, 1, 2, 3]
    assert [p.scale for p in open_archive(path).plan.placements] == [factor, 1]


def test_annex_h_tells_what_is_what(tmp_path: Path) -> None:
    analogs = [
        "1,North:BUS1,Pm,,kV,1,0,0,-32767,32767,1,1,P",
        "2,North:BUS1,Pa,,rads,0.001,0,0,-32767,32767,1,1,P",
        "3,North:L7,Am,,A,1,0,0,-32767,32767,1,1,P",
        "4,North:L7,Aa,,rads,0.001,0,0,-32767,32767,1,1,P",
        "5,North:Freq,F,,Hz,0.001,50,0,-32767,32767,1,1,P",
        "6,North:DFDT,dF,,Hz/s,0.01,0,0,-32767,32767,1,1,P",
    ]
    names = ["TRG1", "TRG2", "TRG3", "TRG4", "UNLK1", "UNLK2", "SEC1", "SEC2"]
    names += ["SEC3", "SEC4", "CFGCH", "PMUTR", "SORT", "SYNC", "PMUERR", "DTVLD"]
    statuses = [f"{i},TQ{i},T{i},,0" for i in range(1, 17)]
    statuses += [f"{i + 17},North:{n},S{i:X},,0" for i, n in enumerate(names)]
    statuses += [f"{i + 33},North:gates,B{i:X},,0" for i in range(16)]
    stat, gates = 0xA015, 0x8003
    bits = [[0] * 16 + [w >> k & 1 for w in (stat, gates) for k in range(16)]] * 4
    path = write(
        tmp_path,
        configuration("BINARY", analogs=analogs, statuses=statuses),
        values("BINARY", [(400, 500, 30, -500, 10, -3)] * 4, bits=bits),
    )
    batch = read(path)
    (pmu,) = batch.table.pmus
    assert pmu.name == "North"
    assert [(c.name, c.quantity, c.phase) for c in pmu.channels] == [
        ("BUS1", Q.VOLTAGE_MAGNITUDE, Phase.POSITIVE),
        ("BUS1", Q.VOLTAGE_ANGLE, Phase.POSITIVE),
        ("L7", Q.CURRENT_MAGNITUDE, Phase.A),
        ("L7", Q.CURRENT_ANGLE, Phase.A),
        ("Freq", Q.FREQUENCY, Phase.UNKNOWN),
        ("DFDT", Q.ROCOF, Phase.UNKNOWN),
        ("gates", Q.DIGITAL, Phase.UNKNOWN),
    ]
    expected = [400_000, np.degrees(0.5), 30, np.degrees(-0.5), 50.01, -0.03, gates]
    assert batch.values[2, 0].tolist() == pytest.approx(expected)
    assert batch.stat.tolist() == [[stat]] * 4
    assert "the time quality bits T1 to T16 are not read" in open_archive(path).notes


def test_a_map_is_the_authority_and_the_record_knows_its_units(tmp_path: Path) -> None:
    analogs = ["1,x,,,kV,1,0,0,-32767,32767,1,1,P", "2,y,,,,1,0,0,-32767,32767,1,1,P"]
    path = write(tmp_path, configuration("BINARY", analogs=analogs), values("BINARY", [(i, 7) for i in range(4)]))
    with pytest.raises(ArchiveError, match=r"cannot tell what these columns are: 'x', 'y'.*--channels"):
        open_archive(path)
    channels = tmp_path / "map.csv"
    channels.write_text("column,pmu,quantity,phase\nx,North,voltage_magnitude,1\n")
    batch = read(path, channels)
    assert batch.table.pmus[0].name == "North"
    assert batch.values[:, 0, 0].tolist() == [0, 1000, 2000, 3000]
    assert open_archive(path, channels).plan.ignored == ("y",)


def test_samples_of_the_wave_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, configuration("BINARY", rates=("1", "4800,4")), values("BINARY"))
    said = "sampled at 4,800 Hz: this is point-on-wave, not synchrophasors"
    with pytest.raises(ArchiveError, match=said):
        open_archive(path)
    cfg = configuration("BINARY", rates=("0", "0,4"))
    path = write(tmp_path, cfg, values("BINARY", stamps=[0, 625, 1250, 1875]))
    with pytest.raises(ArchiveError, match="sampled at 1,600 Hz: this is point-on-wave"):
        open_archive(path)


GOOD, ROWS = configuration("BINARY"), values("BINARY")


@pytest.mark.parametrize(
    ("cfg", "dat", "message"),
    [
        (GOOD, None, "history.cfg: its values are missing; history.dat must stand beside it"),
        (GOOD, ROWS[:-5], "4 rows of 14 bytes make 56 bytes; it holds 51 (3 rows and 9 bytes): cut off"),
        (GOOD, ROWS + ROWS, "4 rows of 14 bytes make 56 bytes; it holds 112"),
        ("", ROWS, "history.cfg, line 2: a COMTRADE configuration counts its channels here"),
        (GOOD.replace("3,3A,0D", "4,3A,0D"), ROWS, "line 2: 3 analog and 0 status channels are not 4 in all"),
        (GOOD.replace("3,3A,0D", "900,900A,0D"), ROWS, "ends after line 12; 900 channels and the sampling follow"),
        (GOOD.replace("freq,", "freq, net,"), ROWS, "line 5: '3,freq, net,,,Hz,0.001,60,0,-32767,32767,1,1,P' has 14"),
        (GOOD.replace("kV,0.5", "kV,half"), ROWS, "line 3: '1,VA_mag,A,bus,kV,half,100,0,-32767,32767,1,1,P' cannot"),
        (GOOD.replace("kV,0.5", "kV,nan"), ROWS, "line 3: channel 'VA_mag' has the factors a=nan"),
        (GOOD.replace("1,1,P", "1,0,S"), ROWS, "line 3: channel 'VA_mag' has the factors a=0.5, b=100 and the ratio"),
        (GOOD.replace("25,4", "25"), ROWS, "line 8: '25' cannot be read there"),
        (GOOD.replace("1\r\n25,4", "2\r\n25,2\r\n50,4"), ROWS, "is sampled at 25, 50 Hz; one rate is needed"),
        (GOOD.replace("25,4", "25,0"), ROWS, "holds no sample"),
        (GOOD.replace("01/03/2026", "31/02/2026"), ROWS, "line 9: '31/02/2026,12:00:00.000000' cannot be read there"),
        (GOOD.replace("01/03/2026,12:00:00.000000\r\n01", ",\r\n01"), ROWS, "line 9: ',' is no start time"),
        (GOOD.replace("BINARY", "BINARY64"), ROWS, "the values are 'BINARY64'; known are ASCII, BINARY"),
        (GOOD.replace("kV", "Ohm"), ROWS, "'Ohm' is no unit of voltage_magnitude"),
        (GOOD.replace("1\r\n25,4", "0\r\n0,4").replace("\r\n1\r\n", "\r\n0\r\n"), ROWS, "stamps are multiplied by 0"),
        (GOOD.replace("VA_ang,A", "VA_mag,A"), ROWS, "2 channels are called 'VA_mag A'"),
        (GOOD, values("BINARY", numbers=[1, 2, 2, 3]), "line 3: the time 2026-03-01T12:00:00.040000000Z stands twice"),
        (GOOD.replace("BINARY", "ASCII"), b"1,0,600,x,1\r\n", "history.dat, line 1, 'VA_ang': 'x' is no number"),
        (GOOD.replace("BINARY", "ASCII"), b"1,0,600,1\r\n", "history.dat, line 1: Expected 5 columns, got 4"),
        (GOOD.replace("BINARY", "ASCII"), values("ASCII")[:-30], "history.dat"),
        (GOOD.replace("25,4", "25,5").replace("BINARY", "ASCII"), values("ASCII"), "holds 4 rows; its configuration"),
        (GOOD.replace("BINARY", "ASCII"), b"", "history.dat: there are no rows in it"),
    ],
)
def test_faults_are_told_by_file_and_line(tmp_path: Path, cfg: str, dat: bytes | None, message: str) -> None:
    path = write(tmp_path, cfg, dat or b"")
    if dat is None:
        path.with_suffix(".dat").unlink()
    with pytest.raises(ArchiveError, match="history") as refused:
        read(path)
    assert message in str(refused.value)


def test_a_row_without_a_time_is_told(tmp_path: Path) -> None:
    cfg = configuration("BINARY", rates=("0", "0,4"))
    path = write(tmp_path, cfg, values("BINARY", stamps=[0, 40_000, 0xFFFFFFFF, 120_000]))
    with pytest.raises(ArchiveError, match="row 3 has no time that can be told"):
        open_archive(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"--- file type: CFG ---\r\n" + GOOD.encode(), "has no section of values"),
        (b"--- file type: XYZ ---\r\n", "line 1: 'XYZ' is no section"),
        (
            b"--- file type: CFG ---\r\n" + GOOD.encode() + b"--- file type: DAT BINARY: 999 ---\r\n" + ROWS,
            "line 14: says 999 bytes of values; 56 are there",
        ),
        (
            b"--- file type: CFG ---\r\n" + GOOD.encode() + b"--- file type: DAT FLOAT32: 56 ---\r\n" + ROWS,
            "the values are FLOAT32 by their heading and BINARY by the configuration",
        ),
        (
            b"--- file type: CFG ---\r\n" + GOOD.replace("kV,0.5", "kV,half").encode() + b"--- file type: DAT ---\r\n",
            "line 4: '1,VA_mag,A,bus,kV,half",
        ),
    ],
)
def test_faults_of_a_combined_file(tmp_path: Path, text: bytes, message: str) -> None:
    path = tmp_path / "x.cff"
    path.write_bytes(text)
    with pytest.raises(ArchiveError, match=r"x\.cff") as refused:
        open_archive(path)
    assert message in str(refused.value)


def test_the_values_alone_name_their_configuration(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD, ROWS).with_suffix(".dat")
    assert is_archive(path)
    with pytest.raises(ArchiveError, match=r"name its configuration .*history\.cfg"):
        open_archive(path)


def test_text_that_is_not_utf8_is_said(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD.replace("Station 1", "Köln").encode("latin-1"), ROWS)
    archive = open_archive(path)
    assert archive.description.table.pmus[0].name == "Köln"
    assert any("read as Latin-1" in note for note in archive.notes)


def test_a_name_without_ending_is_told_by_what_it_holds(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD, ROWS)
    path = path.rename(tmp_path / "history.txt")
    assert open_archive(path).form == "comtrade"


NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).filter(lambda n: n == n.strip())
NUMBERS = st.floats(-(2.0**100), 2.0**100, width=32) | st.sampled_from([np.nan, np.inf, -0.0, 1e-40])


@st.composite
def frames(draw: st.DrawFn) -> list[FrameBatch]:
    """Frames of some sources on one clock: any of them may miss any time, and the clock need not be even."""
    rate = draw(st.sampled_from([0.2, 1.0, 10.0, 25.0, 30.0, 60.0, 29.97]))
    count = draw(st.integers(1, 12))
    slots = np.cumsum(draw(st.lists(st.integers(1, 3), min_size=count, max_size=count)))
    first_ns = NOON_NS + draw(st.integers(0, 10**9)) * draw(st.sampled_from([0, 1, 1000]))
    jitter = draw(st.lists(st.integers(-900, 900), min_size=count, max_size=count)) if draw(st.booleans()) else [0]
    time_ns = first_ns + np.rint(slots * 1e9 / rate).astype(np.int64) + np.resize(np.array(jitter) * 1000, count)
    names = iter(draw(st.lists(NAMES, min_size=6, max_size=6, unique=True)))
    batches = []
    for source in draw(st.lists(NAMES, min_size=1, max_size=3, unique=True)):
        kinds = draw(st.lists(st.sampled_from(list(Q)), max_size=4))
        channels = tuple(
            Channel(draw(NAMES), q, draw(st.sampled_from(list(Phase))), UNITS[q], draw(st.none() | st.just(7.5)))
            for q in kinds
        )
        pmus = tuple(Pmu(next(names), draw(st.integers(0, 65534)), "s", 50, channels, source) for _ in range(2))
        keep = np.array(draw(st.lists(st.booleans(), min_size=count, max_size=count)))
        keep[draw(st.integers(0, count - 1))] = True
        shape = int(keep.sum()), 2, len(channels)
        cells = draw(st.lists(NUMBERS, min_size=1, max_size=30))
        batches.append(
            FrameBatch(
                ChannelTable(pmus),
                rate,
                time_ns[keep],
                np.resize(draw(st.lists(st.integers(0, 255), min_size=1, max_size=5)), shape[0]).astype(np.uint8),
                np.resize(draw(st.lists(st.integers(0, 65535), min_size=1, max_size=9)), shape[:2]).astype(np.uint16),
                np.resize(np.array(cells, np.float32), shape),
                time_ns[keep],
            )
        )
    return batches


def describe(batches: Sequence[FrameBatch]) -> Description:
    table = ChannelTable(tuple(p for b in batches for p in b.table.pmus))
    return Description(table, batches[0].rate_hz, {batches[0].table.pmus[0].source: b"\xaa\x31"})


@settings(max_examples=60, deadline=None)
@given(batches=frames(), ending=st.sampled_from([".cfg", ".cff"]), rows=st.sampled_from([3, 65_536]))
def test_what_is_written_comes_back(
    tmp_path_factory: pytest.TempPathFactory, batches: list[FrameBatch], ending: str, rows: int
) -> None:
    path = tmp_path_factory.mktemp("record") / f"x{ending}"
    description = describe(batches)
    written = write_record(path, description, lambda: batches)
    assert written.rounded_ns <= 20
    archive = open_archive(path)
    assert archive.description == description
    back = list(read_archive(archive, rows=rows))
    assert measure(archive).frames == sum(len(b.time_ns) for b in batches)
    for sent in batches:
        own = [b for b in back if b.table == sent.table]
        assert all(b.rate_hz == sent.rate_hz for b in own)
        assert np.abs(np.concatenate([b.time_ns for b in own]) - sent.time_ns).max() <= written.rounded_ns
        for name in ("time_flags", "stat", "values"):
            there, here = np.concatenate([getattr(b, name) for b in own]), getattr(sent, name)
            assert there.dtype == here.dtype
            assert np.array_equal(there, here, equal_nan=name == "values")
            if name == "values":
                assert np.array_equal(np.signbit(there[~np.isnan(there)]), np.signbit(here[~np.isnan(here)]))
    theirs = third_party(path)
    assert (theirs.rev_year, theirs.ft, theirs.total_samples) == ("2013", "FLOAT32", written.rows)
    for i, column in enumerate(theirs.cfg.analog_channels):
        assert (column.n, column.a, column.b, column.pors) == (i + 1, 1, 0, "P")
    sent_at = sum(len(b.time_ns) for b in batches)
    sources = len(batches)
    assert sum(np.isfinite(theirs.analog[i]).sum() for i in range(sources)) == sent_at


def test_long_and_uneven_records_say_what_they_lose(tmp_path: Path) -> None:
    batch = small_grid("north", 1, 1, 1, seconds=60, onset_s=50)
    rng = np.random.default_rng(1)
    uneven = batch.time_ns + rng.integers(-5_000_000, 5_000_000, len(batch.time_ns))
    moved = FrameBatch(batch.table, 30.0, uneven, batch.time_flags, batch.stat, batch.values, uneven + 1)
    written = write_record(tmp_path / "x.cfg", describe([batch]), lambda: [moved])
    assert 1 < written.rounded_ns <= 60e9 / 2**32
    assert written.arrivals
    batch = read(tmp_path / "x.cfg")
    assert np.abs(batch.time_ns - uneven).max() == written.rounded_ns
    close = np.sort(np.concatenate([uneven, uneven[-1:] + 1]))
    again = FrameBatch(moved.table, 30.0, close, *(np.resize(a, (len(close), *a.shape[1:])) for a in (
        moved.time_flags, moved.stat, moved.values)), close)  # fmt: skip
    with pytest.raises(ArchiveError, match=r"some times are less than .* ns apart.*write shorter ones"):
        write_record(tmp_path / "y.cfg", describe([batch]), lambda: [again])
    assert not list(tmp_path.glob("y*"))


def test_what_a_record_cannot_hold_is_refused(tmp_path: Path) -> None:
    batch = small_grid("north", 1, 2, 1, seconds=2, onset_s=1)
    with pytest.raises(ArchiveError, match="'north' has two frames of one time"):
        write_record(tmp_path / "x.cfg", describe([batch]), lambda: [batch, batch])
    with pytest.raises(ArchiveError, match="no frame came"):
        write_record(tmp_path / "x.cfg", describe([batch]), list)
    with pytest.raises(ArchiveError, match="cannot be written"):
        write_record(tmp_path / "none" / "x.cff", describe([batch]), lambda: [batch])
    assert not list(tmp_path.iterdir())


def test_without_its_inf_a_record_is_read_by_its_names(tmp_path: Path) -> None:
    batch = small_grid("north", 1, 2, 1, seconds=2, onset_s=1)
    write_record(tmp_path / "x.cfg", describe([batch]), lambda: [batch])
    (tmp_path / "x.inf").unlink()
    archive = open_archive(tmp_path / "x.cfg")
    assert any("1 channels are left out: time_flags" in note for note in archive.notes)
    (back,) = list(read_archive(archive))
    assert [p.name for p in back.table.pmus] == ["north0", "north1"]
    assert np.array_equal(back.values, batch.values)
    assert np.array_equal(back.time_ns, batch.time_ns)


def test_detect_finds_the_same_in_the_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid, parts = tmp_path / "grid.parquet", [tmp_path / "north.parquet", tmp_path / "south.parquet"]
    write_parquet(parts[0], [small_grid("north", 1, 5, 1, seconds=70)])
    south = small_grid("south", 6, 3, 2, seconds=70)
    write_parquet(parts[1], [take(south, np.arange(2100) % 97 != 5)])  # some of whose frames were lost
    join_parquet(parts, grid)
    assert run(["convert", str(grid), str(tmp_path / "grid.cfg")]) == 0
    assert run(["convert", str(tmp_path / "grid.cfg"), str(tmp_path / "again.parquet")]) == 0
    assert run(["convert", str(tmp_path / "again.parquet"), str(tmp_path / "again.cff")]) == 0
    capsys.readouterr()
    table, again = pq.read_table(grid), pq.read_table(tmp_path / "again.parquet")
    assert table.schema.metadata == again.schema.metadata
    assert sorted(table.column_names) == sorted(again.column_names)
    assert all(table[c].equals(again[c]) for c in table.column_names)
    found = []
    for name in ("grid.parquet", "grid.cfg", "again.parquet", "again.cff"):
        assert run(["detect", str(tmp_path / name), "--learn", "25s"]) == 0
        found.append([json.loads(line)["data"] for line in capsys.readouterr().out.splitlines()])
    assert len(found[0]) == 1
    assert found == found[:1] * 4
    assert run(["inspect", str(tmp_path / "again.cff"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["format"], report["frames_total"], report["rate_hz"]) == ("comtrade", 4200 - 22, 30)
    assert [p["station"] for p in report["pmus"]] == [f"north{i}" for i in range(5)] + [f"south{i}" for i in range(3)]
    assert report["columns"] == []


def test_the_input_is_never_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "x.dat"
    table.write_text("time,V_1\n0,1\n1,2\n")
    assert run(["convert", str(table), str(tmp_path / "x.cfg")]) == 2
    assert "is the input itself" in capsys.readouterr().err
    assert table.read_text().startswith("time,V_1")
    assert run(["convert", str(table), str(tmp_path / "y.CFG")]) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.dat", "y.CFG", "y.DAT", "y.INF"]
    assert read(tmp_path / "y.CFG").values[:, 0, 0].tolist() == [1, 2]


def test_what_is_not_applied_is_said(tmp_path: Path) -> None:
    cfg = configuration("BINARY", revision="2013", tail=("1", "0,0", "B,3")).replace("rad,0.001,0,0", "rad,0.001,0,5")
    notes = open_archive(write(tmp_path, cfg, ROWS)).notes
    assert "1 channels state a skew in time, which is not applied" in notes
    assert any("states time quality B" in note for note in notes)


@settings(max_examples=200, deadline=None)
@given(
    form=st.sampled_from(["ASCII", "BINARY"]),
    at=st.integers(0, 10_000),
    length=st.integers(0, 12),
    by=st.binary(max_size=6) | st.sampled_from([b",", b"\r\n", b"nan", b"1e999", b"-1", b"99999999999", b"\x1a"]),
    in_values=st.booleans(),
)
def test_a_damaged_record_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, form: str, at: int, length: int, by: bytes, *, in_values: bool
) -> None:
    parts = [configuration(form, revision="2013", tail=("1", "-5h30,0", "0,0")).encode(), values(form)]
    place = at % len(parts[in_values])
    parts[in_values] = parts[in_values][:place] + by + parts[in_values][place + length :]
    path = write(tmp_path_factory.mktemp("damaged"), *parts)
    try:
        batch = read(path)
    except ArchiveError:
        return
    assert len(batch.time_ns) > 0
    assert (np.diff(batch.time_ns) > 0).all()
