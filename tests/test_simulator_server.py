"""Real sockets: what receivers get, when it ends, who is dropped, and that faults are made exactly as counted."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from gridsense.errors import UsageError
from gridsense.simulator.frames import apart
from gridsense.simulator.script import Script, made_script, read_script
from gridsense.simulator.server import MAX_PEERS, Counts, Settings, Simulator, Start, Transport
from gridsense.sources import open_source, read_rounds
from streams.archives import write_parquet
from streams.block import FrameBatch
from streams.c37118.configuration import ConfigurationFrame, channel_table
from streams.c37118.frame import EPOCH, Command, CommandFrame, FrameType, HeaderFrame, encode_command
from streams.c37118.stream import Item, StreamParser
from streams.channels import ChannelTable
from tests.reference.small_grid import RATE, START_NS, small_grid

SECONDS = 4
FRAMES = SECONDS * RATE
SECOND = 10**9
PATIENCE_S = 60.0
"""For what must happen, however slow the machine."""
TCP = Settings(port=0, speed=0)
BRISK = Settings(port=0, speed=20.0)
ENDLESS = Settings(port=0, speed=20.0, loop=True)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    north, south = (
        small_grid("north", 11, 3, 1, seconds=SECONDS),
        small_grid("south", 21, 2, 2, seconds=SECONDS),
    )
    whole = replace(
        north,
        table=ChannelTable((*north.table.pmus, *south.table.pmus)),
        stat=np.concatenate([north.stat, south.stat], 1),
        values=np.concatenate([north.values, south.values], 1),
    )
    path = tmp_path_factory.mktemp("simulator") / "grid.parquet"
    write_parquet(path, whole)
    return path


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("simulator") / "alone.parquet"
    write_parquet(path, small_grid("north", 11, 2, 1, seconds=SECONDS))
    return path


@dataclass
class Heard:
    """What a receiver has understood."""

    name: str = ""
    items: list[Item] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.parser = StreamParser(self.name)

    def take(self, data: bytes) -> None:
        self.items += self.parser.feed(data)

    @property
    def batches(self) -> list[FrameBatch]:
        return [i for i in self.items if isinstance(i, FrameBatch)]

    @property
    def frames(self) -> int:
        return sum(len(b.time_ns) for b in self.batches)

    @property
    def time_ns(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        return np.concatenate([b.time_ns for b in self.batches])

    @property
    def configurations(self) -> list[ConfigurationFrame]:
        return [i for i in self.items if isinstance(i, ConfigurationFrame)]


@dataclass
class Caller:
    """A receiver by TCP."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    code: int
    heard: Heard

    def ask(self, *commands: int, code: int | None = None, extended: bytes = b"") -> None:
        own = self.code if code is None else code
        self.writer.write(b"".join(encode_command(CommandFrame(own, EPOCH, c, extended)) for c in commands))

    async def until(self, done: Callable[[], bool]) -> None:
        while not done():
            data = await self.reader.read(1 << 16)
            assert data, "the connection ended before that"
            self.heard.take(data)

    async def to_the_end(self) -> Heard:
        while data := await self.reader.read(1 << 16):
            self.heard.take(data)
        await self.close()
        return self.heard

    async def close(self) -> None:
        self.writer.close()
        await self.writer.wait_closed()


async def call(simulator: Simulator, place: int = 0) -> Caller:
    stream = simulator.script.streams[place]
    host, port = simulator.addresses[stream.name]
    reader, writer = await asyncio.open_connection(host, port)
    return Caller(reader, writer, stream.id_code, Heard(stream.name))


async def receive(simulator: Simulator, place: int = 0) -> Heard:
    caller = await call(simulator, place)
    caller.ask(Command.SEND_CFG2, Command.DATA_ON)
    return await caller.to_the_end()


async def until(done: Callable[[], bool]) -> None:
    while not done():  # noqa: ASYNC110  # what is waited for is a number of the simulator's
        await asyncio.sleep(0.005)


def with_simulator(
    script: Script, settings: Settings, story: Callable[[Simulator, asyncio.Task[Counts]], Awaitable[None]]
) -> Counts:
    """Serve a script while a story is told; the story ends before `run` must."""

    async def told() -> Counts:
        simulator = Simulator(script, settings)
        await simulator.start()
        running = asyncio.create_task(simulator.run())
        try:
            async with asyncio.timeout(PATIENCE_S):
                await story(simulator, running)
                simulator.stop()
                return await running
        finally:
            simulator.stop()
            await asyncio.gather(running, return_exceptions=True)
            await simulator.close()

    return asyncio.run(told())


