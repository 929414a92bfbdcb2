"""`gridsense archive`: the log's frames into a folder of Parquet files, as they come or once."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from prometheus_client import CollectorRegistry
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from gridsense.archiving import tidying, writing
from gridsense.archiving.service import archive_once, follow
from gridsense.commands.service import configured, stopping
from gridsense.config import FILE_NAME, Config
from gridsense.errors import UsageError
from gridsense.life import Heartbeat, LifeServer, Readiness
from gridsense.metrics import ArchiveMetrics, LogMetrics, ServiceMetrics
from streams.log import FRAMES, Log
from streams.sqlite_log import open_log

_DAY_S = 86_400.0
_HEARTBEAT_S = 300.0
"""Joining the files of a day takes long."""


def archive(
    *,
    config: Path = Path(FILE_NAME),
    overrides: Annotated[tuple[str, ...], Parameter(name="--set", negative="", show_default=False)] = (),
    once: Annotated[bool, Parameter(negative="", show_default=False)] = False,
) -> None:
    """Write the frames of the log into a folder of Parquet files, by day and source, each frame exactly once.

    Files are FOLDER/date=YYYY-MM-DD/source=NAME/NAME-FIRST-LAST-KIND.parquet: the day of the frames' time (UTC), the
    offsets of the log that the file covers, and a digest of the configuration. They hold every value as it was sent;
    `inspect` and `detect` read the folder, or a day of it, as one archive. `[archive]` of the configuration says where
    to, how long a file is, when the small files of a day are joined, and when a day is removed.

    It goes on where FOLDER/position.json says, after a crash too, and runs until it is told to stop (SIGTERM, Ctrl+C);
    with `--once` to the end of the log. What cannot be decoded is kept as raw bytes in FOLDER/undecoded; what the log
    had lost is listed in FOLDER/gaps.jsonl. Of a copy, take position.json first, the files after it.

    Examples
    --------
    ```
    gridsense archive
    gridsense archive --once --set archive.folder=/data/pmu --set archive.file_span=10min
    gridsense detect archive/date=2026-03-01 --plot pictures
    ```

    Parameters
    ----------
    config
        The configuration file; `gridsense init` writes one.
    overrides
        A value that goes before the file's, such as archive.retention=720h. Repeat the option for several.
    once
        Stop at the end of the log.

    Raises
    ------
    UsageError
        If there is no such log.
    """
    console = Console(stderr=True)
    with ExitStack() as stack:
        told = stack.enter_context(configured(config, overrides))
        stop = stack.enter_context(stopping())
        if not told.log_path.is_file():
            raise UsageError(f"log.url = {told.log.url!r}: there is no such log; `gridsense gateway` makes it")
        opened = stack.enter_context(closing(open_log(told.log_path)))
        going = stack.enter_context(_going(opened, console))
        cut = writing.Settings(told.archive_path, told.archive.file_span)
        tidy = tidying.Settings(told.archive.compact_after, told.archive.retention / _DAY_S)
        heartbeat = Heartbeat(_HEARTBEAT_S)

        def report(_: object) -> None:
            heartbeat.beat()
            going(archiver)

        archiver = writing.Archiver(opened, cut, report)
        try:
            if once:
                archive_once(archiver, tidy, time.time_ns(), report)
            else:
                _serve(stack, told, archiver, heartbeat)

                def stopped(wait_s: float) -> bool:
                    heartbeat.beat()
                    return stop.wait(wait_s)

                follow(archiver, tidy, stopped, time.time_ns, report)
        finally:
            lines = summary(archiver.totals, archiver.position)
    sys.stdout.write("".join(line + "\n" for line in lines))


def _serve(stack: ExitStack, told: Config, archiver: writing.Archiver, heartbeat: Heartbeat) -> None:
    """Serve metrics and signs of life, where the configuration names a port."""
    port = told.metrics.archive_port
    if not port:
        return
    registry = CollectorRegistry()
    ServiceMetrics(registry, heartbeat.age_s)
    ArchiveMetrics(registry, lambda: archiver.totals)
    LogMetrics(registry, lambda: open_log(told.log_path), {FRAMES: [writing.READER]})
    key = "metrics.archive_port"
    stack.enter_context(LifeServer(told.metrics.host, port, registry, heartbeat, Readiness, key=key))


def summary(totals: writing.Totals, position: int) -> list[str]:
    """Say what was done.

    Parameters
    ----------
    totals
        From the archiver.
    position
        Offset up to which the folder is whole.

    Returns
    -------
    list[str]
        Lines for people.
    """
    ratio = f", {totals.raw_bytes / totals.file_bytes:.1f} times smaller than in the log" if totals.file_bytes else ""
    lines = [
        f"{totals.frames:,} frames in {totals.files:,} files, {totals.file_bytes:,} bytes{ratio}",
        f"whole up to offset {position:,} of the log",
    ]
    facts = {
        "small files joined": totals.joined,
        "files removed for their age": totals.removed,
        "frames that could not be decoded, kept raw": totals.undecoded,
        "header and command frames, not kept": totals.others,
        "ranges of the log that were lost, listed in gaps.jsonl": totals.lost,
    }
    return lines + [f"{count:,} {what}" for what, count in facts.items() if count]


@contextmanager
def _going(log: Log, console: Console) -> Iterator[Callable[[writing.Archiver], None]]:
    """Show on a terminal how far it is."""
    columns = (SpinnerColumn(), TextColumn("archiving"), TextColumn("{task.fields[state]}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("archiving", total=None, state="")

        def show(archiver: writing.Archiver) -> None:
            if not progress.disable:
                end = log.extent(FRAMES).next
                state = f"offset {archiver.position:,} of {end:,}, {archiver.totals.frames:,} frames"
                progress.update(task, state=state)

        yield show
