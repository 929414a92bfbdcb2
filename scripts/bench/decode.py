"""How fast C37.118 bytes become a block: in MB/s of a concentrator's stream, and against `pyc37` from PyPI.

Prints a table; with `--json` the last line is one JSON object. One core. `--quick` ends within a minute. The first run
makes a virtual environment of its own for pyc37, `.venv-bench`, for which it asks the package registry.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

# One core, whatever the machine has: this must be said before NumPy is loaded.
for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"
ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402  # after the number of threads
from fastcrc.crc16 import ibm_3740  # noqa: E402  # with numpy
from rich.console import Console  # noqa: E402  # with numpy
from rich.table import Table  # noqa: E402  # with numpy

from scripts.timing import best_s  # noqa: E402  # after the path
from streams.block import FrameBatch  # noqa: E402  # after the path
from streams.c37118.configuration import (  # noqa: E402  # after the path
    ConfigurationFrame,
    PhasorDefinition,
    PmuConfiguration,
    encode_configuration,
)
from streams.c37118.samples import compile_layout, decode, encode  # noqa: E402  # after the path
from streams.c37118.stream import StreamParser  # noqa: E402  # after the path

PEER = "pyc37==1.0.2"
PIECE = 1 << 18  # bytes a read: what a busy socket or a file gives
FORMATS = {
    "float polar": (True, True),
    "float rectangular": (False, True),
    "integer polar": (True, False),
    "integer rectangular": (False, False),
}

PEER_PROGRAM = """
import collections.abc, json, sys, time  # pyc37 forgets to import collections.abc
from pyc37.frame import CommonFrame
configuration = open(sys.argv[1], "rb").read()
stream = open(sys.argv[2], "rb").read()
cfg = CommonFrame.convert2frame(configuration)
size = int.from_bytes(stream[2:4], "big")
frames = [stream[at:at + size] for at in range(0, len(stream), size)]
best = float("inf")
for _ in range(int(sys.argv[3])):
    start = time.perf_counter()
    for frame in frames:
        decoded = CommonFrame.convert2frame(frame, cfg)
    best = min(best, time.perf_counter() - start)
