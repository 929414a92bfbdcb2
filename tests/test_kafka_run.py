"""The processor on a real broker: however partitions move and whatever dies, it says what an embedded run says."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pytest
from kafka import OffsetAndMetadata, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.errors import CoordinatorNotAvailableError

from gridsense import stage
from gridsense.config import Config, load
from gridsense.log_opening import kafka_settings, topic_specs
from gridsense.pipeline import Output
from gridsense.predictions import predictions
from gridsense.processor import Processor, Step
from gridsense.processor import Settings as ProcessorSettings
from gridsense.services.grouped import process_group
from gridsense.sources import cut
from gridsense.stage import Stage
from gridsense.store import EventStore
from scripts.broker.cluster import Cluster
from scripts.faults.line import free_port, page
from streams.errors import FencedError
from streams.kafka import member as members
from streams.kafka import topics
from streams.kafka.clients import admin, consumer
from streams.kafka.log import KafkaLog
from streams.log import (
    CONFIGURATIONS,
    DEAD_LETTERS,
    EVENTS,
    FRAMES,
    PREDICTIONS,
    REGIONAL,
    SCORES,
    STATE,
    STATUS,
    Entry,
    Record,
    is_mark,
    region_of,
)
from streams.sqlite_log import open_log
from tests.reference.recorded import recorded
from tests.reference.small_grid import small_grid

REGIONS = ("north", "south", "east", "west")
PARTITIONS = len(REGIONS)
SECONDS, DIPS_S = 40, (20.0, 28.0)
SETTINGS = (
    "name=small",
    "detection.learn=12s",
    "align.lateness=1s",
    'scoring.scorers=["quadratic"]',
)
PATIENCE_S = 90.0
GROUPS = {"gridsense": (FRAMES, PARTITIONS), "gridsense-join": (REGIONAL, 1)}


# ---------------------------------------------------------------- what is to be found


@cache
def frames() -> tuple[Record, ...]:
    """Four regions that see two faults; one falls silent for a while, one joins late, one sends a damaged frame."""
    records: list[Record] = []
    for n, name in enumerate(REGIONS):
        batch = small_grid(name, 10 * n + 1, 3, n + 1, seconds=SECONDS, onset_s=1e9)
        passed_s = (batch.time_ns - batch.time_ns[0]) / 1e9
        values = batch.values.copy()
        for dip_s in DIPS_S:
            values[(passed_s >= dip_s) & (passed_s < dip_s + 0.1), :, 0] *= 0.6 + 0.05 * n
        heard = {
            "south": (passed_s < 12) | (passed_s >= 15),
            "west": passed_s >= 3,
        }.get(name, passed_s >= 0)
        made = [r._replace(key=f"{name}/{r.key}") for r in recorded([cut(replace(batch, values=values), heard)])]
        if name == "east":
            value = made[100].value
            made[100] = made[100]._replace(value=value[:-1] + bytes([value[-1] ^ 1]))
        records += made
    return tuple(sorted(records, key=lambda record: record.time_ns))


def until_s(passed_s: float, since_s: float = 0.0) -> list[Record]:
    """The records of a time."""
    first_ns = frames()[0].time_ns
    return [r for r in frames() if round(since_s * 1e9) <= r.time_ns - first_ns < round(passed_s * 1e9)]


def configurations() -> list[Record]:
    return [record for record in frames() if record.value[1] > 0x0F]


class Said(NamedTuple):
    """What came of it."""

    events: Counter[tuple[str, bool, str]]
    dead: list[tuple[str, str, bytes]]
    scores: dict[tuple[str, str, int], bytes]


def by_stage(texts: Sequence[str]) -> Counter[tuple[str, bool, str]]:
    """Events by id and stage; each whole."""
    found = [(text, json.loads(text)) for text in texts]
    return Counter((event["id"], event["data"]["end"] is not None, text) for text, event in found)


class Kept:
    """Remembers steps."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def stepped(self, step: Step) -> None:
        self.steps.append(step)

    def saved(self, took_s: float, size: int, state_bytes: int) -> None: ...

    def save_failed(self) -> None: ...

    def began(self, how: str) -> None: ...


