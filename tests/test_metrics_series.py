"""The series: each is declared, served as declared, bounded, and says what is so at the moment of the scrape."""

from __future__ import annotations

import dataclasses
import re
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as prometheus
from prometheus_client.registry import DuplicateTimeseries

from gridsense import metrics
from gridsense.events import Cause
from gridsense.life import Heartbeat, LifeServer, Readiness
from gridsense.metrics import (
    OTHER,
    REASONS,
    ArchiveMetrics,
    GatewayMetrics,
    KafkaMetrics,
    Kind,
    LogMetrics,
    ProcessorMetrics,
    ReadingMetrics,
    Restore,
    ServiceMetrics,
    SourceStatus,
    StageStatus,
)
from streams import align
from streams.c37118.stream import Counts, Refusal, StreamParser
from streams.errors import LogError
from streams.gateway.spill import SpillStatus
from streams.gateway.status import ConnectionStatus, Reason, State, Totals
from streams.gateway.status import Counts as GatewayCounts
from streams.log import DEAD_LETTERS, FRAMES, Extent, Lost, Record
from streams.sqlite_log import SqliteLog, open_log
from tests.reference.made_event import made_event

S = 1_000_000_000
ROOT = Path(__file__).parents[1]
LABELS = {"cause", "python", "reader", "reason", "result", "scorer", "source", "stage", "state", "topic", "version"}
LABELS |= {"model", "partition"}
"""Each has few values, or as many as there are connections. PMUs and channels are none of them."""


class Clock:
    def __init__(self, now_s: float = 1000.0) -> None:
        self.now_s = now_s

    def __call__(self) -> int:
        return round(self.now_s * S)


def scrape(registry: CollectorRegistry) -> dict[str, float]:
    text = generate_latest(registry).decode()
    samples = [sample for family in prometheus(text) for sample in family.samples]
    out = {s.name + "".join(f",{k}={v}" for k, v in sorted(s.labels.items())): s.value for s in samples}
    assert len(out) == len(samples)
    return out


def source(name: str = "a", frames: int = 0, arrival_s: float = 0.0, **drops: int) -> SourceStatus:
    return SourceStatus(name, frames, frames * 50, drops, round(arrival_s * S), 3)


def connection(name: str, state: State, arrival_s: float, counts: GatewayCounts | None = None) -> ConnectionStatus:
    return ConnectionStatus(name, state, 0, round(arrival_s * S), 7, 3, 30.0, counts or GatewayCounts(), "", 0, "")


def totals(connections: Sequence[ConnectionStatus] = ()) -> Totals:
    return Totals(len(connections), 0, GatewayCounts(), 2, 123, 5, 456, 1, 0)


@dataclasses.dataclass
class Done:
    batches: int = 1
    files: int = 2
    frames: int = 3
    raw_bytes: int = 4
    file_bytes: int = 5
    undecoded: int = 6
    lost: int = 7
    joined: int = 8
    removed: int = 9


def everything(path: Path) -> list[CollectorRegistry]:
    """One registry a service, each series with a value."""
    processor, gateway, archive = CollectorRegistry(), CollectorRegistry(), CollectorRegistry()
    for registry in (processor, gateway, archive):
        ServiceMetrics(registry, lambda: 0.5)
    said = ProcessorMetrics(processor, lambda: [source(frames=1, late=1)])
    said.reading.read(Extent(0, 9, 9, 90, 0, 0), 4, 0, [Lost(1, 2, "damaged")])
    said.dead_letter("crc")
    said.stepped(0.01)
    said.scored(1, [0.2])
    said.learning("fast", 3.0, 2)
    said.model("0123456789abcdef")
    said.snapshot(0.1, 10, 20)
    said.restored(Restore.FRESH)
    KafkaMetrics(processor, lambda: {"regions": StageStatus(1, 2, 3, 4, 5.0, {0: 6})})
    with_refusal = GatewayCounts()
    with_refusal.refused["crc"] = 1
    connections = [connection("a", State.STREAMING, 1.0, with_refusal)]
    GatewayMetrics(gateway, lambda: connections, lambda: totals(connections), spill=SpillStatus())
    log = open_log(path)
    log.append(FRAMES, [Record(1, "a", b"x")])
    log.commit(FRAMES, "processor", 0)
    log.close()
    LogMetrics(gateway, lambda: open_log(path), {FRAMES: ["processor"]})
    ArchiveMetrics(archive, Done)
    return [processor, gateway, archive]


