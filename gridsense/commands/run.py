"""`gridsense run`: the stream processor, from the log to events."""

from __future__ import annotations

import threading
from contextlib import closing
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from gridsense.commands.service import board, configured, stopping
from gridsense.config import FILE_NAME
from gridsense.errors import UsageError
from gridsense.services.processing import process

_FLAG = Parameter(negative="", show_default=False)


def run(
    *,
    config: Path = Path(FILE_NAME),
    overrides: Annotated[tuple[str, ...], Parameter(name="--set", negative="", show_default=False)] = (),
    once: Annotated[bool, _FLAG] = False,
    close: Annotated[bool, _FLAG] = False,
) -> None:
    """Process the log as it grows: decode, align, judge, score, and store events with their explanation.

    It goes on where its newest snapshot was taken: what was learned is kept, and no event is lost or doubled, however
    it was stopped. SIGTERM and Ctrl+C end it within ten seconds. Metrics and signs of life: `[metrics]` of the
    configuration. Who wants to see what it finds runs `gridsense watch`.

    Where the log is in Kafka (`log.url = "kafka://…"`), processors of one `kafka.group` share its partitions; events,
    scores and how far each has read are committed in one transaction. Give each a `kafka.instance` of its own.

    Examples
    --------
    ```
    gridsense run
    gridsense run --config north.toml --set detection.false_alarms_per_day=0.2
    gridsense run --once --close
    ```

    Parameters
    ----------
    config
        The configuration file; `gridsense init` writes one.
    overrides
        A value that goes before the file's, such as store.snapshot_every=10s. Repeat the option for several.
    once
        Stop at the end of the log. The next run goes on from there.
    close
        At the end take the frames as ended: close every window, as `gridsense detect` does at the end of a file. Not
        with Kafka.

    Raises
    ------
    UsageError
        If --close is asked for and the log is in Kafka.
    """
    with configured(config, overrides) as loaded, stopping() as stop:
        if loaded.log_servers:
            if close:
                raise UsageError("--close: the frames in Kafka do not end; leave it out")
            from gridsense.services.grouped import process_group  # noqa: PLC0415 - only this needs Kafka's client

            process_group(loaded, stop, once=once)
            return
        ended = threading.Event()
        if once:
            ended.set()
        with closing(board(loaded)) as said:
            process(loaded, stop, ended=ended, close=close, observers=[said])