def spoken(steps: Sequence[tuple[str, Output]]) -> dict[tuple[str, str, int], bytes]:
    """By region, track and time: the bits of what is said of each PMU."""
    return {
        (region, track.name, time_ns): score.astype(np.float32).tobytes()
        for region, output in steps
        for track in output.scored.ticks.tracks
        for time_ns, score in zip(output.scored.ticks.time_ns.tolist(), track.score, strict=True)
    }


def embedded(folder: Path, config: Config, records: Sequence[Record]) -> tuple[Said, list[Step]]:
    """Let the embedded processor read the same, without any interruption."""
    log, kept = open_log(folder / "log.db"), Kept()
    log.append(FRAMES, records)
    processor = Processor(ProcessorSettings(config.pipeline_settings()), log, folder / "events.db", [kept])
    processor.open()
    while processor.step():
        pass
    processor.close()
    letters = log.read(DEAD_LETTERS, 0).entries
    log.close()
    with EventStore(folder / "events.db") as store:
        texts = [text for _, text in store.changes()]
    outputs = [(step.region, output) for step in kept.steps for output in step.outputs]
    return Said(by_stage(texts), put_aside(letters), spoken(outputs)), kept.steps


def put_aside(letters: Sequence[Entry]) -> list[tuple[str, str, bytes]]:
    return sorted((letter.key, letter.note, letter.value) for letter in letters)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Said:
    """What one embedded run says of all frames."""
    said, _ = embedded(tmp_path_factory.mktemp("straight"), configured(), frames())
    causes = Counter(json.loads(text)["data"]["cause"] for _, _, text in said.events)
    assert causes == {"grid": 4, "comms": 2}
    assert sum("seen in 4 regions: east, north, south, west" in text for _, _, text in said.events) == 2
    assert [note.partition(":")[0] for _, note, _ in said.dead] == ["crc"]
    assert len({region for region, _, _ in said.scores}) == PARTITIONS
    return said


# ---------------------------------------------------------------- what runs


def configured(*overrides: str) -> Config:
    return load(None, [*SETTINGS, *overrides], {}).config


