"""A PMU that follows a script, on real sockets: it expects commands, sends bytes, waits, closes; notes what came.

A script is a list of steps for one TCP connection; each further connection takes the next script, the last one again
and again. Over UDP one script answers whoever sends the first datagram.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from streams.c37118.frame import Command, decode_command


@dataclass
class Expect:
    """Wait for a command; others before it are only written down."""

    command: Command


@dataclass
class Send:
    """Send bytes; with a port, in a datagram to it."""

    value: bytes
    port: Callable[[], int] | None = None


@dataclass
class Wait:
    """Go on when the test says so."""

    event: asyncio.Event


@dataclass
class Close:
    """Close the connection. Without it, the connection stays until the client closes it."""


Step = Expect | Send | Wait | Close


@dataclass
class Server:
    """What the test sees."""

    port: int = 0
    connections: int = 0
    closed: int = 0
    commands: list[int] = field(default_factory=list)
    id_codes: set[int] = field(default_factory=set)

    def heard(self, datagram: bytes) -> int:
        command = decode_command(datagram)
        self.commands.append(command.command)
        self.id_codes.add(command.id_code)
        return command.command


async def follow(
    server: Server, script: Sequence[Step], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Take one TCP connection through a script."""
    for step in script:
        if isinstance(step, Expect):
            while server.heard(await reader.readexactly(18)) != step.command:
                pass
        elif isinstance(step, Wait):
            await step.event.wait()
        elif isinstance(step, Close):
            return
        elif step.port is None:
            writer.write(step.value)
            await writer.drain()
        else:
            await send_datagram(step.value, step.port())
    while True:
        server.heard(await reader.readexactly(18))


@asynccontextmanager
async def serve(*scripts: Sequence[Step]) -> AsyncIterator[Server]:
    """Serve scripts over TCP on a free port."""
    server = Server()
    tasks: set[asyncio.Task[None]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        script = scripts[min(server.connections, len(scripts) - 1)]
        server.connections += 1
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await follow(server, script, reader, writer)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
        server.closed += 1
        tasks.discard(task)

    listening = await asyncio.start_server(accept, "127.0.0.1", 0)
    server.port = listening.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listening.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await listening.wait_closed()


async def send_datagram(value: bytes, port: int) -> None:
    """Send one datagram from anywhere to a local port."""
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
        asyncio.DatagramProtocol, remote_addr=("127.0.0.1", port)
    )
    transport.sendto(value)
    transport.close()
    await asyncio.sleep(0)


@asynccontextmanager
async def serve_udp(script: Sequence[Step]) -> AsyncIterator[Server]:
    """Serve a script over UDP on a free port."""
    server = Server()
    came: asyncio.Queue[tuple[bytes, tuple[str, int]]] = asyncio.Queue()

    class Port(asyncio.DatagramProtocol):
        def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
            came.put_nowait((data, addr))

    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(Port, local_addr=("127.0.0.1", 0))
    server.port = transport.get_extra_info("sockname")[1]

    async def answer() -> None:
        client = ("", 0)
        for step in script:
            if isinstance(step, Expect):
                command = 0
                while command != step.command:
                    datagram, client = await came.get()
                    command = server.heard(datagram)
            elif isinstance(step, Wait):
                await step.event.wait()
            elif isinstance(step, Send):
                transport.sendto(step.value, client)
        while True:
            server.heard((await came.get())[0])

    task = asyncio.create_task(answer())
    try:
        yield server
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        transport.close()
        await asyncio.sleep(0)
