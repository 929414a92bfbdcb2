"""Holds the sequence model's predictions against those of simpler methods: the next frame, 0.5 s and 2 s ahead.

Peers: persistence, the line through the last two readings, the parabola of PNNL's window, and an autoregression of
order 8 fitted to each channel of each PMU. Each sees the same readings up to the same moment and is asked for the same
reading. Judged: the part of the bundled stream that the model was not trained on, other draws of that grid, and a grid
it never saw. The exit status is 1 where, on the held-out part, any peer is better at 0.5 s or 2 s in any quantity.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
os.environ["OPENBLAS_NUM_THREADS"] = "1"  # many small products: threads only wait for each other

import numpy as np  # noqa: E402  # after the path
from numpy.typing import NDArray  # noqa: E402  # with numpy
from rich.box import SIMPLE_HEAD  # noqa: E402  # after the path
from rich.console import Console  # noqa: E402  # after the path
from rich.table import Table  # noqa: E402  # after the path

from gridsense.errors import GridSenseError  # noqa: E402  # after the path
from gridsense.sources import open_source, read_rounds  # noqa: E402  # after the path
from models.artifact import open_artifact, weights_of  # noqa: E402  # after the path
from models.engines import ArrayEngine, Engine  # noqa: E402  # after the path
from models.errors import ModelsError  # noqa: E402  # after the path
from models.layout import place  # noqa: E402  # after the path
from models.predictor import Predictor  # noqa: E402  # after the path
from models.spec import ANGLES, FULL_TURN_DEG, Spec  # noqa: E402  # after the path
from scripts.check.corpus import BUNDLE, CACHE, VERDICTS, CheckError, Promise, Shelf  # noqa: E402  # after the path
from scripts.simulation.grid import PLACES  # noqa: E402  # after the path
from streams import align, derive, quality  # noqa: E402  # after the path
from streams.channels import ChannelTable  # noqa: E402  # after the path
from streams.errors import StreamsError  # noqa: E402  # after the path

Floats = NDArray[np.float64]

MODEL = ROOT / "models" / "bundled"
BUNDLED = "ambient.parquet"
BUNDLED_CASE = "npcc"
"""The grid of the bundled streams."""
TEST_SHARE, EMBARGO_S = 0.2, 20.0
"""Where the model does not say what it was tested on: this share of the stream, without so many seconds before it."""
AMBIENT_MINUTES = 5.0
PAST_SHARE = 0.4
"""So much of a simulated stream comes before what is judged; the autoregressions are fitted to it."""
ORDER = 8
"""Of the autoregressions."""
WINDOW_S = 1.0
"""Of the parabola: 31 readings at 30 frames a second."""
REACH = 1.645
"""A Gaussian is so many spreads from its mean at most, 90 % of the time."""
SHOWN = 1.6
"""In the picture greater errors stand at the edge."""

SEQUENCE, STILL, LINE, PARABOLA, AR = "sequence", "persistence", "linear", "quadratic", f"AR({ORDER})"
PEERS = (STILL, LINE, PARABOLA, AR)
NETWORK, CORRECTION = "network alone", "correction alone"
PARTS = (NETWORK, CORRECTION)
"""What the model is made of: the shared network; and each channel's correction, here of a network that says nothing."""
METHODS = (*PEERS[1:], *PARTS, SEQUENCE)
"""As shown: the error of persistence is the unit."""
LEVELS, CHANGES = "levels", "changes"
FITS = (LEVELS, CHANGES)
"""What an autoregression is of: the readings about their mean, or the changes from frame to frame."""


class Kind(StrEnum):
    """How far a stream is from what the model was trained on."""

    HELD_OUT = "held-out time"
    DRAW = "another draw of the grid"
    GRID = "a grid not trained on"


@dataclass(frozen=True, slots=True)
class Readings:
    """Derived signals of one stream, no frame left out.

    Attributes
    ----------
    table
        The `S` PMUs and their channels.
    rate_hz
        Frames a second.
    time_ns
        `(T,)`.
    values
        `(T, S, C')` float32; NaN where not good.
    """

    table: ChannelTable
    rate_hz: float
    time_ns: NDArray[np.int64]
    values: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Taps:
    """A prediction that is a weighted sum of the newest readings; every peer is one.

    Attributes
    ----------
    weight
        `(P, N)`: of the newest reading, the one before it, ..., by channel.
    offset
        `(N,)`: added to the sum.
    """

    weight: Floats
    offset: Floats


