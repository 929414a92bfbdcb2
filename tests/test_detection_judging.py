"""Judging events against labels: one alarm to one event, repeats apart, false alarms named."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from gridsense.errors import LabelError
from gridsense.events import Cause
from gridsense.judging import Label, judge, read_labels, rows
from tests.reference.made_event import S, made_event


def label(onset_s: float, cause: Cause = Cause.GRID, kind: str = "fault") -> Label:
    return Label(kind, cause, round(onset_s * S), round(onset_s * S), "bus 1")


def test_first_event_answers_and_the_rest_repeat() -> None:
    verdict = judge([made_event(10.6), made_event(15.0), made_event(10.6)], [label(10.0)], 1.0)
    (finding,) = verdict.findings
    assert finding.delay_s == pytest.approx(0.6)
    assert finding.repeats == 1
    assert verdict.false_grid == ()


def test_next_disturbance_takes_its_own_event() -> None:
    verdict = judge([made_event(10.5), made_event(18.5)], [label(10.0), label(18.0)], 1.0)
    assert [f.repeats for f in verdict.findings] == [0, 0]
    assert [round(f.delay_s, 3) for f in verdict.findings] == [0.5, 0.5]


def test_an_event_that_answers_nothing_is_false() -> None:
    verdict = judge([made_event(100.0)], [label(10.0)], 1.0)
    assert verdict.findings[0].event is None
    assert [e.raised_ns for e in verdict.false_grid] == [100 * S]


def test_data_trouble_called_grid_is_counted_against_it() -> None:
    verdict = judge([made_event(10.5)], [label(10.0, Cause.DATA, "stuck")], 1.0)
    (row,) = rows([verdict])
    assert (row.kind, row.happened, row.found, row.called_grid) == ("stuck", 1, 0, 1)
    assert len(verdict.false_grid) == 1
    assert math.isnan(row.delay_p90_s)


def test_rows_sum_over_streams() -> None:
    verdicts = [judge([made_event(10.0 + d)], [label(10.0)], 1.0) for d in (0.2, 0.4, 1.0)]
    (row,) = rows(verdicts)
    assert (row.happened, row.found, row.events_each) == (3, 3, 1.0)
    assert row.delay_p50_s == pytest.approx(0.4)


def test_labels_are_read(tmp_path: Path) -> None:
    path = tmp_path / "labels.json"
    row = {"kind": "fault", "cause": "grid", "onset": "2026-03-01T12:00:20.500Z", "end": None, "element": "bus 4"}
    path.write_text(json.dumps([row]))
    (read,) = read_labels(path)
    assert read.onset_ns % (60 * S) == 20_500_000_000
    assert read.end_ns == read.onset_ns


def test_labels_that_are_not_labels_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "labels.json"
    path.write_text('[{"kind": 3}]')
    with pytest.raises(LabelError, match=r"labels\.json"):
        read_labels(path)


def test_a_data_fault_is_answered_for_its_own_pmu_only() -> None:
    stuck = Label("stuck", Cause.DATA, 10 * S, 20 * S, "b", ("b",))
    elsewhere, own = made_event(10.5, Cause.DATA), replace(made_event(14.0, Cause.DATA), pmus=("b", "c"))
    verdict = judge([elsewhere, own], [stuck], 1.0)
    assert verdict.findings[0].events == (own,)
    assert verdict.others == (elsewhere,)
    assert verdict.false_grid == ()


def test_data_faults_at_two_pmus_at_once_each_have_their_event() -> None:
    first = Label("ratio_drift", Cause.DATA, 10 * S, 30 * S, "a", ("a",))
    second = Label("stuck", Cause.DATA, 12 * S, 30 * S, "b", ("b",))
    late, soon = made_event(15.0, Cause.DATA), replace(made_event(14.0, Cause.DATA), pmus=("b",))
    verdict = judge([soon, late], [first, second], 1.0)
    assert [f.event for f in verdict.findings] == [late, soon]
