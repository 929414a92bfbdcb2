"""Marks of a gateway: where a region has gone silent the log is told what time it is, behind its frames."""

from __future__ import annotations

from collections.abc import Sequence

from streams.c37118.configuration import ConfigurationFrame, PhasorDefinition, PmuConfiguration, encode_configuration
from streams.c37118.frame import FrameType, Stamp, wrap
from streams.gateway.intake import Claims, Intake
from streams.gateway.marks import Marks
from streams.gateway.settings import GatewaySettings
from streams.gateway.writer import Writer
from streams.log import FRAMES, Record, is_mark
from tests.reference.memory_log import MemoryLog

MS = 1_000_000


def gathered(writer: Writer, log: MemoryLog) -> Sequence[Record]:
    writer.start()
    writer.stop(60)
    return log.records(FRAMES)


class Source:
    """A PMU at a rate, of a key."""

    def __init__(self, writer: Writer, key: str, rate: int = 30) -> None:
        pmu = ConfigurationFrame(1, (PmuConfiguration("P", 1, 60, (PhasorDefinition("VA"),)),), rate)
        self._cfg = b"".join(encode_configuration(pmu))
        self._frame = wrap(FrameType.DATA, 1, Stamp(1), bytes(pmu.data_size - 16))
        self.intake = Intake(
            key, 1, commanded=False, settings=GatewaySettings(), writer=writer, claims=Claims(shared=True)
        )
        self.intake.begin()

    def sends(self, time_ms: int) -> None:
        self.intake.received(b"" if self.intake.in_force else self._cfg, time_ms * MS)
        self.intake.received(self._frame, time_ms * MS)


def test_a_silent_region_is_marked_again_and_again_and_no_other() -> None:
    log = MemoryLog()
    writer = Writer(lambda: log, 60, 1 << 20)
    north, both, south, lone = (Source(writer, key) for key in ("north/a", "north/b", "south/c", "lone"))
    marks = Marks([source.intake for source in (north, both, south, lone)], writer, 0.25)
    marks.tick(10_000 * MS)  # nothing ever came
    for source in (north, both, lone):
        source.sends(10_000)
    for time_ms in range(10_000, 10_701, 50):
        both.sends(time_ms) if time_ms <= 10_300 else None
        marks.tick(time_ms * MS)
    marked = [(r.key, r.time_ns // MS) for r in gathered(writer, log) if is_mark(r.key, r.value)]
    assert marked == [("", 10_250), ("", 10_500), ("north/", 10_550)]


def test_a_slow_region_is_not_marked_between_two_frames() -> None:
    log = MemoryLog()
    writer = Writer(lambda: log, 60, 1 << 20)
    slow = Source(writer, "north/a", rate=1)
    marks = Marks([slow.intake], writer, 0.25)
    for time_ms in range(10_000, 14_000, 1000):
        slow.sends(time_ms)
        marks.tick((time_ms + 999) * MS)
    marks.tick(17_000 * MS)
    marked = [r.time_ns // MS for r in gathered(writer, log) if is_mark(r.key, r.value)]
    assert marked == [17_000]


def test_a_clock_that_was_set_back_marks_nothing_before_what_is_there() -> None:
    log = MemoryLog()
    writer = Writer(lambda: log, 60, 1 << 20)
    source = Source(writer, "a")
    marks = Marks([source.intake], writer, 0.25)
    source.sends(100_000)
    marks.tick(100_300 * MS)
    for time_ms in (10_000, 20_000, 100_400):
        marks.tick(time_ms * MS)
    source.sends(20_500)
    marks.tick(101_000 * MS)
    times = [r.time_ns // MS for r in gathered(writer, log) if is_mark(r.key, r.value)]
    assert times == [100_300, 101_000]


def test_without_an_interval_nothing_is_marked() -> None:
    log = MemoryLog()
    writer = Writer(lambda: log, 60, 1 << 20)
    source = Source(writer, "a")
    marks = Marks([source.intake], writer, 0.0)
    source.sends(100)
    marks.tick(10**15)
    assert not any(is_mark(r.key, r.value) for r in gathered(writer, log))
