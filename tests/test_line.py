"""The live line, whole: what is served, received, logged and processed gives the events of `detect` on the files."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gridsense import cli
from gridsense import detect as detecting
from gridsense.commands.run import run
from gridsense.config import Config, load
from gridsense.errors import StoreError, UsageError
from gridsense.services.processing import alone, process
from gridsense.services.receiving import receive
from gridsense.services.together import run_together, served
from gridsense.simulator.script import read_script
from gridsense.simulator.server import Counts, Settings, Simulator, Transport
from gridsense.sources import open_source, read_rounds
from gridsense.store import EventStore
from scripts.check import line
from scripts.check.line import Counted, Events, Run, Sent, Told, compare, free_ports, promises, stored
from streams.archives import write_parquet
from streams.gateway.status import ConnectionStatus, State, Totals
from streams.log import FRAMES
from streams.sqlite_log import open_log
from tests.reference.recorded import recorded
from tests.reference.small_grid import small_grid

PATIENCE_S = 60.0
NAMES = ("north", "south")
SETTINGS = """
name = "small"
[detection]
learn = 20
[align]
lateness = 20
dead = 60
[metrics]
processor_port = 0
gateway_port = 0
[simulate]
port = 0
"""
"""At the speed of these tests a second of the machine is many seconds of the recording: nothing is late for that."""
SPEED = 30


@pytest.fixture(scope="module")
def captures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two sources, 45 s, with a fault that both see after 36 s: a capture each."""
    folder = tmp_path_factory.mktemp("captures")
    grids = [
        small_grid("north", 1, 4, 1, seconds=45, onset_s=36.0),
        small_grid("south", 5, 3, 2, seconds=45, onset_s=36.0),
    ]
    records = recorded(grids)
    paths = [folder / f"{name}.bin" for name in NAMES]
    for path in paths:
        path.write_bytes(b"".join(record.value for record in records if record.key == path.stem))
    return paths


def configured(folder: Path, files: Sequence[Path] = (), **simulate: float) -> Config:
    """Write a configuration into a folder, and read it."""
    keys = {"files": [str(path) for path in files], **simulate}
    path = folder / "gridsense.toml"
    path.write_text(SETTINGS + "\n".join(f"{key} = {json.dumps(value)}" for key, value in keys.items()))
    return load(path).config


def detected(config: Config, captures: Sequence[Path]) -> Path:
    """Let `detect` find the events of the files, under the same settings; returns its store."""
    path = config.store_path.with_name("detect.db")
    with EventStore(path) as store:
        sources = [open_source(capture) for capture in captures]
        detecting.detect(config.pipeline_settings(), sources, None, [detecting.Memory(store)], lambda _: None)
    return path


def texts(store: Path) -> list[str]:
    with EventStore(store) as events:
        return events.cloudevents()


def changes(store: Path) -> list[str]:
    with EventStore(store) as events:
        return [text for _, text in events.changes()]


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


