"""Reading: one TOML file < environment `GRIDSENSE_A__B` < `--set a.b=value`, and where each value came from.

In: a file, variables, words of the command line. Out: a `Config` with its origins, or one error that holds every
mistake, a line each: place, key, value, what it must be. It makes no sense of the values (`sections` does).
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, SecretStr, ValidationError
from pydantic.fields import FieldInfo

from gridsense.config.agreement import contradictions, oddities
from gridsense.config.kinds import HIDDEN, choices_of, toml_key, toml_text, written
from gridsense.config.sections import Config, Key, dotted
from gridsense.errors import UsageError

PREFIX = "GRIDSENSE_"
FILE_NAME = "gridsense.toml"
"""Where a configuration is looked for, as a rule."""
DEFAULT = "default"
"""The origin of what nobody set."""

_SHOWN = 80
"""Letters of a wrong value that are shown."""
_FILE, _VARIABLE, _WORD = range(3)
"""Layers, each over those before."""
_NO_ENTRY: Any = object()
_USERINFO = re.compile(r"//[^/]*@")
_PLAIN_WORDS = {
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "string_type": "must be text in quotes",
    "model_type": "must be a table of keys and values",
}


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration, and where it came from.

    Attributes
    ----------
    config
        All values.
    origins
        Of each dotted key: ``default``, ``gridsense.toml:12``, ``GRIDSENSE_LOG__URL`` or ``--set log.url=...``.
    warnings
        What is allowed and perhaps not meant, a sentence each.
    """

    config: Config
    origins: dict[str, str]
    warnings: tuple[str, ...]


class _Origin(NamedTuple):
    """Where a value stands; they sort as one reads: the file by its lines, then variables, then words."""

    layer: int
    line: int
    text: str


class _Mistake(NamedTuple):
    """One line of the error."""

    origin: _Origin
    text: str


@dataclass(slots=True)
class _Given:
    """What was given by somebody: a tree, and where each of its nodes came from."""

    label: str
    tree: dict[str, Any] = field(default_factory=dict)
    origins: dict[Key, _Origin] = field(default_factory=dict)
    mistakes: list[_Mistake] = field(default_factory=list)

    def put(self, parts: Sequence[str], text: str, origin: _Origin) -> None:
        """Set one value over what is there."""
        node: Any = self.tree
        key: Key = ()
        for depth, name in enumerate(parts):
            part: str | int = name
            if isinstance(node, list):
                if not name.isdecimal() or int(name) >= len(node):
                    words = f"{dotted(key)} has {len(node)} entries, numbered from 0; there is no [{name}]"
                    self.mistakes.append(_Mistake(origin, words))
                    return
                part = int(name)
            key += (part,)
            if depth == len(parts) - 1:
                node[part] = value = _typed(key, text)
                self.origins = {k: at for k, at in self.origins.items() if k[: len(key)] != key}
                self.origins |= dict.fromkeys(_nodes(value, key), origin)
                return
            child = _at(node, (part,))
            if not isinstance(child, dict | list):
                node[part] = child = [] if _is_list(key) else {}
                self.origins[key] = origin
            node = child

    def origin(self, key: Key) -> _Origin:
        """Say where a value came from, or what holds it."""
        found = (self.origins[key[:depth]] for depth in range(len(key), 0, -1) if key[:depth] in self.origins)
        return next(found, _Origin(0, 0, self.label))

    def has(self, key: Key) -> bool:
        """Say whether somebody set a value."""
        return _at(self.tree, key) is not _NO_ENTRY

    def complain(self, key: Key, value: Any, words: str, origin: _Origin) -> None:
        """Note what is wrong with a value."""
        shown = "" if value is _NO_ENTRY else f" = {_short(toml_text(_shown(key, value)))}"
        self.mistakes.append(_Mistake(origin, f"{_written(key)}{shown}: {words}"))


