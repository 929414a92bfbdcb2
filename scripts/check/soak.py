"""Half an hour at full work: memory, file handles and lag stay flat, or the check fails.

500 PMUs, each on a connection of its own (20 channels, 30 frames a second), one gateway, the embedded log with a
retention of two minutes, one processor that has learned. With `--kafka` 1,000 PMUs in concentrators, and a real broker
in place of the embedded log; its own memory, handles and disk are shown, not judged. Sampled every few seconds; the
slopes are of a straight line through the second half. Draws a picture. `--json` ends with one JSON object; `--quick`
ends within a minute.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402  # after the path
from numpy.typing import NDArray  # noqa: E402  # with numpy
from rich.console import Console  # noqa: E402  # after the path
from rich.progress import Progress  # noqa: E402  # after the path
from rich.table import Table  # noqa: E402  # after the path

from scripts.bench import kafka  # noqa: E402  # after the path
from scripts.bench.live import NOTES, RATE, RECORDED_S, Load, cpu_s, line, read_notes, recording, rss_mib  # noqa: E402
from scripts.broker.cluster import Cluster  # noqa: E402  # after the path
from streams.archives import write_parquet  # noqa: E402  # after the path
from streams.kafka.clients import admin  # noqa: E402  # after the path

EVERY_S = 5.0
GROWTH_MIB_H = 60.0
"""Memory may seem to grow so much an hour over a quarter of one: the allocator's habits, not a leak."""
HANDLES_H = 4.0
LAG_S = 1.0
DISK = {"log_mib": "log and its WAL on disk", "broker_disk_mib": "the broker's disk"}


def slope_an_hour(at_s: NDArray[np.float64], values: NDArray[np.float64]) -> float:
    """Fit a straight line through the second half of the samples."""
    half = at_s >= at_s[0] + (at_s[-1] - at_s[0]) / 2
    return float(np.polyfit(at_s[half], values[half], 1)[0] * 3600)


def handles(pid: int) -> int:
    """Count a process's open files and sockets."""
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


@dataclass(frozen=True, slots=True)
class Watched:
    """What is sampled.

    Attributes
    ----------
    notes
        Of the processor.
    children
        Processes, by name; what they say stands beside the notes.
    pids
        Of these, and perhaps of others.
    more
        Further samples, by name.
    """

    notes: Path
    children: dict[str, subprocess.Popen[bytes]]
    pids: dict[str, int]
    more: Callable[[], dict[str, float]]


@contextmanager
def embedded(load: Load, recorded: Path, scorers: tuple[str, ...]) -> Iterator[Watched]:
    """Run a load on the embedded log."""
    with line(load, recorded, scorers) as (folder, children):

        def disk() -> dict[str, float]:
            return {"log_mib": mib(folder, "log.db*"), "store_mib": mib(folder, "gridsense.db*")}

        yield Watched(folder / NOTES, children, {name: child.pid for name, child in children.items()}, disk)


@contextmanager
def on_kafka(load: Load, recorded: Path, scorers: tuple[str, ...]) -> Iterator[Watched]:
    """Run a load on Kafka."""
    folder, setup = recorded.parent / "kafka", kafka.Setup(scorers)
    with (
        Cluster(folder, optimized=True) as cluster,
        kafka.line(cluster, load, recorded, setup) as running,
        closing(admin(running.settings)) as client,
    ):

        def behind() -> dict[str, float]:
            (end,), (done,) = running.places(client)
            return {"behind": end - done, f"{kafka.BROKER}_disk_mib": mib(folder, "**/data/**/*")}

        (notes,) = kafka.notes_of(running.folder, setup)
        yield Watched(notes, running.children, running.pids, behind)


def mib(folder: Path, pattern: str) -> float:
    """Add up what files take on the disk; some may go meanwhile."""
    size = 0
    for path in folder.glob(pattern):
        with suppress(FileNotFoundError):
            size += path.stat().st_blocks
    return size / 2**11


def soak(watched: Watched, minutes: float, title: str, console: Console) -> dict[str, NDArray[np.float64]]:
    """Sample a load that runs."""
    rows: list[dict[str, float]] = []
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task(title, total=minutes * 60)
        began_s, noted = time.monotonic(), len(read_notes(watched.notes))
        while (at_s := time.monotonic() - began_s) < minutes * 60:
            time.sleep(EVERY_S)
            notes = read_notes(watched.notes)
            fresh, noted = notes[noted:], len(notes)
            latency = [x for note in fresh for x in note["latency_s"]]
            row = {
                "at_s": at_s,
                "lag_s": max((note["lag_s"] for note in fresh), default=EVERY_S),
                "p99_s": float(np.percentile(latency, 99)) if latency else float("nan"),
                "frames": notes[-1]["frames"],
                **watched.more(),
            }
            for who, child in watched.children.items():
                if child.poll() is not None:
                    said = watched.notes.with_name(f"{who}.err").read_text(encoding="utf-8")
                    raise RuntimeError(f"{who}: {said[-2000:]}")
            for who, pid in watched.pids.items():
                row |= {f"{who}_mib": rss_mib(pid), f"{who}_handles": handles(pid), f"{who}_cpu_s": cpu_s(pid)}
            rows.append(row)
            progress.update(task, completed=at_s)
    return {name: np.array([row[name] for row in rows], float) for name in rows[0]}


