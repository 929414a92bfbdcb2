"""The gateway against scripted PMUs on real sockets: what stands in the log, whatever a peer does."""

from __future__ import annotations

import asyncio
import logging
import random
import struct
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streams.c37118.configuration import encode_configuration
from streams.c37118.frame import (
    Command,
    CommandFrame,
    FrameType,
    HeaderFrame,
    Stamp,
    encode_command,
    encode_header,
    wrap,
)
from streams.errors import LogError, SettingsError
from streams.gateway.clock import SteadyClock
from streams.gateway.gateway import Gateway
from streams.gateway.settings import ConnectionSettings, GatewaySettings, Transport
from streams.gateway.status import ConnectionStatus, Reason, State
from streams.log import CONFIGURATIONS, DEAD_LETTERS, FRAMES
from streams.sqlite_log import open_log
from tests.reference.c37118 import random_configuration, random_frame, seal
from tests.reference.memory_log import MemoryLog
from tests.reference.pmu_server import Close, Expect, Send, Server, Step, Wait, send_datagram, serve, serve_udp

QUICK = GatewaySettings(
    answer_s=60,
    configure_s=60,
    stall_s=60,
    change_s=0.05,
    backoff_least_s=0.01,
    backoff_most_s=0.02,
    flush_s=0.005,
    tick_s=0.01,
)
"""No deadline that a slow machine could miss; a test sets the one that it is about."""

OFF, ON = Expect(Command.DATA_OFF), Expect(Command.DATA_ON)
ASK2, ASK3 = Expect(Command.SEND_CFG2), Expect(Command.SEND_CFG3)


class Stream:
    """A configuration and frames under it, without STAT bits."""

    def __init__(self, seed: int = 0, kind: FrameType = FrameType.CFG3, id_code: int = 7, pmus: int = 2) -> None:
        self._rng = np.random.default_rng(seed)
        drawn = random_configuration(self._rng, kind, pmus=pmus, id_code=id_code)
        self.configuration = replace(drawn, data_rate=30)
        self.parts = encode_configuration(self.configuration)
        self.cfg = b"".join(self.parts)
        self._soc = 1_700_000_000

    def frames(self, count: int, stat: int = 0) -> bytes:
        return b"".join(self.frame(stat) for _ in range(count))

    def frame(self, stat: int = 0) -> bytes:
        self._soc += 1
        frame = bytearray(random_frame(self.configuration, self._rng, self._soc))
        at = 14
        for pmu in self.configuration.pmus:
            frame[at : at + 2] = struct.pack(">H", stat)
            at += pmu.size
        return seal(bytes(frame[:-2]))


def restamped(stream: Stream, soc: int = 9) -> bytes:
    """The same configuration, sent at another time."""
    return b"".join(encode_configuration(replace(stream.configuration, stamp=Stamp(soc))))


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - the condition is another thread's or the log's
            await asyncio.sleep(0.003)


@asynccontextmanager
async def running(
    log: MemoryLog,
    *connections: ConnectionSettings,
    settings: GatewaySettings = QUICK,
    clock: SteadyClock | None = None,
) -> AsyncIterator[Gateway]:
    gateway = Gateway(lambda: log, connections, settings, clock, random.Random(1))  # noqa: S311 - no secret
    stop = asyncio.Event()
    task = asyncio.create_task(gateway.run(stop))
    try:
        yield gateway
    finally:
        stop.set()
        async with asyncio.timeout(60):
            await task
    assert {s.state for s in gateway.status()} <= {State.STOPPED}
    assert gateway.totals().gathered_bytes == 0


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    asyncio.run(coroutine)


def tcp(server: Server, name: str = "a", id_code: int = 0, transport: Transport = Transport.TCP) -> ConnectionSettings:
    return ConnectionSettings(name, "127.0.0.1", server.port, id_code, transport)


def one(gateway: Gateway) -> ConnectionStatus:
    return gateway.status()[0]


