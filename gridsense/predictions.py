"""Outputs of the pipeline in, what was expected of every reading out: rows for a Parquet file.

A row is one reading as it was predicted so long before: what came, what was expected, and an interval in which nine
of ten readings fall where the network is right about itself. It predicts nothing. The table is a sink like any
other (`gridsense.detect.Sink`): whatever carries the rows elsewhere has the same two functions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gridsense.detection import channel_words
from gridsense.errors import InputError
from gridsense.events import Event
from gridsense.pipeline import Output
from models.spec import Spec
from streams.channels import ChannelTable, Quantity

COVERAGE = 0.9
"""Share of the readings that shall fall into the interval."""
SPREADS = NormalDist().inv_cdf((1 + COVERAGE) / 2)
"""The interval reaches so many spreads to either side of what is expected: 1.645."""
ROWS = 1 << 18
"""Rows that are written together, about."""

_NAME = pa.dictionary(pa.int32(), pa.string())
SCHEMA = pa.schema(
    [
        ("time", pa.timestamp("ns", "UTC")),
        ("pmu", _NAME),
        ("channel", _NAME),
        ("unit", _NAME),
        ("horizon_s", pa.float32()),
        ("observed", pa.float32()),
        ("expected", pa.float32()),
        ("low", pa.float32()),
        ("high", pa.float32()),
    ]
)


class PredictionTable:
    """Predictions as Parquet: a row for each reading that the network predicts, and each of its horizons.

    Rows are sorted by time, then PMU, channel and horizon. What was not predicted, or came and was not good, is null.

    Parameters
    ----------
    path
        The file.
    spec
        What the network was made for.
    """

    def __init__(self, path: Path, spec: Spec) -> None:
        self._path = path
        self._spec = spec
        self._writer: pq.ParquetWriter | None = None
        self._waiting: list[pa.Table] = []
        self._rows = 0

    def take(self, output: Output) -> None:
        """Append what was expected of the frames of one output.

        Parameters
        ----------
        output
            Of the pipeline.

        Raises
        ------
        InputError
            If nothing is predicted at this reporting rate, or the file cannot be written.
        """
        if output.scored.forecast is None:
            raise InputError(
                f"predictions {self._path}: the sequence model is for {self._spec.rate_hz:g} frames a second, and "
                f"this stream has {output.signals.rate_hz:g}; leave them out, or train a model for this rate"
            )
        for rows in predictions(output, self._spec):
            self._waiting.append(rows)
            self._rows += len(rows)
            if self._rows >= ROWS:
                self._write()

    def close(self, lasting: Sequence[Event]) -> None:  # noqa: ARG002 (predictions last no longer than the frames)
        """Finish the file.

        Parameters
        ----------
        lasting
            Events that are open.
        """
        self._write()
        if self._writer is not None:
            self._writer.close()

    def _write(self) -> None:
        """Write a row group of what waits."""
        try:
            if self._writer is None:
                self._writer = pq.ParquetWriter(self._path, SCHEMA, compression="zstd")
            if self._waiting:
                self._writer.write_table(pa.concat_tables(self._waiting).unify_dictionaries())
        except (OSError, ValueError) as error:
            raise InputError(f"predictions {self._path}: {error}; name a file that can be written") from error
        self._waiting, self._rows = [], 0


def predictions(output: Output, spec: Spec) -> Iterator[pa.Table]:
    """Make rows of what was expected of the frames of one output.

    Parameters
    ----------
    output
        With a forecast.
    spec
        What the network was made for.

    Yields
    ------
    pa.Table
        Of `SCHEMA`; at most about `ROWS` rows, some whole frames.
    """
    signals, forecast = output.signals, output.scored.forecast
    assert forecast is not None  # noqa: S101 (asked by the caller)
    pmu, channel = np.nonzero(signals.table.where(*map(Quantity, spec.slots)))
    if not len(pmu):
        return
    horizons = len(spec.horizons)
    repeat = len(pmu) * horizons
    names = _names(signals.table, pmu, channel)
    horizon_s = np.tile(np.array(spec.horizons, np.float32) / np.float32(spec.rate_hz), len(pmu))
    step = max(ROWS // repeat, 1)
    for first in range(0, len(signals.time_ns), step):
        part = slice(first, first + step)
        time_ns = signals.time_ns[part]
        good = signals.good[part][:, pmu, channel]
        observed = np.where(good, signals.values[part][:, pmu, channel], np.float32(np.nan))
        expected, spread = forecast.expected[part][:, pmu, channel], forecast.spread[part][:, pmu, channel]
        half = np.float32(SPREADS) * spread
        columns = [pa.array(np.repeat(time_ns, repeat), pa.timestamp("ns", "UTC"))]
        columns += [
            pa.DictionaryArray.from_arrays(pa.array(np.tile(np.repeat(code, horizons), len(time_ns))), words)
            for code, words in names
        ]
        columns.append(pa.array(np.tile(horizon_s, len(time_ns))))
        columns += [
            _nullable(values) for values in (np.repeat(observed, horizons), expected, expected - half, expected + half)
        ]
        yield pa.table(columns, SCHEMA)


def _names(
    table: ChannelTable, pmu: NDArray[np.intp], channel: NDArray[np.intp]
) -> tuple[tuple[NDArray[np.int32], pa.Array], ...]:
    """PMU, channel and unit of each column: places in a dictionary, and the dictionary."""
    channels = [table.pmus[s].channels[c] for s, c in zip(pmu.tolist(), channel.tolist(), strict=True)]
    texts = (
        [table.pmus[s].name for s in pmu.tolist()],
        [channel_words(one.name, one.quantity) for one in channels],
        [one.unit for one in channels],
    )
    out = []
    for column in texts:
        code = {text: place for place, text in enumerate(dict.fromkeys(column))}
        out.append((np.array([code[text] for text in column], np.int32), pa.array(list(code), pa.string())))
    return tuple(out)


def _nullable(values: NDArray[np.float32]) -> pa.Array:
    flat = values.reshape(-1)
    return pa.array(flat, mask=~np.isfinite(flat))
