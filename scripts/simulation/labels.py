"""What was done to a stream, exactly: one label an event.

In: events in seconds from the start of a stream. Out: JSON, times in RFC 3339 UTC. It judges nothing.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Label:
    """One event.

    Attributes
    ----------
    kind
        `fault`, `line_trip`, `generator_trip`, `load_step`, `load_rejection`, `forced_oscillation`, or a data fault.
    cause
        `grid`, `data` or `comms`.
    onset_s
        When it began, seconds from the start of the stream.
    end_s
        When its cause stopped acting; equal to `onset_s` for a switching that lasts.
    element
        What was switched or what failed.
    pmus
        Most affected first.
    size
        How much, in `unit`.
    unit
        Of `size`.
    note
        What else a reader should know.
    """

    kind: str
    cause: str
    onset_s: float
    end_s: float
    element: str
    pmus: tuple[str, ...]
    size: float
    unit: str
    note: str = ""


def rfc3339(time_ns: int) -> str:
    """Write a time with milliseconds."""
    seconds, rest = divmod(round(time_ns / 1e6), 1000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:03d}Z"


def write_labels(path: Path, labels: list[Label], start_ns: int) -> None:
    """Write a stream's labels, in order of onset.

    Parameters
    ----------
    path
        A JSON file: a list of objects with `kind`, `cause`, `onset`, `end`, `element`, `pmus`, `size`, `unit`, `note`.
    labels
        Any order.
    start_ns
        Time of the stream's first frame.
    """
    rows = []
    for label in sorted(labels, key=lambda x: x.onset_s):
        row = asdict(label)
        onset, end = (rfc3339(start_ns + round(row.pop(k) * NS)) for k in ("onset_s", "end_s"))
        row["size"] = float(f"{row['size']:.5g}")
        rows.append({"kind": row.pop("kind"), "cause": row.pop("cause"), "onset": onset, "end": end, **row})
    path.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
