"""Says in the log what time it is where a region has gone silent, so that windows close.

In: what the connections of each region last gave to the log, and the time. Out: marks, behind the frames in the same
queue. It waits for nothing: who owns it calls `tick`.
"""

from __future__ import annotations

from collections.abc import Sequence

from streams.gateway.intake import Intake
from streams.gateway.writer import Writer
from streams.log import FRAMES, Record, region_of

BRISK_HZ = 12.0
"""Below this reporting rate silence must last longer in proportion: between two frames nothing is idle."""


class Marks:
    """Writes marks for the regions of a gateway's connections.

    Parameters
    ----------
    intakes
        Of all connections.
    writer
        Takes the marks.
    idle_s
        Nothing of a region having come for so long, it is marked; 0: never.
    """

    def __init__(self, intakes: Sequence[Intake], writer: Writer, idle_s: float) -> None:
        self._writer = writer
        self._idle_s = idle_s
        self._regions: dict[str, list[Intake]] = {}
        self._marked_ns: dict[str, int] = {}
        for intake in intakes if idle_s else ():
            self._regions.setdefault(region_of(intake.key), []).append(intake)

    def tick(self, now_ns: int) -> None:
        """Mark the regions of which nothing came.

        A region of which nothing ever came is not marked, and none is marked with a time before that of its last
        record: where the clock was set back there are none until it has caught up.

        Parameters
        ----------
        now_ns
            The time.
        """
        for region, intakes in self._regions.items():
            came_ns = max(intake.offered_ns for intake in intakes)
            if not came_ns:
                continue
            rate_hz = max(intake.in_force.rate_hz if intake.in_force else 0.0 for intake in intakes) or BRISK_HZ
            idle_ns = round(self._idle_s * max(1.0, BRISK_HZ / rate_hz) * 1e9)
            if now_ns - max(came_ns, self._marked_ns.get(region, 0)) < idle_ns:
                continue
            if self._writer.offer(FRAMES, Record(now_ns, f"{region}/" if region else "", b"")):
                self._marked_ns[region] = now_ns
