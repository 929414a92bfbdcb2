"""The regions of a grid: entries of a log in, what each region has found out of them; the first stage.

A region is what is scored together: its PMUs share a pipeline and the reference of their angles, and its entries stand
in one order. Regions know nothing of each other, so it makes no difference in which log, partition or process the
others are; what is seen in several is joined afterwards (`gridsense.joining`). Nothing is stored or sent here.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from baselines.errors import BaselinesError
from gridsense.errors import InputError, StoreError
from gridsense.events import Cause, Event
from gridsense.freezing import Frozen
from gridsense.intake import DeadLetter, Intake, Turn
from gridsense.joining import LONG_AGO_NS, Change
from gridsense.pipeline import Learned, Output, Pipeline, Settings
from streams.errors import StreamsError
from streams.log import Entry, region_of

log = logging.getLogger(__name__)

_FORM = 4
"""Of what is taken down: raised when an older one can no longer be read."""
REGIONS_MOST = 1000
"""Regions of one log, or partition, at most: whoever may write there could name any number."""
_WAITING = 1 << 20
"""Frames whose arrival is remembered at most while they wait for a tick."""


class Taken(msgspec.Struct, frozen=True, array_like=True):
    """What a region remembers, but for its large arrays.

    Attributes
    ----------
    intake
        Of its connections.
    pipeline
        None before the first frame.
    until_ns
        Event time up to which its changes are told.
    arrays
        How many large arrays there are beside it.
    """

    intake: bytes
    pipeline: bytes | None
    until_ns: int
    arrays: int


@dataclass(frozen=True, slots=True)
class Heard:
    """What a region came to at once.

    Attributes
    ----------
    region
        Its name.
    outputs
        Of its pipeline.
    arrivals_ns
        For each scored tick, when the newest of its frames came.
    events
        Those that concern this region alone: of single PMUs, of data and of communication.
    changes
        Events of the grid, for who joins regions.
    until_ns
        Event time up to which the changes are told.
    dead
        Frames that could not be used.
    """

    region: str
    outputs: Sequence[Output]
    arrivals_ns: Sequence[int]
    events: Sequence[Event]
    changes: tuple[Change, ...]
    until_ns: int
    dead: Sequence[DeadLetter]


class Region:
    """Decodes and scores the entries of one region.

    Parameters
    ----------
    name
        Empty where the grid is not divided.
    settings
        Of the pipeline; events of a named region carry its name behind the grid's.
    configured
        As of `Intake`.
    learned
        What is typical; None to learn it.

    Attributes
    ----------
    came_s
        When something last came, by the monotonic clock of this process.
    """

    def __init__(
        self, name: str, settings: Settings, configured: Callable[[str], bytes], learned: Learned | None
    ) -> None:
        self.name = name
        source = f"{settings.source}/{name}" if name else settings.source
        self.pipeline = Pipeline(replace(settings, source=source), learned)
        self.intake = Intake(configured)
        self.came_s = time.monotonic()
        self._waiting = _Waiting()
        self._until_ns = LONG_AGO_NS

    def take(self, entries: Sequence[Entry]) -> Heard:
        """Take entries in.

        Parameters
        ----------
        entries
            Of this region, in the order of the log, following those before.

        Returns
        -------
        Heard
            What came of them.
        """
        self.came_s = time.monotonic()
        return self._heard([output for turn in self.intake.take(entries) for output in self._fed(turn)])

    def lasting(self) -> list[Event]:
        """Say what is open that concerns this region alone.

        Returns
        -------
        list[Event]
            Their end unknown.
        """
        return [event for event in self.pipeline.open_events() if event.cause is not Cause.GRID]

    def finish(self) -> Heard:
        """Take the frames as ended: close every window, as at the end of a file.

        Returns
        -------
        Heard
            What came of it.
        """
        outputs = [output for turn in self.intake.finish() for output in self._fed(turn)]
        return self._heard(outputs + self.pipeline.finish())

    def freeze(self) -> tuple[Taken, tuple[NDArray[Any], ...]] | None:
        """Take down what is remembered.

        Returns
        -------
        tuple[Taken, tuple[NDArray[Any], ...]] | None
            For `thaw`; None while sources are just joining.
        """
        if not self.intake.settled:
            return None
        frozen = self.pipeline.freeze()
        skeleton, arrays = (frozen.skeleton, frozen.arrays) if frozen else (None, ())
        return Taken(self.intake.freeze(), skeleton, self._until_ns, len(arrays)), arrays

    def thaw(self, taken: Taken, arrays: tuple[NDArray[Any], ...]) -> None:
        """Go on from what was taken down. A `StoreError` says that it cannot be read.

        Parameters
        ----------
        taken
            From `freeze`.
        arrays
            Likewise.
        """
        if taken.pipeline is not None:
            self.pipeline.thaw(Frozen(taken.pipeline, arrays))
        self.intake.thaw(taken.intake, self.pipeline.tables)
        self._until_ns = taken.until_ns

    def _fed(self, turn: Turn) -> list[Output]:
        """Feed the pipeline; what it cannot take is put aside."""
        self._waiting.note(turn)
        try:
            return self.pipeline.feed(turn.batches, turn.now_ns)
        except (StreamsError, BaselinesError, InputError) as error:
            log.error("frames that the pipeline cannot take: %s", error)  # noqa: TRY400 (no bug: an expected trouble)
            for name, batch in turn.batches:
                key = name.rpartition("#")[0]
                self.intake.dead += [
                    DeadLetter(time_ns, key, "pipeline", b"", str(error)) for time_ns in batch.arrival_ns.tolist()
                ]
            return []

    def _heard(self, outputs: Sequence[Output]) -> Heard:
        told = [(told_ns, e) for o in outputs for told_ns, e in zip(o.told_ns, o.events, strict=True)]
        ticks = [int(o.scored.ticks.time_ns[-1]) for o in outputs if len(o.scored.ticks.time_ns)]
        self._until_ns = max(self._until_ns, *ticks) if ticks else self._until_ns
        dead, self.intake.dead = self.intake.dead, []
        return Heard(
            region=self.name,
            outputs=outputs,
            arrivals_ns=self._waiting.of(outputs),
            events=[event for _, event in told if event.cause is not Cause.GRID],
            changes=tuple(Change(told_ns, event) for told_ns, event in told if event.cause is Cause.GRID),
            until_ns=self._until_ns,
            dead=dead,
        )


class Regions:
    """The regions whose entries stand in one log, or in one partition of it.

    Parameters
    ----------
    settings
        Of the pipelines.
    configured
        As of `Intake`.
    learned
        What is typical, where nothing that was taken down says it; None to learn it.
    """

    def __init__(
        self, settings: Settings, configured: Callable[[str], bytes] = lambda _: b"", learned: Learned | None = None
    ) -> None:
        self.by_name: dict[str, Region] = {}
        self._settings = settings
        self._configured = configured
        self._learned = learned

    @property
    def nature(self) -> str:
        """Under which settings a state makes sense; the detector's may change."""
        it = self._settings
        told = repr((_FORM, it.learn_s, it.align, it.quality, it.persist_s, it.scorers, it.model))
        return hashlib.blake2b(told.encode(), digest_size=8).hexdigest()

    @property
    def clock_ns(self) -> int:
        """What time it is by the entries; 0 before the first."""
        return max((region.intake.clock_ns for region in self.by_name.values()), default=0)

    @property
    def frames(self) -> int:
        """Data frames decoded since this began."""
        return sum(region.intake.frames.total() for region in self.by_name.values())

    def take(self, entries: Sequence[Entry]) -> list[Heard]:
        """Take entries in.

        Parameters
        ----------
        entries
            In the order of the log, following those before.

        Returns
        -------
        list[Heard]
            One for each region that got anything.
        """
        shares: dict[str, list[Entry]] = {}
        for entry in entries:
            shares.setdefault(region_of(entry.key), []).append(entry)
        strays = [name for name in shares if name not in self.by_name][max(REGIONS_MOST - len(self.by_name), 0) :]
        strangers = [_stranger(name, shares.pop(name)) for name in strays]
        return [self._region(name).take(share) for name, share in sorted(shares.items())] + strangers

    def finish(self) -> list[Heard]:
        """Take the frames as ended.

        Returns
        -------
        list[Heard]
            One for each region.
        """
        return [region.finish() for _, region in sorted(self.by_name.items())]

    def open_events(self) -> list[Event]:
        """Say which events last, those of the grid as each region has them.

        Returns
        -------
        list[Event]
            Their end unknown.
        """
        return [event for region in self.by_name.values() for event in region.pipeline.open_events()]

    def freeze(self) -> tuple[bytes, tuple[NDArray[Any], ...]] | None:
        """Take down what is remembered. It shares the arrays with the state.

        Returns
        -------
        tuple[bytes, tuple[NDArray[Any], ...]] | None
            Everything but the large arrays, and those; None while sources are just joining.
        """
        parts: dict[str, Taken] = {}
        arrays: list[NDArray[Any]] = []
        for name, region in self.by_name.items():
            frozen = region.freeze()
            if frozen is None:
                return None
            parts[name] = frozen[0]
            arrays += frozen[1]
        return msgspec.msgpack.encode(parts), tuple(arrays)

    def thaw(self, body: bytes, arrays: Sequence[NDArray[Any]]) -> None:
        """Go on from what was taken down.

        Parameters
        ----------
        body
            From `freeze`.
        arrays
            Likewise.

        Raises
        ------
        StoreError
            If it was written by another version, or is damaged: there are no regions then.
        """
        try:
            begin = 0
            for name, taken in msgspec.msgpack.decode(body, type=dict[str, Taken]).items():
                self._region(name).thaw(taken, tuple(arrays[begin : begin + taken.arrays]))
                begin += taken.arrays
        except (StoreError, msgspec.MsgspecError, ValueError) as error:
            self.by_name.clear()
            raise StoreError(f"the snapshot cannot be used: {error}") from error

    def _region(self, name: str) -> Region:
        if name not in self.by_name:
            self.by_name[name] = Region(name, self._settings, self._configured, self._learned)
        return self.by_name[name]


