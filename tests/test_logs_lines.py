"""A service's log lines: one shape for all, errors in few words, and the same message said once."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from gridsense import logs
from gridsense.errors import UsageError

LIBRARY = logging.getLogger("streams.align")
SERVICE = structlog.stdlib.get_logger("gridsense.run")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@contextmanager
def logging_to(
    stream: io.StringIO, level: str = "info", form: logs.Format = "auto", clock: Callable[[], float] = lambda: 0.0
) -> Iterator[None]:
    undo = logs.set_up(level, form, stream, monotonic_s=clock)
    try:
        yield
    finally:
        undo()


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def fail(word: str) -> None:
    raise ValueError(word)


def test_service_and_libraries_write_the_same_lines_of_json() -> None:
    stream = io.StringIO()
    with logging_to(stream):
        SERVICE.info("restored", offset=7, age_s=np.float32(1.5), lag_s=float("nan"))
        LIBRARY.warning("jumps by %d slots", 3, extra={"source": "pmu 1"})
        LIBRARY.debug("not said")
        SERVICE.debug("not said")
    first, second = lines(stream)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first.pop("time"))
    assert list(first.items()) == [
        ("level", "info"),
        ("logger", "gridsense.run"),
        ("event", "restored"),
        ("offset", 7),
        ("age_s", 1.5),
        ("lag_s", None),
    ]
    del second["time"]
    assert second == {
        "level": "warning",
        "logger": "streams.align",
        "event": "jumps by 3 slots",
        "source": "pmu 1",
    }


def test_errors_show_where_they_came_from_only_at_debug() -> None:
    for level in ("error", "debug"):
        stream = io.StringIO()
        with logging_to(stream, level):
            try:
                fail("no")
            except ValueError as error:
                LIBRARY.exception("first")
                SERVICE.exception("second")
                SERVICE.error("third", exc_info=error)
            SERVICE.error("fourth", exc_info=True)
        found = lines(stream)
        assert [line["event"] for line in found] == ["first", "second", "third", "fourth"]
        assert [line.get("error") for line in found] == [*["ValueError: no"] * 3, None]
        traces = [line["exception"][0]["frames"][-1]["name"] for line in found if "exception" in line]
        assert traces == (["fail"] * 3 if level == "debug" else [])
        assert "locals" not in stream.getvalue()


def test_what_json_cannot_hold_is_still_a_line() -> None:
    stream = io.StringIO()
    with logging_to(stream):
        SERVICE.info("odd", name="\udc80", table={(1, 2): 3})
        SERVICE.info("forged\n{}", path=object)
    first, second = lines(stream)
    assert (first["event"], first["name"], first["table"]) == ("odd", "\udc80", "{(1, 2): 3}")
    assert (second["event"], second["path"]) == ("forged\n{}", "<class 'object'>")


def test_a_terminal_gets_colours_and_nobody_moves_its_cursor() -> None:
    stream = Terminal()
    with logging_to(stream, "debug"):
        SERVICE.info("seen", source="\x1b[2Jbad")
        try:
            fail("\x1b[2J")
        except ValueError:
            LIBRARY.exception("\x1b[2J %s", "worse")
    text = stream.getvalue()
    assert "\x1b[" in text
    assert "\x1b[2J" not in text
    assert "\\x1b[2Jbad" in text
    assert "Traceback (most recent call last):\n" in text
    plain = io.StringIO()
    with logging_to(plain, form="console"):
        SERVICE.info("seen", source="pmu")
    assert "\x1b" not in plain.getvalue()
    assert re.search(r"\[info +\] seen +\[gridsense.run\] source=pmu", plain.getvalue())
    json_on_terminal = Terminal()
    with logging_to(json_on_terminal, form="json"):
        SERVICE.info("seen")
    assert lines(json_on_terminal)[0]["event"] == "seen"


def test_the_same_message_is_said_once_and_counted() -> None:
    now_s = [0.0]
    stream = io.StringIO()
    with logging_to(stream, clock=lambda: now_s[0]):
        for n in range(100):
            LIBRARY.warning("%s: %d frames dropped", "pmu 1", n)
            SERVICE.warning("behind", source="a", entries=n)
        LIBRARY.warning("%s: %d frames dropped", "pmu 2", 1)
        SERVICE.warning("behind", source="b", entries=1)
        assert [line.get("repeated") for line in lines(stream)] == [None] * 4
        now_s[0] = 10.0
        SERVICE.info("something else")
        later = lines(stream)[4:]
        assert [(line["event"], line.get("repeated")) for line in later] == [
            ("pmu 1: 99 frames dropped", 99),
            ("behind", 99),
            ("something else", None),
        ]
        assert later[1]["entries"] == 99
        LIBRARY.warning("%s: %d frames dropped", "pmu 1", 7)
    assert [(line["event"], line["repeated"]) for line in lines(stream)[7:]] == [("pmu 1: 7 frames dropped", 1)]


def test_the_last_of_a_flood_is_said_at_the_end() -> None:
    stream = io.StringIO()
    with logging_to(stream):
        for _ in range(3):
            LIBRARY.error("no room")
    assert [line.get("repeated") for line in lines(stream)] == [None, 2]


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 5), st.floats(0, 8)), max_size=60), st.integers(1, 4))
def test_no_message_is_lost_and_few_are_remembered(messages: list[tuple[int, float]], most: int) -> None:
    limiter, now_s, out = logs.Limiter(10.0, most), 0.0, []
    for which, pause_s in messages:
        now_s += pause_s
        out += limiter.take(logging.makeLogRecord({"msg": f"message {which}"}), now_s)
        assert len(limiter._said) <= most
    out += limiter.rest()
    for which in range(6):
        said = [getattr(record, "repeated", 1) for record in out if record.msg == f"message {which}"]
        assert sum(said) == sum(1 for name, _ in messages if name == which)


def test_what_logged_before_is_put_back() -> None:
    root = logging.getLogger()
    handlers, level, configuration = root.handlers[:], root.level, structlog.get_config()
    stream = io.StringIO()
    plain = logging.StreamHandler(stream)
    root.addHandler(plain)
    try:
        with logging_to(stream):
            assert plain not in root.handlers  # else each line would come twice
            assert all(handler in root.handlers for handler in handlers)
            LIBRARY.warning("once")
        assert [line["event"] for line in lines(stream)] == ["once"]
        assert plain in root.handlers
    finally:
        root.removeHandler(plain)
    assert (root.handlers, root.level, structlog.get_config()) == (handlers, level, configuration)


def test_stderr_is_where_it_goes(capsys: pytest.CaptureFixture[str]) -> None:
    undo = logs.set_up()
    SERVICE.info("here")
    undo()
    out, err = capsys.readouterr()
    assert out == ""
    # The handler of a command that another test ran may complain here that its own stream is closed.
    assert [json.loads(line)["event"] for line in err.splitlines() if line.startswith("{")] == ["here"]


def test_a_level_that_is_none_is_refused() -> None:
    with pytest.raises(UsageError, match=r"logging\.level = 'loud': must be one of debug, info, warning, error"):
        logs.set_up("loud")