def letters(log: MemoryLog, key: str = "a") -> list[str]:
    return [r.note for r in log.records(DEAD_LETTERS, key)]


def test_a_peer_is_asked_for_cfg3_and_then_told_to_send() -> None:
    stream, log = Stream(), MemoryLog()
    header = encode_header(HeaderFrame(7, Stamp(1), b"PMU of the test"))
    command = encode_command(CommandFrame(7, Stamp(1), 2))
    data = stream.frames(9)
    newest: list[int] = []

    async def go() -> None:
        script = [OFF, ASK3, Send(stream.cfg), ON, Send(header + data[:700]), Send(data[700:] + command)]
        async with serve(script) as server:
            async with running(log, tcp(server, id_code=7)) as gateway:
                await until(lambda: one(gateway).counts.frames == 9 and one(gateway).counts.commands == 1)
                status = one(gateway)
                assert (status.state, status.pmus, status.rate_hz, status.id_code) == (State.STREAMING, 2, 30.0, 7)
                assert (status.header, status.error) == ("PMU of the test", "")
                assert status.counts.frames_bytes == len(data)
                newest.append(status.last_frame_ns)
                assert gateway.totals().streaming == gateway.totals().connections == 1
            await until(lambda: server.closed == 1)
        assert server.commands == [Command.DATA_OFF, Command.SEND_CFG3, Command.DATA_ON, Command.DATA_OFF]
        assert server.id_codes == {7}

    run(go())
    assert log.bytes(FRAMES, "a") == stream.cfg + data
    assert log.bytes(CONFIGURATIONS, "a") == stream.cfg
    times = [r.time_ns for r in log.records(FRAMES)]
    assert times == sorted(times)
    assert times[-1] == newest[0]
    assert log.closed == 1
    assert letters(log) == []


def test_frames_of_one_read_are_one_record_and_their_configuration_is_its_own() -> None:
    stream, log = Stream(1), MemoryLog()
    data = stream.frames(5)

    async def go() -> None:
        async with (
            serve([Send(stream.cfg + data)]) as server,
            running(log, tcp(server, transport=Transport.TCP_SPONTANEOUS)) as gateway,
        ):
            await until(lambda: one(gateway).counts.frames == 5)

    run(go())
    assert [r.value for r in log.records(FRAMES)] == [stream.cfg, data]


@pytest.mark.parametrize("closes", [False, True], ids=["says nothing", "closes"])
def test_without_an_answer_to_cfg3_it_asks_for_cfg2_and_remembers(*, closes: bool) -> None:
    stream, log = Stream(kind=FrameType.CFG2), MemoryLog()
    first = stream.frames(3)
    second = stream.frames(3)
    again = [OFF, ASK2, Send(restamped(stream)), ON, Send(second)]
    hear = [ASK2, Send(stream.cfg), ON, Send(first), Close()]
    scripts = [[OFF, ASK3, Close()], hear, again] if closes else [[OFF, ASK3, *hear], again]

    async def go() -> None:
        settings = QUICK if closes else replace(QUICK, answer_s=0.1)
        async with serve(*scripts) as server, running(log, tcp(server), settings=settings) as gateway:
            await until(lambda: one(gateway).counts.frames == 6)
            assert one(gateway).counts.configuration_changes == 0
            assert one(gateway).counts.configurations == 2
            if closes:
                assert server.commands.count(Command.SEND_CFG3) == 1

    run(go())
    assert log.bytes(FRAMES, "a") == stream.cfg + first + second
    assert log.bytes(CONFIGURATIONS, "a") == stream.cfg, "one that only repeats is not written again"


