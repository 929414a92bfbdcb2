"""Scores in, events out: thresholds, hysteresis, merging in time and over PMUs, and the verdict.

In: what every scorer said at consecutive ticks, for each PMU and for the grid. Out: events, one a disturbance,
raised once and closed once. Nothing here knows how a score was made. The rules, in the order of a tick:

1. The grid's score over its threshold, and over how restless the grid has been lately, opens the *grid* event; while
   open, it takes up every PMU that exceeds.
2. A PMU that exceeds alone waits `confirm_s` for the grid to agree; then it is an event, *data* or *unknown*. Where one
   small step would echo that long in the score, it waits the echo out, and is none if nothing else followed.
3. An event ends when nothing has exceeded for `merge_s`; what exceeds before that belongs to it, save a jolt that
   stands far above what the disturbance had decayed to: that is the next event.
4. A score over a long window still holds a disturbance after it has ended, and what a disturbance leaves behind (a
   machine that is gone, another flow) stays atypical: such a score speaks again only once it has been ordinary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from baselines.sentences import sentence
from gridsense.events import Cause, Contribution, Event, event_id
from gridsense.naming import FAMILY, Course, name_grid, name_local
from gridsense.swing import common_hz, own_hz
from streams.channels import ChannelTable, Quantity

DAY_S = 86_400.0
NEVER = int(np.iinfo(np.int64).min // 4)
"""A time before every other, far enough from the edge that differences do not overflow."""
RECENT_S = 10.0
"""How far back a common oscillation is looked for."""
JOLT = 2.0
"""A new onset inside an open event exceeds what that had decayed to by this factor, and by a whole threshold."""
AFTERMATH_S = 30.0
"""After a contingency the grid is more restless than any reference: the threshold stands on the median of this long."""
DECAYED_S = 5.0
"""How far back an open event's level is looked for, the newest window left out."""
RESTLESS = ("spread", "variability")
"""How the words begin for descriptors that say how much a signal moves about."""
SLOW_S = 1.5
"""A score over a longer window is slow, unless nothing is faster: it lags, and sees what swings."""
SETTLE = 0.2
"""Weight of a tick in the level before a disturbance: about a second at five ticks a second."""

Explain = Callable[[str, int, int], tuple[Contribution, ...]]
"""(scorer, tick, place on the stream axis) -> the largest terms of that score, largest first."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What an operator sets, and what follows from how disturbances look.

    Attributes
    ----------
    false_alarms_per_day
        Expected false grid events a day; the same number again for all PMUs alone together.
    hysteresis
        In -ln p: an event holds until the score is this far below its threshold.
    merge_s
        What follows within this time belongs to the same disturbance; at low reporting rates two windows, if longer.
    confirm_s
        How long a PMU that exceeds alone waits for the grid to agree; over a long window, half of that window.
    alone
        In -ln p: what a PMU alone must exceed its threshold by, since nobody else bears it out.
    """

    false_alarms_per_day: float = 1.0
    hysteresis: float = 4.0
    merge_s: float = 8.0
    confirm_s: float = 1.0
    alone: float = 4.0


@dataclass(frozen=True, slots=True)
class Track:
    """One scorer's words at `K` ticks.

    Attributes
    ----------
    name
        The scorer.
    window_s
        How far back a score looks.
    due
        `(K,)`: the ticks at which it speaks; its last word stands until the next.
    score
        `(K, S)` -ln p of each PMU; NaN where refused, learning, or not due.
    """

    name: str
    window_s: float
    due: NDArray[np.bool_]
    score: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Ticks:
    """Everything that the detector sees of `K` consecutive ticks of `H` frames each.

    Attributes
    ----------
    time_ns
        `(K,)` time of each tick's last frame.
    tracks
        One for each scorer, fastest first, the same at every call.
    signals
        `(K, H, S, C)` float32: the derived signals, NaN where masked.
    refused
        `(K, S)`: True where all frames of the PMU in this tick are refused; what it says next stands on half a window.
    """

    time_ns: NDArray[np.int64]
    tracks: Sequence[Track]
    signals: NDArray[np.float32]
    refused: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Words:
    """What was said of the grid at `K` ticks by `N` scorers, also by those whose words do not count at the time.

    Attributes
    ----------
    threshold
        `(N,)` -ln p above which each one's word on the grid is an event.
    score
        `(K, N)` -ln p; -inf where too few PMUs have a score.
    background
        `(K, N)`: how restless the grid has been lately, which a score must exceed by its threshold; 0 for slow scorers.
    told_ns
        For each event that was raised or closed, the tick at which it was.
    """

    threshold: NDArray[np.float64]
    score: NDArray[np.float64]
    background: NDArray[np.float64]
    told_ns: list[int]


