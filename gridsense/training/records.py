"""Rows for Tensor2Tensor, in three splits by time: to learn from, to know when to stop, to be judged by.

In: the signals of archives. Out: folders `train`, `eval` and `test` of `NNN.npy`, each `(T, N, F + 2CK)`, and the
`Spec`, whose scales are those of the training split alone. Known disturbances, for the embedding projector, stand
beside. It makes no TFRecords: Tensor2Tensor's own problem does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gridsense.errors import InputError
from gridsense.judging import Label
from gridsense.training.quiet import Signals, Stretch
from models import series
from models.features import turns
from models.layout import Layout, place
from models.spec import SLOTS, Spec
from streams.channels import ChannelTable

HORIZONS_S = (0.5, 2.0)
"""How far predictions look ahead, besides the next frame."""
PACES_S = (0.5, 3.0)
"""Time constants of the levels that readings are compared with."""
WINDOW = 192
"""Frames of one example of Tensor2Tensor's problem (`models/t2t/shape.py`): a shorter piece is no example."""
PIECE_BYTES = 1 << 28
"""Of the rows that are made at once."""
LEAD_S = 30.0
"""Before a piece that does not begin a stretch: levels and scales settle, and these rows are not kept."""
SCALE_S = 600.0
"""Of each file's training split the typical scale is measured on no more than so much."""
LASTING_S = 5.0
"""A known switching, which has no duration, is called by its name for so long."""
SPLITS = ("train", "eval", "test")


@dataclass(frozen=True, slots=True)
class Splits:
    """How a file's time is parted: training, embargo, evaluation, embargo, test.

    Attributes
    ----------
    train, evaluation
        Shares of the time that is left once the embargoes are taken off; the test has the rest.
    embargo_s
        Between two splits, so that no split's levels and targets reach into another.
    """

    train: float = 0.70
    evaluation: float = 0.15
    embargo_s: float = 20.0

    def bounds(self, first_ns: int, last_ns: int) -> dict[str, tuple[int, int]]:
        """Find the times of a file's splits.

        Parameters
        ----------
        first_ns
            Of its first frame.
        last_ns
            Of its last.

        Returns
        -------
        dict[str, tuple[int, int]]
            By split, from and up to (exclusive) which moment, in nanoseconds since the epoch.
        """
        embargo = round(self.embargo_s * 1e9)
        usable = max(last_ns + 1 - first_ns - 2 * embargo, 0)
        learned, held = first_ns + round(usable * self.train), round(usable * self.evaluation)
        begin = learned + embargo
        test = min(begin + held + embargo, last_ns + 1)
        return {"train": (first_ns, learned), "eval": (begin, begin + held), "test": (test, last_ns + 1)}


@dataclass(frozen=True, slots=True)
class Written:
    """What was written of one split.

    Attributes
    ----------
    frames
        Of all files.
    examples
        Windows that ask for something.
    share_asked
        Of the readings to come, how many are asked for: present, good, and quiet.
    """

    frames: int
    examples: int
    share_asked: float


def layout_of(table: ChannelTable) -> Layout:
    """Find the places of a table's channels; what one source carries is one region.

    Parameters
    ----------
    table
        Of derived signals.

    Returns
    -------
    Layout
        For the network's slots.
    """
    return place(SLOTS, [[str(c.quantity) for c in pmu.channels] for pmu in table.pmus], [p.source for p in table.pmus])


def make_spec(files: Sequence[Signals], splits: Splits) -> Spec:
    """Say what the network is made for, and measure the scales of its training split.

    Parameters
    ----------
    files
        At one reporting rate.
    splits
        How time is parted.

    Returns
    -------
    Spec
        Its scales from quiet, good readings of the training split alone.

    Raises
    ------
    InputError
        If rates differ or are too low, or nothing is left to learn from.
    """
    rate_hz = files[0].rate_hz
    for file in files:
        if file.rate_hz != rate_hz:
            raise InputError(
                f"{file.path} has {file.rate_hz:g} frames a second, {files[0].path} {rate_hz:g}: one network serves "
                "one rate, so train one for each"
            )
    horizons = (1, *(round(ahead * rate_hz) for ahead in HORIZONS_S))
    if list(horizons) != sorted(set(horizons)):
        raise InputError(
            f"{files[0].path} has {rate_hz:g} frames a second: to predict {HORIZONS_S[0]:g} s ahead it takes four"
        )
    blank = tuple((1.0,) * len(horizons) for _ in SLOTS)
    spec = Spec(rate_hz, horizons, PACES_S, blank)
    seen = [readings for file in files for readings in _training_readings(file, splits)]
    if not any(np.isfinite(readings).any() for readings in seen):
        names = ", ".join(str(file.path) for file in files)
        raise InputError(f"{names}: no quiet, good reading is left in the training split; give more quiet time")
    longest = max(map(len, seen))
    side_by_side = np.concatenate(
        [np.pad(r, ((0, longest - len(r)), (0, 0), (0, 0)), constant_values=np.nan) for r in seen], 1
    )
    return replace(spec, scale=series.typical_scale(rate_hz, spec.paces_s, side_by_side, turns(spec)))