def test_a_configuration_in_fragments_is_one_record() -> None:
    stream, log = Stream(2, pmus=900), MemoryLog()
    assert len(stream.parts) > 1
    data = stream.frames(2)

    async def go() -> None:
        script = [ASK3, *(Send(part) for part in stream.parts), ON, Send(data)]
        async with serve(script) as server, running(log, tcp(server)) as gateway:
            await until(lambda: one(gateway).counts.frames == 2)
            assert one(gateway).pmus == 900

    run(go())
    assert log.records(FRAMES)[0].value == log.records(CONFIGURATIONS)[0].value == stream.cfg
    assert log.bytes(FRAMES, "a") == stream.cfg + data


def test_frames_before_their_configuration_wait_for_it() -> None:
    stream, log = Stream(), MemoryLog()
    early, late = stream.frames(4), stream.frames(2)

    async def go() -> None:
        script = [OFF, Send(early), ASK3, Send(stream.cfg), ON, Send(late)]
        async with serve(script) as server, running(log, tcp(server)) as gateway:
            await until(lambda: one(gateway).counts.frames == 6)

    run(go())
    assert log.bytes(FRAMES, "a") == stream.cfg + early + late
    assert letters(log) == []


def test_a_configuration_that_changes_costs_no_frame() -> None:
    old, new, log = Stream(3), Stream(4), MemoryLog()
    assert old.configuration.data_size != new.configuration.data_size
    before, during, after = old.frames(5), new.frames(3), new.frames(4)

    async def go() -> None:
        script = [ASK3, Send(old.cfg), ON, Send(before), Send(during), ASK3, Send(new.cfg), Send(after)]
        async with serve(script) as server, running(log, tcp(server)) as gateway:
            await until(lambda: one(gateway).counts.frames == 12)
            assert one(gateway).counts.configuration_changes == 1
            assert server.connections == 1

    run(go())
    assert log.bytes(FRAMES, "a") == old.cfg + before + new.cfg + during + after
    assert log.latest(CONFIGURATIONS)["a"].value == new.cfg
    assert letters(log) == []


def test_an_announced_change_is_asked_for_when_it_is_announced_and_when_it_is_done() -> None:
    stream, log = Stream(5), MemoryLog()
    changed = Stream(5)
    pmus = tuple(replace(p, change_count=p.change_count + 1) for p in stream.configuration.pmus)
    changed.configuration = replace(stream.configuration, pmus=pmus)  # of equal size: only the bit tells
    new = b"".join(encode_configuration(changed.configuration))
    a, b, c, d = stream.frames(3), stream.frames(3, stat=1 << 10), changed.frames(3), changed.frames(2)
    readings = {"wall": 1_700_000_000 * 10**9, "monotonic": 0}

    def later(which: str) -> int:
        readings[which] += 2 * 10**9  # so that the first frames of every second are those of every read
        return readings[which]

    async def go() -> None:
        script = [ASK3, Send(stream.cfg), ON, Send(a + b), ASK3, Send(restamped(stream) + c), ASK3, Send(new + d)]
        clock = SteadyClock(lambda: later("wall"), lambda: later("monotonic"))
        async with serve(script) as server, running(log, tcp(server), clock=clock) as gateway:
            await until(lambda: one(gateway).counts.frames == 11)
            assert one(gateway).counts.configuration_changes == 1

    run(go())
    assert log.bytes(FRAMES, "a") == stream.cfg + a + b + c + new + d


def test_a_size_that_no_configuration_explains_is_refused_and_nothing_else() -> None:
    stream, other, log = Stream(3), Stream(4), MemoryLog()
    good, strange, more = stream.frames(2), other.frames(2), stream.frames(2)

    async def go() -> None:
        script = [ASK3, Send(stream.cfg), ON, Send(good + strange + more), ASK3, Send(restamped(stream))]
        async with serve(script) as server, running(log, tcp(server)) as gateway:
            await until(lambda: one(gateway).counts.refused[Reason.SIZE] == 2)

    run(go())
    assert log.bytes(FRAMES, "a") == stream.cfg + good + more
    assert b"".join(r.value for r in log.records(DEAD_LETTERS)) == strange


