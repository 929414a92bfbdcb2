"""One thread that writes what connections received, so that none of them ever waits for the log.

In: records of the event loop's thread, in order. Out: one append per topic every few milliseconds. It holds what the
log has no room for, up to a bound, and says no beyond it; it decides nothing else.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Protocol

from streams.errors import LogError, LogFullError
from streams.log import CONFIGURATIONS, DEAD_LETTERS, FRAMES, Entry, Record

RECORD_BYTES = 128
"""What a record costs beside its value, about."""

RESERVE_BYTES = 1 << 24
"""Room beyond the bound for configurations: the data behind one are worth nothing without it."""

_TOPICS = (FRAMES, CONFIGURATIONS, DEAD_LETTERS)
"""In this order: after a crash between two of them a configuration stands in the log twice, never only half."""

_APPEND_BYTES = 1 << 23
_BEHIND = 4  # a quarter of the bound
_RETRY_MOST_S = 1.0
_COMPLAIN_S = 60.0

_log = logging.getLogger(__name__)


class Sink(Protocol):
    """Where a writer writes to: a log, or what stands before one. Its methods are those of `streams.log.Log`."""

    def append(self, topic: str, records: Sequence[Record]) -> object:
        """Write records; see `streams.log.Log`."""
        ...

    def latest(self, topic: str) -> dict[str, Entry]:
        """Read the newest entry of each key; see `streams.log.Log`."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


class Writer:
    """Gathers records and writes them from a thread of its own.

    Parameters
    ----------
    make_log
        Makes the log; called in the thread, and again after an error that is no lack of room.
    flush_s
        How often to write.
    buffer_bytes
        What is gathered at most.
    """

    def __init__(self, make_log: Callable[[], Sink], flush_s: float, buffer_bytes: int) -> None:
        self._make_log = make_log
        self._flush_s = flush_s
        self._buffer_bytes = buffer_bytes
        self._waiting: deque[tuple[str, Record]] = deque()
        self._offered_bytes = 0  # only the loop's thread changes it
        self._done_bytes = 0  # only the writer's
        self._stopping = threading.Event()
        self._give_up_at = float("inf")
        self._complained_at = float("-inf")
        self._thread = threading.Thread(target=self._run, name="gateway-writer", daemon=True)
        self.known: Future[dict[str, bytes]] = Future()
        """The configurations that the log has, by key, once it is open."""
        self.failure: BaseException | None = None
        """What ended the thread before its time."""
        self.written_records = 0
        self.written_bytes = 0
        self.failed_writes = 0
        self.lost_records = 0
        """Gathered, but not written when the time to stop was up."""

    @property
    def gathered_bytes(self) -> int:
        """Waiting to be written."""
        return self._offered_bytes - self._done_bytes

    @property
    def behind(self) -> bool:
        """So much waits to be written that who sends fast should be read more slowly."""
        return self.gathered_bytes > self._buffer_bytes // _BEHIND

    def start(self) -> None:
        """Open the log and begin to write; `known` tells when it is open."""
        self._thread.start()

    def offer(self, topic: str, record: Record) -> bool:
        """Take a record, without waiting.

        Parameters
        ----------
        topic
            One of the three of `streams.log`.
        record
            What to write.

        Returns
        -------
        bool
            False where there is no room: it was not taken.
        """
        size = len(record.value) + RECORD_BYTES
        if self._offered_bytes - self._done_bytes + size > self._buffer_bytes:
            return False
        self._offered_bytes += size
        self._waiting.append((topic, record))
        return True

    def offer_configuration(self, record: Record) -> bool:
        """Take a configuration for both of its topics, if need be into the reserve.

        Parameters
        ----------
        record
            What to write.

        Returns
        -------
        bool
            False where even that is full.
        """
        size = len(record.value) + RECORD_BYTES
        if self.gathered_bytes + 2 * size > self._buffer_bytes + RESERVE_BYTES:
            return False
        self._offered_bytes += 2 * size
        self._waiting.append((FRAMES, record))
        self._waiting.append((CONFIGURATIONS, record))
        return True

    def stop(self, within_s: float) -> None:
        """Write what was gathered and close the log. Waits for it: not to be called in the event loop.

        Parameters
        ----------
        within_s
            After this time what the log still refuses is given up, counted and logged.
        """
        self._give_up_at = time.monotonic() + within_s
        self._stopping.set()
        if self._thread.ident is None:
            return
        self._thread.join(within_s + _RETRY_MOST_S)
        if self._thread.is_alive():
            _log.error("stopped: the log does not answer, %d bytes may not be written", self.gathered_bytes)

    def check(self) -> None:
        """Raise what ended the thread before its time, if anything did."""
        if self.failure is not None:
            raise self.failure

    def _run(self) -> None:
        log: Sink | None = None
        try:
            log = self._make_log()
            known = {key: entry.value for key, entry in log.latest(CONFIGURATIONS).items()}
        except BaseException as error:  # noqa: BLE001 - it is raised where the result is asked for
            self._let_go(log)
            self.known.set_exception(error)
            return
        self.known.set_result(known)
        try:
            self._write(log)
        except BaseException as error:  # noqa: BLE001 - the gateway looks for it and raises it
            self.failure = error

    def _write(self, log: Sink | None) -> None:
        try:
            while True:
                stopping = self._stopping.wait(self._flush_s)
                while batch := self._take():
                    for topic in _TOPICS:
                        records = [record for to, record in batch if to == topic]
                        if records:
                            log = self._append(log, topic, records)
                    self._done_bytes += sum(len(record.value) + RECORD_BYTES for _, record in batch)
                if stopping:
                    break
        finally:
            if log is not None:
                log.close()
        if self.lost_records:
            _log.error("stopped: %d records could not be written, the log had no room for them", self.lost_records)

    def _take(self) -> list[tuple[str, Record]]:
        """Take what waits, or the beginning of it."""
        batch: list[tuple[str, Record]] = []
        room = _APPEND_BYTES
        while self._waiting and room > 0:
            batch.append(self._waiting.popleft())
            room -= len(batch[-1][1].value)
        return batch

    def _append(self, log: Sink | None, topic: str, records: list[Record]) -> Sink | None:
        """Append until it is done, or until there is no time left; the log, perhaps opened anew."""
        retry_s = self._flush_s
        while True:
            try:
                if log is None:
                    log = self._make_log()
                log.append(topic, records)
            except LogError as error:
                self.failed_writes += 1
                self._complain(error)
                if not isinstance(error, LogFullError):
                    self._let_go(log)
                    log = None
                if time.monotonic() > self._give_up_at:
                    self.lost_records += len(records)
                    return log
            else:
                self.written_records += len(records)
                self.written_bytes += sum(len(record.value) for record in records)
                return log
            retry_s = min(2 * retry_s, _RETRY_MOST_S)
            if self._stopping.wait(retry_s):
                time.sleep(self._flush_s)

    def _let_go(self, log: Sink | None) -> None:
        if log is not None:
            try:
                log.close()
            except LogError as error:
                _log.debug("the log cannot be closed: %s", error)

    def _complain(self, error: LogError) -> None:
        """Say it once, and again every minute."""
        if time.monotonic() - self._complained_at > _COMPLAIN_S:
            self._complained_at = time.monotonic()
            _log.error("the log takes nothing, %d bytes are waiting: %s", self.gathered_bytes, error)
