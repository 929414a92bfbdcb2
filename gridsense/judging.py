"""Events and labels in, a verdict on the detector out: what was found, how late, how often, and what was not there.

In: the newest version of every event, and what is known to have happened. Out: one row a kind of disturbance. It counts
events, never points: one alarm to one disturbance, repeats apart (`docs/judging.md` says why not point by point).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import msgspec
import numpy as np

from gridsense.errors import LabelError
from gridsense.events import Cause, Event

EARLY_S = 0.5
"""An event raised up to this long before its label's onset still answers it: a label's onset is a frame's time."""
AFTERMATH_S = 20.0
"""What a disturbance still causes after its end is not a false alarm, but it is a repeat."""


@dataclass(frozen=True, slots=True)
class Label:
    """What is known to have happened.

    Attributes
    ----------
    kind, cause
        Name, and where the trouble lay.
    onset_ns, end_ns
        First and last moment; the same where it has no duration.
    element
        What it happened to.
    """

    kind: str
    cause: Cause
    onset_ns: int
    end_ns: int
    element: str


@dataclass(frozen=True, slots=True)
class Finding:
    """How one label was answered.

    Attributes
    ----------
    label
        What happened.
    event
        The first event that answers it, or None.
    delay_s
        From the onset to the moment the event was raised, in event time; NaN where there is none.
    repeats
        Further events of the same cause in its time.
    """

    label: Label
    event: Event | None
    delay_s: float
    repeats: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a detector did on one stream.

    Attributes
    ----------
    findings
        One a label.
    false_grid
        Grid events that answer no label of the grid.
    hours
        Time judged.
    """

    findings: tuple[Finding, ...]
    false_grid: tuple[Event, ...]
    hours: float


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.

    Attributes
    ----------
    kind
        Of disturbance.
    happened, found
        How many there were, and how many were answered.
    delay_p50_s, delay_p90_s
        Of those found; NaN where none was.
    events_each
        Events for each that was found.
    called_grid
        For trouble of data or communication: how many were called a grid event.
    """

    kind: str
    happened: int
    found: int
    delay_p50_s: float
    delay_p90_s: float
    events_each: float
    called_grid: int


def read_labels(path: Path) -> list[Label]:
    """Read the labels that stand beside a stream.

    Parameters
    ----------
    path
        JSON: a list of objects with at least `kind`, `cause`, `onset`, `end` (RFC 3339 or null) and `element`.

    Returns
    -------
    list[Label]
        By onset.

    Raises
    ------
    LabelError
        If the file is missing or is not such a list.
    """
    try:
        rows = msgspec.json.decode(path.read_bytes(), type=list[_Row])
    except (OSError, msgspec.DecodeError) as error:
        raise LabelError(f"labels {path}: {error}; give a JSON list of kind, cause, onset, end, element") from error
    labels = [
        Label(r.kind, r.cause, _ns(r.onset), _ns(r.end if r.end is not None else r.onset), r.element) for r in rows
    ]
    return sorted(labels, key=lambda label: label.onset_ns)


class _Row(msgspec.Struct):
    kind: str
    cause: Cause
    onset: datetime
    end: datetime | None = None
    element: str = ""


def judge(events: Iterable[Event], labels: Sequence[Label], hours: float) -> Verdict:
    """Hold events against labels.

    Parameters
    ----------
    events
        The newest version of each.
    labels
        What happened, by onset.
    hours
        Time watched.

    Returns
    -------
    Verdict
        Every label answered by at most one event, every event answering at most one label of its own cause.
    """
    by_time = sorted({e.id: e for e in events}.values(), key=lambda e: e.raised_ns)
    answered: dict[str, int] = {}
    findings: list[Finding] = []
    early_ns, aftermath_ns = round(EARLY_S * 1e9), round(AFTERMATH_S * 1e9)
    for i, label in enumerate(labels):
        grid = label.cause is Cause.GRID
        later = (n.onset_ns - early_ns - 1 for n in labels[i + 1 :] if (n.cause is Cause.GRID) == grid)
        begin, end = label.onset_ns - early_ns, min(label.end_ns + aftermath_ns, next(later, 1 << 62))
        mine = [
            e
            for e in by_time
            if e.id not in answered and begin <= e.raised_ns <= end and (e.cause is Cause.GRID) == grid
        ]
        for event in mine:
            answered[event.id] = len(findings)
        first = mine[0] if mine else None
        delay_s = (first.raised_ns - label.onset_ns) / 1e9 if first else float("nan")
        findings.append(Finding(label, first, delay_s, max(len(mine) - 1, 0)))
    false = tuple(e for e in by_time if e.cause is Cause.GRID and e.id not in answered)
    return Verdict(tuple(findings), false, hours)


def rows(verdicts: Iterable[Verdict]) -> list[Row]:
    """Sum verdicts up by kind.

    Parameters
    ----------
    verdicts
        Of any number of streams.

    Returns
    -------
    list[Row]
        Kinds of the grid first, each group by name.
    """
    findings: dict[tuple[bool, str], list[tuple[Finding, Verdict]]] = {}
    for verdict in verdicts:
        for finding in verdict.findings:
            key = (finding.label.cause is not Cause.GRID, finding.label.kind)
            findings.setdefault(key, []).append((finding, verdict))
    out = []
    for (not_grid, kind), pairs in sorted(findings.items()):
        found = [f for f, _ in pairs if f.event is not None]
        delays = [f.delay_s for f in found]
        p50, p90 = np.percentile(delays, [50, 90]).tolist() if delays else (float("nan"), float("nan"))
        each = sum(1 + f.repeats for f in found) / len(found) if found else float("nan")
        wrong = sum(_overlaps(f.label, v.false_grid) for f, v in pairs) if not_grid else 0
        out.append(Row(kind, len(pairs), len(found), p50, p90, each, wrong))
    return out


def _overlaps(label: Label, events: Iterable[Event]) -> bool:
    margin = round(EARLY_S * 1e9)
    return any(label.onset_ns - margin <= e.raised_ns <= label.end_ns + margin * 10 for e in events)


def _ns(moment: datetime) -> int:
    seconds = int(moment.timestamp())
    return seconds * 1_000_000_000 + moment.microsecond * 1000
