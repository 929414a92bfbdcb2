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
from baselines.calibration import Kind, LayerState, Scores
from baselines.compression import Contributions, Reference
from baselines.stream_axis import join_streams, take_streams
from models import predictor
from models.artifact import identity, open_artifact, weights_of
from models.engines import ArrayEngine, Engine
from models.layout import place
from models.predictor import Forecast, Predictor
from models.spec import Spec
from streams.align import carried
from streams.channels import ChannelTable

BUNDLED = Path(predictor.__file__).parent / "bundled"
"""The model that comes with the program."""

AHEAD = ("next", "half_second", "two_seconds")
"""How far ahead a reading was predicted, in the words of an explanation."""
FRAME = "sequence"
SECOND = "sequence 1s"
LAYERS = 2
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
        `(S, R, C, K)` float32: deviations of the frames of the last second.
    frame
        `(S, R)` -ln p of those frames.
    layers
        What is typical: of single frames, of the last second.
    """

    predictor: predictor.State
    recent: NDArray[np.float32]
    frame: NDArray[np.float64]
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
        self.second = max(hop, round(spec.rate_hz / hop) * hop)
        layout = place(
            spec.slots, [[c.quantity for c in p.channels] for p in table.pmus], [p.source for p in table.pmus]
        )
        self.predictor = Predictor(spec, layout, model.engine)
        self.predicted = layout.predicted
        needed = max(50, math.ceil(learn_s * spec.rate_hz / hop))
        overlap = math.ceil(self.second / hop)
        horizons = len(spec.horizons)
        self.kinds = (
            Kind(FRAME, spec.rate_hz, hop, hop, overlap, needed, FLOOR, (False,) * horizons),
            Kind(SECOND, spec.rate_hz, hop, hop, 2 * overlap, needed, FLOOR, (False,) * horizons + (True,)),
        )
        self.descriptors = (AHEAD[:horizons], (*AHEAD[:horizons], "next_spread"))
        self.windows_s = (hop / spec.rate_hz, self.second / spec.rate_hz)

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
        shape = (streams, self.second, channels, len(self.model.spec.horizons))
        return State(
            self.predictor.initial(),
            np.full(shape, np.nan, np.float32),
            np.full(shape[:2], np.nan),
            (first, second),
        )

    def carry(self, old: SequenceScorer, state: State) -> State:
        """Go on under another table: PMUs that stay keep what they remember, the others begin.

        Parameters
        ----------
        old
            What scored until now.
        state
            Its state.

        Returns
        -------
        State
            For the first `step` under this table.
        """
        fresh = self.initial()
        views, before = (s.predictor.layout.channel.shape[1] for s in (self, old))
        if old.table.width != self.table.width or old.model != self.model or views != before:
            return fresh
        where = carried(old.table, self.table)
        count = len(self.table.pmus)
        return take_streams(join_streams([fresh, state]), np.where(where < 0, np.arange(count), where + count))

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
            The new state; the scores of whole ticks, of the worst frame of each and of the second before its end; and
            what was expected.
        """
        last = int(state.predictor.slot.max(initial=predictor.NEVER))
        remembered, forecast = self.predictor.step(state.predictor, slots, values, good)
        count, streams, channels, _ = forecast.deviation.shape
        there = (good & self.predicted).sum(2) / np.maximum(self.predicted.sum(1), 1)
        first, scored = calibration.step(
            self.kinds[0],
            state.layers[0],
            slots=slots,
            vectors=forecast.deviation.reshape(count, streams, channels * forecast.deviation.shape[3]),
            coverage=np.where(forecast.warm, there, 0).astype(np.float32),
        )
        # Frames that did not come between the blocks stand in the memory as such.
        hole = min(max(int(slots[0]) - last - 1, 0), self.second) if last != predictor.NEVER else 0
        shape = (hole, streams, channels, forecast.deviation.shape[3])
        recent = np.concatenate([state.recent.swapaxes(0, 1), np.full(shape, np.nan, np.float32), forecast.deviation])
        frame = np.concatenate([state.frame.T, np.full((hole, streams), np.nan), scored.minus_ln_p])
        due = np.flatnonzero(slots % self.hop == 0)
        ends = due + self.second + hole
        worst = self._worst(scored, due, frame, recent, ends)
        parts = [_summary(recent[end - self.second + 1 : end + 1]) for end in ends.tolist()]
        vectors = (
            np.stack([v for v, _ in parts])
            if parts
            else np.empty((0, streams, channels, len(self.descriptors[1])), np.float32)
        )
        shares = np.stack([share for _, share in parts]) if parts else np.empty((0, streams, channels), np.float32)
        covered = np.where(self.predicted, shares, 0).sum(2) / np.maximum(self.predicted.sum(1), 1)
        second, seconds = calibration.step(
            self.kinds[1],
            state.layers[1],
            slots=slots[due],
            vectors=vectors.reshape(len(due), streams, channels * vectors.shape[3]),
            coverage=covered.astype(np.float32),
        )
        new = State(
            remembered,
            np.ascontiguousarray(recent[len(recent) - self.second :].swapaxes(0, 1)),
            np.ascontiguousarray(frame[len(frame) - self.second :].T),
            (first, second),
        )
        return new, (worst, seconds), forecast

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

    def _worst(
        self,
        scored: Scores,
        due: NDArray[np.intp],
        frame: NDArray[np.float64],
        recent: NDArray[np.float32],
        ends: NDArray[np.intp],
    ) -> Scores:
        """Take each tick's worst frame: among so many, by Bonferroni, it is that much less improbable."""
        rows = ends[:, None] - np.arange(self.hop - 1, -1, -1)
        inside = frame[rows]
        heard = ~np.isnan(inside)
        at = np.take_along_axis(rows, np.where(heard, inside, -np.inf).argmax(axis=1), axis=1)
        stream = np.arange(frame.shape[1])
        score = np.where(heard.any(1), frame[at, stream] - math.log(self.hop), np.nan)
        return Scores(
            time_ns=scored.time_ns[due],
            minus_ln_p=np.maximum(score, 0.0),
            atypicality=score,
            distance=scored.distance[due],
            coverage=scored.coverage[due],
            status=scored.status[due],
            missing_s=scored.missing_s[due],
            pattern=scored.pattern[due],
            vectors=recent[at, stream].reshape(len(ends), len(stream), recent.shape[2] * recent.shape[3]),
        )


def _summary(deviation: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Sum up a second: `(S, C, K + 1)` mean of each horizon and spread of the first; `(S, C)` share that is there."""
    there = ~np.isnan(deviation)
    count = there.sum(axis=0)
    value = np.where(there, deviation, np.float32(0))
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = value.sum(axis=0) / count
        spread = np.sqrt((value[..., :1] ** 2).sum(axis=0) / count[..., :1])
    out = np.concatenate([mean, spread], axis=2)
    few = np.concatenate([count, count[..., :1]], axis=2) < FLOOR * len(deviation)
    return np.where(few, np.float32(np.nan), out).astype(np.float32), (count[..., 0] / len(deviation)).astype(
        np.float32
    )
