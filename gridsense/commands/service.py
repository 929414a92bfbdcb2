"""What every service's command does at its start and at its end: configuration, log lines, signals."""

from __future__ import annotations

import logging
import resource
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from gridsense.config import Config, load
from gridsense.logs import set_up
from gridsense.mirroring import status_place
from gridsense.pipeline import Pipeline
from gridsense.status import ProcessorBoard

log = logging.getLogger(__name__)


@contextmanager
def configured(path: Path | None, overrides: Sequence[str] = ()) -> Iterator[Config]:
    """Read the configuration, and log as it says until the end.

    Parameters
    ----------
    path
        The file; None for none.
    overrides
        What goes before it.

    Yields
    ------
    Config
        Checked. A `UsageError` says everything that is wrong.
    """
    loaded = load(path, overrides)
    undo = set_up(loaded.config.logging.level, loaded.config.logging.format)
    try:
        for warning in loaded.warnings:
            log.warning("%s", warning)
        yield loaded.config
    finally:
        undo()


@contextmanager
def stopping(also: Callable[[], object] = lambda: None) -> Iterator[threading.Event]:
    """Take SIGTERM and SIGINT as the wish to stop.

    Parameters
    ----------
    also
        Called then, in the main thread between two instructions.

    Yields
    ------
    threading.Event
        Set when it is time to stop.
    """
    stop = threading.Event()

    def told(number: int, _: FrameType | None) -> None:
        log.info("%s: stopping", signal.Signals(number).name)
        stop.set()
        also()

    before = {number: signal.signal(number, told) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def make_room_for(files: int) -> None:
    """Let this process open so many files and sockets, as far as it may.

    Parameters
    ----------
    files
        How many.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < files:
        with suppress(OSError, ValueError):
            most = files if hard == resource.RLIM_INFINITY else min(files, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def board(config: Config) -> ProcessorBoard:
    """Make what says in the store how the processor is, for `gridsense watch`.

    Parameters
    ----------
    config
        Where the store is.

    Returns
    -------
    ProcessorBoard
        An observer; close it at the end.
    """
    settings = config.pipeline_settings()
    return ProcessorBoard(status_place(config), Pipeline(settings).threshold, settings.source)
