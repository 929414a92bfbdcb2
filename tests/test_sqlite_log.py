"""The embedded log: the port's contract, and what a file may suffer: kills, torn ends, damage, a full disk."""

from __future__ import annotations

import random
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import count, pairwise
from pathlib import Path

import pytest

from streams.errors import LogError, LogFullError
from streams.log import CONFIGURATIONS, FRAMES, Entry, Record, Retention
from streams.sqlite_log import REBOOT_GAP, RETAIN_ROWS, SqliteLog, open_log
from tests.log_contract import Open, TidyLogContract, follow, plain, record

PAGE_BYTES = 4096
KEYS = ("north", "south", "west")


class TestSqliteLog(TidyLogContract):
    @pytest.fixture
    def new(self, tmp_path: Path) -> Callable[[], Open]:
        number = count()

        def make() -> Open:
            return partial(open_log, tmp_path / f"{next(number)}.db")

        return make


@pytest.fixture
def log(tmp_path: Path) -> Iterator[SqliteLog]:
    with closing(open_log(tmp_path / "log.db")) as opened:
        yield opened


def dice(seed: str) -> random.Random:
    return random.Random(seed)  # noqa: S311 - no secret is made of it


def call(number: int, seed: int = 0, records: int = 3, size: int = 500) -> list[Record]:
    """Make the records of one append: the time says which, the note which of it."""
    noise = dice(f"{seed}/{number}")
    return [Record(number, KEYS[n % 3], noise.randbytes(noise.randint(0, 2 * size)), f"{n}") for n in range(records)]


def whole_calls(entries: list[Entry], make: Callable[[int], list[Record]]) -> int:
    """Check that entries are whole appends, in order from the first; count them."""
    calls = entries[-1].time_ns + 1 if entries else 0
    assert plain(entries) == [r for number in range(calls) for r in make(number)]
    return calls


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


# What SQLite is asked for


def test_a_reader_in_the_middle_of_a_read_does_not_stop_a_writer_nor_the_other_way_round(tmp_path: Path) -> None:
    with closing(open_log(tmp_path / "log.db")) as log, closing(open_log(tmp_path / "log.db")) as other:
        log.append(FRAMES, call(0))
        other._db.execute("BEGIN")
        other._db.execute("SELECT count(*) FROM topic_1").fetchone()
        log.append(FRAMES, call(1))  # would wait for WAIT_S and fail
        other._db.execute("COMMIT")
        other._db.execute("BEGIN IMMEDIATE")
        assert whole_calls(follow(log, FRAMES)[0], call) == 2
        other._db.execute("COMMIT")


def test_a_writer_waits_for_another(tmp_path: Path) -> None:
    began = threading.Event()
    with closing(open_log(tmp_path / "log.db")) as log, closing(open_log(tmp_path / "log.db")) as other:
        other._db.execute("BEGIN IMMEDIATE")
        log._db.set_trace_callback(lambda _: began.set())
        thread = threading.Thread(target=log.append, args=(FRAMES, call(0)))
        thread.start()
        assert began.wait(60)
        assert thread.is_alive()
        other._db.execute("COMMIT")
        thread.join()
        assert whole_calls(follow(other, FRAMES)[0], call) == 1


def test_the_file_stays_flat_under_appends_and_retention(log: SqliteLog, tmp_path: Path) -> None:
    sizes = []
    for number in range(400):
        log.append(FRAMES, call(number, records=5, size=3000))
        if number % 20 == 19:
            log.retain(FRAMES, Retention(size=200_000))
            log._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            sizes.append(size_of(tmp_path / "log.db"))
    assert log.extent(FRAMES).size <= 200_000
    assert max(sizes[10:]) <= 1.1 * max(sizes[:10])
    assert max(sizes) < 1_000_000 < 400 * 5 * 3000


def test_the_write_ahead_log_begins_anew_while_readers_read(tmp_path: Path) -> None:
    stop, biggest, limit = threading.Event(), 0, 1 << 18

    def read() -> None:
        with closing(open_log(tmp_path / "log.db")) as reader:
            while not stop.is_set():
                reader.read(FRAMES, 0)

    threads = [threading.Thread(target=read) for _ in range(2)]
    with closing(open_log(tmp_path / "log.db", wal_bytes=limit)) as log:
        for thread in threads:
            thread.start()
        try:
            for number in range(400):
                log.append(FRAMES, call(number, records=5, size=3000))
                biggest = max(biggest, size_of(tmp_path / "log.db-wal"))
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    assert size_of(tmp_path / "log.db") > 20 * limit
    assert biggest < 10 * limit


