"""Every Prometheus series of the product: what it is called, what it means, and who sets it.

In: what the services saw, and functions that say at each scrape how things stand. Out: series in a registry that is
passed in; `describe` lists them all. What others count already is read when it is asked for and never counted twice.
It serves nothing (`gridsense.life` does) and decides nothing.
"""

from __future__ import annotations

import time
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import version
from platform import python_version
from typing import Protocol

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from gridsense.events import Cause, Event
from streams import align
from streams.c37118.stream import Counts, Refusal
from streams.errors import LogError
from streams.gateway.spill import SpillStatus
from streams.gateway.status import ConnectionStatus, Reason, State, Totals
from streams.log import Extent, Log, Lost

# a series beside each counter that says when it began: nobody asks
disable_created_metrics()  # type: ignore[no-untyped-call]  # theirs has no types

_SECOND_NS = 1_000_000_000
IDENTITY_LETTERS = 12
"""So many letters of a model's identity tell it from others."""

ALIGNMENT_REASONS = ("late", "duplicate", "ahead")
"""Why a decoded frame is not used: the fields of `streams.align.Counts` beside `accepted`."""
OTHER = "other"
"""Label of every reason that is not one of `REASONS`, so that their number is bounded."""
REASONS = frozenset(
    (
        *(reason.value for reason in Refusal),
        *ALIGNMENT_REASONS,
        *(reason.value for reason in Reason),
        *("damaged", "expired", "skipped"),
        *("empty", "key", "no_pmu", "pipeline", "rate", "region", "words"),
    )
)
"""Every value of the label ``reason`` but `OTHER`."""


