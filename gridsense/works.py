"""What the two stages make of a partition: frames to events, scores and words of regions; those words to disturbances.

In: entries of `pmu.frames`, or of `pmu.regional`. Out: records for the other topics, and steps for observers. Both say
the same of the same entries however they are cut, as `gridsense.stage` wants it; it does everything that is Kafka's.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gridsense.errors import StoreError
from gridsense.events import Event, cloudevent
from gridsense.intake import DeadLetter
from gridsense.joining import Joiner, Word
from gridsense.joining import Settings as JoinSettings
from gridsense.pipeline import Learned, Output
from gridsense.pipeline import Settings as PipelineSettings
from gridsense.predictions import predictions
from gridsense.processor import DEAD_BYTES, NOTHING, Step, gap, mark_of
from gridsense.regions import Heard, Regions
from models.spec import Spec
from streams.kafka.member import Outgoing
from streams.kafka.records import NOTE
from streams.log import DEAD_LETTERS, EVENTS, FRAMES, PREDICTIONS, REGIONAL, SCORES, Entry, Lost

log = logging.getLogger(__name__)

TABLE_BYTES = 4 << 20
"""Of scores, or predictions, that one record holds, about."""
_FORM = 1
"""Of what the second stage takes down."""
_WORDS = msgspec.msgpack.Decoder(list[Word])


@dataclass(frozen=True, slots=True)
class Settings:
    """What the works are told once.

    Attributes
    ----------
    pipeline
        Of each region.
    idle_s
        Nothing having come of a region for so long, not even a mark, it is marked what time it is.
    scores
        Whether the scores of each PMU are written.
    predicted
        What the network was made for, where its predictions are written; else None.
    patience_s, regions
        As of `gridsense.joining.Settings`.
    """

    pipeline: PipelineSettings
    idle_s: float = 10.0
    scores: bool = True
    predicted: Spec | None = None
    patience_s: float = 5.0
    regions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Found:
    """What a work has found.

    Attributes
    ----------
    heard
        Of each region.
    events
        To be told, in order: of the second stage those of the grid, of the first all others.
    dead
        What could not be used.
    lost
        What could not be read.
    """

    heard: Sequence[Heard] = ()
    events: Sequence[Event] = ()
    dead: Sequence[DeadLetter] = ()
    lost: Sequence[Lost] = ()


Watch = Callable[[Step], None]
"""Told of every step, once it is safe."""


class RegionalWork:
    """The first stage: scores the regions that live in one partition.

    Parameters
    ----------
    partition
        Which.
    settings
        See `Settings`.
    configured
        As of `gridsense.intake.Intake`.
    learned
        What is typical, where no snapshot says it; None to learn it.
    watch
        Told of every step, one for each region.
    now_ns
        The wall clock, UTC nanoseconds.
    """

    def __init__(  # noqa: PLR0917 (called once, by the service)
        self,
        partition: int,
        settings: Settings,
        configured: Callable[[str], bytes],
        learned: Learned | None,
        watch: Watch,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.regions = Regions(settings.pipeline, configured, learned)
        self._partition = partition
        self._settings = settings
        self._watch = watch
        self._now_ns = now_ns

    @property
    def nature(self) -> str:
        """As of the regions."""
        return self.regions.nature

    def take(self, entries: Sequence[Entry], lost: Sequence[Lost]) -> Found:
        """Take entries in.

        Parameters
        ----------
        entries
            In order, following those before.
        lost
            What stood before them and could not be read.

        Returns
        -------
        Found
            What came of them.
        """
        place = f"{FRAMES}#{self._partition}"
        gaps = [gap(self._settings.pipeline.source, self.regions.clock_ns, place, one) for one in lost]
        heard = self.regions.take(entries)
        events = [*gaps, *(event for one in heard for event in one.events)]
        return Found(heard, events, [letter for one in heard for letter in one.dead], lost)

    def records(self, found: Found) -> list[Outgoing]:
        """Write down what was found.

        Parameters
        ----------
        found
            From `take`.

        Returns
        -------
        list[Outgoing]
            Events of single regions, words of regions, scores, predictions, dead letters.
        """
        now_ns = self._now_ns()
        out = [_told(event, now_ns) for event in found.events]
        known = [one for one in found.heard if one.region in self.regions.by_name]
        words = [Word(one.region, now_ns, one.until_ns, one.changes) for one in known]
        if words:
            key = str(self._partition)
            out.append(Outgoing(REGIONAL, 0, key, msgspec.msgpack.encode(words), time_ns=now_ns))
        for one in known:
            for output in one.outputs:
                if self._settings.scores:
                    out += self._table(SCORES, one.region, scores(output), now_ns)
                if self._settings.predicted is not None and output.scored.forecast is not None:
                    for rows in predictions(output, self._settings.predicted):
                        out += self._table(PREDICTIONS, one.region, rows, now_ns)
        return out + [_dead(letter, self._partition) for letter in found.dead]

    def committed(self, found: Found, place: int, took_s: float) -> None:
        """Tell who watches.

        Parameters
        ----------
        found
            From `take`; it is safe now.
        place
            Offset of the first entry that was not read.
        took_s
            How long all of it took.
        """
        now_ns = self._now_ns()
        for n, one in enumerate(found.heard or [NOTHING]):
            region = self.regions.by_name.get(one.region)
            self._watch(
                Step(
                    region=one.region,
                    place=place,
                    outputs=one.outputs,
                    events=[*(found.events[: len(found.lost)] if n == 0 else ()), *one.events],
                    lasting=region.lasting() if region is not None else (),
                    dead=one.dead,
                    lost=found.lost if n == 0 else (),
                    latency_s=[(now_ns - arrival) / 1e9 for arrival in one.arrivals_ns],
                    took_s=took_s if n == 0 else 0.0,
                    clock_ns=region.intake.clock_ns if region is not None else 0,
                    frames=region.intake.frames.total() if region is not None else 0,
                )
            )

    def idle(self, alive_s: float) -> list[Outgoing]:
        """Mark what time it is, for regions of which nothing has come for long.

        Parameters
        ----------
        alive_s
            Since when the servers have been there, by the monotonic clock: before that, silence says nothing.

        Returns
        -------
        list[Outgoing]
            Marks, for the partition itself.
        """
        marks = (
            mark_of(region, self._settings.idle_s, self._now_ns(), alive_s) for region in self.regions.by_name.values()
        )
        return [Outgoing(FRAMES, self._partition, m.key, m.value, time_ns=m.time_ns) for m in marks if m is not None]

    def freeze(self) -> tuple[bytes, tuple[NDArray[Any], ...]] | None:
        """Take down what is remembered.

        Returns
        -------
        tuple[bytes, tuple[NDArray[Any], ...]] | None
            None while sources are just joining.
        """
        return self.regions.freeze()

    def thaw(self, body: bytes, arrays: Sequence[NDArray[Any]]) -> None:
        """Go on from what was taken down. A `StoreError` says that it cannot be used.

        Parameters
        ----------
        body
            From `freeze`.
        arrays
            Likewise.
        """
        self.regions.thaw(body, arrays)

    def _table(self, topic: str, region: str, rows: pa.Table | pa.RecordBatch, now_ns: int) -> Iterator[Outgoing]:
        """Write a table as records that are not too large: a gap may hold very many ticks."""
        each = max(rows.num_rows * TABLE_BYTES // max(rows.nbytes, 1), 1)
        for first in range(0, rows.num_rows, each):
            yield Outgoing(topic, self._partition, region, ipc(rows.slice(first, each), region), time_ns=now_ns)


class JoiningWork:
    """The second stage: joins what regions say of the grid.

    Parameters
    ----------
    settings
        See `Settings`.
    watch
        Told of every step.
    now_ns
        The wall clock, UTC nanoseconds.
    """

    def __init__(self, settings: Settings, watch: Watch, now_ns: Callable[[], int] = time.time_ns) -> None:
        self.joiner = Joiner(JoinSettings(settings.pipeline.source, settings.patience_s, settings.regions))
        self._watch = watch
        self._now_ns = now_ns
        self._clock_ns = 0

    @property
    def nature(self) -> str:
        """Under which settings a state makes sense."""
        return hashlib.blake2b(repr((_FORM, self.joiner.settings.source)).encode(), digest_size=8).hexdigest()

    def take(self, entries: Sequence[Entry], lost: Sequence[Lost]) -> Found:
        """Take words in, those of one record at a time: so much is said at once however the records are read.

        Parameters
        ----------
        entries
            In order, following those before.
        lost
            What stood before them and could not be read.

        Returns
        -------
        Found
            Disturbances, raised or ended.
        """
        events = [gap(self.joiner.settings.source, self._clock_ns, REGIONAL, one) for one in lost]
        dead: list[DeadLetter] = []
        for entry in entries:
            self._clock_ns = max(self._clock_ns, entry.time_ns)
            try:
                words = _WORDS.decode(entry.value)
            except msgspec.MsgspecError as error:
                dead.append(DeadLetter(entry.time_ns, entry.key, "words", entry.value, str(error)))
                continue
            events += self.joiner.take(words)
        return Found((), events, dead, lost)

    def records(self, found: Found) -> list[Outgoing]:
        """Write down what was found.

        Parameters
        ----------
        found
            From `take`.

        Returns
        -------
        list[Outgoing]
            Events of the grid, and dead letters.
        """
        now_ns = self._now_ns()
        return [*(_told(event, now_ns) for event in found.events), *(_dead(letter, 0) for letter in found.dead)]

    def committed(self, found: Found, place: int, took_s: float) -> None:
        """Tell who watches.

        Parameters
        ----------
        found
            From `take`; it is safe now.
        place
            Offset of the first entry that was not read.
        took_s
            How long it took.
        """
        self._watch(
            Step(
                region=JOINT,
                place=place,
                outputs=(),
                events=found.events,
                lasting=self.joiner.lasting(),
                dead=found.dead,
                lost=found.lost,
                latency_s=(),
                took_s=took_s,
                clock_ns=self._clock_ns,
            )
        )

    def idle(self, alive_s: float) -> list[Outgoing]:  # noqa: ARG002 (the work's form)
        """Say nothing: the words' own clock is the only one.

        Parameters
        ----------
        alive_s
            Since when the servers have been there.

        Returns
        -------
        list[Outgoing]
            None.
        """
        return []

    def freeze(self) -> tuple[bytes, tuple[NDArray[Any], ...]] | None:
        """Take down what is remembered.

        Returns
        -------
        tuple[bytes, tuple[NDArray[Any], ...]] | None
            Without arrays.
        """
        return msgspec.msgpack.encode((self._clock_ns, self.joiner.freeze())), ()

    def thaw(self, body: bytes, arrays: Sequence[NDArray[Any]]) -> None:  # noqa: ARG002 (the work's form)
        """Go on from what was taken down.

        Parameters
        ----------
        body
            From `freeze`.
        arrays
            None.

        Raises
        ------
        StoreError
            If it cannot be used.
        """
        try:
            clock_ns, joined = msgspec.msgpack.decode(body, type=tuple[int, bytes])
        except msgspec.MsgspecError as error:
            raise StoreError(f"the snapshot of the joining stage cannot be read: {error}") from error
        self.joiner.thaw(joined)
        self._clock_ns = clock_ns


JOINT = "/join"
"""Under which name, beside those of regions, the second stage tells of itself: no region can have it."""


def scores(output: Output) -> pa.RecordBatch:
    """Lay out what the scorers said: a row for each tick, of which each track holds a list with a place for each PMU.

    Parameters
    ----------
    output
        Of the pipeline.

    Returns
    -------
    pa.RecordBatch
        `time`; for each track its name: lists of float32 -ln p, NaN where it says nothing; and `grid NAME`: its word on
        the grid above how restless that has been. The PMUs' names stand in the schema's metadata, as JSON.
    """
    ticks, grid = output.scored.ticks, output.grid
    names = [pmu.name for pmu in output.signals.table.pmus]
    columns: dict[str, pa.Array] = {"time": pa.array(ticks.time_ns, pa.timestamp("ns", "UTC"))}
    for place, track in enumerate(ticks.tracks):
        flat = pa.array(np.ascontiguousarray(track.score, np.float32).reshape(-1))
        columns[track.name] = pa.FixedSizeListArray.from_arrays(flat, len(names))
        word = (grid.score[:, place] - grid.background[:, place]).astype(np.float32)
        columns[f"grid {track.name}"] = pa.array(word)
    batch = pa.RecordBatch.from_pydict(columns)
    return batch.replace_schema_metadata({"pmus": msgspec.json.encode(names)})


def ipc(rows: pa.Table | pa.RecordBatch, region: str) -> bytes:
    """Encode a table as one Arrow IPC stream.

    Parameters
    ----------
    rows
        Any.
    region
        Put into the schema's metadata.

    Returns
    -------
    bytes
        For `pyarrow.ipc.open_stream`.
    """
    rows = rows.replace_schema_metadata({**(rows.schema.metadata or {}), "region": region})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as stream:
        stream.write(rows)
    return bytes(sink.getvalue())


def _told(event: Event, now_ns: int) -> Outgoing:
    return Outgoing(EVENTS, 0, event.id, cloudevent(event), time_ns=now_ns)


def _dead(letter: DeadLetter, partition: int) -> Outgoing:
    note = f"{letter.reason}: {letter.detail}".encode()
    return Outgoing(DEAD_LETTERS, partition, letter.key, letter.frame[:DEAD_BYTES], ((NOTE, note),), letter.time_ns)
