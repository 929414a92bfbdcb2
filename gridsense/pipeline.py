"""Frames in, events out: the whole way, on one page. A newcomer starts here.

    frames of many sources ─► align ─► judge ─► derive ─► score ─► detect ─► events
                             streams.align   .quality   .derive   baselines   gridsense.detection

Live, embedded and backtest run this very code; only where frames come from and where events go differs. Every stage
is a pure function of its state and its input, so the same frames give the same events however they were cut.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from baselines.compression import Reference, blank_reference
from baselines.stream_axis import join_streams, take_streams
from gridsense import detection, outages, scoring, sequence
from gridsense.errors import InputError, UsageError
from gridsense.events import Event
from gridsense.freezing import Frozen, Packed, freeze, thaw
from gridsense.sequence import Model
from streams import align, derive, quality
from streams.block import Block, FrameBatch
from streams.channels import ChannelTable

log = logging.getLogger(__name__)

Scorer = Literal["quadratic", "sequence"]
SCORERS: tuple[Scorer, ...] = get_args(Scorer)


@dataclass(frozen=True, slots=True)
class Settings:
    """What a pipeline is told once.

    Attributes
    ----------
    source
        Name of what is watched: it stands in every event.
    learn_s
        Seconds from which the newest fit's reference is learned.
    detection
        Budget of false alarms, and times.
    align, quality
        How long to wait for whom; what counts as bad.
    persist_s
        How long samples must be refused to be an event.
    scorers
        What scores: ``quadratic``, ``sequence`` or both.
    model
        The network of the sequence scorer.
    """

    source: str = "grid"
    learn_s: float = 60.0
    detection: detection.Settings = field(default_factory=detection.Settings)
    align: align.AlignSettings = field(default_factory=align.AlignSettings)
    quality: quality.QualitySettings = field(default_factory=quality.QualitySettings)
    persist_s: float = 2.0
    scorers: tuple[Scorer, ...] = ("quadratic",)
    model: Model | None = None


@dataclass(frozen=True, slots=True)
class Learned:
    """What is typical of each PMU, by its name: for another pipeline to start with.

    Attributes
    ----------
    table
        The derived signals that were learned.
    references
        By the name of the layer, in the order of the table.
    model
        Identity of the network whose surprise was learned; empty where none was.
    """

    table: ChannelTable
    references: Mapping[str, Reference]
    model: str = ""

    @property
    def ready(self) -> bool:
        """Whether the fastest layer knows every PMU; slower ones, and the network's, may go on learning."""
        fast = next((name for name in (scoring.FAST, sequence.FRAME) if name in self.references), None)
        return fast is not None and bool(self.references[fast].learned.all())


@dataclass(frozen=True, slots=True)
class _Places:
    """Whose frames they are: each source's table in the order in which they came, and the reporting rate."""

    tables: dict[str, ChannelTable]
    rate_hz: float


@dataclass(frozen=True, slots=True)
class _Memory:
    """Everything that the stages remember between two calls of `feed`."""

    align: align.AlignState
    quality: quality.QualityState
    derive: derive.DeriveState
    score: scoring.State
    outage: outages.State
    detect: detection.State
    inherited: tuple[Event, ...]


_MADE_ANEW = (
    align.Layout, align.AlignSettings, quality.Plan, quality.QualitySettings, derive.Plan, derive.DeriveSettings,
)  # fmt: skip
"""What a memory leaves out: it follows from the settings and the places."""


@dataclass(frozen=True, slots=True)
class Output:
    """What came of one step.

    Attributes
    ----------
    events
        Raised or ended, in order.
    judged
        Frames with a reason per sample.
    signals
        The derived signals of those frames.
    scored
        The ticks that became whole.
    grid
        What the scorers say of the grid at those ticks.
    told_ns
        For each event, the event time at which it was raised or known to have ended, however the frames were cut.
    """

    events: tuple[Event, ...]
    judged: Block
    signals: Block
    scored: scoring.Scored
    grid: detection.Words
    told_ns: tuple[int, ...]


