"""Readings in, network inputs out: how far each reading is from the last one and from two running levels.

In: one frame of readings `(N, C)` of `N` network streams, and which are good. Out: inputs `(N, F)` in units of each
channel's own running scale, the medians of the stream's region beside them, and a mask of what is missing. Live,
training and backtest use this very code. It predicts nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.spec import ANGLES, FULL_TURN_DEG, Spec

SURPRISE = 4.0
"""A deviation counts for a running scale as at most so many times its square: a disturbance is not what is usual."""
LEAST_SCALE = 0.02
"""A running scale never falls below this share of the stored one: a frozen channel has no scale of its own."""
LEAST_COMPANY = 3
"""Streams that a region's median needs."""
ZERO = np.float32(0)


@dataclass(frozen=True, slots=True)
class Running:
    """What the features of `N` streams remember.

    Attributes
    ----------
    level
        `(N, C, K)` float32: the last reading, or what stood in for it; then the running levels, one a pace.
    square
        `(N, C, K)` float32: running mean squares of the deviations from them.
    count
        `(N, C)` int32: good readings that made those; they stop counting at the time constant.
    gap
        `(N, C)` int32: frames since the last good reading. It stops at one more than can be bridged: no level then.
    """

    level: NDArray[np.float32]
    square: NDArray[np.float32]
    count: NDArray[np.int32]
    gap: NDArray[np.int32]

    @property
    def last(self) -> NDArray[np.float32]:
        """`(N, C)`: the last reading, or what stood in for it."""
        return self.level[:, :, 0]


