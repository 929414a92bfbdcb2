"""All connections of one gateway, its clock and its writer, put together.

In: settings and a way to make a log. Out: a coroutine that runs until it is told to stop, and what it has counted. It
reads no settings from files and serves no metrics.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from contextlib import suppress

from streams.gateway.clock import SteadyClock
from streams.gateway.connection import READ_BYTES, Connection
from streams.gateway.intake import Claims, Intake
from streams.gateway.marks import Marks
from streams.gateway.settings import ConnectionSettings, GatewaySettings, check
from streams.gateway.status import ConnectionStatus, Counts, State, Totals
from streams.gateway.writer import Sink, Writer


class Gateway:
    """Receives the streams of many peers into one log. It runs once; a `SettingsError` where the peers contradict.

    Parameters
    ----------
    make_log
        Makes the log, in the thread that writes it.
    connections
        The peers.
    settings
        What holds for all.
    clock
        Tells arrivals.
    chance
        Spreads the attempts to connect.
    """

    def __init__(
        self,
        make_log: Callable[[], Sink],
        connections: Sequence[ConnectionSettings],
        settings: GatewaySettings | None = None,
        clock: SteadyClock | None = None,
        chance: random.Random | None = None,
    ) -> None:
        check(connections)
        settings = settings or GatewaySettings()
        chance = chance or random.Random()  # noqa: S311 - spreads attempts, keeps no secret
        self._settings = settings
        self._clock = clock or SteadyClock()
        self._writer = Writer(make_log, settings.flush_s, settings.buffer_bytes)
        own = [(c.id_code, c.name) for c in connections if c.id_code]
        claims = Claims(shared=settings.allow_shared_id_codes, reserved=own)
        self._intakes = [
            Intake(
                c.name,
                c.id_code,
                commanded=c.transport.commanded,
                settings=settings,
                writer=self._writer,
                claims=claims,
            )
            for c in connections
        ]
        self._marks = Marks(self._intakes, self._writer, settings.mark_s)
        buffer = bytearray(READ_BYTES)
        self._connections = [
            Connection(c, settings, intake, clock=self._clock, chance=chance, buffer=buffer)
            for c, intake in zip(connections, self._intakes, strict=True)
        ]

    async def run(self, stop: asyncio.Event) -> None:
        """Receive until told to stop; then what was gathered is written, within five seconds.

        A `LogError` where the log cannot be opened at the start; later it is tried until it can.

        Parameters
        ----------
        stop
            Set it to stop.
        """
        writer = self._writer
        writer.start()
        try:
            known = await asyncio.wrap_future(writer.known)
            for connection, intake in zip(self._connections, self._intakes, strict=True):
                intake.recall(known.get(connection.settings.name, b""))
            await self._receive(stop)
        finally:
            await asyncio.to_thread(writer.stop, self._settings.stop_s)
        writer.check()

    def status(self) -> tuple[ConnectionStatus, ...]:
        """Tell how each connection stands; any thread may ask.

        Returns
        -------
        tuple[ConnectionStatus, ...]
            In the order of the settings.
        """
        return tuple(connection.status() for connection in self._connections)

    def totals(self) -> Totals:
        """Tell how all of it stands; any thread may ask.

        Returns
        -------
        Totals
            Of this moment.
        """
        status = self.status()
        counts = Counts()
        for one in status:
            counts.add(one.counts)
        return Totals(
            len(status),
            sum(one.state is State.STREAMING for one in status),
            counts,
            self._clock.steps,
            self._writer.gathered_bytes,
            self._writer.written_records,
            self._writer.written_bytes,
            self._writer.failed_writes,
            self._writer.lost_records,
        )

    async def _receive(self, stop: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        tasks = [loop.create_task(connection.run()) for connection in self._connections]
        try:
            while not stop.is_set() and self._writer.failure is None:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._settings.tick_s):
                        await stop.wait()
                for connection in self._connections:
                    connection.tick(loop.time())
                self._marks.tick(self._clock.now_ns())
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
