"""How many PMUs a gateway, Kafka and a processor hold live, in frames of concentrators or as one message a PMU.

Simulated PMUs over TCP, `gridsense gateway`, a real broker on this machine and one processor, or several that share the
load, each in a process of its own; 30 frames a second and 20 channels a PMU. Measured: from the arrival of a tick's
newest frame at the gateway to the moment when the transaction that holds its score is committed; and how far the
committed offsets are behind, and whether that grows. Scoring is at its full cost, as in `live.py`. One processor has
all PMUs in one region and partition; several have four regions in four partitions.

Without `--pmus` it looks for the greatest load that is held. `--profile` shows where the time of gateway and processor
goes, and kafka-python's share of it. `--processors 0` measures the gateway alone. `--quick` ends within a minute; with
`--json` the last line is one JSON object. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
# instead of this folder: this script is not the library of its name
sys.path[:] = [str(ROOT), *(place for place in sys.path if Path(place) != Path(__file__).parent)]

from scripts.bench import live  # noqa: E402  # first of all: it settles the BLAS

# isort: split
import numpy as np  # noqa: E402  # after the BLAS is settled
import pyarrow as pa  # noqa: E402  # after the path
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition  # noqa: E402  # after the path
from kafka.admin import OffsetSpec  # noqa: E402  # after the path
from kafka.producer.future import FutureRecordMetadata  # noqa: E402  # after the path
from kafka.producer.transaction_manager import TransactionManager  # noqa: E402  # after the path
from kafka.protocol.consumer import IsolationLevel  # noqa: E402  # after the path
from numpy.typing import NDArray  # noqa: E402  # with numpy
from prometheus_client.parser import text_string_to_metric_families  # noqa: E402  # after the path
from rich.console import Console  # noqa: E402  # after the path
from rich.table import Table  # noqa: E402  # after the path

from baselines import atypicality, calibration  # noqa: E402  # after the path
from gridsense import cli  # noqa: E402  # after the path
from gridsense.checkpoints import Checkpoints  # noqa: E402  # after the path
from gridsense.config import load as load_config  # noqa: E402  # after the path
from gridsense.detection import Detector  # noqa: E402  # after the path
from gridsense.intake import Intake  # noqa: E402  # after the path
from gridsense.log_opening import kafka_settings  # noqa: E402  # after the path
from gridsense.outages import Outages  # noqa: E402  # after the path
from gridsense.scoring import Scorers  # noqa: E402  # after the path
from gridsense.services.metering import Meter  # noqa: E402  # after the path
from gridsense.status import ProcessorBoard  # noqa: E402  # after the path
from gridsense.works import RegionalWork  # noqa: E402  # after the path
from scripts.bench.live import LEARNT_S, LIMIT_MS, PDC, RATE, RECORDED_S, SETTLE_S, Load, cpu_s, rss_mib  # noqa: E402
from scripts.broker.cluster import Cluster  # noqa: E402  # after the path
from scripts.spending import Spending  # noqa: E402  # after the path
from streams import align, derive, quality  # noqa: E402  # after the path
from streams.archives import write_parquet  # noqa: E402  # after the path
from streams.gateway import intake as gateway_intake  # noqa: E402  # after the path
from streams.kafka.clients import admin  # noqa: E402  # after the path
from streams.kafka.log import KafkaLog  # noqa: E402  # after the path
from streams.kafka.member import Member  # noqa: E402  # after the path
from streams.kafka.sole_writer import SoleWriter  # noqa: E402  # after the path
from streams.kafka.state import StateTopic  # noqa: E402  # after the path
from streams.log import FRAMES, SCORES  # noqa: E402  # after the path

FLUSH_MS = 50
"""How long the gateway gathers: what it writes at once is a transaction."""
REGIONS = ("north", "east", "south", "west")
"""Where several processors share the load; each has a partition."""
EVERY_S = 2.0
"""From one look at Kafka's offsets to the next."""
LAG_S = 1.0
GROWTH_S = 0.3
"""A lag that grew by less than this in all that time, by a straight line, does not grow: a batch or two are as long."""
CATCH_UP_S = 60.0
QUICK_LEARNT_S = 90
LEARNED = "learned.pickle"
GATEWAY, BROKER, SIMULATOR = "gateway", "broker", "simulator"
OWN, OTHERS, HOST = "benchmark", "others", "the host"


