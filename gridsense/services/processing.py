"""The processor as a service: it reads until it is told to stop, tells how it is, and takes a trouble for a pause.

In: a configuration. Out: events and snapshots in the store, metrics and signs of life. What is done with frames stands
in `gridsense.processor`.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from prometheus_client import CollectorRegistry

from gridsense.config import Config
from gridsense.errors import StoreError
from gridsense.life import Heartbeat, LifeServer, Readiness
from gridsense.log_opening import log_place, open_log
from gridsense.metrics import LogMetrics, ProcessorMetrics, Restore, ServiceMetrics, SourceStatus
from gridsense.pipeline import Learned
from gridsense.processor import READER, Observer, Processor, Settings, Step
from gridsense.regions import Region
from gridsense.sequence import Model
from streams.errors import LogError
from streams.gateway.clock import SteadyClock
from streams.log import DEAD_LETTERS, FRAMES, Log

log = logging.getLogger(__name__)

RETRY_S = 1.0
"""How long to wait where the log or the store cannot be used."""

BEHIND_S = 30.0
"""Reading so far behind what has come is not ready."""

_NOTE_S = 1.0


@contextmanager
def alone(store: Path) -> Iterator[None]:
    """Be the only processor that writes into a store: two would each say what the other denies.

    A file beside the store is locked as long as this process lives, however it ends. The file stays.

    Parameters
    ----------
    store
        The event store's file.

    Yields
    ------
    None
        While nobody else may.

    Raises
    ------
    StoreError
        If another has it, or nothing can be written there.
    """
    real = store.resolve()
    path = real.with_name(f"{real.name}.lock")
    try:
        held = path.open("a+", encoding="ascii", errors="replace")
    except OSError as error:
        raise StoreError(f"event store {store}: {path}: {error.strerror}; name a file that can be written") from error
    with held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            held.seek(0)
            raise StoreError(
                f"event store {store}: another processor (process {held.read().strip() or 'unknown'}) writes it; "
                "stop that one, or name another file in store.path"
            ) from error
        except OSError as error:
            raise StoreError(f"event store {store}: {path}: {error.strerror}; use a local disk") from error
        held.truncate(0)
        held.write(f"{os.getpid()}\n")
        held.flush()
        yield


def processor_settings(config: Config) -> Settings:
    """Take the processor's settings out of a configuration.

    Parameters
    ----------
    config
        The whole.

    Returns
    -------
    Settings
        For `Processor`.
    """
    return Settings(config.pipeline_settings(), snapshot_s=config.store.snapshot_every)


def process(
    config: Config,
    stop: threading.Event,
    *,
    ended: threading.Event | None = None,
    close: bool = False,
    observers: Sequence[Observer] = (),
    learned: Learned | None = None,
) -> Processor:
    """Process the log as it grows.

    Parameters
    ----------
    config
        Where the log and the store are, and everything else.
    stop
        Set it to stop; what is being read is finished and saved first.
    ended
        Once it is set nothing more will be written, and the end of the log is the end; None where more may always come.
    close
        At the end take the frames as ended: close every window, as at the end of a file.
    observers
        Told what is done, besides metrics.
    learned
        What is typical, where no snapshot says it.

    Returns
    -------
    Processor
        Closed; it knows how far it came.

    Raises
    ------
    LogError
        If the log cannot be opened, or not be read to its end where it has one.
    StoreError
        The same of the store, or if another processor is at work on it.
    """
    settings = processor_settings(config)
    clock = SteadyClock()
    with ExitStack() as stack:
        stack.enter_context(alone(config.store_path))
        reading = stack.enter_context(_opened(config))
        meter = _Meter(config, reading, settings.pipeline.model)
        processor = Processor(settings, reading, config.store_path, (meter, *observers), clock.now_ns, learned=learned)
        meter.processor = processor
        stack.enter_context(meter.served())
        processor.open()
        stack.callback(processor.close)
        meter.trouble = ""
        log.info("processing %s from offset %d into %s", log_place(config), processor.place, config.store_path)
        while not stop.is_set():
            began_s = time.monotonic()
            meter.heartbeat.beat()
            last = ended is not None and ended.is_set()
            try:
                worked = processor.step()
                if not worked and last:
                    break
                if not worked:
                    processor.mark_time()
                meter.trouble = ""
            except (LogError, StoreError) as error:
                log.error("%s; trying again in %g s", error, RETRY_S)  # noqa: TRY400 (no bug: an expected trouble)
                meter.trouble = str(error)
                if last:
                    raise
                stop.wait(RETRY_S)
                continue
            stop.wait(0.0 if last else max(0.0, settings.pace_s - (time.monotonic() - began_s)))
        if close:
            processor.finish()
    log.info("stopped at offset %d", processor.place)
    return processor


@contextmanager
def _opened(config: Config) -> Iterator[Log]:
    reading = open_log(config)
    try:
        yield reading
    finally:
        reading.close()


class _Meter:
    """Counts what the processor does, and serves it."""

    def __init__(self, config: Config, reading: Log, model: Model | None) -> None:
        self.heartbeat = Heartbeat()
        self.trouble = "the state is being restored"
        self.processor: Processor | None = None
        self._config = config
        self._log = reading
        self._registry = CollectorRegistry()
        ServiceMetrics(self._registry, self.heartbeat.age_s)
        self._metrics = ProcessorMetrics(self._registry, lambda: self._sources)
        LogMetrics(self._registry, lambda: open_log(config), {FRAMES: [READER], DEAD_LETTERS: []})
        self._model = model
        self._sources: tuple[SourceStatus, ...] = ()
        self._behind_s = 0.0
        self._noted_s = 0.0

    @contextmanager
    def served(self) -> Iterator[None]:
        """Serve, where the configuration names a port."""
        port = self._config.metrics.processor_port
        if not port:
            yield
            return
        host, key = self._config.metrics.host, "metrics.processor_port"
        with LifeServer(host, port, self._registry, self.heartbeat, self._ready, key=key) as server:
            log.info("signs of life at http://%s:%d", host, server.port)
            yield

    def began(self, how: str) -> None:
        """Count the start."""
        self._metrics.restored(Restore(how))
        if self.processor is not None:
            self._metrics.happened((), self.processor.regions.open_events())

    def stepped(self, step: Step) -> None:
        """Count a reading."""
        metrics = self._metrics
        metrics.stepped(step.took_s)
        metrics.happened(step.events, step.lasting)
        for letter in step.dead:
            metrics.dead_letter(letter.reason)
        for output in step.outputs:
            for track, layer in zip(output.scored.ticks.tracks, output.scored.layers, strict=True):
                if layer.missing_s.size:
                    missing_s = layer.missing_s[-1]
                    metrics.learning(track.name, float(missing_s.max()), int((missing_s > 0).sum()))
            if self._model is not None and output.scored.forecast is not None:
                metrics.model(self._model.identity)
        if step.latency_s:
            metrics.scored(
                max(int(o.scored.ticks.time_ns[-1]) for o in step.outputs if len(o.scored.ticks.time_ns)),
                step.latency_s,
            )
        if step.lost or time.monotonic() - self._noted_s >= _NOTE_S:
            self._noted_s = time.monotonic()
            extent = self._log.extent(FRAMES)
            metrics.reading.read(extent, step.place, step.clock_ns, step.lost)
            self._behind_s = max(extent.newest_ns - step.clock_ns, 0) / 1e9
            self._sources = self._told()

    def saved(self, took_s: float, size: int, state_bytes: int) -> None:
        """Count a snapshot."""
        self._metrics.snapshot(took_s, size, state_bytes)

    def save_failed(self) -> None:
        """Count a snapshot that failed."""
        self._metrics.snapshot_failed()

    def _ready(self) -> Readiness:
        reasons = [self.trouble] if self.trouble else []
        if self._behind_s > BEHIND_S:
            reasons.append(f"reading is {self._behind_s:.0f} s behind what has come")
        return Readiness(tuple(reasons))

    def _told(self) -> tuple[SourceStatus, ...]:
        """Say how the sources stand; made in the processor's thread, read in others."""
        if self.processor is None:
            return ()
        return tuple(status for region in self.processor.regions.by_name.values() for status in sources_of(region))


def sources_of(region: Region) -> list[SourceStatus]:
    """Say how the sources of a region stand.

    Parameters
    ----------
    region
        Between two readings.

    Returns
    -------
    list[SourceStatus]
        One for each connection that was heard.
    """
    intake, counts = region.intake, region.pipeline.counts()
    pmus: dict[str, int] = {}
    dropped = {key: dict(reasons) for key, reasons in intake.dropped.items()}
    if counts is not None:
        names, aligned = counts
        for n, (name, table) in enumerate(region.pipeline.tables.items()):
            key = name.rpartition("#")[0]
            pmus[key] = pmus.get(key, 0) + len(table.pmus)
            place = names.index(name) if names[n] != name else n
            reasons = dropped.setdefault(key, {})
            for reason, column in (("late", aligned.late), ("duplicate", aligned.duplicate), ("ahead", aligned.ahead)):
                if column[place]:
                    reasons[reason] = reasons.get(reason, 0) + int(column[place])
    return [
        SourceStatus(
            key, intake.frames[key], size, dropped.get(key, {}), intake.newest_ns.get(key, 0), pmus.get(key, 0)
        )
        for key, size in intake.bytes.items()
    ]
