"""What a network may learn from: the derived signals of an archive, and which of its time is quiet.

In: an archive or capture. Out: the signals that the live pipeline makes of it, in consecutive stretches, with a mask
that leaves out the time around everything that the quadratic scorer, or a file of labels beside it, calls an event.
Bad samples are masked by their quality already. It knows no network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gridsense.detect import Progress, detect
from gridsense.errors import InputError
from gridsense.events import Cause, Event
from gridsense.judging import Label, read_labels
from gridsense.pipeline import Output, Settings
from gridsense.sources import open_source
from streams.block import Block
from streams.channels import ChannelTable

BEFORE_S, AFTER_S = 5.0, 30.0
"""What is left out before the onset of an event and after its end."""


@dataclass(frozen=True, slots=True)
class Omission:
    """Time that is not learned from.

    Attributes
    ----------
    reason
        In words: what happened, and who says so.
    onset_ns, end_ns
        Of what happened; more is left out around it.
    pmus
        Whose; empty for all, as for everything that the grid did.
    """

    reason: str
    onset_ns: int
    end_ns: int
    pmus: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Stretch:
    """Consecutive frames of one table.

    Attributes
    ----------
    table
        Names of PMUs and derived channels.
    time_ns
        `(T,)` int64, no slot left out.
    values
        `(T, S, C')` float32.
    good
        `(T, S, C')` bool.
    fit
        `(T, S)` bool: may be learned from.
    """

    table: ChannelTable
    time_ns: NDArray[np.int64]
    values: NDArray[np.float32]
    good: NDArray[np.bool_]
    fit: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Signals:
    """What one file holds.

    Attributes
    ----------
    path
        The file.
    rate_hz
        Its reporting rate.
    stretches
        In order of time.
    omissions
        What was left out, by onset.
    unjudged_s
        Seconds at the beginning in which the scorer learned what is typical, and could find nothing.
    labels
        What the file beside it says happened; empty where there is none.
    """

    path: Path
    rate_hz: float
    stretches: tuple[Stretch, ...]
    omissions: tuple[Omission, ...]
    unjudged_s: float
    labels: tuple[Label, ...]

    @property
    def first_ns(self) -> int:
        """Time of the first frame."""
        return int(self.stretches[0].time_ns[0])

    @property
    def last_ns(self) -> int:
        """Time of the last frame."""
        return int(self.stretches[-1].time_ns[-1])


def labels_of(path: Path) -> Path | None:
    """Find the labels beside an archive.

    Parameters
    ----------
    path
        The archive.

    Returns
    -------
    Path | None
        `NAME.json` beside `NAME.parquet`, where it is there.
    """
    beside = path.with_suffix(".json")
    return beside if beside.is_file() and beside != path else None


def quiet_signals(path: Path, report: Callable[[int], None]) -> Signals:
    """Run the live pipeline over a file, and mark what is quiet.

    Parameters
    ----------
    path
        A capture, an archive, or a folder of archives.
    report
        Told the event time reached, in nanoseconds since the epoch.

    Returns
    -------
    Signals
        At least one stretch.

    Raises
    ------
    InputError
        If the file holds no frames.
    """
    beside = labels_of(path)
    labels = tuple(read_labels(beside)) if beside is not None else ()
    kept = _Kept()
    unjudged_s = 0.0

    def told(now: Progress) -> None:
        nonlocal unjudged_s
        if now.learning_s > 0:
            unjudged_s = now.grid_s
        report(now.time_ns)

    found = detect(Settings(source=path.stem), [open_source(path)], None, [kept], told)
    if not kept.blocks:
        raise InputError(f"{path} holds no frames to learn from")
    events = {event.id: event for event in (*found.events, *kept.lasting)}
    last_ns = int(kept.blocks[-1].time_ns[-1])
    omissions = (*omitted_events(events.values(), last_ns), *omitted_labels(labels, beside))
    ordered = tuple(sorted(omissions, key=lambda o: (o.onset_ns, o.reason)))
    stretches = tuple(_joined(run, ordered) for run in _runs(kept.blocks))
    return Signals(path, kept.blocks[0].rate_hz, stretches, ordered, unjudged_s, labels)


def omitted_events(events: Iterable[Event], last_ns: int) -> list[Omission]:
    """Say what the scorer's events leave out.

    Parameters
    ----------
    events
        The newest version of each.
    last_ns
        Where what still lasts ends.

    Returns
    -------
    list[Omission]
        One for each.
    """
    return [
        Omission(
            f"event: {event.cause}, {event.kind}",
            event.onset_ns,
            last_ns if event.end_ns is None else event.end_ns,
            () if event.cause is Cause.GRID else event.pmus,
        )
        for event in events
    ]


def omitted_labels(labels: Iterable[Label], path: Path | None) -> list[Omission]:
    """Say what labels leave out.

    Parameters
    ----------
    labels
        What is known to have happened.
    path
        Where that stands.

    Returns
    -------
    list[Omission]
        One for each.
    """
    name = path.name if path is not None else "labels"
    return [
        Omission(
            f"label in {name}: {label.cause}, {label.kind}",
            label.onset_ns,
            label.end_ns,
            () if label.cause is Cause.GRID else label.pmus,
        )
        for label in labels
    ]


def fit(table: ChannelTable, time_ns: NDArray[np.int64], omissions: Iterable[Omission]) -> NDArray[np.bool_]:
    """Mark what may be learned from.

    Parameters
    ----------
    table
        Names of the PMUs.
    time_ns
        `(T,)` int64.
    omissions
        What may not.

    Returns
    -------
    NDArray[np.bool_]
        `(T, S)`.
    """
    quiet = np.ones((len(time_ns), len(table.pmus)), bool)
    for omission in omissions:
        first = np.searchsorted(time_ns, omission.onset_ns - round(BEFORE_S * 1e9))
        last = np.searchsorted(time_ns, omission.end_ns + round(AFTER_S * 1e9), side="right")
        whose = [table.index[name] for name in omission.pmus if name in table.index]
        quiet[first:last, whose if omission.pmus else slice(None)] = False
    return quiet


class _Kept:
    """Keeps the signals of a run, and the events that last beyond it."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self.lasting: tuple[Event, ...] = ()

    def take(self, output: Output) -> None:
        """Keep the signals."""
        self.blocks.append(output.signals)

    def close(self, lasting: Sequence[Event]) -> None:
        """Keep the events."""
        self.lasting = tuple(lasting)


def _runs(blocks: Sequence[Block]) -> list[list[Block]]:
    """Part blocks where the table changes or frames are missing between them."""
    runs: list[list[Block]] = []
    for block in blocks:
        before = runs[-1][-1] if runs else None
        together = before is not None and before.table == block.table
        if before is None or not together or block.time_ns[0] - before.time_ns[-1] > 1.5e9 / block.rate_hz:
            runs.append([])
        runs[-1].append(block)
    return runs


def _joined(run: Sequence[Block], omissions: Sequence[Omission]) -> Stretch:
    table = run[0].table
    time_ns = np.concatenate([block.time_ns for block in run])
    return Stretch(
        table,
        time_ns,
        np.concatenate([block.values for block in run]),
        np.concatenate([block.good for block in run]),
        fit(table, time_ns, omissions),
    )
