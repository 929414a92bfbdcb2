"""`gridsense simulate-pmu`: a file in, C37.118 servers on this machine out, until the file ends or somebody stops it.

It says on stderr what is served and how far it is; with `--print-config` it prints on stdout what a gateway needs.
"""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from gridsense.detect import seconds
from gridsense.errors import UsageError
from gridsense.events import rfc3339
from gridsense.simulator.script import Script, ServedStream, made_script, read_script
from gridsense.simulator.server import Counts, Settings, Simulator, Start, Transport

LISTED = 20
"""Streams that are listed at the start; of more, the first and the last."""

_REPORT_S = 0.5
_FLAG = Parameter(negative="", show_default=False)


def simulate_pmu(
    files: Annotated[tuple[Path, ...], Parameter(required=True)],
    /,
    *,
    transport: Transport = Transport.TCP,
    host: str = "127.0.0.1",
    port: int = 4712,
    udp_host: str = "127.0.0.1",
    udp_port: int = 0,
    start: Start = Start.ALL,
    speed: float = 1.0,
    loop: Annotated[bool, _FLAG] = False,
    shift_to_now: Annotated[bool, _FLAG] = False,
    split: Annotated[bool, _FLAG] = False,
    concentrators: int | None = None,
    pmus_each: int = 1,
    integers: Annotated[bool, _FLAG] = False,
    configuration_every: str = "60s",
    jitter_ms: float = 0.0,
    loss: str = "0%",
    duplicate: str = "0%",
    reorder: str = "0%",
    drop_after: str | None = None,
    stall_after: str | None = None,
    seed: int = 0,
    channels: Path | None = None,
    print_config: Annotated[bool, _FLAG] = False,
) -> None:
    """Serve a recording as PMUs and concentrators would: IEEE C37.118.2 over TCP and UDP, at its own pace.

    Every stream of the files (captures, Parquet, CSV) gets a port of its own: `--port`, the next, and so on. Captured
    C37.118 is sent byte for byte as it was; archives under the configuration that they hold, else under a CFG-2 made up
    (polar, float32), a CFG-3 where names or size ask for it. Only `--loop` and `--shift-to-now` write time stamps anew.

    `--transport` is one of:

    - `tcp`: receivers send commands (configuration 1, 2 or 3, header, data on, data off).
    - `tcp-spontaneous`: configuration and data for whoever connects, no command needed.
    - `udp`: configuration and data to `--udp-host` and `--udp-port`, no command needed.
    - `udp-commanded`: commands by UDP, data back to where they came from.
    - `tcp-udp`: commands by TCP, data by UDP to the receiver's host at `--udp-port`.

    The recording begins when every stream is asked for (`--start all`), with the first (`first`), or at once (`now`).
    Who comes later gets what is sent from then on. A receiver that does not keep up for 10 s is dropped. The command
    ends with the recording, or with SIGINT or SIGTERM, and says what it sent.

    Examples
    --------
    ```
    gridsense simulate-pmu capture.pcap
    gridsense simulate-pmu day.parquet --shift-to-now --loop --print-config > connections.toml
    gridsense simulate-pmu day.parquet --concentrators 10 --pmus-each 300 --speed 0
    gridsense simulate-pmu day.parquet --transport udp --udp-port 4713 --loss 2% --reorder 1% --seed 7
    ```

    Parameters
    ----------
    files
        Captures and archives; several run side by side in time.
    transport
        How the streams are served.
    host
        Address to serve on. C37.118 knows no password: leave it on this machine.
    port
        Of the first stream; 0 for any free ones.
    udp_host
        Of `udp`: who receives.
    udp_port
        Of `udp` and `tcp-udp`: where the first stream's data are received; the others follow.
    start
        What the recording waits for.
    speed
        Times real time; 0 for as fast as receivers take it, over TCP.
    loop
        Begin again at the end; time stamps go on rising, by the file's length in whole reporting periods.
    shift_to_now
        Move all time stamps by whole seconds, so that the first frame leaves at the time that it says.
    split
        Serve each PMU as a stream of its own.
    concentrators
        Serve so many concentrators made up of the file's PMUs in turn. PMUs that come again are numbered, and read the
        file from a later place.
    pmus_each
        PMUs of each made-up concentrator.
    integers
        Made-up concentrators send phasors as 16-bit integers; else floating point.
    configuration_every
        Of `udp`: how often the configuration is sent; 0 for once.
    jitter_ms
        Each stream's frames leave later by a time of its own, up to this.
    loss
        UDP: share of the data frames that are not sent.
    duplicate
        UDP: share that is sent twice.
    reorder
        UDP: share that is sent behind its successor.
    drop_after
        TCP: close each connection so long after its data began.
    stall_after
        Send nothing more to a receiver so long after its data began, and leave the connection open.
    seed
        Of jitter and faults: the same seed, the same faults.
    channels
        For tables: a map of their columns, CSV with the header column,pmu,quantity,phase,unit,nominal.
    print_config
        Print the `[[gateway.connections]]` tables with which a gateway receives all this.
    """
    settings = Settings(
        transport=transport,
        host=host,
        port=port,
        udp_host=udp_host,
        udp_port=udp_port,
        start=start,
        speed=speed,
        loop=loop,
        shift_to_now=shift_to_now,
        configuration_every_s=0.0 if configuration_every in ("0", "0s") else seconds(configuration_every),
        jitter_s=jitter_ms / 1e3,
        loss=share("--loss", loss),
        duplicate=share("--duplicate", duplicate),
        reorder=share("--reorder", reorder),
        drop_after_s=None if drop_after is None else seconds(drop_after),
        stall_after_s=None if stall_after is None else seconds(stall_after),
        seed=seed,
    )
    script = _script(files, channels, concentrators, pmus_each, split=split, integers=integers)
    asyncio.run(_serve(Simulator(script, settings), print_config=print_config))