@dataclass(frozen=True, slots=True)
class Setup:
    """How loads are run.

    Attributes
    ----------
    scorers
        What scores.
    processors
        How many; 0: the gateway writes, and nobody reads.
    profile
        Folder of the profiles; None for none.
    learnt_s
        Quiet time that they have learned from; with less than `live.LEARNT_S` the slower scorers say nothing yet.
    settle_s
        From the first scores to the beginning of the measurement.
    """

    scorers: tuple[str, ...]
    processors: int = 1
    profile: Path | None = None
    learnt_s: int = LEARNT_S
    settle_s: float = SETTLE_S

    @property
    def regions(self) -> tuple[str, ...]:
        """Of the PMUs; none where they are one."""
        return REGIONS if self.processors > 1 else ()

    @property
    def partitions(self) -> int:
        """Of the topic of frames."""
        return max(len(self.regions), 1)


@dataclass(frozen=True, slots=True)
class Written:
    """What stands in the topic of scores, committed, from the time that was measured.

    Attributes
    ----------
    pmus
        Of whom there are scores, in all regions.
    ticks
        Moments that were scored.
    share
        Of the fastest scorer's scores, how many say something.
    gap_s
        Longest event time between two ticks of a region.
    """

    pmus: int = 0
    ticks: int = 0
    share: float = 0.0
    gap_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Measured:
    """What a load came to.

    `sent_s` frames a second were to be sent, `received_s` came to the gateway, `frames_s` were decoded by each
    processor. Times are from arrival to committed score. `lag_s` is how far the committed offset was behind at the end,
    in the partition where it was most, `growth_s` by how much that grew from beginning to end; `waiting_bytes` the
    gateway had not written then. The shares are of one core, and `OTHERS` are those who should not be there, `HOST`
    what this machine did not get of its processors. Without processors the times are 0.
    """

    connections: int
    pmus: int
    seconds: float
    sent_s: float
    received_s: float
    frames_s: tuple[float, ...]
    p50_ms: float
    p99_ms: float
    worst_ms: float
    lag_s: float
    growth_s: float
    waiting_bytes: int
    share: dict[str, float]
    rss_mib: dict[str, float]
    written: Written = Written()

    @property
    def sustained(self) -> bool:
        """Nothing is left behind, neither before Kafka nor behind it."""
        if not self.frames_s:
            return self.received_s > 0.98 * self.sent_s
        all_there = self.written.pmus >= self.pmus and self.written.share > 0.98 and self.written.gap_s < 1.0
        kept_up = sum(self.frames_s) > 0.98 * self.sent_s and self.growth_s < GROWTH_S and self.lag_s < LAG_S
        return all_there and kept_up

    @property
    def held(self) -> bool:
        """Nor is hardly any score late."""
        return self.sustained and self.p99_ms < LIMIT_MS