def test_what_is_served_is_what_the_file_says(archive: Path) -> None:
    script = read_script([archive])
    heard: list[Heard] = []

    async def story(simulator: Simulator, running: asyncio.Task[Counts]) -> None:
        heard.extend(await asyncio.gather(receive(simulator, 0), receive(simulator, 1)))
        await running

    counts = with_simulator(script, TCP, story)
    read: dict[str, list[FrameBatch]] = {}
    for together in read_rounds([open_source(archive)]):
        for _, batch in together:
            read.setdefault(batch.table.pmus[0].source, []).append(batch)
    assert list(read) == ["north", "south"]
    for own, (source, parts) in zip(heard, read.items(), strict=True):
        assert own.name == source
        table = own.batches[0].table
        assert [(p.name, p.source, p.nominal_hz) for p in table.pmus] == [
            (p.name, p.source, p.nominal_hz) for p in parts[0].table.pmus
        ]
        width = parts[0].table.width
        assert [c.quantity for c in table.pmus[0].channels[:width]] == [
            c.quantity for c in parts[0].table.pmus[0].channels
        ]
        values = np.concatenate([b.values for b in own.batches])[..., :width]
        np.testing.assert_allclose(values, np.concatenate([b.values for b in parts]), rtol=3e-7)
        assert np.abs(own.time_ns - np.concatenate([b.time_ns for b in parts])).max() <= 500
        assert not own.parser.counts.crc_errors
        assert not own.parser.counts.bytes_skipped
    assert (counts.played, counts.sent, counts.receivers, counts.connections) == (2 * FRAMES, 2 * FRAMES, 2, 2)
    assert counts.commands == {"send_cfg2": 2, "data_on": 2}


def test_commands_are_obeyed_and_what_is_no_command_is_counted(alone: Path) -> None:
    async def story(simulator: Simulator, running: asyncio.Task[Counts]) -> None:
        caller = await call(simulator)
        heard = caller.heard
        caller.ask(Command.SEND_CFG1, Command.SEND_CFG2, Command.SEND_CFG3, Command.SEND_HEADER)
        await caller.until(lambda: len(heard.items) == 4)
        assert [c.kind for c in heard.configurations] == [FrameType.CFG1, FrameType.CFG2, FrameType.CFG3]
        assert isinstance(heard.items[3], HeaderFrame)
        caller.ask(Command.EXTENDED, extended=b"whatever")
        caller.ask(7, 300)
        caller.ask(Command.DATA_ON, code=caller.code + 1)
        caller.writer.write(b"\xaa rubbish \xaa\x41\x00\x12")
        caller.ask(Command.SEND_HEADER)
        await caller.until(lambda: len(heard.items) == 5)
        assert simulator.status().waiting == 1
        caller.ask(Command.DATA_ON)
        await caller.until(lambda: heard.frames > 0)
        caller.ask(Command.DATA_OFF)
        await until(lambda: simulator.status().receiving == 0)
        caller.ask(Command.SEND_HEADER)
        headers = [i for i in heard.items if isinstance(i, HeaderFrame)]
        await caller.until(lambda: sum(isinstance(i, HeaderFrame) for i in heard.items) > len(headers))
        before, played = heard.frames, simulator.counts.played
        await until(lambda: simulator.counts.played > played + 10)
        caller.ask(Command.DATA_ON)
        await caller.until(lambda: heard.frames > before)
        # nothing came in between: the stream went on without this receiver
        assert np.diff(heard.time_ns).max() > 10 * SECOND / RATE
        await caller.close()
        await until(lambda: simulator.status().receiving == 0)
        assert not running.done()

    counts = with_simulator(read_script([alone]), ENDLESS, story)
    assert counts.ignored == {"extended": 1, "unknown": 2, "id code": 1}
    assert counts.garbage_bytes == len(b"\xaa rubbish \xaa\x41\x00\x12")
    assert counts.commands["data_on"] == 2
    assert counts.receivers == 2


