"""Writing the configuration down: an example with every key, and a JSON schema for editors. Both made from the code."""

from __future__ import annotations

import json
from collections.abc import Iterator
from inspect import cleandoc
from textwrap import wrap
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from gridsense.config.kinds import choices_of, toml_text, written
from gridsense.config.sections import Config, ConnectionSection

SCHEMA_FILE = "gridsense.schema.json"

_WIDTH = 116
_KEEP = "\N{NO-BREAK SPACE}"
"""Where a comment is not wrapped."""
_BOUNDS = {"gt": "above", "ge": "at least", "le": "at most"}
_SHOWN = ("name", "host", "port", "id_code", "transport")
"""Keys of the example connection that are no comments."""

EXAMPLE_CONNECTION = ConnectionSection(name="pmu-1", id_code=1)
"""The connection of the example: a device on this machine."""


def example() -> str:
    """Write a configuration file with every key; those that are comments have their defaults.

    Returns
    -------
    str
        TOML.
    """
    config = Config()
    lines = [
        f"#:schema ./{SCHEMA_FILE}",
        *_comment(
            "GridSense. Every key is optional; what is commented out is the default. The environment goes before this "
            "file (GRIDSENSE_LOG__RETENTION=24h), the command line before both (--set log.retention=24h). Durations: "
            "seconds, or text such as 60s, 5min, 72h. Sizes: bytes, or text such as 256kB, 64MiB, 50GiB. "
            "`gridsense check-config` says what is in effect and where it came from; `gridsense init --schema > "
            f"{SCHEMA_FILE}` lets editors complete and check this file."
        ),
        "",
        *_section(config, ()),
    ]
    return "\n".join(lines).rstrip() + "\n"


def schema() -> str:
    """Write the JSON schema of a configuration file.

    Returns
    -------
    str
        JSON.
    """
    return json.dumps(Config.model_json_schema(), indent=2, ensure_ascii=False) + "\n"


def _section(section: BaseModel, path: tuple[str, ...]) -> Iterator[str]:
    values: dict[str, Any] = section.model_dump(mode="json")
    inner: list[tuple[str, BaseModel]] = []
    for name, info in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            inner.append((name, value))
        elif _holds_sections(info):
            yield from _connections((*path, name))
        else:
            yield from _field(info, name, values[name], comment=True)
    for name, value in inner:
        yield from _comment(cleandoc(type(value).__doc__ or ""))
        yield f"[{'.'.join((*path, name))}]"
        yield from _section(value, (*path, name))


def _connections(path: tuple[str, ...]) -> Iterator[str]:
    yield from _comment(f"{cleandoc(ConnectionSection.__doc__ or '')} One such table for each.")
    yield f"[[{'.'.join(path)}]]"
    values = EXAMPLE_CONNECTION.model_dump(mode="json")
    for name, info in ConnectionSection.model_fields.items():
        yield from _field(info, name, values[name], comment=name not in _SHOWN)


def _field(info: FieldInfo, name: str, value: Any, *, comment: bool) -> Iterator[str]:
    """One key, what it is for, and its range."""
    yield from _comment(f"{' '.join(cleandoc(info.description or '').split())} {_range(info)}".strip())
    yield f"{'#' if comment else ''}{name} = {toml_text(value)}"
    yield ""


def _range(info: FieldInfo) -> str:
    """Say which values a key may have."""
    choices = choices_of(info)
    if choices:
        one = "One" if get_origin(info.annotation) is Literal else "Any"
        return f"{one} of {', '.join(map(toml_text, choices))}."
    bounds = [
        f"{words} {written(info, getattr(it, name))}"
        for name, words in _BOUNDS.items()
        for it in info.metadata
        if hasattr(it, name)
    ]
    return f"Range: {', '.join(bounds)}.".replace(" ", _KEEP) if bounds else ""


def _comment(text: str) -> list[str]:
    lines = wrap(text, _WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)
    return [line.replace(_KEEP, " ") for line in lines]


def _holds_sections(info: FieldInfo) -> bool:
    return ConnectionSection in get_args(info.annotation)
