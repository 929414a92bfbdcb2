"""Conversations with peers: their clients read our simulator, our gateway their servers; then numbers are compared.

In: scenes. Out: for each conversation how many frames were compared and what differs, in words. Peers run in processes
of their own environment; the simulator and the gateway are those of the product, on sockets of this machine.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gridsense.simulator.script import Script, made_script, read_script
from gridsense.simulator.server import Settings, Simulator
from scripts.peers.scene import SOURCE, Scene, told
from streams.archives import write_parquet
from streams.block import FrameBatch
from streams.c37118.configuration import ConfigurationFrame, encode_configuration
from streams.c37118.stream import StreamParser
from streams.channels import ChannelTable, Quantity
from streams.gateway.gateway import Gateway
from streams.gateway.settings import ConnectionSettings, GatewaySettings
from streams.log import DEAD_LETTERS, FRAMES, Log
from streams.sqlite_log import open_log

DRIVERS = Path(__file__).parent / "drivers"
PATIENCE_S = 60.0
"""For a conversation, however slow the machine."""
FLOAT32 = 2e-6
"""Relative: magnitude and angle were worked out anew, from float32 or in it."""

_QUICK = GatewaySettings(answer_s=0.5, backoff_least_s=0.05, backoff_most_s=0.1, tick_s=0.02, flush_s=0.01)


@dataclass(frozen=True, slots=True)
class Conversation:
    """What came of one.

    Attributes
    ----------
    peer
        Who.
    about
        What was said, in words.
    frames
        Data frames compared.
    differences
        In words; none where all agrees.
    remark
        What else was to be seen.
    """

    peer: str
    about: str
    frames: int
    differences: tuple[str, ...]
    remark: str = ""


class PeerError(Exception):
    """A peer's program ended in another way than it should."""


def archive(scene: Scene, folder: Path, *, bare: bool = False) -> Path:
    """Write a scene as the archive that the simulator plays.

    Parameters
    ----------
    scene
        What it holds.
    folder
        Where it goes.
    bare
        Without the configuration, as recordings that were never C37.118: the simulator makes one.

    Returns
    -------
    Path
        The file.
    """
    path = folder / "scene.parquet"
    stored = {} if bare else {SOURCE: b"".join(encode_configuration(scene.configuration))}
    write_parquet(path, scene.batch, configurations=stored)
    return path


def client_reads(
    python: Path, client: str, scene: Scene, folder: Path, *, made: bool = False, bare: bool = False
) -> Conversation:
    """Let a peer's client read a scene from the simulator.

    Parameters
    ----------
    python
        Of the peers' environment.
    client
        Of `drivers`, without ``client_``.
    scene
        What the file holds that is simulated.
    folder
        For the file and what the peer understood.
    made
        As a concentrator that the simulator makes up, phasors as integers in steps of its choice.
    bare
        From an archive that knows no configuration.

    Returns
    -------
    Conversation
        What it made of it.

    Raises
    ------
    PeerError
        If the peer's program fails.
    """
    path = archive(scene, folder, bare=bare or made)
    if made:
        script, step = made_script([path], 1, len(scene.configuration.pmus), integers=True), 1.0
    else:
        script, step = read_script([path]), 0.0
    out = folder / "heard.json"
    asyncio.run(_listen(python, client, script, scene.frames, out))
    heard = json.loads(out.read_text())
    about = f"{scene.form.words}, {_many(len(scene.configuration.pmus))}"
    if made:
        about = f"made-up concentrator, integer phasors, {_many(len(scene.configuration.pmus))}"
    elif bare:
        about += ", configuration made up"
    wrong, frames = _compare_heard(heard, scene, script, step)
    return Conversation(client, about, frames, tuple(wrong))


def _many(pmus: int) -> str:
    return "1 PMU" if pmus == 1 else f"{pmus} PMUs"