class Line:
    """Topics of one test, what is written there, and who works on it."""

    def __init__(self, kafka: Cluster, prefix: str, *overrides: str) -> None:
        self.overrides = (
            f"log.url=kafka://{kafka.servers}",
            f"kafka.prefix={prefix}",
            f"kafka.regions={json.dumps(REGIONS)}",
            f"kafka.partitions={PARTITIONS}",
            "kafka.replication=1",
            "kafka.session=6s",
            "kafka.idle=1h",
            "kafka.join_patience=1h",
            "metrics.processor_port=0",
            *overrides,
        )
        self.config = configured(*self.overrides)
        self.settings = kafka_settings(self.config)
        topics.create(self.settings, topic_specs(self.config))
        self.append(configurations(), CONFIGURATIONS)

    def append(self, records: Sequence[Record], topic: str = FRAMES) -> None:
        with closing(KafkaLog(self.settings)) as log:
            log.append(topic, records)

    def entries(self, topic: str, partition: int = 0) -> list[Entry]:
        """All that is committed of a partition, and not expired."""
        found = list[Entry]()
        with closing(KafkaLog(self.settings, partition)) as log:
            at, end = 0, log.extent(topic).next
            while at < end:
                reading = log.read(topic, at)
                found += reading.entries
                at = reading.next
        return found

    def all_entries(self, topic: str) -> list[Entry]:
        return [entry for n in range(PARTITIONS) for entry in self.entries(topic, n)]

    def said(self) -> Said:
        scores = dict[tuple[str, str, int], bytes]()
        for entry in self.all_entries(SCORES):
            table = pa.ipc.open_stream(entry.value).read_all()
            told = table.schema.metadata
            assert told[b"region"].decode() == entry.key
            assert json.loads(told[b"pmus"]) == [f"{entry.key}{n}" for n in range(3)]
            for name in (name for name in table.column_names if name != "time" and not name.startswith("grid ")):
                rows = table[name].combine_chunks()
                values = rows.values.to_numpy(zero_copy_only=False).reshape(len(rows), -1)
                for time_ns, row in zip(table["time"].cast(pa.int64()).to_pylist(), values, strict=True):
                    key = (entry.key, name, time_ns)
                    assert key not in scores, "said twice"
                    scores[key] = row.tobytes()
        told = self.entries(EVENTS)
        assert [entry.key for entry in told] == [json.loads(entry.value)["id"] for entry in told]
        letters = put_aside(self.all_entries(DEAD_LETTERS))
        return Said(by_stage([entry.value.decode() for entry in told]), letters, scores)

    def places(self, group: str) -> dict[int, OffsetAndMetadata | None]:
        topic, partitions = GROUPS[group]
        with closing(consumer(self.settings, group=group)) as client:
            return {
                n: client.committed(TopicPartition(self.settings.topic(topic), n), metadata=True)
                for n in range(partitions)
            }

    def settle(self, *processors: Processing, expired: Mapping[int, int] | None = None) -> None:
        """Wait until everything that is there, or was, has been read and joined, and that is committed."""
        with closing(KafkaLog(self.settings)) as log:
            for group, (topic, _) in GROUPS.items():
                ends = (expired if topic == FRAMES else None) or log.ends(topic)
                until(partial(reached, log, topic, group, ends), *processors)

    def ends(self, topic: str) -> dict[int, int]:
        with closing(KafkaLog(self.settings)) as log:
            return log.ends(topic)

    def expire(self, topic: str, before: Mapping[int, int]) -> None:
        """Remove entries as retention would."""
        with closing(admin(self.settings)) as client:
            client.delete_records({TopicPartition(self.settings.topic(topic), n): to for n, to in before.items()})

    def limit(self, topic: str, size: int) -> None:
        """Have a topic take no larger records."""
        with closing(admin(self.settings)) as client:
            resource = ConfigResource(
                ConfigResourceType.TOPIC, self.settings.topic(topic), {"max.message.bytes": str(size)}
            )
            client.alter_configs([resource])

    def owners(self, group: str = "gridsense") -> list[set[int]]:
        """Which partitions the members of the group have, once that is settled; else nothing."""
        told = {"group_state": "unknown"}
        with closing(admin(self.settings)) as client, suppress(CoordinatorNotAvailableError):
            (told,) = client.describe_groups([self.settings.prefix + group]).values()
        if told["group_state"] != "Stable":
            return []
        return [
            {
                n
                for topic in (one["member_assignment"] or {}).get("assigned_partitions", ())
                for n in topic["partitions"]
            }
            for one in told["members"]
        ]


def reached(log: KafkaLog, topic: str, group: str, ends: Mapping[int, int]) -> bool:
    places = log.positions(topic, group)
    return all(places.get(n, 0) >= end for n, end in ends.items())


class Processing(threading.Thread):
    """A processor; also one that dies: it saves nothing and says nothing any more."""

    def __init__(self, line: Line, *overrides: str, once: bool = False) -> None:
        super().__init__(daemon=True)
        self.once = once
        self.config = configured(*line.overrides, *overrides)
        self.steps: list[Step] = []
        self.error: Exception | None = None
        self.stop = threading.Event()
        self.start()

    def run(self) -> None:
        try:
            process_group(self.config, self.stop, once=self.once, watch=[self.steps.append])
        except Exception as error:  # noqa: BLE001 - looked at by who waits
            self.error = error

    def end(self) -> None:
        self.stop.set()
        self.join(PATIENCE_S)
        assert not self.is_alive()
        if self.error is not None:
            raise self.error


@contextmanager
def processing(line: Line, *overrides: str, once: bool = False) -> Iterator[Processing]:
    one = Processing(line, *overrides, once=once)
    try:
        yield one
    finally:
        one.end()


