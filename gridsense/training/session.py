"""A training's folder, and Tensor2Tensor at work in it: begun anew or taken up where it was stopped.

In: what is to be trained, an interpreter of the training environment. Out: processes of `models/t2t` run to their end,
and what they say on the way. A folder belongs to one order: the same files and settings go on, others are refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import models
from gridsense.errors import InputError, TrainingError, UsageError
from gridsense.training.quiet import AFTER_S, BEFORE_S, labels_of
from gridsense.training.records import Splits

Architecture = Literal["lstm", "transformer"]

NETWORKS: dict[Architecture, tuple[str, str]] = {
    "lstm": ("lstm_seq2seq", "lstm_pmu"),
    "transformer": ("transformer", "transformer_pmu"),
}
"""Tensor2Tensor's name of each, and the hyperparameter set that is taken unless another is named."""
ORDER, LOG = "order.json", "log.txt"
LAST_LINES = 8
"""Of the log, in an error."""
CHUNK_BYTES = 1 << 20
STOP_S = 10.0
"""Given to a process to end by itself."""


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be trained.

    Attributes
    ----------
    archives
        To learn from.
    known
        With labels, for the embedding projector; None for none.
    architecture
        Which network.
    hparams_set
        Registered in `models/t2t/hyperparameters.py`; empty for the network's own.
    hparams
        ``name=value``, changed from the set.
    steps
        0 for as many as the set says.
    seed
        Of weights and batches.
    splits
        How time is parted.
    """

    archives: tuple[Path, ...]
    known: Path | None = None
    architecture: Architecture = "lstm"
    hparams_set: str = ""
    hparams: tuple[str, ...] = ()
    steps: int = 0
    seed: int = 1
    splits: Splits = field(default_factory=Splits)

    @property
    def network(self) -> list[str]:
        """Words of the training environment's command line that say which network."""
        name, usual = NETWORKS[self.architecture]
        return ["--model", name, "--hparams-set", self.hparams_set or usual, "--hparams", ",".join(self.hparams)]


def fingerprint(order: Order) -> dict[str, Any]:
    """Say what a training is made from: the same gives the same model.

    Parameters
    ----------
    order
        Whose files are read.

    Returns
    -------
    dict[str, Any]
        For JSON: digests of the files and of their labels, and every setting.

    Raises
    ------
    InputError
        If a file cannot be read.
    """
    name, usual = NETWORKS[order.architecture]
    try:
        return {
            "archives": [_digests(path) for path in order.archives],
            "known": _digests(order.known) if order.known is not None else None,
            "network": name,
            "hparams_set": order.hparams_set or usual,
            "hparams": list(order.hparams),
            "steps": order.steps,
            "seed": order.seed,
            "splits": asdict(order.splits),
            "left_out_s": [BEFORE_S, AFTER_S],
            "gridsense": version("gridsense-pmu"),
        }
    except OSError as error:
        raise InputError(f"{error.filename}: {error.strerror}; name archives to learn from") from error


def _digests(path: Path) -> dict[str, str | None]:
    """Name, sha256 of the contents, and of the labels beside them."""
    labels = labels_of(path)
    parts = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return {
        "name": path.name,
        "sha256": _sha256(parts),
        "labels_sha256": _sha256([labels]) if labels is not None else None,
    }


