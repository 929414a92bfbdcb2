"""The processor: what it finds in a log is what `detect` finds in files, once, however it is interrupted."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gridsense import detect as detecting
from gridsense import sources
from gridsense.errors import StoreError
from gridsense.intake import Intake, Turn
from gridsense.pipeline import Pipeline
from gridsense.pipeline import Settings as PipelineSettings
from gridsense.processor import Processor, Settings, Step
from gridsense.sequence import load_model
from gridsense.sources import open_source
from gridsense.store import EventStore
from streams.align import AlignSettings
from streams.log import CONFIGURATIONS, DEAD_LETTERS, FRAMES, Entry, Reading, Record, Retention
from streams.sqlite_log import open_log
from tests.reference.recorded import recorded
from tests.reference.small_grid import small_grid

PIPELINE = PipelineSettings(source="small", learn_s=25.0, align=AlignSettings(lateness_s=1.0))
SETTINGS = Settings(PIPELINE, snapshot_s=0.0, idle_s=0.0)
BOTH = replace(SETTINGS, pipeline=replace(PIPELINE, scorers=("quadratic", "sequence"), model=load_model()))


@cache
def records() -> tuple[Record, ...]:
    return tuple(recorded([small_grid("north", 1, 4, 1), small_grid("south", 5, 3, 2)]))


@cache
def expected(folder: Path, pipeline: PipelineSettings = PIPELINE) -> list[str]:
    paths = [folder / "north.bin", folder / "south.bin"]
    for path in paths:
        path.write_bytes(b"".join(record.value for record in records() if record.key == path.stem))
    with EventStore(":memory:") as store:
        detecting.detect(
            pipeline, [open_source(path) for path in paths], None, [detecting.Memory(store)], lambda _: None
        )
        return store.cloudevents()


class Told:
    """Remembers what the processor said."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.how = ""
        self.snapshots = 0
        self.failed = 0

    def stepped(self, step: Step) -> None:
        self.steps.append(step)

    def saved(self, took_s: float, size: int, state_bytes: int) -> None:
        assert took_s >= 0
        assert size > 0
        assert state_bytes >= size
        self.snapshots += 1

    def save_failed(self) -> None:
        self.failed += 1

    def began(self, how: str) -> None:
        self.how = how