class Pipeline:
    """Watches many sources at one reporting rate.

    Parameters
    ----------
    settings
        See `Settings`.
    learned
        What is typical, learned before; None to learn from the stream itself.
    """

    def __init__(self, settings: Settings, learned: Learned | None = None) -> None:
        self.settings = settings
        self._learned = learned
        self._tables: dict[str, ChannelTable] = {}
        self._stages: _Stages | None = None
        self._packed: Packed = {}

    def feed(self, batches: Sequence[tuple[str, FrameBatch]], now_ns: int | None = None) -> list[Output]:
        """Take frames in.

        Parameters
        ----------
        batches
            Source and frames. A source or a configuration not seen before is taken up; the others go on undisturbed.
        now_ns
            The clock that stamped the arrivals, where the stream is live; None for archives.

        Returns
        -------
        list[Output]
            One for each run of frames that could be closed, perhaps none.
        """
        out: list[Output] = []
        fresh = {name: batch.table for name, batch in batches if self._tables.get(name) is not batch.table}
        changed = [name for name, table in fresh.items() if self._tables.get(name) != table]
        self._tables |= fresh
        if changed:
            out += self._relay(batches[0][1].rate_hz)
        stages = self._stages
        return out + stages.feed(batches, now_ns) if stages else out

    def finish(self) -> list[Output]:
        """Take everything out that still waits for more: the frames have ended.

        Returns
        -------
        list[Output]
            As from `feed`.
        """
        return self._stages.finish() if self._stages else []

    def open_events(self) -> list[Event]:
        """Say which events last.

        Returns
        -------
        list[Event]
            Their end unknown.
        """
        return self._stages.open_events() if self._stages else []

    def typical(self) -> dict[str, tuple[str, ...]]:
        """Put into words what is typical of each PMU.

        Returns
        -------
        dict[str, tuple[str, ...]]
            By PMU, a sentence for each typical pattern; none while it learns.
        """
        return self._stages.scorers.typical(self._stages.score) if self._stages else {}

    def strangers(self) -> tuple[str, ...]:
        """Name the PMUs of which the given reference knows nothing, or other signals: they learn from the stream.

        Returns
        -------
        tuple[str, ...]
            In the order of the table; none before the first frame.
        """
        if self._stages is None or self._learned is None:
            return ()
        table = self._stages.scorers.table
        unknown = np.flatnonzero(_places(self._learned, table) < 0)
        return tuple(table.pmus[s].name for s in unknown.tolist())

    @property
    def tables(self) -> dict[str, ChannelTable]:
        """By stream, in the order in which they came."""
        return dict(self._tables)

    def counts(self) -> tuple[tuple[str, ...], align.Counts] | None:
        """Say what became of the frames of each stream.

        Returns
        -------
        tuple[tuple[str, ...], align.Counts] | None
            The streams' names, and counts in their order; None before the first frame.
        """
        return (self._stages.align.layout.sources, self._stages.align.counts) if self._stages else None

    def learned(self) -> Learned | None:
        """Take out what has been learned.

        Returns
        -------
        Learned | None
            None before the first frame.
        """
        return self._stages.learned() if self._stages else None

    def freeze(self) -> Frozen | None:
        """Take down everything that is remembered, to go on from it another time.

        Returns
        -------
        Frozen
            For `thaw`; None before the first frame.
        """
        stages = self._stages
        if stages is None:
            return None
        return freeze((_Places(self._tables, stages.align.rate_hz), stages.memory()), _MADE_ANEW, self._packed)

    def thaw(self, frozen: Frozen) -> None:
        """Go on from what was taken down, under the same settings.

        Parameters
        ----------
        frozen
            From `freeze`. A `StoreError` says that it was written by another version, or is damaged.
        """
        places, _ = thaw(tuple[_Places, object], frozen, {})
        self._tables = places.tables
        self._stages = self._first(places.rate_hz)
        self._stages.recall(frozen)

    @property
    def threshold(self) -> float:
        """-ln p above which the grid's fastest score is an event, as far as can be said before a frame came."""
        scorers = self.settings.scorers
        layers = scoring.LAYERS * ("quadratic" in scorers) + sequence.LAYERS * ("sequence" in scorers)
        return detection.threshold(self.settings.detection, 1.0, layers)

    def _relay(self, rate_hz: float) -> list[Output]:
        """Go on with the sources known now; what has been learned is kept."""
        old = self._stages
        if old is None:
            self._stages = self._first(rate_hz)
            return []
        aligning = align.relayout(old.align, self._tables)
        table = aligning.layout.table
        judging, judged = quality.relayout(old.quality, table)
        out = old.score_judged(judged)
        deriving = derive.relayout(old.derive, table)
        self._stages = _Stages(self.settings, aligning, judging, deriving, old=old, learned=self._learned)
        return out

    def _first(self, rate_hz: float) -> _Stages:
        """Begin with the sources known now."""
        aligning = align.initial(self._tables, rate_hz, self.settings.align)
        table = aligning.layout.table
        judging, deriving = quality.initial(table, rate_hz, self.settings.quality), derive.initial(table, rate_hz)
        return _Stages(self.settings, aligning, judging, deriving, old=None, learned=self._learned)


