"""`gridsense model`: what a trained model is, whether every engine runs it alike, which of two is better.

The one place of `gridsense` that may load TensorFlow: no service imports it.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
from cyclopts import Parameter
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from gridsense import picture
from gridsense.errors import UsageError, VerificationError
from gridsense.training import records
from gridsense.training.accuracy import Accuracy, measure
from gridsense.training.assembly import JUDGED, PROMISE
from gridsense.training.quiet import Signals, quiet_signals
from gridsense.verification import CHUNK, drift
from models.artifact import Artifact, identity, open_artifact, self_test, weights_of
from models.engines import ArrayEngine, Engine
from models.saved_model import SavedModelEngine
from models.spec import Spec

_FLAG = Parameter(negative="", show_default=False)
_LINE_WIDTH = 160
"""Of tables where stdout is no terminal."""
UNITS = {"frequency": "Hz", "rocof": "Hz/s", "voltage_angle": "deg"}
"""Of the slots that are not per unit."""
SEED = 20260301


def inspect(directory: Path, /, *, json: Annotated[bool, _FLAG] = False) -> None:
    """Say what a trained model is: what it was trained on, what it predicts, and how well.

    Every file is held against the manifest first; what was changed after sealing is refused. It needs NumPy alone.

    Errors are root mean squares relative to persistence, which says that all stays as it is: below 1 is better than
    that. Coverage is the share of readings within the predicted 95 % interval.

    Examples
    --------
    ```
    gridsense model inspect models/mygrid
    gridsense model inspect models/mygrid --json | jq .training.trained
    ```

    Parameters
    ----------
    directory
        The model's version directory.
    json
        Print one JSON object instead of tables.
    """
    artifact = open_artifact(directory)
    spec, training, metrics = artifact.spec(), artifact.training(), artifact.metrics()
    size_bytes = sum(file.size_bytes for file in artifact.files)
    facts = {
        "name": artifact.name,
        "architecture": artifact.architecture,
        "identity": identity(artifact),
        "created_by": artifact.created_by,
        "size_bytes": size_bytes,
    }
    if json:
        report = {**facts, "spec": msgspec.json.decode(spec.to_json()), "training": training, "metrics": metrics}
        sys.stdout.write(msgspec.json.encode(report).decode() + "\n")
        return
    console = _console()
    console.print(_pairs({**facts, "size_bytes": f"{size_bytes:,}", "frames a second": f"{spec.rate_hz:g}"}))
    console.print(_sources(training))
    if isinstance(trained := training.get("trained"), dict):
        console.print(_pairs({name: value for name, value in trained.items() if not isinstance(value, dict)}))
        for part in ("hyperparameters", "versions"):
            if isinstance(trained.get(part), dict):
                console.print(_pairs(trained[part], title=part))
    console.print(_scales(spec))
    for split in JUDGED:
        if split in metrics:
            console.print(*_figures(spec, {"": metrics[split]}, f"held-out time, {split}"))
    if "note" in metrics:
        console.print(str(metrics["note"]))


def verify(
    directory: Path,
    /,
    *,
    frames: int = 100_000,
    streams: int = 100,
    plot: Annotated[Path | None, _FLAG] = None,
) -> None:
    """Check a trained model: its files, and that every engine here gives what the trained graph gave.

    The manifest says that no file was changed. The self test holds each engine against what Tensor2Tensor's graph made
    of a thousand frames. Then TensorFlow and JAX, where they are installed, step beside NumPy for many frames, driven
    by made-up inputs (coloured noise, steps, lost channels; always the same): raw outputs stay within 1e-5.

    Exit code 3 where a file is not as it was sealed, or a promise is broken. What is not installed is not tried, and
    that is said. 100,000 frames of 100 streams take some minutes.

    Examples
    --------
    ```
    gridsense model verify models/mygrid
    gridsense model verify models/mygrid --plot drift.png
    gridsense model verify models/mygrid --frames 2000 --streams 10
    ```

    Parameters
    ----------
    directory
        The model's version directory.
    frames
        How many the engines step beside each other; 0 for the self test alone.
    streams
        In each frame.
    plot
        Picture (PNG) of how far they drift apart.

    Raises
    ------
    UsageError
        If a number is out of its range.
    VerificationError
        If an engine breaks its promise.
    """
    if frames < 0 or streams < 1:
        raise UsageError(f"--frames {frames}, --streams {streams}: must be 0 and 1 at least")
    console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    if plot is not None and importlib.util.find_spec("matplotlib") is None:
        raise UsageError("--plot needs matplotlib: pip install 'gridsense-pmu[plot]'")
    artifact = open_artifact(directory)
    reference, others, missing = _engines(artifact)
    checks = [_Check(f"{len(artifact.files)} files", "as they were sealed", 0.0)]
    all_here = [*([reference] if reference else []), *others]
    words = "the trained graph's outputs"
    checks += [_Check(f"{engine.name}: self test", words, self_test(artifact, engine)) for engine in all_here]
    if reference is not None and others and frames:
        words = f"numpy's outputs, {frames:,} frames of {streams:,} streams"
        with _going("frames", frames, console) as report:
            worst = drift(artifact.spec(), reference, others, frames=frames, streams=streams, seed=SEED, report=report)
        checks += [_Check(f"{e.name}: step", words, float(row.max())) for e, row in zip(others, worst, strict=True)]
        if plot is not None:
            picture.draw_drift(worst, [f"{e.name} beside numpy" for e in others], CHUNK, PROMISE, plot)
    elif plot is not None:
        missing.append("nothing was drawn: there are no two engines to hold against each other")
    _console().print(_verdicts(checks))
    for line in missing:
        console.print(line)
    if broken := [check for check in checks if not check.deviation <= PROMISE]:
        said = "; ".join(f"{check.what} deviates by {check.deviation:.2g} from {check.promise}" for check in broken)
        raise VerificationError(f"{directory}: {said}; {PROMISE:g} is promised: do not score with this engine")


def compare(a: Path, b: Path, archive: Path | None = None, /) -> None:
    """Hold two trained models against each other: on the held-out time of each, and on an archive.

    Errors are relative to persistence, as in `gridsense model inspect`. The held-out times of two models are the same
    only where they were trained on the same files. An archive is read as for training: what is no quiet time is not
    asked for, all else is, so take one that neither has seen.

    Examples
    --------
    ```
    gridsense model compare models/monday models/tuesday
    gridsense model compare models/monday models/tuesday wednesday.parquet
    ```

    Parameters
    ----------
    a
        The version directory of one.
    b
        The version directory of the other.
    archive
        Quiet time to measure both on.

    Raises
    ------
    UsageError
        If they predict different things.
    """
    models = {"A": open_artifact(a), "B": open_artifact(b)}
    specs = {key: artifact.spec() for key, artifact in models.items()}
    spec, other = specs.values()
    if (spec.slots, spec.horizons, spec.rate_hz) != (other.slots, other.horizons, other.rate_hz):
        raise UsageError(f"{a} and {b} predict different slots, horizons or rates: they cannot be compared")
    console = _console()
    console.print(_pairs({key: f"{artifact.path}, {identity(artifact)[:12]}" for key, artifact in models.items()}))
    metrics = {key: artifact.metrics() for key, artifact in models.items()}
    for split in JUDGED:
        both = {key: told[split] for key, told in metrics.items() if split in told}
        if both:
            console.print(*_figures(spec, both, f"held-out time, {split}"))
    if archive is not None:
        log = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
        with _going(f"reading {archive.name}", None, log) as report:
            file = quiet_signals(archive, report)
        engines = {key: _one(artifact) for key, artifact in models.items()}
        found = {key: _measured(specs[key], engine, file).to_json() for key, engine in engines.items()}
        console.print(*_figures(spec, found, archive.name))


@dataclass(frozen=True, slots=True)
class _Check:
    """One line of a verification."""

    what: str
    promise: str
    deviation: float


def _engines(artifact: Artifact) -> tuple[Engine | None, list[Engine], list[str]]:
    """NumPy's engine where it can run the network; the others that are here; what is not tried, and why."""
    here = {name: importlib.util.find_spec(name) is not None for name in ("tensorflow", "jax")}
    missing = [
        f"{name} is not installed, and was not tried: pip install 'gridsense-pmu[{name}]'"
        for name in here
        if not here[name]
    ]
    others: list[Engine] = []
    reference: Engine | None = None
    if here["tensorflow"]:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # else it tells of the processor
        others.append(SavedModelEngine(artifact.saved_model))
    if artifact.architecture == "lstm":
        weights = weights_of(artifact)
        reference = ArrayEngine(weights)
        if here["jax"]:
            others.append(ArrayEngine(weights, "jax"))
    else:
        missing = [line for line in missing if not line.startswith("jax")]
        missing.append(
            f"numpy and jax run no {artifact.architecture}: there is nothing to hold TensorFlow's step against"
        )
    return reference, others, missing


