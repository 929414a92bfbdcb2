"""One event and the signals around it in, a picture out: what a person would rather look at than read.

It needs matplotlib (`pip install "gridsense-pmu[plot]"`), which is imported only when a picture is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gridsense.detection import channel_words
from gridsense.errors import UsageError
from gridsense.events import Event, rfc3339
from gridsense.predictions import COVERAGE
from streams.block import Block
from streams.channels import ChannelTable, Pmu, Quantity

BEFORE_S, AFTER_S = 10.0, 20.0
"""Seconds shown before the onset and after the end."""
TITLE_WIDTH = 110
LABEL_WIDTH = 20
SHOWN = 6
"""Most affected PMUs drawn in colour; the others stand behind them in grey."""
WORST = 2
"""Channels that explain the event: each is drawn by itself, with what was expected of it."""

PANELS = (
    (Quantity.VOLTAGE_MAGNITUDE, "voltage (pu)"),
    (Quantity.FREQUENCY, "frequency (Hz)"),
    (Quantity.VOLTAGE_ANGLE, "angle to the\nreference (deg)"),
)


@dataclass(frozen=True, slots=True)
class Curve:
    """What one scorer said of the grid.

    Attributes
    ----------
    name
        The scorer.
    time_ns
        `(K,)` times of the ticks.
    score
        `(K,)` -ln p at them, NaN where there is none.
    threshold
        Above which that is an event.
    """

    name: str
    time_ns: NDArray[np.int64]
    score: NDArray[np.float64]
    threshold: float


def draw(
    event: Event, signals: Block, curves: Sequence[Curve], expected: NDArray[np.float32] | None, path: Path
) -> None:
    """Draw an event.

    Parameters
    ----------
    event
        What to draw.
    signals
        Derived signals that cover the event.
    curves
        The scorers' words, over which the thresholds stand.
    expected
        `(T, S, C, 3)` what was expected of the signals half a second before, and between which bounds; None where
        nothing was. Drawn beside the channels that explain the event.
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
    worst = _worst(event, signals.table)
    count = len(PANELS) + len(worst) + 1
    figure = Figure(figsize=(10, 1 + 2 * count), layout="constrained")
    axes = figure.subplots(count, 1, sharex=True)
    seconds = (signals.time_ns - event.onset_ns) / 1e9
    end_s = 0.0 if event.end_ns is None else (event.end_ns - event.onset_ns) / 1e9
    shown = (seconds >= -BEFORE_S) & (seconds <= end_s + AFTER_S)
    first = [signals.table.index[name] for name in event.pmus[:SHOWN]]
    values = np.where(signals.good, signals.values, np.nan)
    for axis, (quantity, words) in zip(axes, PANELS, strict=False):
        _draw_signals(axis, signals.table, quantity, first, seconds[shown], values[shown])
        axis.set_ylabel(words)
    for axis, (s, c) in zip(axes[len(PANELS) :], worst, strict=False):
        bounds = None if expected is None else expected[shown, s, c]
        _draw_channel(axis, signals.table.pmus[s], c, seconds[shown], values[shown, s, c], bounds)
    for curve, color in zip(curves, ("tab:red", "tab:blue"), strict=False):
        axes[-1].plot((curve.time_ns - event.onset_ns) / 1e9, curve.score, color=color, linewidth=1.1, label=curve.name)
        axes[-1].axhline(curve.threshold, color=color, linestyle=":", linewidth=0.9)
    axes[-1].set_ylabel("grid atypicality\n(-ln p)")
    axes[-1].legend(fontsize="small", loc="upper right", title="thresholds dotted", title_fontsize="small")
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


def _draw_signals(  # noqa: PLR0917 (called once)
    axis: Any,
    table: ChannelTable,
    quantity: Quantity,
    first: Sequence[int],
    seconds: NDArray[np.float64],
    values: NDArray[np.float32],
) -> None:
    """Draw one channel of each PMU that has it: the most affected in colour, the others behind them."""
    where = table.where(quantity)
    column = where.argmax(axis=1)
    for s in np.flatnonzero(where.any(axis=1)).tolist():
        if s not in first:
            axis.plot(seconds, values[:, s, column[s]], color="0.85", linewidth=0.6)
    for s in first:
        if where[s].any():
            axis.plot(seconds, values[:, s, column[s]], linewidth=1.1, label=table.pmus[s].name)


def _draw_channel(  # noqa: PLR0917 (called once)
    axis: Any,
    pmu: Pmu,
    c: int,
    seconds: NDArray[np.float64],
    values: NDArray[np.float32],
    expected: NDArray[np.float32] | None,
) -> None:
    """Draw one channel of one PMU and what was expected of it; the range is that of what came."""
    channel, known = pmu.channels[c], values[np.isfinite(values)]
    axis.plot(seconds, values, linewidth=1.1, label="observed")
    if expected is not None:
        middle, low, high = expected.T
        axis.plot(seconds, middle, color="black", linewidth=0.6, label="expected 0.5 s before")
        axis.fill_between(
            seconds, low, high, color="black", alpha=0.15, linewidth=0, label=f"{100 * COVERAGE:.0f} % between"
        )
        axis.legend(fontsize="x-small", loc="upper right")
    if known.size:
        low_end, high_end = float(known.min()), float(known.max())
        room = max(0.15 * (high_end - low_end), 1e-6)
        axis.set_ylim(low_end - room, high_end + room)
    words = channel_words(channel.name, channel.quantity)
    axis.set_ylabel(f"{pmu.name}\n{fill(words, LABEL_WIDTH)} ({channel.unit})", fontsize="small")


def _worst(event: Event, table: ChannelTable) -> list[tuple[int, int]]:
    """Find the channels that explain an event, the first of them."""
    found: list[tuple[int, int]] = []
    for term in event.contributions:
        s = table.index.get(term.pmu)
        names = [] if s is None else [channel_words(c.name, c.quantity) for c in table.pmus[s].channels]
        if s is not None and term.channel in names and (s, names.index(term.channel)) not in found:
            found.append((s, names.index(term.channel)))
    return found[:WORST]


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
