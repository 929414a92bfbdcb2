"""`gridsense archive`: the log's frames into a folder of Parquet files, as they come or once."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from prometheus_client import CollectorRegistry
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from gridsense.archiving import tidying, writing
from gridsense.archiving.service import archive_once, follow
from gridsense.archiving.writing import Archiver, Report
from gridsense.commands.service import configured, stopping
from gridsense.config import FILE_NAME, Config
from gridsense.errors import UsageError
from gridsense.life import Heartbeat, LifeServer, Readiness
from gridsense.log_opening import kafka_settings, open_log
from gridsense.metrics import ArchiveMetrics, LogMetrics, ServiceMetrics
from streams.archives.folder import share_of
from streams.log import FRAMES, Log

_DAY_S = 86_400.0
_SHOW_S = 0.5
_HEARTBEAT_S = 300.0
"""Joining the files of a day takes long."""
_BATCH_BYTES = 1 << 25
_LEAST_BATCH_BYTES = 1 << 21
"""Of entries that are held in memory, all partitions together; and of one at least."""


def archive(
    *,
    config: Path = Path(FILE_NAME),
    overrides: Annotated[tuple[str, ...], Parameter(name="--set", negative="", show_default=False)] = (),
    once: Annotated[bool, Parameter(negative="", show_default=False)] = False,
) -> None:
    """Write the frames of the log into a folder of Parquet files, by day and source, each frame exactly once.

    Files are FOLDER/date=YYYY-MM-DD/source=NAME/NAME-FIRST-LAST-KIND.parquet: the day of the frames' time (UTC), the
    offsets of the log that the file covers, and a digest of the configuration; of a source in a region, NAME is
    REGION%2FNAME. They hold every value as it was sent; `inspect` and `detect` read the folder, or a day of it, as one
    archive. `[archive]` of the configuration says where to, how long a file is, when the small files of a day are
    joined, and when a day is removed. With Kafka each partition of the log has all this in FOLDER/partition=N.

    It goes on where FOLDER/position.json says, after a crash too, and runs until it is told to stop (SIGTERM, Ctrl+C);
    with `--once` to the end of the log. What cannot be decoded is kept as raw bytes in FOLDER/undecoded; what the log
    had lost is listed in FOLDER/gaps.jsonl. Of a copy, take position.json first, the files after it. To Kafka it tells
    its position too, as that of the group `archive`, for who watches: it is not read again.

    Examples
    --------
    ```
    gridsense archive
    gridsense archive --once --set archive.folder=/data/pmu --set archive.file_span=10min
    gridsense detect archive/date=2026-03-01 --plot pictures
    gridsense detect archive/partition=*/date=2026-03-01
    ```

    Parameters
    ----------
    config
        The configuration file; `gridsense init` writes one.
    overrides
        A value that goes before the file's, such as archive.retention=720h. Repeat the option for several.
    once
        Stop at the end of the log.
    """
    console = Console(stderr=True)
    with ExitStack() as stack:
        told = stack.enter_context(configured(config, overrides))
        stop = stack.enter_context(stopping())
        opened = _opened(stack, told)
        going = stack.enter_context(_going([log for _, log in opened], console))
        tidy = tidying.Settings(told.archive.compact_after, told.archive.retention / _DAY_S)
        heartbeat = Heartbeat(_HEARTBEAT_S)

        def report(_: object) -> None:
            heartbeat.beat()
            going(archivers)

        archivers = _archivers(told, opened, report)
        try:
            if once:
                archive_once(archivers, tidy, time.time_ns(), report)
            else:
                _serve(stack, told, archivers, heartbeat)

                def stopped(wait_s: float) -> bool:
                    heartbeat.beat()
                    return stop.wait(wait_s)

                follow(archivers, tidy, stopped, time.time_ns, report)
        finally:
            lines = summary(writing.summed(it.totals for it in archivers), [it.position for it in archivers])
    sys.stdout.write("".join(line + "\n" for line in lines))


def _opened(stack: ExitStack, told: Config) -> list[tuple[Path, Log]]:
    """Open the log, each of its partitions with the folder that it goes to."""
    folder = told.archive_path
    if not told.log_servers:
        if not told.log_path.is_file():
            raise UsageError(f"log.url = {told.log.url!r}: there is no such log; `gridsense gateway` makes it")
        return [(folder, stack.enter_context(closing(open_log(told))))]
    from streams.kafka.log import KafkaLog  # noqa: PLC0415 - who has no Kafka need not wait for its client

    settings = kafka_settings(told)
    first = stack.enter_context(closing(KafkaLog(settings)))
    others = [stack.enter_context(closing(KafkaLog(settings, n))) for n in range(1, first.partitions(FRAMES))]
    return [(share_of(folder, n), log) for n, log in enumerate((first, *others))]


def _archivers(told: Config, opened: Sequence[tuple[Path, Log]], report: Report) -> list[Archiver]:
    """Make an archiver for each partition."""
    held = max(_BATCH_BYTES // len(opened), _LEAST_BATCH_BYTES)
    span_s = told.archive.file_span
    return [Archiver(log, writing.Settings(folder, span_s, held), report) for folder, log in opened]


def _serve(stack: ExitStack, told: Config, archivers: Sequence[Archiver], heartbeat: Heartbeat) -> None:
    """Serve metrics and signs of life, where the configuration names a port."""
    port = told.metrics.archive_port
    if not port:
        return
    registry = CollectorRegistry()
    ServiceMetrics(registry, heartbeat.age_s)
    ArchiveMetrics(registry, lambda: writing.summed(it.totals for it in archivers))
    if not told.log_servers:  # of Kafka, the group's offsets tell it, partition by partition
        LogMetrics(registry, lambda: open_log(told), {FRAMES: [writing.READER]})
    key = "metrics.archive_port"
    stack.enter_context(LifeServer(told.metrics.host, port, registry, heartbeat, Readiness, key=key))


def summary(totals: writing.Totals, positions: Sequence[int]) -> list[str]:
    """Say what was done.

    Parameters
    ----------
    totals
        From the archivers.
    positions
        Offset up to which the folder is whole, by partition of the log.

    Returns
    -------
    list[str]
        Lines for people.
    """
    ratio = f", {totals.raw_bytes / totals.file_bytes:.1f} times smaller than in the log" if totals.file_bytes else ""
    parts = f"'s {len(positions)} partitions" if len(positions) > 1 else ""
    lines = [
        f"{totals.frames:,} frames in {totals.files:,} files, {totals.file_bytes:,} bytes{ratio}",
        f"whole up to offset {' / '.join(f'{position:,}' for position in positions)} of the log{parts}",
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
def _going(logs: Sequence[Log], console: Console) -> Iterator[Callable[[Sequence[Archiver]], None]]:
    """Show on a terminal how far it is."""
    columns = (SpinnerColumn(), TextColumn("archiving"), TextColumn("{task.fields[state]}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("archiving", total=None, state="")

        shown_s = -_SHOW_S

        def show(archivers: Sequence[Archiver]) -> None:
            nonlocal shown_s
            if not progress.disable and time.monotonic() - shown_s >= _SHOW_S:
                shown_s = time.monotonic()
                left = sum(log.extent(FRAMES).next - it.position for log, it in zip(logs, archivers, strict=True))
                frames = sum(it.totals.frames for it in archivers)
                progress.update(task, state=f"{frames:,} frames, {left:,} entries to go")

        yield show
