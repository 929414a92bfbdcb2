"""Plain words for what is atypical: one short sentence a column.

In: what was measured, where, which column, and how many standard deviations from typical. Out: text for an operator.
It decides nothing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from baselines.compression import Contributions, Reference

MARGINAL, PLAIN, VERY = 1.5, 2.25, 3.0
"""Standard deviations from which a column is marginally, plainly, very high or low."""

WORDS = {
    "step": "level change",
    "slope": "slope",
    "curvature": "curvature",
    "misfit": "variability",
    "a_min": "depth of the lowest value",
    "a_max": "height of the highest value",
    "a_mean": "level",
    "a_sd": "spread of the level",
    "b_min": "steepest fall",
    "b_max": "steepest rise",
    "b_mean": "mean slope",
    "b_sd": "spread of the slope",
    "c_min": "strongest downward bend",
    "c_max": "strongest upward bend",
    "c_mean": "mean curvature",
    "c_sd": "spread of the curvature",
    "d_min": "range of the variability below its mean",
    "d_max": "range of the variability above its mean",
    "d_mean": "variability",
    "d_sd": "spread of the variability",
    "next": "reading against prediction",
    "half_second": "reading against prediction half a second earlier",
    "two_seconds": "reading against prediction two seconds earlier",
    "next_spread": "spread of prediction errors",
}
"""What each column is called."""


def degree(z: float) -> str:
    """Say how unusual a value is.

    Parameters
    ----------
    z
        Standard deviations from typical.

    Returns
    -------
    str
        "very high", "high", "marginally high", "typical", and the same for low.
    """
    size = abs(z)
    if size <= MARGINAL:
        return "typical"
    side = "high" if z > 0 else "low"
    if size > VERY:
        return f"very {side}"
    return side if size > PLAIN else f"marginally {side}"


def sentence(what: str, place: str, aspect: str, z: float) -> str:
    """Say how one aspect of a signal differs from typical.

    Parameters
    ----------
    what
        What is measured.
    place
        Where.
    aspect
        Of what of it: one of the values of `WORDS`.
    z
        Standard deviations from typical.

    Returns
    -------
    str
        For example "voltage magnitude at Bus 2: variability very high, 9.1 sd".
    """
    return f"{what} at {place}: {aspect} {degree(z)}, {abs(z):.1f} sd"


def strongest(contributions: Contributions, count: int) -> NDArray[np.intp]:
    """Find the columns that add most to a distance.

    Parameters
    ----------
    contributions
        Of one vector.
    count
        At most so many.

    Returns
    -------
    NDArray[np.intp]
        Columns, the strongest first; only those that add something.
    """
    order = np.argsort(-contributions.share, kind="stable")[:count]
    found: NDArray[np.intp] = order[contributions.share[order] > 0]
    return found


def describe_pattern(
    reference: Reference, stream: int, pattern: int, names: list[tuple[str, str, str]], count: int = 3
) -> str:
    """Put one typical pattern of a stream into words.

    Parameters
    ----------
    reference
        Learned.
    stream
        Place on the stream axis.
    pattern
        Place among the stream's patterns.
    names
        `(D,)` quantity, place and descriptor of each column.
    count
        Columns named at most.

    Returns
    -------
    str
        How frequent it is, and in what it differs from the average.
    """
    z = reference.loadings[stream] @ reference.patterns[stream, pattern]
    order = [int(d) for d in np.argsort(-np.abs(z), kind="stable")[:count] if abs(z[d]) > 0.5]
    share = f"{100 * reference.frequencies[stream, pattern]:.0f} % of the time"
    if not order:
        return f"{share}: everything near its average"
    parts = [
        f"{WORDS[names[d][2]]} of {names[d][0].replace('_', ' ')} at {names[d][1]} "
        f"{'above' if z[d] > 0 else 'below'} average by {abs(z[d]):.1f} sd"
        for d in order
    ]
    return f"{share}: " + ", ".join(parts)
