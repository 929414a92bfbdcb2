"""Hostile peers of the gateway: each leaves its trace, costs a good peer no frame, and is not read without bounds."""

from __future__ import annotations

import asyncio
import random
import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from scripts.check.hostile import (
    ATTACKS,
    Attack,
    attacking,
    changing_configuration,
    endless_fragments,
    flood,
    least_frames,
    stolen_id_code,
    told,
    uncounted,
)
from streams.c37118.configuration import ConfigurationFrame, PhasorDefinition, PmuConfiguration, encode_configuration
from streams.c37118.frame import Command, FrameType, Stamp, wrap
from streams.gateway.connection import READ_BYTES, SHARE_BYTES, VAIN_BYTES
from streams.gateway.framing import _START, Framer
from streams.gateway.gateway import Gateway
from streams.gateway.intake import MAX_CHANGES, MAX_FRAGMENTS
from streams.gateway.settings import ConnectionSettings, GatewaySettings
from streams.gateway.status import Reason
from streams.log import CONFIGURATIONS, FRAMES
from tests.reference.memory_log import MemoryLog
from tests.reference.pmu_server import Expect, Send, Step, Wait, serve

QUICK = GatewaySettings(
    answer_s=0.5, configure_s=1.0, stall_s=60, backoff_least_s=0.01, backoff_most_s=0.1, flush_s=0.005, tick_s=0.02
)
NO_TICK = replace(QUICK, configure_s=60, answer_s=60, tick_s=60)
"""What is allowed between two ticks is all that there is."""

PMU = ConfigurationFrame(1, (PmuConfiguration("GOOD", 1, 60, (PhasorDefinition("VA"),)),), 30)
CFG = b"".join(encode_configuration(PMU))


def frames(first: int, count: int) -> bytes:
    body = bytes(PMU.data_size - 16)
    return b"".join(wrap(FrameType.DATA, 1, Stamp(first + n), body) for n in range(count))


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - the condition is another thread's
            await asyncio.sleep(0.005)


async def beside(
    attacks: list[Attack],
    limits: GatewaySettings,
    log: MemoryLog,
    enough: Callable[[dict[str, Any]], bool],
    *,
    paused: bool = False,
    after: Callable[[Gateway], None] = lambda _: None,
) -> dict[str, Any]:
    """A good PMU sends a few frames, and more when there is enough of the attacks (and the first is paused)."""
    go_on = asyncio.Event()
    script: list[Step] = [Expect(Command.SEND_CFG3), Send(CFG), Expect(Command.DATA_ON)]
    script += [Send(frames(n, 1)) for n in range(20)] + [Wait(go_on), Send(frames(20, 20))]
    async with serve(script) as server, attacking(attacks) as hostile:
        peers = [*hostile, ConnectionSettings("good", "127.0.0.1", server.port, 1)]
        gateway = Gateway(lambda: log, peers, limits, chance=random.Random(1))  # noqa: S311 - no secret
        stop = asyncio.Event()
        task = asyncio.create_task(gateway.run(stop))
        try:
            await until(lambda: enough(told(gateway)))
            if paused:
                await until(lambda: not gateway._connections[0]._tcp.is_reading())
            go_on.set()
            await until(lambda: told(gateway)["good"]["counts"]["frames"] == 40)
            status = told(gateway)
            assert server.connections == 1
            after(gateway)
        finally:
            log.full = False
            stop.set()
            await task
    assert log.bytes(FRAMES, "good") == CFG + frames(0, 40)
    return status


@pytest.mark.parametrize("group", range(3))
def test_every_attack_is_counted_and_the_good_peer_loses_nothing(group: int) -> None:
    attacks = [a for a in ATTACKS if a.act is not flood][group::3]
    status = asyncio.run(beside(attacks, QUICK, MemoryLog(), lambda status: not uncounted(attacks, status)))
    assert set(status) == {a.name for a in attacks} | {"good"}
    assert not any(status["good"]["counts"]["refused"].values())


def test_who_brings_little_of_use_is_read_on_at_every_tick() -> None:
    attack = Attack(least_frames, ("crc",))
    ticks_worth = 10 * (VAIN_BYTES + READ_BYTES) // 16

    def seen(status: dict[str, Any]) -> bool:
        return bool(status[attack.name]["counts"]["refused"]["crc"] > ticks_worth)

    asyncio.run(beside([attack], QUICK, MemoryLog(), seen))


def test_a_trace_is_missed_where_there_is_none() -> None:
    (attack,) = (a for a in ATTACKS if a.act is stolen_id_code)
    counts = {"connects": 9, "frames": 0, "commands": 0, "refused": {"crc": 1, "id_code": 0}}
    assert uncounted([attack], {attack.name: {"counts": counts}}) == [attack.name]
    counts["refused"] = {"id_code": 1}
    assert uncounted([attack], {attack.name: {"counts": counts}}) == []