def load(path: Path | None, overrides: Sequence[str] = (), environ: Mapping[str, str] | None = None) -> Loaded:
    """Read the configuration.

    Parameters
    ----------
    path
        The TOML file; None for none, relative paths then count from the working folder.
    overrides
        ``log.url=sqlite:other.db``, ``gateway.connections[0].port=4713``: they go before everything else.
    environ
        Variables; None for those of the process. ``GRIDSENSE_LOG__URL`` is ``log.url``.

    Returns
    -------
    Loaded
        Checked, by itself and together.

    Raises
    ------
    UsageError
        With every mistake, a line each.
    """
    given = _Given(str(path) if path else "configuration")
    if path:
        text = _text(path)
        given.tree = _parse(path, text)
        given.origins = {key: _Origin(_FILE, line, f"{path}:{line}") for key, line in _lines(text).items()}
    ignored = _take_variables(given, os.environ if environ is None else environ)
    for word in overrides:
        key, equals, value = word.partition("=")
        parts = re.sub(r"\[(\w+)\]", r".\1", key.strip()).split(".")
        origin = _Origin(_WORD, 0, f"--set {_short(f'{key}=' + _shown_word(tuple(parts), value) if equals else word)}")
        if equals and all(parts):
            given.put(parts, value.strip(), origin)
        else:
            given.mistakes.append(_Mistake(origin, "must be key=value, such as log.retention=72h"))
    config = _validate(given, path.absolute().parent if path else Path())
    if config is None or given.mistakes:
        lines = (f"{origin.text}: {words}" for origin, words in sorted(given.mistakes, key=lambda it: it.origin))
        raise UsageError("\n".join(lines))
    origins = {dotted(key): given.origin(key).text if given.has(key) else DEFAULT for key, _ in values(config)}
    return Loaded(config, origins, (*ignored, *oddities(config)))


def _text(path: Path) -> str:
    """Read a file of UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise UsageError(f"{path}: there is no such file; `gridsense init {path}` writes one to begin with") from error
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: is not UTF-8 at byte {error.start}; save it as UTF-8") from error


def _parse(path: Path, text: str) -> dict[str, Any]:
    """Read TOML."""
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, a list of thousands of lists
        found = re.fullmatch(r"(.*) \(at line (\d+), column (\d+)\)", str(error))
        words, line, column = found.groups() if found else (str(error), text.count("\n") + 1, 1)
        raise UsageError(f"{path}:{line}:{column}: this is no TOML: {words}") from error


def _lines(text: str) -> dict[Key, int]:
    """Say on which line of a TOML text each table and key begins.

    A statement is as many lines as it takes to be TOML by itself, so that the only grammar here is tomllib's.
    """
    places: dict[Key, int] = {}
    counts: dict[Key, int] = {}
    table: Key = ()
    begin, statement = 0, ""
    for number, line in enumerate(text.split("\n"), 1):
        if statement:
            statement += f"\n{line}"
            if not any(mark in line for mark in ("]", '"""', "'''")):  # nothing else ends a statement of several lines
                continue
        else:
            begin, statement = number, line
        try:
            parsed = tomllib.loads(statement)
        except tomllib.TOMLDecodeError:
            continue
        if statement.lstrip().startswith("["):
            table = _table(parsed, counts)
            for depth in range(1, len(table) + 1):
                places.setdefault(table[:depth], begin)
        else:
            for name, value in parsed.items():
                for key in _nodes(value, (*table, name)):
                    places.setdefault(key, begin)
        statement = ""
    return places


def _table(header: dict[str, Any], counts: dict[Key, int]) -> Key:
    """Find the path of a table by its header alone, and count the tables of each array."""
    key: Key = ()
    node: Any = header
    while node:
        ((name, node),) = node.items()
        key += (name,)
        if isinstance(node, list):
            counts[key] = counts.get(key, -1) + 1
            node = {}
        if key in counts:
            key += (counts[key],)
    return key


def _take_variables(given: _Given, environ: Mapping[str, str]) -> list[str]:
    """Take settings from the environment; say what was left, for orchestrators set variables of such names too."""
    strangers = []
    for name, text in sorted(environ.items()):
        if not name.startswith(PREFIX):
            continue
        parts = name.removeprefix(PREFIX).lower().split("__")
        if len(parts) > 1 or parts[0] in Config.model_fields:
            given.put(parts, text, _Origin(_VARIABLE, 0, name))
        else:
            strangers.append(name)
    names = ", ".join(strangers)
    return [f"{names}: no setting, ignored; log.url would be {PREFIX}LOG__URL"] if strangers else []