@dataclass(frozen=True, slots=True)
class Stream:
    """What is judged.

    Attributes
    ----------
    kind, name
        For people.
    readings
        From the stream's beginning.
    first
        The first frame to be predicted; the autoregressions are fitted to all before it.
    """

    kind: Kind
    name: str
    readings: Readings
    first: int


@dataclass(frozen=True, slots=True)
class Cell:
    """One quantity at one horizon of one stream.

    Attributes
    ----------
    kind, stream
        Where.
    past_s
        How many seconds the autoregressions were fitted to.
    quantity, frames, ahead_s
        What, and how far ahead.
    errors
        By method `(N,)`, one a channel of a PMU: root mean square error over time, divided by that of persistence.
    readings
        How many were judged.
    coverage
        Share of them within the predicted 90 % interval.
    """

    kind: Kind
    stream: str
    past_s: float
    quantity: str
    frames: int
    ahead_s: float
    errors: dict[str, Floats]
    readings: int
    coverage: float

    @property
    def what(self) -> str:
        """The quantity in words."""
        return self.quantity.replace("_", " ")

    @property
    def ahead(self) -> str:
        """The horizon in words."""
        return "next frame" if self.frames == 1 else f"{self.ahead_s:g} s"

    @property
    def fit(self) -> str:
        """Of the two autoregressions, the one that is better here."""
        return min(FITS, key=lambda fit: _rms(self.errors[fit]))

    def of(self, method: str) -> Floats:
        """`(N,)` errors of a method."""
        return np.ones(self.channels) if method == STILL else self.errors[self.fit if method == AR else method]

    def ratio(self, method: str) -> float:
        """Root mean square of a method's errors over the channels."""
        return _rms(self.of(method))

    def median(self, method: str) -> float:
        """Median of a method's errors over the channels."""
        return float(np.median(self.of(method)))

    @property
    def channels(self) -> int:
        """`N`."""
        return len(self.errors[SEQUENCE])

    @property
    def best_peer(self) -> str:
        """The peer with the least error."""
        return min(PEERS, key=self.ratio)

    @property
    def holds(self) -> bool:
        """The model is better than every peer."""
        return self.ratio(SEQUENCE) < self.ratio(self.best_peer)

    @property
    def better(self) -> int:
        """Channels of which the model predicts better than every peer."""
        return int((self.of(SEQUENCE) < np.min([self.of(peer) for peer in PEERS], axis=0)).sum())


def _rms(x: Floats) -> float:
    return float(np.sqrt(np.mean(np.square(x))))


def read(path: Path) -> Readings:
    """Align, judge and derive one stream, as the pipeline does, without scoring it.

    Parameters
    ----------
    path
        An archive.

    Returns
    -------
    Readings
        All of it.

    Raises
    ------
    CheckError
        If it is empty, or not in one piece.
    """
    rounds = list(read_rounds([open_source(path)]))
    if not rounds:
        raise CheckError(f"{path} holds no frames")
    rate_hz = rounds[0][0][1].rate_hz
    aligning = align.initial({name: batch.table for name, batch in rounds[0]}, rate_hz)
    judging, blocks = quality.initial(aligning.layout.table, rate_hz), []
    for batches in rounds:
        aligning, runs = align.step(aligning, batches)
        for run in runs:
            judging, judged = quality.judge(judging, run)
            blocks.append(judged)
    for run in align.close(aligning)[1]:
        judging, judged = quality.judge(judging, run)
        blocks.append(judged)
    blocks.append(quality.flush(judging)[1])
    deriving = derive.initial(aligning.layout.table, rate_hz)
    for n, judged in enumerate(blocks):
        deriving, blocks[n] = derive.derive(deriving, judged)
    time_ns = np.concatenate([b.time_ns for b in blocks])
    values = np.concatenate([np.where(b.good, b.values, np.float32(np.nan)) for b in blocks])
    if (np.diff(time_ns) > 1.5e9 / rate_hz).any():
        raise CheckError(f"{path}: everybody is silent for long somewhere in it; give a stream in one piece")
    return Readings(blocks[0].table, rate_hz, time_ns, values)


