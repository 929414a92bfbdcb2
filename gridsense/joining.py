"""What regions say of the grid in, one event a disturbance out: the second stage, small whatever the grid's size.

Each region judges its own frames (`gridsense.regions`). Where a disturbance is seen in several, their events are joined
to one: it is told when the first region has raised it, under that one's id, and again when it has ended everywhere.
The rules, for what regions say in the order of event time:

1. A region's event of the grid, while a disturbance is open, belongs to it; else it opens one.
2. A region whose event is part of the open disturbance and that raises another speaks of a new one: the open one ends.
3. A disturbance ends when the events of all its regions have ended.

Event time stands still until every region has spoken up to it; a region that has not been heard for `patience_s`, is
further behind another by event time, or has never scored anything, is not waited for: what it says later joins what is
open then. It reads no clock and no frames: what it is told, in the order in which it is told, is all it knows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import msgspec

from gridsense.errors import StoreError
from gridsense.events import Event

LONG_AGO_NS = -(1 << 62)
FOR_EVER_NS = 1 << 62


class Change(msgspec.Struct, frozen=True, array_like=True):
    """An event that a region has raised, or that has ended there.

    Attributes
    ----------
    told_ns
        Event time at which the region could say so.
    event
        In that stage.
    """

    told_ns: int
    event: Event


class Word(msgspec.Struct, frozen=True, array_like=True):
    """What a region says at once.

    Attributes
    ----------
    region
        Its name.
    clock_ns
        When it is said. All words are on one clock.
    until_ns
        Event time up to which the region has told all its changes, these included.
    changes
        Since its last word.
    """

    region: str
    clock_ns: int
    until_ns: int
    changes: tuple[Change, ...] = ()


class _Heard(msgspec.Struct, array_like=True):
    """Of a region: when it was last heard, and up to which event time it has spoken."""

    clock_ns: int
    until_ns: int


class _Member(msgspec.Struct, frozen=True, array_like=True):
    """A region's part of a disturbance."""

    region: str
    event: Event


class _Waiting(msgspec.Struct, frozen=True, array_like=True):
    """What cannot be judged yet: regions have not spoken up to its time."""

    told_ns: int
    region: str
    event: Event


class _Memory(msgspec.Struct):
    """Everything that is remembered."""

    clock_ns: int = LONG_AGO_NS
    began_ns: int = LONG_AGO_NS
    regions: dict[str, _Heard] = msgspec.field(default_factory=dict)
    waiting: list[_Waiting] = msgspec.field(default_factory=list)
    members: list[_Member] = msgspec.field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Settings:
    """What a joiner is told once.

    Attributes
    ----------
    source
        Name of the whole grid: it stands in every event.
    patience_s
        A region that has been silent for so long, by the words' clock, or is so far behind by event time, is not waited
        for.
    regions
        Those that are waited for from the beginning; others from their first word.
    """

    source: str = "grid"
    patience_s: float = 5.0
    regions: tuple[str, ...] = ()


