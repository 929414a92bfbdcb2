"""A log that is full of what nobody can use: put aside with its reason, and nothing is found otherwise; by Kafka too.

`scripts/check/poison_kafka.py` does the same on the bundled demo.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from scripts.broker.cluster import Cluster
from scripts.check.poison_kafka import (
    HUGE,
    HUGE_BYTES,
    POISONS,
    Found,
    Poisoned,
    Run,
    embedded,
    grouped,
    judge,
    poisoned,
    with_a_change,
)
from streams.log import Record
from tests.reference.recorded import recorded
from tests.reference.small_grid import small_grid

LEARN_S = 25.0
PUT_ASIDE = {"garbage", "crc", "truncated", "no_configuration", "size", "configuration", "empty"}


@pytest.fixture(scope="module")
def clean() -> Sequence[Record]:
    """A minute of two sources, a frame a record; one of them calls a PMU otherwise after a quarter of it."""
    return with_a_change(recorded([small_grid("north", 1, 4, 1), small_grid("south", 5, 3, 2)], frames=1), 0.25)


@pytest.fixture(scope="module")
def bad(clean: Sequence[Record]) -> Poisoned:
    return poisoned(clean, seed=1)


@pytest.fixture(scope="module")
def straight(clean: Sequence[Record], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """What is found in the clean sequence."""
    run = embedded(tmp_path_factory.mktemp("poison") / "clean", clean, LEARN_S)
    assert run.letters == []
    assert len(run.scores) == 2  # before and after the change
    return run


def holds(found: Found, bad: Poisoned) -> None:
    assert found.wrong == []
    assert found.events.straight == 1  # a disturbance, raised; it lasts
    assert set(found.dead) == PUT_ASIDE
    assert found.dead.total() == bad.kinds.total()


def test_an_embedded_processor_is_not_harmed(bad: Poisoned, straight: Run, tmp_path: Path) -> None:
    holds(judge("embedded", embedded(tmp_path, bad.records, LEARN_S), straight, bad.letters), bad)


def test_a_group_on_kafka_is_not_harmed(
    bad: Poisoned, straight: Run, kafka: Cluster, kafka_prefix: str, tmp_path: Path
) -> None:
    run = grouped(tmp_path, kafka, kafka_prefix, bad.records, LEARN_S)
    holds(judge("Kafka", run, straight, bad.letters), bad)


def test_the_poison_is_the_same_each_time_and_of_every_kind(clean: Sequence[Record], bad: Poisoned) -> None:
    assert poisoned(clean, seed=1) == bad
    assert poisoned(clean, seed=2) != bad
    assert set(bad.kinds) == {poison.name for poison in POISONS} | {"10 MB"}
    assert bad.kinds.total() == round(len(clean) * 0.01)
    sizes = Counter(len(record.value) for record in bad.records)
    assert (sizes[0], sizes[HUGE_BYTES]) == (bad.kinds["0 bytes"], HUGE)
    rest = iter(bad.records)
    assert all(record in rest for record in clean)
    assert all(one.time_ns <= other.time_ns for one, other in pairwise(bad.records))


def test_harm_is_told(bad: Poisoned, straight: Run) -> None:
    sound = replace(straight, letters=bad.letters)
    assert judge("x", sound, straight, bad.letters).wrong == []
    (form, rows, columns), *others = straight.scores
    altered = [(form, rows, [columns[0], bytes(len(columns[1])), *columns[2:]]), *others]
    other_reason = [bad.letters[0]._replace(reason="other"), *bad.letters[1:]]
    for run, words in (
        (replace(sound, changes=sound.changes[:-1]), "1 of 1 changes of events are lost"),
        (replace(sound, changes=[*sound.changes, sound.changes[0]]), "1 changes of events are doubled"),
        (
            replace(sound, changes=[sound.changes[0]._replace(text=""), *sound.changes[1:]]),
            "1 of 1 changes of events say something else",
        ),
        (replace(sound, scores=altered), "the scores are not those"),
        (replace(sound, letters=bad.letters[1:]), "1 records are not put aside"),
        (replace(sound, letters=[*bad.letters, bad.letters[0]]), "1 are put aside that should not be"),
    ):
        (told,) = judge("x", run, straight, bad.letters).wrong
        assert told.startswith(words)
    assert len(judge("x", replace(sound, letters=other_reason), straight, bad.letters).wrong) == 2
    nothing = replace(sound, changes=[], scores=[])
    assert judge("x", nothing, nothing, bad.letters).wrong == [
        "no event was found: nothing was tried",
        "nothing was scored: nothing was tried",
    ]