def _sha256(paths: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()


def open_work(work: Path, wanted: dict[str, Any], *, fresh: bool) -> bool:
    """Take a folder for an order, or take it up again.

    Parameters
    ----------
    work
        Made if absent.
    wanted
        From `fingerprint`.
    fresh
        Throw away what is there.

    Returns
    -------
    bool
        Whether something of the same order is there to go on from.

    Raises
    ------
    UsageError
        If another order's is there, or something else altogether.
    """
    order = work / ORDER
    there = work.is_dir() and any(work.iterdir())
    if there and not order.is_file():
        raise UsageError(f"--work {work} is there, and is no folder of a training: name another")
    if there and fresh:
        shutil.rmtree(work)
    elif there:
        try:
            found = json.loads(order.read_text(encoding="utf-8"))
        except ValueError:
            found = {}
        if found == wanted:
            return True
        differs = ", ".join(name for name in wanted if not isinstance(found, dict) or found.get(name) != wanted[name])
        raise UsageError(
            f"{work} holds another training (what differs: {differs}): --fresh throws it away and begins anew, "
            "--work names another folder"
        )
    work.mkdir(parents=True, exist_ok=True)
    order.write_text(json.dumps(wanted, indent=1) + "\n", encoding="utf-8")
    return False


@dataclass(frozen=True, slots=True)
class Session:
    """Tensor2Tensor in its environment, at work in a folder.

    Attributes
    ----------
    python
        The environment's interpreter.
    work
        The folder.
    """

    python: Path
    work: Path

    @property
    def rows(self) -> Path:
        """What Tensor2Tensor calls `tmp_dir`: rows to make records of."""
        return self.work / "tmp"

    @property
    def records(self) -> Path:
        """What Tensor2Tensor calls `data_dir`."""
        return self.work / "records"

    @property
    def known(self) -> Path:
        """Rows of known disturbances."""
        return self.work / "known"

    @property
    def run(self) -> Path:
        """Checkpoints, and what TensorBoard shows."""
        return self.work / "run"

    @property
    def exported(self) -> Path:
        """What the training environment hands over."""
        return self.work / "exported"

    def generate(self, told: Callable[[dict[str, Any]], None]) -> None:
        """Make the records.

        Parameters
        ----------
        told
            Each thing that it says.
        """
        self.call("generate", ["--data-dir", str(self.records), "--tmp-dir", str(self.rows)], told)

    def train(self, order: Order, told: Callable[[dict[str, Any]], None]) -> None:
        """Train, from the newest checkpoint where there is one.

        Parameters
        ----------
        order
            What.
        told
            Each thing that it says.
        """
        words = [*order.network, "--data-dir", str(self.records), "--out-dir", str(self.run)]
        words += ["--steps", str(order.steps), "--seed", str(order.seed)]
        if order.known is not None:
            words += ["--known", str(self.known)]
        self.call("train", words, told)

    def export(self, order: Order, told: Callable[[dict[str, Any]], None]) -> None:
        """Export the best checkpoint.

        Parameters
        ----------
        order
            What.
        told
            Each thing that it says.
        """
        words = [*order.network, "--data-dir", str(self.records), "--out-dir", str(self.run)]
        self.call("export", [*words, "--to", str(self.exported)], told)

    def call(self, verb: str, words: Sequence[str], told: Callable[[dict[str, Any]], None]) -> None:
        """Run one verb of `models/t2t` to its end.

        Parameters
        ----------
        verb
            Which.
        words
            The rest of its command line.
        told
            Each JSON line that it writes to stdout; all else that it writes goes to the log.

        Raises
        ------
        TrainingError
            If it cannot be run, or fails.
        """
        command = [str(self.python), "-W", "ignore", "-m", "t2t", verb, *words]
        log = self.work / LOG
        refused = ""
        with log.open("a", encoding="utf-8") as out:
            out.write(f"$ {' '.join(command)}\n")
            out.flush()
            try:
                child = subprocess.Popen(  # noqa: S603 - the interpreter that was made for it
                    command, cwd=self.work, env=_environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                    stderr=out, text=True, errors="replace",
                )  # fmt: skip
            except OSError as error:
                raise TrainingError(
                    f"{self.python} cannot be run: {error.strerror}; name another environment"
                ) from error
            try:
                for line in child.stdout or ():
                    said = _event(line)
                    if said is None:
                        out.write(line)
                        out.flush()
                    elif said["event"] == "error":
                        refused = str(said.get("message", said))
                    else:
                        told(said)
                code = child.wait()
            finally:
                _end(child)
        if code or refused:
            why = refused or "its last words were:\n" + "\n".join(_tail(log))
            raise TrainingError(f"{verb} in the training environment failed (exit {code}): {why}\nThe whole log: {log}")


def _event(line: str) -> dict[str, Any] | None:
    """Read a line that is an object with an event; None for any other."""
    try:
        said = json.loads(line)
    except ValueError:
        return None
    return said if isinstance(said, dict) and isinstance(said.get("event"), str) else None


def _environment() -> dict[str, str]:
    """Environment of the child: `t2t` is found in our folder, and nothing of our own environment is."""
    ours = {"PYTHONHOME", "PYTHONSTARTUP", "VIRTUAL_ENV"}
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    (folder,) = models.__path__
    return kept | {"PYTHONPATH": str(folder), "PYTHONNOUSERSITE": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}


def _end(child: subprocess.Popen[str]) -> None:
    """See to it that no process is left, whatever happened."""
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(STOP_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
    if child.stdout:
        child.stdout.close()


def _tail(log: Path) -> list[str]:
    """Last lines of the log."""
    with log.open(encoding="utf-8", errors="replace") as lines:
        return [line.rstrip() for line in deque(lines, LAST_LINES)]
