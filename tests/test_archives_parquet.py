"""Parquet archives: what goes in comes out, bit for bit, and the file says what it holds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.archives import read_description, read_parquet, write_parquet
from streams.archives.columns import escape, signal_columns, split_column, unescape
from streams.block import FrameBatch
from streams.channels import UNITS, Channel, ChannelTable, Phase, Pmu, Quantity
from streams.errors import ArchiveError

START_NS = 1_700_000_000_000_000_000


def make_batch(
    frames: int = 200, pmus: int = 3, dtype: type = np.float64, *, rate_hz: float = 30.0, source: str = "pdc"
) -> FrameBatch:
    """Random frames of PMUs of different widths with awkward names, NaN here and there."""
    rng = np.random.default_rng(frames + pmus)
    kinds = [
        ("VA", Quantity.VOLTAGE_MAGNITUDE, 3e5),
        ("VA", Quantity.VOLTAGE_ANGLE, None),
        ("VA", Quantity.VOLTAGE_ANGLE, None),
        ("", Quantity.FREQUENCY, 60.0),
        ("dI/dt. 100%~", Quantity.ANALOG, None),
    ]
    table = ChannelTable(
        tuple(
            Pmu(
                f"{source}.Bus {s}",
                s + 1,
                f"ST {s}",
                60,
                tuple(Channel(n, q, Phase.A, UNITS[q], nominal) for n, q, nominal in kinds[: 5 - s % 3]),
                source,
            )
            for s in range(pmus)
        )
    )
    values = rng.normal(60, 1, (frames, pmus, table.width)).astype(dtype)
    values[rng.random(values.shape) < 0.05] = np.nan
    values[:, ~table.present] = np.nan
    time_ns = START_NS + np.round(np.arange(frames) * 1e9 / rate_hz).astype(np.int64)
    return FrameBatch(
        table=table,
        rate_hz=rate_hz,
        time_ns=time_ns,
        time_flags=rng.integers(0, 256, frames, dtype=np.uint8),
        stat=rng.integers(0, 65536, (frames, pmus), dtype=np.uint16),
        values=values,
        arrival_ns=time_ns + rng.integers(0, 10**8, frames),
    )


def assert_same(got: list[FrameBatch], want: FrameBatch) -> None:
    assert {b.table for b in got} == {want.table}
    assert {b.rate_hz for b in got} == {want.rate_hz}
    for name in ("time_ns", "time_flags", "stat", "values", "arrival_ns"):
        joined = np.concatenate([getattr(b, name) for b in got])
        expected = getattr(want, name)
        assert joined.dtype == expected.dtype, name
        assert joined.tobytes() == expected.tobytes(), name


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rows", [7, 65536])
def test_every_bit_comes_back(tmp_path: Path, dtype: type, rows: int) -> None:
    batch = make_batch(dtype=dtype)
    assert write_parquet(tmp_path / "a.parquet", batch, configurations={"pdc": b"\xaa\x31"}) == 200
    got = list(read_parquet(tmp_path / "a.parquet", rows=rows, dtype=dtype))
    assert_same(got, batch)
    assert max(len(b.time_ns) for b in got) <= rows
    description = read_description(tmp_path / "a.parquet")
    assert description.table == batch.table
    assert description.rate_hz == 30
    assert description.configurations == {"pdc": b"\xaa\x31"}


def test_batches_in_a_row_are_one_file(tmp_path: Path) -> None:
    batch = make_batch(5000, 1)
    parts = (
        replace(
            batch,
            **{n: getattr(batch, n)[k : k + 11] for n in ("time_ns", "time_flags", "stat", "values", "arrival_ns")},
        )
        for k in range(0, 5000, 11)
    )
    assert write_parquet(tmp_path / "a.parquet", parts) == 5000
    assert_same(list(read_parquet(tmp_path / "a.parquet", dtype=np.float64)), batch)
    assert pq.ParquetFile(tmp_path / "a.parquet").num_row_groups == 1


def test_the_file_explains_itself_to_others(tmp_path: Path) -> None:
    batch = make_batch()
    write_parquet(tmp_path / "a.parquet", batch)
    table = pq.read_table(tmp_path / "a.parquet")
    assert table.schema.field("time").type == pa.timestamp("ns", tz="UTC")
    assert table.column_names[:5] == [
        "time",
        "time_flags",
        "arrival",
        "pdc%2EBus 0.stat",
        "pdc%2EBus 0.VA.voltage_magnitude",
    ]
    assert "pdc%2EBus 0.VA~2.voltage_angle" in table.column_names
    about = table.schema.field("pdc%2EBus 0.VA.voltage_magnitude").metadata
    assert about[b"unit"] == b"V"
    assert about[b"nominal"] == b"300000.0"
    assert table["pdc%2EBus 0.stat"].type == pa.uint16()


def test_a_second_table_or_rate_is_refused(tmp_path: Path) -> None:
    batch = make_batch()
    with pytest.raises(ArchiveError, match="channels change"):
        write_parquet(tmp_path / "a.parquet", [batch, make_batch(pmus=2)])
    with pytest.raises(ArchiveError, match="from 30 to 60 Hz"):
        write_parquet(tmp_path / "a.parquet", [batch, replace(batch, rate_hz=60.0)])
    with pytest.raises(ArchiveError, match="nothing to write"):
        write_parquet(tmp_path / "a.parquet", [])
    assert list(tmp_path.iterdir()) == []


def test_two_pmus_of_one_name_are_refused(tmp_path: Path) -> None:
    batch = make_batch(pmus=1)
    twice = replace(batch, table=ChannelTable(batch.table.pmus * 2))
    with pytest.raises(ArchiveError, match=r"2 PMUs are called 'pdc\.Bus 0'"):
        write_parquet(tmp_path / "a.parquet", twice)


def test_what_is_no_archive_is_said_plainly(tmp_path: Path) -> None:
    (tmp_path / "junk.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(ArchiveError, match=r"junk\.parquet: cannot be read as Parquet"):
        list(read_parquet(tmp_path / "junk.parquet"))
    with pytest.raises(ArchiveError, match="cannot be read as Parquet"):
        list(read_parquet(tmp_path / "absent.parquet"))


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=12), st.text(max_size=12), st.sampled_from(Quantity))
def test_names_survive_the_column_name(pmu: str, channel: str, quantity: Quantity) -> None:
    assert unescape(escape(pmu)) == pmu
    entry = Pmu(pmu, 1, pmu, 60, (Channel(channel, quantity), Channel(channel, quantity)))
    first, second = signal_columns(entry)
    assert first != second
    assert split_column(first) == split_column(second) == (pmu, channel, quantity)