def test_frames_of_a_foreign_stream_are_refused() -> None:
    stream, foreign, log = Stream(), Stream(6, id_code=8), MemoryLog()
    good, alien, more = stream.frames(3), foreign.frames(2), stream.frames(3)

    async def go() -> None:
        script = [ASK3, Send(foreign.cfg), Send(stream.cfg), ON, Send(good + alien + more)]
        async with serve(script) as server, running(log, tcp(server, id_code=7)) as gateway:
            await until(lambda: one(gateway).counts.frames == 6)
            assert one(gateway).counts.refused[Reason.ID_CODE] == 3

    run(go())
    assert log.bytes(FRAMES, "a") == stream.cfg + good + more
    assert letters(log) == ["id_code"] * 3


def test_two_connections_do_not_carry_one_stream_unless_allowed() -> None:
    stream, log, shared = Stream(), MemoryLog(), MemoryLog()
    data = stream.frames(3)

    async def go(log: MemoryLog, settings: GatewaySettings, enough: Callable[[Gateway], bool]) -> None:
        script = [ASK3, Send(stream.cfg), ON, Send(data)]
        async with serve(script) as first, serve(script) as second:
            connections = tcp(first, "a"), tcp(second, "b")
            async with running(log, *connections, settings=settings) as gateway:
                await until(lambda: enough(gateway))
                if not settings.allow_shared_id_codes:
                    (refused,) = (s for s in gateway.status() if s.counts.frames == 0)
                    await until(lambda: State.REFUSED in {s.state for s in gateway.status()})
                    assert "ID code 7 is that of" in refused.error

    def kept_out(gateway: Gateway) -> bool:
        fine, refused = sorted(gateway.status(), key=lambda s: -s.counts.frames)
        return fine.counts.frames == 3 and refused.counts.connects > 2 and bool(refused.error)

    run(go(log, QUICK, kept_out))
    assert len({r.key for r in log.records(FRAMES)}) == 1
    allowed = replace(QUICK, allow_shared_id_codes=True)
    run(go(shared, allowed, lambda gateway: gateway.totals().counts.frames == 6))
    assert shared.bytes(FRAMES, "a") == shared.bytes(FRAMES, "b") == stream.cfg + data


def test_spontaneous_tcp_sends_no_command_and_keeps_the_configuration_of_the_log(tmp_path: Path) -> None:
    stream = Stream()
    first, second = stream.frames(3), stream.frames(2)
    path = tmp_path / "log"

    async def session(script: list[Step], frames: int) -> None:
        async with serve(script) as server:
            peer = tcp(server, transport=Transport.TCP_SPONTANEOUS)
            gateway = Gateway(lambda: open_log(path), [peer], QUICK)
            stop = asyncio.Event()
            task = asyncio.create_task(gateway.run(stop))
            await until(lambda: one(gateway).counts.frames == frames)
            stop.set()
            await task
            assert server.commands == []

    run(session([Send(stream.cfg + first + restamped(stream))], 3))
    run(session([Send(second)], 2))
    log = open_log(path)
    try:
        assert b"".join(e.value for e in log.read(FRAMES, 0).entries) == stream.cfg + first + second
        assert log.latest(CONFIGURATIONS)["a"].value == stream.cfg
    finally:
        log.close()


def test_spontaneous_udp_goes_silent_and_comes_back() -> None:
    stream, log = Stream(), MemoryLog()
    frames = [stream.frame() for _ in range(4)]

    async def go() -> None:
        peer = ConnectionSettings("a", "127.0.0.1", transport=Transport.UDP)
        async with running(log, peer, settings=replace(QUICK, stall_s=0.05)) as gateway:
            await until(lambda: one(gateway).local_port)
            port = one(gateway).local_port
            await send_datagram(stream.cfg, port)
            await send_datagram(frames[0] + frames[1], port)
            await until(lambda: one(gateway).counts.frames == 2)
            await until(lambda: one(gateway).state is State.SILENT)
            await send_datagram(frames[2][:-1], port)
            await send_datagram(frames[3], port)
            await until(lambda: one(gateway).counts.frames == 3)
            assert one(gateway).counts.connects == 1
            assert one(gateway).counts.refused[Reason.TRUNCATED] == 1

    run(go())
    assert log.bytes(FRAMES, "a") == stream.cfg + frames[0] + frames[1] + frames[3]
    assert letters(log) == ["truncated"]