def test_the_recording_waits_for_a_receiver_of_every_stream(archive: Path) -> None:
    async def story(simulator: Simulator, running: asyncio.Task[Counts]) -> None:
        first = asyncio.create_task(receive(simulator, 0))
        await until(lambda: simulator.status().receiving == 1)
        assert simulator.status().waiting == 1
        assert simulator.counts.played == 0
        second = await receive(simulator, 1)
        assert second.frames == (await first).frames == FRAMES
        await running

    with_simulator(read_script([archive]), BRISK, story)


def test_the_first_receiver_may_start_it_and_who_comes_later_joins(archive: Path) -> None:
    async def story(simulator: Simulator, _: asyncio.Task[Counts]) -> None:
        first = await call(simulator, 0)
        first.ask(Command.SEND_CFG2, Command.DATA_ON)
        await first.until(lambda: first.heard.frames > 5)
        late = await call(simulator, 1)
        late.ask(Command.SEND_CFG2, Command.DATA_ON)
        await late.until(lambda: late.heard.frames > 0)
        assert late.heard.time_ns[0] > START_NS + SECOND // RATE
        assert int(first.heard.time_ns[0]) == START_NS
        await asyncio.gather(first.close(), late.close())

    with_simulator(read_script([archive]), replace(ENDLESS, start=Start.FIRST), story)


def test_it_may_run_without_anybody(archive: Path) -> None:
    async def story(_: Simulator, running: asyncio.Task[Counts]) -> None:
        await running

    counts = with_simulator(read_script([archive]), replace(TCP, start=Start.NOW), story)
    assert (counts.played, counts.sent) == (2 * FRAMES, 0)


def test_spontaneous_tcp_needs_no_command_but_obeys_one(alone: Path) -> None:
    async def story(simulator: Simulator, running: asyncio.Task[Counts]) -> None:
        caller = await call(simulator)
        await caller.until(lambda: caller.heard.frames > 0)
        caller.ask(Command.DATA_OFF)
        await until(lambda: simulator.status().receiving == 0)
        await caller.close()
        assert isinstance(caller.heard.items[0], ConfigurationFrame)
        assert not running.done()

    with_simulator(read_script([alone]), replace(ENDLESS, transport=Transport.TCP_SPONTANEOUS), story)


def test_each_pmu_on_a_port_of_its_own(archive: Path) -> None:
    script = made_script([archive], 40, 1)
    heard: list[Heard] = []

    async def story(simulator: Simulator, running: asyncio.Task[Counts]) -> None:
        assert len({port for _, port in simulator.addresses.values()}) == 40
        heard.extend(await asyncio.gather(*(receive(simulator, n) for n in range(40))))
        await running

    counts = with_simulator(script, TCP, story)
    assert {h.frames for h in heard} == {FRAMES}
    assert [h.batches[0].table.pmus[0].name for h in heard] == [s.name for s in script.streams]
    assert counts.sent == 40 * FRAMES


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Script:
    """Two concentrators of 8 MB each: more than the machine holds between a sender and a receiver."""
    path = tmp_path_factory.mktemp("simulator") / "long.parquet"
    write_parquet(path, small_grid("north", 1, 10, 1, seconds=30))
    return made_script([path], 2, 500)


async def deaf_receiver(simulator: Simulator) -> socket.socket:
    """Ask for data and read none."""
    deaf = socket.socket()
    deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    deaf.setblocking(False)
    await asyncio.get_running_loop().sock_connect(deaf, simulator.addresses["PDC 1"])
    deaf.send(encode_command(CommandFrame(1, EPOCH, Command.DATA_ON)))
    return deaf


def test_a_receiver_that_does_not_read_is_dropped_and_the_others_get_everything(big: Script) -> None:
    async def story(simulator: Simulator, running: asyncio.Task[Counts]) -> None:
        deaf = await deaf_receiver(simulator)
        heard = await receive(simulator, 1)
        assert heard.frames == 30 * RATE
        assert (await running).dropped == 1
        deaf.close()

    counts = with_simulator(big, replace(TCP, backlog_s=2.0), story)
    assert counts.sent < 2 * 30 * RATE


@pytest.mark.parametrize("limit", [{"backlog_bytes": 100_000}, {"backlog_s": 0.1}])
def test_at_a_given_pace_nobody_waits_for_a_slow_receiver(big: Script, limit: dict[str, float]) -> None:
    async def story(simulator: Simulator, running: asyncio.Task[Counts]) -> None:
        deaf = await deaf_receiver(simulator)
        await until(lambda: simulator.counts.dropped == 1)
        deaf.close()
        played = simulator.counts.played
        await until(lambda: simulator.counts.played > played)
        assert not running.done()

    settings = Settings(port=0, speed=100.0, loop=True, start=Start.FIRST)
    with_simulator(big, replace(settings, **limit), story)


