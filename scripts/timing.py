"""How the benchmarks time: the fastest of several calls, so that whatever else the machine does counts least."""

from __future__ import annotations

import time
from collections.abc import Callable


def best_s(call: Callable[[], object], least_s: float, rounds: int = 5) -> float:
    """Time the fastest of some calls, after one that warms the caches.

    Parameters
    ----------
    call
        What is timed.
    least_s
        Go on until so many seconds have been spent.
    rounds
        And at least so often.

    Returns
    -------
    float
        Seconds.
    """
    call()
    best, spent, done = float("inf"), 0.0, 0
    while done < rounds or spent < least_s:
        start = time.perf_counter()
        call()
        took = time.perf_counter() - start
        best, spent, done = min(best, took), spent + took, done + 1
    return best