def unwrapped(x: Floats, turn: Floats) -> Floats:
    """Take the jumps out of angles, looking at the past alone.

    Parameters
    ----------
    x
        `(T, N)`; NaN where missing.
    turn
        `(N,)`: a full turn, 0 for channels that do not wrap.

    Returns
    -------
    Floats
        `(T, N)`; each reading within half a turn of the last one that is there.
    """
    out = x.copy()
    for n in np.flatnonzero(turn):
        there = ~np.isnan(x[:, n])
        out[there, n] = np.unwrap(x[there, n], period=turn[n])
    return out


def bridged(x: Floats, longest: int) -> Floats:
    """Fill short holes by straight lines. Nobody predicts from inside a hole, so that no line shows the future.

    Parameters
    ----------
    x
        `(T, N)`; NaN where missing.
    longest
        How many missing readings in a row are filled.

    Returns
    -------
    Floats
        `(T, N)`; NaN in longer holes, and before the first and after the last reading.
    """
    out, frames = x.copy(), np.arange(len(x))
    for n in np.flatnonzero(np.isnan(x).any(axis=0)):
        there = np.flatnonzero(~np.isnan(x[:, n]))
        if len(there) < 2:
            continue
        after = np.minimum(np.searchsorted(there, frames), len(there) - 1)
        hole = there[after] - there[np.maximum(after - 1, 0)] - 1
        fill = np.isnan(x[:, n]) & (hole <= longest) & (frames > there[0]) & (frames < there[-1])
        out[fill, n] = np.interp(frames[fill], there, x[there, n])
    return out


def line(channels: int, ahead: int) -> Taps:
    """Go on as from the reading before the newest to the newest."""
    return _same_for_all(np.array([1.0 + ahead, -ahead]), channels)


def parabola(channels: int, points: int, ahead: int) -> Taps:
    """Go on along the parabola that fits the newest readings best."""
    back = np.vander(np.arange(0, -points, -1) / points, 3, increasing=True)  # columns 1, t, t²; newest first
    return _same_for_all(np.vander([ahead / points], 3, increasing=True)[0] @ np.linalg.pinv(back), channels)


def _same_for_all(weight: Floats, channels: int) -> Taps:
    return Taps(np.repeat(weight[:, None], channels, axis=1), np.zeros(channels))


def autoregressions(past: Floats, order: int, horizons: Sequence[int], *, changes: bool) -> list[Taps]:
    """Fit an autoregression to each channel by least squares, and iterate it to each horizon.

    Parameters
    ----------
    past
        `(T, N)` to fit to; NaN where missing.
    order
        How many readings it looks at.
    horizons
        How many frames ahead, ascending.
    changes
        Whether it is of the changes from frame to frame, which have no mean; else of the readings about their mean.

    Returns
    -------
    list[Taps]
        One a horizon; NaN for channels with too few readings to fit to.
    """
    x = np.diff(past, axis=0) if changes else past
    there = ~np.isnan(x)
    mean = np.zeros(x.shape[1]) if changes else np.where(there, x, 0).sum(axis=0) / np.maximum(there.sum(axis=0), 1)
    x = x - mean
    first = np.full((order, x.shape[1]), np.nan)
    for n in range(x.shape[1]):
        rows = np.lib.stride_tricks.sliding_window_view(x[:, n], order + 1)
        rows = rows[~np.isnan(rows).any(axis=1)]
        if len(rows) > 10 * order:
            first[:, n] = np.linalg.lstsq(rows[:, order - 1 :: -1], rows[:, order], rcond=None)[0]
    # What is expected of each frame to come, as weights of the newest readings, newest first.
    known = [np.repeat(row[:, None], x.shape[1], axis=1) for row in np.eye(order)]
    coming: list[Floats] = []
    for _ in range(horizons[-1]):
        newest = [*coming[::-1], *known][:order]
        coming.append(sum((first[i] * newest[i] for i in range(order)), np.zeros_like(first)))
    if not changes:
        return [Taps(coming[h - 1], mean * (1 - coming[h - 1].sum(axis=0))) for h in horizons]
    out = []
    for h in horizons:
        sum_of_changes = np.sum(coming[:h], axis=0)  # weights of changes; a change is a reading minus the one before
        none = np.zeros((1, x.shape[1]))
        weight = np.concatenate([sum_of_changes, none]) - np.concatenate([none, sum_of_changes])
        weight[0] += 1
        out.append(Taps(weight, mean))
    return out


