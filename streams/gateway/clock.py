"""A clock for arrivals: as even as the monotonic clock, as right as the wall clock.

In: both clocks. Out: UTC nanoseconds that rise with every reading. It sets no clock and waits for nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

LIMIT_NS = 60_000_000_000
"""Beyond this difference the wall clock is adopted at once, backwards too: the one case in which time does not rise."""

STEP_NS = 500_000_000
"""A difference that appears between two readings and is larger than this is a step of the wall clock."""

_SLEW = 10  # a tenth

_log = logging.getLogger(__name__)


class SteadyClock:
    """Follows the wall clock without its jumps: at most a tenth faster or slower than time passes.

    It belongs to one thread.

    Parameters
    ----------
    wall_ns
        Reads the wall clock, UTC nanoseconds.
    monotonic_ns
        Reads a clock that never jumps, nanoseconds.
    """

    def __init__(
        self, wall_ns: Callable[[], int] = time.time_ns, monotonic_ns: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._wall_ns = wall_ns
        self._monotonic_ns = monotonic_ns
        self._read_ns = monotonic_ns()
        self._now_ns = wall_ns()
        self._behind_ns = 0
        self.steps = 0
        """Steps of the wall clock so far."""

    def now_ns(self) -> int:
        """Read the clock.

        Returns
        -------
        int
            Nanoseconds since the epoch, UTC; above the last reading.
        """
        read_ns = self._monotonic_ns()
        elapsed_ns = read_ns - self._read_ns
        self._read_ns = read_ns
        behind_ns = self._wall_ns() - self._now_ns - elapsed_ns
        if abs(behind_ns - self._behind_ns) > STEP_NS:
            self.steps += 1
            how = "adopted at once" if abs(behind_ns) > LIMIT_NS else "followed slowly"
            _log.warning("the wall clock jumped by %.3f s; it is %s", (behind_ns - self._behind_ns) / 1e9, how)
        if abs(behind_ns) > LIMIT_NS:
            self._now_ns += elapsed_ns + behind_ns
            self._behind_ns = 0
            return self._now_ns
        most_ns = elapsed_ns // _SLEW
        slew_ns = max(-most_ns, min(most_ns, behind_ns))
        self._now_ns += max(1, elapsed_ns + slew_ns)
        self._behind_ns = behind_ns - slew_ns
        return self._now_ns
