"""How fast the quadratic fit is: against a `numpy.polyfit` loop, and against the machine's own matrix product.

Prints a table; with `--json` the last line is one JSON object. One core. `--quick` ends within a minute.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

# One core, whatever the machine has: this must be said before NumPy is loaded.
for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS"):
    os.environ[name] = "1"
# A BLAS told to take itself for an older machine would measure that machine.
FORCED = [name for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE") if os.environ.pop(name, None)]
sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np  # noqa: E402  # after the number of threads
from numpy.typing import NDArray  # noqa: E402  # with numpy

from baselines.quadratic import fit, fit_every_frame, window_points  # noqa: E402  # after the path
from scripts.timing import best_s  # noqa: E402  # after the path

RATE_HZ = 30.0
GAPS = 0.01
POLYFIT_COLUMNS = 25


def polyfit_loop(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Fit as one would at first: `numpy.polyfit`, a window and a channel at a time.

    Parameters
    ----------
    values
        `(T, N)`.

    Returns
    -------
    NDArray[np.float64]
        `(4, K, N)` a, b, c, d.
    """
    points = window_points(RATE_HZ)
    x = (np.arange(points) - points // 2) / RATE_HZ
    ends = range(points - 1, len(values), round(RATE_HZ))
    out = np.empty((4, len(ends), values.shape[1]))
    for k, end in enumerate(ends):
        for n in range(values.shape[1]):
            y = values[end - points + 1 : end + 1, n].astype(np.float64)
            c, b, a = np.polyfit(x, y, 2)
            rest = y - (a + b * x + c * x * x)
            out[:, k, n] = a, b, c, np.sqrt(rest @ rest / (points - 3))
    return out


def product_flops(least_s: float) -> float:
    """Measure the machine's own float32 matrix product.

    Parameters
    ----------
    least_s
        Seconds to spend at least.

    Returns
    -------
    float
        Floating-point operations a second, of the fit's own shape and of a large square one, whichever is more.
    """
    rng = np.random.default_rng(0)
    rates = []
    for m, k, n in ((31, 31, 512), (1024, 1024, 1024)):
        left, right = rng.random((m, k), np.float32), rng.random((k, n), np.float32)
        out = np.empty((m, n), np.float32)

        def many(left: NDArray[np.float32] = left, right: NDArray[np.float32] = right, out: object = out) -> None:
            for _ in range(200 if len(left) < 100 else 1):
                np.matmul(left, right, out=out)  # type: ignore[call-overload]  # an array, bound as a default

        rates.append(2 * m * k * n * (200 if m < 100 else 1) / best_s(many, least_s))
    return max(rates)


def main() -> None:
    """Measure, print a table, and on request the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="make the last line one JSON object")
    parser.add_argument("--quick", action="store_true", help="end within a minute")
    arguments = parser.parse_args()
    least_s = 2.0 if arguments.quick else 6.0

    rng = np.random.default_rng(1)
    channels, seconds = 6000, 40
    offsets = rng.choice([60.0, 300e3, 170.0, -75.0], channels)
    noise = rng.standard_normal((round(RATE_HZ) * seconds + 1, channels), np.float32)
    values = (noise * 1e-4 * np.abs(offsets) + offsets).astype(np.float32)
    good = rng.random(values.shape, np.float32) >= GAPS
    hop = round(RATE_HZ)

    clean_s = best_s(lambda: fit(values, rate_hz=RATE_HZ, hop=hop), least_s)
    gaps_s = best_s(lambda: fit(values, good, rate_hz=RATE_HZ, hop=hop), least_s)
    hops_s = best_s(lambda: fit(values, rate_hz=RATE_HZ, hop=6, same_bits=True), least_s, rounds=2)
    frames = values[: values.shape[0] // 4]
    every_s = best_s(lambda: fit_every_frame(frames, rate_hz=RATE_HZ), least_s, rounds=2)
    # The same samples for both sides of the ratio.
    few = np.ascontiguousarray(values[:, :POLYFIT_COLUMNS])
    loop_s = best_s(lambda: polyfit_loop(few), least_s, rounds=3)
    ratio_polyfit = (loop_s / few.size) / (clean_s / values.size)
    points = window_points(RATE_HZ)
    flops = product_flops(least_s / 2)
    # One multiplication and one addition for each of the window's points in each row, a window a second.
    needed = 2.0 * points * points * channels * (seconds if values.shape[0] > hop * seconds else seconds - 1)

    theirs, ours = polyfit_loop(few), fit(few, rate_hz=RATE_HZ, hop=hop)
    for mine, reference in zip((ours.a, ours.b, ours.c, ours.d), theirs, strict=True):
        scale = np.abs(few).max(0)
        if not np.all(np.abs(mine - reference) <= 4e-6 * scale):
            raise SystemExit("the fits are not those of numpy.polyfit: nothing was measured")

    figures = {
        "ratio_polyfit": ratio_polyfit,
        "samples_per_s": values.size / clean_s,
        "samples_per_s_every_frame": frames.size / every_s,
        "samples_per_s_gaps": values.size / gaps_s,
        "samples_per_s_same_bits": values.size / hops_s,
        "ratio_gaps": clean_s / gaps_s,
        "share_of_gemm": needed / clean_s / flops,
        "gemm_gflops": flops / 1e9,
    }
    rows = [
        ("one fit a second, no gaps", f"{figures['samples_per_s'] / 1e6:8.0f} million samples/s"),
        ("  against a numpy.polyfit loop", f"{ratio_polyfit:8.0f} times as fast"),
        ("  of the machine's float32 matrix product", f"{figures['share_of_gemm']:8.0%} of {flops / 1e9:.0f} GFLOP/s"),
        ("one fit a second, 1 % missing", f"{figures['samples_per_s_gaps'] / 1e6:8.0f} million samples/s"),
        ("  against no gaps", f"{figures['ratio_gaps']:8.2f}"),
        ("a fit at every frame", f"{figures['samples_per_s_every_frame'] / 1e6:8.0f} million samples/s"),
        ("five fits a second, the scorer's bits", f"{figures['samples_per_s_same_bits'] / 1e6:8.0f} million samples/s"),
    ]
    print(f"quadratic fit: {channels} channels at {RATE_HZ:.0f}/s, float32, one core, numpy {np.__version__}")
    if FORCED:
        print(f"measured without {' and '.join(FORCED)}, which the environment had set")
    for label, text in rows:
        print(f"{label:44s}{text}")
    if arguments.json:
        print(json.dumps({key: round(value, 4) for key, value in figures.items()}))


if __name__ == "__main__":
    main()