def extrapolated(x: Floats, taps: Taps, origins: NDArray[np.intp]) -> Floats:
    """Predict from each origin.

    Parameters
    ----------
    x
        `(T, N)` readings.
    taps
        What is expected.
    origins
        `(J,)`: newest frame that each prediction knows.

    Returns
    -------
    Floats
        `(J, N)`; NaN where too little of the past is there.
    """
    out = np.broadcast_to(taps.offset, (len(origins), x.shape[1])).copy()
    for back, weight in enumerate(taps.weight):
        at = origins - back
        out += weight * np.where((at >= 0)[:, None], x[np.maximum(at, 0)], np.nan)
    return out


def shortest(error: Floats, turn: Floats) -> Floats:
    """Take whole turns off.

    Parameters
    ----------
    error
        `(J, N)`.
    turn
        `(N,)`: a full turn, 0 for channels that do not wrap.

    Returns
    -------
    Floats
        `(J, N)`: within half a turn where there are turns.
    """
    out: Floats = error - turn * np.rint(np.nan_to_num(error) / np.where(turn > 0, turn, 1))
    return out


def compare(errors: dict[str, Floats]) -> tuple[dict[str, Floats], NDArray[np.bool_]]:
    """Say of each channel how far off each method was.

    Parameters
    ----------
    errors
        By method, persistence among them, `(J, N)`; NaN where it has nothing to say.

    Returns
    -------
    tuple[dict[str, Floats], NDArray[np.bool_]]
        By method, `(N,)` root mean square errors over persistence's, NaN where nothing is judged; and `(J, N)` what is:
        where every method has something to say, of channels that move.
    """
    judged = np.all([np.isfinite(error) for error in errors.values()], axis=0)
    squares = {name: np.square(np.where(judged, error, 0)).sum(axis=0) for name, error in errors.items()}
    moves = squares[STILL] > 0
    unit = np.where(moves, squares[STILL], np.nan)
    return {name: np.sqrt(each / unit) for name, each in squares.items()}, judged & moves


class _Silent:
    """An engine whose network says nothing: no change, one unit wide. What then predicts is the correction."""

    name = "silent"

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def initial(self, streams: int) -> Any:
        return self._engine.initial(streams)

    def step(self, inputs: NDArray[np.float32], state: Any) -> tuple[NDArray[np.float32], Any]:
        raw, state = self._engine.step(inputs, state)
        return np.zeros_like(raw), state

    def to_numpy(self, state: Any) -> NDArray[np.float32]:
        return self._engine.to_numpy(state)

    def from_numpy(self, state: NDArray[np.float32]) -> Any:
        return self._engine.from_numpy(state)


def judge(stream: Stream, spec: Spec, engine: Engine) -> list[Cell]:
    """Let every method predict the same readings of one stream.

    Parameters
    ----------
    stream
        What is judged.
    spec
        What the model was made for.
    engine
        Runs the model.

    Returns
    -------
    list[Cell]
        One for each horizon and quantity.

    Raises
    ------
    CheckError
        If the stream is of another rate than the model.
    """
    rate_hz, pmus, values = spec.rate_hz, stream.readings.table.pmus, stream.readings.values
    if stream.readings.rate_hz != rate_hz:
        raise CheckError(f"{stream.name} has {stream.readings.rate_hz:g} frames a second, the model serves {rate_hz:g}")
    layout = place(spec.slots, [[c.quantity for c in p.channels] for p in pmus], [p.source for p in pmus])
    whole = Predictor(spec, layout, engine)
    parts = (Predictor(spec, layout, engine, adapts=False), Predictor(spec, layout, _Silent(engine)))
    _, forecast = whole.step(whole.initial(), np.arange(len(values)), values, ~np.isnan(values))
    alone = [p.step(p.initial(), np.arange(len(values)), values, ~np.isnan(values))[1] for p in parts]
    pmu, channel = np.nonzero(layout.predicted)
    quantities = np.array(
        [pmus[s].channels[c].quantity.value for s, c in zip(pmu.tolist(), channel.tolist(), strict=True)]
    )
    turn = np.where(np.isin(quantities, ANGLES), FULL_TURN_DEG, 0.0)
    real = unwrapped(values[:, pmu, channel].astype(np.float64), turn)
    known = bridged(real, round(spec.bridge_s * rate_hz))
    past = real[: stream.first]
    fits = {fit: autoregressions(past, ORDER, spec.horizons, changes=fit == CHANGES) for fit in FITS}
    points = round(WINDOW_S * rate_hz) + 1
    targets = np.arange(stream.first, len(values))
    cells = []
    for k, ahead in enumerate(spec.horizons):
        origins = targets - ahead
        asked = np.where(np.isnan(real[origins]), np.nan, real[targets])  # nobody predicts from inside a hole
        taps = {STILL: line(len(turn), 0), LINE: line(len(turn), ahead), PARABOLA: parabola(len(turn), points, ahead)}
        taps |= {fit: fits[fit][k] for fit in FITS}
        expected = {name: extrapolated(known, each, origins) for name, each in taps.items()}
        deviation = forecast.deviation[targets][:, pmu, channel, k]  # NaN until the model has warmed up
        for name, said in ((SEQUENCE, forecast), *zip(PARTS, alone, strict=True)):
            expected[name] = np.where(np.isnan(deviation), np.nan, said.expected[targets][:, pmu, channel, k])
        errors, judged = compare({name: shortest(asked - each, turn) for name, each in expected.items()})
        for quantity in spec.slots:
            of = (quantities == quantity) & judged.any(axis=0)
            if of.any():
                inside = np.abs(deviation[:, of][judged[:, of]]) <= REACH
                here, covered = {name: error[of] for name, error in errors.items()}, float(inside.mean())
                at = stream.kind, stream.name, stream.first / rate_hz
                cells.append(Cell(*at, quantity, ahead, ahead / rate_hz, here, len(inside), covered))
    return cells


