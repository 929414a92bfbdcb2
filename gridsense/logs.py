"""The log lines of a service: structlog's and the libraries' alike, one a line, on one stream.

In: records of `structlog` and of `logging`. Out: JSON lines (`time`, `level`, `logger`, `event`, then whatever was
said beside), or a coloured console on a terminal; the same message again and again is said once and counted. Offline
commands do without.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from traceback import format_exception
from types import TracebackType
from typing import Any, Literal, TextIO

import msgspec
import numpy as np
import structlog
from structlog.tracebacks import ExceptionDictTransformer
from structlog.typing import EventDict, Processor

from gridsense.errors import UsageError
from gridsense.events import rfc3339

Format = Literal["auto", "console", "json"]
"""``auto``: a console where the stream is a terminal, else JSON."""

QUIET_S = 10.0
"""For so long a message that was said is only counted."""
MESSAGES = 1024
"""Different messages that are remembered at most."""

_Raised = tuple[type[BaseException], BaseException, TracebackType | None]
_USUAL = frozenset((*logging.makeLogRecord({}).__dict__, "message", "asctime", "taskName"))
"""What every record has; the last three by other handlers, and by newer Pythons."""
_LEVELS = ("debug", "info", "warning", "error")


@dataclass(slots=True)
class _Said:
    """A message that was said."""

    at_s: float
    again: int = 0
    last: logging.LogRecord | None = None


class Limiter:
    """Lets a message pass once, and counts the same one until it may be said again.

    Messages are the same where logger, level and all texts are: numbers may differ. What was counted is said when the
    next message of any kind comes after its time, or at the end: nothing is lost.

    Parameters
    ----------
    quiet_s
        For so long a message that was said is only counted.
    most
        Different messages that are remembered; beyond them the oldest may be said again.
    """

    def __init__(self, quiet_s: float = QUIET_S, most: int = MESSAGES) -> None:
        self._quiet_s, self._most = quiet_s, most
        self._said: dict[tuple[object, ...], _Said] = {}  # the oldest first

    def take(self, record: logging.LogRecord, now_s: float) -> list[logging.LogRecord]:
        """Take a message in.

        Parameters
        ----------
        record
            Of `logging`, or of structlog through it.
        now_s
            Monotonic clock.

        Returns
        -------
        list[logging.LogRecord]
            What to say now, in order; those that stand for several have the attribute ``repeated``: how many.
        """
        out = []
        while self._said:
            key, said = next(iter(self._said.items()))
            if now_s - said.at_s < self._quiet_s:
                break
            del self._said[key]
            if said.again:
                out.append(_counted(said))
                self._said[key] = _Said(now_s)
        key = _key(record)
        same = self._said.get(key)
        if same is not None:
            same.again, same.last = same.again + 1, record
            return out
        self._said[key] = _Said(now_s)
        if len(self._said) > self._most:
            oldest = self._said.pop(next(iter(self._said)))
            out += [_counted(oldest)] if oldest.again else []
        return [*out, record]

    def rest(self) -> list[logging.LogRecord]:
        """Say what was counted and not said yet, and forget everything.

        Returns
        -------
        list[logging.LogRecord]
            As from `take`.
        """
        out = [_counted(said) for said in self._said.values() if said.again]
        self._said.clear()
        return out


def _counted(said: _Said) -> logging.LogRecord:
    """Let the newest of the messages that were only counted stand for all of them."""
    record = logging.makeLogRecord(said.last.__dict__ if said.last else {})
    record.repeated = said.again
    return record


def _key(record: logging.LogRecord) -> tuple[object, ...]:
    """Name what makes a message the same: everything but its numbers."""
    if isinstance(record.msg, dict):  # structlog's
        texts: tuple[object, ...] = tuple((name, _text(value)) for name, value in record.msg.items())
    else:
        texts = (str(record.msg), *map(_text, record.args or ()), _text(getattr(record, "source", None)))
    return (record.name, record.levelno, *texts)


def _text(value: object) -> str:
    return value if isinstance(value, str) else type(value).__name__


class _Handler(logging.StreamHandler[TextIO]):
    """Writes what the limiter lets pass."""

    def __init__(self, stream: TextIO, limiter: Limiter, monotonic_s: Callable[[], float]) -> None:
        super().__init__(stream)
        self._limiter, self._monotonic_s = limiter, monotonic_s

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, or count it."""
        for line in self._limiter.take(record, self._monotonic_s()):
            super().emit(line)

    def close(self) -> None:
        """Write what was only counted."""
        for line in self._limiter.rest():
            super().emit(line)
        super().close()


