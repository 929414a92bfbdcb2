"""The stepping predictor: blocks of readings in, what was expected of them and how far off it was out.

In: consecutive frames `(T, S, C')` and which readings are good. Out: for every reading and horizon the expected value,
its spread and the deviation in spreads; and what is expected next. The network steps once a frame for all PMUs; a
missing reading is bridged by its prediction, never fed. It calls nothing atypical: whoever calibrates does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.engines import Engine
from models.errors import ShapeError
from models.features import Features, Regions, Running, reshaped, scales, turns
from models.layout import Layout
from models.spec import Spec

NEVER = np.int64(-1)
"""Slot before the first frame."""
NARROWEST, WIDEST = -5.0, 4.0
"""Bounds of the logarithm of a spread, as in training."""


@dataclass(frozen=True, slots=True)
class State:
    """All that the predictor remembers: plain arrays, PMUs first; `V` views of each.

    Attributes
    ----------
    slot
        `(S,)` int64: place of the last frame on the reporting grid; `NEVER` before the first.
    running
        Levels and scales of the features; its arrays `(S, V, C, ...)`.
    network
        `(S, V, ...)` float32: the recurrent state.
    frames
        `(S, V)` int32: frames since the view began, no more than its warm-up has.
    gap
        `(S, V, C)` int32: frames since the last good reading, no more than can be bridged and one.
    pending
        For each horizon of h frames `(S, V, h, C, 2)` float32: expected value and spread of the frames to come, the
        one for slot t in place t % h; NaN where nothing was predicted.
    """

    slot: NDArray[np.int64]
    running: Running
    network: NDArray[np.float32]
    frames: NDArray[np.int32]
    gap: NDArray[np.int32]
    pending: tuple[NDArray[np.float32], ...]


@dataclass(frozen=True, slots=True)
class Forecast:
    """What was expected of `T` frames, and what is expected next. NaN wherever there is nothing to say.

    Attributes
    ----------
    slots
        `(T,)` int64: places of the frames on the reporting grid.
    expected, spread
        `(T, S, C', K)` float32: of each frame, as predicted so many frames before, in the readings' units.
    deviation
        `(T, S, C', K)` float32: reading minus expected, in spreads; NaN also where the reading is not good, or the view
        has not warmed up.
    warm
        `(T, S)` bool: the PMU is predicted, and its views have warmed up.
    ahead, ahead_spread
        `(T, S, C', K)` float32: what is expected so many frames after each frame.
    """

    slots: NDArray[np.int64]
    expected: NDArray[np.float32]
    spread: NDArray[np.float32]
    deviation: NDArray[np.float32]
    warm: NDArray[np.bool_]
    ahead: NDArray[np.float32]
    ahead_spread: NDArray[np.float32]


class Predictor:
    """Predicts the readings of one set of PMUs.

    Parameters
    ----------
    spec
        What the network was made for.
    layout
        Which channel stands where.
    engine
        What runs the network.
    """

    def __init__(self, spec: Spec, layout: Layout, engine: Engine) -> None:
        self.spec = spec
        self.layout = layout
        self.engine = engine
        self.features = Features(spec, Regions(layout.stream_region))
        self.bridge = round(spec.bridge_s * spec.rate_hz)
        self.warm = round(spec.warm_s * spec.rate_hz)
        self.turn = turns(spec)
        self.present: NDArray[np.bool_] = layout.channel.reshape(layout.streams, -1) >= 0

    def initial(self) -> State:
        """Begin with nothing seen.

        Returns
        -------
        State
            For the first `step`.
        """
        pmus, views, c = self.layout.channel.shape
        n = pmus * views
        network = self.engine.to_numpy(self.engine.initial(n))
        begun = State(
            slot=np.full(pmus, NEVER),
            running=self.features.initial(),
            network=network,
            frames=np.zeros(n, np.int32),
            gap=np.full((n, c), self.bridge + 1, np.int32),
            pending=tuple(np.full((n, h, c, 2), np.nan, np.float32) for h in self.spec.horizons),
        )
        return _reshaped(begun, lambda x: x.reshape(pmus, views, *x.shape[1:]))

    def step(
        self, state: State, slots: NDArray[np.int64], values: NDArray[np.float32], good: NDArray[np.bool_]
    ) -> tuple[State, Forecast]:
        """Take a block in.

        Parameters
        ----------
        state
            Where the last step ended; it is left as it is.
        slots
            `(T,)` places on the reporting grid, ascending; places left out are frames that did not come.
        values
            `(T, S, C')` readings; meaningless where not good.
        good
            `(T, S, C')`.

        Returns
        -------
        tuple[State, Forecast]
            The new state, and what was expected of these frames.

        Raises
        ------
        ShapeError
            If the block has other PMUs or channels, or a slot is not after the one before.
        """
        pmus, views, c = self.layout.channel.shape
        if values.shape != (len(slots), pmus, self.layout.width) or good.shape != values.shape:
            raise ShapeError(
                f"a block of {values.shape} with quality {good.shape} and {len(slots)} slots does not fit "
                f"{pmus} PMUs of {self.layout.width} channels"
            )
        n, horizons = pmus * views, self.spec.horizons
        run = _Run(self, state, n)
        readings = self.layout.gather(np.where(good, values, np.float32(np.nan)), np.nan)
        shape = (len(slots), n, c, len(horizons))
        expected, spread, ahead, beyond = (np.empty(shape, np.float32) for _ in range(4))
        deviation, warm = np.empty(shape, np.float32), np.empty((len(slots), n), bool)
        for t, slot in enumerate(slots.tolist()):
            run.pass_over(slot)
            expected[t], spread[t] = run.expected(slot)
            ahead[t], beyond[t] = run.take(slot, readings[t])
            warm[t] = run.frames >= self.warm
            away = readings[t][:, :, None] - expected[t]
            away -= self.turn[:, None] * np.rint(np.nan_to_num(away) / np.where(self.turn > 0, self.turn, 1)[:, None])
            deviation[t] = np.where(warm[t][:, None, None], away / spread[t], np.float32(np.nan))
        empty: NDArray[np.bool_] = ~np.any(self.present.reshape(pmus, views, c), axis=2)
        whole: NDArray[np.bool_] = np.all(warm.reshape(len(slots), pmus, views) | empty, axis=2) & ~empty.all(1)
        scattered = (self.layout.scatter(x) for x in (expected, spread, deviation, ahead, beyond))
        expected, spread, deviation, ahead, beyond = scattered
        network = self.engine.to_numpy(run.network)
        new = State(run.slots(pmus), run.running, network, run.frames, run.gap, tuple(run.pending))
        new = _reshaped(new, lambda x: x.reshape(pmus, views, *x.shape[1:]))
        return new, Forecast(slots, expected, spread, deviation, whole, ahead, beyond)


def _reshaped(state: State, change: Callable[[NDArray[Any]], NDArray[Any]]) -> State:
    """Fold network streams under their PMUs, or unfold them."""
    return State(
        slot=state.slot,
        running=reshaped(state.running, change),
        network=change(state.network),
        frames=change(state.frames),
        gap=change(state.gap),
        pending=tuple(change(p) for p in state.pending),
    )


class _Run:
    """The frames of one block, one after the other, on copies of the state."""

    def __init__(self, predictor: Predictor, state: State, n: int) -> None:
        flat = _reshaped(state, lambda x: x.reshape(n, *x.shape[2:]))
        self.of = predictor
        self.running, self.frames, self.gap = flat.running, flat.frames, flat.gap
        self.network = predictor.engine.from_numpy(flat.network)
        self.first = predictor.engine.to_numpy(predictor.engine.initial(1))[0]
        self.pending = [p.copy() for p in flat.pending]
        self.slot = int(state.slot.max(initial=NEVER))

    def slots(self, pmus: int) -> NDArray[np.int64]:
        """`(S,)`: the newest slot."""
        return np.full(pmus, self.slot, np.int64)

    def pass_over(self, slot: int) -> None:
        """Step through frames that did not come; begin anew after too many."""
        missed = slot - self.slot - 1
        if self.slot == NEVER:
            return
        if missed < 0:
            raise ShapeError(f"slot {slot} is not after slot {self.slot}: frames come in order, each once")
        nothing = np.full(self.gap.shape, np.nan, np.float32)
        for between in range(self.slot + 1, self.slot + 1 + min(missed, self.of.bridge + 1)):
            self.take(between, nothing)
        if missed > self.of.bridge + 1:
            for pending in self.pending:
                pending[:] = np.nan

    def expected(self, slot: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """`(N, C, K)` twice: what was predicted of this slot."""
        found = [pending[:, slot % h] for pending, h in zip(self.pending, self.of.spec.horizons, strict=True)]
        both = np.stack(found, axis=2)
        return both[..., 0], both[..., 1]

    def take(self, slot: int, readings: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Take a frame in, NaN where nothing good came; predict what follows: `(N, C, K)` twice."""
        of = self.of
        good = ~np.isnan(readings)
        self.gap = np.where(good, 0, np.minimum(self.gap + 1, of.bridge + 1)).astype(np.int32)
        lost = self.gap > of.bridge
        # A channel gone for long has no level any more; a view without any channel begins anew.
        ended: NDArray[np.bool_] = np.all(lost | ~of.present, axis=1)
        self.running = replace(self.running, begun=self.running.begun & ~lost)
        self.running, inputs = of.features.step(self.running, readings, good, self.pending[0][:, 0, :, 0])
        raw, network = of.engine.step(inputs, self.network)
        if ended.any():
            host = np.array(of.engine.to_numpy(network))
            host[ended] = self.first
            network = of.engine.from_numpy(host)
        self.network, self.slot = network, slot
        self.frames = np.where(ended, 0, np.minimum(self.frames + 1, of.warm)).astype(np.int32)
        mean, width = np.split(raw.reshape(len(raw), 2, self.gap.shape[1], -1), 2, axis=1)
        unit = scales(self.running)
        known = (self.running.begun & ~ended[:, None])[:, :, None]
        ahead = np.where(known, self.running.last[:, :, None] + mean[:, 0] * unit, np.float32(np.nan))
        spread = np.where(known, np.exp(np.clip(width[:, 0], NARROWEST, WIDEST)) * unit, np.float32(np.nan))
        turn = of.turn[:, None]
        ahead -= turn * np.rint(np.nan_to_num(ahead) / np.where(turn > 0, turn, 1))
        for k, h in enumerate(of.spec.horizons):
            self.pending[k][:, slot % h] = np.stack([ahead[:, :, k], spread[:, :, k]], axis=2)
        return ahead, spread