def share(option: str, text: str) -> float:
    """Read a share.

    Parameters
    ----------
    option
        Which option it is of.
    text
        ``2%`` or ``0.02``.

    Returns
    -------
    float
        0 to 1.

    Raises
    ------
    UsageError
        If it is no share.
    """
    number, percent, rest = text.strip().partition("%")
    with suppress(ValueError):
        value = float(number) / (100 if percent else 1)
        if 0 <= value <= 1 and not rest:
            return value
    raise UsageError(f"{option} {text}: a share between 0% and 100%, such as 2%")


def connections(simulator: Simulator) -> str:
    """Write down how a gateway receives what is served.

    Parameters
    ----------
    simulator
        Started.

    Returns
    -------
    str
        TOML: a ``[[gateway.connections]]`` table a stream.
    """
    settings = simulator.settings
    tables = []
    for place, stream in enumerate(simulator.script.streams):
        host, port = simulator.addresses[stream.name]
        lines = ["[[gateway.connections]]", f"name = {json.dumps(stream.name, ensure_ascii=False)}"]
        if settings.transport is Transport.UDP:
            lines += [f"host = {json.dumps(settings.host)}", f"udp_port = {port}"]
        else:
            lines += [f"host = {json.dumps(host)}", f"port = {port}"]
        lines += [f"id_code = {stream.id_code}", f'transport = "{settings.transport}"']
        if settings.transport is Transport.TCP_UDP:
            lines.append(f"udp_port = {settings.udp_port + place}")
        tables.append("\n".join(lines) + "\n")
    return "\n".join(tables)


def _script(
    files: Sequence[Path],
    channels: Path | None,
    concentrators: int | None,
    pmus_each: int,
    *,
    split: bool,
    integers: bool,
) -> Script:
    if concentrators is None:
        if integers or pmus_each != 1:
            raise UsageError("--pmus-each and --integers are for --concentrators: what a file holds is served as it is")
        return read_script(files, channels, split=split)
    if split:
        raise UsageError(
            "--split and --concentrators contradict each other; --concentrators N makes N streams of one PMU"
        )
    return made_script(files, concentrators, pmus_each, channels=channels, integers=integers)


async def _serve(simulator: Simulator, *, print_config: bool) -> None:
    """Run to the end, or until somebody interrupts it."""
    console = Console(stderr=True)
    await simulator.start()
    running = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        running.add_signal_handler(number, simulator.stop)
    try:
        console.print(_served(simulator))
        if print_config:
            print(connections(simulator), flush=True)  # noqa: T201  # the result of the command
        showing = asyncio.create_task(_show(simulator, console))
        try:
            counts = await simulator.run()
        finally:
            showing.cancel()
            with suppress(asyncio.CancelledError):
                await showing
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            running.remove_signal_handler(number)
        await simulator.close()
    console.print(summary(simulator, counts), highlight=False, markup=False, soft_wrap=True)


def _served(simulator: Simulator) -> Table:
    """List what is served, and where."""
    streams = simulator.script.streams
    table = Table("stream", "ID code", "address", "PMUs", "frames/s", title=f"served by {simulator.settings.transport}")
    shown: Sequence[ServedStream | None] = streams
    if len(streams) > LISTED:
        shown = [*streams[: LISTED - 1], None, streams[-1]]
    for stream in shown:
        if stream is None:
            table.add_row("...", "", "", "", "")
            continue
        host, port = simulator.addresses[stream.name]
        rate = stream.configuration.rate_hz
        table.add_row(
            stream.name, str(stream.id_code), f"{host}:{port}", str(len(stream.configuration.pmus)), f"{rate:g}"
        )
    return table


async def _show(simulator: Simulator, console: Console) -> None:
    """Show on a terminal how far it is."""
    columns = (SpinnerColumn(), TextColumn("{task.fields[state]}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("serving", total=None, state="")
        before = 0
        while True:
            status, counts = simulator.status(), simulator.counts
            if status.time_ns is None:
                state = f"{status.receiving} receivers, waiting for {status.waiting} streams to be asked for"
            else:
                rate = (counts.sent - before) / _REPORT_S
                state = f"{rfc3339(status.time_ns)}  {status.receiving} receivers  {rate:,.0f} frames/s"
            before = counts.sent
            progress.update(task, state=state)
            await asyncio.sleep(_REPORT_S)


def summary(simulator: Simulator, counts: Counts) -> str:
    """Put into words what was done.

    Parameters
    ----------
    simulator
        That did it.
    counts
        What `Simulator.run` returned.

    Returns
    -------
    str
        A sentence or two.
    """
    parts = [
        f"{simulator.status().position_s:,.1f} s of recording",
        f"{counts.played:,} frames played",
        f"{counts.sent:,} frames ({counts.sent_bytes:,} bytes) sent to {counts.receivers:,} receivers",
    ]
    said = {
        "begun again": counts.turns,
        "lost": counts.lost,
        "duplicated": counts.duplicated,
        "reordered": counts.reordered,
        "without room in the machine": counts.overflowed,
        "receivers dropped": counts.dropped,
        "connections beyond the limit": counts.refused,
        "connections closed on purpose": counts.closed,
        "commands ignored": counts.ignored.total(),
        "bytes received that were no command": counts.garbage_bytes,
    }
    parts += [f"{number:,} {what}" for what, number in said.items() if number]
    parts.append(f"at most {counts.late_s * 1e3:,.0f} ms late")
    return ", ".join(parts)
