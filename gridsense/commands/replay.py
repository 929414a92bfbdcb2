"""`gridsense replay`: recordings into a log, as a gateway would have written them.

In: captures and archives, a log's address. Out: records in the log, what was written on stdout. See
`gridsense.replaying`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from gridsense.commands.service import configured, stopping
from gridsense.config import FILE_NAME
from gridsense.errors import UsageError
from gridsense.events import rfc3339
from gridsense.log_opening import log_place, open_log
from gridsense.replaying import Clock, Replay, Settings, Totals
from gridsense.simulator.script import read_script

_FLAG = Parameter(negative="", show_default=False)
_EMBEDDED = "sqlite:"


def replay(
    files: Annotated[tuple[Path, ...], Parameter(required=True)],
    /,
    *,
    to: str | None = None,
    speed: float = 1.0,
    shift_to_now: Annotated[bool, _FLAG] = False,
    stamps: Annotated[bool, _FLAG] = False,
    region: Annotated[tuple[str, ...], Parameter(negative="", show_default=False)] = (),
    split: Annotated[bool, _FLAG] = False,
    config: Path | None = None,
    overrides: Annotated[tuple[str, ...], Parameter(name="--set", negative="", show_default=False)] = (),
    channels: Path | None = None,
) -> None:
    """Write recordings into a log as a gateway would: configurations, then each frame as a record of its source.

    Captured C37.118 is written byte for byte; archives are encoded as `simulate-pmu` does it. A topic in Kafka must be
    there (`gridsense topics create`); an embedded log is made. It ends with the recording, or with SIGINT or SIGTERM,
    and says what it wrote.

    When each frame came is, as a rule, the moment at which it is written. A processor waits by that time for sources
    that are late or new: where `--speed` is not about 1, `--stamps` gives it the recording's own.

    Examples
    --------
    ```
    gridsense replay day.parquet --to kafka://127.0.0.1:9092 --shift-to-now
    gridsense replay north.pcap south.pcap --region north --region south --config gridsense.toml
    gridsense replay day.parquet --to sqlite:day.db --speed 0 --stamps
    ```

    Parameters
    ----------
    files
        Captures and archives; several run side by side in time.
    to
        The log: kafka://HOST:PORT or sqlite:PATH. As a rule log.url of the configuration.
    speed
        Times real time; 0 for as fast as the log takes it.
    shift_to_now
        Move all time stamps by whole seconds, so that the first frame is of now.
    stamps
        Say of each frame that it came at its own time.
    region
        What all sources are scored together with; repeated, one for each file, in their order.
    split
        Each PMU as a source of its own. Not quite the same is found then: what fell silent with its concentrator does
        so by itself, an event each, and the network knows no neighbours behind the same concentrator.
    config
        The configuration file, for [kafka]; gridsense.toml where there is one.
    overrides
        A value that goes before the file's, such as kafka.prefix=test. Repeat the option for several.
    channels
        For tables: a map of their columns, CSV with the header column,pmu,quantity,phase,unit,nominal.

    Raises
    ------
    UsageError
        If there is no log to write to, or the options contradict each other.
    """
    if not 0 <= speed < float("inf"):
        raise UsageError(f"--speed {speed:g}: must be 0 or above")
    if stamps and shift_to_now and speed != 1:
        raise UsageError("--stamps and --shift-to-now together need --speed 1: frames would come from the future")
    if len(region) not in {0, 1, len(files)}:
        raise UsageError(f"--region: {len(region)} are named for {len(files)} files; name one, or one for each")
    for name in region:
        if "/" in name or "#" in name or not name.isprintable():
            raise UsageError(f"--region {name}: must hold neither # nor /")
    if config is None and Path(FILE_NAME).is_file():
        config = Path(FILE_NAME)
    if to is None and config is None:
        raise UsageError(
            "--to is missing: name a log, kafka://HOST:PORT or sqlite:PATH, or a configuration by --config"
        )
    if to is not None:
        path = to.removeprefix(_EMBEDDED)
        url = f"{_EMBEDDED}{Path(path).absolute()}" if to.startswith(_EMBEDDED) and path else to
        overrides = (*overrides, f"log.url={url}")
    console = Console(stderr=True)
    with configured(config, overrides) as told, stopping() as stop:
        script = read_script(files, channels, split=split)
        regions = region * len(script.streams)
        if len(region) > 1:  # the streams of a script stand in the order of the files
            counts = [len(read_script([file], channels, split=split).streams) for file in files]
            regions = tuple(name for name, count in zip(region, counts, strict=True) for _ in range(count))
        settings = Settings(speed, shift_to_now, stamps, regions)
        began_s = time.monotonic()
        with closing(open_log(told)) as opened, _going(log_place(told), console) as report:
            totals = Replay(script, opened, settings, Clock(wait=stop.wait), report).run()
        took_s = time.monotonic() - began_s
    sys.stdout.write(f"{summary(totals, len(script.streams), took_s)}\n")


def summary(totals: Totals, sources: int, took_s: float) -> str:
    """Put into words what was written.

    Parameters
    ----------
    totals
        Of a replay.
    sources
        How many streams.
    took_s
        Time that it took.

    Returns
    -------
    str
        One line.
    """
    times = totals.recording_s / took_s if took_s else 0.0
    late = f", at most {totals.late_s * 1e3:,.0f} ms late" if totals.late_s else ""
    return (
        f"{totals.frames:,} frames of {sources:,} sources ({totals.size:,} bytes), {totals.recording_s:,.1f} s of "
        f"recording in {took_s:,.1f} s ({times:,.1f} times real time){late}"
    )


@contextmanager
def _going(place: str, console: Console) -> Iterator[Callable[[Totals], None]]:
    """Show on a terminal how far it is."""
    columns = (SpinnerColumn(), TextColumn("into {task.description}"), TextColumn("{task.fields[state]}"))
    with Progress(
        *columns, TimeElapsedColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(place, total=None, state="")
        began_s = time.monotonic()

        def show(totals: Totals) -> None:
            if not bar.disable:
                times = totals.recording_s / max(time.monotonic() - began_s, 1e-9)
                now = f"{rfc3339(totals.newest_ns)}  {totals.frames:,} frames  {times:,.1f} times real time"
                bar.update(task, state=now)

        yield show