def test_datagrams_of_others_are_refused() -> None:
    stream, log = Stream(), MemoryLog()

    async def go() -> None:
        peer = ConnectionSettings("a", "127.0.0.9", transport=Transport.UDP)
        async with running(log, peer) as gateway:
            await until(lambda: one(gateway).local_port)
            await send_datagram(stream.cfg, one(gateway).local_port)
            await until(lambda: one(gateway).counts.refused[Reason.SENDER] == 1)

    run(go())
    assert log.records(FRAMES) == []
    assert letters(log) == ["sender"]


def test_commanded_udp_is_asked_again_when_it_is_silent() -> None:
    stream, log = Stream(), MemoryLog()
    first, second = stream.frame(), stream.frame()

    async def go() -> None:
        script = [OFF, ASK3, Send(stream.cfg), ON, Send(first), OFF, ASK3, Send(restamped(stream)), ON, Send(second)]
        async with serve_udp(script) as server:
            peer = replace(tcp(server), transport=Transport.UDP_COMMANDED, id_code=7)
            async with running(log, peer, settings=replace(QUICK, stall_s=0.2)) as gateway:
                await until(lambda: one(gateway).counts.frames == 2)
                assert one(gateway).counts.connects == 1
            await until(lambda: server.commands[-1] == Command.DATA_OFF)

    run(go())
    assert log.bytes(FRAMES, "a") == stream.cfg + first + second


def test_commands_over_tcp_and_data_over_udp() -> None:
    stream, log = Stream(), MemoryLog()
    frames = [stream.frame() for _ in range(3)]

    async def go() -> None:
        gateways: list[Gateway] = []

        def port() -> int:
            return one(gateways[0]).local_port

        script = [ASK3, Send(stream.cfg), ON, *(Send(frame, port) for frame in frames)]
        async with serve(script) as server:
            async with running(log, replace(tcp(server), transport=Transport.TCP_UDP)) as gateway:
                gateways.append(gateway)
                await until(lambda: one(gateway).counts.frames == 3)
            await until(lambda: server.closed == 1)
        assert server.commands[-1] == Command.DATA_OFF

    run(go())
    assert sorted(log.bytes(FRAMES, "a")) == sorted(stream.cfg + b"".join(frames))


def test_it_connects_again_after_a_close_a_stall_and_a_cut_frame() -> None:
    stream, log = Stream(), MemoryLog()
    pieces = [stream.frames(2) for _ in range(3)]
    hello = [ASK3, Send(stream.cfg), ON]
    scripts = [
        [*hello, Send(pieces[0] + stream.frame()[:20]), Close()],
        [*hello, Send(pieces[1])],  # and then nothing more
        [*hello, Send(pieces[2])],
    ]

    async def go() -> None:
        async with (
            serve(*scripts) as server,
            running(log, tcp(server), settings=replace(QUICK, stall_s=0.3)) as gateway,
        ):
            await until(lambda: one(gateway).counts.frames == 6)
            assert one(gateway).counts.connects >= 3

    run(go())
    assert log.bytes(FRAMES, "a") == stream.cfg + b"".join(pieces)
    assert letters(log) == ["truncated"]


