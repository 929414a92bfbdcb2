"""The learned scorer: derived signals in, how atypical each PMU is by what the network had not expected out.

In: blocks of derived signals. Out: two scores on the ticks' axis, one of single frames and one of the last second, and
what was expected of every reading. The predictor is `models`'; its deviations are whitened, learned and turned into
-ln p by the very calibration of the quadratic scorer, so that both stand on one scale. It makes no prediction itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from baselines import calibration
from baselines.calibration import Kind, LayerState, Scores, Status
from baselines.compression import Contributions, Reference
from baselines.stream_axis import join_streams, take_streams
from models import predictor
from models.artifact import identity, open_artifact, weights_of
from models.engines import ArrayEngine, Engine
from models.layout import place
from models.predictor import Forecast, Predictor
from models.spec import Spec
from streams.channels import ChannelTable

BUNDLED = Path(predictor.__file__).parent / "bundled"
"""The model that comes with the program."""

AHEAD = ("next", "half_second", "two_seconds")
"""How far ahead a reading was predicted, in the words of an explanation."""
FRAME = "sequence"
SECOND = "sequence_1s"
NAMES = (FRAME, SECOND)
LAYERS = len(NAMES)
"""Single frames, the last second."""
FLOOR = 0.5
"""Share of a PMU's predicted readings that must be there to be scored."""


@dataclass(frozen=True)
class Model:
    """A network, ready to predict.

    Attributes
    ----------
    identity
        Tells it from every other; two models of one identity are the same.
    spec
        What it was made for.
    engine
        What runs it.
    """

    identity: str
    spec: Spec
    engine: Engine

    def __repr__(self) -> str:
        """Name it by what it is, not by where it lies in memory: it stands in what a snapshot was made under."""
        return f"Model({self.identity})"

    def __eq__(self, other: object) -> bool:
        """Compare by identity."""
        return isinstance(other, Model) and other.identity == self.identity

    def __hash__(self) -> int:
        """Follow `__eq__`."""
        return hash(self.identity)


def load_model(path: Path | None = None, threads: int = 1) -> Model:
    """Open a trained model, checked, and make it ready.

    Parameters
    ----------
    path
        Directory of the artifact; the bundled one where None.
    threads
        Of the engine.

    Returns
    -------
    Model
        An `ArtifactError` says why it is refused.
    """
    artifact = open_artifact(path or BUNDLED)
    return Model(identity(artifact), artifact.spec(), ArrayEngine(weights_of(artifact), threads=threads))


@dataclass(frozen=True, slots=True)
class State:
    """What is remembered between blocks; plain arrays, PMUs first.

    Attributes
    ----------
    predictor
        The predictor's own.
    recent
        `(S, H, C, K)` float32: deviations of the newest frames, as many as a tick has.
    said
        `(S, H, 5)` float64: of those frames -ln p, atypicality, squared distance, coverage and pattern.
    sums, counts
        `(S, N, C, K + 1)` float32 and `(S, N, C, K)` int32: sums of the deviations of the last second's ticks, and of
        the squares of the first; and of how many frames.
    layers
        What is typical: of single frames, of the last second.
    """

    predictor: predictor.State
    recent: NDArray[np.float32]
    said: NDArray[np.float64]
    sums: NDArray[np.float32]
    counts: NDArray[np.int32]
    layers: tuple[LayerState, LayerState]