class Sips:
    """A log of which a read gives little: as one that is written while it is read."""

    def __init__(self, path: Path, sip: int) -> None:
        self._log, self._sip = open_log(path), sip
        self.append, self.latest, self.extent = self._log.append, self._log.latest, self._log.extent
        self.commit, self.position, self.retain = self._log.commit, self._log.position, self._log.retain
        self.close = self._log.close

    def read(self, topic: str, offset: int, limit: int = 0) -> Reading:
        return self._log.read(topic, offset, limit or self._sip)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a log that holds everything."""
    folder = tmp_path_factory.mktemp("log")
    log = open_log(folder / "log.db")
    log.append(FRAMES, records())
    log.close()
    return folder


def drain(
    folder: Path, store: Path, sip: int, steps: int | None = None, *, close: bool = True, told_by: Settings = SETTINGS
) -> Told:
    """Let a new processor read so many times, or to the end; it is left in the middle unless it shall close."""
    log, told = Sips(folder / "log.db", sip), Told()
    processor = Processor(told_by, log, store, [told])
    processor.open()
    try:
        while steps is None or len(told.steps) < steps:
            if not processor.step():
                break
        if close:
            processor.finish()
    finally:
        if close:
            processor.close()
        else:  # as if it were killed: nothing is said or saved any more
            processor._saver.submit(processor._snapshots.close).result()
            processor._saver.shutdown()
            assert processor._store is not None
            processor._store.close()
        log.close()
    return told


def drained(processor: Processor) -> None:
    while processor.step():
        pass


def found(store: Path) -> list[str]:
    with EventStore(store) as events:
        return events.cloudevents()


def ended(store: Path) -> list[str]:
    with EventStore(store) as events:
        return [text for _, text in events.changes()]


def test_the_events_are_those_of_detect_on_the_file(written: Path, tmp_path: Path) -> None:
    told = drain(written, tmp_path / "events.db", 1 << 20)
    assert found(tmp_path / "events.db") == expected(written)
    assert len(expected(written)) == 1
    assert told.how == "fresh"
    assert told.snapshots >= 1


@pytest.mark.slow
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stops=st.lists(st.integers(1, 25), min_size=1, max_size=4), sip=st.integers(6_000, 60_000))
def test_interruptions_and_cuts_change_nothing(
    written: Path, tmp_path_factory: pytest.TempPathFactory, stops: list[int], sip: int
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    for stop in stops:
        drain(written, folder / "events.db", sip, stop, close=False)
    drain(written, folder / "events.db", sip)
    drain(written, folder / "straight.db", 1 << 22)
    assert found(folder / "events.db") == expected(written)
    assert ended(folder / "events.db") == ended(folder / "straight.db")


def scores(runs: Iterable[Told]) -> dict[str, dict[int, bytes]]:
    """By track and time, the bits of what it said of each PMU; what is said again is said alike."""
    out: dict[str, dict[int, bytes]] = {}
    for output in (o for told in runs for step in told.steps for o in step.outputs):
        for track in output.scored.ticks.tracks:
            words = out.setdefault(track.name, {})
            for time_ns, score in zip(output.scored.ticks.time_ns.tolist(), track.score, strict=True):
                assert words.setdefault(time_ns, score.tobytes()) == score.tobytes()
    return out


def test_both_scorers_go_on_from_a_snapshot_as_if_nothing_had_been(written: Path, tmp_path: Path) -> None:
    straight, cut = tmp_path / "straight.db", tmp_path / "cut.db"
    whole = drain(written, straight, 1 << 22, told_by=BOTH)
    # Left in the middle of learning, after it, and within the disturbance; killed or stopped in good order.
    parts = [drain(written, cut, 40_000, steps, close=kind, told_by=BOTH) for steps, kind in ((2, True), (6, False))]
    parts.append(drain(written, cut, 40_000, told_by=BOTH))
    assert [told.how for told in parts] == ["fresh", "restored", "restored"]
    assert found(cut) == found(straight) == expected(written, BOTH.pipeline)
    said = scores([whole])
    assert set(said) == {"fast", "10s", "60s", "sequence", "sequence_1s"}
    assert scores(parts) == said
    assert any(not np.isnan(np.frombuffer(words)).any() for words in said["sequence"].values())


@pytest.mark.parametrize("change", ["model", "scorers"])
def test_a_snapshot_of_another_model_or_other_scorers_is_refused(written: Path, tmp_path: Path, change: str) -> None:
    store, now = tmp_path / "events.db", BOTH.pipeline
    drain(written, store, 20_000, 3, told_by=BOTH)
    assert now.model is not None
    other = replace(now, model=replace(now.model, identity="another")) if change == "model" else PIPELINE
    told = drain(written, store, 20_000, 1, told_by=replace(BOTH, pipeline=other))
    assert told.how == "refused"


def test_what_was_learned_is_kept_over_a_restart(written: Path, tmp_path: Path) -> None:
    store = tmp_path / "events.db"
    half = drain(written, store, 20_000, 9)
    assert half.steps[-1].outputs
    again = drain(written, store, 20_000, 2)
    assert again.how == "restored"
    missing = [layer.missing_s for step in again.steps for o in step.outputs for layer in o.scored.layers[:1]]
    learnt = [m.max() for m in missing if m.size]
    assert learnt
    assert learnt[0] < 25  # it did not begin anew


def test_other_settings_learn_anew_but_go_on_from_the_place(written: Path, tmp_path: Path) -> None:
    store = tmp_path / "events.db"
    drain(written, store, 20_000, 5)
    log, told = open_log(written / "log.db"), Told()
    processor = Processor(replace(SETTINGS, pipeline=replace(PIPELINE, learn_s=30.0)), log, store, [told])
    processor.open()
    place = processor.place
    processor.close()
    log.close()
    assert told.how == "refused"
    assert place > 0


def test_events_that_cannot_be_stored_wait_until_they_can(written: Path, tmp_path: Path) -> None:
    log, store = open_log(written / "log.db"), tmp_path / "events.db"
    processor = Processor(replace(SETTINGS, snapshot_s=1e9), log, store)
    processor.open()
    assert processor._store is not None
    connection = processor._store._connection
    connection.execute("CREATE TRIGGER full BEFORE INSERT ON event BEGIN SELECT RAISE(FAIL, 'no room'); END")
    with pytest.raises(StoreError, match="no room"):
        drained(processor)
    place = processor.place
    with pytest.raises(StoreError, match="no room"):
        processor.step()
    assert processor.place == place  # it does not read on
    connection.execute("DROP TRIGGER full")
    drained(processor)
    processor.finish()
    processor.close()
    log.close()
    assert found(store) == expected(written)


def test_lost_entries_are_an_event_of_the_data(tmp_path: Path) -> None:
    log = open_log(tmp_path / "log.db")
    log.append(FRAMES, records()[:400])
    log.retain(FRAMES, Retention(size=sum(len(r.value) for r in records()[200:400])))
    told = Told()
    processor = Processor(SETTINGS, log, tmp_path / "events.db", [told])
    processor.open()
    drained(processor)
    processor.close()
    log.close()
    (lost,) = [one for step in told.steps for one in step.lost]
    assert lost.reason == "expired"
    (event,) = [e for step in told.steps for e in step.events if e.kind == "log_gap"]
    assert f"offsets {lost.first} to {lost.last}" in event.sentence
    with EventStore(tmp_path / "events.db") as events:
        assert len([e for e in events.cloudevents() if "log_gap" in e]) == 1


def test_a_configuration_that_retention_took_comes_from_the_compacted_topic(tmp_path: Path) -> None:
    log = open_log(tmp_path / "log.db")
    configurations = [r for r in records() if r.value[1] > 0x0F]
    assert len(configurations) == 2
    log.append(CONFIGURATIONS, configurations)
    log.append(FRAMES, [r for r in records()[:200] if r.value[1] <= 0x0F])
    told = Told()
    processor = Processor(SETTINGS, log, tmp_path / "events.db", [told])
    processor.open()
    drained(processor)
    processor.close()
    log.close()
    assert not [d for step in told.steps for d in step.dead]
    assert sum(processor.regions.by_name[""].intake.frames.values()) == 3 * 198


def test_frames_without_any_configuration_are_put_aside(tmp_path: Path) -> None:
    log = open_log(tmp_path / "log.db")
    log.append(FRAMES, [r for r in records()[:50] if r.value[1] <= 0x0F])
    processor = Processor(SETTINGS, log, tmp_path / "events.db")
    processor.open()
    drained(processor)
    processor.close()
    letters = log.read(DEAD_LETTERS, 0).entries
    log.close()
    assert len(letters) == 3 * 48
    assert all(entry.note.startswith("no_configuration: ") for entry in letters)


def test_time_passes_when_nothing_comes(tmp_path: Path) -> None:
    """All fall silent: what waits for them is closed by the marks that the processor writes, and that is told."""
    log, told = open_log(tmp_path / "log.db"), Told()
    some = [r for r in records() if r.time_ns < records()[0].time_ns + 5e9]
    log.append(FRAMES, some)
    clock = iter(range(some[-1].time_ns, some[-1].time_ns + 10**12, 250_000_000))
    processor = Processor(SETTINGS, log, tmp_path / "events.db", [told], lambda: next(clock))
    processor.open()
    for _ in range(100):
        if not processor.step():
            processor.mark_time()
    processor.close()
    log.close()
    kinds = {(e.cause, e.kind) for step in told.steps for e in step.events}
    assert {cause for cause, _ in kinds} == {"comms"}
    judged = sum(len(o.judged.time_ns) for step in told.steps for o in step.outputs)
    assert judged > 5 * 30 + 60


@pytest.mark.parametrize(("rate", "silent_s", "marks"), [(30, 120.0, 1), (1, 120.0, 0), (1, 1260.0, 1)])
def test_between_two_frames_of_a_slow_stream_no_time_is_marked(
    tmp_path: Path, rate: int, silent_s: float, marks: int
) -> None:
    """Else a clock that was ahead for a moment would be carried on by the marks, and all frames be late for ever."""
    batch = small_grid("north", 1, 2, 1, seconds=20)
    batch = replace(sources.cut(batch, np.arange(600) % (30 // rate) == 0), rate_hz=float(rate))
    log = open_log(tmp_path / "log.db")
    log.append(FRAMES, recorded([batch]))
    before = log.extent(FRAMES).next
    processor = Processor(Settings(PIPELINE, snapshot_s=1e9, idle_s=100.0), log, tmp_path / "events.db")
    processor.open()
    drained(processor)
    processor.regions.by_name[""].came_s = time.monotonic() - silent_s
    processor.mark_time()
    assert log.extent(FRAMES).next == before + marks
    processor.close()
    log.close()


def test_a_region_that_falls_silent_is_marked_while_others_go_on(tmp_path: Path) -> None:
    log = open_log(tmp_path / "log.db")
    log.append(FRAMES, [r._replace(key=f"{r.key}/{r.key}") for r in records()])
    last = [r for r in records() if r.key == "north"][-1]
    processor = Processor(replace(SETTINGS, idle_s=60.0), log, tmp_path / "events.db", (), lambda: last.time_ns + 10**8)
    processor.open()
    drained(processor)
    for region in processor.regions.by_name.values():
        region.came_s = time.monotonic() - 100.0
    log.append(FRAMES, [last._replace(key="north/north", time_ns=last.time_ns + 10**8)])
    assert processor.step()
    processor.mark_time()
    reading = log.read(FRAMES, processor.place)
    assert [(entry.key, entry.value) for entry in reading.entries] == [("south/", b"")]
    processor.close()
    log.close()


def test_a_pause_of_months_is_no_time_to_fill(tmp_path: Path) -> None:
    """Nobody wrote and nobody read for long: the first mark closes what was open, and what comes then is a new run."""
    pause_ns = 300 * 86_400 * 10**9
    log, told = open_log(tmp_path / "log.db"), Told()
    some = [r for r in records() if r.time_ns < records()[0].time_ns + 5e9]
    log.append(FRAMES, some)
    processor = Processor(SETTINGS, log, tmp_path / "events.db", [told], lambda: some[-1].time_ns + pause_ns)
    processor.open()
    drained(processor)
    processor.mark_time()
    drained(processor)
    north, south = small_grid("north", 1, 4, 1, seconds=8), small_grid("south", 5, 3, 2, seconds=8)
    later = [replace(b, time_ns=b.time_ns + pause_ns, arrival_ns=b.arrival_ns + pause_ns) for b in (north, south)]
    log.append(FRAMES, [r for r in recorded(later) if r.time_ns >= some[-1].time_ns + pause_ns])
    drained(processor)
    processor.finish()
    processor.close()
    log.close()
    judged = np.concatenate([o.judged.time_ns for step in told.steps for o in step.outputs])
    assert len(judged) == pytest.approx(8 * 30, abs=60)
    assert np.all(np.diff(judged) > 0)


@pytest.mark.parametrize("pause_s", [59, 70, 86_400])
def test_a_gap_of_any_length_is_passed(pause_s: int) -> None:
    """The gateway was away: whatever the cuts, the same is judged, and ticks are whole again after it."""
    first = small_grid("north", 1, 4, 1, seconds=8)
    second = replace(first, time_ns=first.time_ns + pause_s * 10**9, arrival_ns=first.arrival_ns + pause_s * 10**9)

    def judged(frames: int) -> list[tuple[int, bytes]]:
        pipeline = Pipeline(replace(PIPELINE, learn_s=2.0))
        parts = [sources.cut(b, np.arange(240) // frames == n) for b in (first, second) for n in range(240 // frames)]
        outputs = [o for part in parts for o in pipeline.feed([("north", part)])] + pipeline.finish()
        for o in outputs:
            assert o.scored.ticks.time_ns.shape[:1] == o.scored.ticks.signals.shape[:1]
        return [
            (t, v.tobytes()) for o in outputs for t, v in zip(o.judged.time_ns.tolist(), o.judged.values, strict=True)
        ]

    whole = judged(240)
    assert whole == judged(16)
    assert len(whole) == (480 if pause_s > 60 else 240 + pause_s * 30)


def test_arrivals_at_the_same_moment_stand_in_the_order_of_the_log(tmp_path: Path) -> None:
    """Both sources' records carry the same times; one falls silent and comes back: no cut may change what is said."""
    first_ns = records()[0].time_ns
    some = [r for r in records() if r.key == "north" or not 30e9 <= r.time_ns - first_ns < 34e9]
    some = [r for r in some if r.time_ns < first_ns + 40e9]
    south_first = next(n for n in range(400, 500) if some[n].key == "south" and some[n - 1].key == "north")

    def said(name: str, cut: int) -> list[str]:
        log = open_log(tmp_path / f"{name}.log")
        processor = Processor(replace(SETTINGS, snapshot_s=1e9), log, tmp_path / name)
        processor.open()
        for part in (some[:cut], some[cut:]):
            log.append(FRAMES, part)
            drained(processor)
        processor.finish()
        processor.close()
        log.close()
        return ended(tmp_path / name)

    assert len(said("whole", 0)) == 2
    assert said("cut", south_first) == said("whole again", 0)