@pytest.fixture
def dying(monkeypatch: pytest.MonkeyPatch) -> Callable[[Processing], None]:
    """End a processor as if it were killed, but for its place in the group."""

    def die(one: Processing) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(Stage, "_hand_over", lambda *_: None)
            patch.setattr(Stage, "close", abandoned)
            one.end()

    return die


def abandoned(stage: Stage[object]) -> None:
    stage._leave()
    if stage._saver is not None:
        stage._saver.submit(stage._states.close).result()
        stage._saver.shutdown()
        stage._saver = None


def until(condition: Callable[[], object], *processors: Processing) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        for one in processors:
            if one.error is not None:
                raise one.error
        assert time.monotonic() < deadline_s
        time.sleep(0.1)


class Beginning(NamedTuple):
    """How a partition was begun, where, and before which place nothing was said."""

    partition: int
    how: str
    place: int
    told: int


@pytest.fixture
def beginnings(caplog: pytest.LogCaptureFixture) -> Callable[[], list[Beginning]]:
    """How partitions were begun since this was last asked; without those of the joining stage."""
    caplog.set_level(logging.INFO, "gridsense.stage")

    def asked() -> list[Beginning]:
        found = [
            Beginning(*record.args)  # type: ignore[misc]
            for record in caplog.records
            if record.msg == "partition %d: %s, at %d of %d" and "join" not in str(record.threadName)
        ]
        caplog.clear()
        return sorted(found)

    return asked


@pytest.fixture
def line(kafka: Cluster, kafka_prefix: str) -> Line:
    return Line(kafka, kafka_prefix)


def hows(found: Sequence[Beginning]) -> list[str]:
    return [one.how for one in found]


# ---------------------------------------------------------------- one, three, and moves


def test_four_partitions_on_one_processor(line: Line, straight: Said, tmp_path: Path) -> None:
    """As an embedded run over what stands in the topic; what is no word of a region is put aside."""
    line.append(frames())
    line.append([Record(time.time_ns(), "north", b"\xffno words")], REGIONAL)
    with processing(line) as one:
        line.settle(one)
    merged = sorted((entry for entry in line.all_entries(FRAMES)), key=lambda entry: entry.time_ns)
    said, _ = embedded(tmp_path, line.config, [Record(*entry[1:]) for entry in merged])
    assert said == straight
    found = line.said()
    assert found.events == said.events
    assert found.scores == said.scores
    (crc,) = said.dead
    (same, words) = found.dead
    assert same == crc
    assert (words[0], words[2]) == ("north", b"\xffno words")
    assert words[1].startswith("words: ")
    assert {step.region for step in one.steps} >= {*REGIONS, "/join"}


def test_four_partitions_on_three_processors(line: Line, straight: Said) -> None:
    with processing(line) as one, processing(line) as two, processing(line) as three:
        until(lambda: sorted(map(len, line.owners())) == [1, 1, 2], one, two, three)
        for n in range(4):
            line.append(until_s(10 * n + 10, 10 * n))
        line.settle(one, two, three)
        shares = [{step.region for step in it.steps if step.outputs} for it in (one, two, three)]
    assert sorted(map(len, shares)) == [1, 1, 2]
    assert set.union(*shares) == set(REGIONS)
    assert line.said() == straight


def test_partitions_move_to_a_second_processor_and_back(
    line: Line, straight: Said, beginnings: Callable[[], list[Beginning]]
) -> None:
    with processing(line) as one:
        line.append(until_s(14))
        line.settle(one)
        assert hows(beginnings()) == ["fresh"] * 4
        with processing(line) as two:
            until(lambda: sorted(map(len, line.owners())) == [2, 2], one, two)
            line.append(until_s(24, 14))
            line.settle(one, two)
            assert len({step.region for step in two.steps if step.outputs}) == 2
            moved = beginnings()
        line.append(until_s(SECONDS, 24))
        line.settle(one)
        back = beginnings()
    for found in (moved, back):
        assert hows(found) == ["restored"] * 2
        assert all(it.place == it.told > 0 for it in found)  # nothing is read again
    assert line.said() == straight