async def _listen(python: Path, client: str, script: Script, frames: int, out: Path) -> None:
    simulator = Simulator(script, Settings(port=0, speed=0))
    await simulator.start()
    running = asyncio.create_task(simulator.run())
    try:
        stream = script.streams[0]
        host, port = simulator.addresses[stream.name]
        arguments = [host, str(port), str(stream.id_code), str(frames), str(out)]
        program = DRIVERS / f"client_{client}.py"
        peer = await asyncio.create_subprocess_exec(
            python, program, *arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        try:
            async with asyncio.timeout(PATIENCE_S):
                _, said = await peer.communicate()
        except TimeoutError:
            peer.kill()
            _, said = await peer.communicate()
            raise PeerError(f"{client} did not end within {PATIENCE_S:g} s; {_last(said)}") from None
        if peer.returncode:
            raise PeerError(f"{client} ended with {peer.returncode}: {_last(said)}")
    finally:
        simulator.stop()
        await running
        await simulator.close()


def _last(said: bytes) -> str:
    lines = said.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"


def _compare_heard(heard: dict[str, Any], scene: Scene, script: Script, step: float) -> tuple[list[str], int]:
    """Compare what a client understood with what the file holds; how many frames were compared."""
    table, batch = scene.batch.table, scene.batch
    configuration = script.streams[0].configuration
    wrong = []
    if not heard["header"]:
        wrong.append("the header is empty")
    wrong += _different("rate", [heard["rate"]], [configuration.data_rate])
    wrong += _different("time base", [heard["time_base"]], [configuration.time_base])
    stations = heard["stations"]
    wrong += _different("station names", [s["name"] for s in stations], [p.station for p in table.pmus])
    codes = [p.id_code for p in configuration.pmus]
    wrong += _different("ID codes", [s["id_code"] for s in stations], codes)
    wrong += _different("nominal frequencies", [s["nominal_hz"] for s in stations], [p.nominal_hz for p in table.pmus])
    names = [_names(table, s) for s in range(len(table.pmus))]
    wrong += _different("channel names", [s["channels"] for s in stations], names)
    frames = heard["frames"]
    unread = sum(frame is None for frame in frames)
    if unread:
        return [*wrong, f"{unread} of {len(frames)} data frames were not understood"], 0
    base = heard["time_base"]
    time_ns = [f["soc"] * 10**9 + (f["fraction"] * 10**9 + base // 2) // base for f in frames]
    wrong += _different("time stamps", time_ns, batch.time_ns.tolist())
    if len(frames) != scene.frames:
        return wrong, len(frames)

    def field(key: str) -> NDArray[np.float64]:
        return np.array([[p[key] for p in f["pmus"]] for f in frames], np.float64)

    if all("stat" in p for f in frames for p in f["pmus"]):
        wrong += _different("STAT", field("stat").astype(int).tolist(), batch.stat.tolist())
    phasors = field("magnitude") * np.exp(1j * field("angle_rad"))
    scale = np.array([[d.scale for d in p.phasors] for p in configuration.pmus])
    read = _Read(phasors, field("frequency_hz"), field("rocof_hz_s"), field("analog"))
    return wrong + _compare(batch, read, step * scale), len(frames)


def _names(table: ChannelTable, pmu: int) -> list[str]:
    kept = (Quantity.VOLTAGE_MAGNITUDE, Quantity.CURRENT_MAGNITUDE, Quantity.ANALOG)
    return [c.name for c in table.pmus[pmu].channels if c.quantity in kept]


def _different(what: str, theirs: Sequence[Any], ours: Sequence[Any]) -> list[str]:
    if list(theirs) == list(ours):
        return []
    for one, other in zip(theirs, ours, strict=False):
        if one != other:
            return [f"{what}: {one!r} instead of {other!r}"]
    return [f"{what}: {len(theirs)} instead of {len(ours)}"]


@dataclass(frozen=True, slots=True)
class _Read:
    """What somebody read: `(T, S, P)`, `(T, S)`, `(T, S)`, `(T, S, A)`."""

    phasors: NDArray[np.complex128]
    frequency_hz: NDArray[np.float64]
    rocof_hz_s: NDArray[np.float64]
    analog: NDArray[np.float64]


def _compare(batch: FrameBatch, read: _Read, step: NDArray[np.float64]) -> list[str]:
    """Compare measurements with a batch's; `step` `(S, P)` is that of a count where they were rounded to it, else 0."""

    def held(*quantities: Quantity) -> NDArray[np.float64]:
        channels = batch.table.pmus[0].channels
        places = [c for c, channel in enumerate(channels) if channel.quantity in quantities]
        return batch.values[..., places].astype(np.float64)

    size = held(Quantity.VOLTAGE_MAGNITUDE, Quantity.CURRENT_MAGNITUDE)
    angle_rad = np.radians(held(Quantity.VOLTAGE_ANGLE, Quantity.CURRENT_ANGLE))
    # half a step of the magnitude, and half a count of the angle where there are counts
    rounding = 0.51 * step + np.where(step > 0, 0.51e-4 * size, 0.0)
    wrong = _apart("phasor", read.phasors, size * np.exp(1j * angle_rad), FLOAT32 * size + rounding)
    for what, theirs, quantity in (
        ("frequency", read.frequency_hz[..., None], Quantity.FREQUENCY),
        ("ROCOF", read.rocof_hz_s[..., None], Quantity.ROCOF),
        ("analog", read.analog, Quantity.ANALOG),
    ):
        ours = held(quantity)
        wrong += _apart(what, theirs, ours, 1e-9 * np.abs(ours) + 1e-12)
    return wrong


def _apart(what: str, theirs: NDArray[Any], ours: NDArray[Any], allowed: NDArray[np.float64]) -> list[str]:
    bad = np.argwhere(~(np.abs(theirs - ours) <= allowed))
    if not len(bad):
        return []
    at = tuple(bad[0])
    return [f"{what}: {len(bad)} of {ours.size} differ, the first at {at}: {theirs[at]} instead of {ours[at]}"]


def server_is_read(python: Path, server: Sequence[str], scene: Scene, folder: Path) -> Conversation:
    """Let the gateway read what a peer's server was told to send.

    Parameters
    ----------
    python
        Of the peers' environment.
    server
        Of `drivers`, without ``server_``, and its arguments.
    scene
        What it is told.
    folder
        For what is told, and the log.

    Returns
    -------
    Conversation
        What the log says.

    Raises
    ------
    PeerError
        If the peer's program fails, or the frames do not come.
    """
    script = folder / "told.json"
    script.write_text(told(scene))
    path = folder / "gateway.log"
    open_log(path).close()
    with serving(python, [str(DRIVERS / f"server_{server[0]}.py"), *server[1:], str(script)]) as port:
        status, connects = asyncio.run(_receive(path, port, scene))
    log = open_log(path)
    try:
        parser, items = StreamParser(SOURCE, np.float64), []
        for entry in _entries(log, FRAMES):
            items += parser.feed(entry)
        letters = list(_entries(log, DEAD_LETTERS))
    finally:
        log.close()
    items += parser.finish()
    about = f"{scene.form.words}, {_many(len(scene.configuration.pmus))}"
    wrong = [f"{len(letters)} dead letters"] if letters else []
    found = [i for i in items if isinstance(i, ConfigurationFrame)]
    batches = [i for i in items if isinstance(i, FrameBatch)]
    wrong += _compare_received(found, batches, scene, status)
    frames = sum(len(b.time_ns) for b in batches)
    remark = "left when asked for CFG-3" if connects > 1 else ""
    return Conversation(" ".join(server), about, frames, tuple(wrong), remark)


def _entries(log: Log, topic: str) -> Iterator[bytes]:
    at = 0
    while (reading := log.read(topic, at)).entries:
        yield from (e.value for e in reading.entries)
        at = reading.next


@contextmanager
def serving(python: Path, command: Sequence[str]) -> Iterator[int]:
    """Run a peer's server.

    Parameters
    ----------
    python
        Of the peers' environment.
    command
        The program and its arguments.

    Yields
    ------
    int
        Its port.

    Raises
    ------
    PeerError
        If it does not begin to listen.
    """
    with subprocess.Popen(
        [python, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as peer:
        try:
            said = ""
            for line in peer.stdout or ():
                said = line.strip()
                if said.startswith("listening "):
                    yield int(said.split()[1])
                    break
            else:
                raise PeerError(f"{command[0]} ended before it listened: {said}")
        finally:
            try:
                peer.communicate(timeout=PATIENCE_S)
            except subprocess.TimeoutExpired:
                peer.kill()


async def _receive(path: Path, port: int, scene: Scene) -> tuple[str, int]:
    """Run the gateway until all frames have come; its header and connections."""
    peer = ConnectionSettings(SOURCE, "127.0.0.1", port, scene.configuration.id_code)
    gateway = Gateway(lambda: open_log(path), [peer], _QUICK, chance=random.Random(1))  # noqa: S311 - no secret
    stop = asyncio.Event()
    running = asyncio.create_task(gateway.run(stop))
    try:
        async with asyncio.timeout(PATIENCE_S):
            while gateway.status()[0].counts.frames < scene.frames:  # noqa: ASYNC110 - another side's count
                await asyncio.sleep(0.01)
    except TimeoutError:
        status = gateway.status()[0]
        raise PeerError(
            f"{status.counts.frames} of {scene.frames} frames came within {PATIENCE_S:g} s; "
            f"state {status.state}, {status.error or 'no error'}, refused {status.counts.refused}"
        ) from None
    finally:
        stop.set()
        await running
    status = gateway.status()[0]
    refused = sum(status.counts.refused.values())
    return f"{refused} frames refused" if refused else "", status.counts.connects


def _compare_received(
    found: list[ConfigurationFrame], batches: list[FrameBatch], scene: Scene, status: str
) -> list[str]:
    """Compare what the log holds with what the server was told."""
    if not found or not batches:
        return ["no configuration in the log" if not found else "no data in the log"]
    wrong = [status] if status else []
    c, ours = found[0], scene.configuration
    for what, of in (("stream", _stream), ("stations", _stations), ("channels", _channels)):
        wrong += _different(what, of(c), of(ours))
    table = batches[0].table
    if table.pmus != scene.batch.table.pmus:
        wrong.append("the channel table differs from the one of the scene")
    batch = scene.batch
    wrong += _different("time stamps", np.concatenate([b.time_ns for b in batches]).tolist(), batch.time_ns.tolist())
    stat = np.concatenate([b.stat for b in batches])
    wrong += _different("STAT", stat.tolist(), batch.stat.tolist())
    values = np.concatenate([b.values for b in batches])
    if values.shape != batch.values.shape:
        return [*wrong, f"values of shape {values.shape} instead of {batch.values.shape}"]
    phasors = values[..., 0:6:2] * np.exp(1j * np.radians(values[..., 1:6:2]))
    step = np.zeros((len(ours.pmus), 3))
    return wrong + _compare(batch, _Read(phasors, values[..., 6], values[..., 7], values[..., 8:]), step)


def _stream(c: ConfigurationFrame) -> list[int]:
    return [c.id_code, c.data_rate, c.time_base]


def _stations(c: ConfigurationFrame) -> list[tuple[str, int, int]]:
    return [(p.station, p.id_code, p.nominal_hz) for p in c.pmus]


def _channels(c: ConfigurationFrame) -> list[str]:
    return [definition.name for p in c.pmus for definition in (*p.phasors, *p.analogs)]
