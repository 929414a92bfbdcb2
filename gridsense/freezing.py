"""States in, bytes and arrays out, and back: for snapshots from which a pipeline goes on as if nothing had been.

A state is a tree of dataclasses, tuples, dicts, arrays and plain values, described by its annotations. What follows
from settings and channel tables (plans, layouts) is left out and taken from a state made anew. Nothing is executed on
the way back: a snapshot can be wrong, but it cannot do anything.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from functools import cache
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from gridsense.errors import StoreError
from streams.channels import ChannelTable, Pmu

T = TypeVar("T")

INLINE_BYTES = 1 << 12
"""Arrays up to this size stand in the skeleton; larger ones beside it: those unchanged need not be stored again."""


@dataclass(frozen=True, slots=True)
class Frozen:
    """A state at one moment. It shares the arrays with the state: none may be changed in place.

    Attributes
    ----------
    skeleton
        Everything but the large arrays (MessagePack).
    arrays
        The large arrays, by their place in the skeleton; each once, however often it stands there.
    """

    skeleton: bytes
    arrays: tuple[NDArray[Any], ...]


Packed = dict[int, tuple[ChannelTable, bytes]]
"""Tables that were written before, by their identity: those of thousands of PMUs take long to write."""


def freeze(tree: object, apart: tuple[type, ...], packed: Packed) -> Frozen:
    """Take a state down.

    Parameters
    ----------
    tree
        The state.
    apart
        Types that are left out: plans, layouts, settings.
    packed
        What was written of the tables the last time; brought up to date.

    Returns
    -------
    Frozen
        Everything else. A `TypeError` says that the state holds what has no place in one.
    """
    taker = _Taker(apart, packed)
    body = taker.take(tree)
    packed.clear()
    packed.update(taker.tables)
    return Frozen(msgspec.msgpack.encode([[octets for _, octets in packed.values()], body]), tuple(taker.arrays))


class _Taker:
    """Takes one state down.

    Not functions within a function: those that call themselves are a cycle, and the state's arrays would stay until a
    collection of the oldest generation, minutes later.
    """

    def __init__(self, apart: tuple[type, ...], packed: Packed) -> None:
        self.tables: Packed = {}
        self.arrays: list[NDArray[Any]] = []
        self._apart = apart
        self._packed = packed
        self._numbers: dict[int, int] = {}
        self._seen: dict[int, int] = {}

    def take(self, value: object) -> object:  # noqa: PLR0911 (a case for each kind)
        if isinstance(value, self._apart):
            return None
        if isinstance(value, np.ndarray):
            return self._array(value)
        if isinstance(value, np.generic):
            return value.item()
        if isinstance(value, ChannelTable):
            return self._table(value)
        if isinstance(value, Enum):
            return value.value
        if is_dataclass(value):
            return [self.take(getattr(value, field.name)) for field in fields(value)]
        if isinstance(value, tuple):
            return [self.take(part) for part in value]
        if isinstance(value, dict):
            return [[self.take(key), self.take(part)] for key, part in value.items()]
        if value is None or isinstance(value, (bool, int, float, str, bytes)):
            return value
        raise TypeError(f"a {type(value).__name__} has no place in a state")

    def _array(self, value: NDArray[Any]) -> list[object]:
        if value.nbytes <= INLINE_BYTES:
            return [value.dtype.str, value.shape, value.tobytes()]
        if id(value) not in self._seen:
            self._seen[id(value)] = len(self.arrays)
            self.arrays.append(value)
        return [self._seen[id(value)]]

    def _table(self, value: ChannelTable) -> int:
        if id(value) not in self.tables:
            self._numbers[id(value)] = len(self._numbers)
            known = self._packed.get(id(value))
            self.tables[id(value)] = known or (value, msgspec.msgpack.encode(value.pmus))
        return self._numbers[id(value)]


def thaw(kind: type[T], frozen: Frozen, apart: Mapping[type, object], known: tuple[ChannelTable, ...] = ()) -> T:
    """Put a state together again.

    Parameters
    ----------
    kind
        Of the state.
    frozen
        From `freeze`.
    apart
        What was left out, by type.
    known
        Tables to use where those of the state are equal to them, so that they need not be compared again.

    Returns
    -------
    T
        Equal to what was frozen.

    Raises
    ------
    StoreError
        If it was written by another version, or is damaged.
    """
    try:
        pmus, body = msgspec.msgpack.decode(frozen.skeleton)
        equal = {table: table for table in known}
        tables = []
        for octets in pmus:
            table = ChannelTable(msgspec.msgpack.decode(octets, type=tuple[Pmu, ...]))
            tables.append(equal.get(table, table))
        state: T = _thawed(kind, body, _Known(frozen.arrays, apart, tables))
    except (msgspec.DecodeError, ValueError, TypeError, LookupError) as error:
        raise StoreError(
            f"the snapshot of the state cannot be read: {error}; it is damaged, or of another version"
        ) from error
    return state


@dataclass(frozen=True, slots=True)
class _Known:
    """What a skeleton refers to."""

    arrays: tuple[NDArray[Any], ...]
    apart: Mapping[type, object]
    tables: list[ChannelTable]


@cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _thawed(kind: Any, node: Any, known: _Known) -> Any:  # noqa: C901, PLR0911 (a case for each kind)
    """Make a value of a kind."""
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        return None if node is None else _thawed(_only(kind), node, known)
    if origin is np.ndarray:
        if len(node) == 1:
            return known.arrays[node[0]]
        dtype, shape, octets = node
        return np.frombuffer(octets, np.dtype(dtype)).reshape(shape).copy()
    if origin is tuple:
        inner = typing.get_args(kind)
        kinds = inner[:1] * len(node) if len(inner) == 2 and inner[1] is Ellipsis else inner
        return tuple(_thawed(one, part, known) for one, part in zip(kinds, node, strict=True))
    if origin is dict:
        of_key, of_value = typing.get_args(kind)
        return {_thawed(of_key, key, known): _thawed(of_value, value, known) for key, value in node}
    if kind in known.apart:
        return known.apart[kind]
    if kind is ChannelTable:
        return known.tables[node]
    if is_dataclass(kind):
        hints = _hints(typing.cast("type", kind))
        parts = zip(fields(kind), node, strict=True)
        make: Callable[..., Any] = typing.cast("type", kind)
        return make(*(_thawed(hints[field.name], part, known) for field, part in parts))
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind(node)
    if kind is float and isinstance(node, int):
        return float(node)
    if not isinstance(node, kind):
        raise TypeError(f"{type(node).__name__} where a {kind.__name__} was due")
    return node


def _only(union: Any) -> Any:
    """Name the one kind of an optional value."""
    (kind,) = (one for one in typing.get_args(union) if one is not types.NoneType)
    return kind