def promises(cells: Sequence[Cell]) -> list[Promise]:
    """Hold the model against its peers at the horizons beyond the next frame.

    Parameters
    ----------
    cells
        Of all streams.

    Returns
    -------
    list[Promise]
        One for each kind of stream, held-out time first.
    """
    out = []
    for kind in Kind:
        far = [c for c in cells if c.kind is kind and c.frames > 1]
        words = f"{kind}: better than every peer beyond the next frame, in every quantity"
        kept = all(c.holds for c in far) if far else None
        out.append(Promise(words, f"{sum(c.holds for c in far)} of {len(far)}", kept))
    return out


def shortfalls(cells: Iterable[Cell]) -> list[str]:
    """Say where a promise is broken, and by how much."""
    out = []
    for c in cells:
        if c.frames > 1 and not c.holds:
            said = ", ".join(f"{name} {c.ratio(name):.3f}" for name in (c.best_peer, SEQUENCE))
            out.append(f"{c.stream}: {c.what}, {c.ahead}: {said}; better in {c.better} of {c.channels} channels")
    return out


COLUMNS = ("quantity", "ahead", *METHODS, "best in", "within 90 %")
CAPTION = """\
Root mean square error over time, divided by persistence's: over the channels of all PMUs the root mean square, in
brackets the median. best in: channels of which the model predicts better than every peer. within 90 %: share of the
readings inside the predicted interval of 90 %."""


def table_rows(cells: Iterable[Cell]) -> list[tuple[str, ...]]:
    """Lay one stream's table out, a row a cell."""
    return [
        (
            c.what,
            c.ahead,
            *(f"{c.ratio(name):.3g} ({c.median(name):.3g})" for name in METHODS),
            f"{c.better}/{c.channels}",
            f"{100 * c.coverage:.0f} %",
        )
        for c in cells
    ]


def by_stream(cells: Iterable[Cell]) -> dict[str, list[Cell]]:
    """Group by stream, in their order."""
    out: dict[str, list[Cell]] = {}
    for cell in cells:
        out.setdefault(cell.stream, []).append(cell)
    return out


def as_markdown(cells: Sequence[Cell], found: Iterable[Promise]) -> str:
    """Write the table as the README shows it: the model's error and the best peer's, a row a stream and horizon."""
    names = list(dict.fromkeys(c.what for c in cells))
    lines = [f"| stream | ahead | {' | '.join(names)} | within 90 % |", f"|---|---|{'--:|' * (len(names) + 1)}"]
    for stream, here in by_stream(cells).items():
        for ahead in dict.fromkeys(c.ahead for c in here):
            row = [c for c in here if c.ahead == ahead]
            said = {c.what: f"{c.ratio(SEQUENCE):.2f} / {c.ratio(c.best_peer):.2f} {c.best_peer}" for c in row}
            covered = sum(c.coverage * c.readings for c in row) / sum(c.readings for c in row)
            lines.append(
                f"| {stream} | {ahead} | {' | '.join(said.get(name, '') for name in names)} | {100 * covered:.0f} % |"
            )
    lines += ["", "| promise | measured | |", "|---|---|---|"]
    lines += [f"| {p.words} | {p.measured} | {VERDICTS[p.kept][0]} |" for p in found]
    return "\n".join(lines)


