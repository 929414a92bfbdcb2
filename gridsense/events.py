"""Events: what an operator is told, and its CloudEvents form on the wire.

In: what the detector knows of one disturbance. Out: an immutable `Event`, and one CloudEvents 1.0 JSON line for it.
An event keeps its identity while it lasts: a repeated delivery carries the same id, a later version a later `time`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

import msgspec

TYPE = "org.gridsense.event.v1"
"""CloudEvents `type` of every event."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Cause(StrEnum):
    """Where the trouble lies: the first thing that an operator asks."""

    GRID = "grid"
    DATA = "data"
    COMMS = "comms"
    MODEL = "model"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Contribution:
    """One term of the explanation; the terms of a score add up to it.

    Attributes
    ----------
    pmu
        Name of the PMU.
    channel
        The signal, in words: ``voltage magnitude Bus 2``.
    descriptor
        What of it: ``step``, ``slope``, ``curvature``, ``residual``, ``mean of slope`` …
    value
        How far from usual, in standard deviations of the reference, with its sign.
    """

    pmu: str
    channel: str
    descriptor: str
    value: float


@dataclass(frozen=True, slots=True)
class Event:
    """One disturbance, explained.

    Attributes
    ----------
    id
        Deterministic: the same frames give the same id.
    source
        What was watched: the name of the grid or of the file.
    onset_ns, end_ns
        First and last moment, event time in ns since the epoch; the end is None while it lasts.
    raised_ns
        Event time at which the threshold was crossed: what the operator's delay is counted from.
    cause, kind
        Verdict and name.
    first_pmu, pmus
        Where it was seen first; all that saw it, most affected first.
    minus_ln_p, scorer
        The greatest score and whose it was.
    contributions
        The largest terms of that score.
    sentence
        The explanation in plain words.
    """

    id: str
    source: str
    onset_ns: int
    raised_ns: int
    end_ns: int | None
    cause: Cause
    kind: str
    first_pmu: str
    pmus: tuple[str, ...]
    minus_ln_p: float
    scorer: str
    contributions: tuple[Contribution, ...]
    sentence: str


def event_id(source: str, onset_ns: int, first_pmu: str, cause: Cause) -> str:
    """Name an event by what cannot change when it is seen again.

    Parameters
    ----------
    source
        As in `Event`, as are the others.
    onset_ns
        Nanoseconds since the epoch.
    first_pmu
        Where it was seen first.
    cause
        The verdict when it was raised.

    Returns
    -------
    str
        32 hexadecimal digits.
    """
    text = "\x1f".join((source, str(onset_ns), first_pmu, cause))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def rfc3339(time_ns: int) -> str:
    """Write a time as RFC 3339 in UTC, to the millisecond as PMU events are meant.

    Parameters
    ----------
    time_ns
        Nanoseconds since the epoch.

    Returns
    -------
    str
        For example ``2026-03-01T12:00:20.033Z``.
    """
    seconds, rest = divmod(time_ns + 500_000, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest // 1_000_000:03d}Z"


def nanoseconds(moment: datetime) -> int:
    """Take a time that was read.

    Parameters
    ----------
    moment
        With its offset from UTC.

    Returns
    -------
    int
        Nanoseconds since the epoch, to the microsecond.
    """
    return (moment - _EPOCH) // timedelta(microseconds=1) * 1000


def cloudevent(event: Event) -> bytes:
    """Encode an event as one line of CloudEvents 1.0 JSON.

    Parameters
    ----------
    event
        The event in any stage of its life.

    Returns
    -------
    bytes
        JSON without a line end.

    References
    ----------
    CloudEvents 1.0.2, JSON event format, sections 2 and 3.
    """
    body: dict[str, Any] = {
        "specversion": "1.0",
        "id": event.id,
        "source": f"/gridsense/{event.source}",
        "type": TYPE,
        "time": rfc3339(event.raised_ns if event.end_ns is None else event.end_ns),
        "subject": event.first_pmu,
        "datacontenttype": "application/json",
        "data": {
            "onset": rfc3339(event.onset_ns),
            "raised": rfc3339(event.raised_ns),
            "end": None if event.end_ns is None else rfc3339(event.end_ns),
            "cause": event.cause,
            "kind": event.kind,
            "first_pmu": event.first_pmu,
            "pmus": event.pmus,
            "minus_ln_p": round(event.minus_ln_p, 3),
            "scorer": event.scorer,
            "contributions": [
                {"pmu": c.pmu, "channel": c.channel, "descriptor": c.descriptor, "value": round(c.value, 3)}
                for c in event.contributions
            ],
            "sentence": event.sentence,
        },
    }
    return msgspec.json.encode(body)
