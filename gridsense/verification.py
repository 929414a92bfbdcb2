"""Do two engines run one network alike, and for how long? Driven by made-up inputs like those of a grid.

In: engines of one network, and its spec. Out: how far apart they are, the largest deviation of every thousand frames,
in the network's raw outputs. It knows no engine's package, and judges nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from models.engines import Engine
from models.spec import Spec

CHUNK = 1000
"""Frames of which the largest deviation is kept."""
STEP_EVERY = 900.0
"""Frames from one step of a stream to the next, on average."""
LOST_EVERY, LOST_FOR = 1800.0, 60.0
"""Frames from one loss of a channel to the next, and how long it lasts, on average."""
REGION = 20
"""Streams that share their region's medians."""

Floats = NDArray[np.float32]


class Drive:
    """Makes inputs such as readings give: noise of every colour, steps that die away, channels that come and go.

    Parameters
    ----------
    spec
        What the network was made for.
    streams
        How many, `N`.
    seed
        The same gives the same inputs.
    """

    def __init__(self, spec: Spec, streams: int, seed: int) -> None:
        self._spec = spec
        self._rng = np.random.default_rng(seed)
        own = len(spec.slots) * len(spec.horizons)
        regions = -(-streams // REGION)
        self._region = np.arange(streams) // REGION
        self._memory = self._rng.uniform(0.0, 0.99, (streams + regions, own)).astype(np.float32)
        self._noise = np.sqrt(1 - self._memory**2)
        self._now: Floats = np.zeros_like(self._memory)
        self._lost: NDArray[np.bool_] = np.zeros((streams, len(spec.slots)), bool)

    def frames(self, count: int) -> Floats:
        """Make the next frames.

        Parameters
        ----------
        count
            How many, `T`.

        Returns
        -------
        Floats
            `(T, N, F)`.
        """
        spec, streams = self._spec, len(self._region)
        out = np.empty((count, streams, spec.inputs), np.float32)
        fresh = self._rng.standard_normal((count, *self._now.shape), dtype=np.float32)
        steps = self._rng.random((count, len(self._now))) < 1 / STEP_EVERY
        turns = self._rng.random((count, *self._lost.shape), dtype=np.float32)
        for t in range(count):
            self._now = self._memory * self._now + self._noise * fresh[t]
            self._now[steps[t]] += 2 * spec.clip * fresh[t, steps[t]]
            self._lost = np.where(self._lost, turns[t] > 1 / LOST_FOR, turns[t] < 1 / LOST_EVERY)
            own = np.clip(self._now, -spec.clip, spec.clip)
            there = np.repeat(~self._lost, len(spec.horizons), axis=1)
            out[t] = np.concatenate([own[:streams] * there, own[streams:][self._region], self._lost], axis=1)
        return out


def drift(
    spec: Spec,
    reference: Engine,
    engines: Sequence[Engine],
    *,
    frames: int,
    streams: int,
    seed: int,
    report: Callable[[int], None],
) -> NDArray[np.float64]:
    """Step engines side by side, each from its own state, and see how far they drift apart.

    Parameters
    ----------
    spec
        What the network was made for.
    reference
        Held against the others.
    engines
        `E` of them.
    frames
        How many.
    streams
        In each.
    seed
        Of the inputs.
    report
        Told how many frames are done.

    Returns
    -------
    NDArray[np.float64]
        `(E, ceil(frames / CHUNK))`: the largest absolute deviation of each chunk; infinite where one gave what is no
        number.
    """
    drive = Drive(spec, streams, seed)
    run = [reference, *engines]
    states = [engine.initial(streams) for engine in run]
    worst = np.zeros((len(engines), -(-frames // CHUNK)))
    for chunk in range(worst.shape[1]):
        inputs = drive.frames(min(CHUNK, frames - chunk * CHUNK))
        found = np.empty((len(run), *inputs.shape[:2], spec.outputs), np.float32)
        for e, engine in enumerate(run):
            for t, frame in enumerate(inputs):
                found[e, t], states[e] = engine.step(frame, states[e])
        away = np.abs(found[1:].astype(np.float64) - found[0]).max(axis=(1, 2, 3), initial=0)
        worst[:, chunk] = np.where(np.isfinite(away), away, np.inf)
        report(chunk * CHUNK + len(inputs))
    return worst
