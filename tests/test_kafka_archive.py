"""The archive of a log in Kafka: each frame of each partition once, whatever stops the archiver."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from kafka.admin import NewTopic

from gridsense.commands.archive import archive
from gridsense.sources import open_source, read_rounds
from scripts.broker.cluster import Cluster
from streams.archives.folder import POSITION, partitions, share_of
from streams.kafka.clients import admin
from streams.kafka.log import KafkaLog
from streams.kafka.settings import KafkaSettings
from streams.log import CONFIGURATIONS, FRAMES, Record
from tests.reference.logged_grid import archived, configured, framed, grid, in_turns, logged

ROOT = Path(__file__).parents[1]
PARTITIONS = 3
REGIONS = ("north", "south", "west")
NAMES = ("north/east", "south/east", "west/east", "north/b", "plain")
KILLS = 6
PIECES = 10
"""Written while the archiver runs once: seconds of frames, so that it commits more than once."""

CHILD = """
import sys
from pathlib import Path
from gridsense.commands.archive import archive

archive(config=Path(sys.argv[1]), overrides=("archive.file_span=1s",))
"""


@pytest.fixture
def settings(kafka: Cluster, kafka_prefix: str) -> KafkaSettings:
    """Topics of this test alone."""
    made = KafkaSettings((kafka.servers,), prefix=kafka_prefix, regions=REGIONS)
    room = {"max.message.bytes": str(16 << 20)}
    with closing(admin(made)) as client:
        client.create_topics(
            [
                NewTopic(made.topic(FRAMES), PARTITIONS, 1, topic_configs=room),
                NewTopic(made.topic(CONFIGURATIONS), PARTITIONS, 1, topic_configs={"cleanup.policy": "compact"}),
            ]
        )
    return made


@pytest.fixture
def log(settings: KafkaSettings) -> Iterator[KafkaLog]:
    with closing(KafkaLog(settings)) as opened:
        yield opened


def told(folder: Path, settings: KafkaSettings) -> Path:
    """Write a configuration."""
    path = folder / "gridsense.toml"
    path.write_text(
        f'[log]\nurl = "kafka://{",".join(settings.servers)}"\n'
        f'[kafka]\nprefix = "{settings.prefix}"\nregions = {json.dumps(settings.regions)}\n'
        "[metrics]\narchive_port = 0\n"
    )
    return path


def sources(seconds: int) -> tuple[dict[str, np.ndarray[tuple[int], np.dtype[np.int64]]], list[Record]]:
    """By key, the times of its frames; and the records in order of time."""
    grids = {name: grid(name, 10 * n + 1, 2, seconds=seconds) for n, name in enumerate(NAMES)}
    return {name: it.time_ns for name, it in grids.items()}, in_turns(*(logged(it, 5) for it in grids.values()))


def poison() -> dict[str, list[bytes]]:
    """What is no frame, by whom it claims to be of."""
    frame = framed(configured(grid("north/east", 1, 2, seconds=1))[1])[0]
    return {
        "north/east": [frame[:-1] + bytes([frame[-1] ^ 1])],
        "north/nobody": [b"", b"garbage"],
        "south/huge": [bytes(range(256)) * 40_000],
    }


def check(folder: Path, expected: dict[str, np.ndarray[tuple[int], np.dtype[np.int64]]]) -> None:
    got = archived(folder)
    assert got.keys() == expected.keys()
    for name, times in expected.items():
        assert (got[name] == times).all(), name


def test_killed_again_and_again_while_frames_come_each_is_there_once(
    tmp_path: Path, settings: KafkaSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    expected, records = sources(21)
    bad = poison()
    folder, config = tmp_path / "archive", told(tmp_path, settings)
    rng = np.random.default_rng(6)
    allowed, pause = threading.Semaphore(0), threading.Event()

    def write() -> None:
        """Write as a gateway does, some at each start of the archiver; marks and poison between frames."""
        with closing(KafkaLog(settings)) as log:
            for n, part in enumerate(np.array_split(np.arange(len(records)), PIECES * (KILLS + 1))):
                allowed.acquire()
                log.append(FRAMES, [records[i] for i in part])
                at_ns = records[part[-1]].time_ns
                log.append(FRAMES, [Record(at_ns, f"{region}/", b"") for region in REGIONS])
                if n == PIECES * KILLS // 2:
                    log.append(FRAMES, [Record(at_ns, key, value) for key, values in bad.items() for value in values])
                pause.wait(0.15)

    writer = threading.Thread(target=write)
    writer.start()
    for _ in range(KILLS):
        allowed.release(PIECES)
        with subprocess.Popen([sys.executable, "-c", CHILD, str(config)], cwd=ROOT) as child:
            before = positions(folder)
            until(lambda: positions(folder) != before)  # noqa: B023 called at once
            pause.wait(rng.uniform(0.0, 0.5))
            assert child.poll() is None
            child.send_signal(signal.SIGKILL)
        if any(json.loads(text)["next"] for text in positions(folder)):
            for times in archived(folder).values():
                assert len(np.unique(times)) == len(times)
    allowed.release(PIECES)
    writer.join()
    archive(config=config, once=True)
    assert "of the log's 3 partitions" in capsys.readouterr().out
    check(folder, expected)
    kept = sorted(
        (path.name.rsplit("-", 2)[0].replace("%2F", "/"), path.read_bytes()) for path in folder.rglob("undecoded/*")
    )
    assert kept == sorted((key, b"".join(values)) for key, values in bad.items())
    for n in range(PARTITIONS):
        with closing(KafkaLog(settings, n)) as log:
            position = json.loads((share_of(folder, n) / POSITION).read_bytes())["next"]
            assert log.position(FRAMES, "archive") == position == log.extent(FRAMES).next
        assert partitions(share_of(folder, n))


def positions(folder: Path) -> list[bytes]:
    """What the position files say."""
    return [path.read_bytes() for path in sorted(folder.rglob(POSITION))]


def until(met: Callable[[], bool]) -> None:
    """Wait for a condition."""
    waiting = threading.Event()
    for _ in range(1200):
        if met():
            return
        waiting.wait(0.05)
    raise AssertionError("it did not come about in a minute")


def test_the_position_in_the_folder_is_the_truth(tmp_path: Path, settings: KafkaSettings, log: KafkaLog) -> None:
    """What the group's offset says is for those who watch: it may lie."""
    expected, records = sources(2)
    config = told(tmp_path, settings)
    log.append(FRAMES, records[:7])
    archive(config=config, once=True)
    for n in range(PARTITIONS):
        with closing(KafkaLog(settings, n)) as one:
            one.commit(FRAMES, "archive", 0 if n else one.extent(FRAMES).next)
    log.append(FRAMES, records[7:])
    archive(config=config, once=True)
    check(tmp_path / "archive", expected)


def test_the_backtest_reads_the_folder(tmp_path: Path, settings: KafkaSettings, log: KafkaLog) -> None:
    """All sources side by side in event time, under their own names."""
    expected, records = sources(4)
    log.append(FRAMES, records)
    archive(config=told(tmp_path, settings), once=True)
    seen: dict[str, list[int]] = {}
    for together in read_rounds([open_source(tmp_path / "archive")]):
        for name, batch in together:
            seen.setdefault(name.rpartition("#")[0], []).extend(batch.time_ns.tolist())
    assert seen == {name: it.tolist() for name, it in expected.items()}
