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
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from gridsense.config import Config
from gridsense.errors import StoreError
from gridsense.log_opening import log_place, open_log
from gridsense.pipeline import Learned
from gridsense.processor import Observer, Processor, Settings, Step
from gridsense.regions import Region
from gridsense.services.metering import Behind, Meter
from streams.errors import LogError
from streams.gateway.clock import SteadyClock
from streams.log import FRAMES, Log

log = logging.getLogger(__name__)

RETRY_S = 1.0
"""How long to wait where the log or the store cannot be used."""


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
        meter = Meter(config, settings.pipeline.model)
        processor = Processor(settings, reading, config.store_path, (meter, *observers), clock.now_ns, learned=learned)
        meter.watch(_Line(processor, reading))
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


class _Line:
    """What the meter wants to know of the processor."""

    def __init__(self, processor: Processor, reading: Log) -> None:
        self._processor = processor
        self._log = reading

    def regions(self) -> Iterable[Region]:
        """All of them."""
        return self._processor.regions.by_name.values()

    def behind(self, step: Step) -> Behind:
        """How far the log goes beyond what was read."""
        extent = self._log.extent(FRAMES)
        return Behind(extent, step.place, step.clock_ns, max(extent.newest_ns - step.clock_ns, 0) / 1e9)