class _Stages:
    """The stages for one set of sources, and their states."""

    def __init__(
        self,
        settings: Settings,
        aligning: align.AlignState,
        judging: quality.QualityState,
        deriving: derive.DeriveState,
        *,
        old: _Stages | None,
        learned: Learned | None,
    ) -> None:
        self.align, self.quality, self.derive = aligning, judging, deriving
        table, signals, rate_hz = aligning.layout.table, deriving.plan.table, aligning.rate_hz
        self.scorers = _scorers(settings, signals, rate_hz, told=old is not None)
        self.outages = outages.Outages(table, settings.source, settings.persist_s, _carriers(aligning.layout))
        hop, windows_s, echoes_s = self.scorers.settings.hop, self.scorers.window_s, self.scorers.echoes_s
        self.detector = detection.Detector(
            settings.detection, signals, settings.source, rate_hz, hop, windows_s, echoes_s
        )
        if old is None:
            self.score = self.scorers.initial(_references(learned, signals, self.scorers.model))
        else:
            self.score = self.scorers.carry(old.scorers, old.score)
        self.outage, self.detect = self.outages.initial(), self.detector.initial()
        self.inherited = old.open_events() if old else []

    def feed(self, batches: Sequence[tuple[str, FrameBatch]], now_ns: int | None) -> list[Output]:
        """Align, then each run through the rest."""
        self.align, runs = align.step(self.align, batches, now_ns)
        return [output for run in runs for output in self._judge(run)]

    def finish(self) -> list[Output]:
        """Close what is open in every stage."""
        self.align, runs = align.close(self.align)
        out = [output for run in runs for output in self._judge(run)]
        self.quality, judged = quality.flush(self.quality)
        return out + self.score_judged(judged)

    def memory(self) -> _Memory:
        """Everything that is remembered."""
        inherited = tuple(self.inherited)
        return _Memory(self.align, self.quality, self.derive, self.score, self.outage, self.detect, inherited)

    def recall(self, frozen: Frozen) -> None:
        """Remember everything that was taken down of stages for the same sources."""
        anew = {
            align.Layout: self.align.layout,
            align.AlignSettings: self.align.settings,
            quality.Plan: self.quality.plan,
            quality.QualitySettings: self.quality.settings,
            derive.Plan: self.derive.plan,
            derive.DeriveSettings: self.derive.settings,
        }
        known = (self.align.layout.table, *self.align.layout.tables)
        _, memory = thaw(tuple[object, _Memory], frozen, anew, known)
        self.align, self.quality, self.derive = memory.align, memory.quality, memory.derive
        self.score, self.outage, self.detect = memory.score, memory.outage, memory.detect
        self.inherited = list(memory.inherited)

    def open_events(self) -> list[Event]:
        """Events that last."""
        return [*self.inherited, *self.outage.open.values(), *self.detector.open(self.detect)]

    def learned(self) -> Learned:
        """Take out what is typical by now."""
        return Learned(self.scorers.table, self.scorers.references(self.score), self.scorers.model)

    def _judge(self, run: align.Aligned) -> list[Output]:
        self.quality, judged = quality.judge(self.quality, run)
        return self.score_judged(judged)

    def score_judged(self, judged: Block) -> list[Output]:
        """From judged frames to events."""
        if not len(judged.time_ns):
            return []
        self.outage, codes, troubles = self.outages.step(self.outage, judged)
        self.derive, signals = derive.derive(self.derive, judged)
        self.score, scored = self.scorers.step(self.score, signals, codes)
        explain = self.scorers.explain(self.score, scored)
        self.detect, events, grid = self.detector.step(self.detect, scored.ticks, explain)
        # What was open under the old table ends here: what goes on is seen anew.
        ended = [replace(event, end_ns=max(int(judged.time_ns[0]), event.raised_ns)) for event in self.inherited]
        self.inherited = []
        told_ns = (*(e.end_ns or e.raised_ns for e in (*ended, *troubles)), *grid.told_ns)
        return [Output((*ended, *troubles, *events), judged, signals, scored, grid, told_ns)]


