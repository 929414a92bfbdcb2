"""The processor on Kafka as a service: two stages, each a member of its group and a thread, until told to stop.

In: a configuration whose log is in Kafka. Out: what the stages write; metrics and signs of life; in the topic of
statuses, how each region is. What is done with frames stands in `gridsense.works`, what makes it exactly once in
`gridsense.stage`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from typing import Any

from gridsense.config import Config
from gridsense.errors import UsageError
from gridsense.events import Event
from gridsense.fleet import name_of
from gridsense.log_opening import kafka_settings, log_place, open_log
from gridsense.metrics import KafkaMetrics, StageStatus
from gridsense.pipeline import Learned, Pipeline
from gridsense.processor import NOTHING, Step
from gridsense.regions import Region
from gridsense.services import metering
from gridsense.stage import Behind, Stage
from gridsense.stage import Settings as StageSettings
from gridsense.status import ProcessorBoard, StatusSink
from gridsense.works import JOINT, JoiningWork, RegionalWork, Settings, Watch
from streams.errors import UnreachableError
from streams.gateway.clock import SteadyClock
from streams.kafka.log import KafkaLog
from streams.kafka.member import MemberSettings, Outgoing
from streams.kafka.settings import KafkaSettings
from streams.log import CONFIGURATIONS, FRAMES, JOIN_STATE, REGIONAL, STATE, STATUS, Entry, Extent

log = logging.getLogger(__name__)

REGIONS, JOIN = "regions", "join"
"""The stages, as metrics name them."""
HURRY_S = 6.0
"""Told to stop, a stage is left so long to finish what it has in hand; then it gives up waiting for servers."""
SILENT_S = 10.0
"""A stage whose loop has not come round for so long waits for servers, as a rule."""
HUNG_S = 330.0
"""Beyond the longest that a transaction is tried for: it hangs."""
CONFIGURATIONS_S = 5.0
"""What the topic of configurations held is known for so long."""
ONCE_S = 0.5
"""Told to read to the end, it is looked this often whether it is reached."""
_QUIET_S = 2.0


def process_group(
    config: Config,
    stop: threading.Event,
    *,
    once: bool = False,
    watch: Sequence[Watch] = (),
    learned: Learned | None = None,
) -> None:
    """Process the partitions that the group gives this process, until told to stop.

    A `streams.errors.LogError` says that Kafka cannot be used at the beginning, or that another process of the same
    name has taken over.

    Parameters
    ----------
    config
        Where Kafka is, and everything else.
    stop
        Set it to stop: what is in hand is committed, what is remembered saved.
    once
        Stop when the group has read all that was there at the beginning.
    watch
        Told of every step, once it is committed, in the threads of the stages.
    learned
        What is typical, where no snapshot says it.
    """
    kafka = kafka_settings(config)
    settings = works_settings(config)
    clock = SteadyClock()
    told = _Told(config, settings, watch)
    configurations = _Configurations(config)
    first = Stage(
        kafka,
        stage_settings(config),
        lambda n: RegionalWork(n, settings, configurations.of, learned, told.first, clock.now_ns),
        told.observer(REGIONS),
        told.outbox.taken,
    )
    second = Stage(
        kafka,
        joining_settings(config),
        lambda _: JoiningWork(settings, told.second, clock.now_ns),
        told.observer(JOIN),
        told.joint_outbox.taken,
    )
    told.stages = {REGIONS: first, JOIN: second}
    with ExitStack() as stack:
        stack.callback(told.close_regions)
        for stage in (first, second):
            stack.callback(stage.close)
            stage.open()
        stack.enter_context(told.meter.served())
        log.info("processing %s in group %s", log_place(config), config.kafka.group)
        threads = [_Thread(first, told.close_regions), _Thread(second, told.close_joint)]
        stack.callback(_end, threads)
        for thread in threads:
            thread.start()
        for thread in threads if once else ():
            _until_read(thread, kafka, stop)
            thread.end()
        while not stop.wait(0.5) and all(thread.is_alive() for thread in threads):
            told.beat()
    for thread in threads:
        thread.check()
    log.info("stopped")


def works_settings(config: Config) -> Settings:
    """Take out of a configuration what the works are told.

    Parameters
    ----------
    config
        The whole.

    Returns
    -------
    Settings
        For `gridsense.works`.

    Raises
    ------
    UsageError
        If predictions are wanted, and no model predicts.
    """
    it, pipeline = config.kafka, config.pipeline_settings()
    if it.predictions and pipeline.model is None:
        raise UsageError("kafka.predictions = true: nothing predicts; name `sequence` in scoring.scorers, or set false")
    return Settings(
        pipeline,
        idle_s=it.idle,
        scores=it.scores,
        predicted=pipeline.model.spec if it.predictions and pipeline.model is not None else None,
        patience_s=it.join_patience,
        regions=it.regions,
    )


def stage_settings(config: Config) -> StageSettings:
    """Take out of a configuration what the first stage is told.

    Parameters
    ----------
    config
        The whole.

    Returns
    -------
    StageSettings
        For `gridsense.stage`.
    """
    it = config.kafka
    member = MemberSettings(it.group, FRAMES, it.instance, session_s=it.session, transaction_s=it.transaction)
    return StageSettings(member, STATE, snapshot_s=config.store.snapshot_every, max_lag_s=it.max_lag)


def joining_settings(config: Config) -> StageSettings:
    """Take out of a configuration what the second stage is told.

    Parameters
    ----------
    config
        The whole.

    Returns
    -------
    StageSettings
        Of a group beside that of the first; it never skips.
    """
    first = stage_settings(config)
    member = replace(first.member, group=f"{config.kafka.group}-join", topic=REGIONAL)
    return replace(first, member=member, state=JOIN_STATE, max_lag_s=0.0)


class _Thread(threading.Thread):
    """A stage at work."""

    def __init__(self, stage: Stage[Any], closing: Callable[[], None]) -> None:
        super().__init__(name=stage.settings.member.group)
        self.stage, self.closing = stage, closing
        self.stop = threading.Event()
        self.error: Exception | None = None

    def run(self) -> None:
        """Work until told to stop, and say last words."""
        try:
            self.stage.run(self.stop)
            self.closing()
            self.stage.close()
        except Exception as error:  # noqa: BLE001 (raised again in the thread that waits)
            self.error = error

    def check(self) -> None:
        """Raise what ended it."""
        if self.error is not None:
            raise self.error

    def end(self) -> None:
        """Have it stop, and wait until it has."""
        self.stop.set()
        self.join(HURRY_S)
        if self.is_alive():
            self.stage.interrupt()
            self.join()


def _end(threads: Sequence[_Thread]) -> None:
    """Stop all at once, the first stage first."""
    for thread in threads:
        thread.stop.set()
    for thread in threads:
        if thread.ident is not None:
            thread.end()


def _until_read(thread: _Thread, kafka: KafkaSettings, stop: threading.Event) -> None:
    """Wait until the group of a stage has committed that all which is there now is read."""
    it = thread.stage.settings.member
    with closing(KafkaLog(kafka)) as reading:
        ends = reading.ends(it.topic)
        while thread.is_alive() and not stop.wait(ONCE_S):
            with suppress(UnreachableError):
                places = reading.positions(it.topic, it.group)
                if all(places.get(partition, 0) >= end for partition, end in ends.items()):
                    return


class _Configurations:
    """What the compacted topic says of a connection whose data came before its configuration."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._known: Mapping[str, Entry] = {}
        self._asked_s = float("-inf")

    def of(self, key: str) -> bytes:
        """Ask; the whole topic is read, and not again for a while."""
        if time.monotonic() - self._asked_s > CONFIGURATIONS_S:
            reading = open_log(self._config)
            try:
                self._known = reading.latest(CONFIGURATIONS)
            finally:
                reading.close()
            self._asked_s = time.monotonic()
        entry = self._known.get(key)
        return entry.value if entry else b""


