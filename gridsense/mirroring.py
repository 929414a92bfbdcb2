"""Events and statuses of a log's topics in, an event store that says the same out: for those who follow a store.

`Mirror` reads on from where the store says it is, and may read again what it has read: the store knows it. What is no
event is counted and passed over. It writes to no topic; `StatusTopic`, the other way round, is where the boards of
`gridsense.status` say how they are when there is no store between them and those who watch.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import msgspec

from gridsense.config import Config
from gridsense.errors import StoreError
from gridsense.fleet import name_of
from gridsense.log_opening import log_place, open_log
from gridsense.status import OpenSink
from gridsense.store import EventStore
from streams.errors import LogError
from streams.log import EVENTS, STATUS, Log, Record

log = logging.getLogger(__name__)

POLL_S = 0.2
"""How long to wait where the topics hold nothing new."""
RETRY_S = 2.0
"""How long to wait where the log cannot be read, or the store not be written."""

_PLACE = "mirror"
"""Under which name a store holds how far it is."""


class _Place(msgspec.Struct, frozen=True):
    """How far a store is.

    Attributes
    ----------
    source
        Of which log.
    next
        Offset of the events that comes next.
    """

    source: str
    next: int


class Mirror:
    """Keeps an event store as the topics are. Used by one thread.

    Parameters
    ----------
    open_log
        Opens the log, from any thread.
    store
        The store's file; made if absent. One that mirrored another log begins anew, and keeps what it had.
    source
        Which log it is, in words: two that are not the same are told apart by it.
    since_s
        How far back events are wanted, by when they were written; None for all.
    now_ns
        The wall clock, UTC nanoseconds.

    Attributes
    ----------
    trouble
        Why it cannot go on; empty where it does.
    unreadable
        Records among the events that are none.
    """

    def __init__(
        self,
        open_log: Callable[[], Log],
        store: Path,
        source: str,
        since_s: float | None = None,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.trouble = ""
        self.unreadable = 0
        self._open_log = open_log
        self._path = store
        self._source = source
        self._since_s = since_s
        self._now_ns = now_ns
        self._opened: tuple[Log, EventStore] | None = None
        self._next = self._next_status = 0

    def step(self) -> bool:
        """Take over what is new.

        Returns
        -------
        bool
            Whether there was anything.

        Raises
        ------
        LogError
            If the log cannot be read; as after the other, the next step begins again from where the store is.
        StoreError
            If the store cannot be written.
        """
        source, store = self._opened or self._open()
        try:
            # In this order: what has ended by the time of a status is among the events.
            statuses = source.read(STATUS, self._next_status)
            events = source.read(EVENTS, self._next)
            for lost in events.lost:
                log.warning("events at offsets %d to %d are %s", lost.first, lost.last, lost.reason)
            strange = store.put_cloudevents(entry.value for entry in events.entries if entry.value)
            if strange:
                log.warning("%d records before offset %d are no events", strange, events.next)
                self.unreadable += strange
            moved = events.next > self._next, statuses.next > self._next_status
            if moved[0]:
                store.put_status(_PLACE, msgspec.json.encode(_Place(self._source, events.next)))
            self._next = events.next
            for key, body in {entry.key: entry.value for entry in statuses.entries if entry.value}.items():
                store.put_status(key, body)
            self._next_status = statuses.next
        except (LogError, StoreError):
            self.close()
            raise
        return any(moved)

    def run(self, stop: threading.Event) -> None:
        """Take over what is new until told to stop; a trouble is a pause.

        Parameters
        ----------
        stop
            Set it to stop.
        """
        with closing(self):
            while not stop.is_set():
                try:
                    wait_s = 0.0 if self.step() else POLL_S
                    self.trouble = ""
                except (LogError, StoreError) as error:
                    if not self.trouble:
                        log.warning("%s; trying again", error)
                    self.trouble = str(error)
                    wait_s = RETRY_S
                stop.wait(wait_s)

    def close(self) -> None:
        """Let go of the log and the store."""
        if self._opened is not None:
            source, store = self._opened
            self._opened = None
            store.close()
            source.close()

    def _open(self) -> tuple[Log, EventStore]:
        source = self._open_log()
        try:
            store = EventStore(self._path)
            try:
                self._next, self._next_status = self._begin(source, store)
            except BaseException:
                store.close()
                raise
        except BaseException:
            source.close()
            raise
        self._opened = source, store
        return self._opened

    def _begin(self, source: Log, store: EventStore) -> tuple[int, int]:
        """Find where to go on: in the events, and in the statuses, whose newest are wanted."""
        before = source.extent(STATUS).next
        for key, entry in source.latest(STATUS).items():
            if entry.value:
                store.put_status(key, entry.value)
        body = store.status(_PLACE)
        try:
            place = msgspec.json.decode(body, type=_Place) if body else None
        except msgspec.MsgspecError:
            place = None
        extent = source.extent(EVENTS)
        if place is not None and place.source == self._source and place.next <= extent.next:
            return place.next, before
        if self._since_s is None:
            return extent.first, before
        return first_since(source, EVENTS, self._now_ns() - round(self._since_s * 1e9)), before


def mirror_of(config: Config, store: Path, since_s: float | None = None) -> Mirror:
    """Make what keeps a store as the events and statuses are in the log that is configured.

    Parameters
    ----------
    config
        With the log in Kafka.
    store
        See `Mirror`.
    since_s
        Likewise.

    Returns
    -------
    Mirror
        Close it at the end.
    """
    source = f"{log_place(config)} {config.kafka.prefix}".strip()
    return Mirror(lambda: open_log(config), store, source, since_s)


def mirror(config: Config, store: Path, stop: threading.Event) -> None:
    """Keep a store as the events and statuses are in the log that is configured, all of them, until told to stop.

    Parameters
    ----------
    config
        With the log in Kafka.
    store
        The store's file; made if absent.
    stop
        Set it to stop.
    """
    mirror_of(config, store).run(stop)


def status_place(config: Config, part: str = "") -> Path | OpenSink:
    """Say where a service tells how it is: in the event store, or in a topic where the log is in Kafka.

    Parameters
    ----------
    config
        The whole; kafka.instance tells one of several from the others, else its host and process do.
    part
        Which of several that this process is.

    Returns
    -------
    Path | OpenSink
        For the boards of `gridsense.status`.
    """
    if not config.log_servers:
        return config.store_path
    instance = config.kafka.instance or f"{socket.gethostname()}-{os.getpid()}"
    return lambda: StatusTopic(open_log(config), f"{instance} {part}".strip())


def first_since(source: Log, topic: str, time_ns: int) -> int:
    """Find where a topic passes a moment, by looking at some of its entries.

    Parameters
    ----------
    source
        The log.
    topic
        Whose entries stand in order of time, as far as they do.
    time_ns
        UTC nanoseconds.

    Returns
    -------
    int
        Offset at or before the first entry of that time or later; the end where all are earlier. A `LogError` says that
        it cannot be read.
    """
    extent = source.extent(topic)
    low, high = extent.first, extent.next  # what lies before low is earlier, what lies from high on is not
    while low < high:
        middle = (low + high) // 2
        entries = source.read(topic, middle, 1).entries
        if not entries or entries[0].time_ns >= time_ns:
            high = middle
        else:
            low = entries[0].offset + 1
    return low


class StatusTopic:
    """The topic in which services say how they are: the place of the boards where there is no store.

    Parameters
    ----------
    source
        The log, from now on this object's own.
    instance
        Which of several of its kind speaks; empty for the only one.
    now_ns
        The wall clock, UTC nanoseconds.
    """

    def __init__(self, source: Log, instance: str = "", now_ns: Callable[[], int] = time.time_ns) -> None:
        self._log = source
        self._instance = instance
        self._now_ns = now_ns

    def put_status(self, name: str, body: bytes) -> None:
        """Say how somebody is, in place of what was said before.

        Parameters
        ----------
        name
            Who, of this instance.
        body
            In its own words. A `LogError` says that it could not be written.
        """
        self._log.append(STATUS, [Record(self._now_ns(), name_of(name, self._instance), body)])

    def close(self) -> None:
        """Let go of the log."""
        self._log.close()