class Kind(StrEnum):
    """What a series is to Prometheus."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Series:
    """One series, or one for each value of its labels.

    Attributes
    ----------
    name
        As it stands in a query; a histogram's without ``_bucket``, ``_sum`` and ``_count``.
    kind
        What it is to Prometheus.
    meaning
        Its HELP: what it says and what to do about it.
    labels
        Names of its labels.
    buckets_s
        Upper edges of a histogram, seconds.
    """

    name: str
    kind: Kind
    meaning: str
    labels: tuple[str, ...] = ()
    buckets_s: tuple[float, ...] = ()

    def counter(self, registry: CollectorRegistry) -> Counter:
        """Make a counter that is told what happens.

        Parameters
        ----------
        registry
            Where it will stand.

        Returns
        -------
        Counter
            At 0.
        """
        return Counter(self.name, self.meaning, self.labels, registry=registry)

    def gauge(self, registry: CollectorRegistry) -> Gauge:
        """Make a gauge that is told a value.

        Parameters
        ----------
        registry
            Where it will stand.

        Returns
        -------
        Gauge
            At 0.
        """
        return Gauge(self.name, self.meaning, self.labels, registry=registry)

    def histogram(self, registry: CollectorRegistry) -> Histogram:
        """Make a histogram that is told durations.

        Parameters
        ----------
        registry
            Where it will stand.

        Returns
        -------
        Histogram
            Empty.
        """
        return Histogram(self.name, self.meaning, self.labels, registry=registry, buckets=self.buckets_s)

    def family(self) -> CounterMetricFamily | GaugeMetricFamily:
        """Make what one scrape fills.

        Returns
        -------
        CounterMetricFamily | GaugeMetricFamily
            Without a value.
        """
        family = CounterMetricFamily if self.kind is Kind.COUNTER else GaugeMetricFamily
        return family(self.name, self.meaning, labels=self.labels)


# ---------------------------------------------------------------- every service

BUILD = Series("gridsense_build_info", Kind.GAUGE, "Always 1; says which version runs.", ("version", "python"))
HEARTBEAT_AGE = Series(
    "gridsense_heartbeat_age_seconds",
    Kind.GAUGE,
    "Time since the service's main loop came round. Rising: it hangs; restart the service and keep its log lines.",
)

# ---------------------------------------------------------------- processor

_BEHIND = "Rising for minutes: this machine is too slow for what comes, or the service hangs; look at its step times."
LAG_ENTRIES = Series("gridsense_lag_entries", Kind.GAUGE, f"Log entries not read yet, at most. {_BEHIND}")
LAG_BYTES = Series("gridsense_lag_bytes", Kind.GAUGE, f"Bytes of log entries not read yet, estimated. {_BEHIND}")
LAG = Series("gridsense_lag_seconds", Kind.GAUGE, f"How long the oldest entry not read yet has waited. {_BEHIND}")
ENTRIES_LOST = Series(
    "gridsense_log_entries_lost_total",
    Kind.COUNTER,
    "Log entries that could not be read, at most. damaged: check the disk; expired: the reader was away for longer "
    "than the log's retention, lengthen that.",
    ("reason",),
)

_EACH_SOURCE = ("source",)
FRAMES = Series(
    "gridsense_frames_decoded_total",
    Kind.COUNTER,
    "Data frames that became values. Its rate is the reporting rate; lower: the link or the PMU loses frames.",
    _EACH_SOURCE,
)
BYTES = Series(
    "gridsense_read_bytes_total", Kind.COUNTER, "Bytes of the source that were read from the log.", _EACH_SOURCE
)
DROPPED = Series(
    "gridsense_frames_dropped_total",
    Kind.COUNTER,
    "Frames that were not used. late: lengthen align.lateness or mend the link; ahead: the PMU's clock is wrong; "
    "crc: a bad line; no_configuration, size: the source has not sent its new configuration.",
    ("source", "reason"),
)
SOURCE_AGE = Series(
    "gridsense_source_age_seconds",
    Kind.GAUGE,
    "Time since the newest frame of the source arrived; since the start where none has. Rising: the source is silent; "
    "look at the gateway's connection.",
    _EACH_SOURCE,
)
PMUS = Series(
    "gridsense_pmus", Kind.GAUGE, "PMUs in the source's configuration. Fewer than before: it was changed.", _EACH_SOURCE
)
DEAD_LETTERS = Series(
    "gridsense_dead_letters_total",
    Kind.COUNTER,
    "Frames put aside because they could not be used; they stand in the log's topic pmu.deadletter with the reason.",
    ("reason",),
)
WINDOW_LATENCY = Series(
    "gridsense_window_latency_seconds",
    Kind.HISTOGRAM,
    "From the arrival of the newest frame of a scored moment to its score. Beyond what operators may wait for: give "
    "the processor a faster machine or fewer PMUs.",
    (),
    (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
EVENT_TIME_LAG = Series(
    "gridsense_event_time_lag_seconds",
    Kind.GAUGE,
    "Wall clock less the newest moment that was scored; none before the first. Rising: nothing is scored, look at the "
    "sources' ages and the lag.",
)
STEP = Series(
    "gridsense_pipeline_step_seconds",
    Kind.HISTOGRAM,
    "Computing time of one step of the pipeline. Its sum rises by less than 1 a second, or the processor falls behind.",
    (),
    (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5),
)
EVENTS = Series(
    "gridsense_events_total",
    Kind.COUNTER,
    "Events since the start, by where the trouble lies, raised and ended. Many of data or comms: mend PMUs and links "
    "before you trust the rest.",
    ("cause", "stage"),
)
OPEN_EVENTS = Series("gridsense_open_events", Kind.GAUGE, "Events that last now: what operators see.", ("cause",))
LEARNING = Series(
    "gridsense_learning_missing_seconds",
    Kind.GAUGE,
    "Quiet time that a scorer must still see before it scores. Not falling: frames are missing or never quiet.",
    ("scorer",),
)
LEARNING_PMUS = Series(
    "gridsense_learning_pmus",
    Kind.GAUGE,
    "PMUs that a scorer does not score yet, since it still learns what is typical of them. Not falling to 0: some send "
    "too little that is good.",
    ("scorer",),
)
MODEL = Series(
    "gridsense_model_info",
    Kind.GAUGE,
    "Always 1; says by the first letters of its identity which model the sequence scorer runs, as `gridsense "
    "check-config` does. None: the quadratic fit scores alone.",
    ("model",),
)
STATE_SIZE = Series(
    "gridsense_state_bytes", Kind.GAUGE, "What the pipeline remembers. It grows with PMUs, not with time."
)
SNAPSHOT = Series(
    "gridsense_snapshot_write_seconds",
    Kind.HISTOGRAM,
    "Time to write one snapshot of the state. Near store.snapshot_every: write less often or to a faster disk.",
    (),
    (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
SNAPSHOT_SIZE = Series("gridsense_snapshot_size_bytes", Kind.GAUGE, "Size of the newest snapshot on disk.")
SNAPSHOT_AGE = Series(
    "gridsense_snapshot_age_seconds",
    Kind.GAUGE,
    "Time since the last snapshot, since the start where none was written: what a restart must read again. Far above "
    "store.snapshot_every: the store cannot be written.",
)
SNAPSHOT_FAILURES = Series(
    "gridsense_snapshot_failures_total",
    Kind.COUNTER,
    "Snapshots that could not be written. Rising: look at the disk of store.path.",
)
RESTORES = Series(
    "gridsense_restores_total",
    Kind.COUNTER,
    "How the processor got its state at a start: fresh (none was there; it learns), restored, or refused (there was "
    "one that could not be used; it learns).",
    ("result",),
)

# ---------------------------------------------------------------- processor on Kafka

_EACH_STAGE = ("stage",)
TRANSACTIONS = Series(
    "gridsense_kafka_transactions_total",
    Kind.COUNTER,
    "Transactions committed: events, scores and offsets together. Not rising while frames come: Kafka takes nothing.",
    _EACH_STAGE,
)
ABORTED = Series(
    "gridsense_kafka_transactions_aborted_total",
    Kind.COUNTER,
    "Attempts at a transaction that failed; they are tried again. Rising steadily: look at the brokers.",
    _EACH_STAGE,
)
PROCESSOR_FENCED = Series(
    "gridsense_kafka_fenced_total",
    Kind.COUNTER,
    "Times the group had gone on without this processor, which then began anew and has written nothing twice. Rising: "
    "it is too slow, or lengthen kafka.session.",
    _EACH_STAGE,
)
REBALANCES = Series(
    "gridsense_kafka_rebalances_total",
    Kind.COUNTER,
    "Times the group divided its partitions anew. Rising steadily: processors come and go.",
    _EACH_STAGE,
)
REBALANCE_TIME = Series(
    "gridsense_kafka_rebalance_seconds_total", Kind.COUNTER, "Time that this took, altogether.", _EACH_STAGE
)
PARTITIONS = Series(
    "gridsense_kafka_partitions",
    Kind.GAUGE,
    "Partitions that this processor has now. 0 for long in stage regions: there are more processors than partitions.",
    _EACH_STAGE,
)
PARTITION_LAG = Series(
    "gridsense_kafka_lag_entries",
    Kind.GAUGE,
    f"Records of a partition not read yet. {_BEHIND}",
    ("stage", "partition"),
)

# ---------------------------------------------------------------- gateway

CONNECTIONS = Series(
    "gridsense_gateway_connections",
    Kind.GAUGE,
    "Connections by state. All should be streaming; the gateway's log says what keeps the others from it.",
    ("state",),
)
CONNECTION_UP = Series(
    "gridsense_gateway_connection_up",
    Kind.GAUGE,
    "1 while the connection streams, else 0: look at the PMU, its address and the firewall.",
    _EACH_SOURCE,
)
GATEWAY_FRAMES = Series(
    "gridsense_gateway_frames_total",
    Kind.COUNTER,
    "Whole data frames received. Its rate is the reporting rate while all is well.",
    _EACH_SOURCE,
)
GATEWAY_BYTES = Series(
    "gridsense_gateway_received_bytes_total", Kind.COUNTER, "Bytes of data frames received.", _EACH_SOURCE
)
GATEWAY_REFUSED = Series(
    "gridsense_gateway_refused_total",
    Kind.COUNTER,
    "What was received and could not be used. crc, garbage: a bad line; id_code: another PMU answers there; size, "
    "configuration: its configuration contradicts itself.",
    ("source", "reason"),
)
GATEWAY_DROPPED = Series(
    "gridsense_gateway_frames_dropped_total",
    Kind.COUNTER,
    "Data frames lost because the log had no room for too long. Above 0: make room on the log's disk.",
    _EACH_SOURCE,
)
CONNECTS = Series(
    "gridsense_gateway_connects_total",
    Kind.COUNTER,
    "Times a connection came about. Rising steadily: an unstable link, or another client takes it over.",
    _EACH_SOURCE,
)
CONFIGURATION_CHANGES = Series(
    "gridsense_gateway_configuration_changes_total",
    Kind.COUNTER,
    "Times the source sent another configuration than before. Unexpected: somebody changed the PMU.",
    _EACH_SOURCE,
)
GATEWAY_AGE = Series(
    "gridsense_gateway_frame_age_seconds",
    Kind.GAUGE,
    "Time since the newest frame arrived; since the gateway's start where none has. Rising: the source is silent.",
    _EACH_SOURCE,
)
GATEWAY_PMUS = Series("gridsense_gateway_pmus", Kind.GAUGE, "PMUs in the source's configuration.", _EACH_SOURCE)
RATE = Series(
    "gridsense_gateway_rate_hertz", Kind.GAUGE, "Reporting rate in the source's configuration, frames/s.", _EACH_SOURCE
)

WAITING = Series(
    "gridsense_gateway_waiting_bytes",
    Kind.GAUGE,
    "Received and not written to the log yet. Rising: the log takes nothing; beyond "
    "gateway.buffer_size frames are lost.",
)
WRITTEN = Series("gridsense_gateway_written_bytes_total", Kind.COUNTER, "Bytes written to the log.")
FAILED_WRITES = Series(
    "gridsense_gateway_failed_writes_total",
    Kind.COUNTER,
    "Writes that the log refused; they are tried again. Rising: make room on the log's disk.",
)
STANDBY = Series(
    "gridsense_gateway_standby",
    Kind.GAUGE,
    "1 while another gateway of a pair writes to Kafka and this one waits, else 0. Both alike for long: look at their "
    "log lines.",
)
SPILL_RECORDS = Series(
    "gridsense_gateway_spill_records",
    Kind.GAUGE,
    "Records on disk that Kafka has not taken yet; of a standby those that it keeps for its turn. Rising: see why "
    "Kafka takes nothing.",
)
SPILL_SIZE = Series(
    "gridsense_gateway_spill_bytes",
    Kind.GAUGE,
    "Bytes of them. At kafka.spill_size the gateway's memory fills, and beyond gateway.buffer_size frames are lost.",
)
SPILLED = Series(
    "gridsense_gateway_spilled_records_total", Kind.COUNTER, "Records that reached Kafka by way of the disk."
)
KAFKA_FAILURES = Series(
    "gridsense_gateway_kafka_failures_total",
    Kind.COUNTER,
    "Times Kafka failed or could not be reached. Rising steadily: the gateway's log says why.",
)
FENCED = Series(
    "gridsense_gateway_fenced_total",
    Kind.COUNTER,
    "Times another gateway took over. Rising steadily: two of one name and no kafka.standby, or one that is too slow.",
)
RECOVERY = Series(
    "gridsense_gateway_recovery_seconds",
    Kind.GAUGE,
    "Length of the newest outage of Kafka, until all that had waited was written. 0: there was none.",
)
CLOCK_STEPS = Series(
    "gridsense_gateway_clock_steps_total",
    Kind.COUNTER,
    "Jumps of this machine's clock. Above 0: mend its time synchronisation, arrival times hang on it.",
)

# ---------------------------------------------------------------- archive

BATCHES = Series(
    "gridsense_archive_batches_total",
    Kind.COUNTER,
    "Stretches of the log made safe in files. Not rising while frames come: look at the archive's log lines and disk.",
)
FILES = Series("gridsense_archive_files_total", Kind.COUNTER, "Parquet files written since the start.")
ARCHIVED = Series("gridsense_archive_frames_total", Kind.COUNTER, "Data frames in them.")
RAW = Series("gridsense_archive_read_bytes_total", Kind.COUNTER, "Bytes of log entries in them.")
FILE_SIZE = Series(
    "gridsense_archive_written_bytes_total",
    Kind.COUNTER,
    "Bytes of the files. Its rate times archive.retention is the room they need.",
)
UNDECODED = Series(
    "gridsense_archive_undecoded_total",
    Kind.COUNTER,
    "Frames and entries kept as raw bytes since no configuration fits them. Rising: a source has not sent its "
    "configuration.",
)
GAPS = Series(
    "gridsense_archive_gaps_total",
    Kind.COUNTER,
    "Ranges of the log that could not be read; gaps.jsonl lists them. Rising: check the log's disk, or lengthen "
    "log.retention if the archive was away.",
)
JOINED = Series("gridsense_archive_files_joined_total", Kind.COUNTER, "Small files that were joined into larger ones.")
REMOVED = Series("gridsense_archive_files_removed_total", Kind.COUNTER, "Files that archive.retention removed.")

# ---------------------------------------------------------------- the log

_EACH_TOPIC = ("topic",)
_EACH_READER = ("topic", "reader")
LOG_READABLE = Series(
    "gridsense_log_readable", Kind.GAUGE, "1 while the log can be read, else 0: look at its disk and its file."
)
LOG_RECORDS = Series("gridsense_log_records", Kind.GAUGE, "Entries that the topic holds.", _EACH_TOPIC)
LOG_SIZE = Series(
    "gridsense_log_size_bytes",
    Kind.GAUGE,
    "Bytes that the topic holds. It levels off at the retention; leave as much room again on the disk.",
    _EACH_TOPIC,
)
LOG_OLDEST = Series(
    "gridsense_log_oldest_age_seconds",
    Kind.GAUGE,
    "Age of the topic's oldest entry: how long a reader may be away and lose nothing. None where it is empty.",
    _EACH_TOPIC,
)
LOG_NEWEST = Series(
    "gridsense_log_newest_age_seconds",
    Kind.GAUGE,
    "Age of the topic's newest entry. Rising for pmu.frames: the gateway writes nothing. None where it is empty.",
    _EACH_TOPIC,
)
READER_LAG_ENTRIES = Series(
    "gridsense_log_reader_lag_entries",
    Kind.GAUGE,
    "Entries after the place that the reader has made safe, at most: what it reads again after a crash.",
    _EACH_READER,
)
READER_LAG = Series(
    "gridsense_log_reader_lag_seconds",
    Kind.GAUGE,
    "How long the oldest entry after that place has waited. Near gridsense_log_oldest_age_seconds: retention is about "
    "to take what was not read; start the reader or lengthen log.retention.",
    _EACH_READER,
)

Value = tuple[Series, tuple[str, ...], float]
"""A series, the values of its labels, its value."""


class _AtScrape(Collector):
    """Series whose values are asked for at each scrape."""

    def __init__(self, read: Callable[[], Iterable[Value]], *series: Series) -> None:
        self._read, self._series = read, series

    def describe(self) -> Iterable[CounterMetricFamily | GaugeMetricFamily]:
        """Say which series there are, so that a registry refuses them twice."""
        return [series.family() for series in self._series]

    def collect(self) -> Iterable[CounterMetricFamily | GaugeMetricFamily]:
        """Ask."""
        families = {series: series.family() for series in self._series}
        for series, labels, value in self._read():
            families[series].add_metric(labels, value)
        return families.values()


def _bounded(counts: Mapping[str, int]) -> Mapping[str, int]:
    """Put counts of unknown reasons under one."""
    out = Tally[str]()
    for reason, count in counts.items():
        if count:
            out[reason if reason in REASONS else OTHER] += count
    return out


def _age_s(now_ns: int, then_ns: int) -> float:
    """Seconds between; a clock that was set back makes nothing younger than new."""
    return max(now_ns - then_ns, 0) / _SECOND_NS


class ServiceMetrics:
    """What every service says of itself: its version, its main loop, its process (memory, file handles, time).

    Parameters
    ----------
    registry
        Where the series will stand.
    heartbeat_age_s
        Says how long ago the main loop came round.
    """

    def __init__(self, registry: CollectorRegistry, heartbeat_age_s: Callable[[], float]) -> None:
        BUILD.gauge(registry).labels(version("gridsense-pmu"), python_version()).set(1)
        HEARTBEAT_AGE.gauge(registry).set_function(heartbeat_age_s)
        ProcessCollector(registry=registry)


class ReadingMetrics:
    """How far a reader of the log is behind its end, and what it could not read.

    Parameters
    ----------
    registry
        Where the series will stand.
    now_ns
        The clock, UTC nanoseconds.
    """

    def __init__(self, registry: CollectorRegistry, now_ns: Callable[[], int] = time.time_ns) -> None:
        self._now_ns = now_ns
        self._behind = (0, 0, 0)
        self._lost = ENTRIES_LOST.counter(registry)
        registry.register(_AtScrape(self._values, LAG_ENTRIES, LAG_BYTES, LAG))

    def read(self, extent: Extent, offset: int, waiting_since_ns: int, lost: Iterable[Lost] = ()) -> None:
        """Say how far the reading has come.

        Parameters
        ----------
        extent
            What the topic holds now.
        offset
            Where the reading goes on.
        waiting_since_ns
            When the oldest entry that was not read came, or, where that is not known, the newest that was.
        lost
            What could not be read since the last call.
        """
        entries = max(extent.next - max(offset, extent.first), 0)
        size = entries * extent.size // max(extent.records, 1)
        self._behind = (entries, min(size, extent.size), waiting_since_ns)
        for gap in lost:
            self._lost.labels(gap.reason if gap.reason in REASONS else OTHER).inc(gap.last - gap.first + 1)

    def _values(self) -> Iterator[Value]:
        entries, size, since_ns = self._behind
        yield LAG_ENTRIES, (), entries
        yield LAG_BYTES, (), size
        yield LAG, (), _age_s(self._now_ns(), since_ns) if entries else 0.0


@dataclass(frozen=True, slots=True)
class SourceStatus:
    """How a source of the processor stands.

    Attributes
    ----------
    name
        The log's key.
    frames
        Data frames decoded so far.
    size
        Bytes read so far.
    dropped
        Frames not used so far, by reason; see `dropped`.
    newest_arrival_ns
        When its newest frame arrived; 0 where none has.
    pmus
        In its configuration.
    """

    name: str
    frames: int
    size: int
    dropped: Mapping[str, int]
    newest_arrival_ns: int
    pmus: int


def dropped(counts: Counts, aligned: align.Counts | None, place: int) -> dict[str, int]:
    """Put together why frames of a source were not used.

    Parameters
    ----------
    counts
        Of its stream of bytes.
    aligned
        Of all sources; None before the first frame.
    place
        Where the source stands among them.

    Returns
    -------
    dict[str, int]
        By reason, those that occurred.
    """
    out = {reason.value: count for reason, count in counts.refused.copy().items()}
    if aligned is not None:
        rows = zip(ALIGNMENT_REASONS, (aligned.late, aligned.duplicate, aligned.ahead), strict=True)
        out |= {reason: int(row[place]) for reason, row in rows if row[place]}
    return out


class ProcessorMetrics:
    """What the processor says.

    Parameters
    ----------
    registry
        Where the series will stand.
    sources
        Says at each scrape how the sources stand; called from another thread.
    now_ns
        The clock, UTC nanoseconds.

    Attributes
    ----------
    reading
        How far it is behind the log's end.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        sources: Callable[[], Sequence[SourceStatus]],
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.reading = ReadingMetrics(registry, now_ns)
        self._sources, self._now_ns = sources, now_ns
        self._started_ns = self._snapshot_ns = now_ns()
        self._scored_to_ns: int | None = None
        self._dead_letters = DEAD_LETTERS.counter(registry)
        self._latency = WINDOW_LATENCY.histogram(registry)
        self._step = STEP.histogram(registry)
        self._events = EVENTS.counter(registry)
        self._open_events = OPEN_EVENTS.gauge(registry)
        self._learning = LEARNING.gauge(registry)
        self._learning_pmus = LEARNING_PMUS.gauge(registry)
        self._model = MODEL.gauge(registry)
        self._state_size = STATE_SIZE.gauge(registry)
        self._snapshot = SNAPSHOT.histogram(registry)
        self._snapshot_size = SNAPSHOT_SIZE.gauge(registry)
        self._snapshot_failures = SNAPSHOT_FAILURES.counter(registry)
        self._restores = RESTORES.counter(registry)
        for cause in Cause:  # a series that is there from the start shows its first event as an increase
            self._open_events.labels(cause.value)
            for stage in ("raised", "ended"):
                self._events.labels(cause.value, stage)
        registry.register(
            _AtScrape(self._values, FRAMES, BYTES, DROPPED, SOURCE_AGE, PMUS, EVENT_TIME_LAG, SNAPSHOT_AGE)
        )

    def dead_letter(self, reason: str, count: int = 1) -> None:
        """Count frames that were put aside.

        Parameters
        ----------
        reason
            One of `REASONS`; any other is counted as `OTHER`.
        count
            How many.
        """
        self._dead_letters.labels(reason if reason in REASONS else OTHER).inc(count)

    def stepped(self, took_s: float) -> None:
        """Count a step of the pipeline.

        Parameters
        ----------
        took_s
            Computing time.
        """
        self._step.observe(took_s)

    def scored(self, newest_ns: int, latencies_s: Iterable[float]) -> None:
        """Count scored moments.

        Parameters
        ----------
        newest_ns
            Event time of the newest.
        latencies_s
            For each, the time from the arrival of its newest frame to its score.
        """
        self._scored_to_ns = newest_ns
        for latency_s in latencies_s:
            self._latency.observe(latency_s)

    def happened(self, events: Iterable[Event], lasting: Iterable[Event]) -> None:
        """Count events.

        Parameters
        ----------
        events
            Raised or ended since the last call.
        lasting
            All that are open now.
        """
        for event in events:
            self._events.labels(event.cause.value, "raised" if event.end_ns is None else "ended").inc()
        now = Tally(event.cause for event in lasting)
        for cause in Cause:
            self._open_events.labels(cause.value).set(now[cause])

    def model(self, identity: str) -> None:
        """Say which model predicts.

        Parameters
        ----------
        identity
            Of the model.
        """
        self._model.labels(identity[:IDENTITY_LETTERS]).set(1)

    def learning(self, scorer: str, missing_s: float, pmus: int) -> None:
        """Say how much a scorer must still see.

        Parameters
        ----------
        scorer
            Its name.
        missing_s
            Quiet time; 0 where it has learned.
        pmus
            How many it learns.
        """
        self._learning.labels(scorer).set(missing_s)
        self._learning_pmus.labels(scorer).set(pmus)

    def snapshot(self, took_s: float, size_bytes: int, state_bytes: int) -> None:
        """Count a snapshot that was written just now.

        Parameters
        ----------
        took_s
            Time to write it.
        size_bytes
            Its size on disk.
        state_bytes
            What the pipeline remembers, in memory.
        """
        self._snapshot_ns = self._now_ns()
        self._snapshot.observe(took_s)
        self._snapshot_size.set(size_bytes)
        self._state_size.set(state_bytes)

    def snapshot_failed(self) -> None:
        """Count a snapshot that could not be written."""
        self._snapshot_failures.inc()

    def restored(self, result: Restore) -> None:
        """Say how the state was got at the start.

        Parameters
        ----------
        result
            How.
        """
        self._restores.labels(result.value).inc()

    def _values(self) -> Iterator[Value]:
        now_ns = self._now_ns()
        for source in self._sources():
            name = (source.name,)
            yield FRAMES, name, source.frames
            yield BYTES, name, source.size
            yield SOURCE_AGE, name, _age_s(now_ns, source.newest_arrival_ns or self._started_ns)
            yield PMUS, name, source.pmus
            for reason, count in _bounded(source.dropped).items():
                yield DROPPED, (source.name, reason), count
        if self._scored_to_ns is not None:
            yield EVENT_TIME_LAG, (), _age_s(now_ns, self._scored_to_ns)
        yield SNAPSHOT_AGE, (), _age_s(now_ns, self._snapshot_ns)


