"""Recordings into the log, as a gateway would have written them: configurations first, then frames, at their pace.

In: a script of streams, a log. Out: records, each frame one of its own, whole and untouched but for a shift in time. No
network is between: nothing is lost or late but by the log. Marks of silence are left to whoever reads.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gridsense.errors import InputError
from gridsense.simulator.playback import Playback
from gridsense.simulator.script import Script, ServedStream
from streams.c37118.configuration import encode_configuration
from streams.log import CONFIGURATIONS, FRAMES, Log, Record

BATCH_BYTES = 4 << 20
"""Of frames that are written together, at most."""

_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Settings:
    """How a recording is written.

    Attributes
    ----------
    speed
        Times real time; 0: as fast as the log takes it.
    shift_to_now
        Move all time stamps by whole seconds, so that the first frame is of now.
    stamps
        Each record is said to have come at its frame's own time; else at the moment at which it is written.
    regions
        Of each stream of the script; empty: none has one.
    """

    speed: float = 1.0
    shift_to_now: bool = False
    stamps: bool = False
    regions: tuple[str, ...] = ()


@dataclass(slots=True)
class Totals:
    """What was written so far.

    Attributes
    ----------
    frames
        Data frames.
    size
        Their bytes.
    first_ns, newest_ns
        Times of the recording, shifts included: of the first frame and of the newest.
    late_s
        How far the writing was behind its pace, at most.
    """

    frames: int = 0
    size: int = 0
    first_ns: int = 0
    newest_ns: int = 0
    late_s: float = 0.0

    @property
    def recording_s(self) -> float:
        """Time of the recording that was written."""
        return (self.newest_ns - self.first_ns) / _NS


def _slept(duration_s: float) -> bool:
    time.sleep(duration_s)
    return False


@dataclass(frozen=True, slots=True)
class Clock:
    """What time it is, and waiting.

    Attributes
    ----------
    now_ns
        UTC nanoseconds.
    steady_s
        Seconds that never go back.
    wait
        Waits for so many seconds; True: it is time to stop.
    """

    now_ns: Callable[[], int] = time.time_ns
    steady_s: Callable[[], float] = time.monotonic
    wait: Callable[[float], bool] = _slept


class Replay:
    """Writes a script into a log, once.

    Parameters
    ----------
    script
        What is written.
    log
        Where to.
    settings
        How.
    clock
        The machine's, as a rule.
    report
        Called after each write.
    """

    def __init__(
        self,
        script: Script,
        log: Log,
        settings: Settings,
        clock: Clock | None = None,
        report: Callable[[Totals], object] = lambda _: None,
    ) -> None:
        self.totals = Totals()
        self.settings = settings
        self._script, self._log, self._report = script, log, report
        self._clock = clock or Clock()
        self._keys: list[str] = []
        self._began_s = 0.0

    def run(self) -> Totals:
        """Write until the end of the recording, or until it is time to stop.

        Returns
        -------
        Totals
            What was written. An `InputError` says that there is nothing to write, or two sources of one name; a
            `streams.errors.LogError` that the log does not take it.
        """
        self._keys = keys(self._script.streams, self.settings.regions)
        playback = Playback(self._script, loop=False, delays_ns=[0] * len(self._keys))
        first_ns = playback.begin()
        now_ns = self._clock.now_ns()
        if self.settings.shift_to_now:
            first_ns += playback.shift(-((first_ns - now_ns) // _NS)) * _NS
        self.totals.first_ns = self.totals.newest_ns = first_ns
        self._configure(first_ns if self.settings.stamps else now_ns)
        self._began_s = self._clock.steady_s()
        if self.settings.shift_to_now:
            self._began_s += max(first_ns - now_ns, 0) / _NS  # moved by whole seconds, somewhat too far
        while (together := playback.read()) is not None:
            place, count = 0, len(together.frames)
            while place < count:
                if not self._await(together.due_ns[place]):
                    return self.totals
                end = self._end(together.due_ns, together.frames, place)
                self._write(together.due_ns[place:end], together.streams[place:end], together.frames[place:end])
                place = end
        return self.totals

    def _configure(self, time_ns: int) -> None:
        """Write the configurations, as a gateway does: before the data, and for readers who come later."""
        records = [
            Record(time_ns, key, b"".join(encode_configuration(stream.configuration)))
            for key, stream in zip(self._keys, self._script.streams, strict=True)
        ]
        self._log.append(FRAMES, records)
        self._log.append(CONFIGURATIONS, records)

    def _await(self, due_ns: int) -> bool:
        """Wait until a frame is due; False: it is time to stop."""
        wait_s = 0.0
        if self.settings.speed:
            due_s = self._began_s + (due_ns - self.totals.first_ns) / _NS / self.settings.speed
            wait_s = due_s - self._clock.steady_s()
            self.totals.late_s = max(self.totals.late_s, -wait_s)
        return not self._clock.wait(max(wait_s, 0.0))

    def _end(self, due_ns: Sequence[int], frames: Sequence[bytes], place: int) -> int:
        """Find how many frames are written together: what is due by now."""
        now_ns = float("inf")
        if self.settings.speed:
            now_ns = self.totals.first_ns + (self._clock.steady_s() - self._began_s) * self.settings.speed * _NS
        size, end = len(frames[place]), place + 1
        while end < len(frames) and due_ns[end] <= now_ns and size + len(frames[end]) <= BATCH_BYTES:
            size += len(frames[end])
            end += 1
        return end

    def _write(self, due_ns: Sequence[int], streams: Sequence[int], frames: Sequence[bytes]) -> None:
        now_ns = self._clock.now_ns()
        times_ns = due_ns if self.settings.stamps else [now_ns] * len(frames)
        rows = zip(times_ns, streams, frames, strict=True)
        self._log.append(FRAMES, [Record(time_ns, self._keys[stream], frame) for time_ns, stream, frame in rows])
        self.totals.frames += len(frames)
        self.totals.size += sum(map(len, frames))
        self.totals.newest_ns = max(self.totals.newest_ns, due_ns[-1])
        self._report(self.totals)


def keys(streams: Sequence[ServedStream], regions: Sequence[str]) -> list[str]:
    """Name the keys of streams in the log.

    Parameters
    ----------
    streams
        Of a script.
    regions
        Of each; empty: none has one.

    Returns
    -------
    list[str]
        The names of the streams, with a hyphen for what no name of a connection holds, behind their regions.

    Raises
    ------
    InputError
        If two streams are of one name then.
    """
    names = [re.sub(r"[/#]", "-", stream.name) for stream in streams]
    pairs = zip(regions or [""] * len(names), names, strict=True)
    made = [f"{region}/{name}" if region else name for region, name in pairs]
    twice = next((key for key in made if made.count(key) > 1), None)
    if twice is not None:
        raise InputError(f"{twice}: two streams of the files would be of this name in the log; replay them one by one")
    return made
