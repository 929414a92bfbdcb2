"""An event made up for tests that look at its time and cause only."""

from __future__ import annotations

from gridsense.events import Cause, Event

S = 1_000_000_000


def made_event(raised_s: float, cause: Cause = Cause.GRID, name: str = "") -> Event:
    """Raise and end an event at one moment."""
    ns = round(raised_s * S)
    return Event(
        id=name or f"{cause}{raised_s}",
        source="t",
        onset_ns=ns,
        raised_ns=ns,
        end_ns=ns,
        cause=cause,
        kind="fault",
        first_pmu="a",
        pmus=("a",),
        minus_ln_p=20.0,
        scorer="fast",
        contributions=(),
        sentence="voltage fell",
    )
