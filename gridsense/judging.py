"""Events and labels in, a verdict on the detector out: what was found, how late, how often, and what was not there.

In: the newest version of every event, and what is known to have happened. Out: one row a kind of disturbance. It
counts events, never points (one alarm to one disturbance, repeats apart): scored point by point with adjustment, a
random score passes for a good one.
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
    pmus
        For trouble of data or communication: whose measurements it spoils; empty where nobody says.
    """

    kind: str
    cause: Cause
    onset_ns: int
    end_ns: int
    element: str
    pmus: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Finding:
    """How one label was answered.

    Attributes
    ----------
    label
        What happened.
    events
        Those that answer it, first raised first.
    """

    label: Label
    events: tuple[Event, ...]

    @property
    def event(self) -> Event | None:
        """The first event that answers it."""
        return self.events[0] if self.events else None

    @property
    def delay_s(self) -> float:
        """From the onset to the moment the event was raised, in event time; NaN where there is none."""
        return (self.events[0].raised_ns - self.label.onset_ns) / 1e9 if self.events else float("nan")

    @property
    def repeats(self) -> int:
        """Further events of the same cause in its time."""
        return max(len(self.events) - 1, 0)


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a detector did on one stream.

    Attributes
    ----------
    findings
        One a label.
    false_grid
        Grid events that answer no label of the grid.
    others
        Events of any other cause that answer no label: blemishes that nobody wrote down, or false.
    hours
        Time judged.
    """

    findings: tuple[Finding, ...]
    false_grid: tuple[Event, ...]
    others: tuple[Event, ...]
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
        JSON: a list of objects with at least `kind`, `cause`, `onset`, `end` (RFC 3339 or null) and `element`,
        and where known `pmus`.

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
        Label(r.kind, r.cause, _ns(r.onset), _ns(r.end if r.end is not None else r.onset), r.element, r.pmus)
        for r in rows
    ]
    return sorted(labels, key=lambda label: label.onset_ns)


class _Row(msgspec.Struct):
    kind: str
    cause: Cause
    onset: datetime
    end: datetime | None = None
    element: str = ""
    pmus: tuple[str, ...] = ()


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
        Every event answers at most one label: the newest of the grid for a grid event; for any other the newest that is
        not of the grid and spoils a PMU that the event names.
    """
    by_time = sorted({e.id: e for e in events}.values(), key=lambda e: e.raised_ns)
    answered: set[str] = set()
    findings: list[Finding] = []
    early_ns, aftermath_ns = round(EARLY_S * 1e9), round(AFTERMATH_S * 1e9)
    for i, label in enumerate(labels):
        later = (n.onset_ns - early_ns - 1 for n in labels[i + 1 :] if _same_trouble(label, n.cause, n.pmus))
        begin, end = label.onset_ns - early_ns, min(label.end_ns + aftermath_ns, next(later, 1 << 62))
        mine = tuple(
            e
            for e in by_time
            if e.id not in answered and begin <= e.raised_ns <= end and _same_trouble(label, e.cause, e.pmus)
        )
        answered.update(e.id for e in mine)
        findings.append(Finding(label, mine))
    left = [e for e in by_time if e.id not in answered]
    return Verdict(
        tuple(findings),
        tuple(e for e in left if e.cause is Cause.GRID),
        tuple(e for e in left if e.cause is not Cause.GRID),
        hours,
    )


def _same_trouble(label: Label, cause: Cause, pmus: Sequence[str]) -> bool:
    """Tell whether an event, or a later label, can be about what a label names: a disturbance is seen everywhere."""
    if (label.cause is Cause.GRID) != (cause is Cause.GRID):
        return False
    return label.cause is Cause.GRID or not label.pmus or not pmus or not set(label.pmus).isdisjoint(pmus)


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