def _one(artifact: Artifact) -> Engine:
    """Take the engine that runs a model everywhere, else TensorFlow's."""
    return (
        ArrayEngine(weights_of(artifact)) if artifact.architecture == "lstm" else SavedModelEngine(artifact.saved_model)
    )


def _measured(spec: Spec, engine: Engine, file: Signals) -> Accuracy:
    """Measure a model on the quiet time of a file."""
    return measure(spec, engine, (rows for stretch in file.stretches for rows in records.pieces(spec, stretch)))


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else _LINE_WIDTH, highlight=False)


def _table(title: str | None, *names: str, numbers: int) -> Table:
    """Make a table whose last columns are numbers."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE, pad_edge=False)
    for place, name in enumerate(names):
        table.add_column(name, overflow="fold", justify="right" if place >= len(names) - numbers else "left")
    return table


def _pairs(facts: dict[str, Any], title: str | None = None) -> Table:
    table = Table(title=title, title_justify="left", box=None, show_header=False, pad_edge=False)
    for name, value in facts.items():
        table.add_row(name.replace("_", " "), str(value))
    return table


def _sources(training: dict[str, Any]) -> Table:
    """Draw what a model was trained on."""
    table = _table("trained on", "file", "PMUs", "split", "from", "to", "left out", numbers=1)
    for file in training.get("files", []):
        for place, (split, (begin, end)) in enumerate(file["splits"].items()):
            first = (file["name"], str(file["pmus"])) if place == 0 else ("", "")
            table.add_row(*first, split, begin, end, f"{len(file['left_out'])} times" if place == 0 else "")
    return table


def _scales(spec: Spec) -> Table:
    """Draw what a network predicts, and the typical size of what moves."""
    ahead = [f"from {'the last' if pace is None else f'{pace:g} s level'}" for pace in (None, *spec.paces_s)]
    table = _table("slots, and how far readings typically are", "slot", "unit", *ahead, numbers=len(ahead))
    for slot, row in zip(spec.slots, spec.scale, strict=True):
        table.add_row(slot.replace("_", " "), UNITS.get(slot, "pu"), *(f"{size:.3g}" for size in row))
    return table


def _figures(spec: Spec, models: dict[str, dict[str, Any]], title: str) -> Iterator[Table]:
    """Draw errors, then coverages, of one model or of several: a row a slot, a column a horizon of each."""
    ahead = [f"{frames / spec.rate_hz:.2g} s" for frames in spec.horizons]
    names = [f"{key} {h}".strip() for h in ahead for key in models]
    kinds = {"relative_error": "error relative to persistence", "coverage": "coverage of the 95 % interval"}
    for kind, words in kinds.items():
        table = _table(f"{title}: {words}", "slot", *names, numbers=len(names))
        for c, slot in enumerate(spec.slots):
            cells = [told[kind][c][k] for k in range(len(ahead)) for told in models.values()]
            if any(cell is not None for cell in cells):
                table.add_row(slot.replace("_", " "), *("" if cell is None else f"{cell:.3f}" for cell in cells))
        yield table


def _verdicts(checks: Sequence[_Check]) -> Table:
    table = _table(None, "what", "gives", "deviation", "promised", "verdict", numbers=3)
    for check in checks:
        kept = "kept" if check.deviation <= PROMISE else "BROKEN"
        table.add_row(check.what, check.promise, f"{check.deviation:.2g}", f"{PROMISE:g}", kept)
    return table


@contextmanager
def _going(what: str, total: int | None, console: Console) -> Iterator[Callable[[int], None]]:
    """Show on a terminal how far it is."""
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    shown = columns if total is not None else columns[:2]
    with Progress(*shown, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.update(task, completed=done)
