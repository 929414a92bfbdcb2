"""Oracle for `streams.align`: one frame after another, dictionaries, no batches, no closing on completeness.

What it says about each frame (written, late, duplicate, ahead) must be what the fast aligner says, however the stream
is cut. It begins after the first consensus and knows no wall clock.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Oracle:
    """All numbers in slots, but `dead` and arrivals in nanoseconds."""

    sources: int
    newest: int
    late: int
    ahead: int
    dead: int
    cells: dict[tuple[int, int], int] = field(default_factory=dict)
    clock: int = 0
    last_arrival: int | None = None
    counts: dict[str, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.heard = [0] * self.sources
        self.claim: list[int | None] = [None] * self.sources
        self.live_from = [-(10**18)] * self.sources
        self.counts = {k: [0] * self.sources for k in ("accepted", "late", "duplicate", "ahead")}

    def take(self, source: int, slot: int, arrival: int, value: int) -> None:
        if self.last_arrival is not None:
            self.clock += min(max(arrival - self.last_arrival, 0), self.dead // 2)
        self.last_arrival = arrival
        self.claim[source] = slot
        if slot > self.newest + self.ahead:
            live = [n for n in range(self.sources) if n == source or self.clock - self.heard[n] <= self.dead]
            agree = [n for n in live if (c := self.claim[n]) is not None and abs(c - slot) <= self.ahead]
            if 2 * len(agree) <= len(live):
                self.counts["ahead"][source] += 1
                return
        before, self.newest = self.newest, max(self.newest, slot)
        if slot < before - self.late:
            self.counts["late"][source] += 1
            return
        if self.clock - self.heard[source] > self.dead:
            self.live_from[source] = before + 1
        self.heard[source] = self.clock
        if slot < self.live_from[source]:
            self.counts["late"][source] += 1
        elif (slot, source) in self.cells:
            self.counts["duplicate"][source] += 1
        else:
            self.cells[slot, source] = value
            self.counts["accepted"][source] += 1