@pytest.mark.parametrize("script", [[], [OFF, Send(b"\xaa"), Send(b"\x01")]], ids=["mute", "slow"])
def test_a_peer_that_says_nothing_is_dropped(script: list[Step]) -> None:
    log = MemoryLog()

    async def go() -> None:
        settings = replace(QUICK, configure_s=0.1, answer_s=0.03)
        async with serve(script) as server, running(log, tcp(server), settings=settings) as gateway:
            await until(lambda: server.connections >= 3)
            assert "none came" in one(gateway).error or "no whole frame" in one(gateway).error
            assert one(gateway).counts.frames == 0

    run(go())
    assert log.records(FRAMES) == []


def test_a_peer_that_closes_at_once_is_asked_more_and_more_seldom() -> None:
    pauses: list[float] = []

    class Chance(random.Random):
        def uniform(self, a: float, b: float) -> float:
            pauses.append(b)
            return a

    async def go() -> None:
        log = MemoryLog()
        settings = replace(QUICK, backoff_least_s=0.5, backoff_most_s=30)
        async with serve([Close()]) as server:
            gateway = Gateway(lambda: log, [tcp(server)], settings, chance=Chance())
            stop = asyncio.Event()
            task = asyncio.create_task(gateway.run(stop))
            await until(lambda: len(pauses) >= 9)
            stop.set()
            await task

    run(go())
    assert pauses[:9] == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]


def test_after_a_while_of_good_data_the_pause_is_short_again() -> None:
    stream, log = Stream(), MemoryLog()
    pauses: list[float] = []

    class Chance(random.Random):
        def uniform(self, a: float, b: float) -> float:
            pauses.append(b)
            return a

    async def go() -> None:
        done = asyncio.Event()
        ask2 = [ASK2, Send(stream.cfg), ON, Send(stream.frame()), Wait(done), Close()]
        settings = replace(QUICK, backoff_least_s=0.5, backoff_most_s=30, good_s=0.05)
        async with serve([Close()], [Close()], [Close()], ask2, [Close()]) as server:
            gateway = Gateway(lambda: log, [tcp(server)], settings, chance=Chance())
            stop = asyncio.Event()
            task = asyncio.create_task(gateway.run(stop))
            await until(lambda: one(gateway).state is State.STREAMING)
            await until(lambda: gateway._connections[0]._attempt == 0)
            done.set()
            await until(lambda: len(pauses) >= 5)
            stop.set()
            await task

    run(go())
    assert pauses[:5] == [0.5, 1, 2, 0.5, 1]


def test_connection_errors_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)

    async def go() -> None:
        async with serve([]) as server:
            peer = tcp(server)  # closed: nobody listens there any more
        async with running(MemoryLog(), peer) as gateway:
            await until(lambda: gateway._connections[0]._attempt >= 5)
            assert one(gateway).state in (State.BACKING_OFF, State.CONNECTING)
            assert "no connection" in one(gateway).error

    run(go())
    assert len([r for r in caplog.records if "no connection" in r.getMessage()]) == 1


def test_endless_garbage_is_cut_off() -> None:
    log = MemoryLog()

    async def go() -> None:
        garbage = [Send(np.random.default_rng(i).bytes(60_000)) for i in range(8)]
        async with serve([OFF, *garbage]) as server, running(log, tcp(server)) as gateway:
            await until(lambda: server.connections >= 2)
            assert "without a whole frame" in one(gateway).error
            assert one(gateway).counts.refused_bytes > 100_000

    run(go())
    assert set(letters(log)) <= {"garbage", "crc", "truncated"}
    assert all(len(r.value) <= 1024 for r in log.records(DEAD_LETTERS))