@dataclass(frozen=True, slots=True)
class StageStatus:
    """How a stage of the processor on Kafka stands.

    Attributes
    ----------
    transactions, aborted, fenced, rebalances, rebalance_s
        As of `gridsense.stage.Counts`.
    behind
        Records not read yet, by partition of those that it has.
    """

    transactions: int
    aborted: int
    fenced: int
    rebalances: int
    rebalance_s: float
    behind: Mapping[int, int]


class KafkaMetrics:
    """What the processor's stages say of their groups.

    Parameters
    ----------
    registry
        Where the series will stand.
    stages
        Says at each scrape how each stands, by name; called from another thread.
    """

    def __init__(self, registry: CollectorRegistry, stages: Callable[[], Mapping[str, StageStatus]]) -> None:
        self._stages = stages
        registry.register(
            _AtScrape(
                self._values,
                *(TRANSACTIONS, ABORTED, PROCESSOR_FENCED, REBALANCES, REBALANCE_TIME, PARTITIONS, PARTITION_LAG),
            )
        )

    def _values(self) -> Iterator[Value]:
        for name, stage in self._stages().items():
            yield TRANSACTIONS, (name,), stage.transactions
            yield ABORTED, (name,), stage.aborted
            yield PROCESSOR_FENCED, (name,), stage.fenced
            yield REBALANCES, (name,), stage.rebalances
            yield REBALANCE_TIME, (name,), stage.rebalance_s
            yield PARTITIONS, (name,), len(stage.behind)
            for partition, entries in stage.behind.items():
                yield PARTITION_LAG, (name, str(partition)), entries


