"""`gridsense simulate-pmu`: what it prints, how it ends."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from gridsense.commands.simulate_pmu import LISTED, connections, share, simulate_pmu
from gridsense.errors import UsageError
from gridsense.simulator.script import made_script, read_script
from gridsense.simulator.server import Settings, Simulator, Start, Transport
from streams.archives import write_parquet
from streams.c37118.frame import EPOCH, Command, CommandFrame, encode_command
from tests.reference.small_grid import RATE, small_grid

PROGRAM = """
import sys
from pathlib import Path
from gridsense.commands.simulate_pmu import simulate_pmu
simulate_pmu((Path(sys.argv[1]),), port=0, loop=True, shift_to_now=True, print_config=True)
"""


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("simulator") / "grid.parquet"
    write_parquet(path, small_grid("north", 11, 3, 1, seconds=4))
    return path


def test_it_says_what_it_serves_and_what_it_did(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    simulate_pmu((archive,), port=0, start=Start.NOW, speed=0.0)
    said = capsys.readouterr()
    assert said.out == ""
    assert "north" in said.err
    assert "127.0.0.1" in said.err
    assert f"{4 * RATE} frames played" in said.err
    assert "0 frames (0 bytes) sent to 0 receivers" in said.err


def test_of_many_streams_some_are_listed(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    simulate_pmu((archive,), port=0, start=Start.NOW, speed=0.0, concentrators=50)
    said = capsys.readouterr().err
    assert sum("127.0.0.1" in line for line in said.splitlines()) == LISTED
    assert "..." in said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_and_its_configuration_leads_to_its_data(archive: Path, number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(archive)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        text = ""
        for line in process.stdout:
            text += line
            if line.startswith("transport"):
                break
        (table,) = tomllib.loads(text)["gateway"]["connections"]
        assert (table["name"], table["id_code"], table["transport"]) == ("north", 1, "tcp")
        with socket.create_connection((table["host"], table["port"]), timeout=60) as receiver:
            receiver.sendall(encode_command(CommandFrame(table["id_code"], EPOCH, Command.DATA_ON)))
            assert receiver.recv(1) == b"\xaa"
            process.send_signal(number)
            while receiver.recv(1 << 16):
                pass
        _, said = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "sent to 1 receivers" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("transport", Transport)
def test_the_configuration_for_a_gateway(archive: Path, transport: Transport) -> None:
    async def told() -> str:
        settings = Settings(port=0, transport=transport, udp_port=5000)
        simulator = Simulator(made_script([archive], 3, 1), settings)
        await simulator.start()
        try:
            return connections(simulator)
        finally:
            await simulator.close()

    tables = tomllib.loads(asyncio.run(told()))["gateway"]["connections"]
    assert [t["name"] for t in tables] == ["north0", "north1", "north2"]
    assert [t["id_code"] for t in tables] == [1, 2, 3]
    assert {t["transport"] for t in tables} == {str(transport)}
    by_udp = transport in (Transport.UDP, Transport.TCP_UDP)
    assert [t.get("udp_port") for t in tables] == ([5000, 5001, 5002] if by_udp else [None] * 3)
    assert all(("port" in t) is (transport is not Transport.UDP) for t in tables)


def test_names_are_quoted(tmp_path: Path) -> None:
    path = tmp_path / "odd.parquet"
    write_parquet(path, small_grid('a "b"\\ü', 1, 1, 1, seconds=1))

    async def told() -> str:
        simulator = Simulator(read_script([path]), Settings(port=0))
        await simulator.start()
        try:
            return connections(simulator)
        finally:
            await simulator.close()

    assert tomllib.loads(asyncio.run(told()))["gateway"]["connections"][0]["name"] == 'a "b"\\ü'


@pytest.mark.parametrize(("text", "value"), [("2%", 0.02), ("0.5", 0.5), ("100 %", 1.0), ("0%", 0.0)])
def test_shares(text: str, value: float) -> None:
    assert share("--loss", text) == value


@pytest.mark.parametrize("text", ["", "%", "2", "101%", "-1%", "nan", "2%%", "two"])
def test_what_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--loss"):
        share("--loss", text)


def test_options_that_do_not_go_together_are_refused(archive: Path) -> None:
    with pytest.raises(UsageError, match="--split"):
        simulate_pmu((archive,), split=True, concentrators=2)
    with pytest.raises(UsageError, match="--concentrators"):
        simulate_pmu((archive,), integers=True)
    with pytest.raises(UsageError, match="duration"):
        simulate_pmu((archive,), drop_after="soon")
