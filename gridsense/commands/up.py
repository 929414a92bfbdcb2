"""`gridsense up`: everything in one process."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from gridsense.commands.gateway import SPARE_FILES
from gridsense.commands.service import board, configured, make_room_for, stopping
from gridsense.config import FILE_NAME
from gridsense.mirroring import status_place
from gridsense.services.together import run_together
from gridsense.status import GatewayBoard

_FLAG = Parameter(negative="", show_default=False)


def up(
    files: tuple[Path, ...] = (),
    /,
    *,
    config: Path | None = None,
    overrides: Annotated[tuple[str, ...], Parameter(name="--set", negative="", show_default=False)] = (),
    close: Annotated[bool, _FLAG] = False,
) -> None:
    """Run everything in one process: gateway, log and processor, and recordings served as PMUs where files are named.

    For a laptop or a substation. With files they are served as C37.118 over loopback TCP, received, logged and
    processed; it ends when they have ended. Without, it receives from `[[gateway.connections]]` until it is stopped.
    `gridsense watch` shows what it finds.

    Examples
    --------
    ```
    gridsense up day.parquet --set simulate.shift_to_now=true
    gridsense up --config north.toml
    ```

    Parameters
    ----------
    files
        Captures and archives to serve; in place of simulate.files.
    config
        The configuration file; gridsense.toml where there is one. Without any, all is default.
    overrides
        A value that goes before the file's, such as simulate.speed=10. Repeat the option for several.
    close
        When the recordings have ended, close every window, as `gridsense detect` does at the end of a file.
    """
    if config is None and Path(FILE_NAME).is_file():
        config = Path(FILE_NAME)
    if files:
        names = ", ".join(f'"{path.absolute()}"' for path in files)
        overrides = (*overrides, f"simulate.files=[{names}]")
    with configured(config, overrides) as loaded, stopping() as stop:
        make_room_for(4 * len(loaded.gateway.connections) + 4 * SPARE_FILES)
        with closing(board(loaded)) as said, closing(GatewayBoard(status_place(loaded))) as gateway:
            run_together(loaded, stop, close=close, observers=[said], note=gateway.told)