def set_up(
    level: str = "info",
    form: Format = "auto",
    stream: TextIO | None = None,
    *,
    quiet_s: float = QUIET_S,
    monotonic_s: Callable[[], float] = time.monotonic,
) -> Callable[[], None]:
    """Let a service log to a stream, in the place of whatever logged there before.

    Parameters
    ----------
    level
        ``debug``, ``info``, ``warning`` or ``error``: what is less is not said. At ``debug`` errors show where they
        came from.
    form
        How lines look.
    stream
        Where they go; None for stderr.
    quiet_s
        For so long a message that was said is only counted.
    monotonic_s
        The clock for that.

    Returns
    -------
    Callable[[], None]
        Says what was only counted, and puts everything back.

    Raises
    ------
    UsageError
        If there is no such level.
    """
    if level not in _LEVELS:
        raise UsageError(f"logging.level = {level!r}: must be one of {', '.join(_LEVELS)}")
    stream = stream or sys.stderr
    terminal = stream.isatty()
    if form == "console" or (form == "auto" and terminal):
        show: Callable[[_Raised], Any] = _traceback
        render: list[Processor] = [_printable, structlog.dev.ConsoleRenderer(colors=terminal, timestamp_key="time")]
    else:
        show, render = ExceptionDictTransformer(show_locals=False), [_line]
    errors = _Errors(show if level == "debug" else None)
    handler = _Handler(stream, Limiter(quiet_s), monotonic_s)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(foreign_pre_chain=[_extra, errors], processors=[_place, *render])
    )
    root = logging.getLogger()
    old_level, old_configuration = root.level, structlog.get_config()
    replaced = [h for h in root.handlers if isinstance(h, logging.StreamHandler) and h.stream is stream]
    for old in replaced:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            errors,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )

    def undo() -> None:
        root.removeHandler(handler)
        handler.close()
        for old in replaced:
            root.addHandler(old)
        root.setLevel(old_level)
        structlog.configure(**old_configuration)

    return undo


class _Errors:
    """Says of an error what it is and, where told how to show that, where it came from."""

    def __init__(self, show: Callable[[_Raised], Any] | None) -> None:
        self._show = show

    def __call__(self, _logger: object, _method: str, event: EventDict) -> EventDict:
        """Put words in the place of the exception."""
        raised = event.pop("exc_info", None)
        if raised is True:
            raised = sys.exc_info()
        error = raised[1] if isinstance(raised, tuple) else raised
        if isinstance(error, BaseException):
            event["error"] = f"{type(error).__name__}: {error}"
            if self._show:
                event["exception"] = self._show((type(error), error, error.__traceback__))
        return event


def _extra(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Take in what a library's message has beside its words."""
    record: logging.LogRecord = event["_record"]
    event.update((name, value) for name, value in record.__dict__.items() if name not in _USUAL)
    return event


def _place(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Begin with what every line has."""
    record: logging.LogRecord = event.pop("_record")
    del event["_from_structlog"]
    out: EventDict = {
        "time": rfc3339(int(record.created * 1e6) * 1000),
        "level": record.levelname.lower(),
        "logger": record.name,
        "event": event.pop("event"),
        **event,
    }
    repeated = getattr(record, "repeated", 0)
    return {**out, "repeated": repeated} if repeated else out


def _line(_logger: object, _method: str, event: EventDict) -> str:
    """Write one line of JSON."""
    try:
        return msgspec.json.encode(event, enc_hook=_plain).decode()
    except (TypeError, ValueError):  # odd keys, half a surrogate: shown as Python writes them
        texts = {str(name): value if isinstance(value, str) else repr(value) for name, value in event.items()}
        return json.dumps(texts)


def _plain(value: object) -> object:
    return value.item() if isinstance(value, np.generic) else str(value)


def _printable(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Let nobody who chose a PMU's name move the cursor of a terminal."""
    for name, value in event.items():
        if isinstance(value, str):
            allowed = "\n" if name == "exception" else ""
            event[name] = "".join(c if c.isprintable() or c in allowed else repr(c)[1:-1] for c in value)
    return event


def _traceback(raised: _Raised) -> str:
    return "".join(format_exception(*raised))