def test_a_receiver_that_sends_garbage_for_ever_is_dropped_and_the_others_go_on(alone: Path) -> None:
    async def story(simulator: Simulator, _: asyncio.Task[Counts]) -> None:
        good, bad = await call(simulator), await call(simulator)
        good.ask(Command.DATA_ON, Command.SEND_CFG2)
        bad.writer.write(b"GET / HTTP/1.1\r\n" * 8192)
        await until(lambda: simulator.counts.dropped == 1)
        with suppress(ConnectionError):  # how it is told matters not; that it is does
            while await bad.reader.read(1 << 16):
                pass
        bad.writer.close()
        frames = good.heard.frames
        await good.until(lambda: good.heard.frames > frames + 10)
        await good.close()

    counts = with_simulator(read_script([alone]), ENDLESS, story)
    assert counts.garbage_bytes > 1 << 16


def test_time_stamps_are_shifted_to_now_by_whole_seconds(alone: Path) -> None:
    now_ns = 1_900_000_000 * SECOND + 123_456_789
    heard: list[Heard] = []

    async def told() -> None:
        simulator = Simulator(read_script([alone]), replace(BRISK, shift_to_now=True), wall_ns=lambda: now_ns)
        await simulator.start()
        running = asyncio.create_task(simulator.run())
        async with asyncio.timeout(PATIENCE_S):
            heard.append(await receive(simulator))
            await running
        await simulator.close()

    asyncio.run(told())
    (own,) = heard
    shift_ns = int(own.time_ns[0]) - START_NS
    assert shift_ns % SECOND == 0
    assert now_ns <= own.time_ns[0] < now_ns + 1.1 * SECOND
    assert own.frames == FRAMES
    assert own.configurations[0].stamp.time_ns(1_000_000) == now_ns // 1000 * 1000
    assert not own.parser.counts.crc_errors


def test_turns_go_on_with_rising_times(alone: Path) -> None:
    async def story(simulator: Simulator, _: asyncio.Task[Counts]) -> None:
        caller = await call(simulator)
        caller.ask(Command.SEND_CFG2, Command.DATA_ON)
        await caller.until(lambda: caller.heard.frames > 2.5 * FRAMES)
        slots = (caller.heard.time_ns - START_NS) * RATE / SECOND
        np.testing.assert_array_equal(np.rint(slots), np.arange(len(slots)))
        await caller.close()

    counts = with_simulator(read_script([alone]), replace(TCP, loop=True), story)
    assert counts.turns >= 2


def test_connections_are_closed_on_purpose(alone: Path) -> None:
    async def story(simulator: Simulator, running: asyncio.Task[Counts]) -> None:
        for _ in range(2):
            assert (await receive(simulator)).configurations
        assert not running.done()

    counts = with_simulator(read_script([alone]), replace(ENDLESS, drop_after_s=0.3), story)
    assert counts.closed == 2


def test_a_stalled_receiver_keeps_its_connection_and_gets_nothing(alone: Path) -> None:
    async def story(simulator: Simulator, running: asyncio.Task[Counts]) -> None:
        heard = await receive(simulator)
        assert simulator.counts.played == FRAMES  # its connection ended with the recording
        assert heard.frames < FRAMES
        await running

    counts = with_simulator(read_script([alone]), replace(BRISK, speed=3.0, stall_after_s=0.3), story)
    assert counts.sent < FRAMES


class Mailbox(asyncio.DatagramProtocol):
    """A receiver by UDP: the datagrams that came."""

    transport: asyncio.DatagramTransport

    def __init__(self) -> None:
        self.datagrams: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.DatagramTransport", transport)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        del addr
        self.datagrams.append(data)

    def count(self, kind: FrameType) -> int:
        return sum(d[1] >> 4 == kind for d in self.datagrams)

    @property
    def data(self) -> list[bytes]:
        return [d for d in self.datagrams if d[1] >> 4 == FrameType.DATA]