def test_a_frame_of_64_kb_that_never_ends_is_waited_for_and_then_dropped() -> None:
    stream, log = Stream(), MemoryLog()
    data = stream.frames(3)

    async def go() -> None:
        endless = [OFF, Send(b"\xaa\x31\xff\xff\x00\x07" + bytes(50_000))]
        settings = replace(QUICK, configure_s=0.2)
        async with (
            serve(endless, [Expect(Command.DATA_OFF), Send(stream.cfg + data)]) as server,
            running(log, tcp(server), settings=settings) as gateway,
        ):
            await until(lambda: one(gateway).counts.frames == 3)

    run(go())
    assert letters(log)[0] == "truncated"
    assert log.bytes(FRAMES, "a") == stream.cfg + data


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (struct.pack(">IH", 1000, 65535) + bytes(40), "oversize"),
        (struct.pack(">IH", 1000, 3000) + bytes(40), "configuration"),
        (struct.pack(">IH", 0, 0) + bytes(2), "configuration"),
    ],
    ids=["too many PMUs", "more PMUs than bytes", "none"],
)
def test_an_absurd_configuration_is_refused(payload: bytes, reason: str) -> None:
    log = MemoryLog()
    long, short = wrap(FrameType.CFG3, 7, Stamp(1), b"\0\0" + payload), wrap(FrameType.CFG2, 7, Stamp(1), payload)

    async def go() -> None:
        async with serve([ASK3, Send(long), ASK2, Send(short)]) as server, running(log, tcp(server)) as gateway:
            await until(lambda: server.connections >= 2)
            assert "its configuration is refused" in one(gateway).error

    run(go())
    assert log.records(FRAMES) == log.records(CONFIGURATIONS) == []
    assert letters(log)[:2] == [reason, reason]


def test_a_configuration_beyond_a_mebibyte_is_refused() -> None:
    log = MemoryLog()
    parts = [wrap(FrameType.CFG3, 7, Stamp(1), struct.pack(">H", i) + bytes(65_000)) for i in range(1, 18)]

    async def go() -> None:
        script = [ASK3, *map(Send, parts), ASK2]
        async with serve(script) as server, running(log, tcp(server)) as gateway:
            await until(lambda: Command.SEND_CFG2 in server.commands)
            assert one(gateway).counts.refused[Reason.OVERSIZE] == 17

    run(go())
    assert log.records(FRAMES) == []


def test_while_the_log_is_full_it_gathers_and_what_it_must_drop_it_says() -> None:
    stream, log = Stream(), MemoryLog()
    first, second, third, last = (stream.frames(n) for n in (2, 2, 900, 2))

    async def go() -> None:
        steps = [asyncio.Event() for _ in range(3)]
        script = [ASK3, Send(stream.cfg), ON, Send(first), Wait(steps[0]), Send(second), Wait(steps[1]), Send(third)]
        script += [Wait(steps[2]), Send(last)]
        settings = replace(QUICK, buffer_bytes=4000)
        async with serve(script) as server, running(log, tcp(server), settings=settings) as gateway:
            await until(lambda: log.bytes(FRAMES, "a") == stream.cfg + first)
            log.full = True
            steps[0].set()
            await until(lambda: one(gateway).counts.frames == 4)
            assert gateway.totals().gathered_bytes >= len(second)
            steps[1].set()
            await until(lambda: one(gateway).counts.frames + one(gateway).counts.dropped_frames == 904)
            await until(lambda: gateway.totals().failed_writes > 2)
            log.full = False
            await until(lambda: Reason.DROPPED_FULL in letters(log))
            steps[2].set()
            await until(lambda: log.bytes(FRAMES, "a").endswith(last))
            dropped = one(gateway).counts.dropped_frames
            assert dropped > 0
            assert one(gateway).counts.refused[Reason.DROPPED_FULL] == dropped
            told = [r.value for r in log.records(DEAD_LETTERS) if r.note == Reason.DROPPED_FULL]
            assert sum(int(value.split()[0]) for value in told) == dropped
            kept = log.bytes(FRAMES, "a")
            assert kept.startswith(stream.cfg + first + second)
            assert (len(kept) - len(stream.cfg)) // stream.configuration.data_size == 906 - dropped

    run(go())