# ---------------------------------------------------------------- stops and deaths


def test_after_stops_and_deaths_nothing_is_said_twice_or_lost(
    line: Line,
    straight: Said,
    beginnings: Callable[[], list[Beginning]],
    dying: Callable[[Processing], None],
) -> None:
    one = Processing(line)
    line.append(until_s(8))
    line.settle(one)
    dying(one)
    assert hows(beginnings()) == ["fresh"] * 4
    line.append(until_s(14, 8))
    with processing(line) as one:
        line.settle(one)
    found = beginnings()
    assert hows(found) == ["fresh"] * 4  # nothing was ever saved: from the beginning, in silence
    assert all(it.place == 0 < it.told for it in found)
    one = Processing(line, "store.snapshot_every=1s")
    line.append(until_s(22, 14))
    line.settle(one)
    assert all(it.place == it.told > 0 and it.how == "restored" for it in beginnings())
    until(lambda: all(saved(line)[n] > found[n].told for n in range(PARTITIONS)), one)
    line.append(until_s(29, 22))
    line.settle(one)
    dying(one)
    line.append(until_s(SECONDS, 29))
    with processing(line) as one:
        line.settle(one)
    assert all(0 < it.place <= it.told and it.how == "restored" for it in beginnings())
    assert line.said() == straight
    statuses = {entry.key: json.loads(entry.value) for entry in line.entries(STATUS)}
    assert set(statuses) == {f"processor#{name}" for name in (*REGIONS, "/join")}
    assert all(it["stopped"] and it["began"] == "restored" for it in statuses.values())


def saved(line: Line) -> dict[int, int]:
    """Places of the snapshots that are committed."""
    return {n: json.loads(it.metadata.partition(" ")[2])[0] if it else -1 for n, it in line.places("gridsense").items()}


def test_two_of_one_name_one_ends_and_says_why(line: Line, straight: Said) -> None:
    one = Processing(line, "kafka.instance=a")
    line.append(until_s(14))
    line.settle(one)
    with processing(line, "kafka.instance=a") as two:
        one.join(PATIENCE_S)
        assert isinstance(one.error, FencedError)
        assert "give each a kafka.instance of its own" in str(one.error)
        line.append(until_s(SECONDS, 14))
        line.settle(two)
    assert line.said() == straight


# ---------------------------------------------------------------- what is gone


def without(since_s: float, until: float) -> list[Record]:
    return [*until_s(since_s), *until_s(SECONDS, until)]


def gaps(said: Said) -> tuple[Said, list[str]]:
    """What was said but for entries that were lost, and the sentences on those."""
    lost = {key: n for key, n in said.events.items() if json.loads(key[2])["data"]["kind"] == "log_gap"}
    assert set(lost.values()) <= {1}
    return said._replace(events=said.events - Counter(lost)), sorted(json.loads(k[2])["data"]["sentence"] for k in lost)


def sentences(reason: str, first: Mapping[int, int], end: Mapping[int, int]) -> list[str]:
    return sorted(
        f"up to {end[n] - first[n]:,} entries of the log could not be read ({reason}): "
        f"offsets {first[n]} to {end[n] - 1}; what happened meanwhile was not seen"
        for n in range(PARTITIONS)
    )


def test_far_behind_it_skips_to_what_comes_now(
    line: Line,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    beginnings: Callable[[], list[Beginning]],
    dying: Callable[[Processing], None],
) -> None:
    with processing(line) as one:
        line.append(until_s(14))
        line.settle(one)
    first = line.ends(FRAMES)
    for passed_s in range(14, 22):  # in batches: one is read at once
        line.append(until_s(passed_s + 1, passed_s))
    end = line.ends(FRAMES)
    time.sleep(1.0)
    beginnings()
    with monkeypatch.context() as patch:
        patch.setattr(members, "FETCH_BYTES", 1 << 10)
        patch.setattr(stage, "GATHERED_BYTES", 1)
        one = Processing(line, "kafka.max_lag=1s")
        line.settle(one)
        dying(one)
    assert hows(beginnings()) == ["restored"] * 4
    line.append(until_s(SECONDS, 22))
    with processing(line) as one:
        line.settle(one)
    assert [(it.how, it.place) for it in beginnings()] == [("restored", end[n]) for n in range(PARTITIONS)]
    found, said = gaps(line.said())
    assert said == sentences("skipped", first, end)
    assert found == embedded(tmp_path, line.config, without(14, 22))[0]


