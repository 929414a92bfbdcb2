"""Round and round: read the log, commit what is due, tidy once an hour; for ever, or to the log's end.

In: an archiver for each partition of the log, and what says when to stop. Out: folders that are whole up to where it
stopped. It writes nothing itself.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from gridsense.archiving import tidying
from gridsense.archiving.writing import Archiver, Report, held
from streams.errors import ArchiveError, LogError

log = logging.getLogger(__name__)

POLL_S = 1.0
"""How long to wait where the log holds nothing new."""
RETRY_S = 10.0
"""How long to wait where a folder cannot be written, or the log not be read."""

_HOUR_NS = 3_600_000_000_000


def archive_once(archivers: Sequence[Archiver], tidy: tidying.Settings, now_ns: int, report: Report) -> None:
    """Archive what the log holds now.

    An `ArchiveError` says that a folder cannot be read or written, a `LogError` that the log cannot be read.

    Parameters
    ----------
    archivers
        New; one for each partition of the log.
    tidy
        When to join and remove.
    now_ns
        The time, UTC.
    report
        Told after each step.
    """
    with _held(archivers):
        for archiver in archivers:
            archiver.recover()
            while archiver.step():
                pass
            archiver.flush()
            tidying.tidy(archiver, tidy, now_ns, report)


def follow(
    archivers: Sequence[Archiver],
    tidy: tidying.Settings,
    stopped: Callable[[float], bool],
    clock_ns: Callable[[], int],
    report: Report,
) -> None:
    """Archive the log as it grows.

    A folder that cannot be written, or a log that cannot be read, is tried again, from the position. A batch that waits
    for the time to pass, while nothing comes that says so, ends after as long by the clock.

    Parameters
    ----------
    archivers
        New; one for each partition of the log.
    tidy
        When to join and remove.
    stopped
        Waits so many seconds or until it is time to stop, and says which: `threading.Event.wait`.
    clock_ns
        The time, UTC.
    report
        Told after each step.
    """
    with _held(archivers):
        rounds = [_Round(archiver, tidy, report, clock_ns()) for archiver in archivers]
        while True:
            moved = [it.go(clock_ns()) for it in rounds]
            wait_s = RETRY_S if not all(it.recovered for it in rounds) else 0.0 if any(moved) else POLL_S
            if stopped(wait_s):
                for it in rounds:
                    it.end()
                return


class _Round:
    """What is done with one archiver again and again."""

    def __init__(self, archiver: Archiver, tidy: tidying.Settings, report: Report, now_ns: int) -> None:
        self.archiver = archiver
        self.recovered = True
        self._tidy = tidy
        self._report = report
        self._span_ns = round(archiver.settings.file_span_s * 1e9)
        self._came_ns = now_ns
        self._tidied = -1
        archiver.recover()

    def go(self, now_ns: int) -> bool:
        """Read on, and do what is due; say whether there was anything to read."""
        archiver = self.archiver
        try:
            if not self.recovered:
                archiver.recover()
                self.recovered = True
            moved = archiver.step()
            if moved:
                self._came_ns = now_ns
            if archiver.waiting and now_ns - self._came_ns > self._span_ns:
                archiver.flush()
            if now_ns // _HOUR_NS != self._tidied:
                tidying.tidy(archiver, self._tidy, now_ns, self._report)
                self._tidied = now_ns // _HOUR_NS
        except (ArchiveError, LogError) as error:
            self.recovered = False
            log.error("%s; the position stays, trying again in %g s", error, RETRY_S)  # noqa: TRY400 (no traceback)
            return False
        return moved

    def end(self) -> None:
        """Commit what has been read, if that can be."""
        try:
            if self.recovered:
                self.archiver.flush()
        except (ArchiveError, LogError) as error:
            log.error("%s; the position stays, the next start goes on from there", error)  # noqa: TRY400 (no traceback)


@contextmanager
def _held(archivers: Sequence[Archiver]) -> Iterator[None]:
    """Hold the folders of all."""
    with ExitStack() as stack:
        for archiver in archivers:
            stack.enter_context(held(archiver.settings.folder))
        yield
