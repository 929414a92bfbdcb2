"""Disk full, files damaged or gone, clocks that jump: each is told clearly or recovered from, nothing silently lost."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts.faults.embedded import DISK_FAULTS, FAULTS, Jumping, Outcome

S = 10**9


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_is_told_or_recovered_from(fault: Callable[[Path], Outcome], tmp_path: Path) -> None:
    outcome = fault(tmp_path)
    assert outcome.wrong == ()
    assert outcome.said


@pytest.mark.slow
@pytest.mark.parametrize("fault", DISK_FAULTS, ids=lambda fault: fault.__name__)
def test_a_full_disk_is_told_and_passes(fault: Callable[[Path], Outcome], tmp_path: Path) -> None:
    outcome = fault(tmp_path)
    assert outcome.wrong == ()
    assert outcome.said


def test_a_jump_of_the_wall_clock_is_followed_at_a_tenth_of_the_pace() -> None:
    jumping = Jumping(0, (10.0, -5.0))
    stamps = []
    for jumping.true_ns in range(0, 100 * S, S // 30):
        stamps.append(jumping.clock.now_ns())
    assert all(a < b for a, b in itertools.pairwise(stamps))
    assert stamps[15 * 30] == pytest.approx(14.5 * S, rel=0.01)
    assert stamps[-1] == pytest.approx(95 * S, rel=0.01)
    assert jumping.clock.steps == 1
