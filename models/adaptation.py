"""What a channel's own past adds to the shared network: a small linear correction of its predictions, learned on line.

In: the network's means and inputs at each frame, and later how far off they were. Out: corrected means, and how much
wider or narrower than the network said the spread has been. One network serves grids that it has never seen; how
strongly a channel there falls back to its level, and what its neighbours tell of it, five numbers a channel and
horizon say. It knows neither readings nor time, only frames.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.spec import Spec

EVERY = 5
"""Frames from one moment that is learned from to the next: closer ones say the same again."""
OWN_S = 5.0
"""How many seconds of moments the network's own word is worth."""
USUAL = 3.0
"""Spreads from which a deviation counts less, as the square of how far beyond it is: a disturbance teaches little."""
FARTHEST = 10.0
"""A corrected mean is bounded by so many units."""
MOST = 3.0
"""A term counts at most so often: what is solved for is not always well told."""
WIDTH_S = 60.0
"""Time constant of the running width."""


@dataclass(frozen=True, slots=True)
class Adapted:
    """What the correction remembers; its arrays `(N, C, K, ...)`, `P` terms: network, `K` deviations, region.

    Attributes
    ----------
    gram
        `(N, C, K, P, P)` float32: running sums of products of the terms.
    moment
        `(N, C, K, P)` float32: running sums of the terms times what came.
    weight
        `(N, C, K, P)` float32: how each term counts; the network alone, at first.
    square
        `(N, C, K)` float32: running mean square of the deviations, in the network's own spreads.
    waiting
        For each horizon of h frames the newest moments, a tuple of `(N, C, P + 2)` float32: terms, corrected mean and
        unit; NaN where there was none. The moment of slot t is in place t / `EVERY`, modulo how many there are.
    """

    gram: NDArray[np.float32]
    moment: NDArray[np.float32]
    weight: NDArray[np.float32]
    square: NDArray[np.float32]
    waiting: tuple[tuple[NDArray[np.float32], ...], ...]


def each(change: Callable[..., NDArray[Any]], *states: Adapted) -> Adapted:
    """Change every array.

    Parameters
    ----------
    change
        Takes the arrays of one name, one of each state, and gives the new one.
    *states
        At least one.

    Returns
    -------
    Adapted
        Of the new arrays.
    """
    return Adapted(
        change(*(s.gram for s in states)),
        change(*(s.moment for s in states)),
        change(*(s.weight for s in states)),
        change(*(s.square for s in states)),
        tuple(
            tuple(change(*parts) for parts in zip(*rings, strict=True))
            for rings in zip(*(s.waiting for s in states), strict=True)
        ),
    )


