"""`gridsense gateway`: from PMUs and concentrators into the log."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from gridsense.commands.service import configured, make_room_for, stopping
from gridsense.config import FILE_NAME, Config
from gridsense.mirroring import status_place
from gridsense.services.receiving import receive
from gridsense.status import GatewayBoard

SPARE_FILES = 200
"""Open files besides the connections."""


def gateway(
    *,
    config: Path = Path(FILE_NAME),
    overrides: Annotated[tuple[str, ...], Parameter(name="--set", negative="", show_default=False)] = (),
) -> None:
    """Receive from PMUs and concentrators (IEEE C37.118, TCP and UDP) into the log: every whole frame, untouched.

    Each `[[gateway.connections]]` of the configuration is held for ever: configured (CFG-3, else CFG-2), followed when
    its configuration changes, taken for dead when it falls silent, and tried again with growing pauses. What cannot be
    used is counted, and kept as a dead letter. C37.118 knows neither password nor encryption: let a gateway stand
    inside the secured network.

    Examples
    --------
    ```
    gridsense gateway
    gridsense gateway --config north.toml
    ```

    Parameters
    ----------
    config
        The configuration file; `gridsense init` writes one.
    overrides
        A value that goes before the file's, such as gateway.stall=10s. Repeat the option for several.
    """
    with configured(config, overrides) as loaded, stopping() as stop:
        make_room_for(2 * len(loaded.gateway.connections) + SPARE_FILES)
        asyncio.run(_receive(loaded, stop))


async def _receive(config: Config, stop: threading.Event) -> None:
    stopping_now = asyncio.Event()

    async def watch() -> None:
        await asyncio.to_thread(stop.wait)
        stopping_now.set()

    watching = asyncio.create_task(watch())
    said = GatewayBoard(status_place(config))
    try:
        await receive(config, config.gateway.connections, stopping_now, said.told)
    finally:
        stop.set()
        await watching
        said.close()
