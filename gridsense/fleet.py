"""What several processors, or several gateways, say of themselves in, one word of all of them out.

In: statuses by the name under which each was said: `processor`, or `processor#INSTANCE` where there are several. Out:
the same kind of status, as if one had said it: rows behind each other, counts added up, of delays the longest. It reads
no store.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, zip_longest
from typing import TypeVar

import msgspec

from gridsense.events import Cause
from gridsense.status import (
    LASTING,
    TROUBLED,
    GatewayStatus,
    Learning,
    PmuStatus,
    ProcessorStatus,
    ScorerStatus,
)

GONE_S = 60.0
"""Who has said nothing for so much longer than another of its kind is there no more: its part has been taken over."""

S = TypeVar("S", ProcessorStatus, GatewayStatus)


def name_of(kind: str, instance: str) -> str:
    """Name one of several.

    Parameters
    ----------
    kind
        ``processor`` or ``gateway``.
    instance
        Which; empty for the only one.

    Returns
    -------
    str
        Under which it says how it is.
    """
    return f"{kind}#{instance}" if instance else kind


def is_named(name: str, kind: str) -> bool:
    """Tell whether a name is that of a kind.

    Parameters
    ----------
    name
        From `name_of`.
    kind
        ``processor`` or ``gateway``.

    Returns
    -------
    bool
        Whichever instance it is.
    """
    return name.partition("#")[0] == kind


def those_here(said: Mapping[str, S]) -> dict[str, S]:
    """Leave out who is there no more.

    Parameters
    ----------
    said
        Of one kind, by name.

    Returns
    -------
    dict[str, S]
        Those that spoke within `GONE_S` of the newest word.
    """
    newest_ns = max((status.written_ns for status in said.values()), default=0)
    return {name: status for name, status in said.items() if newest_ns - status.written_ns <= GONE_S * 1e9}


def one_processor(said: Sequence[ProcessorStatus]) -> ProcessorStatus | None:
    """Make one word of what several processors say.

    Parameters
    ----------
    said
        By each; in any order.

    Returns
    -------
    ProcessorStatus | None
        Scores are those of the part of the grid that stands out most; None where nobody said anything.
    """
    if len(said) < 2:
        return said[0] if said else None
    scored = [status for status in said if status.pmus] or said  # who only joins others' events scores nothing
    lead = max(scored, key=_excess)
    behind = [status.behind_entries for status in said if status.behind_entries is not None]
    hz = [status.frequency_hz for status in said if status.frequency_hz is not None]
    lasting = {event.id: event for status in said for event in status.lasting}
    first = sorted(lasting.values(), key=lambda e: (e.cause is not Cause.GRID, -e.onset_ns))
    return ProcessorStatus(
        written_ns=max(status.written_ns for status in said),
        source=", ".join(dict.fromkeys(status.source for status in said if status.source)),
        began=lead.began,
        stopped=all(status.stopped for status in said),
        time_ns=max(status.time_ns for status in said),
        clock_ns=max(status.clock_ns for status in said),
        behind_s=max(status.behind_s for status in said),
        behind_entries=sum(behind) if behind else None,
        frames_per_s=sum(status.frames_per_s for status in said),
        threshold=lead.threshold,
        frequency_hz=statistics.median(hz) if hz else None,
        score=lead.score,
        trace=_highest([status.trace for status in scored]),
        scorer=lead.scorer,
        second=_second([status.second for status in scored if status.second is not None]),
        ticks=max(status.ticks for status in said),
        tick_s=lead.tick_s,
        learning=_learning(status.learning for status in said),
        latency_p50_s=_most(status.latency_p50_s for status in said),
        latency_p99_s=_most(status.latency_p99_s for status in said),
        dead_letters=sum(status.dead_letters for status in said),
        lost_entries=sum(status.lost_entries for status in said),
        unsaved=any(status.unsaved for status in said),
        lasting=tuple(first[:LASTING]),
        lasting_count=len(lasting) + sum(status.lasting_count - len(status.lasting) for status in said),
        pmus=_worst_first(said),
    )


def one_gateway(said: Sequence[GatewayStatus]) -> GatewayStatus | None:
    """Make one word of what several gateways say.

    Parameters
    ----------
    said
        By each; in any order.

    Returns
    -------
    GatewayStatus | None
        Connections that two of them hold are counted twice; None where nobody said anything.
    """
    if len(said) < 2:
        return said[0] if said else None
    states: Counter[str] = Counter()
    for status in said:
        states.update(status.states)
    return GatewayStatus(
        written_ns=max(status.written_ns for status in said),
        stopped=all(status.stopped for status in said),
        states=dict(states),
        troubled=tuple(chain.from_iterable(status.troubled for status in said))[:TROUBLED],
        pmus=sum(status.pmus for status in said),
        frames_per_s=sum(status.frames_per_s for status in said),
        bytes_per_s=sum(status.bytes_per_s for status in said),
        dropped_frames=sum(status.dropped_frames for status in said),
        refused=sum(status.refused for status in said),
        waiting_bytes=sum(status.waiting_bytes for status in said),
    )


def _excess(status: ProcessorStatus | ScorerStatus) -> float:
    """How far a score stands above its threshold; learning is below all."""
    return -math.inf if status.score is None else status.score - status.threshold


def _highest(traces: Sequence[Sequence[float | None]]) -> tuple[float | None, ...]:
    """Lay traces over each other, the newest ticks together, and take the highest of each."""
    columns = zip_longest(*(reversed(trace) for trace in traces))
    return tuple(_most(column) for column in columns)[::-1]


def _second(said: Sequence[ScorerStatus]) -> ScorerStatus | None:
    """Make one word of what several say of the second scorer."""
    if not said:
        return None
    lead = max(said, key=_excess)
    return msgspec.structs.replace(lead, trace=_highest([status.trace for status in said]))


def _learning(said: Iterable[Sequence[Learning]]) -> tuple[Learning, ...]:
    """By scorer, the longest wait, and all that learn."""
    whole: dict[str, Learning] = {}
    for it in chain.from_iterable(said):
        known = whole.get(it.scorer, Learning(it.scorer, 0.0, 0))
        whole[it.scorer] = Learning(it.scorer, max(known.missing_s, it.missing_s), known.pmus + it.pmus)
    return tuple(whole.values())


def _worst_first(said: Sequence[ProcessorStatus]) -> tuple[PmuStatus, ...]:
    """All PMUs in the order in which each processor puts its own: loud, refused, the others by score."""

    def place(ranked: tuple[PmuStatus, float, float]) -> tuple[int, float]:
        pmu, threshold, second = ranked
        scores = [score for score in (pmu.score, pmu.second) if score is not None]
        over = (pmu.score or 0.0) > threshold or (pmu.second or 0.0) > second
        rank = 0 if over else 1 if pmu.refused else 2 if scores else 3
        return rank, -max(scores, default=0.0)

    ranked = [
        (pmu, status.threshold, status.second.threshold if status.second else math.inf)
        for status in said
        for pmu in status.pmus
    ]
    return tuple(pmu for pmu, _, _ in sorted(ranked, key=place))


def _most(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)