@dataclass(frozen=True, slots=True)
class Disturbance:
    """The grid event while it is open.

    Attributes
    ----------
    event
        As it stands.
    slow_ns
        Window of the scorer that opened it, where that is slow; else 0.
    active_ns
        Last time at which it was seen.
    first_ns, peak
        `(S,)`: when each PMU first exceeded (`NEVER` where it did not), and its greatest score.
    swing_hz
        At which frequency the most affected PMU swung when the score was greatest; None where it did not.
    course
        How far the signals went.
    """

    event: Event
    slow_ns: int
    active_ns: int
    first_ns: NDArray[np.int64]
    peak: NDArray[np.float64]
    swing_hz: float | None
    course: Course


@dataclass(slots=True)
class State:
    """All that the detector remembers. A step works on a copy.

    Attributes
    ----------
    standing
        `(N, S)`: the last word of each scorer on each PMU, -ln p.
    armed
        `(N, S)`: that word counts; see rule 4.
    active_ns, fast_ns
        `(S,)`: when a PMU's own event was last held up, and when its fastest score last exceeded; `NEVER` before.
    refused_ns
        `(S,)`: last tick with refused frames.
    before
        `(S, C)`: level of each signal while nothing is open.
    recent
        `(W, S, C)`: the signals of the last `RECENT_S`.
    past
        `(N, W)`: what each scorer said of the grid at the ticks of the last `AFTERMATH_S`; 0 of slow ones.
    background
        `(N,)`: median of that before the newest window, while nothing is open; an event keeps what it began with.
    pending, local
        Events of PMUs alone by place on the stream axis: not yet confirmed to be alone, and raised.
    grid
        The open grid event.
    grid_ns
        When the grid's fastest score last exceeded.
    """

    standing: NDArray[np.float64]
    armed: NDArray[np.bool_]
    active_ns: NDArray[np.int64]
    fast_ns: NDArray[np.int64]
    refused_ns: NDArray[np.int64]
    before: NDArray[np.float32]
    recent: NDArray[np.float32]
    past: NDArray[np.float64]
    background: NDArray[np.float64]
    pending: dict[int, Event]
    local: dict[int, Event]
    grid: Disturbance | None
    grid_ns: int

    def copy(self) -> State:
        """Copy what a step changes in place.

        Returns
        -------
        State
            Independent of this one.
        """
        return replace(
            self,
            standing=self.standing.copy(),
            armed=self.armed.copy(),
            active_ns=self.active_ns.copy(),
            fast_ns=self.fast_ns.copy(),
            refused_ns=self.refused_ns.copy(),
            pending=dict(self.pending),
            local=dict(self.local),
        )


@dataclass(frozen=True, slots=True)
class _Tick:
    """One tick, weighed: of each PMU the `excess` over its threshold and `by` whose score, of the grid likewise.

    `said` is what each scorer says of the grid, `grid` what of that counts.
    """

    k: int
    now: int
    tracks: Sequence[Track]
    signals: NDArray[np.float32]
    excess: NDArray[np.float64]
    by: NDArray[np.int64]
    said: tuple[float, ...]
    grid: tuple[float, ...]
    grid_excess: float
    grid_by: int
    explain: Explain


