"""The stepping predictor: blocks of readings in, what was expected of them and how far off it was out.

In: consecutive frames `(T, S, C')` and which readings are good. Out: for every reading and horizon the expected value,
its spread and the deviation in spreads; and what is expected next. The network steps once a frame for all PMUs, each
channel corrects it by what it has seen of itself; a missing reading is bridged by its prediction, never fed. It calls
nothing atypical: whoever calibrates does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.adaptation import Adaptation, Adapted, each
from models.engines import Engine
from models.errors import ShapeError
from models.features import Features, Regions, Running, mapped, scales, wrap
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
        `(S, V, ...)` float32: the recurrent state; where a view has not begun, what it begins with.
    frames
        `(S, V)` int32: frames since the view began, no more than its warm-up has; 0 before, and after a long gap.
    pending
        For each horizon of h frames, h arrays `(S, V, C, 2)` float32: expected value and spread of the frames to come,
        the one for slot t in place t % h; NaN where nothing was predicted.
    adapted
        What the channels' corrections remember; its arrays `(S, V, C, ...)`.
    """

    slot: NDArray[np.int64]
    running: Running
    network: NDArray[np.float32]
    frames: NDArray[np.int32]
    pending: tuple[tuple[NDArray[np.float32], ...], ...]
    adapted: Adapted


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
        `(T, S)` bool: some view of the PMU has warmed up.
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
    adapts
        Whether each channel corrects the network by what it has seen of itself.
    """

    def __init__(self, spec: Spec, layout: Layout, engine: Engine, *, adapts: bool = True) -> None:
        self.spec = spec
        self.layout = layout
        self.engine = engine
        self.features = Features(spec, Regions(layout.stream_region))
        self.adapts = adapts
        self.adaptation = Adaptation(spec)
        self.warm = round(spec.warm_s * spec.rate_hz)
        self.first = engine.to_numpy(engine.initial(1))[0]

    def initial(self) -> State:
        """Begin with nothing seen.

        Returns
        -------
        State
            For the first `step`.
        """
        pmus, views, c = self.layout.channel.shape
        blank = Features(self.spec, Regions(np.full(pmus * views, -1))).initial()
        return State(
            slot=np.full(pmus, NEVER),
            running=mapped(lambda x: x.reshape(pmus, views, *x.shape[1:]), blank),
            network=np.broadcast_to(self.first, (pmus, views, *self.first.shape)).copy(),
            frames=np.zeros((pmus, views), np.int32),
            pending=tuple((np.full((pmus, views, c, 2), np.nan, np.float32),) * h for h in self.spec.horizons),
            adapted=each(lambda x: x.reshape(pmus, views, *x.shape[1:]), self.adaptation.initial(pmus * views)),
        )

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
        pmus = len(self.layout.channel)
        if values.shape != (len(slots), pmus, self.layout.width) or good.shape != values.shape:
            raise ShapeError(
                f"a block of {values.shape} with quality {good.shape} and {len(slots)} slots does not fit "
                f"{pmus} PMUs of {self.layout.width} channels"
            )
        readings = self.layout.gather(np.where(good, values, np.float32(np.nan)), np.nan)
        readings[~np.isfinite(readings)] = np.nan
        run = _Run(self, state)
        shape = (*readings.shape, len(self.spec.horizons))
        expected, spread, ahead, beyond = (np.empty(shape, np.float32) for _ in range(4))
        warm = np.empty(readings.shape[:2], bool)
        for t, slot in enumerate(slots.tolist()):
            run.pass_over(slot)
            expected[t], spread[t] = run.expected(slot)
            ahead[t], beyond[t] = run.take(slot, readings[t])
            warm[t] = run.frames >= self.warm
        deviation = readings[:, :, :, None] - expected
        wrap(deviation.reshape(-1, *shape[2:]), self.features.turn)
        deviation /= spread
        deviation[~warm] = np.nan
        scatter = self.layout.scatter
        return run.state(state), Forecast(
            slots=slots,
            expected=scatter(expected),
            spread=scatter(spread),
            deviation=scatter(deviation),
            warm=self._warm(warm),
            ahead=scatter(ahead),
            ahead_spread=scatter(beyond),
        )

    def _warm(self, streams: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """`(T, S)` of `(T, N)`."""
        pmus, views, _ = self.layout.channel.shape
        warm = np.zeros((len(streams), pmus * views), bool)
        warm[:, self.layout.views] = streams
        return np.asarray(warm.reshape(len(streams), pmus, views).any(2))


class _Run:
    """The frames of one block, one after the other. Arrays are replaced, never written to: they may be the state's."""

    def __init__(self, predictor: Predictor, state: State) -> None:
        self.of = predictor
        self.shape = predictor.layout.channel.shape[:2]
        self.views = predictor.layout.views
        self.every = len(self.views) == state.frames.size
        self.slot = int(state.slot.max(initial=NEVER))
        self.running = mapped(self.streams, state.running)
        self.network = predictor.engine.from_numpy(self.streams(state.network))
        self.frames = self.streams(state.frames)
        self.pending = [list(p) for p in state.pending]
        self.adapted = each(self.streams, state.adapted)

    def streams(self, whole: NDArray[Any]) -> NDArray[Any]:
        """From `(S, V, ...)` to `(N, ...)`."""
        flat = whole.reshape(-1, *whole.shape[2:])
        return flat if self.every else flat[self.views]

    def whole(self, streams: NDArray[Any], elsewhere: NDArray[Any]) -> NDArray[Any]:
        """From `(N, ...)` to `(S, V, ...)`; `elsewhere` holds what stands where there is no channel."""
        if self.every:
            return streams.reshape(*self.shape, *streams.shape[1:])
        out = np.array(np.broadcast_to(elsewhere, (*self.shape, *streams.shape[1:])))
        out.reshape(-1, *streams.shape[1:])[self.views] = streams
        return out

    def state(self, old: State) -> State:
        """Take down what is remembered now."""
        network, resting = self.of.engine.to_numpy(self.network), self.frames == 0
        if resting.any():
            network = np.array(network)
            network[resting] = self.of.first
        return State(
            slot=np.full_like(old.slot, self.slot),
            running=mapped(self.whole, self.running, old.running),
            network=self.whole(network, old.network),
            frames=self.whole(self.frames, old.frames),
            pending=tuple(tuple(p) for p in self.pending),
            adapted=each(self.whole, self.adapted, old.adapted),
        )

    def pass_over(self, slot: int) -> None:
        """Step through frames that did not come; what follows the first of them that cannot be bridged is known."""
        if self.slot == NEVER:
            return
        if slot <= self.slot:
            raise ShapeError(f"slot {slot} is not after slot {self.slot}: frames come in order, each once")
        nothing = np.full(self.running.gap.shape, np.nan, np.float32)
        for between in range(self.slot + 1, min(slot, self.slot + self.of.features.bridge + 2)):
            self.take(between, nothing)
        if self.slot + 1 < slot and self.of.adapts:
            self.adapted = self.of.adaptation.forget(self.adapted, self.slot + 1, slot)
        for pending, h in zip(self.pending, self.of.spec.horizons, strict=True):
            for between in range(self.slot + 1, min(slot, self.slot + 1 + h)):
                pending[between % h] = np.full_like(pending[0], np.nan)

    def expected(self, slot: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """`(N, C, K)` twice: what was predicted of this slot."""
        places = zip(self.pending, self.of.spec.horizons, strict=True)
        both = np.stack([self.streams(pending[slot % h]) for pending, h in places], axis=2)
        return both[..., 0], both[..., 1]

    def take(self, slot: int, readings: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Take a frame in, NaN where nothing good came; predict what follows: `(N, C, K)` twice."""
        of, good = self.of, ~np.isnan(readings)
        begins = (self.frames == 0) & good.any(1)
        if begins.any():
            network = np.array(of.engine.to_numpy(self.network))
            network[begins] = of.first
            self.network = of.engine.from_numpy(network)
        said, width = self.expected(slot)
        if of.adapts:
            away = readings[:, :, None] - said
            wrap(away, of.features.turn)
            self.adapted = of.adaptation.learn(self.adapted, slot, away, width)
        fill = said[:, :, 0]
        self.running, inputs = of.features.step(self.running, readings, good, fill)
        raw, self.network = of.engine.step(inputs, self.network)
        self.slot, known = slot, of.features.begun(self.running)
        # A channel gone for long has no level any more; a view without any begins anew.
        self.frames = np.where(known.any(1), np.minimum(self.frames + np.int32(1), np.int32(of.warm)), np.int32(0))
        unit = scales(self.running)
        raw = raw.reshape(len(raw), 2, *unit.shape[1:])
        terms, corrected, factor = of.adaptation.apply(self.adapted, raw[:, 0], inputs)
        mean = self.running.last[:, :, None] + corrected * unit
        wrap(mean, of.features.turn)
        spread = np.exp(np.clip(raw[:, 1], NARROWEST, WIDEST)) * unit * factor
        mean[~known], spread[~known], unit[~known] = np.nan, np.nan, np.nan
        if of.adapts:
            self.adapted = of.adaptation.remember(self.adapted, slot, terms, corrected, unit)
        for k, (pending, h) in enumerate(zip(self.pending, of.spec.horizons, strict=True)):
            both = np.stack([mean[:, :, k], spread[:, :, k]], axis=2)
            pending[slot % h] = self.whole(both, np.full((1, 1, 1, 1), np.nan, np.float32))
        return mean, spread