def test_a_source_at_another_rate_is_refused_and_counted(tmp_path: Path) -> None:
    slow = replace(small_grid("slow", 50, 1, 3, seconds=5), rate_hz=10.0)
    mixed = sorted([*recorded([small_grid("north", 1, 2, 1, seconds=5)]), *recorded([slow])], key=lambda r: r.time_ns)
    log, told = open_log(tmp_path / "log.db"), Told()
    log.append(FRAMES, mixed)
    processor = Processor(SETTINGS, log, tmp_path / "events.db", [told])
    processor.open()
    drained(processor)
    processor.close()
    log.close()
    reasons = {(d.key, d.reason) for step in told.steps for d in step.dead}
    assert len(reasons) == 1
    ((refused, reason),) = reasons
    assert reason == "rate"
    assert processor.regions.by_name[""].intake.frames[{"north": "slow", "slow": "north"}[refused]] == 150


@settings(max_examples=10, deadline=None)
@given(cuts=st.lists(st.integers(1, 300), max_size=12), marks=st.lists(st.integers(1, 300), max_size=3))
def test_turns_do_not_depend_on_how_entries_are_read(cuts: list[int], marks: list[int]) -> None:
    """Sources join one after another, one changes its configuration: all in the log's own time, whatever the cuts."""
    late = small_grid("late", 9, 2, 4, seconds=8)
    late = replace(late, time_ns=late.time_ns + 3 * 10**9, arrival_ns=late.arrival_ns + 3 * 10**9)
    changed = recorded([small_grid("north", 1, 3, 7, seconds=12)])
    half = changed[len(changed) // 2].time_ns
    both = [r for r in recorded([small_grid("north", 1, 4, 1, seconds=12)]) if r.time_ns < half]
    both += [replace_time(changed[0], half)] + [r for r in changed if r.time_ns >= half] + recorded([late])
    both.sort(key=lambda r: r.time_ns)
    for mark in marks:
        both.insert(mark % len(both) + 1, Record(both[mark % len(both)].time_ns, "", b""))
    entries = [Entry(k, *record) for k, record in enumerate(both)]
    pieces = [entries]
    for at in sorted(cuts):
        *rest, last = pieces
        first = at - sum(map(len, rest))
        pieces = [*rest, last[:first], last[first:]] if 0 < first < len(last) else pieces
    assert fed(pieces) == fed([entries])


def replace_time(record: Record, time_ns: int) -> Record:
    return record._replace(time_ns=time_ns)


def test_a_configuration_that_came_just_before_a_snapshot_is_not_forgotten() -> None:
    """Its first data let the source join at the same moment as without the interruption."""
    before = recorded([small_grid("north", 1, 4, 1, seconds=4)])
    after = recorded([small_grid("north", 1, 3, 7, seconds=8)])
    half = before[len(before) // 2].time_ns
    both = [r for r in before if r.time_ns < half] + [replace_time(after[0], half)]
    stop = len(both)
    both += [r for r in after if r.time_ns >= half][:50]
    entries = [Entry(k, *record) for k, record in enumerate(both)]

    def told(turns: Iterable[Turn]) -> list[list[tuple[str, int, int]]]:
        return [[(name, int(b.time_ns[0]), len(b.table.pmus)) for name, b in turn.batches] for turn in turns]

    straight = Intake()
    list(straight.take(entries[:stop]))
    again = Intake()
    tables = {"north#1": small_grid("north", 1, 4, 1, seconds=1).table}
    again.thaw(straight.freeze(), tables)
    assert told(again.take(entries[stop:])) == told(straight.take(entries[stop:]))


def fed(pieces: list[list[Entry]]) -> list[tuple[object, ...]]:
    """Everything that a pipeline gives for the pieces, so that it can be compared."""
    intake, pipeline = Intake(), Pipeline(replace(PIPELINE, learn_s=2.0))
    out: list[tuple[object, ...]] = []
    for piece in pieces:
        for turn in intake.take(piece):
            for o in pipeline.feed(turn.batches, turn.now_ns):
                names = tuple(p.name for p in o.judged.table.pmus)
                rows = zip(o.judged.time_ns.tolist(), o.judged.values, o.judged.quality, strict=True)
                out += [(names, t, v.tobytes(), q.tobytes()) for t, v, q in rows]
    assert len(out) > 100
    return out


def test_a_store_that_is_no_database_is_refused(written: Path, tmp_path: Path) -> None:
    (tmp_path / "events.db").write_bytes(b"x" * 5000)
    log = open_log(written / "log.db")
    processor = Processor(SETTINGS, log, tmp_path / "events.db")
    with pytest.raises(StoreError, match=r"events\.db"):
        processor.open()
    processor.close()
    processor._saver.shutdown()
    log.close()


def test_a_damaged_snapshot_is_said_and_the_log_is_read_again(written: Path, tmp_path: Path) -> None:
    store = tmp_path / "events.db"
    drain(written, store, 1 << 20)
    with sqlite3.connect(store) as connection:
        connection.execute("UPDATE snapshot SET body = x'00'")
    connection.close()
    told = drain(written, store, 1 << 20)
    assert told.how == "refused"
    assert found(store) == expected(written)
    assert len(ended(store)) == 1  # raised once; it lasts