@dataclass(frozen=True)
class Regions:
    """Which streams stand together: neighbours tell what is common.

    Attributes
    ----------
    region
        `(N,)` int: the region of each stream; -1 where it has none.
    """

    region: NDArray[np.intp]
    places: NDArray[np.intp] = field(init=False)
    """`(R, M)`: the streams of each region that has company, filled up with `N`."""
    row: NDArray[np.intp] = field(init=False)
    """`(N,)`: the stream's row in `places`; `R` where it stands alone."""

    def __post_init__(self) -> None:
        """Group the streams."""
        found, back, sizes = np.unique(self.region, return_inverse=True, return_counts=True)
        wanted = np.flatnonzero((found >= 0) & (sizes >= LEAST_COMPANY))
        count = len(self.region)
        places = np.full((len(wanted), int(sizes[wanted].max(initial=0))), count, np.intp)
        row = np.full(count, len(wanted), np.intp)
        for r, g in enumerate(wanted.tolist()):
            members = np.flatnonzero(back == g)
            places[r, : len(members)] = members
            row[members] = r
        object.__setattr__(self, "places", places)
        object.__setattr__(self, "row", row)

    def medians(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Take each region's medians and hand them to its streams.

        Parameters
        ----------
        values
            `(N, D)`; NaN where missing.

        Returns
        -------
        NDArray[np.float32]
            `(N, D)`; 0 where too few of the region are there.
        """
        width = values.shape[1]
        if not len(self.places):
            return np.zeros_like(values)
        padded = np.concatenate([values, np.full((1, width), np.nan, np.float32)])
        ordered = np.sort(padded[self.places], axis=1)  # NaN last
        there = ordered.shape[1] - np.isnan(ordered).sum(axis=1)
        low, high = np.maximum(there - 1, 0) // 2, there // 2
        pick = [np.take_along_axis(ordered, np.minimum(i, there.max() - 1)[:, None], 1)[:, 0] for i in (low, high)]
        with np.errstate(invalid="ignore"):
            median = np.where(there >= LEAST_COMPANY, (pick[0] + pick[1]) / 2, 0)
        lone = np.zeros((1, width), np.float32)
        return np.concatenate([median.astype(np.float32), lone])[self.row]


class Features:
    """Makes the inputs of one set of streams.

    Parameters
    ----------
    spec
        What the network was made for.
    regions
        Who stands together.
    """

    def __init__(self, spec: Spec, regions: Regions) -> None:
        self.spec = spec
        self.regions = regions
        self.turn = turns(spec)
        self.bridge = round(spec.bridge_s * spec.rate_hz)
        self._scale = np.asarray(spec.scale, np.float32)
        self._clip = np.float32(spec.clip)
        self._floor = (LEAST_SCALE * self._scale) ** 2
        self._pace = np.asarray([1, *(1 - np.exp(-1 / (spec.rate_hz * p)) for p in spec.paces_s)], np.float32)
        self._longest, self._prior = (np.int32(max(1, round(s * spec.rate_hz))) for s in (spec.scale_s, spec.prior_s))

    def initial(self) -> Running:
        """Begin with nothing seen.

        Returns
        -------
        Running
            For `step`.
        """
        n, (c, k) = len(self.regions.region), self._scale.shape
        return Running(
            level=np.zeros((n, c, k), np.float32),
            square=np.broadcast_to(self._scale**2, (n, c, k)).copy(),
            count=np.zeros((n, c), np.int32),
            gap=np.full((n, c), self.bridge + 1, np.int32),
        )

    def begun(self, state: Running) -> NDArray[np.bool_]:
        """Say which channels have a level to be predicted from.

        Parameters
        ----------
        state
            Of these streams.

        Returns
        -------
        NDArray[np.bool_]
            `(N, C)`.
        """
        return state.gap <= self.bridge

    def step(
        self, state: Running, values: NDArray[np.float32], good: NDArray[np.bool_], fill: NDArray[np.float32]
    ) -> tuple[Running, NDArray[np.float32]]:
        """Take one frame in.

        Parameters
        ----------
        state
            Where the last step ended; it is left as it is.
        values
            `(N, C)` readings; meaningless where not good.
        good
            `(N, C)`.
        fill
            `(N, C)` what stands in for a missing reading, such as its prediction; NaN where nothing does.

        Returns
        -------
        tuple[Running, NDArray[np.float32]]
            The new state, and `(N, F)` inputs.
        """
        shape = n, c, k = state.level.shape
        begun = self.begun(state)
        gap = np.where(good, np.int32(0), np.minimum(state.gap + np.int32(1), np.int32(self.bridge + 1)))
        stands_in = begun & ~good & (gap <= self.bridge) & ~np.isnan(fill)
        value = np.where(good, values, np.where(stands_in, fill, state.last))
        # Spread out to every deviation of a channel, since NumPy is slow along axes as short as K.
        used, learns, starts = good | stands_in, good & begun, good & ~begun
        used_k, learns_k, starts_k, value_k = (_spread(x, shape) for x in (used, learns, starts, value))
        past = np.where(starts_k, value_k, state.level)
        deviation: NDArray[np.float32] = value_k - past
        wrap(deviation, self.turn)
        bounded: NDArray[np.float32] = np.clip(deviation / np.sqrt(state.square), -self._clip, self._clip)
        inputs = np.empty((n, self.spec.inputs), np.float32)
        inputs[:, : c * k] = np.where(used_k, bounded, ZERO).reshape(n, c * k)
        bounded[~used_k] = np.nan
        inputs[:, c * k : 2 * c * k] = self.regions.medians(bounded.reshape(n, c * k))
        inputs[:, 2 * c * k :] = ~good
        level = past + np.where(used_k, self._pace * deviation, ZERO)
        level[:, :, 0] = value
        wrap(level, self.turn)
        weight = np.float32(1) / (np.minimum(state.count, self._longest) + self._prior).astype(np.float32)
        grown = np.minimum(deviation * deviation, SURPRISE * state.square) - state.square
        square = state.square + np.where(learns_k, grown * _spread(weight, shape), ZERO)
        count = np.minimum(state.count + learns, self._longest)
        return Running(level, np.maximum(square, self._floor), count, gap), inputs


def _spread(channels: NDArray[Any], shape: tuple[int, int, int]) -> NDArray[Any]:
    """From `(N, C)` to `(N, C, K)`."""
    return np.repeat(channels, shape[2], axis=1).reshape(shape)


def mapped(change: Callable[..., NDArray[Any]], *states: Running) -> Running:
    """Change every array.

    Parameters
    ----------
    change
        Takes the arrays of one name, one of each state, and gives the new one.
    *states
        At least one.

    Returns
    -------
    Running
        Of the new arrays.
    """
    names = [each.name for each in fields(Running)]
    return Running(*(change(*(getattr(state, name) for state in states)) for name in names))


def turns(spec: Spec) -> NDArray[np.float32]:
    """Say which slots wrap.

    Parameters
    ----------
    spec
        What the network was made for.

    Returns
    -------
    NDArray[np.float32]
        `(C,)`: a full turn in degrees, 0 where nothing wraps.
    """
    return np.asarray([FULL_TURN_DEG if slot in ANGLES else 0 for slot in spec.slots], np.float32)


def wrap(values: NDArray[np.float32], turn: NDArray[np.float32]) -> None:
    """Take the shorter way round, in place.

    Parameters
    ----------
    values
        `(N, C, ...)` angles among others; NaN stays NaN.
    turn
        `(C,)`: see `turns`.
    """
    for c in np.flatnonzero(turn):
        values[:, c] -= turn[c] * np.rint(values[:, c] / turn[c])


def scales(state: Running) -> NDArray[np.float32]:
    """Take the units of predictions made now.

    Parameters
    ----------
    state
        After the newest frame.

    Returns
    -------
    NDArray[np.float32]
        `(N, C, K)` in the readings' units.
    """
    return np.sqrt(state.square)
