"""`gridsense check-config`: every effective value and where it came from, or every mistake."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import msgspec
from cyclopts import Parameter
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gridsense.config import FILE_NAME, ConnectionSection, Loaded, load, values
from gridsense.config.kinds import toml_text
from gridsense.config.reading import DEFAULT
from gridsense.log_opening import log_place
from gridsense.metrics import IDENTITY_LETTERS

_LINE_WIDTH = 160
"""Of tables where stdout is no terminal."""


def check_config(
    file: Path = Path(FILE_NAME),
    /,
    *,
    overrides: Annotated[tuple[str, ...], Parameter(name="--set", negative="", show_default=False)] = (),
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Say what a configuration comes to: each effective value and where it came from; or every mistake in it.

    The file < the environment (`GRIDSENSE_LOG__RETENTION=24h`) < `--set`. What is allowed and perhaps not meant is
    said on stderr.

    Examples
    --------
    ```
    gridsense check-config
    gridsense check-config north.toml --set log.retention=24h
    gridsense check-config --json | jq .origins
    ```

    Parameters
    ----------
    file
        The configuration file.
    overrides
        A value that goes before the file's, such as log.retention=24h or gateway.connections[0].port=4713. Repeat the
        option for several.
    json
        Print one JSON object instead of tables: config, origins, warnings.
    """
    loaded = load(file, overrides)
    loaded.config.model()  # refused before anything is printed
    if json:
        report = {
            "config": loaded.config.model_dump(mode="json"),
            "origins": loaded.origins,
            "warnings": loaded.warnings,
        }
        sys.stdout.write(msgspec.json.encode(report).decode() + "\n")
        return
    console = Console(width=None if sys.stdout.isatty() else _LINE_WIDTH)
    console.print(_keys(loaded))
    if loaded.config.gateway.connections:
        console.print(_connections(loaded))
    console.print(_places(loaded), soft_wrap=True, markup=False, highlight=False)
    warnings = Console(stderr=True)
    for warning in loaded.warnings:
        warnings.print(f"warning: {warning}", soft_wrap=True, markup=False, highlight=False)


def _keys(loaded: Loaded) -> Table:
    """Draw a row for each key that stands once."""
    table = _table("key", "value", "from")
    for name, value, origin in _rows(loaded):
        if not name.startswith("gateway.connections["):
            _add(table, (name, toml_text(value), origin), style="dim" if origin == DEFAULT else "")
    return table


def _connections(loaded: Loaded) -> Table:
    """Draw a row for each connection."""
    table = _table("gateway.connections", *ConnectionSection.model_fields, "from")
    for place, connection in enumerate(loaded.config.gateway.connections):
        texts = (str(value) for value in connection.model_dump(mode="json").values())
        prefix = f"gateway.connections[{place}]."
        origins = (loaded.origins[prefix + name] for name in ConnectionSection.model_fields)
        _add(table, (f"[{place}]", *texts, _joined(origins)))
    return table


def _joined(origins: Iterable[str]) -> str:
    """Name the places that set something, those of one file by their first line."""
    firsts: dict[str, str] = {}
    for origin in origins:
        file, _, line = origin.rpartition(":")
        firsts.setdefault(file if line.isdecimal() else origin, origin)
    return ", ".join(origin for origin in firsts.values() if origin != DEFAULT)


def _places(loaded: Loaded) -> str:
    """Say which files are meant, and which model."""
    config, model = loaded.config, loaded.config.model()
    files = f"log {log_place(config)}\nevent store {config.store_path}\narchive {config.archive_path}"
    if model is None:
        return files
    identity = model.identity[:IDENTITY_LETTERS]
    return f"{files}\nmodel {config.model_path} ({identity}, for {model.spec.rate_hz:g} frames a second)"


def _rows(loaded: Loaded) -> Iterator[tuple[str, object, str]]:
    for (name, origin), (_, value) in zip(loaded.origins.items(), values(loaded.config), strict=True):
        yield name, value, origin


def _add(table: Table, texts: Iterable[str], style: str = "") -> None:
    """Add a row of plain texts: brackets in them are no markup."""
    table.add_row(*map(Text, texts), style=style)


def _table(*names: str) -> Table:
    table = Table(box=box.SIMPLE, pad_edge=False)
    for name in names:
        table.add_column(name, overflow="fold")
    return table
