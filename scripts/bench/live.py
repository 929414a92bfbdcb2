"""How many PMUs one machine holds live: simulated PMUs over TCP, one gateway, the embedded log, one processor.

Each runs in a process of its own, as real commands do, at 30 frames a second and 20 channels a PMU. Measured for every
scored tick: the time from the arrival of its newest frame to its score. Scoring is at its full cost: what is typical
was learned before, by all scorers, and that is checked (the minute's computes, and is silent for its first minute). To
the network each of these PMUs is three views: its voltage and current have three sequences. Prints a table, with
`--profile` where the processor's time goes; with `--json` the last line is one JSON
object. `--quick` ends within a minute. Run it on a quiet machine: p99 is what others leave.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# A BLAS told to take itself for an older machine would measure that machine.
FORCED = [name for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE") if os.environ.pop(name, None)]
ROOT = Path(__file__).parents[2]
# instead of this folder: the script beside this one is not the library of its name, kafka
sys.path[:] = [str(ROOT), *(place for place in sys.path if Path(place) != Path(__file__).parent)]

import numpy as np  # noqa: E402  # after the BLAS is settled
from rich.console import Console  # noqa: E402  # after the path
from rich.table import Table  # noqa: E402  # after the path

from baselines.calibration import Status  # noqa: E402  # after the path
from baselines.stream_axis import take_streams  # noqa: E402  # after the path
from gridsense.config import Config, load  # noqa: E402  # after the path
from gridsense.log_opening import open_log  # noqa: E402  # after the path
from gridsense.logs import set_up  # noqa: E402  # after the path
from gridsense.pipeline import Learned, Pipeline, Settings  # noqa: E402  # after the path
from gridsense.processor import Step  # noqa: E402  # after the path
from gridsense.scoring import LAYERS  # noqa: E402  # after the path
from gridsense.services import grouped, processing  # noqa: E402  # after the path
from streams import align, derive  # noqa: E402  # after the path
from streams.archives import write_parquet  # noqa: E402  # after the path
from streams.block import FrameBatch  # noqa: E402  # after the path
from streams.c37118.stream import StreamParser  # noqa: E402  # after the path
from streams.channels import Channel, ChannelTable, Phase, Pmu, Quantity  # noqa: E402  # after the path
from streams.log import CONFIGURATIONS  # noqa: E402  # after the path

RATE = 30
CHANNELS = 20
BASE_PMUS = 30
"""PMUs of the recording; larger loads repeat them from other places of it."""
RECORDED_S = 60
LEARNT_S = 1500
"""Quiet time that all three scorers learn from: the slowest wants 24 minutes."""
SETTLE_S = 12.0
"""After the start; the first seconds lay everything out."""
LIMIT_MS = 500.0
NOTES = "processor.jsonl"
LEARNED = ".learned"
"""Beside the notes, once the processor waits for the gateway."""
PDC = 300
"""PMUs of a concentrator."""
PHASES = (Phase.A, Phase.B, Phase.C, Phase.POSITIVE)


@dataclass(frozen=True, slots=True)
class Load:
    """So many connections of so many PMUs."""

    connections: int
    pmus_each: int

    @property
    def pmus(self) -> int:
        """PMUs in all."""
        return self.connections * self.pmus_each


@dataclass(frozen=True, slots=True)
class Measured:
    """What a load came to.

    `frames_s` is what was processed a second; `asked_s` what was sent. `lag_s` is how far the processor was behind at
    the end and `lag_slope` how fast that grew. The shares are of one core.
    """

    connections: int
    pmus: int
    asked_s: float
    frames_s: float
    p50_ms: float
    p99_ms: float
    worst_ms: float
    lag_s: float
    lag_slope: float
    rss_mib: float
    gateway_rss_mib: float
    processor_share: float
    gateway_share: float
    simulator_share: float

    @property
    def held(self) -> bool:
        """Nothing is left behind, and nearly every score is there in time."""
        return self.p99_ms < LIMIT_MS and self.frames_s > 0.98 * self.asked_s and self.lag_s < 1.0


def recording(seed: int, seconds: int) -> FrameBatch:
    """Make PMUs up in quiet operation: four voltages and four currents, frequency, ROCOF, active and reactive power."""
    rng = np.random.default_rng(seed)
    channels = tuple(
        Channel(f"{letter}{phase.value or 1}", quantity, phase, unit)
        for letter, kinds in (
            ("V", ((Quantity.VOLTAGE_MAGNITUDE, "V"), (Quantity.VOLTAGE_ANGLE, "deg"))),
            ("I", ((Quantity.CURRENT_MAGNITUDE, "A"), (Quantity.CURRENT_ANGLE, "deg"))),
        )
        for phase in PHASES
        for quantity, unit in kinds
    )
    channels += (
        Channel("", Quantity.FREQUENCY, unit="Hz"),
        Channel("", Quantity.ROCOF, unit="Hz/s"),
        Channel("P", Quantity.ANALOG),
        Channel("Q", Quantity.ANALOG),
    )
    table = ChannelTable(tuple(Pmu(f"Bus {n}", n, f"Bus {n}", 60, channels, "north") for n in range(1, BASE_PMUS + 1)))
    typical = {
        Quantity.VOLTAGE_MAGNITUDE: (199_186.0, 4.0),
        Quantity.CURRENT_MAGNITUDE: (800.0, 0.02),
        Quantity.FREQUENCY: (60.0, 2e-4),
        Quantity.ANALOG: (500.0, 0.02),
    }
    centre, spread = (np.array([typical.get(c.quantity, (0.0, 2e-3))[i] for c in channels]) for i in (0, 1))
    frames = seconds * RATE
    values = (centre + spread * rng.standard_normal((frames, BASE_PMUS, CHANNELS), np.float32)).astype(np.float32)
    time_ns = 1_772_366_400 * 10**9 + np.arange(frames) * 10**9 // RATE
    stat, flags = np.zeros((frames, BASE_PMUS), np.uint16), np.zeros(frames, np.uint8)
    return FrameBatch(table, float(RATE), time_ns, flags, stat, values, time_ns)


def learned(settings: Settings, seconds: int = LEARNT_S) -> Learned:
    """Learn what is typical of the recording's PMUs: for every scorer, unless so few seconds are asked for."""
    pipeline = Pipeline(settings)
    parts = 30
    for k in range(seconds // parts):
        batch = recording(1000 + k, parts)
        shift = k * parts * 10**9
        moved = FrameBatch(
            batch.table, batch.rate_hz, batch.time_ns + shift, batch.time_flags, batch.stat, batch.values,
            batch.arrival_ns + shift,
        )  # fmt: skip
        pipeline.feed([("north#1", moved)])
    found = pipeline.learned()
    if found is None or (
        seconds >= LEARNT_S and not all(reference.learned.all() for reference in found.references.values())
    ):
        raise RuntimeError("the quiet time is too short to learn from")
    return found


def spread_out(found: Learned, tables: dict[str, ChannelTable]) -> Learned:
    """Give each repeated PMU what was learned of the one that it repeats."""
    table = derive.initial(align.lay_out(tables).table, float(RATE)).plan.table
    place = {pmu.name: s for s, pmu in enumerate(found.table.pmus)}
    where = np.array([place[re.sub(r" \(\d+\)$", "", pmu.name)] for pmu in table.pmus])
    return Learned(table, {name: take_streams(it, where) for name, it in found.references.items()}, found.model)


class Recorder:
    """Writes down what the processor does, about once a second; told by any of its threads."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8")
        self._lock = threading.Lock()
        self._latency_s: list[float] = []
        self._learned: dict[tuple[str, str], float] = {}
        self._frames: dict[str, int] = {}
        self._clock_ns: dict[str, int] = {}
        self._noted_s = time.monotonic()

    def stepped(self, step: Step) -> None:
        """Take up a reading."""
        if not step.frames:
            return
        with self._lock:
            self._latency_s += step.latency_s
            self._frames[step.region] = step.frames
            self._clock_ns[step.region] = step.clock_ns
            for output in step.outputs:
                for track, layer in zip(output.scored.ticks.tracks, output.scored.layers, strict=True):
                    if layer.status.size:
                        learned = float((layer.status[-1] != Status.LEARNING).mean())
                        self._learned[step.region, track.name] = learned
            if time.monotonic() - self._noted_s >= 1.0:
                self._note()

    def _note(self) -> None:
        self._noted_s = time.monotonic()
        line = {
            "at_s": self._noted_s,
            "frames": sum(self._frames.values()),
            "latency_s": [round(x, 5) for x in self._latency_s],
            "lag_s": (time.time_ns() - min(self._clock_ns.values())) / 1e9,
            "learned": [round(share, 3) for share in self._learned.values()],
        }
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        self._latency_s.clear()
        self._clock_ns.clear()

    def saved(self, took_s: float, size: int, state_bytes: int) -> None:
        """Say how long a snapshot took."""
        print(f"snapshot {took_s:.2f} s, {size >> 20} of {state_bytes >> 20} MiB", file=sys.stderr)

    def save_failed(self) -> None:
        """Nothing to write down."""

    def began(self, how: str) -> None:
        """Nothing to write down."""


def run_processor(
    config: Config, connections: int, notes: Path, *, profile: Path | None = None, found: Learned | None = None
) -> None:
    """Be the processor: with what was found, or else everything learned, once all connections are configured."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    undo = set_up("warning")
    found = found or learned(config.pipeline_settings())
    log = open_log(config)
    notes.with_suffix(LEARNED).touch()
    while len(log.latest(CONFIGURATIONS)) < connections and not stop.wait(0.05):
        pass
    tables: dict[str, ChannelTable] = {}
    for key, entry in log.latest(CONFIGURATIONS).items():
        parser = StreamParser(key)
        parser.feed(entry.value)
        tables |= {f"{key}#{code}": table for code, table in parser.tables().items()}
    log.close()
    recorder, reference = Recorder(notes), spread_out(found, tables)

    def work() -> None:
        if config.log_servers:
            grouped.process_group(config, stop, watch=[recorder.stepped], learned=reference)
        else:
            processing.process(config, stop, observers=[recorder], learned=reference)

    if profile is None:
        work()
    else:
        import cProfile  # noqa: PLC0415 (costs time where it is not wanted)

        with cProfile.Profile() as watched:
            work()
        watched.dump_stats(profile)
    undo()


def command(*words: str) -> list[str]:
    """Make a command of the program."""
    return [sys.executable, "-c", "from gridsense.cli import main; main()", *words]


@contextmanager
def running(words: Sequence[str], folder: Path, name: str, out: int | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """Start a process; stop it at the end. What it says on stderr goes to a file."""
    with (
        (folder / f"{name}.err").open("wb") as said,
        subprocess.Popen(words, cwd=ROOT, stdout=out, stderr=said) as process,
    ):
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def cpu_s(pid: int) -> float:
    """Processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss_mib(pid: int) -> float:
    """Memory of a process now."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


@contextmanager
def line(
    load: Load, recorded: Path, scorers: Sequence[str], profile: Path | None = None
) -> Iterator[tuple[Path, dict[str, subprocess.Popen[bytes]]]]:
    """Run a load: simulator, gateway and processor, each in a process of its own.

    Yields
    ------
    tuple[Path, dict[str, subprocess.Popen[bytes]]]
        The folder of everything, the processor's notes among it, once scores come; and the processes by name.
    """
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        simulator = stack.enter_context(simulating(load, recorded, folder))
        path = folder / "gridsense.toml"
        path.write_text(
            f'[scoring]\nscorers = {list(scorers)}\n[log]\nurl = "sqlite:log.db"\nretention = "2min"\n'
            f"[metrics]\nprocessor_port = 0\ngateway_port = 0\n{printed(simulator, load.connections)}",
            encoding="utf-8",
        )
        own = [sys.executable, str(Path(__file__)), "--processor", str(path), "--notes", str(folder / NOTES)]
        own += ["--connections", str(load.connections)] + (["--profile-to", str(profile)] if profile else [])
        processor = stack.enter_context(running(own, folder, "processor"))
        wait_for_learned(folder / NOTES, processor)
        gateway = stack.enter_context(running(command("gateway", "--config", str(path)), folder, "gateway"))
        children = {"processor": processor, "gateway": gateway, "simulator": simulator}
        wait_for_notes(folder / NOTES, children)
        time.sleep(SETTLE_S)
        yield folder, children


def simulating(load: Load, recorded: Path, folder: Path) -> AbstractContextManager[subprocess.Popen[bytes]]:
    """Serve a load of simulated PMUs."""
    words = [
        "simulate-pmu", str(recorded), "--concentrators", str(load.connections), "--pmus-each", str(load.pmus_each),
        "--port", "0", "--loop", "--shift-to-now", "--print-config", "--jitter-ms", "20",
    ]  # fmt: skip
    return running(command(*words), folder, "simulator", subprocess.PIPE)


def wait_for_learned(notes: Path, processor: subprocess.Popen[bytes]) -> None:
    """Wait until a processor has learned."""
    while not notes.with_suffix(LEARNED).exists():
        if processor.poll() is not None:
            raise RuntimeError(notes.with_suffix(".err").read_text(encoding="utf-8"))
        time.sleep(0.05)


def printed(simulator: subprocess.Popen[bytes], connections: int) -> str:
    """Read the connections that a simulator prints."""
    assert simulator.stdout is not None  # noqa: S101 (for the type checker)
    text = ""
    while text.count("[[gateway.connections]]") < connections or "transport" not in text.rpartition("[[")[2]:
        said = simulator.stdout.readline().decode()
        if not said:
            raise RuntimeError("the simulator ended before it had said what it serves")
        text += said
    return text


def measure(
    load: Load, recorded: Path, scorers: Sequence[str], seconds: float, *, profile: Path | None, tell: Console
) -> Measured:
    """Run a load and measure it."""
    with line(load, recorded, scorers, profile) as (folder, children):
        began_s, began = time.monotonic(), {name: cpu_s(child.pid) for name, child in children.items()}
        time.sleep(seconds)
        span_s = time.monotonic() - began_s
        share = {name: (cpu_s(child.pid) - began[name]) / span_s for name, child in children.items()}
        memory = {name: rss_mib(child.pid) for name, child in children.items()}
        notes = read_notes(folder / NOTES)
        said = (folder / "processor.err").read_text(encoding="utf-8")
        tell.print(said[-600:], end="", highlight=False, markup=False)
    return _summed(load, [note for note in notes if note["at_s"] >= began_s], share, memory)


def read_notes(path: Path) -> list[dict[str, Any]]:
    """Read what a processor has written down so far."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return [json.loads(text) for text in lines if text.endswith("\n")]


def wait_for_notes(notes: Path, children: dict[str, subprocess.Popen[bytes]]) -> None:
    """Wait until scores come."""
    folder, deadline = notes.parent, time.monotonic() + 120
    while not any(note["latency_s"] for note in read_notes(notes)):
        for name, child in children.items():
            if child.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{name}: {(folder / f'{name}.err').read_text(encoding='utf-8')[-2000:]}")
        time.sleep(0.2)


def check_learned(notes: Sequence[dict[str, Any]]) -> None:
    """Raise an error where not all scorers have learned all PMUs: the load would cost less than it should."""
    shares = np.median(np.array([note["learned"] for note in notes[-5:]]), axis=0)
    if len(shares) < LAYERS or shares.min() < 1:
        raise RuntimeError(f"not all have learned, and cost is too low: shares of the PMUs by scorer {shares.tolist()}")


def frames_s(notes: Sequence[dict[str, Any]]) -> float:
    """Say how many frames a processor took a second."""
    if len(notes) < 2:
        return 0.0
    first, last = notes[0], notes[-1]
    return float((last["frames"] - first["frames"]) / (last["at_s"] - first["at_s"]))


def _summed(load: Load, notes: list[dict[str, Any]], share: dict[str, float], memory: dict[str, float]) -> Measured:
    """Put the processor's notes together."""
    check_learned(notes)
    at, lag = (np.array([note[name] for note in notes], float) for name in ("at_s", "lag_s"))
    latency_ms = 1e3 * np.concatenate([np.array(note["latency_s"], float) for note in notes])
    p50, p99, worst = np.percentile(latency_ms, [50, 99, 100])
    return Measured(
        connections=load.connections,
        pmus=load.pmus,
        asked_s=load.connections * RATE,
        frames_s=frames_s(notes),
        p50_ms=float(p50),
        p99_ms=float(p99),
        worst_ms=float(worst),
        lag_s=float(np.median(lag[-5:])),
        lag_slope=float(np.polyfit(at - at[0], lag, 1)[0]),
        rss_mib=memory["processor"],
        gateway_rss_mib=memory["gateway"],
        processor_share=share["processor"],
        gateway_share=share["gateway"],
        simulator_share=share["simulator"],
    )


def show(rows: Sequence[Measured], console: Console) -> None:
    """Print what was measured."""
    table = Table(
        "connections", "PMUs", "frames/s", "p50 ms", "p99 ms", "worst ms", "lag s", "RSS MiB", "gateway MiB",
        "processor", "gateway", "simulator", "held",
        title="from arrival to score; shares of one core",
    )  # fmt: skip
    for r in rows:
        table.add_row(
            f"{r.connections:,}", f"{r.pmus:,}", f"{r.frames_s:,.0f} of {r.asked_s:,.0f}", f"{r.p50_ms:.0f}",
            f"{r.p99_ms:.0f}", f"{r.worst_ms:.0f}", f"{r.lag_s:.2f}", f"{r.rss_mib:,.0f}", f"{r.gateway_rss_mib:,.0f}",
            f"{r.processor_share:.0%}", f"{r.gateway_share:.0%}", f"{r.simulator_share:.0%}", "yes" if r.held else "no",
        )  # fmt: skip
    console.print(table)


STAGES = (
    ("read the log", "sqlite_log.py", "read"),
    ("decode", "intake.py", "_decode"),
    ("align", "align.py", "step"),
    ("judge", "quality.py", "judge"),
    ("derive", "derive.py", "derive"),
    ("score, its threads included", "scoring.py", "step"),
    ("detect", "detection.py", "step"),
    ("outages", "outages.py", "step"),
    ("store events", "store.py", "put"),
    ("take a snapshot", "pipeline.py", "freeze"),
    ("everything, waiting for frames left out", "processor.py", "step"),
)


def show_profile(path: Path, console: Console) -> None:
    """Print where the processor's time went: by stage, and the functions that took most in its own thread."""
    import pstats  # noqa: PLC0415 (only here)

    stats = pstats.Stats(str(path))
    found = {
        (Path(place[0]).name, place[2]): (calls, spent)
        for place, (_, calls, _, spent, _) in stats.stats.items()  # type: ignore[attr-defined]
    }
    whole = found["processor.py", "step"][1]
    table = Table("stage", "calls", "s", "share", title="where the processor's time goes, profiled")
    for words, file, name in STAGES:
        calls, spent = found.get((file, name), (0, 0.0))
        table.add_row(words, f"{calls:,}", f"{spent:.2f}", f"{spent / whole:.0%}")
    console.print(table)
    stats.sort_stats("tottime").print_stats(15)


def main() -> None:  # noqa: C901 (what is asked for, one thing after the other)
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one small load, within a minute")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    parser.add_argument("--seconds", type=float, default=40.0, help="how long each load is measured")
    parser.add_argument(
        "--load", action="append", default=[], metavar="CONNECTIONSxPMUS", help="instead of the usual loads"
    )
    parser.add_argument("--scorers", default="quadratic,sequence", help="what scores (default: %(default)s)")
    parser.add_argument("--profile", action="store_true", help="show where the processor's time goes in the last load")
    for name in ("processor", "notes", "profile-to"):
        parser.add_argument(f"--{name}", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--connections", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.processor:
        run_processor(load(asked.processor).config, asked.connections, asked.notes, profile=asked.profile_to)
        return
    console = Console(width=None if sys.stdout.isatty() else 150)
    tell = Console(stderr=True)
    loads = [Load(*map(int, words.split("x"))) for words in asked.load]
    scorers = asked.scorers.split(",")
    rows: list[Measured] = []
    with tempfile.TemporaryDirectory() as folder:
        recorded = Path(folder) / "quiet.parquet"
        write_parquet(recorded, [recording(0, RECORDED_S)])
        profile = Path(folder) / "profile" if asked.profile else None

        def run(one: Load) -> Measured:
            tell.print(f"{one.connections:,} connections of {one.pmus_each} PMUs ...", highlight=False)
            seconds = 8.0 if asked.quick else asked.seconds
            rows.append(measure(one, recorded, scorers, seconds, profile=profile, tell=tell))
            return rows[-1]

        if loads or asked.quick:
            for one in loads or [Load(1, 100)]:
                run(one)
        else:
            run(Load(500, 1))
            largest = 4 if "sequence" in scorers else 10
            held = run(Load(largest, PDC)).held
            step = 1 if held else -1
            while 0 < largest + step <= 40 and held == (step > 0):
                largest += step
                held = run(Load(largest, PDC)).held
        show(rows, console)
        if profile is not None:
            show_profile(profile, console)
    best = max((r for r in rows if r.held), key=lambda r: r.pmus, default=None)
    if best is None:
        console.print("no load was held")
    else:
        console.print(f"the largest load held: {best.pmus:,} PMUs, p99 {best.p99_ms:.0f} ms (limit {LIMIT_MS:.0f} ms)")
    if FORCED:
        console.print(f"(not used, though set here: {', '.join(FORCED)})")
    if asked.json:
        of = best or rows[-1]
        figures = {"pmus": best.pmus if best else 0, "p50_ms": of.p50_ms, "p99_ms": of.p99_ms, "rss_mib": of.rss_mib}
        print(json.dumps(figures | {"loads": [asdict(r) for r in rows]}))


if __name__ == "__main__":
    main()
