"""Structures of arrays with the streams first: take some streams, join two sets, store as plain arrays and back.

In and out: frozen dataclasses whose fields are arrays, such dataclasses, or tuples of them.
It knows nothing of what the arrays mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from baselines.errors import ReferenceMismatchError

T = TypeVar("T")


def take_streams(tree: T, streams: ArrayLike) -> T:
    """Keep some streams, in the order given.

    Parameters
    ----------
    tree
        A structure with the streams first.
    streams
        Indices, or a mask `(S,)`.

    Returns
    -------
    T
        A copy that shares nothing.
    """
    index = np.asarray(streams)
    index = np.flatnonzero(index) if index.dtype == bool else index.astype(np.intp)
    return _mapped([tree], lambda parts, _: parts[0][index], "")


def join_streams(trees: Sequence[T]) -> T:
    """Put the streams of several structures side by side.

    Parameters
    ----------
    trees
        Structures of one kind, made under the same settings, with as many channels.

    Returns
    -------
    T
        All streams, in the order of `trees`.
    """

    def joined(parts: list[NDArray[Any]], key: str) -> NDArray[Any]:
        # A learning buffer is dropped once all its streams have learned; beside streams that learn it is needed again.
        room = max(part.shape[1] for part in parts) if parts[0].ndim == 3 else 0
        parts = [
            np.full((len(part), room, *part.shape[2:]), np.nan, part.dtype) if room and not part.shape[1] else part
            for part in parts
        ]
        if any(part.shape[1:] != parts[0].shape[1:] for part in parts):
            raise ReferenceMismatchError(
                f"{key} has shapes {[part.shape for part in parts]}: join only what was made under the same settings"
            )
        return np.concatenate(parts)

    return _mapped(list(trees), joined, "")


def to_arrays(tree: object) -> dict[str, NDArray[Any]]:
    """Store a structure as plain named arrays, for `numpy.savez`.

    Parameters
    ----------
    tree
        A structure of arrays.

    Returns
    -------
    dict[str, NDArray[Any]]
        By dotted name.
    """
    out: dict[str, NDArray[Any]] = {}

    def keep(parts: list[NDArray[Any]], key: str) -> NDArray[Any]:
        out[key] = parts[0]
        return parts[0]

    _mapped([tree], keep, "")
    return out


def from_arrays(like: T, arrays: Mapping[str, NDArray[Any]]) -> T:
    """Make a structure from what `to_arrays` stored.

    Parameters
    ----------
    like
        A structure made under the same settings, any number of streams.
    arrays
        By dotted name.

    Returns
    -------
    T
        With the stored arrays.
    """

    def found(parts: list[NDArray[Any]], key: str) -> NDArray[Any]:
        if key not in arrays:
            raise ReferenceMismatchError(f"{key} is not among the stored arrays; they were stored by another version")
        array = arrays[key]
        # A learning buffer is dropped once all have learned: its length may differ, the other axes may not.
        if array.ndim != parts[0].ndim or array.dtype != parts[0].dtype or array.shape[2:] != parts[0].shape[2:]:
            raise ReferenceMismatchError(
                f"{key} was stored as {array.dtype}{array.shape}, here it is {parts[0].dtype}{parts[0].shape}: "
                "other settings or channels; learn anew"
            )
        return array

    return _mapped([like], found, "")


def _mapped(trees: list[T], function: Callable[[list[NDArray[Any]], str], NDArray[Any]], key: str) -> T:
    first: Any = trees[0]
    if isinstance(first, np.ndarray):
        leaves: Any = trees
        result: Any = function(leaves, key)
    elif isinstance(first, tuple):
        parts: Any = zip(*trees, strict=True)
        result = tuple(_mapped(list(part), function, f"{key}.{i}".lstrip(".")) for i, part in enumerate(parts))
    elif is_dataclass(first):
        names = [field.name for field in fields(first)]
        kind: Any = type(first)
        result = kind(
            *(_mapped([getattr(t, name) for t in trees], function, f"{key}.{name}".lstrip(".")) for name in names)
        )
    else:
        raise TypeError(f"{key} is a {type(first).__name__}; a state holds arrays only")
    out: T = result
    return out
