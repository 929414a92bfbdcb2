"""The course of the signals in, a name and a sentence out: what happened, in an operator's words.

In: how each signal stood before a disturbance and how far it went since. Out: a kind and a sentence. It decides
nothing: whether there is an event, and whose fault it is, is the detector's word.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gridsense.events import Cause, Contribution
from streams.channels import ChannelTable, Quantity

FAULT_PU = 0.9
"""Voltage below this share of its level before is a fault's dip (domain: below 0.9 pu for 1-5 frames)."""
FREQUENCY_STEP_HZ = 0.012
"""A lasting change of the grid's frequency beyond this is lost generation or load."""
LONG_S = 15.0
"""A switching has settled by then; what goes on is an oscillation, of whatever frequency."""
DOMINANT = 0.8
"""Share of the positive contributions above which one family of signals explains a score alone."""

FAMILY: dict[Quantity, str] = {
    Quantity.VOLTAGE_MAGNITUDE: "voltage",
    Quantity.CURRENT_MAGNITUDE: "current",
    Quantity.ACTIVE_POWER: "current",
    Quantity.REACTIVE_POWER: "current",
    Quantity.VOLTAGE_ANGLE: "angle",
    Quantity.CURRENT_ANGLE: "angle",
    Quantity.FREQUENCY: "frequency",
    Quantity.ROCOF: "frequency",
}


@dataclass(frozen=True, slots=True)
class Course:
    """How far each signal went: `(S, C)` arrays of the derived table, NaN where nothing was good.

    Attributes
    ----------
    before
        Level before the disturbance.
    low, high
        Extremes since.
    after
        Level of the last second or so.
    """

    before: NDArray[np.float32]
    low: NDArray[np.float32]
    high: NDArray[np.float32]
    after: NDArray[np.float32]


def name_grid(
    course: Course, table: ChannelTable, pmus: Sequence[str], *, swing_hz: float | None, lasted_s: float
) -> tuple[str, str]:
    """Name a disturbance of the grid.

    Parameters
    ----------
    course
        How far each signal went.
    table
        The derived signals.
    pmus
        Those that saw it, most affected first.
    swing_hz
        At which frequency the most affected swing together; None where they do not.
    lasted_s
        How long it has lasted.

    Returns
    -------
    tuple[str, str]
        Kind and sentence.
    """
    voltage = table.where(Quantity.VOLTAGE_MAGNITUDE)
    frequency = table.where(Quantity.FREQUENCY)
    seen = f"seen by {len(pmus)} PMU{'s' * (len(pmus) != 1)}"
    with np.errstate(invalid="ignore", divide="ignore"):
        dip = np.where(voltage, course.low / course.before, np.nan)
        left = np.where(voltage, course.after / course.before, np.nan)
    deepest = _lowest(dip)
    step_hz = _median(np.where(frequency, course.after - course.before, np.nan))
    if deepest is not None and dip[deepest] < FAULT_PU:
        where, depth = table.pmus[deepest[0]].name, float(dip[deepest])
        back = "and recovered" if left[deepest] > FAULT_PU else "and has not recovered"
        return "fault", f"voltage fell to {depth:.2f} of its level at {where} {back}; {seen}"
    if abs(step_hz) > FREQUENCY_STEP_HZ:
        kind, words, why = (
            ("frequency_fall", "fell", "generation lost or load gained")
            if step_hz < 0
            else ("frequency_rise", "rose", "load lost or generation gained")
        )
        words = f"the grid's frequency {words} by {abs(step_hz) * 1e3:.0f} mHz, {why}"
        return kind, f"{words}; strongest at {pmus[0]}, {seen}"
    if swing_hz is not None:
        return "oscillation", f"{swing_hz:.2f} Hz oscillation for {lasted_s:.0f} s, strongest at {pmus[0]}; {seen}"
    if lasted_s > LONG_S:
        return "oscillation", f"restless for {lasted_s:.0f} s, strongest at {pmus[0]}; {seen}"
    within = f"a step of voltages and flows, frequency within {FREQUENCY_STEP_HZ * 1e3:.0f} mHz"
    return "switching", f"{within}; strongest at {pmus[0]}, {seen}"


def name_local(contributions: Sequence[Contribution], families: dict[str, str]) -> tuple[Cause, str]:
    """Name what one PMU reports and no other confirms.

    A disturbance of the grid moves voltage, flows and angles together, also where it is weak; one family of signals
    moving alone at one PMU is its measurement.

    Parameters
    ----------
    contributions
        The largest terms of its score.
    families
        Family by the contribution's channel.

    Returns
    -------
    tuple[Cause, str]
        Verdict and kind.
    """
    share: dict[str, float] = {}
    for term in contributions:
        family = families.get(term.channel, "")
        share[family] = share.get(family, 0.0) + abs(term.value)
    total = sum(share.values()) or 1.0
    angle = (share.get("angle", 0.0) + share.get("frequency", 0.0)) / total
    if angle > DOMINANT:
        return Cause.DATA, "clock" if share.get("angle", 0.0) >= share.get(
            "frequency", 0.0
        ) else "frequency_measurement"
    if share.get("voltage", 0.0) / total > DOMINANT:
        return Cause.DATA, "voltage_measurement"
    if share.get("current", 0.0) / total > DOMINANT:
        return Cause.DATA, "current_measurement"
    return Cause.UNKNOWN, "local"


def _lowest(values: NDArray[np.float32]) -> tuple[int, int] | None:
    """Place of the least value that is a number."""
    if np.isnan(values).all():
        return None
    s, c = np.unravel_index(int(np.nanargmin(values)), values.shape)
    return int(s), int(c)


def _median(values: NDArray[np.float32]) -> float:
    """Median of the numbers among the values, 0 where there are none."""
    return 0.0 if np.isnan(values).all() else float(np.nanmedian(values))
