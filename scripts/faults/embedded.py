"""Faults of the machine below the live line, one function each: what is done, what was said, what came of it.

In: an empty folder. Out: an `Outcome`, with a sentence for everything that is not as promised: each fault is told
clearly or recovered from, and nothing is silently lost. Services are real processes, files are real files; clocks are
injected.
"""

from __future__ import annotations

import json
import random
import resource
import shutil
import sqlite3
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Self

import numpy as np

from gridsense.config import load
from gridsense.processor import Processor
from gridsense.services.processing import processor_settings
from scripts.faults.line import (
    GATEWAY,
    PROCESSOR,
    WORKS,
    Change,
    Service,
    changes,
    compare_logs,
    events,
    frames,
    free_port,
    metric,
    page,
    process_to_the_end,
    served,
    service,
    simulator,
    wait_until,
    write_settings,
)
from streams.gateway.clock import SteadyClock
from streams.gateway.status import Reason
from streams.log import DEAD_LETTERS, FRAMES, Lost, Record
from streams.sqlite_log import open_log
from tests.reference.recorded import recorded
from tests.reference.small_grid import small_grid

S = 1_000_000_000
LEARN_S = 25.0
SILENT_S = (50.0, 54.0)
"""The south says nothing then."""
JUMP_S = 5.0
DISK = "disk"
"""Folder of a line for what lies on a disk that becomes full."""
DISK_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a fault came to.

    Attributes
    ----------
    fault
        What was done.
    said
        What the service said to it.
    came
        What came of it.
    wrong
        What is not as promised; empty: all is.
    """

    fault: str
    said: str
    came: str
    wrong: tuple[str, ...] = ()


def made_records() -> list[Record]:
    """Make what a gateway writes of two sources: two disturbances, and one source silent for a while.

    Returns
    -------
    list[Record]
        By arrival, which is the time of measurement.
    """
    north, south = small_grid("north", 1, 4, 1, onset_s=40.0), small_grid("south", 5, 3, 2, onset_s=62.0)
    first_ns = int(north.time_ns[0])
    begin_ns, end_ns = (first_ns + round(s * S) for s in SILENT_S)
    return [r for r in recorded([north, south]) if r.key == "north" or not begin_ns <= r.time_ns < end_ns]


def write_log(path: Path, records: Sequence[Record], each: int = 20) -> None:
    """Write records as a gateway does: some at a time.

    Parameters
    ----------
    path
        The log's file.
    records
        In order.
    each
        Records of one call.
    """
    with closing(open_log(path)) as log:
        for at in range(0, len(records), each):
            log.append(FRAMES, records[at : at + each])


def straight(folder: Path, records: Sequence[Record]) -> list[Change]:
    """Let a processor read records without any fault.

    Parameters
    ----------
    folder
        For its files.
    records
        What is in the log.

    Returns
    -------
    list[Change]
        What it stores.
    """
    write_settings(folder, learn_s=LEARN_S)
    write_log(folder / "log.db", records)
    _read_on(folder, close=True)
    return changes(folder / "events.db")


class Disk:
    """A disk that can be filled: a small file system, or, where none may be mounted, a limit for one process.

    Parameters
    ----------
    folder
        Where it is mounted; made.
    mount
        Try to mount one.
    """

    def __init__(self, folder: Path, *, mount: bool) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "gridsense-check", str(folder)]
        self._mounted = mount and not subprocess.run(command, check=False, capture_output=True).returncode
        self._free: Callable[[], object] = lambda: None

    @property
    def what(self) -> str:
        """What is full: for people."""
        return "a small file system is full" if self._mounted else "files may grow no more"

    def fill(self, victim: Service, grown: Path) -> None:
        """Leave no room.

        Parameters
        ----------
        victim
            The process that is limited where nothing is mounted.
        grown
            The file on the disk that it may not let grow any more then.
        """
        if self._mounted:
            filler = self._folder / "filler"
            with suppress(OSError), filler.open("wb", buffering=0) as file:
                while file.write(bytes(1 << 12)):
                    pass
            self._free = filler.unlink
            return
        pid = victim.process.pid if victim.process else 0
        before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (grown.stat().st_size, before[1]))
        self._free = lambda: resource.prlimit(pid, resource.RLIMIT_FSIZE, before)

    def free(self) -> None:
        """Make room again."""
        self._free()

    def __enter__(self) -> Self:
        """Use it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Take it away."""
        if self._mounted:
            subprocess.run(["umount", "--lazy", str(self._folder)], check=False)


def log_disk_full(folder: Path, *, mount: bool = False) -> Outcome:
    """Fill the disk of the log for a while; the gateway's memory is large enough.

    Parameters
    ----------
    folder
        Empty.
    mount
        Try with a real file system.

    Returns
    -------
    Outcome
        Nothing may be missing.
    """
    return _log_disk_full(folder, mount=mount, speed=2.0, buffer="64MiB", enough_bytes=100_000)


def log_disk_full_for_long(folder: Path, *, mount: bool = False) -> Outcome:
    """Fill the disk of the log for longer than the gateway's memory lasts.

    Parameters
    ----------
    folder
        Empty.
    mount
        Try with a real file system.

    Returns
    -------
    Outcome
        What is missing must be counted.
    """
    return _log_disk_full(folder, mount=mount, speed=10.0, buffer="1MiB", enough_bytes=0)


def _log_disk_full(folder: Path, *, mount: bool, speed: float, buffer: str, enough_bytes: int) -> Outcome:
    line, witness, port = folder / "line", folder / "witness", free_port()
    log = line / "disk" / "log.db"
    with ExitStack() as stack:
        disk = stack.enter_context(Disk(log.parent, mount=mount))
        simulated = stack.enter_context(simulator(folder, speed))
        simulated.start()
        connections = served(simulated)
        keys = f"processor_port = 0\ngateway_port = {port}"
        write_settings(line, connections, log="sqlite:disk/log.db", gateway=f'buffer_size = "{buffer}"', metrics=keys)
        write_settings(witness, connections)
        both = [stack.enter_context(service(place, GATEWAY)) for place in (witness, line)]
        for one in both:
            one.start()
            one.hear(WORKS[GATEWAY])
        gateway = both[1]
        wait_until(lambda: _size(log) > 200_000, "the log grows", gateway.said)
        disk.fill(gateway, Path(f"{log}-wal"))
        said = gateway.hear("the log takes nothing")
        if enough_bytes:
            wait_until(lambda: metric(port, "waiting_bytes") > enough_bytes, "frames are gathered", gateway.said)
        else:
            wait_until(lambda: metric(port, "frames_dropped_total") > 0, "frames are dropped", gateway.said)
        ready = page(port, "readyz")
        disk.free()
        wait_until(lambda: metric(port, "waiting_bytes") < enough_bytes + 50_000, "it writes on", gateway.said)
        if not enough_bytes:
            wait_until(lambda: bool(_dropped(log)), "what was dropped is told in the log", gateway.said)
        statuses = [one.stop() for one in reversed(both)]
        simulated.stop()
        logged = compare_logs(frames(witness / "log.db"), frames(log), [])
        told = sum(_dropped(log))
    wrong = []
    if statuses != [0, 0]:
        wrong.append(f"the gateways ended with {statuses}")
    if logged.doubled or logged.unknown or logged.logged < 100:
        wrong.append(f"the log is not what was sent: {logged}")
    if logged.in_life != told or bool(told) == bool(enough_bytes):
        wrong.append(f"{logged.in_life} frames are missing, {told} were counted as dropped")
    if not enough_bytes and "bytes wait for the log" not in ready:
        wrong.append(f"readyz did not say it: {ready}")
    came = f"{logged.sent:,} frames sent, {logged.logged:,} in the log, {told:,} dropped and counted"
    how = "for longer than the gateway's memory lasts" if not enough_bytes else "for a while"
    return Outcome(f"{disk.what}: the log's, {how}", said, came, tuple(wrong))


def store_disk_full(folder: Path, *, mount: bool = False) -> Outcome:
    """Fill the disk of the event store while events come.

    Parameters
    ----------
    folder
        Empty.
    mount
        Try with a real file system.

    Returns
    -------
    Outcome
        Events must be kept until there is room.
    """
    line, port = folder / "line", free_port()
    store, records = line / "disk" / "events.db", made_records()
    metrics = f"processor_port = {port}\ngateway_port = 0"
    with ExitStack() as stack:
        disk = stack.enter_context(Disk(store.parent, mount=mount))
        write_settings(line, learn_s=LEARN_S, store="disk/events.db", metrics=metrics)
        write_log(line / "log.db", records[:2])
        processor = stack.enter_context(service(line, PROCESSOR))
        processor.start()
        processor.hear(WORKS[PROCESSOR])
        wait_until(lambda: Path(f"{store}-wal").exists(), "the store is there", processor.said)
        disk.fill(processor, Path(f"{store}-wal"))
        write_log(line / "log.db", records[2:])
        said = processor.hear("trying again in")
        wait_until(lambda: "event store" in page(port, "readyz"), "readyz says why", processor.said)
        disk.free()
        wait_until(lambda: page(port, "readyz") == "", "it is ready again", processor.said)
        wait_until(lambda: _read_to(line) >= len(records), "it reads on", processor.said)
        status = processor.stop()
        process_to_the_end(line)
        wrong = _as_straight(line, store, folder / "straight")
    if status:
        wrong.append(f"it ended with {status}")
    came = "not ready, with that reason; it kept its events, and stored them when there was room: as without the fault"
    return Outcome(f"{disk.what}: the event store's", said, came, tuple(wrong))


def log_damaged(folder: Path) -> Outcome:
    """Overwrite bytes in the middle of the log's file while nobody has it open.

    Parameters
    ----------
    folder
        Empty.

    Returns
    -------
    Outcome
        The loss must be told, and nothing else may differ from a log without those entries.
    """
    line, port = folder / "line", free_port()
    log, records = line / "log.db", made_records()
    write_settings(line, learn_s=LEARN_S, metrics=f"processor_port = {port}\ngateway_port = 0")
    write_log(log, records)
    overwrite(log, log.stat().st_size // 2, 6000)
    left, lost = readable(log)
    entries = sum(one.last - one.first + 1 for one in lost)
    with service(line, PROCESSOR) as processor:
        processor.start()
        said = processor.hear("of pmu.frames are lost")
        wait_until(lambda: metric(port, "log_entries_lost_total") == entries, "the loss is counted", processor.said)
        wait_until(lambda: _read_to(line) >= len(records), "it reads on", processor.said)
        wrong = [] if processor.stop() == 0 else ["it did not stop in order"]
    process_to_the_end(line)
    found = changes(line / "events.db")
    gaps = [one for one in found if '"log_gap"' in one.text]
    left, _ = readable(log)  # with the marks of the processor
    if [one for one in found if one not in gaps] != straight(folder / "straight", left):
        wrong.append("other events are not those of a log without these entries")
    if len(gaps) != len(lost) or not entries:
        wrong.append(f"{len(lost)} ranges are lost, {len(gaps)} were told")
    came = f"{len(gaps)} log_gap event, {entries} entries counted as lost; all other events as without them"
    return Outcome("the log is overwritten in the middle", said, came, tuple(wrong))


def store_damaged(folder: Path) -> Outcome:
    """Overwrite the beginning of the event store's file while the processor is stopped.

    Parameters
    ----------
    folder
        Empty.

    Returns
    -------
    Outcome
        The processor must refuse it, and leave it as it is.
    """
    line = _stopped_half_way(folder)
    store = line / "events.db"
    overwrite(store, 0, 200)
    before = store.read_bytes()
    with service(line, PROCESSOR) as processor:
        processor.start()
        status, said = processor.wait(), processor.said()[-1]
    wrong = [] if status == 3 else [f"it ended with {status}"]
    if str(store) not in said:
        wrong.append("the message does not name the file")
    if store.read_bytes() != before:
        wrong.append("the file was written to")
    return Outcome("the event store's beginning is overwritten", said, f"exit status {status}", tuple(wrong))


def store_foreign(folder: Path) -> Outcome:
    """Put another SQLite file where the event store was.

    Parameters
    ----------
    folder
        Empty.

    Returns
    -------
    Outcome
        The processor must refuse it.
    """
    line = _stopped_half_way(folder)
    with closing(sqlite3.connect(line / "other.db")) as other:
        other.execute("CREATE TABLE event (other TEXT)")
        other.commit()
    _remove(line / "events.db")
    (line / "other.db").rename(line / "events.db")
    with service(line, PROCESSOR) as processor:
        processor.start()
        status, said = processor.wait(), processor.said()[-1]
    wrong = [] if status == 3 and "event store" in said else [f"it ended with {status}: {said}"]
    return Outcome("another database stands in place of the event store", said, f"exit status {status}", tuple(wrong))


def store_deleted(folder: Path) -> Outcome:
    """Delete the event store while the processor is stopped.

    Parameters
    ----------
    folder
        Empty.

    Returns
    -------
    Outcome
        All must be found again.
    """
    line = _stopped_half_way(folder)
    _remove(line / "events.db")
    said = process_to_the_end(line).heard(WORKS[PROCESSOR])
    wrong = _as_straight(line, line / "events.db", folder / "straight")
    if "from offset 0 " not in said:
        wrong.append("it did not begin at the beginning")
    return Outcome(
        "the event store is deleted", said, "the log is read from its beginning: all events again", tuple(wrong)
    )


def log_deleted(folder: Path) -> Outcome:
    """Delete the log while the processor is stopped; a new one begins.

    Parameters
    ----------
    folder
        Empty.

    Returns
    -------
    Outcome
        The processor must say so, keep its events, and go on with the new log.
    """
    line = _stopped_half_way(folder)
    before = changes(line / "events.db")
    _remove(line / "log.db")
    rest = made_records()
    write_log(line / "log.db", rest[: len(rest) // 8])
    last = process_to_the_end(line)
    said = last.heard("it was replaced")
    found = changes(line / "events.db")
    wrong = [] if found[: len(before)] == before else ["events that were stored are gone"]
    if not said:
        wrong.append(f"it was not said: {last.said()}")
    if sum('"log_gap"' in one.text for one in found) != 1:
        wrong.append("no log_gap event tells it")
    if _read_to(line) != len(rest) // 8:
        wrong.append("it does not read the new log")
    return Outcome(
        "the log is deleted, a new one begins", said, "a log_gap event; it goes on with the new log", tuple(wrong)
    )


def snapshot_damaged(folder: Path) -> Outcome:
    """Damage the newest snapshot while the processor is stopped.

    Parameters
    ----------
    folder
        Empty.

    Returns
    -------
    Outcome
        The one before must be used, and no event may be missing or doubled.
    """
    return _snapshots_damaged(folder, "(SELECT max(number) FROM snapshot)", "the newest snapshot is damaged")


def snapshots_damaged(folder: Path) -> Outcome:
    """Damage all snapshots while the processor is stopped.

    Parameters
    ----------
    folder
        Empty.

    Returns
    -------
    Outcome
        The log must be read from its beginning, and no event may be missing or doubled.
    """
    return _snapshots_damaged(folder, "number", "all snapshots are damaged")


def _snapshots_damaged(folder: Path, which: str, fault: str) -> Outcome:
    line = _stopped_half_way(folder)
    with closing(sqlite3.connect(line / "events.db")) as db:
        whole = f"SELECT coalesce(max(place), 0) FROM snapshot WHERE number <> {which}"  # noqa: S608 - ours
        (place,) = db.execute(whole).fetchone()
        db.execute(f"UPDATE snapshot SET body = zeroblob(length(body)) WHERE number = {which}")  # noqa: S608 - ours
        db.commit()
    last = process_to_the_end(line)
    said, began = last.heard("is damaged"), last.heard(WORKS[PROCESSOR])
    wrong = _as_straight(line, line / "events.db", folder / "straight")
    if not said:
        wrong.append(f"it was not said: {last.said()}")
    if f"from offset {place} " not in began:
        wrong.append(f"it did not read from {place}: {began}")
    came = f"{began.partition(' into ')[0].replace(str(line) + '/', '')}; all events as without the fault"
    return Outcome(fault, said, came, tuple(wrong))


def wall_clock_jumps(folder: Path) -> Outcome:
    """Let the wall clock jump by 5 s, forwards and backwards, under the gateway and the processor.

    Parameters
    ----------
    folder
        Empty.

    Returns
    -------
    Outcome
        Arrivals must go on rising, and the events must be the same.
    """
    records = made_records()
    first_ns = records[0].time_ns
    jumping = Jumping(first_ns, (20.0, JUMP_S), (35.0, -JUMP_S), (55.0, -JUMP_S), (70.0, JUMP_S))
    moved = []
    for record in records:
        jumping.true_ns = record.time_ns
        moved.append(record._replace(time_ns=jumping.clock.now_ns()))
    wrong = [] if all(a.time_ns < b.time_ns for a, b in pairwise(moved)) else ["arrivals do not rise"]
    if not any(abs(a.time_ns - b.time_ns) > S for a, b in zip(moved, records, strict=True)):
        wrong.append("the clock never stood beside the time: nothing was tried")
    still = Jumping(first_ns)
    again = Jumping(first_ns, (20.0, JUMP_S), (35.0, -JUMP_S), (55.0, -JUMP_S), (70.0, JUMP_S))
    for name, these, clock in (("jumped", moved, again), ("still", records, still)):
        true_ns = iter(records[39::40] + records[-1:])

        def pass_time(clock: Jumping = clock, true_ns: Iterator[Record] = true_ns) -> None:
            clock.true_ns = next(true_ns).time_ns

        _processed(folder / name, these, clock.clock, pass_time)
    if changes(folder / "jumped" / "events.db") != changes(folder / "still" / "events.db"):
        wrong.append("the events are others")
    said = f"the wall clock jumped by {JUMP_S:.3f} s; it is followed slowly"
    return Outcome("the wall clock jumps by 5 s, four times", said, "arrivals rise; the same events", tuple(wrong))


def one_clock_jumps(folder: Path) -> Outcome:
    """Let the time stamps of one source jump by 5 s, forwards and back, and backwards and back.

    Parameters
    ----------
    folder
        Empty.

    Returns
    -------
    Outcome
        No event of the grid may come of it.
    """
    return _stamps_jump(folder, ("south",), "the time stamps of one source jump by 5 s and back")


def all_clocks_jump(folder: Path) -> Outcome:
    """Let the time stamps of all sources jump likewise.

    Parameters
    ----------
    folder
        Empty.

    Returns
    -------
    Outcome
        No event of the grid may come of it.
    """
    return _stamps_jump(folder, ("north", "south"), "all time stamps jump by 5 s and back")


class Jumping:
    """A wall clock that jumps, and the steady one that follows it.

    Parameters
    ----------
    first_ns
        When it begins.
    *jumps
        Seconds after that, and by how many seconds.
    """

    def __init__(self, first_ns: int, *jumps: tuple[float, float]) -> None:
        self.true_ns = first_ns
        self._jumps = [(first_ns + round(at_s * S), round(by_s * S)) for at_s, by_s in jumps]
        self.clock = SteadyClock(self._wall_ns, lambda: self.true_ns)

    def _wall_ns(self) -> int:
        return self.true_ns + sum(by_ns for at_ns, by_ns in self._jumps if self.true_ns >= at_ns)


def overwrite(path: Path, at: int, size: int) -> None:
    """Overwrite bytes of a file.

    Parameters
    ----------
    path
        The file.
    at, size
        Where, and how many.
    """
    with path.open("r+b") as file:
        file.seek(at)
        file.write(random.Random(at).randbytes(size))  # noqa: S311 - any bytes will do


def readable(log: Path) -> tuple[list[Record], list[Lost]]:
    """Read what a log still gives.

    Parameters
    ----------
    log
        The log's file.

    Returns
    -------
    tuple[list[Record], list[Lost]]
        What can be read, and what cannot.
    """
    records: list[Record] = []
    lost: list[Lost] = []
    with closing(open_log(log)) as opened:
        at = 0
        while True:
            reading = opened.read(FRAMES, at)
            if not reading.entries and not reading.lost:
                return records, lost
            at = reading.next
            records += [Record(*entry[1:]) for entry in reading.entries]
            lost += reading.lost


def _stopped_half_way(folder: Path) -> Path:
    """Make a line whose processor has read part of the log in two sittings and was stopped; the rest came since."""
    line, records = folder / "line", made_records()
    write_settings(line, learn_s=LEARN_S)
    third = len(records) // 3
    for part in (records[:third], records[third : 2 * third]):
        write_log(line / "log.db", part)
        _read_on(line)
    write_log(line / "log.db", records[2 * third :])
    return line


def _read_on(folder: Path, *, close: bool = False) -> None:
    """Let a processor read to the end of the log, here and undisturbed."""
    settings = processor_settings(load(folder / "gridsense.toml").config)
    with closing(open_log(folder / "log.db")) as log:
        processor = Processor(settings, log, folder / "events.db")
        processor.open()
        while processor.step():
            pass
        if close:
            processor.finish()
        processor.close()


def _processed(
    folder: Path, records: Sequence[Record], clock: SteadyClock, pass_time: Callable[[], None] | None = None
) -> Processor:
    """Process records as they come; where time passes between them, it is marked."""
    write_settings(folder, learn_s=LEARN_S)
    settings = replace(processor_settings(load(folder / "gridsense.toml").config), idle_s=0.0)
    with closing(open_log(folder / "log.db")) as log:
        processor = Processor(settings, log, folder / "events.db", (), clock.now_ns)
        processor.open()
        for at in range(0, len(records), 40):
            piece = records[at : at + 40]
            log.append(FRAMES, piece)
            while processor.step():
                pass
            if pass_time is not None:
                pass_time()
                processor.mark_time()
        while processor.step():
            pass
        processor.finish()
        processor.close()
    return processor


def _stamps_jump(folder: Path, jumping: Sequence[str], fault: str) -> Outcome:
    sources = [small_grid("north", 1, 4, 1), small_grid("south", 5, 3, 2)]
    moved = []
    for batch in sources:
        t_s = (batch.time_ns - batch.time_ns[0]) / S
        by_s = JUMP_S * (((t_s >= 32) & (t_s < 35)) * 1.0 - ((t_s >= 41) & (t_s < 44)))
        jumps = batch.table.pmus[0].source in jumping
        moved.append(replace(batch, time_ns=batch.time_ns + (by_s * S).astype(np.int64)) if jumps else batch)
    processor = _processed(folder / "jumped", recorded(moved), SteadyClock())
    _processed(folder / "still", recorded(sources), SteadyClock())
    raised = {one.id: one for one in changes(folder / "jumped" / "events.db") if not one.ended}
    usual = {one.id for one in changes(folder / "still" / "events.db")}
    more = [json.loads(one.text)["data"] for key, one in raised.items() if key not in usual]
    wrong = [f"an event of the grid: {one['sentence']}" for one in more if one["cause"] == "grid"]
    if missing := usual - raised.keys():
        wrong.append(f"{len(missing)} events are missing")
    counts = processor.regions.by_name[""].pipeline.counts()
    assert counts is not None  # noqa: S101 - frames have come
    decoded = sum(processor.regions.by_name[""].intake.frames.values())
    of = counts[1]
    fates = {"accepted": of.accepted, "late": of.late, "doubled": of.duplicate, "ahead": of.ahead}
    fates = {name: int(count.sum()) for name, count in fates.items()}
    if sum(fates.values()) != decoded or fates["accepted"] == decoded:
        wrong.append(f"{decoded} frames were decoded, {fates} are accounted for")
    kinds = Counter(f"{one['cause']} {one['kind']}" for one in more)
    said = more[0]["sentence"] if more else ""
    came = ", ".join(f"{count} frames {name}" for name, count in fates.items() if count)
    told = ", ".join(f"{count} events {kind}" for kind, count in sorted(kinds.items())) or "no event"
    return Outcome(fault, said, f"{came}; {told}; events of the grid as without it", tuple(wrong))


def _as_straight(line: Path, store: Path, folder: Path) -> list[str]:
    """Say in what a store differs from that of an uninterrupted run over a copy of the same log."""
    write_settings(folder, learn_s=LEARN_S)
    for path in line.glob("log.db*"):
        shutil.copy(path, folder / path.name)
    _read_on(folder, close=True)
    wrong = []
    if not changes(folder / "events.db"):
        wrong.append("an uninterrupted run finds nothing: nothing was tried")
    if sorted(changes(store)) != sorted(changes(folder / "events.db")):
        wrong.append("the changes of events are not those of an uninterrupted run")
    if events(store) != events(folder / "events.db"):
        wrong.append("the events are not those of an uninterrupted run")
    return wrong


def _remove(path: Path) -> None:
    for one in path.parent.glob(f"{path.name}*"):
        one.unlink()


def _read_to(line: Path) -> int:
    """Offset to which the processor has noted that it has read."""
    with closing(open_log(line / "log.db")) as log:
        return log.position(FRAMES, "processor") or 0


def _dropped(log: Path) -> list[int]:
    """Numbers of frames that the gateway says it has dropped."""
    with closing(open_log(log)) as opened:
        letters = opened.read(DEAD_LETTERS, 0).entries
    return [int(one.value.split()[0]) for one in letters if one.note == Reason.DROPPED_FULL]


def _size(path: Path) -> int:
    return sum(one.stat().st_size for one in path.parent.glob(f"{path.name}*"))


FAULTS: tuple[Callable[[Path], Outcome], ...] = (
    log_damaged,
    log_deleted,
    store_damaged,
    store_foreign,
    store_deleted,
    snapshot_damaged,
    snapshots_damaged,
    wall_clock_jumps,
    one_clock_jumps,
    all_clocks_jump,
)
"""Those that need no disk."""
DISK_FAULTS = (log_disk_full, log_disk_full_for_long, store_disk_full)
