"""Round and round: read the log, commit what is due, tidy once an hour; for ever, or to the log's end.

In: an archiver, and what says when to stop. Out: a folder that is whole up to where it stopped. It writes nothing
itself.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from gridsense.archiving import tidying
from gridsense.archiving.writing import Archiver, Report, held
from streams.errors import ArchiveError

log = logging.getLogger(__name__)

POLL_S = 1.0
"""How long to wait where the log holds nothing new."""
RETRY_S = 10.0
"""How long to wait where the folder cannot be written."""

_HOUR_NS = 3_600_000_000_000


def archive_once(archiver: Archiver, tidy: tidying.Settings, now_ns: int, report: Report) -> None:
    """Archive what the log holds now. An `ArchiveError` says that the folder cannot be read or written.

    Parameters
    ----------
    archiver
        New.
    tidy
        When to join and remove.
    now_ns
        The time, UTC.
    report
        Told after each step.
    """
    with held(archiver.settings.folder):
        archiver.recover()
        while archiver.step():
            pass
        archiver.flush()
        tidying.tidy(archiver, tidy, now_ns, report)


def follow(
    archiver: Archiver,
    tidy: tidying.Settings,
    stopped: Callable[[float], bool],
    clock_ns: Callable[[], int],
    report: Report,
) -> None:
    """Archive the log as it grows.

    A folder that cannot be written is tried again, from its position. A batch that waits for the time to pass, while
    nothing comes that says so, ends after as long by the clock.

    Parameters
    ----------
    archiver
        New.
    tidy
        When to join and remove.
    stopped
        Waits so many seconds or until it is time to stop, and says which: `threading.Event.wait`.
    clock_ns
        The time, UTC.
    report
        Told after each step.
    """
    span_ns = round(archiver.settings.file_span_s * 1e9)
    with held(archiver.settings.folder):
        archiver.recover()
        came_ns, tidied, recovered = clock_ns(), -1, True
        while True:
            now_ns, wait_s = clock_ns(), 0.0
            try:
                if not recovered:
                    archiver.recover()
                    recovered = True
                if archiver.step():
                    came_ns = now_ns
                else:
                    wait_s = POLL_S
                if archiver.waiting and now_ns - came_ns > span_ns:
                    archiver.flush()
                if now_ns // _HOUR_NS != tidied:
                    tidying.tidy(archiver, tidy, now_ns, report)
                    tidied = now_ns // _HOUR_NS
                if stopped(wait_s):
                    archiver.flush()
                    return
            except ArchiveError as error:
                recovered = False
                log.error("%s; the position stays, trying again in %g s", error, RETRY_S)  # noqa: TRY400 (no traceback)
                if stopped(RETRY_S):
                    return