def test_it_stops_though_the_log_stays_full_and_says_what_is_lost(caplog: pytest.LogCaptureFixture) -> None:
    stream, log = Stream(), MemoryLog()

    async def go() -> None:
        log.full = True
        settings = replace(QUICK, stop_s=0.1)
        async with serve([ASK3, Send(stream.cfg), ON, Send(stream.frame())]) as server:
            async with running(log, tcp(server), settings=settings) as gateway:
                await until(lambda: one(gateway).counts.frames == 1)
            assert gateway.totals().lost_records == 3

    run(go())
    assert "3 records could not be written" in caplog.text


def test_a_bad_configuration_in_mid_stream_leaves_the_good_one_in_force() -> None:
    stream, log = Stream(), MemoryLog()
    first, second = stream.frames(2), stream.frames(2)
    bad = wrap(FrameType.CFG3, 7, Stamp(1), b"\0\0" + struct.pack(">IH", 1000, 3000) + bytes(40))

    async def go() -> None:
        script = [ASK3, Send(stream.cfg), ON, Send(first + bad + second)]
        async with serve(script) as server, running(log, tcp(server)) as gateway:
            await until(lambda: one(gateway).counts.frames == 4)

    run(go())
    assert log.bytes(FRAMES, "a") == stream.cfg + first + second
    assert letters(log) == ["configuration"]


def test_a_log_that_breaks_is_opened_anew() -> None:
    stream, log = Stream(), MemoryLog()
    data = stream.frames(2)

    async def go() -> None:
        async with serve([ASK3, Send(stream.cfg), ON, Send(data)]) as server:
            log.broken = True
            async with running(log, tcp(server)) as gateway:
                await until(lambda: gateway.totals().failed_writes >= 2)
                assert log.records(FRAMES) == []
                log.broken = False
                await until(lambda: log.bytes(FRAMES, "a") == stream.cfg + data)

    run(go())
    assert log.closed >= 3


def test_a_log_that_cannot_be_opened_ends_the_gateway() -> None:
    def make() -> MemoryLog:
        raise LogError("there is no such log")

    async def go() -> None:
        await Gateway(make, [ConnectionSettings("a", "127.0.0.1", 9)]).run(asyncio.Event())

    with pytest.raises(LogError, match="no such log"):
        run(go())


def test_what_is_no_log_error_ends_the_gateway_too() -> None:
    class Odd(MemoryLog):
        def append(self, topic: str, records: object) -> int:
            raise ZeroDivisionError(f"{topic} {records!r:.9}")

    stream = Stream()

    async def go() -> None:
        async with serve([ASK3, Send(stream.cfg), ON]) as server:
            await Gateway(Odd, [tcp(server)], QUICK).run(asyncio.Event())

    with pytest.raises(ZeroDivisionError):
        run(go())


def test_many_dead_letters_are_counted_and_some_are_kept() -> None:
    stream, foreign, log = Stream(), Stream(6, id_code=8), MemoryLog()

    async def go() -> None:
        script = [ASK3, Send(stream.cfg), ON, Send(foreign.frames(500) + stream.frame())]
        async with serve(script) as server, running(log, tcp(server, id_code=7)) as gateway:
            await until(lambda: one(gateway).counts.frames == 1)
            assert one(gateway).counts.refused[Reason.ID_CODE] == 500
            assert one(gateway).counts.letters < 500

    run(go())
    assert 10 <= len(letters(log)) < 500


@pytest.mark.parametrize(
    "peers",
    [
        [ConnectionSettings("a", "127.0.0.1"), ConnectionSettings("a", "127.0.0.2")],
        [ConnectionSettings("", "127.0.0.1")],
        [ConnectionSettings("a", "127.0.0.1", 70_000)],
        [ConnectionSettings("a", "")],
    ],
)
def test_settings_that_contradict_are_refused(peers: list[ConnectionSettings]) -> None:
    with pytest.raises(SettingsError):
        Gateway(MemoryLog, peers)
