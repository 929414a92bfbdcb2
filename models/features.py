"""Readings in, network inputs out: how far each reading is from the last one and from two running levels.

In: one frame of readings `(N, C)` of `N` network streams, and which are good. Out: inputs `(N, F)` in units of each
channel's own running scale, the medians of the stream's region beside them, and a mask of what is missing. Live,
training and backtest use this very code. It predicts nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
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


@dataclass(frozen=True, slots=True)
class Running:
    """What the features of `N` streams remember.

    Attributes
    ----------
    last
        `(N, C)` float32: the last reading, or what stood in for it.
    level
        `(N, C, K - 1)` float32: running levels, one a pace.
    square
        `(N, C, K)` float32: running mean squares of the deviations.
    count
        `(N, C)` int32: good readings that made them; they stop counting at the time constant.
    begun
        `(N, C)` bool: there is a level.
    """

    last: NDArray[np.float32]
    level: NDArray[np.float32]
    square: NDArray[np.float32]
    count: NDArray[np.int32]
    begun: NDArray[np.bool_]


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


@dataclass(frozen=True)
class Features:
    """Makes the inputs of one set of streams.

    Attributes
    ----------
    spec
        What the network was made for.
    regions
        Who stands together.
    """

    spec: Spec
    regions: Regions

    def initial(self) -> Running:
        """Begin with nothing seen.

        Returns
        -------
        Running
            For `step`.
        """
        n, c, k = len(self.regions.region), len(self.spec.slots), len(self.spec.horizons)
        prior = np.asarray(self.spec.scale, np.float32) ** 2
        return Running(
            last=np.zeros((n, c), np.float32),
            level=np.zeros((n, c, k - 1), np.float32),
            square=np.broadcast_to(prior, (n, c, k)).copy(),
            count=np.zeros((n, c), np.int32),
            begun=np.zeros((n, c), bool),
        )

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
        spec = self.spec
        turn = turns(spec)
        stands_in = ~good & ~np.isnan(fill) & state.begun
        used = good | stands_in
        value = np.where(good, values, np.where(stands_in, fill, state.last))
        begins = good & ~state.begun
        last = np.where(begins, value, state.last)
        level = np.where(begins[:, :, None], value[:, :, None], state.level)
        deviation = value[:, :, None] - np.concatenate([last[:, :, None], level], axis=2)
        deviation -= turn[:, None] * np.rint(deviation / np.where(turn > 0, turn, 1)[:, None])
        bounded = np.where(used[:, :, None], deviation / np.sqrt(state.square), np.float32(np.nan))
        np.clip(bounded, -spec.clip, spec.clip, out=bounded)
        flat = bounded.reshape(len(value), -1)
        inputs = np.concatenate(
            [np.nan_to_num(flat, nan=0.0), self.regions.medians(flat), (~good).astype(np.float32)], 1
        )
        pace = np.asarray([1 - np.exp(-1 / (spec.rate_hz * p)) for p in spec.paces_s], np.float32)
        level = level + pace * np.where(used[:, :, None], deviation[:, :, 1:], 0)
        level -= turn[:, None] * np.rint(level / np.where(turn > 0, turn, 1)[:, None])
        longest, prior = round(spec.scale_s * spec.rate_hz), round(spec.prior_s * spec.rate_hz)
        weight = 1 / (np.minimum(state.count, longest) + prior).astype(np.float32)
        grown = np.minimum(deviation**2, SURPRISE * state.square) - state.square
        learns = good & ~begins
        square = state.square + np.where(learns[:, :, None], weight[:, :, None] * grown, 0)
        floor = (LEAST_SCALE * np.asarray(spec.scale, np.float32)) ** 2
        return (
            Running(
                last=value,
                level=level,
                square=np.maximum(square, floor),
                count=np.minimum(state.count + learns, longest).astype(np.int32),
                begun=state.begun | good,
            ),
            inputs,
        )


def reshaped(state: Running, change: Callable[[NDArray[Any]], NDArray[Any]]) -> Running:
    """Change the shape of every array.

    Parameters
    ----------
    state
        Any.
    change
        Of one array.

    Returns
    -------
    Running
        The same in another shape.
    """
    return Running(
        change(state.last), change(state.level), change(state.square), change(state.count), change(state.begun)
    )


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