def test_what_is_served_is_what_is_declared(tmp_path: Path) -> None:
    served = {}
    for registry in everything(tmp_path / "log.db"):
        text = generate_latest(registry).decode()
        assert "_created" not in text
        for family in prometheus(text):
            name = family.name + ("_total" if family.type == "counter" and "process_" not in family.name else "")
            labels = {frozenset(sample.labels) - {"le"} for sample in family.samples}
            served[name] = (family.type, family.documentation, labels)
    process = {name for name in served if name.startswith("process_")}
    assert process
    assert {name: said for name, said in served.items() if name not in process} == {
        s.name: (s.kind.value, s.meaning, {frozenset(s.labels)}) for s in metrics.SERIES
    }


@pytest.mark.parametrize("series", metrics.SERIES, ids=lambda s: s.name)
def test_names_units_and_labels_are_in_order(series: metrics.Series) -> None:
    assert re.fullmatch(r"gridsense_[a-z]+(_[a-z]+)*", series.name)
    assert (series.kind is Kind.COUNTER) == series.name.endswith("_total")
    assert (series.kind is Kind.HISTOGRAM) == bool(series.buckets_s)
    assert not re.search(r"_(ms|ns|us|minutes|hours|kilobytes|mb|percent|hz|s)(_total)?$", series.name)
    assert set(series.labels) <= LABELS
    assert re.fullmatch(r"[A-Z1].*\.", series.meaning)
    assert "|" not in series.meaning  # it stands in a table


def test_no_two_series_share_a_name_and_a_registry_takes_each_once() -> None:
    assert len({s.name for s in metrics.SERIES}) == len(metrics.SERIES)
    registry = CollectorRegistry()
    GatewayMetrics(registry, list, totals)
    with pytest.raises(DuplicateTimeseries):
        GatewayMetrics(registry, list, totals)


def test_the_page_of_the_documentation_is_current() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert page == metrics.describe(), "write what gridsense.metrics.describe() returns into docs/metrics.md"


def test_every_reason_that_the_code_knows_is_a_label() -> None:
    fields = {field.name for field in dataclasses.fields(align.Counts)} - {"accepted"}
    assert set(metrics.ALIGNMENT_REASONS) == fields
    assert {*fields, *map(str, Refusal), *map(str, Reason)} <= REASONS
    assert {"damaged", "expired", "skipped"} <= REASONS
    assert {"empty", "key", "no_pmu", "pipeline", "rate", "region", "words"} <= REASONS
    assert OTHER not in REASONS


def test_reasons_that_nobody_knows_are_one_label() -> None:
    registry = CollectorRegistry()
    strange = {f"strange {n}": 2 for n in range(1000)}
    said = ProcessorMetrics(registry, lambda: [source(crc=3, **strange)])
    for reason in strange:
        said.dead_letter(reason)
    said.dead_letter("size", 4)
    said.reading.read(Extent(0, 0, 0, 0, 0, 0), 0, 0, [Lost(0, 9, reason) for reason in strange])
    seen = scrape(registry)
    assert {k: v for k, v in seen.items() if "reason" in k} == {
        "gridsense_frames_dropped_total,reason=crc,source=a": 3,
        "gridsense_frames_dropped_total,reason=other,source=a": 2000,
        "gridsense_dead_letters_total,reason=other": 1000,
        "gridsense_dead_letters_total,reason=size": 4,
        "gridsense_log_entries_lost_total,reason=other": 10_000,
    }


def test_ages_rise_while_nothing_comes() -> None:
    clock, registry = Clock(), CollectorRegistry()
    sources = [source("heard", 1, 990.0), source("never")]
    said = ProcessorMetrics(registry, lambda: sources, clock)
    said.scored(980 * S, [])
    names = [
        "gridsense_source_age_seconds,source=heard",
        "gridsense_source_age_seconds,source=never",
        "gridsense_event_time_lag_seconds",
        "gridsense_snapshot_age_seconds",
    ]
    assert [scrape(registry)[name] for name in names] == [10, 0, 20, 0]
    clock.now_s += 7.5
    assert [scrape(registry)[name] for name in names] == [17.5, 7.5, 27.5, 7.5]
    said.snapshot(0.1, 10, 20)
    sources[:] = [source("heard", 2, 1007.0), source("never")]
    assert [scrape(registry)[name] for name in names] == [0.5, 7.5, 27.5, 0]
    clock.now_s = 900.0  # set back
    assert [scrape(registry)[name] for name in names] == [0, 0, 0, 0]


