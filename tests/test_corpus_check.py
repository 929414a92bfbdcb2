"""The check of the promises on events: it must be able to fail, and say why."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from gridsense.events import Cause, Event
from gridsense.judging import Label, judge
from scripts.check import corpus
from scripts.check.corpus import SLOW, Watched, as_json, as_markdown, exit_status, failures, measure, promises
from tests.reference.made_event import S, made_event

KINDS = ("fault", "line_trip", "generator_trip", "load_step")


def stream(events: list[Event], labels: list[Label], minutes: float = 1.0) -> Watched:
    verdict = judge(events, labels, minutes / 60)
    return Watched("made up", "made up", bool(labels), tuple(events), verdict, {})


def disturbance(kind: str, *raised_s: float) -> Watched:
    return stream([made_event(s) for s in raised_s], [Label(kind, Cause.GRID, 10 * S, 10 * S, "bus 1")])


def data_fault(*events: Event) -> Watched:
    return stream(list(events), [Label("stuck", Cause.DATA, 10 * S, 20 * S, "a", ("a",))])


def good() -> list[Watched]:
    return [
        *(disturbance(kind, 10.3) for kind in KINDS),
        disturbance(SLOW, 14.0),
        data_fault(made_event(12.0, Cause.DATA)),
        stream([made_event(5.0, Cause.DATA)], [], 30.0),
    ]


def broken(watched: list[Watched], minutes: float = 30.0) -> list[str]:
    return [p.words for p in promises(measure(watched), minutes) if p.kept is False]


def test_all_kept() -> None:
    found = promises(measure(good()), 30.0)
    assert [p.kept for p in found] == [True] * len(found)
    assert exit_status(found) == 0
    assert not any(map(failures, good()))


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (disturbance("line_trip"), "line trip"),
        (disturbance(SLOW), "forced oscillation"),
        (disturbance(SLOW, 26.0), "forced oscillation"),
        (stream([made_event(12.0, Cause.UNKNOWN)], [Label("fault", Cause.GRID, 10 * S, 10 * S, "b")]), "every fault"),
        (disturbance("fault", 10.1, 12.0, 14.0), "events per disturbance"),
        (data_fault(made_event(12.0)), "data fault is never"),
        (stream([made_event(60.0)], []), "of ambient"),
        (disturbance("fault", 1.0, 10.1), "beside a disturbance"),
    ],
)
def test_a_broken_promise_is_told(bad: Watched, words: str) -> None:
    found = promises(measure([*good(), bad]), 30.0)
    assert exit_status(found) == 1
    assert any(words in p.words for p in found if p.kept is False)
    told = "\n".join(failures(bad))
    assert "made up" in told
    assert ("voltage fell" in told) == bool(bad.events)


def test_late_finds_break_the_delay_and_nothing_else() -> None:
    late = [disturbance("fault", 13.0) for _ in range(2)]
    assert broken([*good(), *late]) == ["delay p90 within 2 s"]
    assert "found after 3.0 s" in "\n".join(failures(late[0]))


def test_what_was_not_tried_is_neither_kept_nor_broken() -> None:
    found = promises(measure([disturbance("fault", 10.3)]), 30.0)
    assert [p.kept for p in found] == [True, True, None, True, None, True, None]
    assert exit_status(found) == 0


def test_too_little_ambient_is_not_enough() -> None:
    (last,) = [p for p in promises(measure([stream([], [], 20.0)]), 30.0) if "ambient" in p.words]
    assert last.kept is None


def test_figures_as_json_and_tables() -> None:
    watched = [*good(), disturbance("fault")]
    found = promises(measure(watched), 30.0)
    figures = json.loads(as_json(measure(watched), found, {"quadratic": measure(watched)}))
    assert figures["recall"] == {"fault": 0.5, "line_trip": 1, "generator_trip": 1, "load_step": 1, SLOW: 1}
    assert figures["delay_p90_s"] == pytest.approx(0.3)
    assert figures["ambient_minutes"] == 30
    assert figures["events_per_disturbance"] == 1
    assert figures["broken"] == ["every fault, line trip, generator trip and load step is found"]
    markdown = as_markdown(watched, found).splitlines()
    assert "| fault | 2 | 1 | 0.30 s | 0.30 s | 1.00 |  |" in markdown
    assert len({line.count("|") for line in markdown[: markdown.index("")]}) == 1
    assert json.loads(as_json(measure([]), [], {}))["delay_p90_s"] is None


def bundle(tmp_path: Path) -> Path:
    """A bundle whose labels claim a line trip that never was."""
    whole = pq.read_table(corpus.BUNDLE / "ambient.parquet")
    pq.write_table(whole.slice(0, 2100), tmp_path / "ambient.parquet")
    pq.write_table(whole.slice(2100, 900), tmp_path / "demo.parquet")
    onset = whole.column("time")[2400].as_py()
    row = {"kind": "line_trip", "cause": "grid", "onset": onset.isoformat(), "end": None, "element": "no line"}
    (tmp_path / "demo.json").write_text(json.dumps([row]))
    return tmp_path


def test_a_missed_event_ends_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = bundle(tmp_path)
    assert corpus.main(["--quick", "--scorers", "quadratic", "--json", "--bundle", str(made)]) == 1
    out = capsys.readouterr().out
    assert "Z no line: missed" in out
    assert "fast -ln p (threshold" in out
    assert json.loads(out.splitlines()[-1])["recall"] == {"line_trip": 0.0}


def test_no_bundle_is_said_not_traced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert corpus.main(["--quick", "--scorers", "quadratic", "--bundle", str(tmp_path)]) == 2
    assert "ambient.parquet" in capsys.readouterr().err
