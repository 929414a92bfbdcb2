"""Half an hour at full work: memory, file handles and lag stay flat, or the check fails.

500 PMUs, each on a connection of its own (20 channels, 30 frames a second), one gateway, the embedded log with a
retention of two minutes, one processor that has learned. Sampled every few seconds; the slopes are of a straight line
through the second half. Draws a picture. `--json` ends with one JSON object; `--quick` ends within a minute.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402  # after the path
from numpy.typing import NDArray  # noqa: E402  # with numpy
from rich.console import Console  # noqa: E402  # after the path
from rich.progress import Progress  # noqa: E402  # after the path
from rich.table import Table  # noqa: E402  # after the path

from scripts.bench.live import RECORDED_S, Load, cpu_s, line, read_notes, recording, rss_mib  # noqa: E402
from streams.archives import write_parquet  # noqa: E402  # after the path

EVERY_S = 5.0
GROWTH_MIB_H = 60.0
"""Memory may seem to grow so much an hour over a quarter of one: the allocator's habits, not a leak."""
HANDLES_H = 4.0
LAG_S = 1.0


def slope_an_hour(at_s: NDArray[np.float64], values: NDArray[np.float64]) -> float:
    """Fit a straight line through the second half of the samples."""
    half = at_s >= at_s[0] + (at_s[-1] - at_s[0]) / 2
    return float(np.polyfit(at_s[half], values[half], 1)[0] * 3600)


def handles(pid: int) -> int:
    """Count a process's open files and sockets."""
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def draw(samples: dict[str, NDArray[np.float64]], path: Path, title: str) -> None:
    """Draw memory, handles and lag against time."""
    import matplotlib as mpl  # noqa: PLC0415 (only where a picture is wanted)

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "gridsense"
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(4, 1, figsize=(9, 9), sharex=True, layout="constrained")
    minutes = samples["at_s"] / 60
    for name in ("processor", "gateway", "simulator"):
        axes[0].plot(minutes, samples[f"{name}_mib"], label=name)
        axes[1].plot(minutes, samples[f"{name}_handles"], label=name)
    axes[2].plot(minutes, samples["lag_s"], label="behind the newest arrival")
    axes[2].plot(minutes, samples["p99_s"], label="p99 from arrival to score")
    axes[3].plot(minutes, samples["log_mib"], label="log and its WAL on disk")
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


def soak(load: Load, minutes: float, console: Console) -> dict[str, NDArray[np.float64]]:
    """Run a load and sample it."""
    rows: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as name:
        recorded = Path(name) / "quiet.parquet"
        write_parquet(recorded, [recording(0, RECORDED_S)])
        with line(load, recorded) as (folder, children), Progress(console=console, transient=True) as progress:
            task = progress.add_task(f"{load.pmus} PMUs", total=minutes * 60)
            began_s, noted = time.monotonic(), len(read_notes(folder))
            while (at_s := time.monotonic() - began_s) < minutes * 60:
                time.sleep(EVERY_S)
                notes = read_notes(folder)
                fresh, noted = notes[noted:], len(notes)
                latency = [x for note in fresh for x in note["latency_s"]]
                row = {
                    "at_s": at_s,
                    "lag_s": max((note["lag_s"] for note in fresh), default=EVERY_S),
                    "p99_s": float(np.percentile(latency, 99)) if latency else float("nan"),
                    "frames": notes[-1]["frames"],
                    "log_mib": sum(p.stat().st_size for p in folder.glob("log.db*")) / 2**20,
                    "store_mib": sum(p.stat().st_size for p in folder.glob("gridsense.db*")) / 2**20,
                }
                for who, child in children.items():
                    if child.poll() is not None:
                        raise RuntimeError(f"{who}: {(folder / f'{who}.err').read_text(encoding='utf-8')[-2000:]}")
                    row |= {f"{who}_mib": rss_mib(child.pid), f"{who}_handles": handles(child.pid)}
                    row[f"{who}_cpu_s"] = cpu_s(child.pid)
                rows.append(row)
                progress.update(task, completed=at_s)
    return {name: np.array([row[name] for row in rows], float) for name in rows[0]}


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0, help="how long it is watched")
    parser.add_argument("--pmus", type=int, default=500, help="PMUs, each on a connection of its own")
    parser.add_argument("--plot", type=Path, default=Path("soak.svg"), help="where the picture goes")
    parser.add_argument(
        "--quick", action="store_true", help="20 PMUs for 20 seconds: shows that it runs, proves nothing"
    )
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    asked = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 120)
    load = Load(20 if asked.quick else asked.pmus, 1)
    samples = soak(load, 1 / 3 if asked.quick else asked.minutes, Console(stderr=True))
    at_s = samples["at_s"]
    frames_s = (samples["frames"][-1] - samples["frames"][0]) / (at_s[-1] - at_s[0])
    slopes = {
        name: slope_an_hour(at_s, samples[name])
        for name in samples
        if name.endswith(("_mib", "_handles")) or name == "lag_s"
    }
    table = Table("", "first", "greatest", "last", "slope an hour", title=f"{load.pmus} PMUs, {at_s[-1] / 60:.0f} min")
    for name, slope in slopes.items():
        v = samples[name]
        table.add_row(name, f"{v[0]:,.2f}", f"{v.max():,.2f}", f"{v[-1]:,.2f}", f"{slope:+,.2f}")
    console.print(table)
    console.print(f"{frames_s:,.0f} frames a second were scored of {30 * load.connections:,} sent")
    draw(samples, asked.plot, f"{load.pmus} PMUs on connections of their own, {frames_s:,.0f} frames a second")
    console.print(f"drawn in {asked.plot}")
    broken = [name for name, s in slopes.items() if name.endswith("_mib") and s > GROWTH_MIB_H]
    broken += [name for name, s in slopes.items() if name.endswith("_handles") and s > HANDLES_H]
    broken += ["lag_s"] if np.median(samples["lag_s"][-12:]) > LAG_S else []
    broken += ["frames"] if frames_s < 0.98 * 30 * load.connections else []
    if not asked.quick:
        console.print(f"not flat: {', '.join(broken)}" if broken else "flat: memory, handles, disk and lag")
    if asked.json:
        figures = {"pmus": load.pmus, "minutes": at_s[-1] / 60, "frames_s": frames_s, "slopes_an_hour": slopes}
        print(json.dumps(figures | {"broken": broken}))
    return 1 if broken and not asked.quick else 0


if __name__ == "__main__":
    sys.exit(main())
