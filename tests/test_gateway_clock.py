"""The gateway's clock: as even as the monotonic clock, as right as the wall clock."""

from __future__ import annotations

import logging
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.gateway.clock import LIMIT_NS, SteadyClock

SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND


class Clocks:
    """A wall clock and a monotonic one, moved by hand."""

    def __init__(self) -> None:
        self.wall, self.monotonic = START, 77
        self.steady = SteadyClock(lambda: self.wall, lambda: self.monotonic)

    def go(self, elapsed: int, jump: int = 0) -> int:
        self.monotonic += elapsed
        self.wall += elapsed + jump
        return self.steady.now_ns()


def test_it_tells_the_wall_clock() -> None:
    clocks = Clocks()
    assert [clocks.go(SECOND) - START for _ in range(3)] == [SECOND, 2 * SECOND, 3 * SECOND]
    assert clocks.steady.steps == 0


@pytest.mark.parametrize("jump", [5 * SECOND, -5 * SECOND])
def test_a_jump_is_followed_by_a_tenth(jump: int, caplog: pytest.LogCaptureFixture) -> None:
    clocks = Clocks()
    caplog.set_level(logging.WARNING)
    before = clocks.go(SECOND)
    times = [before, clocks.go(SECOND // 10, jump), *(clocks.go(SECOND // 10) for _ in range(600))]
    steps = [b - a for a, b in pairwise(times)]
    assert min(steps) >= SECOND // 10 * 9 // 10
    assert max(steps) <= SECOND // 10 * 11 // 10
    assert times[1] - before != SECOND // 10, "it moves towards the wall clock at once"
    assert times[300] != clocks.wall - 300 * SECOND // 10, "not there yet after 30 s: 5 s take 50"
    assert times[-1] == clocks.wall
    assert clocks.steady.steps == 1
    assert [r.getMessage() for r in caplog.records] == [
        f"the wall clock jumped by {jump / SECOND:.3f} s; it is followed slowly"
    ]


@pytest.mark.parametrize("jump", [3600 * SECOND, -3600 * SECOND])
def test_a_far_jump_is_adopted_at_once(jump: int) -> None:
    clocks = Clocks()
    clocks.go(SECOND)
    assert clocks.go(SECOND, jump) == clocks.wall
    assert clocks.go(SECOND) == clocks.wall
    assert clocks.steady.steps == 1


def test_two_readings_at_one_instant_differ() -> None:
    clocks = Clocks()
    times = [clocks.go(0) for _ in range(5)]
    assert times == sorted(set(times))
    assert clocks.go(SECOND) == clocks.wall


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 3 * SECOND), st.one_of(st.just(0), st.integers(-20 * SECOND, 20 * SECOND))),
        max_size=30,
    )
)
def test_it_always_rises_and_in_the_end_is_right(moves: list[tuple[int, int]]) -> None:
    clocks = Clocks()
    last = START
    for elapsed, jump in moves:
        if abs(clocks.wall + jump - last) > LIMIT_NS:  # that is another test's
            jump = 0  # noqa: PLW2901 - another jump
        now = clocks.go(elapsed, jump)
        assert now > last
        last = now
    assert clocks.go(1000 * SECOND) == clocks.wall
