"""`gridsense watch`: the events of a running system as they come, and how grid, processor and gateway are."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from gridsense import watch as watching
from gridsense.commands.service import stopping
from gridsense.config import FILE_NAME, load
from gridsense.detect import seconds
from gridsense.errors import InputError

_FLAG = Parameter(negative="", show_default=False)
_LINE_WIDTH = 120
"""Where stdout is no terminal."""


def watch(
    config: Path = Path(FILE_NAME),
    *,
    store: Annotated[Path | None, Parameter(show_default=False)] = None,
    once: Annotated[bool, _FLAG] = False,
    since: str = "1h",
) -> None:
    """Watch a running system: events as they come, the grid's score, the worst PMUs, the connections.

    It reads the event store that `gridsense run` (or `up`) writes, in the same machine and as often as one likes: it
    holds nobody up. On a terminal it shows a screen until Ctrl+C. Elsewhere it prints a line for each event when it is
    raised and when it has ended, at once; what is wrong with the system goes to stderr. A store that is not there yet
    is waited for.

    Examples
    --------
    ```
    gridsense watch
    gridsense watch --store gridsense.db --since 24h
    gridsense watch | grep --line-buffered grid
    gridsense watch --once
    ```

    Parameters
    ----------
    config
        The configuration file: it says where the store is.
    store
        The event store; the configuration is not read then.
    once
        Print the present state, and stop.
    since
        How far back events are shown: 10min, 1h, 72h.

    Raises
    ------
    InputError
        With `--once`: if the store cannot be read.
    """
    path = store if store is not None else load(config).config.store_path
    follower = watching.Follower(path, seconds(since))
    console = Console(width=None if sys.stdout.isatty() else _LINE_WIDTH)
    view = watching.View(follower)
    if once:
        follower.look()
        follower.close()
        if follower.trouble:
            raise InputError(follower.trouble)
        for line in view.present(console):
            console.print(line)
        return
    with stopping() as stop:
        if console.is_terminal:
            watching.show(console, view, stop.wait)
        else:
            watching.tell(follower, _write, _complain, stop.wait)


def _write(line: str) -> None:
    """Write a line to stdout at once, so that whoever reads along sees it."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _complain(line: str) -> None:
    sys.stderr.write(f"gridsense: {line}\n")