class Adaptation:
    """Corrects the predictions of one network's spec.

    Parameters
    ----------
    spec
        What the network was made for.
    """

    def __init__(self, spec: Spec) -> None:
        self.horizons = spec.horizons
        self.channels = len(spec.slots)
        self.terms = len(spec.horizons) + 2
        self.middle = len(spec.horizons) // 2
        self.second = max(EVERY, round(spec.rate_hz))
        self.places = tuple(h // EVERY + 1 for h in spec.horizons)
        rate = spec.rate_hz / EVERY
        self._keep = np.float32(1 - 1 / (spec.scale_s * rate))
        self._new = np.float32(1 / (WIDTH_S * rate))
        self._prior = np.float32(OWN_S * rate) * np.eye(self.terms, dtype=np.float32)

    def initial(self, streams: int) -> Adapted:
        """Begin with the network's word.

        Parameters
        ----------
        streams
            `N`.

        Returns
        -------
        Adapted
            For `apply`.
        """
        shape = (streams, self.channels, len(self.horizons))
        weight = np.zeros((*shape, self.terms), np.float32)
        weight[..., 0] = 1
        blank = np.full((streams, self.channels, self.terms + 2), np.nan, np.float32)
        return Adapted(
            gram=np.zeros((*shape, self.terms, self.terms), np.float32),
            moment=np.zeros((*shape, self.terms), np.float32),
            weight=weight,
            square=np.ones(shape, np.float32),
            waiting=tuple((blank,) * places for places in self.places),
        )

    def apply(
        self, state: Adapted, mean: NDArray[np.float32], inputs: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """Correct what the network says.

        Parameters
        ----------
        state
            As of now.
        mean
            `(N, C, K)` the network's, in units.
        inputs
            `(N, F)` that it said it of.

        Returns
        -------
        tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]
            Terms `(N, C, K, P)`; corrected means, and factors on the spreads, each `(N, C, K)`.
        """
        n, c, k = mean.shape
        own = inputs[:, : c * k].reshape(n, c, 1, k)
        region = inputs[:, c * k : 2 * c * k].reshape(n, c, k)[:, :, self.middle, None, None]
        shape = (n, c, k)
        parts = [mean[..., None], np.broadcast_to(own, (*shape, k)), np.broadcast_to(region, (*shape, 1))]
        terms = np.concatenate(parts, axis=3)
        corrected = np.clip((terms * state.weight).sum(3), -FARTHEST, FARTHEST)
        return terms, corrected, np.sqrt(state.square)

    def learn(self, state: Adapted, slot: int, away: NDArray[np.float32], spread: NDArray[np.float32]) -> Adapted:
        """Learn from what came of the predictions for a frame.

        Parameters
        ----------
        state
            Before it.
        slot
            Of the frame.
        away
            `(N, C, K)` reading minus expected, in the readings' units; NaN where one of them is not there.
        spread
            `(N, C, K)` as predicted, the factor included.

        Returns
        -------
        Adapted
            After it.
        """
        due = [k for k, h in enumerate(self.horizons) if (slot - h) % EVERY == 0]
        gram, moment, weight, square = state.gram, state.moment, state.weight, state.square
        if due:
            gram, moment, square = gram.copy(), moment.copy(), square.copy()
        for k in due:
            held = state.waiting[k][(slot - self.horizons[k]) // EVERY % self.places[k]]
            z = away[:, :, k] / spread[:, :, k]
            there = ~(np.isnan(z) | np.isnan(held[:, :, -1]))
            z = np.where(there, z, 0)
            came = np.where(there, held[:, :, -2] + away[:, :, k] / held[:, :, -1], 0)[:, :, None]
            count = np.where(there, 1 / np.maximum(1, (z / np.float32(USUAL)) ** 2), 0).astype(np.float32)
            terms = np.where(there[:, :, None], held[:, :, :-2], 0)
            heavy = terms * count[:, :, None]
            keep = np.where(there, self._keep, np.float32(1))
            gram[:, :, k] = gram[:, :, k] * keep[:, :, None, None] + heavy[:, :, :, None] * terms[:, :, None]
            moment[:, :, k] = moment[:, :, k] * keep[:, :, None] + heavy * came
            seen = np.minimum(z * z, np.float32(USUAL**2)) * square[:, :, k]
            square[:, :, k] += np.where(there, self._new, np.float32(0)) * (seen - square[:, :, k])
        if slot % self.second == 0:
            weight = self._solved(gram, moment)
        return Adapted(gram, moment, weight, square, state.waiting)

    def remember(
        self,
        state: Adapted,
        slot: int,
        terms: NDArray[np.float32],
        corrected: NDArray[np.float32],
        unit: NDArray[np.float32],
    ) -> Adapted:
        """Keep what was said at a frame until it is known what came.

        Parameters
        ----------
        state
            After `learn`.
        slot
            Of the frame.
        terms
            From `apply`.
        corrected
            Likewise.
        unit
            `(N, C, K)` of the corrected means; NaN where nothing was predicted.

        Returns
        -------
        Adapted
            With it.
        """
        if slot % EVERY:
            return state
        said = np.concatenate([terms, corrected[..., None], unit[..., None]], axis=3)
        said[np.isnan(unit)] = np.nan
        return self._kept(state, slot, said)

    def forget(self, state: Adapted, begin: int, end: int) -> Adapted:
        """Keep nothing of frames that did not come.

        Parameters
        ----------
        state
            After the frame before them.
        begin
            Slot of the first.
        end
            Slot of the first that came again.

        Returns
        -------
        Adapted
            Without them.
        """
        nothing = np.full((*state.square.shape, self.terms + 2), np.nan, np.float32)
        newest = end - 1 - (end - 1) % EVERY
        for slot in range(max(newest - EVERY * max(self.places), begin - begin % -EVERY), end, EVERY):
            state = self._kept(state, slot, nothing)
        if (end - 1) // self.second > (begin - 1) // self.second:
            state = replace(state, weight=self._solved(state.gram, state.moment))
        return state

    def _solved(self, gram: NDArray[np.float32], moment: NDArray[np.float32]) -> NDArray[np.float32]:
        """Weigh the terms by what was learned."""
        solved = np.linalg.solve(gram + self._prior, (moment + self._prior[:, 0])[..., None])[..., 0]
        return np.clip(solved, -MOST, MOST).astype(np.float32)

    def _kept(self, state: Adapted, slot: int, said: NDArray[np.float32]) -> Adapted:
        """Put a moment in its place in every ring."""
        waiting = []
        for k, held in enumerate(state.waiting):
            place = slot // EVERY % self.places[k]
            waiting.append((*held[:place], said[:, :, k], *held[place + 1 :]))
        return replace(state, waiting=tuple(waiting))