def write_rows(folder: Path, files: Sequence[Signals], spec: Spec, splits: Splits) -> dict[str, Written]:
    """Write the rows of all splits.

    Parameters
    ----------
    folder
        Gets `train`, `eval` and `test`.
    files
        Each parted by itself.
    spec
        From `make_spec`.
    splits
        How time is parted.

    Returns
    -------
    dict[str, Written]
        By split.

    Raises
    ------
    InputError
        If a split has no example.
    """
    totals = {}
    for split in SPLITS:
        (folder / split).mkdir(parents=True, exist_ok=True)
        number, frames, examples, asked, all_of = count(), 0, 0, 0.0, 0
        for file in files:
            begin, end = splits.bounds(file.first_ns, file.last_ns)[split]
            for stretch in file.stretches:
                first, last = np.searchsorted(stretch.time_ns, [begin, end]).tolist()
                for rows in pieces(spec, stretch, first, last):
                    np.save(folder / split / f"{next(number):03}.npy", rows)
                    weights = rows[:, :, -spec.outputs // 2 :]
                    frames, asked, all_of = frames + len(rows), asked + float(weights.sum()), all_of + weights.size
                    whole = len(rows) // WINDOW
                    windows = weights[: whole * WINDOW].reshape(whole, WINDOW, *weights.shape[1:])
                    examples += int(windows.any(axis=(1, 3)).sum())
        if not examples:
            names = ", ".join(str(file.path) for file in files)
            shortest_s = 2 * splits.embargo_s + WINDOW / spec.rate_hz / splits.evaluation
            raise InputError(
                f"{names}: nothing quiet is left for the {split} split ({frames} frames, an example has {WINDOW}); "
                f"give at least {shortest_s:.0f} s of quiet time in one piece"
            )
        totals[split] = Written(frames, examples, asked / all_of)
    return totals


def write_known(folder: Path, file: Signals, spec: Spec) -> None:
    """Write the rows of known disturbances, with a word for every frame.

    Parameters
    ----------
    folder
        Gets `NNN.npy` and `NNN.json`.
    file
        With labels.
    spec
        From `make_spec`.

    Raises
    ------
    InputError
        If it has another rate, or no labels.
    """
    if not file.labels:
        raise InputError(
            f"--known {file.path}: no labels stand beside it; write them to {file.path.with_suffix('.json')}"
        )
    if file.rate_hz != spec.rate_hz:
        raise InputError(
            f"--known {file.path} has {file.rate_hz:g} frames a second, the network is for {spec.rate_hz:g}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for number, stretch in enumerate(file.stretches):
        everything = replace(stretch, fit=np.ones_like(stretch.fit))
        rows = np.concatenate(list(pieces(spec, everything)))
        np.save(folder / f"{number:03}.npy", rows)
        (folder / f"{number:03}.json").write_text(json.dumps(names_of(file.labels, stretch.time_ns)))


def names_of(labels: Sequence[Label], time_ns: NDArray[np.int64]) -> list[str]:
    """Say what goes on at each moment.

    Parameters
    ----------
    labels
        What is known to have happened.
    time_ns
        `(T,)`.

    Returns
    -------
    list[str]
        The kind of the newest disturbance that lasts, else ``quiet``.
    """
    names = np.full(len(time_ns), "quiet", object)
    for label in sorted(labels, key=lambda label: label.onset_ns):
        end_ns = max(label.end_ns, label.onset_ns + round(LASTING_S * 1e9))
        first, last = np.searchsorted(time_ns, [label.onset_ns, end_ns])
        names[first:last] = label.kind
    return [str(name) for name in names]


def _training_readings(file: Signals, splits: Splits) -> Iterator[NDArray[np.float32]]:
    """Quiet, good readings `(T, N, C)` of each stretch in the training split, NaN elsewhere."""
    begin, end = splits.bounds(file.first_ns, file.last_ns)["train"]
    for stretch in file.stretches:
        first, last = np.searchsorted(stretch.time_ns, [begin, min(end, begin + round(SCALE_S * 1e9))]).tolist()
        cut = slice(first, last)
        learned = stretch.good[cut] & stretch.fit[cut, :, None]
        yield layout_of(stretch.table).gather(np.where(learned, stretch.values[cut], np.float32(np.nan)), np.nan)


def pieces(spec: Spec, stretch: Stretch, first: int = 0, last: int | None = None) -> Iterator[NDArray[np.float32]]:
    """Make the rows of some frames, no more at once than fit into memory.

    Parameters
    ----------
    spec
        What the network is made for.
    stretch
        Consecutive frames.
    first
        Of the frames.
    last
        Up to this one, which is left out; None for all.

    Yields
    ------
    NDArray[np.float32]
        `(T, N, F + 2CK)`.
    """
    layout = layout_of(stretch.table)
    stop = len(stretch.time_ns) if last is None else last
    row_bytes = 4 * len(layout.stream_pmu) * (spec.inputs + spec.outputs)
    longest = max(PIECE_BYTES // row_bytes // WINDOW, 1) * WINDOW
    for begin in range(first, stop, longest):
        end = min(begin + longest, stop)
        lead = max(begin - round(LEAD_S * spec.rate_hz), 0)
        # What is asked at the end of a piece lies in the frames after it, but never in another split.
        beyond = min(end + spec.horizons[-1], stop)
        cut = slice(lead, beyond)
        rows = series.rows(spec, layout, stretch.values[cut], stretch.good[cut], stretch.fit[cut])
        yield rows[begin - lead : end - lead]
