"""Kills training of the sequence model at random moments, resumes it, and compares its weights with an unkilled one's.

Both train Tensor2Tensor's smallest set on the same small made-up rows with the same seed, in the training environment,
on this machine's CPU. One is ended by SIGKILL again and again: between steps, while it evaluates, while a checkpoint is
being written, and while it starts. Promised: every variable of the last checkpoint (weights, the optimiser's moments,
what early stopping remembers) and of the best one is the same bit for bit, and no kill costs more than the steps since
the last checkpoint. The exit status is 1 where that is broken.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

try:
    import numpy as np
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from models.errors import TrainingEnvironmentError
    from models.spec import SLOTS
    from models.training_environment import default_folder, python_of
except ImportError:
    own = ROOT / ".venv" / "bin" / "python"
    if not own.exists() or Path(sys.prefix) == own.parents[1]:
        raise
    os.execv(own, [str(own), *sys.argv])  # noqa: S606 - any Python may start this; the project's own runs it

HORIZONS, WINDOW = 3, 192
KILLS, QUICK_KILLS = 10, 2
STEPS, QUICK_STEPS = 120, 30
EVALUATE_EVERY = 5
STREAMS = 6
SEED = 3
AT_START, AT_EVALUATION = 0.1, 0.4
"""Shares of the kills that come while it starts, and right before an evaluation's checkpoint is reported."""
COMPARE = """
import json, sys
import numpy as np
import tensorflow as tf
def largest(one, other):
    a, b = tf.train.load_checkpoint(one), tf.train.load_checkpoint(other)
    names = set(a.get_variable_to_shape_map())
    if names != set(b.get_variable_to_shape_map()): return [len(names), None, 0]
    pairs = [(a.get_tensor(n), b.get_tensor(n)) for n in sorted(names)]
    bits = sum(int(np.asarray(x).tobytes() != np.asarray(y).tobytes()) for x, y in pairs)
    return [len(names), max(float(np.abs(x - y).max()) for x, y in pairs), bits]
one, other = sys.argv[1:]
last = [tf.train.latest_checkpoint(folder) for folder in (one, other)]
print(json.dumps({"last": largest(*last), "best": largest(one + "/best", other + "/best")}))
"""


@dataclass(frozen=True, slots=True)
class Found:
    """What was measured.

    Attributes
    ----------
    kills
        That hit a living process.
    resumed
        Starts that went on from a checkpoint.
    repeated_steps
        Steps that were done again, of all kills together.
    most_repeated
        Of one kill.
    variables
        In the last checkpoint.
    differing
        Of these and of the best checkpoint's, how many differ in a bit.
    difference
        The largest absolute one; infinite where the checkpoints have other variables.
    steps
        At the end, of both runs.
    """

    kills: int
    resumed: int
    repeated_steps: int
    most_repeated: int
    variables: int
    differing: int
    difference: float
    steps: tuple[int, int]


def write_rows(folder: Path, streams: int = STREAMS) -> None:
    """Write small made-up rows: waves and noise, the next of which can be told a little.

    Parameters
    ----------
    folder
        Gets `train`, `eval` and `test`.
    streams
        How many.
    """
    rng = np.random.default_rng(SEED)
    answers = HORIZONS * len(SLOTS)
    inputs = 2 * answers + len(SLOTS)
    for name, windows in (("train", 6), ("eval", 2), ("test", 2)):
        frames = windows * WINDOW
        rows = np.zeros((frames, streams, inputs + 2 * answers), np.float32)
        rows[:, :, : 2 * answers] = rng.normal(size=(frames, streams, 2 * answers))
        noise = rng.normal(size=(frames, streams, answers))
        rows[1:, :, inputs : inputs + answers] = 0.7 * rows[:-1, :, :answers] + 0.3 * noise[1:]
        rows[1:, :, inputs + answers :] = 1
        (folder / name).mkdir(parents=True)
        np.save(folder / name / "waves.npy", rows)


def environment() -> dict[str, str]:
    """Say what a process of `models/t2t` needs.

    Returns
    -------
    dict[str, str]
        Its environment variables.
    """
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONDONTWRITEBYTECODE": "1", "CUDA_VISIBLE_DEVICES": ""}
    return {**os.environ, **quiet, "PYTHONPATH": str(ROOT / "models")}


def run(python: Path, *arguments: str) -> list[dict[str, Any]]:
    """Run a verb of `models/t2t` to its end.

    Parameters
    ----------
    python
        Of the training environment.
    *arguments
        The verb and its options.

    Returns
    -------
    list[dict[str, Any]]
        What it said.

    Raises
    ------
    RuntimeError
        If it failed.
    """
    command = [str(python), "-W", "ignore", "-m", "t2t", *arguments]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(
            f"t2t {arguments[0]}: exit status {done.returncode}\n{done.stdout[-500:]}{done.stderr[-2000:]}"
        )
    return [json.loads(line) for line in done.stdout.splitlines()]


def kill_once(python: Path, arguments: list[str], draw: random.Random) -> tuple[int | None, int | None, bool]:
    """Start training, and kill it at a random moment.

    Parameters
    ----------
    python
        Of the training environment.
    arguments
        Verb and options.
    draw
        The moments.

    Returns
    -------
    tuple[int | None, int | None, bool]
        Where it went on (None: at the beginning), the last step it told, and whether it was alive to be killed.
    """
    command = [str(python), "-W", "ignore", "-m", "t2t", *arguments]
    lot, resumed, step = draw.random(), None, None
    wanted = draw.randint(1, 4 * EVALUATE_EVERY)
    if AT_START < lot < AT_START + AT_EVALUATION:  # the step after which it evaluates and writes, for the second time
        wanted = 2 * EVALUATE_EVERY - 1
    with subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as one:
        try:
            if lot < AT_START:
                time.sleep(draw.uniform(0.5, 5))
            elif one.stdout is not None:
                for line in one.stdout:
                    said = json.loads(line)
                    if said["event"] == "resumed":
                        resumed = int(said["step"])
                    if said["event"] in ("step", "evaluation"):
                        step, wanted = int(said["step"]), wanted - 1
                        if wanted <= 0:
                            break
                time.sleep(draw.uniform(0, 0.15))
        finally:
            alive = one.poll() is None
            one.send_signal(signal.SIGKILL)
    return resumed, step, alive