def _carriers(layout: align.Layout) -> list[str]:
    """Name what carries each PMU: its source where that has one stream, else the stream."""
    sources = [pmu.source for pmu in layout.table.pmus]
    streams: dict[str, set[int]] = {}
    for source, n in zip(sources, layout.source_of.tolist(), strict=True):
        streams.setdefault(source, set()).add(n)
    return [
        source if source and len(streams[source]) == 1 else layout.sources[n]
        for source, n in zip(sources, layout.source_of.tolist(), strict=True)
    ]


def _places(learned: Learned, table: ChannelTable) -> NDArray[np.intp]:
    """`(S,)`: where in the reference each PMU stands; -1 where it was not there, or had other signals."""
    if learned.table.width != table.width:
        return np.full(len(table.pmus), -1)
    return align.carried(learned.table, table)


def _scorers(settings: Settings, table: ChannelTable, rate_hz: float, *, told: bool) -> scoring.Scorers:
    """Choose what scores at this rate; say, unless it was told, where the network does not."""
    quadratic, model = "quadratic" in settings.scorers, None
    if "sequence" in settings.scorers:
        model = settings.model
        if model is None:
            raise UsageError("the sequence scorer wants a model; give one, or score by the quadratic fit alone")
        if model.spec.rate_hz != rate_hz:
            why = f"the sequence model is for {model.spec.rate_hz:g} frames a second, and this stream has {rate_hz:g}"
            if not quadratic:
                raise InputError(f"{why}; train one for this rate (gridsense train), or score by the quadratic fit")
            if not told:
                log.warning("%s: the quadratic fit scores alone", why)
            model = None
    made = scoring.settings(rate_hz, settings.learn_s)
    return scoring.Scorers(made, table, quadratic=quadratic, model=model, learn_s=settings.learn_s)


def _references(learned: Learned | None, table: ChannelTable, model: str) -> dict[str, Reference] | None:
    """Find what was learned of a table's PMUs; the others learn anew, and with another network so do all."""
    if learned is None or (_places(learned, table) < 0).all():
        return None
    place, count = _places(learned, table), len(table.pmus)
    where = np.where(place < 0, np.arange(count), place + count)
    return {
        name: take_streams(join_streams([blank_reference(count, reference.used.shape[1]), reference]), where)
        for name, reference in learned.references.items()
        if learned.model == model or name not in sequence.NAMES
    }
