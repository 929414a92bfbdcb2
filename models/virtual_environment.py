"""A virtual environment made from hash-locked requirements: once, on demand, whoever asks for it.

In: the folder, the interpreter, the locks. Out: the environment's own interpreter. Several processes may ask at once,
one makes it. One that was broken off, or made from other locks, is made anew. What is installed, only the locks say.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from models.errors import VirtualEnvironmentError

STAMP = "lock.sha256"
"""In the environment: the sha256 of its locks; empty while it is being made."""
LARGE_MB = 10
"""A file that takes so much to download is told."""

_PIN = re.compile(r"^[A-Za-z0-9._-]+==", re.MULTILINE)
_FILE = re.compile(r"(?:Downloading|Using cached) (?:\S*/)?(\S+) \(([\d.]+) ([kMG]?)B\)")
_BUILT = re.compile(r"Building wheel for (\S+) \(.*\): started")
_LEADS_AWAY = ("PIP_TARGET", "PIP_USER", "PYTHONHOME", "PYTHONPATH")
"""Variables by which pip would install elsewhere, or believe installed what is not."""
_MEGA = {"": 1e-6, "k": 1e-3, "M": 1.0, "G": 1e3}


@dataclass(frozen=True, slots=True)
class Recipe:
    """What an environment is made of.

    Attributes
    ----------
    folder
        Where it is to be. Only a new or empty folder is taken, or one that was made here before: it is emptied.
    download_mb
        About how much is downloaded.
    disk_mb
        About how much it takes on disk.
    wheels
        Lock of what is installed as it comes; what builds the others is among it.
    sources
        Lock of what comes as source and is built, or None where there is no such package.
    project
        A project to install editable at last, without what it asks for, or None.
    """

    folder: Path
    download_mb: int
    disk_mb: int
    wheels: Path
    sources: Path | None = None
    project: Path | None = None

    @property
    def python(self) -> Path:
        """The environment's interpreter, once it is made."""
        return self.folder / "bin" / "python"

    @property
    def locks(self) -> tuple[Path, ...]:
        """The locks that there are."""
        return (self.wheels, self.sources) if self.sources else (self.wheels,)


def digest(locks: tuple[Path, ...]) -> str:
    """Say what tells these locks from others.

    Parameters
    ----------
    locks
        Files.

    Returns
    -------
    str
        The sha256 of all, hexadecimal.
    """
    return hashlib.sha256(b"".join(lock.read_bytes() for lock in locks)).hexdigest()


def is_made(recipe: Recipe) -> bool:
    """Say whether an environment stands and is of these locks.

    Parameters
    ----------
    recipe
        What it is made of.

    Returns
    -------
    bool
        Whether it need not be made.
    """
    stamp = recipe.folder / STAMP
    return recipe.python.exists() and stamp.exists() and stamp.read_text() == digest(recipe.locks)


def make(recipe: Recipe, interpreter: Path, say: Callable[[str], None]) -> Path:
    """Make an environment, unless it is made.

    Parameters
    ----------
    recipe
        What it is made of.
    interpreter
        The Python to make it with.
    say
        Told in words what will be downloaded, and then what goes on.

    Returns
    -------
    Path
        The environment's interpreter.

    Raises
    ------
    VirtualEnvironmentError
        If it cannot be made: the packages cannot be had, say, or the folder holds something else.
    """
    try:
        recipe.folder.parent.mkdir(parents=True, exist_ok=True)
        with _alone(recipe.folder, say) as held:
            if not is_made(recipe):
                _make(recipe, interpreter, held, say)
    except OSError as error:
        raise VirtualEnvironmentError(f"{recipe.folder} cannot be made: {error}") from error
    return recipe.python


@contextmanager
def _alone(folder: Path, say: Callable[[str], None]) -> Iterator[int]:
    """Keep other makers out; yields the lock's descriptor."""
    with folder.with_name(f"{folder.name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another process is making {folder}; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def _make(recipe: Recipe, interpreter: Path, held: int, say: Callable[[str], None]) -> None:
    """Make the environment anew."""
    packages = sum(len(_PIN.findall(lock.read_text())) for lock in recipe.locks)
    say(
        f"making {recipe.folder}: {packages} packages, about {recipe.download_mb:,} MB to download from the index that "
        f"pip is configured with, about {recipe.disk_mb:,} MB on disk"
    )
    _empty(recipe.folder)
    free_mb = shutil.disk_usage(recipe.folder).free * 1e-6
    if free_mb < recipe.disk_mb:
        raise VirtualEnvironmentError(
            f"{recipe.folder} takes about {recipe.disk_mb:,} MB, and {free_mb:,.0f} MB are free; make room there"
        )
    _run(recipe, [interpreter, "-m", "venv", recipe.folder], held, say)
    _install(recipe, ["--require-hashes", "--only-binary", ":all:", "-r", recipe.wheels], held, say)
    if recipe.sources:
        _install(recipe, ["--require-hashes", "--no-build-isolation", "-r", recipe.sources], held, say)
    if recipe.project:
        _install(recipe, ["--no-build-isolation", "--editable", recipe.project], held, say)
    (recipe.folder / STAMP).write_text(digest(recipe.locks))


def _empty(folder: Path) -> None:
    """Make the folder, or empty it if it is ours to empty; what stays is a stamp that says so."""
    folder.mkdir(exist_ok=True)
    stamp = folder / STAMP
    if not stamp.exists() and any(folder.iterdir()):
        raise VirtualEnvironmentError(f"{folder} holds something else; name a folder that is new or empty")
    stamp.write_text("")
    for path in folder.iterdir():
        if path == stamp:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _install(recipe: Recipe, arguments: list[str | Path], held: int, say: Callable[[str], None]) -> None:
    options = ["--no-input", "--disable-pip-version-check", "--progress-bar", "off", "--retries", "2"]
    _run(recipe, [recipe.python, "-m", "pip", "install", "--no-deps", *options, *arguments], held, say)


def _run(recipe: Recipe, command: list[str | Path], held: int, say: Callable[[str], None]) -> None:
    """Run a step and tell how it goes.

    It inherits the lock: should this process be killed, the next maker waits until the step has ended.
    """
    lines: deque[str] = deque(maxlen=100)
    with subprocess.Popen(  # noqa: S603 - pip, in the environment that was just made
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        pass_fds=[held],
        env={name: value for name, value in os.environ.items() if name not in _LEADS_AWAY},
    ) as step:
        assert step.stdout is not None  # noqa: S101 - for the checker
        try:
            for line in step.stdout:
                lines.append(line.strip())
                if told := _told(line):
                    say(told)
        except BaseException:
            step.kill()
            raise
    if step.returncode:
        raise VirtualEnvironmentError(f"{recipe.folder} cannot be made: {_reason(lines) or step.returncode}")


def _told(line: str) -> str | None:
    """Say in words what goes on, if a line of pip's tells it."""
    if file := _FILE.search(line):
        size_mb = float(file[2]) * _MEGA[file[3]]
        return f"{file[1]}, {size_mb:.0f} MB" if size_mb >= LARGE_MB else None
    if built := _BUILT.search(line):
        return f"building {built[1]}"
    if line.startswith("Installing collected packages"):
        return f"unpacking {line.count(',') + 1} packages"
    return None


def _reason(lines: deque[str]) -> str:
    """Say in words why a step failed, from its last lines."""
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    reason = errors[-1] if errors else next((line for line in reversed(lines) if line), "")
    if any("Retrying (" in line for line in lines):
        reason += "; the index that pip is configured with (see `pip config list`) was not reached: is there a network?"
    return reason