def check(python: Path, folder: Path, *, kills: int, steps: int, seed: int, quiet: Any) -> Found:
    """Train twice and compare.

    Parameters
    ----------
    python
        Of the training environment.
    folder
        To work in.
    kills
        How many.
    steps
        To train.
    seed
        Of the moments of the kills.
    quiet
        Prints a line on what happens.

    Returns
    -------
    Found
        What they differ in.
    """
    write_rows(folder / "rows")
    records = str(folder / "records")
    run(python, "generate", "--tmp-dir", str(folder / "rows"), "--data-dir", records)
    common = ["train", "--hparams-set", "lstm_pmu_tiny", "--steps", str(steps), "--seed", "1", "--data-dir", records]
    common += ["--evaluate-every", str(EVALUATE_EVERY), "--out-dir"]
    straight, killed = str(folder / "straight"), str(folder / "killed")
    draw, hit, resumes, repeated, last = random.Random(seed), 0, 0, [0], None  # noqa: S311 - moments, no secrets
    with ThreadPoolExecutor(1) as beside:  # a process of its own: there are two cores
        straight_run = beside.submit(run, python, *common, straight)
        for n in range(kills):
            resumed, step, alive = kill_once(python, [*common, killed], draw)
            quiet(
                f"kill {n + 1}: resumed at {resumed}, killed after step {step}" + ("" if alive else " (it had ended)")
            )
            hit, resumes = hit + alive, resumes + (resumed is not None)
            if step is not None:
                if last is not None:
                    repeated.append(last - (resumed or 0))
                last = step
        ended = straight_run.result()[-1]
    finished = run(python, *common, killed)
    went_on = [int(line["step"]) for line in finished if line["event"] == "resumed"]
    if last is not None:
        repeated.append(last - (went_on[0] if went_on else 0))
    command = [str(python), "-W", "ignore", "-c", COMPARE, straight, killed]
    said = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True).stdout
    compared = json.loads(said)
    differences = [float("inf") if one[1] is None else one[1] for one in compared.values()]
    return Found(
        kills=hit,
        resumed=resumes + len(went_on),
        repeated_steps=sum(repeated),
        most_repeated=max(repeated),
        variables=compared["last"][0],
        differing=sum(one[2] for one in compared.values()),
        difference=max(differences),
        steps=(ended["steps"], finished[-1]["steps"]),
    )


def broken(found: Found) -> list[str]:
    """Say which promises are broken.

    Parameters
    ----------
    found
        From `check`.

    Returns
    -------
    list[str]
        One line each.
    """
    out = []
    if found.differing or found.difference:
        out.append(f"{found.differing} variables differ, by {found.difference:.3g} at most")
    if found.steps[0] != found.steps[1]:
        out.append(f"they ended after {found.steps[0]} and {found.steps[1]} steps")
    if found.most_repeated > EVALUATE_EVERY:
        out.append(f"a kill cost {found.most_repeated} steps; checkpoints are {EVALUATE_EVERY} apart")
    if not found.kills or not found.resumed:
        out.append("nothing was checked: no kill hit a living process, or none came after a checkpoint")
    return out


def main() -> int:
    """Check, and print.

    Returns
    -------
    int
        1 where a promise is broken, 2 where there is no training environment.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, help=f"how many (default: {KILLS})")
    parser.add_argument("--steps", type=int, help=f"to train (default: {STEPS})")
    parser.add_argument("--seed", type=int, default=1, help="of the moments of the kills")
    parser.add_argument("--python", type=Path, help="of the training environment (default: made if need be)")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_KILLS} kills, {QUICK_STEPS} steps")
    options = parser.parse_args()
    console, told = Console(), Console(stderr=True)
    try:
        python = options.python or python_of(default_folder(), told.print)
    except TrainingEnvironmentError as error:
        told.print(f"no training environment: {error}", style="red")
        return 2
    kills = options.kills or (QUICK_KILLS if options.quick else KILLS)
    steps = options.steps or (QUICK_STEPS if options.quick else STEPS)
    with tempfile.TemporaryDirectory() as folder:
        found = check(python, Path(folder), kills=kills, steps=steps, seed=options.seed, quiet=told.print)
    table = Table(box=SIMPLE_HEAD)
    table.add_column("killed and resumed, against straight through")
    table.add_column("measured", justify="right")
    table.add_row("kills of a living process; starts that resumed", f"{found.kills}; {found.resumed}")
    table.add_row("steps done again: together, most after one kill", f"{found.repeated_steps}, {found.most_repeated}")
    table.add_row("steps at the end", f"{found.steps[1]}, {found.steps[0]}")
    table.add_row("variables compared", f"{found.variables} (last checkpoint) and the best one's")
    table.add_row("of these different in a bit", str(found.differing))
    table.add_row("largest difference", f"{found.difference:.3g}")
    console.print(table)
    wrong = broken(found)
    for line in wrong:
        console.print(f"broken: {line}", style="red")
    if options.json:
        # plain print: rich would wrap it
        print(json.dumps({**asdict(found), "broken": wrong}))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