def _stranger(name: str, entries: Sequence[Entry]) -> Heard:
    """Put the entries of a region aside that is one too many."""
    detail = f"there are {REGIONS_MOST} regions already, and {name!r} is none of them"
    dead = [DeadLetter(entry.time_ns, entry.key, "region", entry.value, detail) for entry in entries]
    return Heard(name, (), (), (), (), LONG_AGO_NS, dead)


class _Waiting:
    """When the frames came that wait for their tick."""

    def __init__(self) -> None:
        self._time_ns: NDArray[np.int64] = np.empty(0, np.int64)
        self._arrival_ns: NDArray[np.int64] = np.empty(0, np.int64)

    def note(self, turn: Turn) -> None:
        """Note frames; where no tick has come for very many, the oldest are forgotten."""
        if turn.batches:
            self._time_ns, self._arrival_ns = self._time_ns[-_WAITING:], self._arrival_ns[-_WAITING:]
            self._time_ns = np.concatenate([self._time_ns, *(b.time_ns for _, b in turn.batches)])
            self._arrival_ns = np.concatenate([self._arrival_ns, *(b.arrival_ns for _, b in turn.batches)])

    def of(self, outputs: Iterable[Output]) -> list[int]:
        """For each tick of the outputs, when the newest of its frames came; they wait no longer."""
        ticks = np.concatenate([np.empty(0, np.int64), *(o.scored.ticks.time_ns for o in outputs)])
        if not len(ticks):
            return []
        # A stamp may stand half a period beside its slot; what lies before the first of these ticks waited for none.
        place = np.searchsorted(ticks, self._time_ns)
        newest = np.zeros(len(ticks) + 1, np.int64)
        np.maximum.at(newest, place, self._arrival_ns)
        rest = place == len(ticks)
        self._time_ns, self._arrival_ns = self._time_ns[rest], self._arrival_ns[rest]
        return [one for one in newest[:-1].tolist() if one]