@contextmanager
def started(*words: str) -> Iterator[subprocess.Popen[str]]:
    """Start a command; it is killed if the test leaves it running."""
    program = [sys.executable, "-c", "from gridsense.cli import main; main()", *words]
    with subprocess.Popen(program, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def position(config: Config) -> int:
    """How far the processor says that it has come; 0 while there is no log."""
    if not config.log_path.exists():
        return 0
    log = open_log(config.log_path)
    try:
        return log.position(FRAMES, "processor") or 0
    finally:
        log.close()


def test_over_tcp_the_events_are_those_of_detect(captures: list[Path], tmp_path: Path) -> None:
    config = configured(tmp_path, captures, speed=SPEED)
    processor = run_together(config, threading.Event(), close=True)
    expected = texts(detected(config, captures))
    assert len(expected) == 1
    assert texts(config.store_path) == expected
    counts = processor.regions.by_name[""].pipeline.counts()
    assert counts is not None
    assert counts[0] == ("north.bin#1", "south.bin#5")
    assert counts[1].accepted.tolist() == [45 * 30, 45 * 30]
    assert not np.any([counts[1].late, counts[1].duplicate, counts[1].ahead])


def test_over_udp_the_grid_events_are_the_same_and_every_loss_is_counted(captures: list[Path], tmp_path: Path) -> None:
    config = configured(tmp_path)
    sent = asyncio.run(sent_by_udp(config, captures))
    assert min(sent.lost, sent.duplicated, sent.reordered) > 20
    ended = threading.Event()
    ended.set()
    processor = process(config, threading.Event(), ended=ended, close=True)
    counts = processor.regions.by_name[""].pipeline.counts()
    assert counts is not None
    _, aligned = counts
    assert processor.regions.by_name[""].intake.frames.total() == sent.sent
    assert sent.played == 2 * 45 * 30
    assert sent.played - aligned.accepted.sum() == sent.lost
    assert aligned.duplicate.sum() == sent.duplicated
    assert not np.any([aligned.late, aligned.ahead])
    assert not processor.regions.by_name[""].intake.dropped
    assert line.same_grid(stored(detected(config, captures)), stored(config.store_path))


async def sent_by_udp(config: Config, captures: list[Path]) -> Counts:
    """Serve the captures with faults, receive them into the log, and say what was done to them."""
    settings = Settings(
        Transport.UDP, udp_port=free_ports(2, "udp"), speed=SPEED, loss=0.02, duplicate=0.02, reorder=0.02, seed=7
    )
    simulator = Simulator(read_script(captures), settings)
    await simulator.start()
    stop, listening, noted = asyncio.Event(), asyncio.Event(), asyncio.Event()
    received = 0

    def note(connections: Sequence[ConnectionStatus], totals: Totals) -> None:
        nonlocal received
        received = totals.counts.frames
        noted.set()
        if all(connection.state is State.CONFIGURING for connection in connections):
            listening.set()

    receiving = asyncio.create_task(receive(config, served(simulator), stop, note))
    try:
        async with asyncio.timeout(PATIENCE_S):
            await listening.wait()
            sent = await simulator.run()
            while received < sent.sent:
                noted.clear()
                await noted.wait()
    finally:
        stop.set()
        await receiving
        await simulator.close()
    return sent


def test_up_is_stopped_by_a_signal_and_goes_on_at_its_next_start(captures: list[Path], tmp_path: Path) -> None:
    config = configured(tmp_path, captures, speed=5)
    words = ("up", "--config", str(tmp_path / "gridsense.toml"))
    with started(*words) as process:
        wait_for(lambda: position(config) > 20, process)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, said
    assert "SIGTERM: stopping" in said
    log = open_log(config.log_path)
    written = log.extent(FRAMES).next
    log.close()
    with started(*words, "--set", "simulate.speed=0", "--close") as process:
        _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, said
    assert f"from offset {written} into" in said
    assert f"stopped at offset {written}" not in said


def test_run_once_twice_says_everything_once(tmp_path: Path) -> None:
    config = configured(tmp_path)
    log = open_log(config.log_path)
    records = recorded([small_grid("north", 1, 4, 1, seconds=45, onset_s=36.0)])
    log.append(FRAMES, records[:300])
    path = tmp_path / "gridsense.toml"
    run(config=path, once=True)
    assert texts(config.store_path) == []
    log.append(FRAMES, records[300:])
    run(config=path, once=True)
    run(config=path, once=True, close=True)
    log.close()
    capture = tmp_path / "north.bin"
    capture.write_bytes(b"".join(record.value for record in records))
    assert texts(config.store_path) == texts(detected(config, [capture]))
    assert len(changes(config.store_path)) == len(texts(config.store_path)) == 1


def test_a_gateway_without_connections_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configured(tmp_path)
    assert cli.run(["gateway", "--config", str(tmp_path / "gridsense.toml")]) == cli.EXIT_USAGE
    assert "gateway.connections is empty: name at least one" in capsys.readouterr().err


def test_a_second_processor_is_refused_until_the_first_is_gone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configured(tmp_path)
    lock = config.store_path.with_name("gridsense.db.lock")
    words = ["run", "--config", str(tmp_path / "gridsense.toml")]
    with started(*words) as first:
        wait_for(lambda: lock.exists() and lock.read_text() == f"{first.pid}\n", first)
        assert cli.run([*words, "--once"]) == cli.EXIT_INPUT
        said = capsys.readouterr().err
        assert f"another processor (process {first.pid}) writes it" in said
        assert "name another file in store.path" in said
        assert first.poll() is None
        first.kill()  # it cannot tidy up
        first.communicate()
        assert cli.run([*words, "--once"]) == cli.EXIT_OK


def test_a_store_is_the_same_by_another_name(tmp_path: Path) -> None:
    (tmp_path / "link.db").symlink_to(tmp_path / "store.db")
    with alone(tmp_path / "store.db"):
        with pytest.raises(StoreError, match="another processor"), alone(tmp_path / "link.db"):
            pass
        with alone(tmp_path / "other.db"):
            pass
    with alone(tmp_path / "link.db"):
        pass
    with pytest.raises(StoreError, match="No such file"), alone(tmp_path / "nowhere" / "store.db"):
        pass


def told(key: str, onset_s: float, cause: str = "grid", **other: str | bool) -> tuple[str, Told]:
    event = Told(f"{key} at {onset_s}", onset_s, cause, "fault", "north1", lasts=False)
    return key, replace(event, **other)  # type: ignore[arg-type] # a test's shorthand


EXPECTED: Events = dict([told("a", 10.0), told("b", 20.0, "data"), told("c", 30.0, lasts=True)])


def test_what_lasts_at_the_end_of_the_file_may_end_live() -> None:
    tcp = {**EXPECTED, **dict([told("c", 30.0, text="ended"), told("d", 40.1, "comms")])}
    found = compare(EXPECTED, EXPECTED, tcp, EXPECTED, 40.0)
    assert (found.events, found.differing, found.missing, found.unexpected) == (3, 0, 0, 0)
    assert (found.added_after_end, found.added_causes) == (1, {"comms": 1})
    assert found.udp_grid_equal


@pytest.mark.parametrize(
    ("tcp", "figures"),
    [
        ({**EXPECTED, **dict([told("a", 10.0, text="other")])}, (1, 0, 0)),
        ({**EXPECTED, **dict([told("c", 30.0, kind="other")])}, (1, 0, 0)),
        ({key: event for key, event in EXPECTED.items() if key != "b"}, (0, 1, 0)),
        ({**EXPECTED, **dict([told("x", 15.0)])}, (0, 0, 1)),
    ],
)
def test_every_difference_is_found(tcp: Events, figures: tuple[int, int, int]) -> None:
    found = compare(EXPECTED, EXPECTED, tcp, EXPECTED, 40.0)
    assert (found.differing, found.missing, found.unexpected) == figures
    run = Run(tcp, Sent(100, 100, 0, 0, 0, 1), Counted(100, 100, {}), 1.0)
    assert [p.kept for p in promises(found, run, run, 0)].count(False) == 1


@pytest.mark.parametrize(
    "udp",
    [
        {},
        dict([told("a", 10.3), told("c", 30.0)]),
        dict([told("a", 10.0, cause="data"), told("c", 30.0)]),
        dict([told("a", 10.0), told("c", 30.0), told("d", 35.0)]),
    ],
)
def test_other_grid_events_are_no_equal_ones(udp: Events) -> None:
    assert line.same_grid(EXPECTED, EXPECTED)
    assert line.same_grid(EXPECTED, dict([told("z", 10.2), told("c", 30.0), told("y", 5.0, "comms")]))
    assert not line.same_grid(EXPECTED, udp)


def test_an_event_near_its_threshold_may_hang_on_a_lost_reading() -> None:
    near = dict([told("m", 20.0, minus_ln_p=line.CLEAR - 1)])
    assert line.same_grid({**EXPECTED, **near}, EXPECTED)
    assert line.same_grid(EXPECTED, {**EXPECTED, **near})
    clear = dict([told("m", 20.0, minus_ln_p=line.CLEAR + 1)])
    assert not line.same_grid({**EXPECTED, **clear}, EXPECTED)
    assert not line.same_grid(EXPECTED, {**EXPECTED, **clear})


@pytest.mark.parametrize(
    ("sent", "counted"),
    [
        (Sent(100, 100, 2, 2, 0, 1), Counted(99, 99, {"duplicate": 2})),
        (Sent(100, 100, 2, 2, 0, 1), Counted(100, 100, {"duplicate": 1})),
        (Sent(100, 100, 2, 2, 0, 1), Counted(100, 100, {"duplicate": 2, "late": 1})),
        (Sent(100, 100, 2, 2, 0, 1), Counted(100, 100, {"duplicate": 2, "crc": 1})),
    ],
)
def test_a_frame_that_is_counted_wrong_breaks_a_promise(sent: Sent, counted: Counted) -> None:
    figures = compare(EXPECTED, EXPECTED, EXPECTED, EXPECTED, 40.0)
    good = Run(EXPECTED, sent, Counted(100, 100, {"duplicate": 2}), 1.0)
    assert not any(p.kept is False for p in promises(figures, good, good, 0))
    assert any(p.kept is False for p in promises(figures, good, replace(good, counted=counted), 0))


def test_an_archive_whose_events_begin_otherwise_breaks_a_promise() -> None:
    file = {**EXPECTED, **dict([told("a", 10.1)])}
    found = compare(file, EXPECTED, EXPECTED, EXPECTED, 40.0)
    run = Run(EXPECTED, Sent(100, 100, 0, 0, 0, 1), Counted(100, 100, {}), 1.0)
    assert not found.begun_equal
    assert [p.kept for p in promises(found, run, run, 0)].count(False) == 1


def test_an_archive_is_what_is_sent_of_it(tmp_path: Path) -> None:
    grid = small_grid("north", 1, 2, 1, seconds=1)
    write_parquet(tmp_path / "grid.parquet", grid)
    paths = line.as_sent(tmp_path / "grid.parquet", tmp_path)
    assert [path.name for path in paths] == ["north.c37118"]
    assert line.as_sent(paths[0], tmp_path) == paths
    (together,) = read_rounds([open_source(paths[0])])
    ((name, batch),) = together
    assert name == "north.c37118#1"
    assert np.allclose(batch.values[..., :3], grid.values, rtol=1e-6)


def test_a_source_that_comes_back_may_lose_one_frame() -> None:
    figures = compare(EXPECTED, EXPECTED, EXPECTED, EXPECTED, 40.0)
    run = Run(EXPECTED, Sent(100, 100, 0, 0, 0, 1), Counted(100, 100, {"late": 1}), 1.0)
    assert all(p.kept is not False for p in promises(figures, run, run, 1))
    assert [p.kept for p in promises(figures, run, run, 0)].count(False) == 2


def test_one_process_has_its_log_in_a_file(tmp_path: Path) -> None:
    config = load(None, ["log.url=kafka://127.0.0.1:9092", f"store.path={tmp_path / 'e.db'}"]).config
    with pytest.raises(UsageError, match="one process has its log in a file; for Kafka run gridsense gateway"):
        run_together(config, threading.Event())
