"""What the stages make of entries, without a broker: records that every topic takes."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa
import pytest

from gridsense import works
from gridsense.pipeline import Settings as PipelineSettings
from gridsense.works import RegionalWork, Settings
from streams.align import AlignSettings
from streams.log import SCORES, Entry
from tests.reference.recorded import recorded
from tests.reference.small_grid import small_grid

PIPELINE = PipelineSettings(source="small", learn_s=5.0, align=AlignSettings(lateness_s=1.0))


def scores(entries: list[Entry]) -> list[tuple[bytes, pa.Table]]:
    work = RegionalWork(0, Settings(PIPELINE), lambda _: b"", None, lambda _: None)
    return [
        (record.value, pa.ipc.open_stream(record.value).read_all())
        for record in work.records(work.take(entries, ()))
        if record.topic == SCORES
    ]


def test_scores_of_a_long_gap_are_records_that_a_topic_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of its ticks come at once."""
    first = small_grid("north", 1, 4, 1, seconds=4)
    second = replace(first, time_ns=first.time_ns + 50 * 10**9, arrival_ns=first.arrival_ns + 50 * 10**9)
    entries = [Entry(n, *record) for n, record in enumerate(recorded([first]) + recorded([second])[1:])]
    whole = [table for _, table in scores(entries)]
    monkeypatch.setattr(works, "TABLE_BYTES", 1000)
    cut = scores(entries)
    assert max(table.num_rows for table in whole) > 200
    assert len(cut) > 4 * len(whole)
    assert max(len(value) for value, _ in cut) < 6000  # beside the schema, of which each holds one
    assert repr([row for _, table in cut for row in table.to_pylist()]) == repr(
        [row for table in whole for row in table.to_pylist()]
    )