class _Outbox:
    """What boards say, until it is written: the newest of each."""

    def __init__(self) -> None:
        self._said: dict[str, Outgoing] = {}
        self._lock = threading.Lock()

    def put(self, key: str, body: bytes) -> None:
        """Say something, in place of what was said before."""
        with self._lock:
            self._said[key] = Outgoing(STATUS, 0, key, body, time_ns=time.time_ns())

    def drop(self, key: str) -> None:
        """Do not say it after all."""
        with self._lock:
            self._said.pop(key, None)

    def taken(self) -> list[Outgoing]:
        """Take out what is to be written."""
        with self._lock:
            said, self._said = self._said, {}
        return list(said.values())

    def sink(self, part: str) -> Callable[[], StatusSink]:
        """Make the place of a board."""
        return lambda: _Sink(self, part)


@dataclass(frozen=True, slots=True)
class _Sink:
    outbox: _Outbox
    part: str

    def put_status(self, name: str, body: bytes) -> None:
        self.outbox.put(name_of(name, self.part), body)

    def close(self) -> None:
        """Nothing is open."""


class _Told:
    """Tells everybody what the stages do: metrics, boards, and who else watches."""

    def __init__(self, config: Config, settings: Settings, watch: Sequence[Watch]) -> None:
        self.meter = metering.Meter(config, settings.pipeline.model)
        self.meter.watch(self)
        self.outbox, self.joint_outbox = _Outbox(), _Outbox()
        self.stages: Mapping[str, Stage[Any]] = {}
        self._watch = watch
        self._source = settings.pipeline.source
        self._threshold = Pipeline(settings.pipeline).threshold
        self._boards: dict[str, ProcessorBoard] = {}
        self._joint = ProcessorBoard(self.joint_outbox.sink(JOINT), self._threshold, self._source)
        self._stepped_s: dict[str, float] = {}
        self._lasting: dict[str, Sequence[Event]] = {}
        self._behind: dict[str, Mapping[int, Behind]] = {REGIONS: {}, JOIN: {}}
        self._how: dict[str, str] = {}
        self._lock = threading.RLock()
        KafkaMetrics(self.meter.registry, self._statuses)

    # --- steps --------------------------------------------------------------------------------------------------------

    def first(self, step: Step) -> None:
        """Be told of a step of the first stage."""
        with self._lock:
            self._lasting[step.region] = step.lasting
            self.meter.stepped(replace(step, lasting=self._all_lasting()))
        self._board(step.region).stepped(step)
        self._stepped_s[step.region] = time.monotonic()
        for watch in self._watch:
            watch(step)

    def second(self, step: Step) -> None:
        """Be told of a step of the second."""
        with self._lock:
            self._lasting[step.region] = step.lasting
            self.meter.count(replace(step, lasting=self._all_lasting()))
        self._joint.stepped(step)
        for watch in self._watch:
            watch(step)

    def observer(self, name: str) -> _Observer:
        """Make what one of the stages tells."""
        return _Observer(self, name)

    def told(self, name: str, behind: Mapping[int, Behind]) -> None:
        """Be told how far a stage is; who has nothing to say says that it is there."""
        self._behind[name] = behind
        if name == JOIN:
            return
        now_s = time.monotonic()
        here: set[str] = set()
        for region in self.regions():
            here.add(region.name)
            if now_s - self._stepped_s.get(region.name, 0.0) > _QUIET_S:
                self.first(replace(_empty(region.name), lasting=region.lasting(), clock_ns=region.intake.clock_ns))
        for gone in self._boards.keys() - here - {""}:
            self._boards.pop(gone).close()
            self.outbox.drop(name_of("processor", gone))
            with self._lock:
                self._lasting.pop(gone, None)

    def began(self, name: str, how: str) -> None:
        """Be told where a state came from."""
        with self._lock:
            self.meter.began(how)
        self._how[name] = how
        if name == JOIN:
            self._joint.began(how)

    # --- what is asked ------------------------------------------------------------------------------------------------

    def regions(self) -> Iterator[Region]:
        """Those at work here; asked in the thread of the first stage."""
        for work in self.stages[REGIONS].works.values():
            if isinstance(work, RegionalWork):
                yield from work.regions.by_name.values()

    def behind(self, step: Step) -> metering.Behind:  # noqa: ARG002 (the meter's form)
        """How far the first stage is behind, all partitions together."""
        behind = self._behind[REGIONS].values()
        entries = sum(one.entries for one in behind)
        lag_s = max((one.lag_s for one in behind), default=0.0)
        extent = Extent(0, entries, entries, 0, 0, 0)
        return metering.Behind(extent, 0, time.time_ns() - round(lag_s * 1e9), lag_s)

    def beat(self) -> None:
        """Be alive while the stages are, and say what troubles them."""
        now_s = time.monotonic()
        age_s = max(now_s - stage.beat_s for stage in self.stages.values())
        if age_s < HUNG_S:
            self.meter.heartbeat.beat()
        trouble = next((stage.trouble for stage in self.stages.values() if stage.trouble), "")
        self.meter.trouble = trouble or (f"Kafka has not answered for {age_s:.0f} s" if age_s > SILENT_S else "")

    def close_regions(self) -> None:
        """Have the boards of the first stage say their last words."""
        for board in self._boards.values():
            board.close()
        self._boards.clear()

    def close_joint(self) -> None:
        """Likewise that of the second."""
        self._joint.close()

    def _board(self, region: str) -> ProcessorBoard:
        board = self._boards.get(region)
        if board is None:
            board = ProcessorBoard(
                self.outbox.sink(region), self._threshold, self._source, behind=lambda _: self._entries(region)
            )
            board.began(self._how.get(REGIONS, ""))
            self._boards[region] = board
        return board

    def _entries(self, region: str) -> int:
        """Entries that a partition is behind, told once, by the first of its regions."""
        for partition, work in self.stages[REGIONS].works.items():
            if isinstance(work, RegionalWork) and next(iter(work.regions.by_name), None) == region:
                behind = self._behind[REGIONS].get(partition)
                return behind.entries if behind is not None else 0
        return 0

    def _all_lasting(self) -> list[Event]:
        return [event for lasting in self._lasting.values() for event in lasting]

    def _statuses(self) -> dict[str, StageStatus]:
        out = {}
        for name, stage in self.stages.items():
            it = stage.counts
            behind = {partition: one.entries for partition, one in self._behind[name].items()}
            out[name] = StageStatus(it.transactions, it.aborted, it.fenced, it.rebalances, it.rebalance_s, behind)
        return out


@dataclass(frozen=True, slots=True)
class _Observer:
    """What one of the stages tells."""

    all: _Told
    name: str

    def saved(self, took_s: float, size: int, state_bytes: int) -> None:
        self.all.meter.saved(took_s, size, state_bytes)

    def save_failed(self) -> None:
        self.all.meter.save_failed()

    def began(self, how: str) -> None:
        self.all.began(self.name, how)

    def told(self, behind: Mapping[int, Behind]) -> None:
        self.all.told(self.name, behind)


def _empty(region: str) -> Step:
    """Make the step of a region that has nothing to say."""
    return Step(region, 0, NOTHING.outputs, (), (), (), (), (), 0.0, 0)
