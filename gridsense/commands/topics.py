"""`gridsense topics`: Kafka's topics, made as the configuration says, held against it, and how they are.

In: the configuration. Out: topics; tables on stdout. What a topic should be like is `streams.kafka.topics`' business.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gridsense.commands.service import configured
from gridsense.config import FILE_NAME
from gridsense.errors import DifferenceError
from gridsense.log_opening import kafka_settings, topic_specs

_LINE_WIDTH = 160
"""Of tables where stdout is no terminal."""
_OVERRIDES = Parameter(name="--set", negative="", show_default=False)
_FLAG = Parameter(negative="", show_default=False)


def create(
    *,
    config: Path = Path(FILE_NAME),
    overrides: Annotated[tuple[str, ...], _OVERRIDES] = (),
    alter: Annotated[bool, _FLAG] = False,
) -> None:
    """Make the topics that are missing, as [kafka] and [log] of the configuration say.

    What is there is left as it is. With `--alter` its settings, such as retention, become those of the configuration
    too; partitions and copies stay whatever they are: they decide where the records of a region are.

    Examples
    --------
    ```
    gridsense topics create
    gridsense topics create --set kafka.replication=1
    gridsense topics create --alter --set log.retention=168h
    ```

    Parameters
    ----------
    config
        The configuration file; `gridsense init` writes one.
    overrides
        A value that goes before the file's, such as kafka.partitions=12. Repeat the option for several.
    alter
        Bring the settings of topics that are there up to date.
    """
    from streams.kafka import topics  # noqa: PLC0415 - who has no Kafka need not wait for its client

    with configured(config, overrides) as told:
        settings, specs = kafka_settings(told), topic_specs(told)
        made = topics.create(settings, specs)
        for name in made:
            print(f"made {name}")  # noqa: T201 - the result of the command
        changed = topics.alter(settings, specs) if alter else []
        for it in changed:
            print(f"altered {it.topic}: {it.setting} {it.found} -> {it.wanted}")  # noqa: T201 - the same
        rest = len(specs) - len(made)
        if rest and not alter:
            print(f"{rest} of {len(specs)} were there; gridsense topics check says what differs in them")  # noqa: T201
        elif not made and not changed:
            print(f"all {len(specs)} topics are there, with these settings")  # noqa: T201 - the same


def check(*, config: Path = Path(FILE_NAME), overrides: Annotated[tuple[str, ...], _OVERRIDES] = ()) -> None:
    """Hold the topics against the configuration; exit with 1 where something differs, or is missing.

    Examples
    --------
    ```
    gridsense topics check
    gridsense topics check --config north.toml || gridsense topics create --config north.toml
    ```

    Parameters
    ----------
    config
        The configuration file.
    overrides
        A value that goes before the file's. Repeat the option for several.

    Raises
    ------
    DifferenceError
        If something differs.
    """
    from streams.kafka import topics  # noqa: PLC0415 - who has no Kafka need not wait for its client

    with configured(config, overrides) as told:
        specs = topic_specs(told)
        found = topics.check(kafka_settings(told), specs)
    if not found:
        print(f"all {len(specs)} topics are as configured")  # noqa: T201 - the result of the command
        return
    _show(("topic", "setting", "found", "configured"), found)
    keys = {it.setting for it in found}
    advice = ["gridsense topics create makes what is missing"] if topics.MISSING in keys else []
    if keys - {topics.MISSING, topics.PARTITIONS, topics.REPLICAS}:
        advice.append("gridsense topics create --alter changes settings")
    if keys & {topics.PARTITIONS, topics.REPLICAS}:
        advice.append("partitions and replicas are changed by Kafka's own tools, while nothing of GridSense runs")
    count = len({it.topic for it in found})
    raise DifferenceError(f"{count} of {len(specs)} topics differ: {'; '.join(advice)}")


def show(*, config: Path = Path(FILE_NAME), overrides: Annotated[tuple[str, ...], _OVERRIDES] = ()) -> None:
    """List the topics: partitions, copies and whether some lack, and about how many records they hold.

    Examples
    --------
    ```
    gridsense topics list
    ```

    Parameters
    ----------
    config
        The configuration file.
    overrides
        A value that goes before the file's. Repeat the option for several.
    """
    from streams.kafka import topics  # noqa: PLC0415 - who has no Kafka need not wait for its client

    with configured(config, overrides) as told:
        found = topics.status(kafka_settings(told), topic_specs(told))
    rows = []
    for it in found:
        state = "missing" if not it.partitions else "ready"
        if it.lacking:
            state = f"{it.lacking} partitions lack a copy"
        if it.leaderless:
            state = f"{it.leaderless} partitions cannot be used"
        rows.append((it.name, f"{it.partitions:,}", f"{it.replicas:,}", f"{it.records:,}", state))
    _show(("topic", "partitions", "replicas", "records", "state"), rows)


def _show(names: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Draw a table on stdout."""
    table = Table(box=box.SIMPLE, pad_edge=False)
    for name in names:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    Console(width=None if sys.stdout.isatty() else _LINE_WIDTH).print(table)
