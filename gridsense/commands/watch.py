"""`gridsense watch`: the events of a running system as they come, and how grid, processor and gateway are."""

from __future__ import annotations

import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from gridsense import watch as watching
from gridsense.commands.service import stopping
from gridsense.config import FILE_NAME, Config, load
from gridsense.detect import seconds
from gridsense.errors import InputError
from gridsense.mirroring import Mirror, mirror_of

_FLAG = Parameter(negative="", show_default=False)
_KAFKA = "kafka:"
_LINE_WIDTH = 120
"""Where stdout is no terminal."""


def watch(
    config: str = FILE_NAME,
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

    Where the log is in Kafka it shows what all gateways and processors write there, from any machine: it copies events
    and statuses into a store of its own, which is gone at the end unless `--store` names it.

    Examples
    --------
    ```
    gridsense watch
    gridsense watch --store gridsense.db --since 24h
    gridsense watch | grep --line-buffered grid
    gridsense watch --once
    gridsense watch kafka://broker:9092 --since 24h
    ```

    Parameters
    ----------
    config
        The configuration file: it says where the store is, or how Kafka is reached. Or kafka://HOST:PORT, HOST:PORT of
        a broker; the rest, such as credentials, is taken from gridsense.toml then where there is one.
    store
        The event store; a configuration file is not read then. With kafka://… the file to copy into: what it has is
        kept, and the next time it goes on from there.
    once
        Print the present state, and stop.
    since
        How far back events are shown: 10min, 1h, 72h.
    """
    since_s = seconds(since)
    if store is not None and not config.startswith(_KAFKA):
        _watch(watching.Follower(store, since_s), None, once=once)
        return
    told = _told(config)
    if not told.log_servers:
        _watch(watching.Follower(told.store_path, since_s), None, once=once)
        return
    with _mirrored(told, store, since_s) as (mirror, path):
        _watch(watching.Follower(path, since_s, broken=lambda: mirror.trouble), mirror, once=once)


def _told(config: str) -> Config:
    """Read the configuration, or take it from an address."""
    if not config.startswith(_KAFKA):
        return load(Path(config)).config
    beside = Path(FILE_NAME)
    return load(beside if beside.is_file() else None, (f"log.url={config}",)).config


@contextmanager
def _mirrored(told: Config, store: Path | None, since_s: float) -> Iterator[tuple[Mirror, Path]]:
    """Make what copies the topics into a store: one of its own, or the one that is named."""
    with tempfile.TemporaryDirectory(prefix="gridsense-watch-") as folder:
        path = store if store is not None else Path(folder) / "events.db"
        with closing(mirror_of(told, path, since_s)) as mirror:
            yield mirror, path


def _watch(follower: watching.Follower, mirror: Mirror | None, *, once: bool) -> None:
    """Print the present, or follow until it is time to stop."""
    console = Console(width=None if sys.stdout.isatty() else _LINE_WIDTH)
    view = watching.View(follower)
    if once:
        while mirror is not None and mirror.step():
            pass
        follower.look()
        follower.close()
        if follower.trouble:
            raise InputError(follower.trouble)
        for line in view.present(console):
            console.print(line)
        return
    with stopping() as stop, _copying(mirror, stop):
        if console.is_terminal:
            watching.show(console, view, stop.wait)
        else:
            watching.tell(follower, _write, _complain, stop.wait)


@contextmanager
def _copying(mirror: Mirror | None, stop: threading.Event) -> Iterator[None]:
    """Copy beside what is shown. What cannot be reached at the start is an error, what is away later is waited for."""
    if mirror is None:
        yield
        return
    mirror.step()
    mirror.close()
    thread = threading.Thread(target=mirror.run, args=(stop,), name="mirror")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _write(line: str) -> None:
    """Write a line to stdout at once, so that whoever reads along sees it."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _complain(line: str) -> None:
    sys.stderr.write(f"gridsense: {line}\n")