class Detector:
    """Detects on one channel table; see the module for the rules.

    Parameters
    ----------
    settings
        Budget and times.
    table
        The derived signals.
    source
        Name of what is watched, for the events.
    rate_hz
        Frames a second.
    hop
        Frames a tick.
    windows_s
        Of each scorer, fastest first.
    echoes_s
        How long one small step of one signal stays in each scorer's words; none, where it is nothing to them.
    """

    def __init__(  # noqa: PLR0917 (called once, by the pipeline)
        self,
        settings: Settings,
        table: ChannelTable,
        source: str,
        rate_hz: float,
        hop: int,
        windows_s: Sequence[float],
        echoes_s: Sequence[float] = (),
    ) -> None:
        self.settings = settings
        self.table = table
        self.source = source
        self.rate_hz = rate_hz
        self.tick_ns = round(hop / rate_hz * 1e9)
        self.recent = max(round(RECENT_S * rate_hz / hop), 2) * hop
        self.jolt_ticks = math.ceil(windows_s[0] * 1e9 / self.tick_ns)
        self.decayed_ticks = math.ceil(DECAYED_S * 1e9 / self.tick_ns)
        self.windows_ns = tuple(round(w * 1e9) for w in windows_s)
        self.echoes_ns = tuple(round(e * 1e9) for e in echoes_s) or (0,) * len(self.windows_ns)
        self.slow = tuple(w > max(SLOW_S, windows_s[0]) for w in windows_s)
        self.thresholds = tuple(threshold(settings, w, len(windows_s)) for w in windows_s)
        self.alone = math.log(len(table.pmus)) + settings.alone
        self.merge_ns = round(max(settings.merge_s, 2 * windows_s[0]) * 1e9)
        self.confirm_ns = round(settings.confirm_s * 1e9)
        self.families = {channel_words(c.name, c.quantity): FAMILY[c.quantity] for p in table.pmus for c in p.channels}

    def initial(self) -> State:
        """Begin with nothing open.

        Returns
        -------
        State
            For the first `step`.
        """
        count, scorers = len(self.table.pmus), len(self.windows_ns)
        return State(
            standing=np.full((scorers, count), np.nan),
            armed=np.zeros((scorers, count), bool),
            fast_ns=np.full(count, NEVER),
            active_ns=np.full(count, NEVER),
            refused_ns=np.full(count, NEVER),
            before=np.full((count, self.table.width), np.nan, np.float32),
            recent=np.full((self.recent, count, self.table.width), np.nan, np.float32),
            past=np.zeros(
                (scorers, self.jolt_ticks + max(round(AFTERMATH_S * 1e9 / self.tick_ns), self.decayed_ticks))
            ),
            background=np.zeros(scorers),
            pending={},
            local={},
            grid=None,
            grid_ns=NEVER,
        )

    def step(self, state: State, ticks: Ticks, explain: Explain) -> tuple[State, list[Event], Words]:
        """Go on by some ticks.

        Parameters
        ----------
        state
            Where the last step ended; it is left as it is.
        ticks
            The next ticks, none left out.
        explain
            Asked only where an event is raised or grows.

        Returns
        -------
        tuple[State, list[Event], Words]
            The new state; each event that was raised or closed, in order; and what was said of the grid.
        """
        state = state.copy()
        out: list[Event] = []
        count = len(ticks.time_ns)
        score, background = np.empty((2, count, len(self.windows_ns)))
        words = Words(np.array(self.thresholds), score, background, told_ns=[])
        hop = ticks.signals.shape[1]
        frames = np.concatenate([state.recent, ticks.signals.reshape(-1, *ticks.signals.shape[2:])])
        for k, now in enumerate(ticks.time_ns.tolist()):
            state.refused_ns[ticks.refused[k]] = now
            state.recent = frames[(k + 1) * hop : (k + 1) * hop + self.recent]
            tick = self._weigh(state, ticks, k, explain)
            words.score[k], words.background[k] = tick.said, state.background
            out += self._grid(state, tick)
            out += self._local(state, tick)
            words.told_ns.extend([now] * (len(out) - len(words.told_ns)))
            if state.grid is None:
                state.before = _settle(state.before, _level(tick.signals))
        return state, out, words

    def open(self, state: State) -> list[Event]:
        """Say what is open.

        Parameters
        ----------
        state
            Any state.

        Returns
        -------
        list[Event]
            Open events as they stand, their end unknown.
        """
        return [*([state.grid.event] if state.grid else []), *state.local.values()]

    def _weigh(self, state: State, ticks: Ticks, k: int, explain: Explain) -> _Tick:
        """Hold every scorer's word on every PMU, and on the grid, against its threshold."""
        now, count = int(ticks.time_ns[k]), len(self.table.pmus)
        excess, by = np.full(count, -np.inf), np.zeros(count, np.int64)
        said: list[float] = []
        grid: list[float] = []
        over_grid, grid_by = -math.inf, 0
        for i, track in enumerate(ticks.tracks):
            if track.due[k]:
                state.standing[i] = track.score[k]
            word = state.standing[i]
            above = np.nan_to_num(word - self.thresholds[i] - self.alone, nan=-np.inf)
            if i == 0:
                state.armed[i] = True
                state.fast_ns[above > 0] = now
            else:
                disturbed = np.maximum(np.maximum(state.fast_ns, state.refused_ns), state.grid_ns)
                clear = now - disturbed > self.windows_ns[i]
                ordinary = word < self.thresholds[i] - self.settings.hysteresis
                state.armed[i] = clear & (state.armed[i] | ordinary)
            take = state.armed[i] & (above > excess)
            excess, by = np.where(take, above, excess), np.where(take, i, by)
            evidence = np.where(now - state.refused_ns > self.windows_ns[i], word, np.nan)
            said.append(self._corroborated(state, i, evidence))
            whole = bool(state.armed[i].all())
            grid.append(said[i] if whole else self._corroborated(state, i, np.where(state.armed[i], evidence, np.nan)))
            over = grid[i] - self.thresholds[i] - state.background[i]
            if over > over_grid:
                over_grid, grid_by = over, i
        signals = ticks.signals[k]
        return _Tick(k, now, ticks.tracks, signals, excess, by, tuple(said), tuple(grid), over_grid, grid_by, explain)

    def _corroborated(self, state: State, i: int, word: NDArray[np.float64]) -> float:
        """Score the grid by its PMUs; over a long window, two that swing together are enough."""
        score = corroborated(word, corroborators(len(word)))
        if not self.slow[i] or score > self.thresholds[i]:
            return score
        loud = np.flatnonzero(word > self.thresholds[i])
        if len(loud) >= 2 and common_hz(state.recent[:, loud], self.rate_hz) is not None:
            return corroborated(word, 2)
        return score

    def _grid(self, state: State, tick: _Tick) -> list[Event]:
        """Open, carry on or close the grid's event."""
        out: list[Event] = []
        if state.grid is not None and self._jolt(state, state.grid.event, tick):
            out.append(replace(state.grid.event, end_ns=tick.now - self.tick_ns))
            state.grid = None
        now = np.where(self.slow, 0.0, np.maximum(tick.said, 0.0))
        state.past = np.concatenate([state.past[:, 1:], now[:, None]], axis=1)
        if state.grid is None:
            state.background = np.median(state.past[:, : -self.jolt_ticks], axis=1)
        raised = state.grid is None and tick.grid_excess > 0
        if raised:
            state.grid = self._begin(state, tick)
        if state.grid is None:
            return out
        held = tick.grid_excess > -self.settings.hysteresis
        if held and tick.grid_by == 0:
            state.grid_ns = tick.now
        state.grid = grid = self._grow(state, state.grid, tick, held=held)
        state.pending.clear()
        if raised:
            out.append(grid.event)
        elif tick.now - grid.active_ns >= self.merge_ns:
            state.grid = None
            out.append(replace(grid.event, end_ns=max(grid.active_ns - grid.slow_ns, grid.event.raised_ns)))
        return out

    def _jolt(self, state: State, event: Event, tick: _Tick) -> bool:
        """Say whether the grid's fastest score leaps out of what the open event has decayed to."""
        decayed = float(state.past[0, -self.jolt_ticks - self.decayed_ticks : -self.jolt_ticks].max())
        settled = tick.now - event.raised_ns >= 3 * self.windows_ns[0]
        return settled and tick.grid[0] > JOLT * decayed + self.thresholds[0]

    def _begin(self, state: State, tick: _Tick) -> Disturbance:
        """Open the grid's event: PMUs that were waiting for confirmation saw it first."""
        track = tick.tracks[tick.grid_by]
        score = _known(state.standing[tick.grid_by])
        first = np.where(tick.excess > 0, tick.now, NEVER)
        for s, waiting in state.pending.items():
            first[s] = waiting.onset_ns + self.tick_ns
        seen = first != NEVER
        earliest = int(first[seen].min()) if seen.any() else tick.now
        candidates = np.where(first == earliest, score, -np.inf) if seen.any() else score
        first_pmu = self.table.pmus[int(candidates.argmax())].name
        onset = earliest - self.tick_ns
        event = Event(
            id=event_id(self.source, onset, first_pmu, Cause.GRID),
            source=self.source,
            onset_ns=onset,
            raised_ns=tick.now,
            end_ns=None,
            cause=Cause.GRID,
            kind="",
            first_pmu=first_pmu,
            pmus=(),
            minus_ln_p=-math.inf,
            scorer=track.name,
            contributions=(),
            sentence="",
        )
        return Disturbance(
            event=event,
            slow_ns=self.windows_ns[tick.grid_by] if self.slow[tick.grid_by] else 0,
            active_ns=tick.now,
            first_ns=first,
            peak=np.full(len(score), -np.inf),
            swing_hz=None,
            course=Course(state.before, state.before, state.before, state.before),
        )

    def _grow(self, state: State, grid: Disturbance, tick: _Tick, *, held: bool) -> Disturbance:
        """Take up what this tick adds to the open event."""
        course = Course(
            before=grid.course.before,
            low=np.fmin(grid.course.low, np.fmin.reduce(tick.signals, axis=0)),
            high=np.fmax(grid.course.high, np.fmax.reduce(tick.signals, axis=0)),
            after=_settle(grid.course.after, _level(tick.signals)),
        )
        if not held:
            return replace(grid, course=course)
        first = np.where((grid.first_ns == NEVER) & (tick.excess > 0), tick.now, grid.first_ns)
        peak = np.fmax(grid.peak, np.where(tick.excess > 0, tick.excess, -np.inf))
        order = np.argsort(-peak, kind="stable")
        pmus = tuple(self.table.pmus[s].name for s in order.tolist() if first[s] != NEVER)
        event = replace(grid.event, pmus=pmus or (grid.event.first_pmu,))
        by = next(i for i, track in enumerate(tick.tracks) if track.name == event.scorer)
        swing_hz = grid.swing_hz
        if tick.grid[by] > event.minus_ln_p:
            worst = int(_known(np.where(state.armed[by], state.standing[by], np.nan)).argmax())
            terms = tick.explain(event.scorer, tick.k, worst) or event.contributions
            event = replace(event, minus_ln_p=tick.grid[by], contributions=terms)
            place = self.table.index[event.pmus[0]]
            swing_hz = own_hz(state.recent[:, place], self.rate_hz) if self.slow[by] else None
        lasted_s = (tick.now - event.onset_ns) / 1e9
        if swing_hz is None and lasted_s >= RECENT_S:
            swing_hz = own_hz(state.recent[:, self.table.index[event.pmus[0]]], self.rate_hz)
        kind, verdict = name_grid(course, self.table, event.pmus, swing_hz=swing_hz, lasted_s=lasted_s)
        event = replace(event, kind=kind, sentence=_join(verdict, event.contributions))
        return replace(
            grid, event=event, active_ns=tick.now, first_ns=first, peak=peak, swing_hz=swing_hz, course=course
        )

    def _local(self, state: State, tick: _Tick) -> list[Event]:
        """Open, carry on or close the events of PMUs that exceed alone."""
        out: list[Event] = []
        if state.grid is None:
            for s in np.flatnonzero((tick.excess > 0) & (tick.now - state.active_ns >= self.merge_ns)).tolist():
                waiting = state.pending.get(s)
                firmer = waiting is not None and self._echo_ns(waiting, tick) > self.echoes_ns[tick.by[s]]
                if s not in state.local and (waiting is None or firmer):
                    event = self._alone(state, tick, s)
                    if not _quieter(event.contributions):
                        state.pending[s] = event
            for s in [s for s, event in state.pending.items() if tick.now >= event.raised_ns]:
                event = state.pending.pop(s)
                if self._echo_ns(event, tick) and tick.excess[s] <= 0:
                    continue  # one step, and no more: the network was surprised once
                state.local[s] = event
                state.active_ns[s] = tick.now
                out.append(event)
        opened = np.zeros(len(tick.excess), bool)
        opened[list(state.local)] = True
        state.active_ns[opened & (tick.excess > -self.settings.hysteresis)] = tick.now
        for s in np.flatnonzero(opened & (tick.now - state.active_ns >= self.merge_ns)).tolist():
            event = state.local.pop(s)
            out.append(replace(event, end_ns=max(int(state.active_ns[s]), event.raised_ns)))
        return out

    def _echo_ns(self, event: Event, tick: _Tick) -> int:
        """How long a step stays in the words of the scorer that saw an event."""
        return next(e for e, track in zip(self.echoes_ns, tick.tracks, strict=True) if track.name == event.scorer)

    def _alone(self, state: State, tick: _Tick, s: int) -> Event:
        """Write down what one PMU says, to be raised unless the grid says it too."""
        by, name, onset = int(tick.by[s]), self.table.pmus[s].name, tick.now - self.tick_ns
        track = tick.tracks[by]
        contributions = tick.explain(track.name, tick.k, s)
        cause, kind = name_local(contributions, self.families)
        if cause is Cause.UNKNOWN and len(self.table.pmus) == 1:
            cause, kind = Cause.GRID, "disturbance"  # all its signals moved and there is nobody to contradict
        restless = bool(contributions) and contributions[0].descriptor.startswith(RESTLESS)
        swing_hz = own_hz(state.recent[:, s], self.rate_hz) if self.slow[by] and restless else None
        if swing_hz is not None:  # no measurement fault that we know swings: a machine or a control beside it does
            cause, kind = Cause.UNKNOWN, "oscillation"
        words = "moves alone" if len(self.table.pmus) > 1 else "moves"
        return Event(
            id=event_id(self.source, onset, name, cause),
            source=self.source,
            onset_ns=onset,
            raised_ns=tick.now
            + max(self.confirm_ns, self.windows_ns[by] // 2 if self.slow[by] else 0, self.echoes_ns[by]),
            end_ns=None,
            cause=cause,
            kind=kind,
            first_pmu=name,
            pmus=(name,),
            minus_ln_p=float(tick.excess[s] + self.thresholds[by] + self.alone),
            scorer=track.name,
            contributions=contributions,
            sentence=_join(f"{name} {words}", contributions),
        )


def threshold(settings: Settings, window_s: float, scorers: int) -> float:
    """Turn false alarms a day into a threshold on -ln p.

    Parameters
    ----------
    settings
        The budget.
    window_s
        Scores whose windows overlap are not independent: there are as many as windows side by side.
    scorers
        Among how many the budget is shared.

    Returns
    -------
    float
        -ln p above which a score counts.
    """
    return math.log(DAY_S / window_s * scorers / settings.false_alarms_per_day)


def corroborators(pmus: int) -> int:
    """Say how many PMUs must agree before the grid is said to move.

    Parameters
    ----------
    pmus
        How many there are.

    Returns
    -------
    int
        Four of many, two of a few: one bad measurement never convinces, nor do two in a large grid.
    """
    return min(4, 2 + pmus // 6)


def corroborated(score: NDArray[np.float64], k: int) -> float:
    """Score the grid by the k-th most atypical of its PMUs.

    At least k of S PMUs exceed g with a probability of at most (S / k) exp(-g), however they depend on each other
    (Markov's inequality on their number): so this is -ln p of the grid, without a reference of its own. Up to k - 1
    bad measurements cannot raise it.

    Parameters
    ----------
    score
        `(S,)` -ln p of each PMU; NaN where it is refused, learning or no evidence.
    k
        How many must agree, at least 1.

    Returns
    -------
    float
        At least 0; -inf where fewer than k PMUs have a score.
    """
    heard = score[~np.isnan(score)]
    if len(heard) < k:
        return -math.inf
    return max(float(np.partition(heard, -k)[-k]) - math.log(len(heard) / k), 0.0)


def channel_words(name: str, quantity: Quantity) -> str:
    """Name a signal as an operator would.

    Parameters
    ----------
    name
        Of the channel.
    quantity
        What it measures.

    Returns
    -------
    str
        For example ``voltage magnitude Bus 2``.
    """
    words = quantity.replace("_", " ")
    return words if quantity in {Quantity.FREQUENCY, Quantity.ROCOF} else f"{words} {name}".rstrip()


def _quieter(contributions: Sequence[Contribution]) -> bool:
    """Tell whether a PMU is atypical for being quieter than usual: no disturbance, and stuck is quality's word."""
    return bool(contributions) and contributions[0].descriptor.startswith(RESTLESS) and contributions[0].value < 0


def _join(verdict: str, contributions: Sequence[Contribution]) -> str:
    """Add the largest term to a verdict."""
    if not contributions:
        return verdict
    top = contributions[0]
    return f"{verdict}; {sentence(top.channel, top.pmu, top.descriptor, top.value)}"


def _level(signals: NDArray[np.float32]) -> NDArray[np.float32]:
    """`(S, C)` mean of the good frames of one tick, NaN where there are none."""
    good = ~np.isnan(signals)
    with np.errstate(invalid="ignore"):
        mean: NDArray[np.float64] = np.where(good, signals, 0).sum(axis=0, dtype=np.float64) / good.sum(axis=0)
    return mean.astype(np.float32)


def _known(score: NDArray[np.float64]) -> NDArray[np.float64]:
    """Let a PMU without a score stand behind all others."""
    return np.nan_to_num(score, nan=-np.inf)


def _settle(level: NDArray[np.float32], new: NDArray[np.float32]) -> NDArray[np.float32]:
    """Follow a level slowly; begin with the first good value, hold where there is none."""
    moved = np.where(np.isnan(level), new, level + np.float32(SETTLE) * (new - level))
    return np.where(np.isnan(new), level, moved)