def test_a_stopped_reader_lets_the_write_ahead_log_grow_only_until_it_goes_on(tmp_path: Path) -> None:
    limit = 1 << 19
    path = tmp_path / "log.db"
    with closing(open_log(path, wal_bytes=limit)) as log, closing(open_log(path)) as reader:
        log.append(FRAMES, call(0))
        reader._db.execute("BEGIN")
        reader._db.execute("SELECT count(*) FROM topic_1").fetchone()
        for number in range(1, 200):
            log.append(FRAMES, call(number))
        grown = size_of(tmp_path / "log.db-wal")
        assert grown > 4 * limit
        reader._db.execute("COMMIT")
        for number in range(200, 400):
            log.append(FRAMES, call(number))
        assert size_of(tmp_path / "log.db-wal") <= 2 * limit
        assert whole_calls(follow(log, FRAMES)[0], call) == 400


def test_retention_goes_in_small_transactions(log: SqliteLog) -> None:
    rows = 3 * RETAIN_ROWS
    for number in range(rows):
        log.append(FRAMES, [record(b"x", number)])
    statements = list[str]()
    log._db.set_trace_callback(statements.append)
    assert log.retain(FRAMES, Retention(age_s=0.5)) == rows - 1
    log._db.set_trace_callback(None)
    assert statements.count("BEGIN IMMEDIATE") >= 3


def test_an_append_is_one_row_for_many_small_records(log: SqliteLog) -> None:
    log.append(FRAMES, call(0, records=1000, size=40))
    assert log._db.execute("SELECT count(*) FROM topic_1").fetchone() == (1,)


# Opening


def test_a_newer_version_is_refused(log: SqliteLog, tmp_path: Path) -> None:
    log._db.execute("PRAGMA user_version=2")
    with pytest.raises(LogError, match=r"log\.db is a log of version 2, and this program knows 1"):
        open_log(tmp_path / "log.db")


@pytest.mark.parametrize("content", [b"no database" * 1000, b"SQLite format 3\0" + bytes(5000)])
def test_a_file_that_is_no_database_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "log.db").write_bytes(content)
    with pytest.raises(LogError, match=r"log\.db is damaged, or no log .*move it away"):
        open_log(tmp_path / "log.db")
    assert (tmp_path / "log.db").read_bytes() == content


def test_another_program_s_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "log.db")) as db:
        db.execute("CREATE TABLE events (id TEXT)")
        db.commit()
    before = (tmp_path / "log.db").read_bytes()
    with pytest.raises(LogError, match="is no log"):
        open_log(tmp_path / "log.db")
    assert (tmp_path / "log.db").read_bytes() == before


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(LogError, match=r"nowhere/log\.db.*folder"):
        open_log(tmp_path / "nowhere" / "log.db")


def test_many_may_make_it_at_once(tmp_path: Path) -> None:
    failed = list[BaseException]()

    def make() -> None:
        try:
            with closing(open_log(tmp_path / "log.db")) as log:
                log.append(FRAMES, call(0))
        except BaseException as error:  # noqa: BLE001 - shown below
            failed.append(error)

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    with closing(open_log(tmp_path / "log.db")) as log:
        assert len(follow(log, FRAMES)[0]) == 8 * len(call(0))


def test_after_a_restart_of_the_machine_numbers_are_left_out_and_nothing_is_called_lost(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    with closing(open_log(path, boot="Monday")) as log:
        end = log.append(FRAMES, call(0))
        log.append(CONFIGURATIONS, call(0))
        log.append("emptied", call(0))
        log.retain("emptied", Retention(size=1))
    with closing(open_log(path, boot="Monday")) as log:
        assert log.append(FRAMES, call(1)) == 2 * end
    with closing(open_log(path, boot="Tuesday")) as log:
        assert log.extent(FRAMES).next == 2 * end + REBOOT_GAP
        # A power cut took three appends that this reader has seen: their numbers are not given out again.
        assert log.read(FRAMES, 5 * end).entries == []
        log.append(FRAMES, call(2))
        assert plain(log.read(FRAMES, 5 * end).entries) == call(2)
        entries, lost = follow(log, FRAMES)
        assert whole_calls(entries, call) == 3
        assert not lost
        assert log.extent(FRAMES).records == 9
        assert log.extent("emptied").first == log.extent("emptied").next == end + REBOOT_GAP
        assert follow(log, CONFIGURATIONS)[1] == []
        assert log.append(CONFIGURATIONS, call(1)) == 2 * end + REBOOT_GAP
        assert log.retain(FRAMES, Retention(size=1)) == 9
        assert follow(log, FRAMES)[0] == []


# Kills and torn ends

WRITER = """
import random, sys
from pathlib import Path
from streams.log import FRAMES, Record
from streams.sqlite_log import open_log
from tests.test_sqlite_log import call
log = open_log(Path(sys.argv[1]))
number = int(sys.argv[2])
while True:
    log.append(FRAMES, call(number, records=7))
    print(number, flush=True)
    number += 1
"""


def test_a_killed_writer_loses_nothing_that_it_was_told_is_safe_and_leaves_whole_calls(tmp_path: Path) -> None:
    path, noise, calls = tmp_path / "log.db", dice("kills"), 0
    make = partial(call, records=7)
    with closing(open_log(path)) as log:
        for _ in range(10):
            command = [sys.executable, "-c", WRITER, str(path), str(calls)]
            with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1]) as writer:
                assert writer.stdout is not None
                for _ in range(noise.randint(1, 60)):
                    said = int(writer.stdout.readline())
                writer.kill()
                said = max([said, *map(int, writer.stdout.read().split())])
            calls = whole_calls(follow(log, FRAMES)[0], make)
            assert calls > said


