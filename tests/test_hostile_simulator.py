"""Hostile clients of simulate-pmu: each leaves its trace, and who listens gets every frame."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest

from gridsense.simulator.script import Script, read_script
from gridsense.simulator.server import MAX_CONNECTIONS, Settings, Simulator, Start
from scripts.check.hostile import CLIENTS, calling
from streams.archives.parquet import write_parquet
from streams.c37118.frame import EPOCH, Command, CommandFrame, encode_command
from streams.c37118.stream import StreamParser
from tests.reference.small_grid import small_grid


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Script:
    path = tmp_path_factory.mktemp("recording") / "alone.parquet"
    write_parquet(path, small_grid("north", 11, 2, 1, seconds=2))
    return read_script([path])


def command(script: Script, number: Command) -> bytes:
    return encode_command(CommandFrame(script.streams[0].id_code, EPOCH, number))


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - what is waited for is a number of the simulator's
            await asyncio.sleep(0.005)


def test_every_client_is_counted_and_who_listens_gets_every_frame(script: Script) -> None:
    parser = StreamParser()

    async def go() -> None:
        simulator = Simulator(script, Settings(port=0, loop=True, backlog_bytes=1 << 19))
        await simulator.start()
        running = asyncio.create_task(simulator.run())
        (address,) = simulator.addresses.values()
        reader, writer = await asyncio.open_connection(*address)
        writer.write(command(script, Command.SEND_CFG2) + command(script, Command.DATA_ON))

        async def listen() -> None:
            while data := await reader.read(1 << 16):
                parser.feed(data)

        listening = asyncio.create_task(listen())
        counts = simulator.counts

        def counted() -> bool:
            numbers = [getattr(counts, trace) for trace in CLIENTS.values() if trace != "ignored"]
            return all(numbers) and counts.ignored.total() > 0 and counts.played > 30

        async with calling([address]):
            await until(counted)
            assert counts.connections > MAX_CONNECTIONS
        simulator.stop()
        async with asyncio.timeout(60):
            await running
            await listening
        writer.close()
        await writer.wait_closed()
        await simulator.close()
        assert parser.counts.frames_decoded == counts.played
        assert not parser.counts.refused

    asyncio.run(go())


def test_a_question_after_the_end_is_not_answered_and_breaks_nothing(script: Script) -> None:
    broken: list[dict[str, Any]] = []

    def handle(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        broken.append(context)

    async def go() -> None:
        asyncio.get_running_loop().set_exception_handler(handle)
        simulator = Simulator(script, Settings(port=0, start=Start.NOW))
        await simulator.start()
        running = asyncio.create_task(simulator.run())
        (address,) = simulator.addresses.values()
        reader, writer = await asyncio.open_connection(*address)
        await until(lambda: simulator.counts.connections)
        simulator.stop()
        assert await reader.read() == b""
        writer.write(command(script, Command.SEND_HEADER))
        await until(simulator.counts.commands.total)
        writer.close()
        await writer.wait_closed()
        await running
        await simulator.close()

    asyncio.run(go())
    assert broken == []


def test_a_stream_of_complaints_is_one_line_a_second(script: Script, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)

    async def go() -> None:
        simulator = Simulator(script, Settings(port=0), wall_ns=lambda: 0)
        first = asyncio.get_running_loop().time()
        for _ in range(50):
            simulator.complain("somebody is dropped")
        most = 1 + int(asyncio.get_running_loop().time() - first)
        assert 1 <= len(caplog.records) <= most + 1

    asyncio.run(go())