def test_what_retention_took_is_an_event(
    line: Line, tmp_path: Path, beginnings: Callable[[], list[Beginning]], dying: Callable[[Processing], None]
) -> None:
    with processing(line) as one:
        line.append(until_s(14))
        line.settle(one)
    first = line.ends(FRAMES)
    line.append(until_s(16, 14))
    end = line.ends(FRAMES)
    line.expire(FRAMES, end)
    line.append(until_s(SECONDS, 16))
    one = Processing(line)
    line.settle(one)
    dying(one)
    found, said = gaps(line.said())
    assert said == sentences("expired", first, end)
    assert found == embedded(tmp_path, line.config, without(14, 16))[0]
    # What was to be read again is gone, and more.
    told = line.ends(FRAMES)
    line.append(until_s(SECONDS, 39))
    gone = line.ends(FRAMES)
    line.expire(FRAMES, gone)
    beginnings()
    with processing(line) as one:
        line.settle(one, expired=gone)
    assert [(it.how, it.place, it.told) for it in beginnings()] == [
        ("restored", first[n], told[n]) for n in range(PARTITIONS)
    ]
    _, said = gaps(line.said())
    assert said == sorted([*sentences("expired", first, end), *sentences("expired", told, gone)])


def test_what_cannot_be_restored_is_refused_and_it_goes_on(
    line: Line, tmp_path: Path, beginnings: Callable[[], list[Beginning]]
) -> None:
    with processing(line) as one:
        line.append(until_s(6))
        line.settle(one)
    ends = line.ends(FRAMES)
    beginnings()
    # A piece that is gone, one that is another, a note that nobody understands; and one that is as it was.
    pointers = {n: json.loads(it.metadata.partition(" ")[2]) for n, it in line.places("gridsense").items() if it}
    ours = line.entries(STATE, 1)[0].offset
    notes = {0: f"x [{ends[0]},[1000000]]", 1: f"x [{ends[1]},[{ours}]]", 2: "x garbage"}
    assert pointers[1] != [ends[1], [ours]]
    with closing(consumer(line.settings, group="gridsense")) as client:
        client.commit(
            {
                TopicPartition(line.settings.topic(FRAMES), n): OffsetAndMetadata(ends[n], note, -1)
                for n, note in notes.items()
            }
        )
    with processing(line) as one:
        line.append(until_s(8, 6))
        line.settle(one)
    found = beginnings()
    assert hows(found) == ["refused", "refused", "fresh", "restored"]
    assert all(it.place == it.told == ends[it.partition] for it in found)
    with processing(line, "detection.learn=9s") as one:
        line.append(until_s(SECONDS, 8))
        line.settle(one)
        assert {step.region for step in one.steps if step.outputs} == set(REGIONS)
    assert hows(beginnings()) == ["refused"] * 4
    # As who begins there.
    wanted, _ = embedded(tmp_path, one.config, [*configurations(), *until_s(SECONDS, 8)])
    assert line.said().events == wanted.events
    assert len(wanted.events) == 6


# ---------------------------------------------------------------- silence, and trouble


def marks(line: Line) -> list[Entry]:
    return [entry for entry in line.all_entries(FRAMES) if is_mark(entry.key, entry.value)]


