"""Snapshots: whole or not there, and unchanged arrays written once."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest

from gridsense.errors import StoreError
from gridsense.snapshots import KEPT, Snapshot, Snapshots


def made(place: int, *arrays: np.ndarray) -> Snapshot:
    return Snapshot(place, "test", f"body {place}".encode(), arrays)


def read(path: Path) -> tuple[Snapshot | None, list[str]]:
    reader = Snapshots(path)
    try:
        return reader.newest()
    finally:
        reader.close()


def test_what_was_saved_comes_back_bit_for_bit(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    arrays = (
        rng.standard_normal((3, 700, 900)).astype(np.float32),  # several pieces
        rng.integers(0, 255, (5, 4), np.uint8).T,  # not contiguous
        np.array([np.nan, np.inf, -0.0]),
        np.empty((0, 7), bool),
    )
    store = Snapshots(tmp_path / "s.db")
    assert read(tmp_path / "s.db") == (None, [])
    store.save(made(17, *arrays))
    store.close()
    found, wrong = read(tmp_path / "s.db")
    assert found is not None
    assert (found.place, found.nature, found.body, wrong) == (17, "test", b"body 17", [])
    for a, b in zip(arrays, found.arrays, strict=True):
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
        assert b.size == 0 or b.flags.writeable


def test_arrays_that_stay_are_not_written_again_and_old_ones_go(tmp_path: Path) -> None:
    store = Snapshots(tmp_path / "s.db")
    stays = np.zeros(100_000)
    assert store.save(made(0, stays, np.ones(1000))) > 800_000
    for place in range(1, 6):
        assert store.save(made(place, stays, np.full(1000, float(place)))) < 10_000
    store.close()
    with sqlite3.connect(tmp_path / "s.db") as connection:
        (arrays,) = connection.execute("SELECT count(DISTINCT array) FROM snapshot_piece").fetchone()
        (snapshots,) = connection.execute("SELECT count(*) FROM snapshot").fetchone()
    connection.close()
    assert (arrays, snapshots) == (1 + KEPT, KEPT)
    found, _ = read(tmp_path / "s.db")
    assert found is not None
    assert found.place == 5
    np.testing.assert_array_equal(found.arrays[1], 5.0)


@pytest.mark.parametrize(
    "harm", ["UPDATE snapshot SET body = x'00' WHERE number = {n}", "DELETE FROM snapshot_piece WHERE array = {a}"]
)
def test_where_the_newest_is_damaged_the_one_before_serves(tmp_path: Path, harm: str) -> None:
    store = Snapshots(tmp_path / "s.db")
    for place in (1, 2):
        store.save(made(place, np.full(1000, float(place))))
    store.close()
    with sqlite3.connect(tmp_path / "s.db") as connection:
        (n,) = connection.execute("SELECT max(number) FROM snapshot").fetchone()
        (a,) = connection.execute("SELECT max(array) FROM snapshot_piece").fetchone()
        connection.execute(harm.format(n=n, a=a))
    connection.close()
    found, wrong = read(tmp_path / "s.db")
    assert found is not None
    assert found.place == 1
    (line,) = wrong
    assert "damaged" in line


def test_no_room_leaves_the_snapshot_before(tmp_path: Path) -> None:
    store = Snapshots(tmp_path / "s.db")
    store.save(made(1, np.zeros(1000)))
    connection = store._open()
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages + 50}")
    with pytest.raises(StoreError, match="full"):
        store.save(made(2, np.zeros(1_000_000)))
    connection.execute("PRAGMA max_page_count = 1000000")
    found, wrong = store.newest()
    assert found is not None
    assert (found.place, wrong) == (1, [])
    store.save(made(3, np.zeros(1_000_000)))
    found, _ = store.newest()
    store.close()
    assert found is not None
    assert found.place == 3


def test_what_is_no_database_is_an_error_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "s.db").write_bytes(b"no database" * 1000)
    with pytest.raises(StoreError, match=r"s\.db"):
        Snapshots(tmp_path / "s.db").newest()


def test_a_process_killed_while_saving_leaves_a_whole_snapshot(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    code = f"""
        import numpy as np
        from pathlib import Path
        from gridsense.snapshots import Snapshot, Snapshots
        store = Snapshots(Path({str(path)!r}))
        found, wrong = store.newest()
        place = found.place if found else 0
        print("ready", flush=True)
        while True:
            place += 1
            arrays = tuple(np.full(300_000, float(place)) for _ in range(5))
            store.save(Snapshot(place, "t", str(place).encode(), arrays))
    """
    place = 0
    for turn in range(6):
        child = subprocess.Popen([sys.executable, "-c", dedent(code)], stdout=subprocess.PIPE)
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == b"ready\n"
            time.sleep(0.05 + 0.07 * turn)
        finally:
            os.kill(child.pid, signal.SIGKILL)
            child.communicate()
        found, wrong = read(path)
        assert wrong == []
        if found is None:  # killed before the first was whole
            continue
        assert found.place >= place
        place = found.place
        assert found.body == str(place).encode()
        assert all((a == place).all() for a in found.arrays)
    assert place > 0