def divided(pmus: int, messages: str) -> Load:
    """Make connections of PMUs: of concentrators as many as must be, a few PMUs more where it comes out uneven."""
    if messages == "pmu":
        return Load(pmus, 1)
    connections = -(-pmus // PDC)
    return Load(connections, -(-pmus // connections))


class Line:
    """A load that runs.

    Parameters
    ----------
    folder
        Of everything.
    setup
        How it is run.
    children
        Its processes, by name.
    broker
        Process id of the broker.
    """

    def __init__(self, folder: Path, setup: Setup, children: dict[str, subprocess.Popen[bytes]], broker: int) -> None:
        self.folder = folder
        self.setup = setup
        self.children = children
        self.pids = {name: child.pid for name, child in children.items()} | {BROKER: broker}
        self.config = load_config(folder / f"{GATEWAY}.toml").config
        self.settings = kafka_settings(self.config)

    def notes(self) -> list[list[dict[str, Any]]]:
        """Read what each processor has written down so far."""
        return [live.read_notes(path) for path in notes_of(self.folder, self.setup)]

    def places(self, client: KafkaAdminClient) -> tuple[list[int], list[int]]:
        """Ask where each partition of the frames ends, and up to where it was committed."""
        tps = [TopicPartition(self.settings.topic(FRAMES), n) for n in range(self.setup.partitions)]
        group = self.settings.prefix + self.config.kafka.group
        done = client.list_group_offsets({group: tps})[group] if self.setup.processors else {}
        return self.ends(client, FRAMES), [max(done[tp].offset, 0) if tp in done else 0 for tp in tps]

    def ends(self, client: KafkaAdminClient, topic: str) -> list[int]:
        """Ask where what is committed ends, in each partition of a topic."""
        tps = [TopicPartition(self.settings.topic(topic), n) for n in range(self.setup.partitions)]
        ends = client.list_partition_offsets(dict.fromkeys(tps, OffsetSpec.LATEST), IsolationLevel.READ_COMMITTED)
        return [ends[tp].offset for tp in tps]

    def gateway(self) -> Counter[str]:
        """Read the gateway's metrics, summed over its connections."""
        out: Counter[str] = Counter()
        with urllib.request.urlopen(f"http://127.0.0.1:{self.config.metrics.gateway_port}/metrics") as page:
            for family in text_string_to_metric_families(page.read().decode()):
                for sample in family.samples:
                    out[sample.name] += int(sample.value)
        return out

    def check(self) -> None:
        """Look whether all of it still runs."""
        for name, child in self.children.items():
            if child.poll() is not None:
                said = (self.folder / f"{name}.err").read_text(encoding="utf-8")[-2000:]
                raise RuntimeError(f"{name} ended with {child.returncode}: {said}")

    def catch_up(self) -> None:
        """Wait until the beginning, when everything is laid out, is made up for; or go on without, in the end."""
        until_s = time.monotonic() + CATCH_UP_S
        while any(one[-1]["lag_s"] > LAG_S / 2 for one in self.notes()) and time.monotonic() < until_s:
            time.sleep(1.0)
        self.check()

    def signal_profiled(self, number: signal.Signals) -> None:
        """Tell those of which a profile is taken to begin or to end."""
        for name, child in self.children.items():
            if name != SIMULATOR:
                child.send_signal(number)


def notes_of(folder: Path, setup: Setup) -> list[Path]:
    """Name the files of the processors' notes."""
    return [folder / f"processor-{n}.jsonl" for n in range(1, setup.processors + 1)]


def configuration(servers: str, setup: Setup, prefix: str, name: str, connections: str) -> str:
    """Write the configuration of one of the processes."""
    first, *others = connections.split("[[gateway.connections]]\n")
    regions = [
        f'region = "{setup.regions[n % len(setup.regions)]}"\n' if setup.regions else "" for n in range(len(others))
    ]
    connections = first + "".join(
        f"[[gateway.connections]]\n{region}{other}" for region, other in zip(regions, others, strict=True)
    )
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    return (
        f'[scoring]\nscorers = {list(setup.scorers)}\n[log]\nurl = "kafka://{servers}"\nretention = "10min"\n'
        f'[kafka]\nprefix = "{prefix}"\ninstance = "{name}"\npartitions = {setup.partitions}\nreplication = 1\n'
        f'regions = {list(setup.regions)}\n[store]\npath = "{name}.db"\n[metrics]\nprocessor_port = 0\n'
        f"gateway_port = {port if name == GATEWAY else 0}\n[gateway]\nflush_ms = {FLUSH_MS}\n{connections}"
    )


@contextmanager
def line(cluster: Cluster, load: Load, recorded: Path, setup: Setup) -> Iterator[Line]:
    """Run a load, with topics of its own.

    Yields
    ------
    Line
        Once scores come and the first seconds are over.
    """
    with tempfile.TemporaryDirectory() as made, ExitStack() as stack:
        folder = Path(made)
        prefix = f"{folder.name}."
        simulator = stack.enter_context(live.simulating(load, recorded, folder))
        connections = live.printed(simulator, load.connections)
        notes = notes_of(folder, setup)
        paths = {name: folder / f"{name}.toml" for name in (GATEWAY, *(path.stem for path in notes))}
        for name, path in paths.items():
            path.write_text(configuration(cluster.servers, setup, prefix, name, connections), encoding="utf-8")
        words = live.command("topics", "create", "--config", str(paths[GATEWAY]))
        made_topics = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
        if made_topics.returncode:
            raise RuntimeError(made_topics.stderr)
        stack.callback(_remove_topics, cluster, prefix)
        children = {SIMULATOR: simulator}
        if notes:
            found = live.learned(load_config(paths[GATEWAY]).config.pipeline_settings(), setup.learnt_s)
            (folder / LEARNED).write_bytes(pickle.dumps(found))
        for path in notes:
            own = [*_own(path.stem, paths[path.stem], setup), "--notes", str(path)]
            own += ["--connections", str(load.connections), "--learned", str(folder / LEARNED)]
            children[path.stem] = stack.enter_context(live.running(own, folder, path.stem))
        for path in notes:
            live.wait_for_learned(path, children[path.stem])
        own = live.command("gateway", "--config", str(paths[GATEWAY]))
        if setup.profile:
            own = _own(GATEWAY, paths[GATEWAY], setup)
        children[GATEWAY] = stack.enter_context(live.running(own, folder, GATEWAY))
        for path in notes:
            live.wait_for_notes(path, children)
        running = Line(folder, setup, children, cluster.pid(0))
        time.sleep(setup.settle_s)
        running.catch_up()
        yield running


def _own(name: str, config: Path, setup: Setup) -> list[str]:
    """Make a command of this script that is a process of the line."""
    profile = ["--profile-to", str(setup.profile / f"{name}.json")] if setup.profile else []
    return [sys.executable, str(Path(__file__)), "--be", name, "--config", str(config), *profile]


def _remove_topics(cluster: Cluster, prefix: str) -> None:
    """Make room for the next load."""
    with cluster.admin() as client:
        client.delete_topics([topic["name"] for topic in client.describe_topics() if topic["name"].startswith(prefix)])


def measure(cluster: Cluster, load: Load, recorded: Path, setup: Setup, seconds: float) -> Measured:
    """Run a load and measure it."""
    with line(cluster, load, recorded, setup) as running, closing(admin(running.settings)) as client:
        if setup.profile:
            running.signal_profiled(signal.SIGUSR1)
        begun = running.ends(client, SCORES)
        began_s, before = time.monotonic(), running.gateway()
        pids = running.pids | {OWN: os.getpid()}
        cpu_before_s, machine_before_s = {name: cpu_s(pid) for name, pid in pids.items()}, machine_cpu_s()
        looks = []
        while (now_s := time.monotonic()) < began_s + seconds:
            looks.append((now_s, *running.places(client)))
            running.check()
            time.sleep(max(0.0, now_s + EVERY_S - time.monotonic()))
        span_s, after = time.monotonic() - began_s, running.gateway()
        share = {name: (cpu_s(pid) - cpu_before_s[name]) / span_s for name, pid in pids.items()}
        busy, stolen = ((now - then) / span_s for now, then in zip(machine_cpu_s(), machine_before_s, strict=True))
        share |= {OTHERS: busy - sum(share.values()), HOST: stolen}
        memory_mib = {name: rss_mib(pid) for name, pid in running.pids.items()}
        if setup.profile:
            running.signal_profiled(signal.SIGUSR2)
        notes = [[note for note in one if note["at_s"] >= began_s] for one in running.notes()]
        scores = written(running, begun) if setup.processors else Written()
    for one in notes if setup.learnt_s >= LEARNT_S else ():
        live.check_learned(one)
    latency_ms = [1e3 * each_s for one in notes for note in one for each_s in note["latency_s"]] or [0.0]
    p50_ms, p99_ms, worst_ms = np.percentile(latency_ms, [50, 99, 100]).tolist()
    lag_s, growth_s = lags(looks) if setup.processors else (0.0, 0.0)
    return Measured(
        connections=load.connections,
        pmus=load.pmus,
        seconds=span_s,
        sent_s=load.connections * RATE,
        received_s=(after["gridsense_gateway_frames_total"] - before["gridsense_gateway_frames_total"]) / span_s,
        frames_s=tuple(live.frames_s(one) for one in notes),
        p50_ms=p50_ms,
        p99_ms=p99_ms,
        worst_ms=worst_ms,
        lag_s=lag_s,
        growth_s=growth_s,
        waiting_bytes=after["gridsense_gateway_waiting_bytes"],
        share=share,
        rss_mib=memory_mib,
        written=scores,
    )


def written(running: Line, begun: Sequence[int]) -> Written:
    """Read the scores that were committed since a measurement began, and see whether all are there.

    Parameters
    ----------
    running
        The load.
    begun
        Where each partition of the scores ended then.
    """
    pmus, ticks, there, gap_s = Counter[str](), 0, [], 0.0
    for partition, place in enumerate(begun):
        times: dict[str, list[NDArray[np.int64]]] = {}
        with closing(KafkaLog(running.settings, partition)) as log:
            at = place
            while (reading := log.read(SCORES, at)).entries:
                at = reading.next
                for entry in reading.entries:
                    rows = pa.ipc.open_stream(entry.value).read_all()
                    lists = rows.column(1).combine_chunks()
                    pmus[entry.key] = lists.type.list_size
                    there.append(np.isfinite(lists.flatten().to_numpy()).mean())
                    times.setdefault(entry.key, []).append(rows.column("time").to_numpy().view(np.int64))
        for parts in times.values():
            rising_ns = np.concatenate(parts)
            ticks = max(ticks, len(rising_ns))
            gap_s = max(gap_s, float(np.diff(rising_ns).max(initial=0)) / 1e9)
    return Written(pmus.total(), ticks, float(np.mean(there)) if there else 0.0, gap_s)


def machine_cpu_s() -> tuple[float, float]:
    """Time that all processors of this machine were busy, whoever with, and time that its host took from it."""
    text = Path("/proc/stat").read_text(encoding="ascii").partition("\n")[0]
    user, nice, system, _, _, interrupts, softly, stolen = (
        int(ticks) / os.sysconf("SC_CLK_TCK") for ticks in text.split()[1:9]
    )
    return user + nice + system + interrupts + softly, stolen


def lags(looks: Sequence[tuple[float, list[int], list[int]]]) -> tuple[float, float]:
    """Say how far behind Kafka's committed offsets are, seconds, and by how much that grew.

    Parameters
    ----------
    looks
        When, where each partition ended, and up to where it was committed.

    Returns
    -------
    tuple[float, float]
        Of the partition where it is most: the median of the last five looks; how much a straight line through all of
        them rises. Records are turned into seconds at the rate at which they came.
    """
    at_s = np.array([at for at, _, _ in looks])
    ends, done = (np.array([look[n] for look in looks], float) for n in (1, 2))
    came_s = np.maximum((ends[-1] - ends[0]) / (at_s[-1] - at_s[0]), 1e-9)
    lag_s = np.where(ends[-1] > ends[0], (ends - done) / came_s, 0.0)
    growth_s = np.polyfit(at_s - at_s[0], lag_s, 1)[0] * (at_s[-1] - at_s[0])
    return float(np.median(lag_s[-5:], axis=0).max()), float(growth_s.max())


# ---------------------------------------------------------------- the profile

KAFKA_PYTHON, ADAPTER = "kafka-python", "streams.kafka, between it and the rest"
THREADS = (("kafka-io", KAFKA_PYTHON), ("network-thread", KAFKA_PYTHON))


def watch(spending: Spending) -> None:
    """Name the stages of gateway and processor."""
    for library in (KafkaConsumer, KafkaProducer, KafkaAdminClient, FutureRecordMetadata, TransactionManager):
        spending.watch(library, KAFKA_PYTHON)
    for adapter in (Member, SoleWriter, KafkaLog, StateTopic):
        spending.watch(adapter, ADAPTER)
    spending.watch(Intake, "decode", "take")
    spending.watch(align, "align", "step")
    spending.watch(quality, "judge", "judge")
    spending.watch(derive, "derive", "derive")
    spending.watch(Scorers, "score", "step", "explain")
    spending.watch(atypicality, "score", "fast_vectors", "summarise_period")  # in threads of a step
    spending.watch(calibration, "score", "step")  # likewise
    spending.watch(Detector, "detect", "step")
    spending.watch(Outages, "detect", "step")
    spending.watch(RegionalWork, "write scores and events as records", "records")
    spending.watch(RegionalWork, "take snapshots", "freeze")
    spending.watch(Checkpoints, "take snapshots", "save", "tidy")
    spending.watch(Meter, "metrics and status", "stepped", "count")
    spending.watch(ProcessorBoard, "metrics and status", "stepped")
    spending.watch(live.Recorder, "the benchmark's notes", "stepped")
    spending.watch(gateway_intake.Intake, "receive", "received")


def show_profile(folder: Path, console: Console) -> dict[str, float]:
    """Print where the time went; return kafka-python's share, by process."""
    shares = {}
    for path in sorted(folder.glob("*.json")):
        spent = json.loads(path.read_text(encoding="utf-8"))
        whole_s = sum(spent_s for _, _, spent_s in spent) or 1.0
        stages = Counter[str]()
        for stage, _, spent_s in spent:
            stages[stage] += spent_s
        table = Table("stage", "s", "share", "in threads", title=f"{path.stem}: where {whole_s:.1f} s of CPU time went")
        for stage, spent_s in stages.most_common():
            if spent_s > 0.003 * whole_s:
                threads = sorted(((s, thread) for of, thread, s in spent if of == stage), reverse=True)
                told = ", ".join(f"{thread} {s / whole_s:.0%}" for s, thread in threads if s > 0.005 * whole_s)
                table.add_row(stage, f"{spent_s:.2f}", f"{spent_s / whole_s:.1%}", told)
        console.print(table)
        shares[path.stem] = stages[KAFKA_PYTHON] / whole_s
        console.print(f"kafka-python's share of {path.stem}: {shares[path.stem]:.0%}")
    return shares


# ---------------------------------------------------------------- from the command line


def show(rows: Sequence[Measured], console: Console) -> None:
    """Print what was measured."""
    table = Table(
        "connections", "PMUs", "frames/s", "p50 ms", "p99 ms", "worst ms", "lag s", "grew s", "held",
        "of a core", "MiB",
        title="from arrival at the gateway to committed score",
    )  # fmt: skip
    for r in rows:
        taken_s = sum(r.frames_s) if r.frames_s else r.received_s
        table.add_row(
            f"{r.connections:,}", f"{r.pmus:,}", f"{taken_s:,.0f} of {r.sent_s:,.0f}", f"{r.p50_ms:.0f}",
            f"{r.p99_ms:.0f}", f"{r.worst_ms:.0f}", f"{r.lag_s:.2f}", f"{r.growth_s:+.2f}",
            "yes" if r.held else "late" if r.sustained else "no",
            ", ".join(f"{name} {share:.0%}" for name, share in r.share.items()),
            ", ".join(f"{name} {mib:,.0f}" for name, mib in r.rss_mib.items()),
        )  # fmt: skip
    console.print(table)
    for r in rows:
        it = r.written
        if r.frames_s:
            console.print(
                f"{r.pmus:,} PMUs: committed in {SCORES} are scores of {it.pmus:,} PMUs at {it.ticks:,} ticks, "
                f"{it.share:.2%} of them there, longest gap {it.gap_s:.2f} s; {r.waiting_bytes:,} bytes waited before"
            )
        if len(r.frames_s) > 1:
            each = ", ".join(f"{one / sum(r.frames_s):.0%}" for one in r.frames_s)
            console.print(f"{r.pmus:,} PMUs: of the frames the processors took {each}")


def conclude(rows: Sequence[Measured], console: Console) -> dict[str, float]:
    """Print what is the most, and return it."""
    sustained = max((r.pmus for r in rows if r.sustained), default=0)
    best = max((r for r in rows if r.held), key=lambda r: r.pmus, default=None)
    console.print(f"lag did not grow in {rows[-1].seconds:.0f} s with up to {sustained:,} PMUs")
    if best is None:
        console.print(f"no load had a p99 below {LIMIT_MS:.0f} ms")
    else:
        console.print(f"the largest load held: {best.pmus:,} PMUs, p50 {best.p50_ms:.0f} ms, p99 {best.p99_ms:.0f} ms")
    if live.FORCED:
        console.print(f"(not used, though set here: {', '.join(live.FORCED)})")
    of = best or rows[-1]
    pmus = best.pmus if best else 0
    return {"pmus": pmus, "sustained_pmus": sustained, "p50_ms": of.p50_ms, "p99_ms": of.p99_ms}


def be(name: str, config: Path, asked: argparse.Namespace) -> None:
    """Be one of the processes of a line."""
    if asked.profile_to:
        spending = Spending(asked.profile_to, THREADS)
        watch(spending)
        spending.wait()
    if name == GATEWAY:
        sys.exit(cli.run(["gateway", "--config", str(config)]))
    found = pickle.loads(asked.learned.read_bytes())  # noqa: S301 - it was written by this script just now
    live.run_processor(load_config(config).config, asked.connections, asked.notes, found=found)


def look_for_most(first: int, step: int, run: Any) -> None:
    """Run greater loads while they are sustained, or smaller ones until one is held."""
    pmus, found = first, run(first)
    rising = found.sustained
    while (found.sustained if rising else not found.held) and (pmus := pmus + step if rising else pmus - step) > 0:
        found = run(pmus)


def main(words: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one small load, within a minute")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    parser.add_argument("--seconds", type=float, default=120.0, help="how long each load is measured")
    parser.add_argument("--pmus", type=int, help="this load alone")
    parser.add_argument(
        "--messages", choices=("concentrator", "pmu"), default="concentrator", help="what a record is of"
    )
    parser.add_argument("--scorers", default="quadratic", help="quadratic, sequence, or both (default: %(default)s)")
    parser.add_argument("--processors", type=int, default=1, help="in one group, sharing the load")
    parser.add_argument("--profile", action="store_true", help="show where the time of the last load goes")
    parser.add_argument("--be", help=argparse.SUPPRESS)
    for name in ("config", "notes", "learned", "profile-to"):
        parser.add_argument(f"--{name}", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--connections", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args(words)
    if asked.be:
        be(asked.be, asked.config, asked)
        return 0
    console, tell = Console(width=None if sys.stdout.isatty() else 170), Console(stderr=True)
    rows: list[Measured] = []
    shares: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as made, Cluster(Path(made) / "kafka", optimized=not asked.quick) as cluster:
        recorded, profile = Path(made) / "quiet.parquet", Path(made) / "profile"
        write_parquet(recorded, [live.recording(0, RECORDED_S)])
        profile.mkdir()
        setup = Setup(tuple(asked.scorers.split(",")), asked.processors, profile if asked.profile else None)
        if asked.quick:
            setup = replace(setup, learnt_s=QUICK_LEARNT_S, settle_s=1.0)

        def run(pmus: int) -> Measured:
            load = divided(pmus, asked.messages)
            tell.print(f"{load.connections:,} connections of {load.pmus_each} PMUs ...", highlight=False)
            rows.append(measure(cluster, load, recorded, setup, 6.0 if asked.quick else asked.seconds))
            return rows[-1]

        if asked.quick or asked.pmus:
            run(asked.pmus or 100)
        elif asked.messages == "pmu":
            look_for_most(500, 100, run)
        else:
            look_for_most(900 if "sequence" in asked.scorers else 3000, PDC, run)
        show(rows, console)
        if setup.profile:
            shares = show_profile(setup.profile, console)
    figures = {"messages": asked.messages, "scorers": setup.scorers, "kafka_python_share": shares}
    figures |= conclude(rows, console)
    if asked.json:
        print(json.dumps(figures | {"loads": [asdict(r) for r in rows]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