def test_what_comes_in_vain_between_two_ticks_is_bounded() -> None:
    attack = Attack(least_frames, ("crc",))

    def seen(status: dict[str, Any]) -> bool:
        return bool(status[attack.name]["counts"]["refused"]["crc"])

    status = asyncio.run(beside([attack], NO_TICK, MemoryLog(), seen, paused=True))
    refused = status[attack.name]["counts"]["refused_bytes"]
    assert refused < VAIN_BYTES + READ_BYTES, "it would send without end"


def test_who_floods_while_the_log_is_behind_is_read_slowly() -> None:
    attack, log = Attack(flood, ("frames",)), MemoryLog()
    log.full = True
    limits = replace(NO_TICK, buffer_bytes=1 << 22, stop_s=30)

    def seen(status: dict[str, Any]) -> bool:
        return bool(status[attack.name]["counts"]["frames_bytes"] > SHARE_BYTES)

    def room(gateway: Gateway) -> None:
        assert gateway.totals().gathered_bytes < limits.buffer_bytes
        assert gateway.totals().counts.dropped_frames == 0

    status = asyncio.run(beside([attack], limits, log, seen, paused=True, after=room))
    # a quarter of the bound, and what one more read brings
    assert status[attack.name]["counts"]["frames_bytes"] < limits.buffer_bytes // 4 + SHARE_BYTES


def test_an_id_code_that_another_peers_settings_name_is_not_given_away(caplog: pytest.LogCaptureFixture) -> None:
    attack, log = Attack(stolen_id_code, ("id_code",), anonymous=True), MemoryLog()

    async def alone() -> None:
        async with attacking([attack]) as hostile:
            peers = [*hostile, ConnectionSettings("good", "127.0.0.1", 9, 1)]  # which is not there yet
            gateway = Gateway(lambda: log, peers, QUICK)
            stop = asyncio.Event()
            task = asyncio.create_task(gateway.run(stop))
            await until(lambda: told(gateway)[attack.name]["counts"]["refused"]["id_code"])
            await until(lambda: "ID code 1 is that of 'good'" in caplog.text)
            stop.set()
            await task

    asyncio.run(alone())
    assert log.records(FRAMES) == []


def test_a_configuration_that_changes_without_end_is_not_listened_to() -> None:
    attack, log = Attack(changing_configuration, ("configuration",)), MemoryLog()

    def seen(status: dict[str, Any]) -> bool:
        return bool(status[attack.name]["counts"]["refused"]["configuration"])

    status = asyncio.run(beside([attack], QUICK, log, seen))
    minutes = 2  # one may end meanwhile
    assert 0 < status[attack.name]["counts"]["configuration_changes"] <= minutes * MAX_CHANGES
    assert len(log.records(CONFIGURATIONS, attack.name)) <= minutes * MAX_CHANGES


def test_a_configuration_of_many_small_parts_is_oversize() -> None:
    attack = Attack(endless_fragments, ("oversize",))

    def seen(status: dict[str, Any]) -> bool:
        return bool(status[attack.name]["counts"]["refused"][Reason.OVERSIZE])

    status = asyncio.run(beside([attack], QUICK, MemoryLog(), seen))
    assert status[attack.name]["counts"]["refused"][Reason.OVERSIZE] % (MAX_FRAGMENTS + 1) == 0


BYTES = st.sampled_from([b"\xaa", b"\x00", b"\x01", b"\x0f", b"\x10", b"\x31", b"\x5f", b"\x60", b"\xff"])


@settings(max_examples=200, deadline=None)
@given(st.lists(BYTES, max_size=40).map(b"".join), st.lists(BYTES, min_size=6, max_size=6).map(b"".join))
@example(b"\xaa\x01\x00\x10", bytes(6))
@example(b"\xaa\x5f\x00", b"\x10" * 6)
def test_no_start_of_a_frame_is_stepped_over(data: bytes, more: bytes) -> None:
    framer = Framer(1 << 18)
    for at in range(len(data)):
        size, _ = framer._claim(data + more, at)
        if size:  # whatever comes next
            assert _START.match(data, at)


@pytest.mark.parametrize("junk", [b"\xaa", b"\xaa\x02\x00\x0f", b"\xaa\x72\x00\x20"], ids=["sync", "short", "no type"])
def test_frames_behind_much_that_looks_like_some_are_found(junk: bytes) -> None:
    framer = Framer(1 << 18)
    pieces = list(framer.feed(junk * 5000 + frames(0, 2) + frames(2, 1)))
    assert [p.value for p in pieces if p.reason is None] == [frames(n, 1) for n in range(3)]
    assert b"".join(p.value for p in pieces) == junk * 5000 + frames(0, 3)
    assert struct.unpack_from(">H", pieces[-1].value, 2) == (PMU.data_size,)