def _validate(given: _Given, folder: Path) -> Config | None:
    """Make the configuration, and note every mistake; None where too little is right to see what contradicts it."""
    wrong = set[Key]()
    try:
        config = Config.model_validate(given.tree)
    except ValidationError as error:
        found: Any = error.errors(include_url=False)  # a type of pydantic_core's, which is not ours to import
        for details in found:
            key = _place(details)
            if key not in wrong:
                given.complain(key, _at(given.tree, key), _words(key, details), given.origin(key))
            wrong.add(key)
        try:
            config = Config.model_validate(_without(given.tree, wrong))
        except ValidationError:
            return None
    for key in _secrets(given.tree):
        origin = given.origin(key)
        if origin.layer != _VARIABLE and key not in wrong:
            variable = PREFIX + "__".join(map(str, key)).upper()
            where = "in a file" if origin.layer == _FILE else "on the command line, where others can read it"
            given.complain(key, HIDDEN, f"must not stand {where}: set {variable}, or {dotted(key)}_file", origin)
            wrong.add(key)
    config = config.in_folder(folder)
    effective = dict(values(config))
    for keys, words in contradictions(config):
        if not any(key[:depth] in wrong for key in keys for depth in range(1, len(key) + 1)):
            given.complain(keys[0], effective[keys[0]], words, given.origin(_told_at(given, keys)))
    return config


def _told_at(given: _Given, keys: tuple[Key, ...]) -> Key:
    """Choose which of several keys that contradict each other says the line: one that somebody set, of the first's."""
    section = keys[0][:-1]
    near = [key for key in keys if key[:-1] == section] + ([section] if isinstance(section[-1], int) else [])
    return next(filter(given.has, (*near, *keys)), keys[0])


def _without(tree: dict[str, Any], wrong: set[Key]) -> dict[str, Any]:
    """Take out what is wrong; a connection, and the name of one, give way to something that stands in for them."""
    rest = deepcopy(tree)
    for key in wrong:
        holder, last = _at(rest, key[:-1]), key[-1]
        if isinstance(holder, list) and isinstance(last, int):
            holder[last] = {"name": dotted(key)}
        elif isinstance(holder, dict) and last == "name" and _is_list(key[:-2]):
            holder["name"] = dotted(key)
        elif isinstance(holder, dict):
            holder.pop(last, None)
    return rest


def _place(details: Mapping[str, Any]) -> Key:
    """Find the key that a mistake belongs to: what is wrong in a list of numbers or texts is the list's."""
    key: Key = details["loc"]
    return key[:-1] if isinstance(key[-1], int) and not _is_list(key[:-1]) else key


def _words(key: Key, details: Mapping[str, Any]) -> str:
    """Say in plain words what a value must be."""
    kind, context, info = details["type"], details.get("ctx", {}), _field(key)
    words = str(context["error"]) if kind == "value_error" else _PLAIN_WORDS.get(kind, details["msg"])
    if info is None:
        return f"unknown key; {_nearest(key)}" if kind == "extra_forbidden" else words
    limit = next((written(info, context[name]) for name in ("gt", "ge", "le") if name in context), "")
    wanted = get_args(info.annotation)
    match kind:
        case "missing" if details["loc"] == key:
            words = f"is missing: {info.description}"
        case "greater_than":
            words = f"must be above {limit}"
        case "greater_than_equal":
            words = f"must be at least {limit}"
        case "less_than_equal":
            words = f"must be at most {limit}"
        case "literal_error" if ... not in wanted:
            words = f"must be one of {', '.join(wanted)}"
        case "tuple_type" if _is_list(key):
            words = f"must be tables: each begins with [[{dotted(key)}]]"
        case _ if get_origin(info.annotation) is tuple and not _is_list(key) and kind != "value_error":
            names = ", ".join(choices_of(info)) or "texts"
            words = f"must be a list of {names if ... in wanted else f'{len(wanted)} numbers'}"
    return words


def _nearest(key: Key) -> str:
    """Say which key was perhaps meant: one beside it, else one of that name elsewhere."""
    section = _section(key[:-1])
    names = list(section.model_fields) if section else []
    name = str(key[-1])
    near = (
        [there for there in _all_keys(Config, "") if there.endswith(f".{name}")]
        or difflib.get_close_matches(name, names, 1)
        or difflib.get_close_matches(dotted(key), [there for there in _all_keys(Config, "") if "." in there], 1, 0.8)
    )
    return f"did you mean {' or '.join(f'`{there}`' for there in near)}?" if near else f"there are {', '.join(names)}"


def _all_keys(section: type[BaseModel], before: str) -> Iterator[str]:
    for name, info in section.model_fields.items():
        inner = _model(info.annotation)
        if inner is None or _element(info.annotation):
            yield before + name
        if inner is not None:
            yield from _all_keys(inner, f"{before}{name}.")