def as_json(cells: Sequence[Cell], found: Iterable[Promise]) -> str:
    """Write the figures as one line of JSON."""
    streams: dict[str, Any] = {}
    for c in cells:
        stream = streams.setdefault(
            c.stream, {"kind": c.kind, "ar_fitted_s": c.past_s, "better_than_all": {}, "quantities": {}}
        )
        won = stream["better_than_all"].setdefault(c.ahead, {"quantities": 0, "of": 0})
        won["quantities"] += int(c.holds)
        won["of"] += 1
        stream["quantities"].setdefault(c.quantity, {})[c.ahead] = {
            "ratio": {name: round(c.ratio(name), 4) for name in METHODS},
            "median": {name: round(c.median(name), 4) for name in METHODS},
            "autoregression_of": c.fit,
            "better_than_all_channels": c.better,
            "channels": c.channels,
            "readings": c.readings,
            "coverage_90": round(c.coverage, 4),
        }
    return json.dumps({"streams": streams, "broken": [p.words for p in found if p.kept is False]})


def draw(cells: Sequence[Cell], path: Path) -> None:
    """Draw the errors of all methods: a row a stream, a column a horizon."""
    from matplotlib.figure import Figure  # noqa: PLC0415 (only where a picture is wanted)

    looks = {LINE: ("tab:gray", "v"), PARABOLA: ("tab:olive", "^"), AR: ("tab:blue", "s"), SEQUENCE: ("tab:red", "o")}
    streams, horizons = by_stream(cells), list(dict.fromkeys(c.ahead for c in cells))
    figure = Figure(figsize=(4.6 * len(horizons), 0.8 + 2.4 * len(streams)), layout="constrained")
    axes = figure.subplots(len(streams), len(horizons), sharex=True, sharey=True, squeeze=False)
    for row, (stream, here) in zip(axes, streams.items(), strict=True):
        for axis, ahead in zip(row, horizons, strict=True):
            column = [c for c in here if c.ahead == ahead]
            for n, (name, (colour, marker)) in enumerate(looks.items()):
                at = np.arange(len(column)) + 0.18 * (n - 1.5)
                axis.plot(
                    at, [min(c.ratio(name), SHOWN) for c in column], marker, color=colour, label=name, markersize=5
                )
            axis.axhline(1, color="black", linewidth=0.8)
            axis.set_xticks(range(len(column)), [c.what.replace(" ", "\n") for c in column], fontsize=7)
            axis.set_title(f"{stream}: {ahead}", fontsize=9)
            axis.grid(axis="y", alpha=0.3)
        row[0].set_ylabel("error (persistence is 1)\nat the edge: or more", fontsize=8)
    axes[0, 0].set_ylim(0.4, SHOWN + 0.05)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=len(looks), fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def show(console: Console, cells: Sequence[Cell], found: Iterable[Promise]) -> None:
    """Print the tables for people."""
    for stream, here in by_stream(cells).items():
        title = f"{stream} ({here[0].kind}); {AR} fitted to the {here[0].past_s:.0f} s before"
        table = Table(*COLUMNS, title=title, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
        table.columns[0].no_wrap = True
        for column in table.columns[1:]:
            column.justify = "right"
        for row in table_rows(here):
            table.add_row(*row)
        console.print(table)
    console.print(CAPTION)
    verdicts = Table("promise", "measured", "", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for p in found:
        word, style = VERDICTS[p.kept]
        verdicts.add_row(p.words, p.measured, f"[{style}]{word}[/]")
    console.print(verdicts)


def held_out_from(training: dict[str, Any], name: str, readings: Readings) -> int | None:
    """Find the first frame of a stream that had no part in training, by what the model says of itself.

    Parameters
    ----------
    training
        The artifact's `training.json`.
    name
        Of the stream's file.
    readings
        The stream.

    Returns
    -------
    int | None
        A frame; None where the model was not trained on the stream.

    Raises
    ------
    CheckError
        If that moment is not in the stream.
    """
    for file in training.get("files", ()):
        if file["name"] == name:
            begin = np.datetime64(file["splits"]["test"][0].removesuffix("Z"), "ns").astype(np.int64)
            first = int(np.searchsorted(readings.time_ns, begin))
            if 0 < first < len(readings.time_ns):
                return first
            raise CheckError(f"the model was trained on another {name}: its test is not within this one's time")
    return None


def judge_all(args: argparse.Namespace, say: Callable[[str], None]) -> list[Cell]:
    """Judge the bundled stream, then those of every grid and seed.

    Parameters
    ----------
    args
        The command line.
    say
        Says what is being done.

    Returns
    -------
    list[Cell]
        In that order.
    """
    artifact = open_artifact(args.model)
    spec, engine = artifact.spec(), ArrayEngine(weights_of(artifact))
    out: list[Cell] = []

    def take(stream: Stream) -> None:
        began = time.monotonic()
        out.extend(judge(stream, spec, engine))
        before_s, all_s = (n / spec.rate_hz for n in (stream.first, len(stream.readings.time_ns)))
        took_s = time.monotonic() - began
        say(
            f"{stream.name}: AR fitted to {before_s:.0f} s, the {all_s - before_s:.0f} s after judged in {took_s:.0f} s"
        )

    training = artifact.training()
    bundled = read(args.bundle / BUNDLED)
    first = held_out_from(training, BUNDLED, bundled)
    if first is None:
        say(f"the model does not say that it was trained on {BUNDLED}: the last {TEST_SHARE:.0%} is judged")
        first = round((1 - TEST_SHARE) * len(bundled.time_ns) + EMBARGO_S * bundled.rate_hz)
    take(Stream(Kind.HELD_OUT, "bundled", bundled, first))
    if args.quick:
        return out
    shelf = Shelf(args.cache, say)
    seen = {BUNDLED_CASE, *(file["name"].partition("-s")[0] for file in training.get("files", ()))}
    for case in args.case:
        for seed in args.seeds:
            path = shelf.ambient(case, seed, AMBIENT_MINUTES, blemished=seed > 0)[0]
            name = f"{case} {seed}{', blemished' * path.with_suffix('.blemishes.json').exists()}"
            readings = read(path)
            tested = held_out_from(training, path.name, readings)
            kind = Kind.HELD_OUT if tested else Kind.DRAW if case in seen else Kind.GRID
            take(Stream(kind, name, readings, tested or round(PAST_SHARE * len(readings.time_ns))))
    return out


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="forecast.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=MODEL, help="an artifact (default: models/bundled)")
    parser.add_argument(
        "--case", nargs="+", choices=sorted(PLACES), default=["npcc", "ieee39"], help="grids (default: npcc ieee39)"
    )
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=[0, 1], help="of each; all but 0 with blemishes (default: 0 1)"
    )
    parser.add_argument("--quick", action="store_true", help="the bundled stream only: within a minute")
    parser.add_argument("--plot", type=Path, metavar="DIR", help="draw the errors: DIR/forecast.png")
    parser.add_argument("--bundle", type=Path, default=BUNDLE, help="the bundled streams (default: gridsense/demo)")
    parser.add_argument("--cache", type=Path, default=CACHE, help="simulated streams (default: .cache/corpus)")
    parser.add_argument("--markdown", action="store_true", help="print the tables as the README shows them")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object with the figures")
    return parser.parse_args(arguments)


def exit_status(found: Iterable[Promise]) -> int:
    """Say 1 where the first promise, of held-out time, is broken; the others are printed."""
    return int(next(iter(found)).kept is False)


def main(arguments: Sequence[str]) -> int:
    """Check, and say what came of it."""
    args = parse(arguments)
    aside = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
    try:
        cells = judge_all(args, aside.print)
    except (CheckError, GridSenseError, ModelsError, StreamsError) as error:
        print(f"forecast: {error}", file=sys.stderr)
        return 2
    found = promises(cells)
    if args.markdown:
        print(as_markdown(cells, found))
    else:
        show(Console(width=None if sys.stdout.isatty() else 120, highlight=False), cells, found)
    for words in shortfalls(cells):
        print(f"not the best: {words}")
    if args.plot:
        draw(cells, args.plot / "forecast.png")
        print(f"drawn in {args.plot / 'forecast.png'}")
    if args.json:
        print(as_json(cells, found))
    return exit_status(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
