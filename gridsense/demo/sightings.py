"""Outputs of the pipeline in, out: which scorer saw an event first, and which saw it most plainly.

An event says whose threshold was crossed when it was raised. Here every scorer's words around it are compared, each
over its own threshold: of the grid's score for the grid's events, of the PMU's own for others. It keeps all words of a
stream, which must be short; only the demo uses it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gridsense.events import Cause, Event
from gridsense.pipeline import SCORERS, Output
from gridsense.scoring import LEADS

BEFORE_NS = 2_000_000_000
"""The other scorer may have spoken so long before the onset of the one that raised the event."""


@dataclass(frozen=True, slots=True)
class Sighting:
    """How the scorers saw an event.

    Attributes
    ----------
    first
        The scorer whose threshold was exceeded first; ``both`` where it was at the same tick.
    most
        The scorer whose score exceeded its threshold by most.
    """

    first: str
    most: str


class Sightings:
    """Remembers what the scorers said."""

    def __init__(self) -> None:
        self._spoken: list[_Spoken] = []

    def take(self, output: Output) -> None:
        """Take up what came of one step.

        Parameters
        ----------
        output
            Of the pipeline.
        """
        ticks, threshold = output.scored.ticks, output.grid.threshold
        if not len(ticks.time_ns):
            return
        owners = _owners([track.name for track in ticks.tracks])
        own = np.stack([track.score for track in ticks.tracks], axis=2) - threshold
        names = tuple(scorer for scorer in SCORERS if scorer in owners)
        self._spoken.append(
            _Spoken(
                names,
                frozenset(track.name for track in ticks.tracks),
                {pmu.name: s for s, pmu in enumerate(output.signals.table.pmus)},
                ticks.time_ns,
                _greatest(output.grid.score - threshold, owners, names),
                _greatest(own, owners, names),
            )
        )

    def of(self, events: Iterable[Event]) -> dict[str, Sighting]:
        """Say how events were seen.

        Parameters
        ----------
        events
            In any stage.

        Returns
        -------
        dict[str, Sighting]
            By event; those that no scorer raised are left out.
        """
        found = ((event.id, self._sighting(event)) for event in events)
        return {name: sighting for name, sighting in found if sighting is not None}

    def _sighting(self, event: Event) -> Sighting | None:
        if all(event.scorer not in spoken.tracks for spoken in self._spoken):
            return None
        begin, end = event.onset_ns - BEFORE_NS, event.end_ns or event.raised_ns
        names: tuple[str, ...] = ()
        excess: list[NDArray[np.float64]] = []
        for spoken in self._spoken:
            inside = (spoken.time_ns >= begin) & (spoken.time_ns <= end)
            s = spoken.place.get(event.first_pmu)
            if event.cause is Cause.GRID:
                excess.append(spoken.grid[inside])
            elif s is not None:
                excess.append(spoken.own[inside, s])
            names = spoken.names
        over = np.concatenate(excess) if excess else np.empty((0, 0))
        if not (over > 0).any():
            return None
        (early,) = np.nonzero(over[int((over > 0).any(axis=1).argmax())] > 0)
        most = int(np.nan_to_num(over, nan=-np.inf).max(axis=0).argmax())
        return Sighting(names[early[0]] if len(early) == 1 else "both", names[most])


@dataclass(frozen=True, slots=True)
class _Spoken:
    """What was said at `K` ticks: by how much each scorer's greatest word was over its threshold."""

    names: tuple[str, ...]
    tracks: frozenset[str]
    place: dict[str, int]
    time_ns: NDArray[np.int64]
    grid: NDArray[np.float64]
    own: NDArray[np.float64]


def _owners(tracks: list[str]) -> list[str]:
    """Name the scorer of each track: that of the last lead at or before it."""
    owners: list[str] = []
    for track in tracks:
        owners.append(LEADS.get(track) or owners[-1])
    return owners


def _greatest(excess: NDArray[np.float64], owners: list[str], names: tuple[str, ...]) -> NDArray[np.float64]:
    """Take each scorer's greatest word of its tracks: the last axis becomes one of scorers."""
    mine = [[i for i, owner in enumerate(owners) if owner == name] for name in names]
    return np.stack([np.fmax.reduce(excess[..., columns], axis=-1) for columns in mine], axis=-1)
