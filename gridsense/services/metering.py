"""Counts what a processor does, and serves it: metrics, and signs of life.

In: its steps, and answers about how far it is. Out: Prometheus series and readiness over HTTP. It decides nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from prometheus_client import CollectorRegistry

from gridsense.config import Config
from gridsense.life import Heartbeat, LifeServer, Readiness
from gridsense.log_opening import open_log
from gridsense.metrics import LogMetrics, ProcessorMetrics, Restore, ServiceMetrics, SourceStatus
from gridsense.processor import READER, Step
from gridsense.regions import Region
from gridsense.sequence import Model
from streams.log import DEAD_LETTERS, FRAMES, Extent

log = logging.getLogger(__name__)

BEHIND_S = 30.0
"""Reading so far behind what has come is not ready."""

_NOTE_S = 1.0


@dataclass(frozen=True, slots=True)
class Behind:
    """How far a processor is behind.

    Attributes
    ----------
    extent
        Of the log.
    place
        Where the reading goes on.
    since_ns
        When the newest came that was read.
    lag_s
        How far that lies behind what has come.
    """

    extent: Extent
    place: int
    since_ns: int
    lag_s: float


class Watched(Protocol):
    """What is counted."""

    def regions(self) -> Iterable[Region]:
        """Those at work; asked between two steps."""
        ...

    def behind(self, step: Step) -> Behind:
        """Say how far it is behind, about once a second."""
        ...


class Meter:
    """Counts what a processor does, and serves it.

    Parameters
    ----------
    config
        Where it is served.
    model
        Of the sequence scorer; None where it is not used.

    Attributes
    ----------
    heartbeat
        Of the main loop.
    trouble
        Why it cannot work; empty where it does.
    registry
        Where the series stand.
    """

    def __init__(self, config: Config, model: Model | None) -> None:
        self.heartbeat = Heartbeat()
        self.trouble = "the state is being restored"
        self.registry = CollectorRegistry()
        self._config = config
        self._watched: Watched | None = None
        ServiceMetrics(self.registry, self.heartbeat.age_s)
        self._metrics = ProcessorMetrics(self.registry, lambda: self._sources)
        if not config.log_servers:  # Kafka's own exporters tell what it holds
            LogMetrics(self.registry, lambda: open_log(config), {FRAMES: [READER], DEAD_LETTERS: []})
        self._model = model
        self._sources: tuple[SourceStatus, ...] = ()
        self._behind_s = 0.0
        self._noted_s = 0.0

    def watch(self, watched: Watched) -> None:
        """Say what is counted, before it begins.

        Parameters
        ----------
        watched
            Asked in the thread of the steps.
        """
        self._watched = watched

    @contextmanager
    def served(self) -> Iterator[None]:
        """Serve, where the configuration names a port.

        Yields
        ------
        None
            While it does.
        """
        port = self._config.metrics.processor_port
        if not port:
            yield
            return
        host, key = self._config.metrics.host, "metrics.processor_port"
        with LifeServer(host, port, self.registry, self.heartbeat, self._ready, key=key) as server:
            log.info("signs of life at http://%s:%d", host, server.port)
            yield

    def began(self, how: str) -> None:
        """Count a start.

        Parameters
        ----------
        how
            ``fresh``, ``restored`` or ``refused``.
        """
        self._metrics.restored(Restore(how))
        if self._watched is not None:
            open_ = (event for region in self._watched.regions() for event in region.pipeline.open_events())
            self._metrics.happened((), open_)

    def stepped(self, step: Step) -> None:
        """Count a reading.

        Parameters
        ----------
        step
            What it came to.
        """
        self.count(step)
        if step.lost or time.monotonic() - self._noted_s >= _NOTE_S:
            self._noted_s = time.monotonic()
            if self._watched is not None:
                behind = self._watched.behind(step)
                self._metrics.reading.read(behind.extent, behind.place, behind.since_ns, step.lost)
                self._behind_s = behind.lag_s
            self._sources = self._told()

    def count(self, step: Step) -> None:
        """Count a reading, and do not ask how far it is.

        Parameters
        ----------
        step
            What it came to.
        """
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

    def saved(self, took_s: float, size: int, state_bytes: int) -> None:
        """Count a snapshot.

        Parameters
        ----------
        took_s
            To write it.
        size
            Bytes written.
        state_bytes
            Bytes remembered.
        """
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
        regions = self._watched.regions() if self._watched is not None else ()
        return tuple(status for region in regions for status in sources_of(region))


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
