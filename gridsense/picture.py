"""One event and the signals around it in, a picture out: what a person would rather look at than read.

It needs matplotlib (`pip install "gridsense-pmu[plot]"`), which is imported only when a picture is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill

import numpy as np
from numpy.typing import NDArray

from gridsense.errors import UsageError
from gridsense.events import Event, rfc3339
from streams.block import Block
from streams.channels import Quantity

BEFORE_S, AFTER_S = 10.0, 20.0
"""Seconds shown before the onset and after the end."""
TITLE_WIDTH = 110
SHOWN = 6
"""Most affected PMUs drawn in colour; the others stand behind them in grey."""

PANELS = (
    (Quantity.VOLTAGE_MAGNITUDE, "voltage (pu)"),
    (Quantity.FREQUENCY, "frequency (Hz)"),
    (Quantity.VOLTAGE_ANGLE, "angle to the reference (deg)"),
)


def draw(event: Event, signals: Block, tick_ns: NDArray[np.int64], grid: NDArray[np.float64], path: Path) -> None:
    """Draw an event.

    Parameters
    ----------
    event
        What to draw.
    signals
        Derived signals that cover the event.
    tick_ns
        `(K,)` times of the ticks.
    grid
        `(K,)` the grid's -ln p at them, NaN where there is none.
    path
        PNG to write.

    Raises
    ------
    UsageError
        If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 (an optional extra)
    except ImportError as error:
        raise UsageError('pictures need matplotlib: pip install "gridsense-pmu[plot]"') from error
    figure = Figure(figsize=(10, 9), layout="constrained")
    axes = figure.subplots(len(PANELS) + 1, 1, sharex=True)
    seconds = (signals.time_ns - event.onset_ns) / 1e9
    end_s = 0.0 if event.end_ns is None else (event.end_ns - event.onset_ns) / 1e9
    shown = (seconds >= -BEFORE_S) & (seconds <= end_s + AFTER_S)
    first = [signals.table.index[name] for name in event.pmus[:SHOWN]]
    values = np.where(signals.good, signals.values, np.nan)
    for axis, (quantity, words) in zip(axes, PANELS, strict=False):
        where = signals.table.where(quantity)
        column = where.argmax(axis=1)
        for s in np.flatnonzero(where.any(axis=1)).tolist():
            if s not in first:
                axis.plot(seconds[shown], values[shown, s, column[s]], color="0.85", linewidth=0.6)
        for s in first:
            if where[s].any():
                name = signals.table.pmus[s].name
                axis.plot(seconds[shown], values[shown, s, column[s]], linewidth=1.1, label=name)
        axis.set_ylabel(words)
    ticks_s = (tick_ns - event.onset_ns) / 1e9
    axes[-1].plot(ticks_s, grid, color="tab:red", linewidth=1.1)
    axes[-1].set_ylabel("grid atypicality (-ln p)")
    axes[-1].set_xlabel(f"seconds from {rfc3339(event.onset_ns)}")
    for axis in axes:
        axis.axvspan(0, end_s, color="tab:orange", alpha=0.12, linewidth=0)
        axis.axvline(0, color="tab:orange", linewidth=0.8)
        axis.grid(alpha=0.3)
    axes[0].set_xlim(max(-BEFORE_S, seconds[0]), min(end_s + AFTER_S, seconds[-1]))
    handles, labels = axes[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside right center", fontsize="small", title="most affected")
    figure.suptitle(f"{event.cause}: {event.kind}\n{fill(event.sentence, TITLE_WIDTH)}", fontsize="medium")
    figure.savefig(path, dpi=110)


def draw_drift(worst: NDArray[np.float64], names: Sequence[str], frames_each: int, promise: float, path: Path) -> None:
    """Draw how far engines of one network drift apart.

    Parameters
    ----------
    worst
        `(E, K)` largest deviations of so many frames.
    names
        Of the engines, in words.
    frames_each
        Of each deviation.
    promise
        What it must stay below.
    path
        PNG to write.

    Raises
    ------
    UsageError
        If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 (an optional extra)
    except ImportError as error:
        raise UsageError('pictures need matplotlib: pip install "gridsense-pmu[plot]"') from error
    figure = Figure(figsize=(9, 4), layout="constrained")
    axis = figure.subplots()
    ends = np.arange(1, worst.shape[1] + 1) * frames_each
    for name, row in zip(names, worst, strict=True):
        axis.plot(ends, np.where(np.isfinite(row) & (row > 0), row, np.nan), linewidth=1.1, label=name)
    axis.axhline(promise, color="tab:red", linestyle="--", linewidth=0.9, label="promised")
    axis.set_yscale("log")
    axis.set_xlabel("frames since the streams began")
    axis.set_ylabel(f"largest deviation of {frames_each:,} frames")
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")
    figure.savefig(path, dpi=110)
