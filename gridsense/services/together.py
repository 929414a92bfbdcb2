"""Everything in one process: recordings served as PMUs where wanted, the gateway, the log, the processor.

In: a configuration. Out: what each part puts out. For a laptop, or a substation of moderate size; where there are
hundreds of PMUs, a process each uses more cores.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence

from gridsense.config import Config, ConnectionSection
from gridsense.errors import UsageError
from gridsense.pipeline import Learned
from gridsense.processor import Observer, Processor
from gridsense.services.processing import process
from gridsense.services.receiving import Note, receive
from gridsense.simulator.script import Script, made_script, read_script
from gridsense.simulator.server import Settings, Simulator, Transport

TAIL_S = 1.0
"""After the end of a recording the gateway goes on for so long: what is on its way arrives."""

HURRY_S = 5.0
"""Told to stop, the processor reads what has come for so long, and then leaves the rest to the next start."""


def run_together(
    config: Config,
    stop: threading.Event,
    *,
    close: bool = False,
    observers: Sequence[Observer] = (),
    note: Note = lambda *_: None,
    playing: Callable[[Simulator], object] = lambda _: None,
    learned: Learned | None = None,
) -> Processor:
    """Serve, receive and process until told to stop, or until the recordings have ended and all of it is processed.

    Parameters
    ----------
    config
        Where `simulate.files` names recordings they are served, and received beside `gateway.connections`.
    stop
        Set it to stop.
    close
        At the end take the frames as ended: close every window, as at the end of a file.
    observers
        Told what the processor does.
    note
        Told how the connections stand.
    playing
        Told of the simulator, where there is one, before it plays.
    learned
        What is typical, where no snapshot says it.

    Returns
    -------
    Processor
        Closed.

    Raises
    ------
    UsageError
        If the log is in Kafka, there is nobody to receive from, or a recording cannot be served.
    """
    if config.log_servers:
        raise UsageError(
            f"log.url = {config.log.url}: one process has its log in a file; for Kafka run gridsense gateway and "
            "gridsense run (and gridsense simulate-pmu), or set log.url=sqlite:gridsense-log.db"
        )
    source = _Source(config, stop, note, playing)
    source.start()
    try:
        processor = process(config, source.hurry, ended=source.ended, close=close, observers=observers, learned=learned)
    finally:
        stop.set()
        source.join()
    source.check()
    return processor


class _Source(threading.Thread):
    """The simulator and the gateway, on an event loop in a thread of their own."""

    def __init__(
        self, config: Config, stop: threading.Event, note: Note, playing: Callable[[Simulator], object]
    ) -> None:
        super().__init__(name="gateway", daemon=True)
        self.config, self.stop, self.note, self.playing = config, stop, note, playing
        self.ended, self.hurry = threading.Event(), threading.Event()
        self.hurried = False
        self.trouble: Exception | None = None

    def run(self) -> None:
        """Receive until the end."""
        hurry = threading.Timer(HURRY_S, self.hurry.set)
        hurry.daemon = True
        try:
            asyncio.run(self._receive())
        except Exception as error:  # noqa: BLE001 (raised again in the thread that waits)
            self.trouble = error
        finally:
            self.ended.set()
            if self.hurried:
                hurry.start()

    def check(self) -> None:
        """Raise what ended it too early."""
        if self.trouble is not None:
            raise self.trouble

    async def _receive(self) -> None:
        simulate, connections = self.config.simulate, [*self.config.gateway.connections]
        script = await asyncio.to_thread(_script, self.config) if simulate.files else None
        stopping = asyncio.Event()
        tasks = [asyncio.create_task(self._stopped(stopping))]
        try:
            if script is not None:
                simulator = Simulator(script, _settings(self.config))
                await simulator.start()
                self.playing(simulator)
                connections += served(simulator)
                tasks.append(asyncio.create_task(_play(simulator, stopping, alone=not self.config.gateway.connections)))
            await receive(self.config, connections, stopping, self.note)
        finally:
            self.hurried = self.stop.is_set()
            self.stop.set()
            await asyncio.gather(*tasks)

    async def _stopped(self, stopping: asyncio.Event) -> None:
        """Pass on that it is time to stop."""
        await asyncio.to_thread(self.stop.wait)
        stopping.set()


async def _play(simulator: Simulator, stopping: asyncio.Event, *, alone: bool) -> None:
    """Play to the end; where nothing else is received, that is the end of all."""
    waiting = asyncio.create_task(stopping.wait())
    waiting.add_done_callback(lambda _: simulator.stop())
    try:
        await simulator.run()
        if alone and not stopping.is_set():
            await asyncio.sleep(TAIL_S)
            stopping.set()
    finally:
        await simulator.close()
        await stopping.wait()
        waiting.cancel()


def served(simulator: Simulator) -> list[ConnectionSection]:
    """Name the connections by which everything is received that a simulator serves.

    Parameters
    ----------
    simulator
        Started.

    Returns
    -------
    list[ConnectionSection]
        In the order of its streams.
    """
    transport = simulator.settings.transport
    udp = simulator.settings.udp_port if transport in (Transport.UDP, Transport.TCP_UDP) else 0
    return [
        ConnectionSection(
            name=stream.name,
            host=simulator.addresses[stream.name][0],
            port=simulator.addresses[stream.name][1],
            id_code=stream.id_code,
            transport=transport.value,
            udp_port=udp + place if udp else 0,
        )
        for place, stream in enumerate(simulator.script.streams)
    ]


def _script(config: Config) -> Script:
    simulate = config.simulate
    if simulate.concentrators:
        return made_script(config.simulate_paths, simulate.concentrators, max(simulate.pmus_each, 1))
    return read_script(config.simulate_paths, split=simulate.split)


def _settings(config: Config) -> Settings:
    it = config.simulate
    transport = Transport(it.transport)
    if transport is not Transport.TCP and transport is not Transport.TCP_SPONTANEOUS:
        raise UsageError(
            f"simulate.transport = {it.transport!r}: in one process recordings are served over tcp or tcp-spontaneous; "
            "for UDP run gridsense simulate-pmu and gridsense gateway"
        )
    return Settings(transport, port=it.port, speed=it.speed, loop=it.loop, shift_to_now=it.shift_to_now)
