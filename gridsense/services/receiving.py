"""The gateway as a service: connections into the log, the log kept within its retention, signs of life.

In: a configuration. Out: records in the log. How a connection is held stands in `streams.gateway`.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace

from prometheus_client import CollectorRegistry

from gridsense.config import Config, ConnectionSection
from gridsense.errors import UsageError
from gridsense.life import Heartbeat, LifeServer, Readiness
from gridsense.log_opening import kafka_settings, log_place, open_log
from gridsense.metrics import GatewayMetrics, LogMetrics, ServiceMetrics
from streams.errors import LogError
from streams.gateway.gateway import Gateway
from streams.gateway.settings import ConnectionSettings, GatewaySettings, Transport
from streams.gateway.spill import SpillSettings, SpillStatus, open_spill
from streams.gateway.status import ConnectionStatus, Totals
from streams.gateway.writer import Sink
from streams.log import DEAD_LETTERS, FRAMES

log = logging.getLogger(__name__)

RETAIN_S = 60.0
"""How often the log is brought within its retention."""

REQUEST_S = 3.0
"""How long an answer of Kafka is waited for at most, before what comes goes into the spill."""

STOP_S = 10.0
"""What Kafka has not taken by then stays in the spill, for the next start."""

_BEAT_S = 1.0

Note = Callable[[Sequence[ConnectionStatus], Totals], object]
"""Somebody who is told how the connections stand."""


def gateway_settings(config: Config) -> GatewaySettings:
    """Take the gateway's settings out of a configuration.

    Parameters
    ----------
    config
        The whole.

    Returns
    -------
    GatewaySettings
        What is not configured is the gateway's own.
    """
    it = config.gateway
    return GatewaySettings(
        connect_s=it.connect,
        answer_s=it.answer,
        configure_s=it.configure,
        stall_s=it.stall,
        backoff_least_s=it.backoff_min,
        backoff_most_s=it.backoff_max,
        max_pmus=it.max_pmus,
        max_garbage_bytes=it.garbage_size,
        buffer_bytes=it.buffer_size,
        flush_s=it.flush_ms / 1e3,
        stop_s=STOP_S if config.log_servers else GatewaySettings().stop_s,
        mark_s=config.kafka.mark if config.log_servers else 0.0,
        allow_shared_id_codes=it.allow_shared_id_codes,
    )


def connection_settings(connections: Sequence[ConnectionSection]) -> list[ConnectionSettings]:
    """Take the connections out of a configuration.

    Parameters
    ----------
    connections
        As configured.

    Returns
    -------
    list[ConnectionSettings]
        As the gateway wants them.
    """
    return [
        ConnectionSettings(c.key, c.host, c.port, c.id_code, Transport(c.transport), c.udp_port, c.local_host)
        for c in connections
    ]


async def receive(
    config: Config, connections: Sequence[ConnectionSection], stop: asyncio.Event, note: Note = lambda *_: None
) -> Gateway:
    """Receive into the log until told to stop.

    Parameters
    ----------
    config
        Where the log is, and everything else.
    connections
        The peers.
    stop
        Set it to stop.
    note
        Told about once a second how the connections stand.

    Returns
    -------
    Gateway
        It knows what was counted. A `LogError` says that the log cannot be opened.

    Raises
    ------
    UsageError
        If there is nobody to receive from.
    """
    if not connections:
        raise UsageError("gateway.connections is empty: name at least one PMU or concentrator to receive from")
    spill = SpillStatus() if config.log_servers else None
    settings = connection_settings(connections)
    gateway = Gateway(_sink(config, settings, spill), settings, gateway_settings(config))
    heartbeat = Heartbeat()

    def ready() -> Readiness:
        totals = gateway.totals()
        reasons = [] if totals.streaming else [f"none of {totals.connections} connections streams"]
        if totals.gathered_bytes > config.gateway.buffer_size // 2:
            reasons.append(f"{totals.gathered_bytes:,} bytes wait for the log")
        return Readiness(tuple(reasons))

    registry = CollectorRegistry()
    ServiceMetrics(registry, heartbeat.age_s)
    GatewayMetrics(registry, gateway.status, gateway.totals, spill=spill)
    if not config.log_servers:  # Kafka's own exporters tell what it holds
        LogMetrics(registry, lambda: open_log(config), {FRAMES: [], DEAD_LETTERS: []})
    with ExitStack() as stack:
        host, port = config.metrics.host, config.metrics.gateway_port
        if port:
            key = "metrics.gateway_port"
            server = stack.enter_context(LifeServer(host, port, registry, heartbeat, ready, key=key))
            log.info("signs of life at http://%s:%d", host, server.port)
        log.info("receiving from %d connections into %s", len(connections), log_place(config))
        beating = asyncio.create_task(_beat(heartbeat, lambda: note(gateway.status(), _totals(gateway, spill))))
        ended = threading.Event()
        retaining = [] if config.log_servers else [asyncio.create_task(asyncio.to_thread(_retain, config, ended))]
        try:
            await gateway.run(stop)
        finally:
            ended.set()
            beating.cancel()
            with suppress(asyncio.CancelledError):
                await beating
            note(gateway.status(), _totals(gateway, spill))
            await asyncio.gather(*retaining)
    counts = gateway.totals().counts
    log.info("stopped: %d frames received, %d refused", counts.frames, sum(counts.refused.values()))
    return gateway


def _sink(config: Config, connections: Sequence[ConnectionSettings], status: SpillStatus | None) -> Callable[[], Sink]:
    """Say what makes the place that the gateway writes to: the embedded log, or what stands before Kafka."""
    if status is None:
        return lambda: open_log(config)
    from streams.kafka.sole_writer import SoleWriter  # noqa: PLC0415 - who has no Kafka need not wait for its client

    kafka = config.kafka
    settings = replace(kafka_settings(config), request_s=min(kafka.request, REQUEST_S), client="gridsense-gateway")
    # two of the same connections are a pair; two of others would take them from each other
    sources = zlib.crc32("\n".join(sorted(connection.name for connection in connections)).encode())
    name = f"{kafka.group}-gateway-{config.name}-{sources:08x}"
    limits = SpillSettings(config.spill_path, kafka.spill_size)

    def target() -> SoleWriter:
        return SoleWriter(
            settings, name, standby=kafka.standby, session_s=kafka.session, transaction_s=kafka.transaction
        )

    return lambda: open_spill(target, limits, status)


def _totals(gateway: Gateway, spill: SpillStatus | None) -> Totals:
    """Count what waits on disk, too."""
    totals = gateway.totals()
    if spill is None or spill.standby:
        return totals
    return replace(totals, gathered_bytes=totals.gathered_bytes + spill.waiting_bytes)


async def _beat(heartbeat: Heartbeat, note: Callable[[], object]) -> None:
    """Beat for the event loop."""
    while True:
        heartbeat.beat()
        note()
        await asyncio.sleep(_BEAT_S)


def _retain(config: Config, ended: threading.Event) -> None:
    """Bring the embedded log within its retention, again and again, in a thread of its own."""
    retention = config.retention()
    while not ended.wait(RETAIN_S):
        began_s = time.monotonic()
        try:
            opened = open_log(config)
            try:
                gone = sum(opened.retain(topic, retention) for topic in (FRAMES, DEAD_LETTERS))
            finally:
                opened.close()
        except LogError as error:
            log.error("the log cannot be brought within its retention: %s", error)  # noqa: TRY400 (no bug)
            continue
        if gone:
            log.debug("retention took %d records in %.2f s", gone, time.monotonic() - began_s)