first = CommonFrame.convert2frame(frames[0], cfg)
print(json.dumps({"s_per_frame": best / len(frames), "phasors": first.get_phasors(), "frequency": first.get_freq()}))
"""


def make_stream(
    pmus: int, phasors: int, frames: int, *, polar: bool, floating: bool, float_frequency: bool
) -> tuple[bytes, bytes]:
    """Make a stream through our own encoder.

    Parameters
    ----------
    pmus
        PMUs in a frame.
    phasors
        Phasors of each.
    frames
        Data frames.
    polar
        Phasors as magnitude and angle.
    floating
        Phasors as float32; else 16-bit integers.
    float_frequency
        Frequency as float32; else as 16-bit integers.

    Returns
    -------
    tuple[bytes, bytes]
        The configuration frame, and the data frames one after another.
    """
    one = PmuConfiguration(
        "Station",
        1,
        60,
        tuple(PhasorDefinition(f"V{i}", scale=12.5) for i in range(phasors)),
        polar=polar,
        float_phasors=floating,
        float_frequency=float_frequency,
    )
    configuration = ConfigurationFrame(7, (one,) * pmus, 30, version=1)
    layout = compile_layout(configuration)
    rng = np.random.default_rng(1)
    values = np.empty((frames, pmus, layout.table.width))
    values[..., 0 : 2 * phasors : 2] = rng.normal(290e3, 1e3, (frames, pmus, phasors))
    values[..., 1 : 2 * phasors : 2] = rng.uniform(-180, 180, (frames, pmus, phasors))
    values[..., -2] = rng.normal(60, 0.01, (frames, pmus))
    values[..., -1] = rng.normal(0, 0.01, (frames, pmus))
    time_ns = 1_700_000_000_000_000_000 + np.arange(frames, dtype=np.int64) * 1_000_000_000 // 30
    stat = np.zeros((frames, pmus), np.uint16)
    batch = FrameBatch(layout.table, 30.0, time_ns, np.zeros(frames, np.uint8), stat, values, time_ns)
    (first,) = encode_configuration(configuration)
    return first, encode(layout, batch)


def measure_concentrator(frames: int, least_s: float) -> dict[str, dict[str, float]]:
    """Measure 300 PMUs with 9 phasors each, from bytes through the parser to batches.

    Parameters
    ----------
    frames
        Data frames.
    least_s
        Seconds to spend on each format.

    Returns
    -------
    dict[str, dict[str, float]]
        By format: MB/s, frames a second, and the share of the time that the CRC takes.
    """
    out: dict[str, dict[str, float]] = {}
    for title, (polar, floating) in FORMATS.items():
        configuration, data = make_stream(300, 9, frames, polar=polar, floating=floating, float_frequency=floating)
        pieces = [data[at : at + PIECE] for at in range(0, len(data), PIECE)]
        parser = StreamParser("bench")
        parser.feed(configuration)

        def parse(parser: StreamParser = parser, pieces: list[bytes] = pieces) -> None:
            for piece in pieces:
                parser.feed(piece, 1)

        took = best_s(parse, least_s)
        size = len(data) // frames
        octets = memoryview(data)
        crc = best_s(
            lambda octets=octets, size=size: [  # type: ignore[misc]  # bound at once
                ibm_3740(octets[at : at + size]) for at in range(0, len(octets), size)
            ],
            least_s / 4,
        )
        counts = parser.counts
        if counts.frames_decoded != counts.frames_total - 1 or counts.crc_errors or counts.bytes_skipped:
            raise SystemExit(f"{title}: the stream was not decoded whole: {counts}")
        out[title] = {
            "mb_per_s": len(data) / took / 1e6,
            "frames_per_s": frames / took,
            "crc_share": crc / took,
            "frame_bytes": size,
        }
    return out


def peer_python() -> Path:
    """Find or make the virtual environment that holds pyc37.

    Returns
    -------
    Path
        Its interpreter.
    """
    home = ROOT / ".venv-bench"
    python = home / "bin" / "python"
    if not python.exists():
        venv.create(home, with_pip=True)
    installed = subprocess.run([python, "-c", "import pyc37"], capture_output=True, check=False).returncode == 0
    if not installed:
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", PEER], check=True)
    return python


def measure_peer(frames: int, least_s: float) -> dict[str, float]:
    """Measure both on one PMU's stream: the same bytes, CRC checked by both.

    Parameters
    ----------
    frames
        Data frames.
    least_s
        Seconds to spend on ours.

    Returns
    -------
    dict[str, float]
        Seconds a frame of each, and their ratio.
    """
    # pyc37 refuses frequencies sent as floats: it takes them for deviations
    configuration, data = make_stream(1, 4, frames, polar=True, floating=True, float_frequency=False)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / "configuration", Path(folder) / "data"]
        for path, content in zip(paths, (configuration, data), strict=True):
            path.write_bytes(content)
        command = [peer_python(), "-c", PEER_PROGRAM, *paths, "3"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    theirs = json.loads(said.splitlines()[-1])
    parser = StreamParser("bench")
    parser.feed(configuration)
    ours = best_s(lambda: parser.feed(data, 1), least_s) / frames
    layout = compile_layout(ConfigurationFrame(7, parser_pmus(configuration), 30))
    first = decode(layout, data[: layout.size], dtype=np.float64).values[0, 0]
    pairs = [(first[2 * i], np.radians(first[2 * i + 1])) for i in range(4)]
    if not np.allclose(pairs, theirs["phasors"], rtol=1e-6):
        raise SystemExit(f"pyc37 reads other phasors: {theirs['phasors']} against {pairs}")
    return {"ours_s": ours, "pyc37_s": theirs["s_per_frame"], "ratio": theirs["s_per_frame"] / ours}


def parser_pmus(configuration: bytes) -> tuple[PmuConfiguration, ...]:
    """PMUs of a configuration frame.

    Parameters
    ----------
    configuration
        The frame.

    Returns
    -------
    tuple[PmuConfiguration, ...]
        As the parser reads them.
    """
    (item,) = StreamParser().feed(configuration)
    if not isinstance(item, ConfigurationFrame):
        raise SystemExit(f"our own configuration was not understood: {item}")
    return item.pmus


def main() -> None:
    """Measure and print."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--json", action="store_true", help="end with one JSON object")
    arguments.add_argument("--quick", action="store_true", help="end within a minute")
    options = arguments.parse_args()
    least_s = 0.5 if options.quick else 3.0
    formats = measure_concentrator(400, least_s)
    peer = measure_peer(20_000, least_s)
    slowest = min(formats, key=lambda title: formats[title]["mb_per_s"])
    console = Console()
    table = Table(
        "300 PMUs x 9 phasors", "bytes a frame", "MB/s", "frames/s", "CRC's share", title="bytes to block, one core"
    )
    for title, row in formats.items():
        table.add_row(
            title,
            f"{row['frame_bytes']:,.0f}",
            f"{row['mb_per_s']:,.0f}",
            f"{row['frames_per_s']:,.0f}",
            f"{row['crc_share']:.1%}",
        )
    console.print(table)
    console.print(
        f"Bytes come in pieces of {PIECE:,}; each frame's CRC is checked; out come V, A, degrees, Hz, Hz/s in float32."
    )
    console.print(
        f"A stream of 300 PMUs at 30 frames/s needs {24_616 * 30 / 1e6:.2f} MB/s. Headline: {slowest}, the slowest."
    )
    console.print(
        f"One PMU, 4 float polar phasors, the same bytes: pyc37 {peer['pyc37_s'] * 1e6:,.1f} us a frame (cut for it),"
        f" ours {peer['ours_s'] * 1e6:,.3f} us (cut by the parser): {peer['ratio']:,.0f} times as fast."
    )
    if options.json:
        figures: dict[str, object] = {
            "ratio_pyc37": round(peer["ratio"], 1),
            "mb_per_s": round(formats[slowest]["mb_per_s"], 1),
            "mb_per_s_format": slowest,
            "crc_share": round(formats[slowest]["crc_share"], 4),
            "pyc37_us_per_frame": round(peer["pyc37_s"] * 1e6, 2),
            "us_per_frame": round(peer["ours_s"] * 1e6, 4),
        }
        for title, row in formats.items():
            figures[f"mb_per_s_{title.replace(' ', '_')}"] = round(row["mb_per_s"], 1)
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