def draw(samples: dict[str, NDArray[np.float64]], path: Path, title: str) -> None:
    """Draw memory, handles, lag and disk against time."""
    import matplotlib as mpl  # noqa: PLC0415 (only where a picture is wanted)

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "gridsense"
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(4, 1, figsize=(9, 9), sharex=True, layout="constrained")
    minutes = samples["at_s"] / 60
    for name in (name.removesuffix("_handles") for name in samples if name.endswith("_handles")):
        axes[0].plot(minutes, samples[f"{name}_mib"], label=name)
        axes[1].plot(minutes, samples[f"{name}_handles"], label=name)
    axes[2].plot(minutes, samples["lag_s"], label="behind the newest arrival")
    axes[2].plot(minutes, samples["p99_s"], label="p99 from arrival to score")
    for name, words in DISK.items():
        if name in samples:
            axes[3].plot(minutes, samples[name], label=words)
    units = ("memory, MiB", "open files and sockets", "seconds", "MiB")
    for axis, unit in zip(axes, units, strict=True):
        axis.set_ylabel(unit)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        axis.legend(loc="lower right", ncols=3)
    axes[-1].set_xlabel("minutes")
    figure.suptitle(title)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)


def broken(
    slopes: dict[str, float], samples: dict[str, NDArray[np.float64]], frames_s: float, sent_s: float
) -> list[str]:
    """Name what is not flat, or not as much as it should be."""
    out = [name for name, s in slopes.items() if name.endswith("_mib") and s > GROWTH_MIB_H]
    out += [name for name, s in slopes.items() if name.endswith("_handles") and s > HANDLES_H]
    out = [name for name in out if not name.startswith(kafka.BROKER)]
    out += ["lag_s"] if np.median(samples["lag_s"][-12:]) > LAG_S else []
    out += ["behind"] if np.median(samples.get("behind", np.zeros(1))[-12:]) > 2 * LAG_S * sent_s else []
    return out + (["frames"] if frames_s < 0.98 * sent_s else [])


def main(words: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0, help="how long it is watched")
    parser.add_argument("--kafka", action="store_true", help="a real broker instead of the embedded log")
    parser.add_argument(
        "--pmus", type=int, help="on connections of their own (500), or with Kafka in concentrators (1000)"
    )
    parser.add_argument("--scorers", default="quadratic", help="quadratic, sequence, or both (default: %(default)s)")
    parser.add_argument("--plot", type=Path, help="where the picture goes (soak.svg, or soak_kafka.svg)")
    parser.add_argument(
        "--quick", action="store_true", help="20 PMUs for 20 seconds: shows that it runs, proves nothing"
    )
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    asked = parser.parse_args(words)
    console = Console(width=None if sys.stdout.isatty() else 120)
    pmus = 20 if asked.quick else asked.pmus or (1000 if asked.kafka else 500)
    load = kafka.divided(pmus, "concentrator" if asked.kafka else "pmu")
    plot = asked.plot or Path("soak_kafka.svg" if asked.kafka else "soak.svg")
    running = on_kafka if asked.kafka else embedded
    with tempfile.TemporaryDirectory() as name:
        recorded = Path(name) / "quiet.parquet"
        write_parquet(recorded, [recording(0, RECORDED_S)])
        with running(load, recorded, tuple(asked.scorers.split(","))) as watched:
            minutes = 1 / 3 if asked.quick else asked.minutes
            samples = soak(watched, minutes, f"{load.pmus:,} PMUs", Console(stderr=True))
    at_s = samples["at_s"]
    frames_s = (samples["frames"][-1] - samples["frames"][0]) / (at_s[-1] - at_s[0])
    slopes = {
        name: slope_an_hour(at_s, samples[name])
        for name in samples
        if name.endswith(("_mib", "_handles")) or name in ("lag_s", "behind")
    }
    table = Table("", "first", "greatest", "last", "slope an hour", title=f"{load.pmus} PMUs, {at_s[-1] / 60:.0f} min")
    for name, slope in slopes.items():
        v = samples[name]
        table.add_row(name, f"{v[0]:,.2f}", f"{v.max():,.2f}", f"{v[-1]:,.2f}", f"{slope:+,.2f}")
    console.print(table)
    sent_s = RATE * load.connections
    console.print(f"{frames_s:,.0f} frames a second were scored of {sent_s:,} sent")
    where = f"in {load.connections} concentrators, by way of Kafka" if asked.kafka else "on connections of their own"
    draw(samples, plot, f"{load.pmus:,} PMUs {where}, {frames_s:,.0f} frames a second")
    console.print(f"drawn in {plot}")
    wrong = broken(slopes, samples, frames_s, sent_s)
    if not asked.quick:
        console.print(f"not flat: {', '.join(wrong)}" if wrong else "flat: memory, handles, disk and lag")
    if asked.json:
        figures = {"pmus": load.pmus, "minutes": at_s[-1] / 60, "frames_s": frames_s, "slopes_an_hour": slopes}
        print(json.dumps(figures | {"broken": wrong}))
    return 1 if wrong and not asked.quick else 0


if __name__ == "__main__":
    sys.exit(main())