async def mailboxes(count: int) -> tuple[list[Mailbox], int]:
    """Open neighbouring ports; return the first's number."""
    loop = asyncio.get_running_loop()
    for _ in range(200):
        boxes: list[Mailbox] = []
        try:
            _, box = await loop.create_datagram_endpoint(Mailbox, local_addr=("127.0.0.1", 0))
            boxes.append(box)
            first = box.transport.get_extra_info("sockname")[1]
            for n in range(1, count):
                _, box = await loop.create_datagram_endpoint(Mailbox, local_addr=("127.0.0.1", first + n))
                boxes.append(box)
        except OSError:
            for box in boxes:
                box.transport.close()
            continue
        return boxes, first
    pytest.fail("no neighbouring ports are free")


def run_udp(script: Script, settings: Settings) -> tuple[Counts, list[Mailbox]]:
    """Play to the end into mailboxes, one a stream."""

    async def told() -> tuple[Counts, list[Mailbox]]:
        boxes, first = await mailboxes(len(script.streams))
        simulator = Simulator(script, replace(settings, transport=Transport.UDP, udp_port=first))
        await simulator.start()
        async with asyncio.timeout(PATIENCE_S):
            counts = await simulator.run()
            await until(lambda: sum(len(box.data) for box in boxes) >= counts.sent)
        await simulator.close()
        for box in boxes:
            box.transport.close()
        await asyncio.sleep(0)
        return counts, boxes

    return asyncio.run(told())


def frames_of(script: Script, stream: int) -> list[bytes]:
    return [f for pieces in script.rounds() for p in pieces if p.stream == stream for f in apart(p.octets)]


def test_spontaneous_udp_sends_configuration_and_data(archive: Path) -> None:
    script = read_script([archive])
    counts, boxes = run_udp(script, replace(BRISK, configuration_every_s=0.05))
    assert counts.sent == 2 * FRAMES
    for place, box in enumerate(boxes):
        assert box.datagrams[0][1] >> 4 == FrameType.CFG2
        assert box.count(FrameType.CFG2) > 1
        assert box.data == frames_of(script, place)


@pytest.mark.parametrize("seed", [1, 2])
def test_faults_are_seeded_and_counted_exactly(archive: Path, seed: int) -> None:
    script = read_script([archive])
    settings = replace(BRISK, loss=0.1, duplicate=0.1, reorder=0.1, seed=seed)
    counts, boxes = run_udp(script, settings)
    assert counts.sent == 2 * FRAMES - counts.lost + counts.duplicated
    assert counts.lost
    assert counts.duplicated
    assert counts.reordered
    behind = 0
    for place, box in enumerate(boxes):
        expected = frames_of(script, place)
        order = [expected.index(d) for d in box.data]
        assert len(expected) - len(set(order)) == sum(1 for f in expected if f not in set(box.data))
        behind += sum(b < a for a, b in pairwise(order))
    distinct = sum(len(set(box.data)) for box in boxes)
    assert 2 * FRAMES - distinct == counts.lost
    assert sum(len(box.data) for box in boxes) - distinct == counts.duplicated
    assert behind == counts.reordered
    again, others = run_udp(script, settings)
    assert again == replace(counts, late_s=again.late_s)
    assert [box.data for box in others] == [box.data for box in boxes]


def test_other_seeds_make_other_faults(alone: Path) -> None:
    script = read_script([alone])
    runs = [run_udp(script, replace(BRISK, loss=0.2, seed=seed))[1][0].data for seed in (1, 2)]
    assert runs[0] != runs[1]


def test_commanded_udp_answers_where_the_command_came_from(alone: Path) -> None:
    script = read_script([alone])

    async def story(simulator: Simulator, running: asyncio.Task[Counts]) -> None:
        (box, other), _ = await mailboxes(2)
        address = simulator.addresses["north"]
        code = script.streams[0].id_code
        box.transport.sendto(b"no command", address)
        for command in (Command.SEND_CFG2, Command.DATA_ON):
            box.transport.sendto(encode_command(CommandFrame(code, EPOCH, command)), address)
        await until(lambda: len(box.data) > 3)
        assert box.datagrams[0][1] >> 4 == FrameType.CFG2
        box.transport.sendto(encode_command(CommandFrame(code, EPOCH, Command.DATA_OFF)), address)
        await until(lambda: simulator.status().receiving == 0)
        assert other.datagrams == []
        assert not running.done()
        for each in (box, other):
            each.transport.close()

    counts = with_simulator(script, replace(ENDLESS, transport=Transport.UDP_COMMANDED), story)
    assert counts.garbage_bytes == len(b"no command")


