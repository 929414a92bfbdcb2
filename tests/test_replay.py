"""Recordings into a log: what a gateway would have written, at the pace that was asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from gridsense.cli import EXIT_INPUT, EXIT_OK, EXIT_USAGE, run
from gridsense.config import load
from gridsense.log_opening import kafka_settings, topic_specs
from gridsense.pipeline import Settings as PipelineSettings
from gridsense.regions import Regions
from gridsense.replaying import Clock, Replay, Settings, Totals, keys
from gridsense.simulator.frames import apart, times
from gridsense.simulator.script import Script, read_script
from scripts.broker.cluster import Cluster
from streams.archives import write_parquet
from streams.c37118.configuration import encode_configuration
from streams.c37118.frame import crc_fits
from streams.kafka import topics
from streams.kafka.log import KafkaLog
from streams.log import CONFIGURATIONS, FRAMES, Entry, Log
from streams.sqlite_log import open_log
from tests.reference.memory_log import MemoryLog
from tests.reference.small_grid import small_grid

SECOND_NS = 10**9
NOW_NS = 1_790_000_000 * SECOND_NS
SECONDS = 3


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, empty."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def north(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("replay") / "north.parquet"
    write_parquet(path, small_grid("north", 11, 3, 1, seconds=SECONDS))
    return path


@pytest.fixture(scope="module")
def south(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("replay") / "south.parquet"
    write_parquet(path, small_grid("south", 21, 2, 2, seconds=SECONDS))
    return path


class Time:
    """Time that passes when somebody waits, and a little with each write."""

    def __init__(self, write_s: float = 0.0, stop_s: float = float("inf")) -> None:
        self.passed_s = 0.0
        self.write_s = write_s
        self.stop_s = stop_s
        self.clock = Clock(lambda: NOW_NS + round(self.passed_s * 1e9), lambda: self.passed_s, self.wait)

    def wait(self, duration_s: float) -> bool:
        self.passed_s += duration_s
        return self.passed_s >= self.stop_s

    def wrote(self, _: Totals) -> None:
        self.passed_s += self.write_s


def everything(log: Log, topic: str) -> list[Entry]:
    def read() -> Iterator[Entry]:
        offset = 0
        while (reading := log.read(topic, offset)).next > offset:
            yield from reading.entries
            offset = reading.next

    return list(read())


def sent(script: Script, place: int) -> list[bytes]:
    return [frame for pieces in script.rounds() for p in pieces if p.stream == place for frame in apart(p.octets)]


def written(entries: list[Entry], key: str) -> list[bytes]:
    return [entry.value for entry in entries if entry.key == key]


def test_configurations_come_first_and_every_frame_is_a_record(north: Path, south: Path) -> None:
    script, log, passing = read_script([north, south]), MemoryLog(), Time()
    totals = Replay(script, log, Settings(speed=0), passing.clock, passing.wrote).run()
    entries = everything(log, FRAMES)
    configurations = [b"".join(encode_configuration(stream.configuration)) for stream in script.streams]
    wanted = list(zip(("north", "south"), configurations, strict=True))
    assert [(entry.key, entry.value) for entry in entries[:2]] == wanted
    assert [(key, entry.value) for key, entry in sorted(log.latest(CONFIGURATIONS).items())] == wanted
    for place, key in enumerate(("north", "south")):
        assert written(entries[2:], key) == sent(script, place)
    assert totals.frames == len(entries) - 2 == 2 * SECONDS * 30
    assert totals.size == sum(len(entry.value) for entry in entries[2:])
    assert {entry.time_ns for entry in entries} == {NOW_NS}


@pytest.mark.parametrize("speed", [1.0, 5.0])
def test_frames_leave_when_they_are_due(north: Path, speed: float) -> None:
    script, log, passing = read_script([north]), MemoryLog(), Time()
    totals = Replay(script, log, Settings(speed=speed), passing.clock, passing.wrote).run()
    (stream,) = script.streams
    due_ns = [int(it) for pieces in script.rounds() for it in times(pieces[0].octets, stream.configuration.time_base)]
    came_ns = [entry.time_ns for entry in everything(log, FRAMES)[1:]]
    assert came_ns == pytest.approx([NOW_NS + (it - due_ns[0]) / speed for it in due_ns], abs=2_000)
    assert totals.late_s < 1e-6
    assert totals.recording_s == pytest.approx(SECONDS - 1 / 30, abs=1e-3)


def test_a_slow_log_is_caught_up_with_in_larger_writes(north: Path) -> None:
    script, log, passing = read_script([north]), MemoryLog(), Time(write_s=0.1)
    totals = Replay(script, log, Settings(), passing.clock, passing.wrote).run()
    assert written(everything(log, FRAMES)[1:], "north") == sent(script, 0)
    assert 0 < totals.late_s < 0.11
    assert passing.passed_s < SECONDS + 0.2


def test_stamps_say_the_recordings_own_time(north: Path) -> None:
    script, log, passing = read_script([north]), MemoryLog(), Time()
    Replay(script, log, Settings(speed=0, stamps=True), passing.clock).run()
    entries = everything(log, FRAMES)
    due_ns = [int(it) for pieces in script.rounds() for it in pieces[0].due_ns]
    assert [entry.time_ns for entry in entries] == [due_ns[0], *due_ns]


def test_shifted_frames_are_of_now_and_intact(north: Path) -> None:
    script, log, passing = read_script([north]), MemoryLog(), Time()
    Replay(script, log, Settings(shift_to_now=True), passing.clock).run()
    entries = everything(log, FRAMES)
    (stream,) = script.streams
    assert len(entries) == 1 + len(sent(script, 0))
    for entry in entries[1:]:
        assert crc_fits(entry.value)
        octets = np.frombuffer(entry.value, np.uint8).reshape(1, -1)
        (stamp_ns,) = times(octets, stream.configuration.time_base)
        assert abs(entry.time_ns - int(stamp_ns)) < 2_000


def test_it_stops_when_it_is_told_to(north: Path) -> None:
    script, log, passing = read_script([north]), MemoryLog(), Time(stop_s=1.0)
    totals = Replay(script, log, Settings(), passing.clock).run()
    assert totals.frames == len(everything(log, FRAMES)) - 1 == pytest.approx(30, abs=1)


def test_split_changes_whose_frames_they_are_and_nothing_in_them(north: Path) -> None:
    """The judged frames are the same, bit for bit; who falls silent together, and who are neighbours, is not."""
    judged = []
    for split in (False, True):
        log, regions = MemoryLog(), Regions(PipelineSettings())
        Replay(read_script([north], split=split), log, Settings(speed=0, stamps=True), Time().clock).run()
        heard = [*regions.take(everything(log, FRAMES)), *regions.finish()]
        judged.append([output.judged for one in heard for output in one.outputs])
    whole, apart_ = (
        [np.concatenate([getattr(block, what) for block in blocks]) for what in ("time_ns", "values", "quality")]
        for blocks in judged
    )
    for one, other in zip(whole, apart_, strict=True):
        assert one.tobytes() == other.tobytes()
    assert len(whole[0]) == SECONDS * 30
    assert [[pmu.source for pmu in blocks[0].table.pmus] for blocks in judged] == [
        ["north"] * 3,
        ["north0", "north1", "north2"],
    ]


def test_names_are_keys_that_connections_can_have(north: Path, south: Path) -> None:
    streams = read_script([north, south]).streams
    assert keys(streams, ("a", "")) == ["a/north", "south"]


# --- the command


def test_the_command_writes_an_embedded_log(
    north: Path, south: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["replay", str(north), str(south), "--to", "sqlite:day.db", "--speed", "0", "--stamps"]
    assert run([*words, "--region", "n", "--region", "s"]) == EXIT_OK
    assert capsys.readouterr().out.startswith(f"{2 * SECONDS * 30} frames of 2 sources (")
    with closing(open_log(here / "day.db")) as log:
        assert set(log.latest(CONFIGURATIONS)) == {"n/north", "s/south"}
        assert written(everything(log, FRAMES)[2:], "s/south") == sent(read_script([south]), 0)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "--to is missing"),
        (["--to", "day.db"], "must be sqlite:PATH"),
        (["--to", "sqlite:day.db", "--speed", "-1"], "--speed -1: must be 0 or above"),
        (["--to", "sqlite:day.db", "--region", "a/b"], "--region a/b: must hold neither # nor /"),
        (["--to", "sqlite:day.db", "--region", "a", "--region", "b"], "2 are named for 1 files"),
        (["--to", "sqlite:day.db", "--stamps", "--shift-to-now", "--speed", "2"], "need --speed 1"),
        (["--to", "kafka://elsewhere:9092"], "kafka.allow_plaintext"),
    ],
)
def test_what_cannot_be_is_refused(
    north: Path, here: Path, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    assert run(["replay", str(north), *words]) == EXIT_USAGE
    assert told in capsys.readouterr().err
    assert list(here.iterdir()) == []


@pytest.fixture
def kafka_file(here: Path, kafka: Cluster, kafka_prefix: str) -> Path:
    """A configuration for two regions, each with a partition of its own."""
    file = here / "gridsense.toml"
    file.write_text(
        f'log.url = "kafka://{kafka.servers}"\n'
        f'[kafka]\nprefix = "{kafka_prefix}"\nreplication = 1\npartitions = 2\nregions = ["a", "b"]\n'
    )
    return file


def test_the_command_writes_to_kafka(
    north: Path, south: Path, kafka_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load(kafka_file, environ={}).config
    settings = kafka_settings(config)
    words = ["replay", str(north), str(south), "--speed", "0", "--region", "a", "--region", "b"]
    assert run(words) == EXIT_INPUT
    assert "gridsense topics create" in capsys.readouterr().err
    topics.create(settings, topic_specs(config))
    assert run(words) == EXIT_OK
    for partition, (key, path) in enumerate((("a/north", north), ("b/south", south))):
        with closing(KafkaLog(settings, partition)) as log:
            assert set(log.latest(CONFIGURATIONS)) == {"a/north", "b/south"}
            entries = everything(log, FRAMES)
        assert {entry.key for entry in entries} == {key}
        assert [entry.value for entry in entries[1:]] == sent(read_script([path]), 0)