class Joiner:
    """Joins the events of regions; see the module for the rules.

    Parameters
    ----------
    settings
        See `Settings`.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._memory = _Memory()

    def take(self, words: Sequence[Word]) -> list[Event]:
        """Hear what regions say at once.

        Parameters
        ----------
        words
            In any order.

        Returns
        -------
        list[Event]
            Disturbances that were raised or have ended, in the order of event time.
        """
        memory = self._memory
        for word in words:
            heard = memory.regions.setdefault(word.region, _Heard(word.clock_ns, word.until_ns))
            heard.clock_ns = max(heard.clock_ns, word.clock_ns)
            heard.until_ns = max(heard.until_ns, word.until_ns)
            memory.waiting += (_Waiting(change.told_ns, word.region, change.event) for change in word.changes)
            memory.clock_ns = max(memory.clock_ns, word.clock_ns)
            if memory.began_ns == LONG_AGO_NS:
                memory.began_ns = word.clock_ns
        return self._judge(self._floor())

    def finish(self) -> list[Event]:
        """Judge what waits: nobody will say any more.

        Returns
        -------
        list[Event]
            As from `take`.
        """
        return self._judge(FOR_EVER_NS)

    def lasting(self, known: Iterable[Event] = ()) -> list[Event]:
        """Say which disturbance lasts.

        Parameters
        ----------
        known
            What regions have open now, which may have grown since it was told.

        Returns
        -------
        list[Event]
            None or one, its end unknown.
        """
        if not self._memory.members:
            return []
        newest = {event.id: event for event in known}
        return [
            self._joined(
                [msgspec.structs.replace(m, event=newest.get(m.event.id, m.event)) for m in self._memory.members]
            )
        ]

    def lags(self) -> dict[str, float]:
        """Say how far behind each region is.

        Returns
        -------
        dict[str, float]
            Seconds from its last word to the newest of all, by region.
        """
        return {name: (self._memory.clock_ns - heard.clock_ns) / 1e9 for name, heard in self._memory.regions.items()}

    def freeze(self) -> bytes:
        """Take down what is remembered.

        Returns
        -------
        bytes
            For `thaw`.
        """
        return msgspec.msgpack.encode(self._memory)

    def thaw(self, frozen: bytes) -> None:
        """Go on from what was taken down.

        Parameters
        ----------
        frozen
            From `freeze`.

        Raises
        ------
        StoreError
            If it was written by another version, or is damaged.
        """
        try:
            self._memory = msgspec.msgpack.decode(frozen, type=_Memory)
        except msgspec.MsgspecError as error:
            raise StoreError(f"the snapshot of the joined events cannot be read: {error}") from error

    def _floor(self) -> int:
        """Event time up to which all have spoken that are waited for."""
        memory, patience_ns = self._memory, round(self.settings.patience_s * 1e9)
        # A region that has scored nothing, or that somebody made up, has nothing to say.
        spoken = {name: heard for name, heard in memory.regions.items() if heard.until_ns > LONG_AGO_NS}
        unheard = not all(name in spoken for name in self.settings.regions)
        if unheard and memory.clock_ns - memory.began_ns <= patience_ns:
            return LONG_AGO_NS
        newest_ns = max((heard.until_ns for heard in spoken.values()), default=LONG_AGO_NS)
        awaited = (
            heard.until_ns
            for heard in spoken.values()
            if memory.clock_ns - heard.clock_ns <= patience_ns and newest_ns - heard.until_ns <= patience_ns
        )
        return min(awaited, default=LONG_AGO_NS)

    def _judge(self, floor_ns: int) -> list[Event]:
        """Take what was told up to an event time, in its order; a region's own order is kept."""
        waiting = self._memory.waiting
        ripe = sorted((w for w in waiting if w.told_ns <= floor_ns), key=lambda w: (w.told_ns, w.region))
        self._memory.waiting = [w for w in waiting if w.told_ns > floor_ns]
        return [event for one in ripe for event in self._hear(one)]

    def _hear(self, one: _Waiting) -> list[Event]:
        """Apply the rules to one change."""
        members = self._memory.members
        places = {member.region: place for place, member in enumerate(members)}
        out: list[Event] = []
        if one.event.end_ns is None:
            if one.region in places:
                out.append(self._ended(one.told_ns))
            opened = not self._memory.members
            self._memory.members.append(_Member(one.region, one.event))
            return [*out, self._joined(self._memory.members)] if opened else out
        place = places.get(one.region)
        if place is None or members[place].event.id != one.event.id:
            return []  # its disturbance has ended by the second rule
        members[place] = _Member(one.region, one.event)
        return [self._ended(one.told_ns)] if all(m.event.end_ns is not None for m in members) else []

    def _ended(self, told_ns: int) -> Event:
        """End the open disturbance; what still lasts of it ends now."""
        members, self._memory.members = self._memory.members, []
        end_ns = max(told_ns if m.event.end_ns is None else m.event.end_ns for m in members)
        return replace(self._joined(members), end_ns=end_ns)

    def _joined(self, members: Sequence[_Member]) -> Event:
        """Make one event of the regions' own: named after the first, explained by the one that saw it most."""
        first, most = members[0].event, max((m.event for m in members), key=lambda event: event.minus_ln_p)
        if len(members) == 1:
            return replace(first, source=self.settings.source, end_ns=None)
        regions = ", ".join(sorted(member.region for member in members))
        return replace(
            most,
            id=first.id,
            source=self.settings.source,
            onset_ns=min(member.event.onset_ns for member in members),
            raised_ns=first.raised_ns,
            end_ns=None,
            first_pmu=first.first_pmu,
            pmus=tuple(dict.fromkeys(pmu for member in members for pmu in member.event.pmus)),
            sentence=f"{most.sentence}; seen in {len(members)} regions: {regions}",
        )