def test_commanded_udp_serves_only_so_many(alone: Path) -> None:
    script = read_script([alone])

    async def story(simulator: Simulator, _: asyncio.Task[Counts]) -> None:
        boxes, _ = await mailboxes(MAX_PEERS + 2)
        ask = encode_command(CommandFrame(script.streams[0].id_code, EPOCH, Command.DATA_ON))
        for box in boxes:
            box.transport.sendto(ask, simulator.addresses["north"])
        await until(lambda: simulator.counts.ignored["peers"] == 2)
        assert simulator.status().receiving == MAX_PEERS
        for box in boxes:
            box.transport.close()

    with_simulator(script, replace(ENDLESS, transport=Transport.UDP_COMMANDED), story)


def test_commands_by_tcp_data_by_udp(archive: Path) -> None:
    script = read_script([archive])

    async def told() -> None:
        boxes, first = await mailboxes(2)
        simulator = Simulator(script, replace(BRISK, transport=Transport.TCP_UDP, udp_port=first))
        await simulator.start()
        running = asyncio.create_task(simulator.run())
        async with asyncio.timeout(PATIENCE_S):
            heard = await asyncio.gather(receive(simulator, 0), receive(simulator, 1))
            counts = await running
            await until(lambda: sum(len(box.data) for box in boxes) >= counts.sent)
        await simulator.close()
        for place, (own, box) in enumerate(zip(heard, boxes, strict=True)):
            assert [c.kind for c in own.configurations] == [FrameType.CFG2]
            assert own.frames == 0
            assert box.data == frames_of(script, place)
            box.transport.close()
        await asyncio.sleep(0)

    asyncio.run(told())


def test_a_receiver_that_leaves_gets_no_more_datagrams(alone: Path) -> None:
    async def told() -> None:
        boxes, first = await mailboxes(1)
        settings = replace(ENDLESS, transport=Transport.TCP_UDP, udp_port=first)
        simulator = Simulator(read_script([alone]), settings)
        await simulator.start()
        running = asyncio.create_task(simulator.run())
        async with asyncio.timeout(PATIENCE_S):
            caller = await call(simulator)
            caller.ask(Command.DATA_ON)
            await until(lambda: len(boxes[0].data) > 3)
            await caller.close()
            await until(lambda: simulator.status().receiving == 0)
            simulator.stop()
            await running
        await simulator.close()
        boxes[0].transport.close()
        await asyncio.sleep(0)

    asyncio.run(told())


def test_delays_and_lateness_lose_nothing(archive: Path) -> None:
    async def story(simulator: Simulator, running: asyncio.Task[Counts]) -> None:
        heard = await asyncio.gather(receive(simulator, 0), receive(simulator, 1))
        assert [h.frames for h in heard] == [FRAMES, FRAMES]
        await running

    with_simulator(read_script([archive]), replace(BRISK, speed=1000.0, jitter_s=0.02), story)


def test_a_port_that_is_taken_is_named(archive: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        async def told() -> None:
            await Simulator(read_script([archive]), Settings(port=port)).start()

        with pytest.raises(UsageError, match=f"{port}.*--port"):
            asyncio.run(told())


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        (Settings(speed=-1.0), "--speed"),
        (Settings(speed=float("nan")), "--speed"),
        (Settings(transport=Transport.UDP, udp_port=5000, speed=0), "--speed 0 needs TCP"),
        (Settings(transport=Transport.UDP), "--udp-port"),
        (Settings(transport=Transport.TCP_UDP), "--udp-port"),
        (Settings(loss=0.1), "need UDP"),
        (Settings(transport=Transport.UDP, udp_port=5000, loss=1.5), "shares"),
        (Settings(transport=Transport.UDP, udp_port=5000, drop_after_s=1), "--drop-after"),
        (Settings(port=65535), "65536"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(archive: Path, settings: Settings, word: str) -> None:
    async def told(streams: Sequence[Path]) -> None:
        await Simulator(read_script(streams), settings).start()

    with pytest.raises(UsageError, match=word):
        asyncio.run(told([archive]))


def test_a_frame_that_is_no_datagram_is_refused(archive: Path) -> None:
    script = made_script([archive], 1, 3639)
    assert channel_table(script.streams[0].configuration)

    async def told() -> None:
        await Simulator(script, Settings(transport=Transport.UDP_COMMANDED)).start()

    with pytest.raises(UsageError, match="no datagram"):
        asyncio.run(told())
