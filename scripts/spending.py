"""Where the CPU time of a process goes: to which stage, in which thread.

In: functions to be watched, each with the name of its stage; SIGUSR1 and SIGUSR2, between which is measured. Out: a
file of stages, threads and seconds. What a stage spends is what no stage within it does; of threads that serve one
stage alone all that they spend is its. Two readings of a thread's clock a call: a profiler that counted every call
would make pure Python seem dearer than it is.
"""

from __future__ import annotations

import functools
import inspect
import json
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

NUMBERS = re.compile(r"[-_ ]*\d[-_ \d]*$")
"""At the end of a thread's name: several of a kind are told together."""
OTHERS = "what ended threads and BLAS did besides"


class _Open(threading.local):
    """The stages that a thread is in, innermost last, and what it had spent when it entered or left one."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.spent_s = 0.0


class Spending:
    """Measures this process.

    Parameters
    ----------
    path
        Where it is written.
    threads
        Part of a thread's name, and the stage that all such threads serve.
    """

    def __init__(self, path: Path, threads: Sequence[tuple[str, str]]) -> None:
        self._path = path
        self._threads = threads
        self._open = _Open()
        self._spent_s: Counter[tuple[int, str]] = Counter()
        self._begun_s: dict[int, float] = {}
        self._whole_s = 0.0

    def watch(self, owner: object, stage: str, *names: str) -> None:
        """Count what functions spend as a stage's.

        Parameters
        ----------
        owner
            Their class or module.
        stage
            Its name.
        *names
            Theirs; none: all public methods of the class.
        """
        public = [name for name, it in vars(owner).items() if inspect.isfunction(it) and not name.startswith("_")]
        for name in names or public:
            setattr(owner, name, self._watched(getattr(owner, name), stage))

    def wait(self) -> None:
        """Wait for the signals; called in the main thread, which goes on."""
        signal.signal(signal.SIGUSR1, self._begin)
        signal.signal(signal.SIGUSR2, self._end)

    def _watched(self, inner: Callable[..., Any], stage: str) -> Callable[..., Any]:
        @functools.wraps(inner)
        def outer(*args: Any, **options: Any) -> Any:
            self._turn()
            self._open.stages.append(stage)
            try:
                return inner(*args, **options)
            finally:
                self._turn()
                self._open.stages.pop()

        return outer

    def _turn(self) -> None:
        """Put what this thread has spent since the last turn to the stage that it is in."""
        now_s, it = time.thread_time(), self._open
        if it.stages:
            self._spent_s[threading.get_ident(), it.stages[-1]] += now_s - it.spent_s
        it.spent_s = now_s

    def _begin(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._begun_s = {thread: spent_s for thread, _, spent_s in _threads()}
        self._whole_s = time.process_time()
        self._spent_s = Counter()

    def _end(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        whole_s, staged, told = time.process_time() - self._whole_s, self._spent_s, Counter[tuple[str, str]]()
        self._spent_s = Counter()
        for thread, name, spent_s in _threads():
            own_s = spent_s - self._begun_s.get(thread, 0.0)
            serves = next((stage for part, stage in self._threads if part in name), "")
            within = {stage: s for (of, stage), s in staged.items() if of == thread}
            kind = NUMBERS.sub("", name)
            for stage, stage_s in () if serves else within.items():
                told[stage, kind] += stage_s
            told[serves or "everything else", kind] += max(own_s - (0.0 if serves else sum(within.values())), 0.0)
        alive = {thread for thread, _, _ in _threads()}
        for (thread, stage), spent_s in staged.items():
            if thread not in alive:
                told[stage, "threads that ended"] += spent_s
        told[OTHERS, ""] += max(whole_s - sum(told.values()), 0.0)
        self._path.write_text(json.dumps([[*key, spent_s] for key, spent_s in told.items()]), encoding="utf-8")


def _threads() -> list[tuple[int, str, float]]:
    """List the threads, and what each has spent since it began, seconds."""
    return [
        (thread.ident, thread.name, time.clock_gettime(time.pthread_getcpuclockid(thread.ident)))
        for thread in threading.enumerate()
        if thread.ident
    ]