def test_the_lag_is_what_was_not_read() -> None:
    clock, registry = Clock(), CollectorRegistry()
    reading = ReadingMetrics(registry, clock)

    def lag() -> list[float]:
        seen = scrape(registry)
        return [seen["gridsense_lag_" + unit] for unit in ("entries", "bytes", "seconds")]

    assert lag() == [0, 0, 0]
    reading.read(Extent(first=100, next=200, records=100, size=5000, oldest_ns=0, newest_ns=0), 180, 990 * S)
    assert lag() == [20, 1000, 10]
    clock.now_s += 5
    assert lag() == [20, 1000, 15]
    reading.read(Extent(100, 200, 100, 5000, 0, 0), 40, 990 * S)  # retention has overtaken it
    assert lag() == [100, 5000, 15]
    reading.read(Extent(100, 200, 10, 5000, 0, 0), 150, 990 * S)  # most numbers were left out
    assert lag() == [50, 5000, 15]
    reading.read(Extent(100, 200, 100, 5000, 0, 0), 200, 990 * S)
    assert lag() == [0, 0, 0]


def test_drops_are_put_together_from_the_stream_and_the_alignment() -> None:
    parser = StreamParser()
    parser.feed(b"\xaa\x01\x00\x10" + bytes(12))  # a data frame whose check word does not fit
    parser.finish()
    assert parser.counts.refused[Refusal.CRC] == 1
    zero, some = np.zeros(2, np.int64), np.array([5, 6])
    aligned = align.Counts(accepted=some, late=some, duplicate=zero, ahead=some * 2)
    assert metrics.dropped(parser.counts, aligned, 1) == {"crc": 1, "late": 6, "ahead": 12}
    assert metrics.dropped(Counts(), None, 0) == {}


def test_events_are_counted_from_their_first_and_open_ones_shown() -> None:
    registry = CollectorRegistry()
    said = ProcessorMetrics(registry, list)
    seen = scrape(registry)
    for cause in Cause:
        assert seen[f"gridsense_open_events,cause={cause}"] == 0
        assert seen[f"gridsense_events_total,cause={cause},stage=raised"] == 0
    ended = made_event(1.0)
    raised = dataclasses.replace(ended, end_ns=None)
    said.happened([raised], [raised])
    assert scrape(registry)["gridsense_open_events,cause=grid"] == 1
    said.happened([ended], [])
    seen = scrape(registry)
    assert seen["gridsense_open_events,cause=grid"] == 0
    assert [seen[f"gridsense_events_total,cause=grid,stage={s}"] for s in ("raised", "ended")] == [1, 1]


def test_the_processor_counts_its_work() -> None:
    registry = CollectorRegistry()
    said = ProcessorMetrics(registry, lambda: [source(frames=5)])
    said.stepped(0.004)
    said.scored(1, [0.02, 0.3, 20.0])
    said.learning("slow", 12.0, 3)
    said.snapshot(0.2, 1000, 3000)
    said.snapshot_failed()
    said.restored(Restore.RESTORED)
    seen = scrape(registry)
    wanted = {
        "gridsense_frames_decoded_total,source=a": 5,
        "gridsense_read_bytes_total,source=a": 250,
        "gridsense_pmus,source=a": 3,
        "gridsense_pipeline_step_seconds_sum": 0.004,
        "gridsense_window_latency_seconds_bucket,le=0.01": 0,
        "gridsense_window_latency_seconds_bucket,le=0.5": 2,
        "gridsense_window_latency_seconds_count": 3,
        "gridsense_learning_missing_seconds,scorer=slow": 12,
        "gridsense_snapshot_write_seconds_count": 1,
        "gridsense_snapshot_size_bytes": 1000,
        "gridsense_state_bytes": 3000,
        "gridsense_snapshot_failures_total": 1,
        "gridsense_restores_total,result=restored": 1,
    }
    assert {name: seen[name] for name in wanted} == wanted


def test_the_gateway_is_asked_at_each_scrape() -> None:
    clock, registry = Clock(), CollectorRegistry()
    counts = GatewayCounts(frames=10, frames_bytes=500, configuration_changes=1, connects=2, dropped_frames=3)
    counts.refused["garbage"] = 4
    connections = [connection("a", State.STREAMING, 999.0, counts), connection("b", State.BACKING_OFF, 0.0)]
    GatewayMetrics(registry, lambda: connections, lambda: totals(connections), clock)
    clock.now_s += 1
    seen = scrape(registry)
    wanted = {
        "gridsense_gateway_connections,state=streaming": 1,
        "gridsense_gateway_connections,state=backing-off": 1,
        "gridsense_gateway_connections,state=silent": 0,
        "gridsense_gateway_connection_up,source=a": 1,
        "gridsense_gateway_connection_up,source=b": 0,
        "gridsense_gateway_frames_total,source=a": 10,
        "gridsense_gateway_received_bytes_total,source=a": 500,
        "gridsense_gateway_frames_dropped_total,source=a": 3,
        "gridsense_gateway_connects_total,source=a": 2,
        "gridsense_gateway_configuration_changes_total,source=a": 1,
        "gridsense_gateway_frame_age_seconds,source=a": 2,
        "gridsense_gateway_frame_age_seconds,source=b": 1,
        "gridsense_gateway_pmus,source=a": 3,
        "gridsense_gateway_rate_hertz,source=a": 30,
        "gridsense_gateway_waiting_bytes": 123,
        "gridsense_gateway_written_bytes_total": 456,
        "gridsense_gateway_failed_writes_total": 1,
        "gridsense_gateway_clock_steps_total": 2,
    }
    assert {name: seen[name] for name in wanted} == wanted
    assert {k: v for k, v in seen.items() if "reason" in k} == {
        "gridsense_gateway_refused_total,reason=garbage,source=a": 4
    }
    counts.frames = 11
    assert scrape(registry)["gridsense_gateway_frames_total,source=a"] == 11


