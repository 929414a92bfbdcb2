"""Refused samples in, data and comms events out: what the measurement system itself did wrong for long.

In: judged blocks. Out: one event for each run of refused frames that lasts, and one for a source whose PMUs
all fall silent together. Short runs are ordinary and are counted elsewhere. A channel that was never good is
a standing condition, not an event.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gridsense.events import Cause, Contribution, Event, event_id
from streams.block import MARK_ONLY, Block, Reason
from streams.channels import ChannelTable

NEVER = int(np.iinfo(np.int64).min // 4)
"""A time before every other, far enough from the edge that differences do not overflow."""

KINDS: dict[Reason, tuple[str, str]] = {
    Reason.MISSING: ("silent", "no frames arrive"),
    Reason.NOT_A_NUMBER: ("no_value", "sends no numbers"),
    Reason.PMU_ERROR: ("pmu_error", "reports an error of its own"),
    Reason.TEST_MODE: ("test_mode", "is in test mode or sends filler"),
    Reason.OUT_OF_SYNC: ("clock", "has lost its time reference"),
    Reason.SORTED_BY_ARRIVAL: ("sorted_by_arrival", "is stamped by arrival, not by measurement"),
    Reason.ZERO: ("zero", "sends zeros"),
    Reason.STUCK: ("stuck", "repeats the same values"),
    Reason.SPIKE: ("spikes", "jumps for single frames, again and again"),
    Reason.ANGLE_WRAP: ("angle_wrap", "averages its angle over the wrap"),
    Reason.OUT_OF_RANGE: ("out_of_range", "sends values that it cannot have measured"),
}
"""Name and words of each reason that can last."""


@dataclass(frozen=True, slots=True)
class State:
    """What is remembered, by column: one column a PMU, then one a source that carries several.

    Attributes
    ----------
    seen_good
        `(S, C)`: the channel has been good at least once.
    begin_ns, last_ns
        First and last refused frame of the run under way; `NEVER` where there is none.
    refused_ns
        How much of the run is refused.
    open
        Raised events by column.
    """

    seen_good: NDArray[np.bool_]
    begin_ns: NDArray[np.int64]
    last_ns: NDArray[np.int64]
    refused_ns: NDArray[np.int64]
    open: dict[int, Event]


def refused(block: Block, seen_good: NDArray[np.bool_]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Reduce a block's reasons to one for each PMU and frame.

    Parameters
    ----------
    block
        Judged samples.
    seen_good
        `(S, C)`: channels that were good before this block.

    Returns
    -------
    tuple[NDArray[np.uint8], NDArray[np.bool_]]
        `(T, S)`: the gravest masking reason among the channels that were good once, 0 where there is none;
        and `(S, C)`: channels that were good before the end of this block.
    """
    masked = (block.quality > Reason.ABSENT) & (block.quality < MARK_ONLY)
    good = block.good
    if not seen_good[block.table.present].all():
        masked &= np.logical_or.accumulate(np.concatenate([seen_good[None], good[:-1]]), axis=0)
    codes = np.where(masked, block.quality, np.uint8(MARK_ONLY)).min(axis=2, initial=MARK_ONLY)
    return np.where(codes == MARK_ONLY, 0, codes).astype(np.uint8), seen_good | good.any(axis=0)