class Restore(StrEnum):
    """How a processor got its state at its start."""

    FRESH = "fresh"
    RESTORED = "restored"
    REFUSED = "refused"


class GatewayMetrics:
    """What the gateway says of its connections and of its writing.

    Parameters
    ----------
    registry
        Where the series will stand.
    status
        Says at each scrape how the connections stand; called from another thread.
    totals
        Says what they have in common; called likewise.
    now_ns
        The clock, UTC nanoseconds.
    spill
        How what Kafka does not take stands on disk; None where the log is not in Kafka.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        status: Callable[[], Sequence[ConnectionStatus]],
        totals: Callable[[], Totals],
        now_ns: Callable[[], int] = time.time_ns,
        spill: SpillStatus | None = None,
    ) -> None:
        self._status, self._totals, self._spill = status, totals, spill
        self._now_ns, self._started_ns = now_ns, now_ns()
        registry.register(
            _AtScrape(
                self._values,
                *(CONNECTIONS, CONNECTION_UP, GATEWAY_FRAMES, GATEWAY_BYTES, GATEWAY_REFUSED, GATEWAY_DROPPED),
                *(CONNECTS, CONFIGURATION_CHANGES, GATEWAY_AGE, GATEWAY_PMUS, RATE),
                *(WAITING, WRITTEN, FAILED_WRITES, CLOCK_STEPS),
                *((STANDBY, SPILL_RECORDS, SPILL_SIZE, SPILLED, KAFKA_FAILURES, FENCED, RECOVERY) if spill else ()),
            )
        )

    def _values(self) -> Iterator[Value]:
        now_ns, connections, totals = self._now_ns(), self._status(), self._totals()
        states = Tally(connection.state for connection in connections)
        for state in State:
            yield CONNECTIONS, (state.value,), states[state]
        for connection in connections:
            name, counts = (connection.name,), connection.counts
            yield CONNECTION_UP, name, connection.state is State.STREAMING
            yield GATEWAY_FRAMES, name, counts.frames
            yield GATEWAY_BYTES, name, counts.frames_bytes
            yield GATEWAY_DROPPED, name, counts.dropped_frames
            yield CONNECTS, name, counts.connects
            yield CONFIGURATION_CHANGES, name, counts.configuration_changes
            yield GATEWAY_AGE, name, _age_s(now_ns, connection.last_frame_ns or self._started_ns)
            yield GATEWAY_PMUS, name, connection.pmus
            yield RATE, name, connection.rate_hz
            for reason, count in _bounded(counts.refused).items():
                yield GATEWAY_REFUSED, (connection.name, reason), count
        yield WAITING, (), totals.gathered_bytes
        yield WRITTEN, (), totals.written_bytes
        yield FAILED_WRITES, (), totals.failed_writes
        yield CLOCK_STEPS, (), totals.clock_steps
        if spill := self._spill:
            yield STANDBY, (), spill.standby
            yield SPILL_RECORDS, (), spill.waiting_records
            yield SPILL_SIZE, (), spill.waiting_bytes
            yield SPILLED, (), spill.spilled_records
            yield KAFKA_FAILURES, (), spill.failures
            yield FENCED, (), spill.fenced
            yield RECOVERY, (), spill.recovery_s


class ArchiveTotals(Protocol):
    """What the archive has done since its start: see `gridsense.archiving.writing.Totals`."""

    batches: int
    files: int
    frames: int
    raw_bytes: int
    file_bytes: int
    undecoded: int
    lost: int
    joined: int
    removed: int


class ArchiveMetrics:
    """What the archive says; how far it is behind the log's end, `LogMetrics` does.

    Parameters
    ----------
    registry
        Where the series will stand.
    totals
        Says at each scrape what was done; called from another thread.
    """

    def __init__(self, registry: CollectorRegistry, totals: Callable[[], ArchiveTotals]) -> None:
        self._totals = totals
        registry.register(
            _AtScrape(self._values, BATCHES, FILES, ARCHIVED, RAW, FILE_SIZE, UNDECODED, GAPS, JOINED, REMOVED)
        )

    def _values(self) -> Iterator[Value]:
        totals = self._totals()
        yield BATCHES, (), totals.batches
        yield FILES, (), totals.files
        yield ARCHIVED, (), totals.frames
        yield RAW, (), totals.raw_bytes
        yield FILE_SIZE, (), totals.file_bytes
        yield UNDECODED, (), totals.undecoded
        yield GAPS, (), totals.lost
        yield JOINED, (), totals.joined
        yield REMOVED, (), totals.removed


class LogMetrics:
    """What the log holds and how far its readers have come, looked up at each scrape through an object of its own.

    So it is told truly also while the service itself hangs.

    Parameters
    ----------
    registry
        Where the series will stand.
    open_log
        Opens the log; called at each scrape from another thread.
    readers
        Topics to tell of, each with the names of its readers.
    now_ns
        The clock, UTC nanoseconds.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        open_log: Callable[[], Log],
        readers: Mapping[str, Sequence[str]],
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._open_log, self._readers, self._now_ns = open_log, readers, now_ns
        registry.register(
            _AtScrape(
                self._values,
                *(LOG_READABLE, LOG_RECORDS, LOG_SIZE, LOG_OLDEST, LOG_NEWEST, READER_LAG_ENTRIES, READER_LAG),
            )
        )

    def _values(self) -> list[Value]:
        try:
            log = self._open_log()
            try:
                return [(LOG_READABLE, (), 1), *self._look(log)]
            finally:
                log.close()
        except LogError:
            return [(LOG_READABLE, (), 0)]

    def _look(self, log: Log) -> Iterator[Value]:
        now_ns = self._now_ns()
        for topic, readers in self._readers.items():
            extent = log.extent(topic)
            yield LOG_RECORDS, (topic,), extent.records
            yield LOG_SIZE, (topic,), extent.size
            if extent.records:
                yield LOG_OLDEST, (topic,), _age_s(now_ns, extent.oldest_ns)
                yield LOG_NEWEST, (topic,), _age_s(now_ns, extent.newest_ns)
            for reader in readers:
                position = log.position(topic, reader)
                if position is None:  # it never was here
                    continue
                offset = max(position, extent.first)
                waiting = log.read(topic, offset, 1).entries
                yield READER_LAG_ENTRIES, (topic, reader), max(extent.next - offset, 0)
                yield READER_LAG, (topic, reader), _age_s(now_ns, waiting[0].time_ns) if waiting else 0.0


SERIES = tuple(value for value in tuple(globals().values()) if isinstance(value, Series))
"""All of them, in the order of this module."""


def describe() -> str:
    """List all series, for people: the text of ``docs/metrics.md``.

    Returns
    -------
    str
        Markdown.
    """
    lines = [
        "# Metrics",
        "",
        "Each service serves these at `/metrics` of its own port (`[metrics]` in the configuration), those of its work",
        "and those of every service; beside them `process_*`, memory, file handles and time of the process. `source`",
        "is the name of a connection. This page is made by `gridsense.metrics.describe`.",
        "",
        "| series | type | labels | meaning |",
        "|---|---|---|---|",
    ]
    lines += [f"| `{s.name}` | {s.kind} | {', '.join(s.labels) or '—'} | {s.meaning} |" for s in SERIES]
    return "\n".join(lines) + "\n"