def test_the_archive_is_asked_at_each_scrape() -> None:
    registry, done = CollectorRegistry(), Done()
    ArchiveMetrics(registry, lambda: done)
    done.frames += 100
    begin = "gridsense_archive_"
    assert {k.removeprefix(begin): v for k, v in scrape(registry).items()} == {
        "batches_total": 1,
        "files_total": 2,
        "frames_total": 103,
        "read_bytes_total": 4,
        "written_bytes_total": 5,
        "undecoded_total": 6,
        "gaps_total": 7,
        "files_joined_total": 8,
        "files_removed_total": 9,
    }


def test_the_log_is_looked_up_at_each_scrape(tmp_path: Path) -> None:
    clock, registry, path = Clock(), CollectorRegistry(), tmp_path / "log.db"
    opened: list[SqliteLog] = []

    def look() -> SqliteLog:
        opened.append(open_log(path))
        return opened[-1]

    LogMetrics(registry, look, {FRAMES: ["processor", "archive"], DEAD_LETTERS: []}, clock)
    log = open_log(path)
    try:
        log.append(FRAMES, [Record(n * S, "a", b"12345") for n in (970, 980, 990)])
        log.commit(FRAMES, "processor", log.read(FRAMES, 0, 1).next)
        begin, seen = "gridsense_log_", scrape(registry)
        assert {k.removeprefix(begin): v for k, v in seen.items()} == {
            "readable": 1,
            f"records,topic={FRAMES}": 3,
            f"size_bytes,topic={FRAMES}": 15,
            f"oldest_age_seconds,topic={FRAMES}": 30,
            f"newest_age_seconds,topic={FRAMES}": 10,
            f"reader_lag_entries,reader=processor,topic={FRAMES}": 2,
            f"reader_lag_seconds,reader=processor,topic={FRAMES}": 20,
            f"records,topic={DEAD_LETTERS}": 0,
            f"size_bytes,topic={DEAD_LETTERS}": 0,
        }
        log.commit(FRAMES, "processor", log.extent(FRAMES).next)
        seen = scrape(registry)
        assert seen[f"gridsense_log_reader_lag_entries,reader=processor,topic={FRAMES}"] == 0
        assert seen[f"gridsense_log_reader_lag_seconds,reader=processor,topic={FRAMES}"] == 0
    finally:
        log.close()
    for each in opened:
        with pytest.raises(LogError, match="closed"):
            each.extent(FRAMES)


def test_a_log_that_cannot_be_read_is_a_value_not_an_error(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    path.write_bytes(b"no database at all, but long enough to be taken for one. " * 100)
    registry = CollectorRegistry()
    LogMetrics(registry, lambda: open_log(path), {FRAMES: ["processor"]})
    assert scrape(registry) == {"gridsense_log_readable": 0}


def test_a_service_says_its_version_and_how_its_loop_goes() -> None:
    registry, now_s = CollectorRegistry(), [5.0]
    heartbeat = Heartbeat(monotonic_s=lambda: now_s[0])
    ServiceMetrics(registry, heartbeat.age_s)
    now_s[0] += 3.0
    seen = scrape(registry)
    assert seen["gridsense_heartbeat_age_seconds"] == 3.0
    assert [v for k, v in seen.items() if k.startswith("gridsense_build_info,") and "version=" in k] == [1]
    assert seen["process_resident_memory_bytes"] > 0


def test_prometheus_reads_every_service_in_both_formats(tmp_path: Path) -> None:
    for registry in everything(tmp_path / "log.db"):
        with LifeServer("127.0.0.1", 0, registry, Heartbeat(), Readiness) as server:
            url = f"http://127.0.0.1:{server.port}/metrics"
            with urllib.request.urlopen(url, timeout=30) as answer:
                plain = {f.name for f in prometheus(answer.read().decode())}
            strict = urllib.request.Request(url, headers={"Accept": "application/openmetrics-text; version=1.0.0"})
            with urllib.request.urlopen(strict, timeout=30) as answer:  # noqa: S310 (our own)
                assert {f.name for f in openmetrics(answer.read().decode())} == plain
