"""`gridsense train`: from archives of quiet time to a model that `detect` and `run` score with."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from gridsense.errors import UsageError
from gridsense.events import rfc3339
from gridsense.training import records
from gridsense.training.assembly import assemble, require_place
from gridsense.training.quiet import AFTER_S, BEFORE_S, Signals, quiet_signals
from gridsense.training.session import Architecture, Order, Session, fingerprint, open_work
from models.artifact import identity
from models.spec import read_spec
from models.training_environment import default_folder, python_of

_OPTION = Parameter(negative="", show_default=False)
MADE = "rows.json"
"""In the folder of a training: its rows are whole, and what they were made of."""
SPEC = "spec.json"
SHOWN = 12
"""Omissions listed by name."""
LINE_S = 10.0
"""Between two lines of progress where stderr is no terminal."""


def train(
    archives: Annotated[tuple[Path, ...], Parameter(required=True)],
    /,
    *,
    to: Path,
    known: Annotated[Path | None, _OPTION] = None,
    model: Architecture = "lstm",
    hparams_set: Annotated[str, _OPTION] = "",
    hparams: Annotated[tuple[str, ...], _OPTION] = (),
    steps: Annotated[int, _OPTION] = 0,
    seed: int = 1,
    work: Annotated[Path | None, _OPTION] = None,
    environment: Annotated[Path | None, _OPTION] = None,
    fresh: Annotated[bool, _OPTION] = False,
    force: Annotated[bool, _OPTION] = False,
) -> None:
    """Train the sequence model on quiet time of a grid, by Tensor2Tensor, and make an artifact of it.

    Archives run through the very pipeline that runs live. Bad samples are masked; what the quadratic scorer calls an
    event is left out, and so is what NAME.json beside NAME.parquet labels, with 5 s before and 30 s after it: for
    everybody where the grid moved, else for the PMUs concerned. Each file is parted by time: 70 % to learn from, 15 %
    to know when to stop, 15 % to be judged by, 20 s between. One network serves all PMUs of any grid at this rate.

    Tensor2Tensor runs in an environment of its own (Python 3.11, about 550 MB to download, 2.3 GB on disk), made once
    and used again. Interrupted, by Ctrl+C or a kill, the same command goes on from the newest checkpoint; the same
    seed gives the same weights. Look on with the TensorBoard that is in that environment; the command is printed.

    Examples
    --------
    ```
    gridsense train quiet.parquet --to models/mygrid
    gridsense train monday.parquet tuesday.parquet --to models/mygrid --known disturbances.parquet
    gridsense train quiet.parquet --to /tmp/wide --hparams hidden_size=128 --steps 2000
    gridsense detect today.parquet --model models/mygrid
    ```

    Parameters
    ----------
    archives
        Captures or archives, mostly of quiet time, of one reporting rate. Repeat for several.
    to
        Directory for the artifact; made when everything else has gone well.
    known
        An archive with labels beside it: TensorBoard shows where its disturbances lie in the network's hidden states.
    model
        Which network: the lstm runs anywhere, the transformer only with TensorFlow, and it costs far more a frame.
    hparams_set
        Of Tensor2Tensor's: lstm_pmu, transformer_pmu (what is taken), or lstm_pmu_tiny to try things out.
    hparams
        A hyperparameter that differs from the set, such as hidden_size=128. Repeat the option for several.
    steps
        At most so many; as a rule as many as the set says. It stops earlier when nothing improves.
    seed
        Of weights and batches.
    work
        Folder for rows, records and checkpoints; as a rule .cache/train/NAME, with the name of `--to`.
    environment
        Folder of the training environment; as a rule .venv-t2t in a checkout, else in the user's cache.
    fresh
        Throw away what an earlier training left in the folder.
    force
        Replace a model that is there.

    Raises
    ------
    UsageError
        If an option does not fit.
    KeyboardInterrupt
        If it was interrupted.
    """
    order = Order(archives, known, model, hparams_set, hparams, steps, seed)
    if steps < 0:
        raise UsageError(f"--steps {steps}: must be above 0")
    if wrong := [each for each in hparams if "=" not in each or "," in each]:
        raise UsageError(f"--hparams {wrong[0]}: write name=value, and repeat the option for several")
    to, work = to.absolute(), (work or Path(".cache") / "train" / to.absolute().name).absolute()
    require_place(to, force=force)
    console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    made_from = fingerprint(order)
    if open_work(work, made_from, fresh=fresh):
        console.print(f"{work}: going on with what is there")
    took: dict[str, float] = {}
    try:
        with _stage("environment", took):
            session = Session(python_of(environment or default_folder(), console.print), work)
        training = {"made_from": made_from, **_train(order, session, console, took)}
        with _stage("verification", took):
            spec = read_spec((work / SPEC).read_text(encoding="utf-8"))
            made = assemble(session.exported, session.rows, spec, training, to, architecture=model, force=force)
    except KeyboardInterrupt:
        console.print(f"interrupted; the same command goes on from there ({work})")
        raise
    for stage, seconds in took.items():
        console.print(f"{stage:>14} {seconds:8.1f} s")
    for what, where in (("environment", session.python.parents[1]), ("work", work), ("artifact", to)):
        console.print(f"{what:>14} {_megabytes(where):8.1f} MB  {where}")
    console.print(f"gridsense model inspect {to}        what it is and how good")
    console.print(f"gridsense detect ... --model {to}   scores with it")
    console.print(f"{session.python.parent / 'tensorboard'} --logdir {session.run}")
    sys.stdout.write(f"{to} {identity(made)}\n")


def _train(order: Order, session: Session, console: Console, took: dict[str, float]) -> dict[str, Any]:
    """From archives to what the training environment exports; tell what it was made from."""
    with _stage("records", took):
        rows = _rows(order, session, console)
        with _going("records", console) as told:
            session.generate(told)
    with _stage("training", took), _going("training", console) as told:
        session.train(order, told)
    with _stage("export", took), _going("exporting", console) as told:
        session.export(order, told)
    return rows


def _rows(order: Order, session: Session, console: Console) -> dict[str, Any]:
    """Write the rows, unless they stand; say what was kept and what was left out, and why."""
    made = session.work / MADE
    if made.is_file():
        told: dict[str, Any] = json.loads(made.read_text(encoding="utf-8"))
        return told
    files = [_read(path, console) for path in order.archives]
    spec = records.make_spec(files, order.splits)
    written = records.write_rows(session.rows, files, spec, order.splits)
    for split, each in written.items():
        console.print(
            f"{split}: {each.frames:,} frames, {each.examples:,} examples of {records.WINDOW} frames of one stream, "
            f"{each.share_asked:.0%} of the readings to come are asked for"
        )
    if order.known is not None:
        records.write_known(session.known, _read(order.known, console), spec)
    told = {"files": [_summary(file, order.splits) for file in files]}
    told["splits"] = {split: asdict(each) for split, each in written.items()}
    (session.work / SPEC).write_text(spec.to_json(), encoding="utf-8")
    made.write_text(json.dumps(told), encoding="utf-8")
    return told


def _read(path: Path, console: Console) -> Signals:
    """Read one file, and say what of it is quiet."""
    with _reading(path.name, console) as report:
        file = quiet_signals(path, report)
    seconds = (file.last_ns - file.first_ns) / 1e9
    pmus = max(len(stretch.table.pmus) for stretch in file.stretches)
    wanted = sum(stretch.fit.size for stretch in file.stretches)
    kept = sum(int(stretch.fit.sum()) for stretch in file.stretches) / max(wanted, 1)
    console.print(f"{path}: {seconds:,.0f} s of {pmus:,} PMUs, {file.rate_hz:g} frames a second; {kept:.0%} is quiet")
    if file.unjudged_s:
        console.print(f"  the scorer learned in the first {file.unjudged_s:.0f} s: they are taken for quiet unjudged")
    for omission in file.omissions[:SHOWN]:
        whose = "all PMUs" if not omission.pmus else ", ".join(omission.pmus[:3])
        more = f" and {len(omission.pmus) - 3} more" if len(omission.pmus) > 3 else ""
        times = f"{rfc3339(omission.onset_ns)} to {rfc3339(omission.end_ns)}"
        console.print(f"  left out: {times}, {whose}{more}: {omission.reason}")
    if len(file.omissions) > SHOWN:
        console.print(f"  and {len(file.omissions) - SHOWN} more")
    if file.omissions:
        console.print(f"  each with {BEFORE_S:g} s before and {AFTER_S:g} s after")
    return file


def _summary(file: Signals, splits: records.Splits) -> dict[str, Any]:
    """Say what will stand in the artifact of one file."""
    bounds = splits.bounds(file.first_ns, file.last_ns)
    return {
        "name": file.path.name,
        "rate_hz": file.rate_hz,
        "pmus": max(len(stretch.table.pmus) for stretch in file.stretches),
        "first": rfc3339(file.first_ns),
        "last": rfc3339(file.last_ns),
        "splits": {split: [rfc3339(begin), rfc3339(end)] for split, (begin, end) in bounds.items()},
        "left_out": [
            {"reason": o.reason, "onset": rfc3339(o.onset_ns), "end": rfc3339(o.end_ns), "pmus": o.pmus}
            for o in file.omissions
        ],
    }


@contextmanager
def _stage(name: str, took: dict[str, float]) -> Iterator[None]:
    began = time.perf_counter()
    yield
    took[name] = time.perf_counter() - began


@contextmanager
def _reading(name: str, console: Console) -> Iterator[Callable[[int], None]]:
    """Show on a terminal how far a file is read."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TextColumn("{task.fields[at]}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(f"looking for quiet time in {name}", total=None, at="")
        yield lambda time_ns: progress.update(task, at=rfc3339(time_ns))


@contextmanager
def _going(what: str, console: Console) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Show how far a process of the training environment is: a bar on a terminal, a line now and then elsewhere."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[state]}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=None, state="")
        known: dict[str, float] = {}
        last = time.monotonic()

        def told(said: dict[str, Any]) -> None:
            nonlocal last
            known.update({name: said[name] for name in ("loss", "held_out", "best") if said.get(name) is not None})
            state = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in known.items())
            if "step" in said and "of" in said:
                progress.update(task, completed=said["step"], total=said["of"], state=state)
                due = said["event"] == "evaluation" or time.monotonic() - last >= LINE_S
                if not console.is_terminal and due:
                    last = time.monotonic()
                    console.print(f"step {said['step']} of {said['of']}: {state}")
            else:
                facts = ", ".join(f"{name} {value}" for name, value in said.items() if name != "event")
                console.print(f"{said['event']}: {facts}" if facts else str(said["event"]))

        yield told


def _megabytes(path: Path) -> float:
    return sum(p.lstat().st_size for p in path.rglob("*") if p.is_file() and not p.is_symlink()) / 1e6