def _element(annotation: Any) -> Any:
    """Type of the items of a list of any length; None for anything else."""
    items = get_args(annotation)
    return items[0] if get_origin(annotation) is tuple and items[-1] is ... else None


def _model(annotation: Any) -> type[BaseModel] | None:
    """Class of a section, or of each section in a list."""
    kind = _element(annotation) or annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _section(key: Key) -> type[BaseModel] | None:
    """Class of the section at a place."""
    section: type[BaseModel] | None = Config
    for part in key:
        if isinstance(part, str):
            info = section.model_fields.get(part) if section else None
            section = _model(info.annotation) if info else None
    return section


def _field(key: Key) -> FieldInfo | None:
    """Find the field at a place; None where there is none."""
    section = _section(key[:-1])
    return section.model_fields.get(str(key[-1])) if section and key else None


def _is_list(key: Key) -> bool:
    """Whether a list of sections stands at a place."""
    info = _field(key)
    return info is not None and _element(info.annotation) is not None and _model(info.annotation) is not None


def _typed(key: Key, text: str) -> Any:
    """Read a value from where all is text: as TOML, unless its field takes text."""
    info = _field(key)
    takes_text = info is not None and (
        info.annotation in {str, SecretStr}
        or get_origin(info.annotation) is Literal
        or any(isinstance(it, BeforeValidator) for it in info.metadata)
    )
    if takes_text:
        return text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text


def _is_secret(key: Key) -> bool:
    """Whether what stands at a place may be a secret: of a key for one, or of one that was perhaps meant for it."""
    names = tuple(part for part in key if isinstance(part, str))
    info = _field(names)
    if info is not None:
        return info.annotation is SecretStr
    return bool(names) and (
        names[0] == "kafka" or bool(difflib.get_close_matches(names[-1], ["password", "secret"], 1))
    )


def _shown(key: Key, value: Any) -> Any:
    """Make of a wrong value what may be shown of it."""
    if isinstance(value, dict):
        return {name: _shown((*key, name), item) for name, item in value.items()}
    if isinstance(value, list):
        return [_shown((*key, place), item) for place, item in enumerate(value)]
    if _is_secret(key):
        return HIDDEN
    return _USERINFO.sub(f"//{HIDDEN}@", value) if isinstance(value, str) else value


def _shown_word(key: Key, text: str) -> str:
    """Make of a value on the command line what may be shown of it."""
    return HIDDEN if _is_secret(key) or key == ("kafka",) else str(_shown(key, text))


def _secrets(tree: Mapping[str, Any]) -> list[Key]:
    """Find the secrets that somebody set."""
    keys = [(section, name) for section, info in Config.model_fields.items() for name in _secret_names(info)]
    return [key for key in keys if _at(tree, key) is not _NO_ENTRY and _at(tree, key) != ""]


def _secret_names(info: FieldInfo) -> list[str]:
    section = _model(info.annotation)
    fields = section.model_fields.items() if section else ()
    return [name for name, inner in fields if inner.annotation is SecretStr]


def _at(tree: Any, key: Key) -> Any:
    """Find the value at a place; `_NO_ENTRY` where there is none."""
    for part in key:
        if isinstance(tree, dict):
            tree = tree.get(part, _NO_ENTRY)
        elif isinstance(tree, list) and isinstance(part, int) and part < len(tree):
            tree = tree[part]
        else:
            return _NO_ENTRY
    return tree


def _nodes(value: Any, key: Key) -> Iterator[Key]:
    """List a value's place and the places of all that it holds."""
    yield key
    items: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for part, item in items:
        yield from _nodes(item, (*key, part))


def values(config: Config) -> Iterator[tuple[Key, Any]]:
    """List each effective value, durations and sizes with their units.

    Parameters
    ----------
    config
        Any configuration.

    Yields
    ------
    tuple[Key, Any]
        Its place and what a file would hold there, in the order of the sections.
    """

    def walk(node: Any, key: Key) -> Iterator[tuple[Key, Any]]:
        sections = isinstance(node, dict) or (node and isinstance(node, list) and isinstance(node[0], dict))
        if not sections:
            yield key, node
            return
        for part, item in node.items() if isinstance(node, dict) else enumerate(node):
            yield from walk(item, (*key, part))

    yield from walk(config.model_dump(mode="json"), ())


def _written(key: Key) -> str:
    """Write a place, on one line whatever its names hold."""
    return dotted(tuple(part if isinstance(part, int) else toml_key(part) for part in key))


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
