"""`gridsense archive`: the log's frames into a folder of Parquet files, as they come or once."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from gridsense.archiving import tidying, writing
from gridsense.archiving.service import archive_once, follow
from gridsense.detect import seconds
from gridsense.errors import UsageError
from streams.log import FRAMES, Log
from streams.sqlite_log import open_log


def archive(
    *,
    log: Path,
    folder: Path,
    file_span: str = "10min",
    compact_after: str = "1h",
    retention_days: float = 0.0,
    once: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Write the frames of a log into a folder of Parquet files, by day and source, each frame exactly once.

    Files are FOLDER/date=YYYY-MM-DD/source=NAME/NAME-FIRST-LAST-KIND.parquet: the day of the frames' time (UTC), the
    offsets of the log that the file covers, and a digest of the configuration. They hold every value as it was sent;
    `inspect` and `detect` read the folder, or a day of it, as one archive.

    It goes on where FOLDER/position.json says, after a crash too, and runs until it is told to stop (SIGTERM, Ctrl+C);
    with `--once` to the end of the log. What cannot be decoded is kept as raw bytes in FOLDER/undecoded; what the log
    had lost is listed in FOLDER/gaps.jsonl.

    Examples
    --------
    ```
    gridsense archive --log log.sqlite --folder archive
    gridsense archive --log log.sqlite --folder archive --once
    gridsense detect archive/date=2026-03-01 --plot pictures
    ```

    Parameters
    ----------
    log
        The log.
    folder
        Where to; made where there is none.
    file_span
        Time in a file: 60s, 10min, 1h. A file ends earlier where much comes.
    compact_after
        How long after the end of a day its small files are joined.
    retention_days
        Days after which files are removed; 0: never.
    once
        Stop at the end of the log.

    Raises
    ------
    UsageError
        If there is no such log, or if a number is out of its range.
    """
    if not log.is_file():
        raise UsageError(f"--log {log}: there is no such log; `gridsense gateway` makes it")
    if not retention_days >= 0:
        raise UsageError(f"--retention-days {retention_days:g}: must be 0 (never) or more")
    cut = writing.Settings(folder, seconds(file_span))
    tidy = tidying.Settings(seconds(compact_after), retention_days)
    console = Console(stderr=True)
    with closing(open_log(log)) as opened, _going(opened, console) as going:
        archiver = writing.Archiver(opened, cut, lambda _: going(archiver))
        try:
            if once:
                archive_once(archiver, tidy, time.time_ns(), lambda _: going(archiver))
            else:
                with _stopping() as stopped:
                    follow(archiver, tidy, stopped, time.time_ns, lambda _: going(archiver))
        finally:
            lines = summary(archiver.totals, archiver.position)
    sys.stdout.write("".join(line + "\n" for line in lines))


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
def _stopping() -> Iterator[Callable[[float], bool]]:
    """Turn SIGTERM and SIGINT into the end of the next wait; a second one acts as ever."""
    stop = threading.Event()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def ask(number: int, _frame: object) -> None:
        signal.signal(number, before[signal.Signals(number)])
        stop.set()

    for number in before:
        signal.signal(number, ask)
    try:
        yield stop.wait
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