@pytest.fixture(scope="module")
def beginning(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log whose last appends still stand in the write-ahead log, as a power cut may leave it."""
    folder = tmp_path_factory.mktemp("torn")
    with closing(open_log(folder / "log.db")) as log:
        for number in range(20):
            log.append(FRAMES, call(number))
        log._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        for number in range(20, 60):
            log.append(FRAMES, call(number))
        (folder / "cut").mkdir()
        for name in ("log.db", "log.db-wal"):
            shutil.copy(folder / name, folder / "cut" / name)
    return folder / "cut"


@pytest.mark.parametrize("seed", range(15))
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_torn_end_is_cut_to_whole_calls(beginning: Path, tmp_path: Path, seed: int, overwrite: bool) -> None:  # noqa: FBT001 - parametrized
    noise = dice(f"{seed}/{overwrite}")
    shutil.copytree(beginning, tmp_path, dirs_exist_ok=True)
    wal = bytearray((tmp_path / "log.db-wal").read_bytes())
    torn = noise.randint(1, len(wal))
    wal[-torn:] = noise.randbytes(torn) if overwrite else b""
    (tmp_path / "log.db-wal").write_bytes(wal)
    with closing(open_log(tmp_path / "log.db")) as log:
        entries, lost = follow(log, FRAMES)
        calls = whole_calls(entries, call)
        assert 20 <= calls < 60
        assert not lost
        assert log.extent(FRAMES).records == len(entries)
        log.append(FRAMES, call(calls))
    with closing(open_log(tmp_path / "log.db")) as log:
        assert whole_calls(follow(log, FRAMES)[0], call) == calls + 1


# Damage in the middle


@dataclass(frozen=True)
class Written:
    """A closed log, and what was written to it."""

    path: Path
    frames: list[Entry]
    configurations: dict[str, Entry]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    path = tmp_path_factory.mktemp("whole") / "log.db"
    with closing(open_log(path)) as log:
        for number in range(150):
            log.append(FRAMES, call(number))
        log.append(FRAMES, call(150, records=20, size=30_000))  # several rows, and pages that hold nothing else
        for number in range(151, 250):
            log.append(FRAMES, call(number))
        for number in range(4):
            log.append(CONFIGURATIONS, call(number, size=3000))
        return Written(path, follow(log, FRAMES)[0], log.latest(CONFIGURATIONS))


def damaged_log_keeps_its_word(path: Path, content: bytes, written: Written) -> Counter[str]:
    """Read all, append, read again: nothing altered, nothing lost unsaid. Count what happened."""
    for left in path.parent.glob(path.name + "-*"):  # where SQLite could not put its write-ahead log away
        left.unlink()
    path.write_bytes(content)
    refusal = str(path)
    seen, there = Counter[str](), {entry.offset: entry for entry in written.frames}
    try:
        with closing(open_log(path)) as log:
            for _ in range(2):
                entries, lost = follow(log, FRAMES, limit=50_000)
                assert [there.get(entry.offset) for entry in entries] == entries
                assert all(a.offset < b.offset for a, b in pairwise(entries))
                said = {offset for span in lost for offset in range(span.first, span.last + 1)}
                assert there.keys() - {entry.offset for entry in entries} == said
                assert {span.reason for span in lost} <= {"damaged"}
                seen["lost"] += len(said)
                found = log.latest(CONFIGURATIONS)
                assert found.items() <= written.configurations.items()
                of_keys, missing = follow(log, CONFIGURATIONS)
                assert {entry.key: entry for entry in of_keys} == found
                assert len(of_keys) + len(missing) == len(written.configurations)
                new = call(len(there))
                after = log.append(FRAMES, new)
                there |= {after - 3 + n: Entry(after - 3 + n, *r) for n, r in enumerate(new)}
                seen["appended"] += 1
            first = log.extent(FRAMES).first
            removed = log.retain(FRAMES, Retention(size=100_000))
            entries, lost = follow(log, FRAMES, log.extent(FRAMES).first)
            assert log.extent(FRAMES).size <= 100_000 or lost  # what no reader finds waits for a later retention
            assert log.extent(FRAMES).first - first == removed
            assert [there.get(entry.offset) for entry in entries] == entries
            seen["retained"] += 1
    except LogError as error:
        refusal = str(error)
        seen["refused"] += 1
    assert str(path) in refusal
    return seen


def test_flipped_bytes_alter_nothing_and_are_said(written: Written, tmp_path: Path) -> None:
    noise, seen, whole = dice("flips"), Counter[str](), written.path.read_bytes()
    path = tmp_path / "log.db"
    for _ in range(60):
        content = bytearray(whole)
        reach = noise.choice([3 * PAGE_BYTES, *[len(content)] * 5])  # the first pages hold the directory
        for _ in range(noise.choice([1, 3, 30])):
            at, length = noise.randrange(reach), noise.choice([1, 1, 8, 100])
            content[at : at + length] = noise.randbytes(len(content[at : at + length]))
        seen += damaged_log_keeps_its_word(path, content, written)
    assert seen["retained"] > 40
    assert seen["lost"] > 500
    assert seen["refused"]


@pytest.mark.parametrize("garbage", [b"\0" * PAGE_BYTES, b"\xff" * PAGE_BYTES, bytes(range(256)) * 16])
def test_a_page_of_garbage_costs_what_it_held(written: Written, tmp_path: Path, garbage: bytes) -> None:
    whole, path, seen = written.path.read_bytes(), tmp_path / "log.db", Counter[str]()
    pages = len(whole) // PAGE_BYTES
    for page in range(garbage[1] % 5, pages, 5):
        content = whole[: page * PAGE_BYTES] + garbage + whole[(page + 1) * PAGE_BYTES :]
        seen += damaged_log_keeps_its_word(path, content, written)
    assert seen["retained"] >= pages // 5 - 4  # the first pages, and the last one of the topic, carry all
    assert seen["lost"]


# A full disk


def fill(log: SqliteLog) -> tuple[int, LogFullError]:
    """Append until there is no room; say which call failed, and how."""
    for number in range(1000):
        try:
            log.append(FRAMES, call(number))
        except LogFullError as error:
            return number, error
    raise AssertionError("there was room for all")


def test_a_full_disk_is_told_and_passes(log: SqliteLog) -> None:
    log._db.execute("PRAGMA max_page_count=30").fetchall()
    calls, error = fill(log)
    assert "log.db: no room to write" in str(error)
    assert "make room" in str(error)
    assert whole_calls(follow(log, FRAMES)[0], call) == calls > 10
    assert log.extent(FRAMES).records == 3 * calls
    log._db.execute("PRAGMA max_page_count=1000").fetchall()
    log.append(FRAMES, call(calls))
    assert whole_calls(follow(log, FRAMES)[0], call) == calls + 1


def test_retention_makes_room_in_a_file_that_may_not_grow(log: SqliteLog) -> None:
    log._db.execute("PRAGMA max_page_count=100").fetchall()
    calls, _ = fill(log)
    assert log.retain(FRAMES, Retention(size=100_000)) > 0
    log.append(FRAMES, call(calls))
    assert plain(follow(log, FRAMES)[0])[-3:] == call(calls)


LIMITED = """
import resource, signal, sys
from pathlib import Path
from streams.errors import LogError, LogFullError
from streams.log import FRAMES
from streams.sqlite_log import open_log
from tests.test_sqlite_log import call
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
log = open_log(Path(sys.argv[1]))
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
number = 0
try:
    while True:
        log.append(FRAMES, call(number))
        number += 1
except LogFullError:
    print(number)
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
log.append(FRAMES, call(number))
log.close()
"""


def test_a_file_that_the_system_lets_grow_no_more_is_as_a_full_disk(tmp_path: Path) -> None:
    command = [sys.executable, "-c", LIMITED, str(tmp_path / "log.db")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False)
    assert done.returncode == 0, done.stderr
    with closing(open_log(tmp_path / "log.db")) as log:
        assert whole_calls(follow(log, FRAMES)[0], call) == int(done.stdout) + 1 > 10