class Outages:
    """Finds lasting runs of refused frames on one channel table.

    Parameters
    ----------
    table
        The PMUs as judged.
    source
        Name of what is watched, for the events.
    persist_s
        How long a run must last to be an event.
    carrier
        `(S,)`: which connection or concentrator carries each PMU: what falls silent together. None where that is the
        PMUs' `source`.
    merge_s
        Good time after which a run has ended. A shorter one does not interrupt it while half of the run is refused:
        frames lost here and there are no silence.
    """

    def __init__(
        self,
        table: ChannelTable,
        source: str,
        persist_s: float,
        carrier: Sequence[str] | None = None,
        *,
        merge_s: float = 1.0,
    ) -> None:
        carried: dict[str, list[int]] = {}
        for s, name in enumerate(carrier or [pmu.source for pmu in table.pmus]):
            carried.setdefault(name, []).append(s)
        self.table = table
        self.source = source
        self.persist_ns = round(persist_s * 1e9)
        self.merge_ns = round(merge_s * 1e9)
        shared = [(name, np.array(places)) for name, places in carried.items() if len(places) > 1]
        self.names, self.shared = [name for name, _ in shared], [places for _, places in shared]

    def initial(self) -> State:
        """Begin with nothing seen.

        Returns
        -------
        State
            For the first `step`.
        """
        columns = len(self.table.pmus) + len(self.shared)
        return State(
            seen_good=np.zeros((len(self.table.pmus), self.table.width), bool),
            begin_ns=np.full(columns, NEVER),
            last_ns=np.full(columns, NEVER),
            refused_ns=np.zeros(columns, np.int64),
            open={},
        )

    def step(self, state: State, block: Block) -> tuple[State, NDArray[np.uint8], list[Event]]:
        """Go on by a block.

        Parameters
        ----------
        state
            Where the last step ended.
        block
            The next judged frames, at least one.

        Returns
        -------
        tuple[State, NDArray[np.uint8], list[Event]]
            The new state; `(T, S)` the reason for which each frame is refused; events raised or ended, by time.
        """
        codes, seen_good = refused(block, state.seen_good)
        columns = self._with_sources(codes)
        begin, last, refused_ns = state.begin_ns.copy(), state.last_ns.copy(), state.refused_ns.copy()
        period_ns = round(1e9 / block.rate_hz)
        open_ = dict(state.open)
        changes: list[tuple[int, int, Event]] = []

        def end_before(column: int, time_ns: int) -> None:
            if begin[column] != NEVER and time_ns - last[column] > self.merge_ns:
                begin[column] = NEVER
                if column in open_:
                    event = replace(open_.pop(column), end_ns=int(last[column]))
                    changes.append((int(last[column]) + self.merge_ns, column, event))

        for c in np.flatnonzero((columns != 0).any(axis=0) | (begin != NEVER)).tolist():
            for start, stop in _runs(columns[:, c]):
                end_before(c, int(block.time_ns[start]))
                sparse = c not in open_ and 2 * refused_ns[c] < block.time_ns[start] - begin[c]
                if begin[c] == NEVER or sparse:
                    begin[c], refused_ns[c] = block.time_ns[start], 0
                last[c] = block.time_ns[stop]
                refused_ns[c] += (stop - start + 1) * period_ns
                due_ns = int(begin[c]) + self.persist_ns
                if last[c] >= due_ns and c not in open_:
                    due = max(start, int(np.searchsorted(block.time_ns, due_ns)))
                    open_[c] = self._event(c, int(begin[c]), Reason(int(columns[due, c])))
                    changes.append((open_[c].raised_ns, c, open_[c]))
            end_before(c, int(block.time_ns[-1]))
        new = State(seen_good=seen_good, begin_ns=begin, last_ns=last, refused_ns=refused_ns, open=open_)
        return new, codes, [event for _, _, event in sorted(changes, key=lambda change: change[:2])]

    def _with_sources(self, codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """`(T, S + shared sources)`: where a whole source is silent, that is the source's, not each PMU's."""
        columns = np.zeros((len(codes), codes.shape[1] + len(self.shared)), np.uint8)
        columns[:, : codes.shape[1]] = codes
        for i, places in enumerate(self.shared, start=codes.shape[1]):
            silent = (codes[:, places] == Reason.MISSING).all(axis=1)
            columns[silent, i] = Reason.MISSING
            columns[np.ix_(silent, places)] = 0
        return columns

    def _event(self, column: int, begin_ns: int, reason: Reason) -> Event:
        """Say what lasts at a PMU, or at a source where the column is one."""
        kind, words = KINDS.get(reason, (reason.name.lower(), f"is refused: {reason.name.lower()}"))
        of_source = column - len(self.table.pmus)
        places = [column] if of_source < 0 else self.shared[of_source].tolist()
        pmus = tuple(self.table.pmus[s].name for s in places)
        cause = Cause.DATA if of_source < 0 else Cause.COMMS
        if of_source < 0:
            sentence = f"{pmus[0]}: {words}"
        else:
            sentence = f"{self.names[of_source]}: all {len(pmus)} PMUs are silent at once"
        return Event(
            id=event_id(self.source, begin_ns, pmus[0], cause),
            source=self.source,
            onset_ns=begin_ns,
            raised_ns=begin_ns + self.persist_ns,
            end_ns=None,
            cause=cause,
            kind=kind if of_source < 0 else "source_silent",
            first_pmu=pmus[0],
            pmus=pmus,
            minus_ln_p=0.0,
            scorer="quality",
            contributions=(Contribution(pmus[0], "all signals", reason.name.lower(), 1.0),),
            sentence=sentence,
        )


def _runs(codes: NDArray[np.uint8]) -> Iterator[tuple[int, int]]:
    """First and last frame of each run of refused frames in one column."""
    bad = np.concatenate([[False], codes != 0, [False]])
    edges = np.flatnonzero(bad[1:] != bad[:-1])
    for start, stop in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        yield start, stop - 1
