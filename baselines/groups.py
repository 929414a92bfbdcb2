"""Scores of groups: a region's or the whole grid's score from its PMUs' scores.

In: -ln p of every stream and the group it belongs to. Out: -ln p of every group, calibrated against its own reference.
The cost grows linearly with streams, and a stream that joins or leaves changes nobody else's reference.
It knows neither samples nor channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from baselines.atypicality import Status
from baselines.errors import ShapeError
from baselines.stream_axis import take_streams
from baselines.tail import Tail, fit_tail, minus_ln_p

FINENESS = float(1 << 20)
"""Steps of a unit in which scores are summed, as whole numbers: the order of the streams does not matter then."""


@dataclass(frozen=True, slots=True)
class GroupSettings:
    """What the groups' scorer is told once.

    Attributes
    ----------
    cap
        A stream's -ln p counts up to here, so that one device gone mad is not a disturbed grid.
    needed
        Scores from which a group's reference is learned, at least ten.
    overlap
        Successive scores that share samples: `Settings.overlap` of the layer.
    floor
        Share of the group's streams that must be scored.
    """

    cap: float = 12.0
    needed: int = 300
    overlap: int = 6
    floor: float = 0.5


@dataclass(frozen=True, slots=True)
class GroupState:
    """What is remembered of `G` groups; plain arrays, groups first.

    Attributes
    ----------
    gathered
        `(G, needed)` statistics while learning.
    taken
        `(G,)` int64: how many of them.
    learned
        `(G,)` bool.
    tail
        Survival of the statistic; its arrays `(G,)`.
    """

    gathered: NDArray[np.float64]
    taken: NDArray[np.int64]
    learned: NDArray[np.bool_]
    tail: Tail


@dataclass(frozen=True, slots=True)
class GroupScores:
    """What is said of `G` groups at `K` times.

    Attributes
    ----------
    minus_ln_p
        `(K, G)`; NaN unless `SCORED`.
    statistic
        `(K, G)`: mean of the capped -ln p of the streams scored; NaN where none is.
    coverage
        `(K, G)`: share of the group's streams that are scored.
    status
        `(K, G)` uint8: `Status`.
    """

    minus_ln_p: NDArray[np.float64]
    statistic: NDArray[np.float64]
    coverage: NDArray[np.float64]
    status: NDArray[np.uint8]


def initial_groups(settings: GroupSettings, groups: int) -> GroupState:
    """Make the state of groups that have seen nothing.

    Parameters
    ----------
    settings
        What the scorer is told.
    groups
        `G`.

    Returns
    -------
    GroupState
        To be passed to `step_groups`.
    """
    return GroupState(
        gathered=np.zeros((groups, settings.needed)),
        taken=np.zeros(groups, np.int64),
        learned=np.zeros(groups, bool),
        tail=Tail(*(np.ones(groups) for _ in range(6))),
    )


def step_groups(
    settings: GroupSettings, state: GroupState, scores: NDArray[np.float64], group: NDArray[np.intp]
) -> tuple[GroupState, GroupScores]:
    """Score the groups at the next times.

    Parameters
    ----------
    settings
        As given to `initial_groups`.
    state
        As returned by the last step; it is not changed.
    scores
        `(K, S)` -ln p of the streams; NaN where not scored.
    group
        `(S,)` place of each stream's group, -1 for none. All zero for the grid as one group.

    Returns
    -------
    tuple[GroupState, GroupScores]
        For the next step; and the scores.

    Raises
    ------
    ShapeError
        If a stream's group is not among the state's, or the shapes differ.
    """
    groups = len(state.taken)
    if group.shape != scores.shape[1:] or (len(group) and not -1 <= group.min() <= group.max() < groups):
        raise ShapeError(f"groups {group.shape} of scores {scores.shape}; one from -1 to {groups - 1} for each stream")
    statistic, coverage = _statistics(settings, scores, group, groups)
    covered = coverage >= settings.floor
    surprise = np.full(statistic.shape, np.nan)
    status = np.full(statistic.shape, Status.LEARNING, np.uint8)
    new = take_streams(state, np.arange(groups))
    k = 0
    while k < len(statistic):
        wanting = settings.needed - new.taken[~new.learned]
        part = slice(k, min(len(statistic), k + int(wanting.min(initial=len(statistic)))))
        takes = covered[part] & ~new.learned
        place = new.taken + np.cumsum(takes, axis=0) - takes
        t, g = np.nonzero(takes)
        new.gathered[g, place[t, g]] = statistic[part][t, g]
        new.taken[:] += takes.sum(0)
        ok = covered[part] & new.learned
        surprise[part] = np.where(ok, minus_ln_p(new.tail, np.where(ok, statistic[part], 1)), np.nan)
        status[part][ok] = Status.SCORED
        for ready in np.flatnonzero((new.taken >= settings.needed) & ~new.learned):
            tail = fit_tail(new.gathered[ready], settings.needed / settings.overlap)
            for name in Tail.__slots__:
                getattr(new.tail, name)[ready] = getattr(tail, name)
            new.learned[ready] = True
        k = part.stop
    status[~covered] = Status.REFUSED
    return new, GroupScores(surprise, statistic, coverage, status)


def _statistics(
    settings: GroupSettings, scores: NDArray[np.float64], group: NDArray[np.intp], groups: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    members = np.bincount(group[group >= 0], minlength=groups)
    there = np.isfinite(scores)
    steps = np.rint(np.where(there, np.minimum(scores, settings.cap), 0) * FINENESS).astype(np.int64)
    total = np.zeros((groups + 1, len(scores)), np.int64)
    count = np.zeros_like(total)
    # Streams without a group fall into the last row.
    np.add.at(total, group, steps.T)
    np.add.at(count, group, there.T.astype(np.int64))
    with np.errstate(invalid="ignore", divide="ignore"):
        statistic = total[:groups] / FINENESS / count[:groups]
    return statistic.T, (count[:groups] / np.maximum(members, 1)[:, None]).T