def test_where_nothing_comes_it_marks_the_time_but_not_while_kafka_is_away(
    kafka_can_run: None,  # noqa: ARG001 a gate
    tmp_path: Path,
) -> None:
    with Cluster(tmp_path) as cluster:
        line = Line(cluster, "", "kafka.idle=1s", "kafka.session=20s")
        line.append(until_s(6))
        with processing(line) as one:
            until(lambda: {region_of(mark.key) for mark in marks(line)} == set(REGIONS), one)
            cluster.suspend(0)
            away_ns = time.time_ns()
            time.sleep(5.0)
            back_ns = time.time_ns()
            cluster.resume(0)
            until(lambda: {region_of(mark.key) for mark in marks(line) if mark.time_ns > back_ns} == set(REGIONS), one)
        seen = [mark.time_ns for mark in marks(line)]
    # Kafka may have answered just before it went.
    assert not [it for it in seen if away_ns + 2e9 < it < back_ns]
    assert {step.region for step in one.steps if step.outputs} == set(REGIONS)


def test_a_region_that_falls_silent_is_marked_while_others_go_on(line: Line) -> None:
    """And who is to read once stops, though marks never end."""
    flowing = [record for record in frames() if record.key.startswith("north/")]
    line.append(until_s(6))
    with processing(line, "kafka.idle=1s") as one, closing(KafkaLog(line.settings)) as log:
        line.settle(one)
        more = iter(flowing)
        until(lambda: log.append(FRAMES, [next(more)]) and silent(line) >= 1, one)
        before = silent(line)
        until(lambda: log.append(FRAMES, [next(more)]) and silent(line) >= before + 2, one)
        with processing(line, "kafka.idle=1s", once=True) as two:
            until(lambda: not two.is_alive() or not log.append(FRAMES, [next(more)]), one)


def silent(line: Line) -> int:
    return sum(region_of(mark.key) == "south" for mark in marks(line))


def test_a_transaction_that_fails_is_tried_again_and_its_trouble_shown(line: Line, straight: Said) -> None:
    port = free_port()
    with processing(line, f"metrics.processor_port={port}") as one:
        line.append(until_s(14))
        line.settle(one)
        until(lambda: not page(port, "readyz"), one)
        before = line.said()
        line.limit(SCORES, 100)
        line.append(until_s(SECONDS, 14))
        until(lambda: "transaction of" in page(port, "readyz"), one)
        assert line.said() == before
        line.limit(SCORES, 1 << 20)
        line.settle(one)
        until(lambda: not page(port, "readyz"), one)
        shown = page(port, "metrics")
    assert line.said() == straight
    series = {text.partition(" ")[0]: float(text.rpartition(" ")[2]) for text in shown.splitlines() if text[:1] != "#"}
    for stage_name in ("regions", "join"):
        assert series[f'gridsense_kafka_transactions_total{{stage="{stage_name}"}}'] > 0
        assert series[f'gridsense_kafka_rebalances_total{{stage="{stage_name}"}}'] > 0
    assert series['gridsense_kafka_transactions_aborted_total{stage="regions"}'] > 0
    assert series['gridsense_kafka_partitions{stage="regions"}'] == PARTITIONS
    assert {name: value for name, value in series.items() if name.startswith("gridsense_kafka_lag_entries")}


def test_predictions_are_those_of_an_embedded_run(line: Line, tmp_path: Path) -> None:
    wanted = ('scoring.scorers=["quadratic","sequence"]', "kafka.predictions=true")
    records = until_s(6)
    line.append(records)
    with processing(line, *wanted, once=True) as one:
        until(lambda: not one.is_alive(), one)
    config = configured(*line.overrides, *wanted)
    model = config.model()
    assert model is not None
    _, steps = embedded(tmp_path, config, records)
    expected = {
        (step.region, *row.values())
        for step in steps
        for output in step.outputs
        for table in predictions(output, model.spec)
        for row in table.to_pylist()
    }
    found = [
        (entry.key, *row.values())
        for entry in line.all_entries(PREDICTIONS)
        for row in pa.ipc.open_stream(entry.value).read_all().to_pylist()
    ]
    assert len(found) == len(set(found)) > 1000
    assert set(found) == expected
