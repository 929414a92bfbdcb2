"""Derived signals in, ticks out: every scorer's words on one time axis, for each PMU and for the grid.

A tick is a fifth of a second or so. In: blocks of derived signals, cut anywhere. Out: whole ticks with the scorers'
-ln p, the signals they cover and which PMUs had refused frames. It adapts the scorers, the quadratic fit's and the
network's, which know no channel's name, to the channel table.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from baselines import atypicality
from baselines.calibration import Scores
from baselines.compression import Contributions, Reference
from baselines.reporting_grid import slots_of, times_of
from baselines.sentences import WORDS, describe_pattern, strongest
from baselines.stream_axis import join_streams, take_streams
from gridsense import sequence
from gridsense.detection import Explain, Ticks, Track, channel_words
from gridsense.events import Contribution
from models.predictor import Forecast
from streams.align import carried
from streams.block import Block
from streams.channels import ChannelTable, Quantity

TURNING = (Quantity.VOLTAGE_ANGLE, Quantity.CURRENT_ANGLE)
TOP = 5
"""Terms of an explanation."""
PERIODS = 24
"""How many of its periods a summary is learned from: four minutes for ten seconds, 24 minutes for a minute."""
LAYERS = 3
"""The newest fit, ten seconds, a minute."""
FAST = atypicality.FAST.name
LEADS = {FAST: "quadratic", sequence.FRAME: "sequence"}
"""The fastest track of each scorer, which is what screens show of it; and the scorer."""


def settings(rate_hz: float, learn_s: float) -> atypicality.Settings:
    """Choose the quadratic scorer's settings.

    Parameters
    ----------
    rate_hz
        Reporting rate.
    learn_s
        Seconds from which the newest fit's reference is learned; the summaries want more, whatever this is.

    Returns
    -------
    atypicality.Settings
        With `LAYERS` layers, fastest first. A window with more than a tenth of its frames missing is refused: a fit on
        fewer varies more than those it is compared with.
    """
    summaries = (atypicality.TEN_SECONDS, atypicality.MINUTE)
    layers = (
        replace(atypicality.FAST, learn_s=learn_s),
        *(replace(layer, learn_s=PERIODS * layer.period_s) for layer in summaries),
    )
    return atypicality.Settings(rate_hz, layers, floor=0.9)


@dataclass(frozen=True, slots=True)
class State:
    """What is remembered between blocks.

    Attributes
    ----------
    slot
        Place of the last frame on the reporting grid; before the first, below every other.
    quadratic, sequence
        The scorers' own; None where a scorer is not used.
    signals, codes
        `(H', S, C)` and `(H', S)`: frames of the tick that has begun.
    """

    slot: int
    quadratic: atypicality.State | None
    sequence: sequence.State | None
    signals: NDArray[np.float32]
    codes: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Scored:
    """Whole ticks and what the scorers said at them.

    Attributes
    ----------
    ticks
        For the detector.
    layers
        Each track's own words, in their order.
    forecast
        What the network expected of the block's frames; None where it is not used.
    """

    ticks: Ticks
    layers: tuple[Scores, ...]
    forecast: Forecast | None


class Scorers:
    """Scores the derived signals of one channel table.

    Parameters
    ----------
    settings
        Of the quadratic scorer, and of the ticks.
    table
        Of the derived signals.
    quadratic
        Whether the quadratic fit scores.
    model
        The network that scores beside it, or instead; None for none. It must have been made for this rate.
    learn_s
        Seconds from which the network's references are learned.
    """

    def __init__(
        self,
        settings: atypicality.Settings,
        table: ChannelTable,
        *,
        quadratic: bool = True,
        model: sequence.Model | None = None,
        learn_s: float = 60.0,
    ) -> None:
        self.settings = settings
        self.table = table
        self.quadratic = quadratic
        self.model = model.identity if model else ""
        self.sequence = sequence.SequenceScorer(model, table, settings.hop, learn_s) if model else None
        self.tick_ns = round(settings.hop / settings.rate_hz * 1e9)
        layers = settings.layers if quadratic else ()
        self.names = tuple(layer.name for layer in layers)
        self.window_s = tuple(layer.period_s or settings.points / settings.rate_hz for layer in layers)
        self.always = tuple(not layer.period_s for layer in layers)
        """Which tracks speak at every tick."""
        self.echoes_s = (0.0,) * len(layers)
        if self.sequence:
            self.names += tuple(kind.name for kind in self.sequence.kinds)
            self.window_s += self.sequence.windows_s
            self.echoes_s += self.sequence.echoes_s
            self.always += (True,) * len(self.sequence.kinds)

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
        turn = np.where(self.table.where(*TURNING), np.float32(360), np.float32(0))
        shape, known = self.table.present.shape, references or {}
        quadratic, learned = None, None
        if self.quadratic:
            given = tuple(known[layer.name] for layer in self.settings.layers if layer.name in known)
            whole = given if len(given) == len(self.settings.layers) else None
            quadratic = atypicality.initial(self.settings, self.table.present, turn, whole)
        if self.sequence:
            learned = self.sequence.initial(known)
        before = int(np.iinfo(np.int64).min)
        return State(before, quadratic, learned, np.empty((0, *shape), np.float32), np.empty((0, shape[0]), np.uint8))

    def carry(self, old: Scorers, state: State) -> State:
        """Go on under another table: PMUs that stay keep what they have learned, the others learn.

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
        if old.table.width != self.table.width or old.settings != self.settings:
            return fresh
        place = carried(old.table, self.table)
        count = len(self.table.pmus)
        where = np.where(place < 0, np.arange(count), place + count)
        quadratic, learned = fresh.quadratic, fresh.sequence
        if quadratic and state.quadratic:
            quadratic = take_streams(join_streams([quadratic, state.quadratic]), where)
        if self.sequence and old.sequence and state.sequence:
            learned = self.sequence.carry(old.sequence, state.sequence, where)
        return replace(fresh, slot=state.slot, quadratic=quadratic, sequence=learned)

    def step(self, state: State, block: Block, codes: NDArray[np.uint8]) -> tuple[State, Scored]:
        """Score the next block.

        Parameters
        ----------
        state
            Where the last step ended.
        block
            Derived signals, at least one frame, consecutive on the grid, after those before.
        codes
            `(T, S)`: the `Reason` for which a frame of a PMU is refused, else 0.

        Returns
        -------
        tuple[State, Scored]
            The new state, and the ticks that are whole now.
        """
        hop, good = self.settings.hop, block.good
        slots = slots_of(self.settings, block.time_ns)
        quadratic, layers, learned, forecast = state.quadratic, tuple[Scores, ...](), state.sequence, None
        if quadratic:
            quadratic, layers = atypicality.step(self.settings, quadratic, block.time_ns, block.values, good)
        if self.sequence and learned:
            learned, said, forecast = self.sequence.step(learned, slots, block.values, good)
            layers += said
        time_ns = self._ticks(state.slot, slots)
        fresh = np.where(good, block.values, np.float32(np.nan))
        # What the scorers count as missing, before the first block or in a gap, is filled up: every tick is whole.
        ticks = len(time_ns)
        whole = ticks * hop
        begun = int(slots[-1]) % hop
        absent = whole + begun - len(state.signals) - len(fresh)
        pad = np.full((absent, *fresh.shape[1:]), np.nan, np.float32)
        signals = np.concatenate([state.signals, pad, fresh])
        all_codes = np.concatenate([state.codes, np.zeros((absent, codes.shape[1]), np.uint8), codes])
        frames = signals[:whole].reshape(ticks, hop, *signals.shape[1:])
        refused = (all_codes[:whole] != 0).reshape(ticks, hop, all_codes.shape[1]).all(axis=1)
        tracks = tuple(self._track(i, scores, time_ns) for i, scores in enumerate(layers))
        scored = Scored(Ticks(time_ns, tracks, frames, refused), layers, forecast)
        return State(int(slots[-1]), quadratic, learned, signals[whole:], all_codes[whole:]), scored

    def _ticks(self, last: int, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """`(K,)`: times at which ticks ended, those among frames that did not come too, as far as anybody remembers."""
        memory = self.settings.longest * self.settings.second + self.settings.points
        begin = max(last + 1, int(slots[0]) - memory) if last >= 0 else int(slots[0])
        hop = self.settings.hop
        return times_of(self.settings, np.arange(-(-begin // hop) * hop, int(slots[-1]) + 1, hop))

    def explain(self, state: State, scored: Scored) -> Explain:
        """Make the detector's way to ask for reasons.

        Parameters
        ----------
        state
            After the step.
        scored
            Of the step.

        Returns
        -------
        Explain
            For these ticks only.
        """

        def terms(scorer: str, tick: int, s: int) -> tuple[Contribution, ...]:
            i = self.names.index(scorer)
            scores = scored.layers[i]
            k = int(np.searchsorted(scores.time_ns, scored.ticks.time_ns[tick]))
            if k == len(scores.time_ns) or math.isnan(scores.minus_ln_p[k, s]):
                return ()
            found, descriptors = self._contributions(state, i, scores.vectors[k, s], s)
            pmu = self.table.pmus[s]
            out = []
            for column in strongest(found, TOP).tolist():
                channel = pmu.channels[column // len(descriptors)]
                descriptor = descriptors[column % len(descriptors)]
                out.append(
                    Contribution(
                        pmu.name,
                        channel_words(channel.name, channel.quantity),
                        WORDS[descriptor],
                        float(found.z[column]),
                    )
                )
            return tuple(out)

        return terms

    def _contributions(
        self, state: State, i: int, vector: NDArray[np.float32], stream: int
    ) -> tuple[Contributions, tuple[str, ...]]:
        """Ask the scorer of a track why; and name the columns of a channel."""
        first = len(self.settings.layers) if self.quadratic else 0
        if state.quadratic and i < first:
            descriptors = self.settings.descriptors(self.settings.layers[i])
            return atypicality.explain_score(self.settings, state.quadratic, i, vector, stream), descriptors
        assert self.sequence and state.sequence  # noqa: S101, PT018 (a track is one's or the other's)
        return (
            self.sequence.explain(state.sequence, i - first, vector, stream),
            self.sequence.descriptors[i - first],
        )

    def references(self, state: State) -> dict[str, Reference]:
        """Take out what has been learned.

        Parameters
        ----------
        state
            After the last step.

        Returns
        -------
        dict[str, Reference]
            By the name of the layer.
        """
        found: tuple[Reference, ...] = ()
        if state.quadratic:
            found = atypicality.references_of(atypicality.settle(self.settings, state.quadratic))
        if self.sequence and state.sequence:
            found += tuple(layer.reference for layer in self.sequence.settle(state.sequence).layers)
        return dict(zip(self.names, found, strict=True))

    def typical(self, state: State) -> dict[str, tuple[str, ...]]:
        """Put into words what is typical of each PMU, as the newest fit's reference has it; nothing without it.

        Parameters
        ----------
        state
            After learning.

        Returns
        -------
        dict[str, tuple[str, ...]]
            By PMU: a sentence for each typical pattern, the most frequent first; none while it learns.
        """
        if state.quadratic is None:
            return {}
        reference = state.quadratic.layers[0].reference
        descriptors = self.settings.descriptors(self.settings.layers[0])
        out = {}
        for s, pmu in enumerate(self.table.pmus):
            names: list[tuple[str, str, str]] = [(c.quantity, c.name, d) for c in pmu.channels for d in descriptors]
            names += [("", "", descriptors[0])] * (reference.used.shape[1] - len(names))
            patterns = np.flatnonzero(reference.frequencies[s] > 0).tolist() if reference.learned[s] else []
            out[pmu.name] = tuple(describe_pattern(reference, s, p, names) for p in patterns)
        return out

    def _track(self, i: int, scores: Scores, time_ns: NDArray[np.int64]) -> Track:
        """Put one layer on the ticks' axis; a track that speaks at every tick has nothing to say of those it missed."""
        score = np.full((len(time_ns), len(self.table.pmus)), np.nan)
        due = np.full(len(time_ns), self.always[i])
        at = np.searchsorted(time_ns, scores.time_ns)
        score[at], due[at] = scores.minus_ln_p, True
        return Track(self.names[i], self.window_s[i], due, score)