class SequenceScorer:
    """Scores the derived signals of one channel table by what a network expected.

    Parameters
    ----------
    model
        The network.
    table
        Of the derived signals.
    hop
        Frames a tick.
    learn_s
        Seconds from which the references are learned.
    """

    def __init__(self, model: Model, table: ChannelTable, hop: int, learn_s: float) -> None:
        spec = model.spec
        self.model = model
        self.table = table
        self.hop = hop
        self.ticks = max(1, round(spec.rate_hz / hop))
        self.second = self.ticks * hop
        layout = place(
            spec.slots, [[c.quantity for c in p.channels] for p in table.pmus], [p.source for p in table.pmus]
        )
        self.predictor = Predictor(spec, layout, model.engine)
        self.predicted = layout.predicted
        needed = max(50, math.ceil(learn_s * spec.rate_hz / hop))
        horizons = len(spec.horizons)
        # A second's mean of what was predicted two seconds before hangs together for three.
        self.kinds = (
            Kind(FRAME, spec.rate_hz, hop, hop, self.ticks, needed, FLOOR, (False,) * horizons),
            Kind(SECOND, spec.rate_hz, hop, hop, 3 * self.ticks, needed, FLOOR, (False,) * horizons + (True,)),
        )
        self.descriptors = (AHEAD[:horizons], (*AHEAD[:horizons], "next_spread"))
        self.windows_s = (hop / spec.rate_hz, self.second / spec.rate_hz)
        farthest_s = (spec.horizons[-1] + 2 * hop) / spec.rate_hz
        self.echoes_s = (farthest_s, farthest_s + self.windows_s[1])

    def initial(self, references: Mapping[str, Reference] | None = None) -> State:
        """Begin with nothing seen.

        Parameters
        ----------
        references
            Learned before, by the name of the layer, for these PMUs in this order; what is not there is learned.

        Returns
        -------
        State
            For the first `step`.
        """
        streams, channels = self.table.present.shape
        known = references or {}
        first, second = (
            calibration.initial(kind, streams, channels * len(names), known.get(kind.name))
            for kind, names in zip(self.kinds, self.descriptors, strict=True)
        )
        horizons = len(self.model.spec.horizons)
        return State(
            predictor=self.predictor.initial(),
            recent=np.full((streams, self.hop, channels, horizons), np.nan, np.float32),
            said=np.full((streams, self.hop, 5), np.nan),
            sums=np.zeros((streams, self.ticks, channels, horizons + 1), np.float32),
            counts=np.zeros((streams, self.ticks, channels, horizons), np.int32),
            layers=(first, second),
        )

    def carry(self, old: SequenceScorer, state: State, where: NDArray[np.intp]) -> State:
        """Go on under another table: PMUs that stay keep what they remember, the others begin.

        Parameters
        ----------
        old
            What scored until now.
        state
            Its state.
        where
            `(S,)`: where each PMU of a table as wide stands among those of this table and then the old ones.

        Returns
        -------
        State
            For the first `step` under this table.
        """
        fresh = self.initial()
        if old.model != self.model:
            return fresh
        views, before = (s.predictor.layout.channel.shape[1] for s in (self, old))
        if views != before:  # what is typical stays; the predictor begins anew
            return replace(fresh, layers=take_streams(join_streams([fresh.layers, state.layers]), where))
        return take_streams(join_streams([fresh, state]), where)

    def step(
        self, state: State, slots: NDArray[np.int64], values: NDArray[np.float32], good: NDArray[np.bool_]
    ) -> tuple[State, tuple[Scores, Scores], Forecast]:
        """Score the next block.

        Parameters
        ----------
        state
            Where the last step ended.
        slots
            `(T,)` places on the reporting grid, one after the other.
        values
            `(T, S, C)` derived signals.
        good
            `(T, S, C)`.

        Returns
        -------
        tuple[State, tuple[Scores, Scores], Forecast]
            The new state; the scores of whole ticks, of the worst frame of each and of the second before its end, also
            of those among frames that did not come, as far as they look back; and what was expected of the block.
        """
        slots, values, good, hole = self._filled(state, slots, values, good)
        remembered, forecast = self.predictor.step(state.predictor, slots, values, good)
        count, streams, channels, horizons = forecast.deviation.shape
        first, scored = calibration.step(
            self.kinds[0],
            state.layers[0],
            slots=slots,
            vectors=forecast.deviation.reshape(count, streams, channels * horizons),
            coverage=self._coverage(~np.isnan(forecast.deviation[..., 0])),
        )
        recent = np.concatenate([state.recent.swapaxes(0, 1), forecast.deviation])
        words = (scored.minus_ln_p, scored.atypicality, scored.distance, scored.coverage, scored.pattern)
        said = np.concatenate([state.said.swapaxes(0, 1), np.stack(words, axis=2)])
        due = np.flatnonzero(slots % self.hop == 0)
        end = int(due[-1]) + self.hop + 1 if len(due) else len(recent)
        whole = slice(end - len(due) * self.hop, end)
        parts = (len(due), self.hop, streams)
        ticks, told = recent[whole].reshape(*parts, channels, horizons), said[whole].reshape(*parts, 5)
        worst = self._worst(scored, due, ticks, told)
        sums, counts = _summed(ticks)
        sums = np.concatenate([state.sums.swapaxes(0, 1), sums])
        counts = np.concatenate([state.counts.swapaxes(0, 1), counts])
        vectors, covered = self._seconds(sums, counts, len(due))
        second, seconds = calibration.step(
            self.kinds[1],
            state.layers[1],
            slots=slots[due],
            vectors=vectors.reshape(len(due), streams, channels * (horizons + 1)),
            coverage=self._coverage(covered),
        )
        new = State(
            remembered,
            np.ascontiguousarray(recent[-self.hop :].swapaxes(0, 1)),
            np.ascontiguousarray(said[-self.hop :].swapaxes(0, 1)),
            np.ascontiguousarray(sums[-self.ticks :].swapaxes(0, 1)),
            np.ascontiguousarray(counts[-self.ticks :].swapaxes(0, 1)),
            (first, second),
        )
        return new, (worst, seconds), _without(forecast, hole)

    def explain(self, state: State, layer: int, vector: NDArray[np.float32], stream: int) -> Contributions:
        """Say what each column added to a score.

        Parameters
        ----------
        state
            After the step.
        layer
            0 for single frames, 1 for the last second.
        vector
            `(D,)` from the scores.
        stream
            Place on the stream axis; it must have learned.

        Returns
        -------
        Contributions
            By column: channel by channel, in the order of `descriptors`.
        """
        return calibration.explain(self.kinds[layer], state.layers[layer], vector, stream)

    def settle(self, state: State) -> State:
        """Let the streams learn at once that wait for their turn: no more frames will come.

        Parameters
        ----------
        state
            After the last step.

        Returns
        -------
        State
            In which no stream waits.
        """
        first, second = (calibration.settle(k, layer) for k, layer in zip(self.kinds, state.layers, strict=True))
        return replace(state, layers=(first, second))

    def _coverage(self, there: NDArray[np.generic]) -> NDArray[np.float32]:
        """`(K, S)`: mean over the predicted channels of `(K, S, C)` shares that are there."""
        predicted = np.maximum(self.predicted.sum(1), 1).astype(np.float32)
        share: NDArray[np.float32] = there.sum(axis=2, dtype=np.float32) / predicted
        return share

    def _filled(
        self, state: State, slots: NDArray[np.int64], values: NDArray[np.float32], good: NDArray[np.bool_]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.bool_], int]:
        """Put frames that did not come before the block, as missing, and say how many.

        Of a long hole only the ticks that still look back beyond it, and the beginning of the tick that the block ends.
        """
        last = int(state.predictor.slot.max(initial=predictor.NEVER))
        begin = int(slots[0])
        if last == predictor.NEVER or begin == last + 1:
            return slots, values, good, 0
        hole = np.arange(last + 1, begin)
        behind = -(-(last + self.second) // self.hop) * self.hop
        hole = hole[(hole <= behind) | (hole > (begin - 1) // self.hop * self.hop)]
        shape = (len(hole), *values.shape[1:])
        return (
            np.concatenate([hole, slots]),
            np.concatenate([np.full(shape, np.nan, np.float32), values]),
            np.concatenate([np.zeros(shape, bool), good]),
            len(hole),
        )

    def _worst(
        self, scored: Scores, due: NDArray[np.intp], ticks: NDArray[np.float32], told: NDArray[np.float64]
    ) -> Scores:
        """Take each tick's worst frame: among so many, by Bonferroni, it is that much less improbable."""
        surprise = told[..., 0]
        heard = ~np.isnan(surprise).all(axis=1)
        at = np.where(heard, np.where(np.isnan(surprise), -np.inf, surprise).argmax(axis=1), self.hop - 1)
        tick, stream = np.ix_(range(len(due)), range(heard.shape[1]))
        frame = told[tick, at, stream]
        score = np.maximum(frame[..., 0] - math.log(self.hop), 0)
        return Scores(
            time_ns=scored.time_ns[due],
            minus_ln_p=score,
            atypicality=score + (frame[..., 1] - frame[..., 0]),
            distance=frame[..., 2],
            coverage=frame[..., 3].astype(np.float32),
            status=np.where(heard, Status.SCORED, scored.status[due]).astype(np.uint8),
            missing_s=scored.missing_s[due],
            pattern=frame[..., 4].astype(np.int8),
            vectors=ticks[tick, at, stream].reshape(*heard.shape, ticks.shape[3] * ticks.shape[4]),
        )

    def _seconds(
        self, sums: NDArray[np.float32], counts: NDArray[np.int32], due: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Sum up the second before each of the newest `due` ticks.

        `(K, S, C, K + 1)` mean of each horizon and spread of the first; `(K, S, C)` share that is there.
        """
        begin = len(sums) - due - self.ticks + 1
        total, count = sums[begin : begin + due].copy(), counts[begin : begin + due].copy()
        for i in range(begin + 1, begin + self.ticks):
            total += sums[i : i + due]
            count += counts[i : i + due]
        count = np.concatenate([count, count[..., :1]], axis=3)
        total /= np.maximum(count, 1)
        np.sqrt(total[..., -1], out=total[..., -1])
        total[count < FLOOR * self.second] = np.nan
        return total, (count[..., 0] / self.second).astype(np.float32)


def _summed(ticks: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Sum over the frames of ticks `(K, H, S, C, K)`: each deviation, and the square of the first; and how many."""
    there = ~np.isnan(ticks)
    value = np.where(there, ticks, np.float32(0))
    square = (value[..., :1] ** 2).sum(axis=1)
    return np.concatenate([value.sum(axis=1), square], axis=3), there.sum(axis=1, dtype=np.int32)


def _without(forecast: Forecast, frames: int) -> Forecast:
    """Leave the first frames out."""
    return Forecast(**{name: getattr(forecast, name)[frames:] for name in Forecast.__slots__}) if frames else forecast
