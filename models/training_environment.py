"""The environment that Tensor2Tensor trains in, on demand: Python 3.11 and what `models/t2t/requirements*.txt` pins.

In: a folder, or none. Out: the interpreter to run `models/t2t` with. Nothing of the environment is ever imported here:
what it has to do, it does in processes of its own.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from models.errors import TrainingEnvironmentError, VirtualEnvironmentError
from models.virtual_environment import Recipe, digest, is_made, make

VARIABLE = "GRIDSENSE_TRAINING_ENVIRONMENT"
"""Environment variable: the folder to have it in."""
VERSION = (3, 11)
"""Of Python. The lock fits no other: some of its versions are not to be had for 3.10, others not for 3.12."""
PLATFORM = ("linux", "x86_64")

_HERE = Path(__file__).parent
_WHEELS, _SOURCES = _HERE / "t2t" / "requirements.txt", _HERE / "t2t" / "requirements-source.txt"
_DOWNLOAD_MB = 550
_DISK_MB = 2_300
_PROBE = "import ensurepip, sys, venv; print(*sys.version_info[:2])"


def default_folder() -> Path:
    """Say where the environment is as long as nobody names a folder.

    Returns
    -------
    Path
        What `VARIABLE` says; else in a checkout `.venv-t2t`; else in the user's cache, named after the locks.
    """
    if named := os.environ.get(VARIABLE):
        return Path(named)
    if (_HERE.parent / "pyproject.toml").exists():
        return _HERE.parent / ".venv-t2t"
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "gridsense" / f"t2t-{digest((_WHEELS, _SOURCES))[:12]}"


def python_of(folder: Path, say: Callable[[str], None]) -> Path:
    """Find the interpreter of the training environment, or make both.

    Parameters
    ----------
    folder
        Where it is to be.
    say
        Told in words what will be downloaded, and then what goes on.

    Returns
    -------
    Path
        The interpreter.

    Raises
    ------
    TrainingEnvironmentError
        If it cannot be made: there is no Python 3.11, say, or no network.
    """
    recipe = Recipe(folder.expanduser().absolute(), _DOWNLOAD_MB, _DISK_MB, _WHEELS, _SOURCES)
    if is_made(recipe):
        return recipe.python
    here = (sys.platform, platform.machine())
    if here != PLATFORM:
        raise TrainingEnvironmentError(
            f"Tensor2Tensor's environment is locked for {' on '.join(PLATFORM)}, and this is {' on '.join(here)}; "
            "train there, and bring the model here: it needs no Tensor2Tensor"
        )
    try:
        return make(recipe, interpreter(candidates()), say)
    except VirtualEnvironmentError as error:
        raise TrainingEnvironmentError(f"{error}; {VARIABLE}=FOLDER puts it elsewhere") from error


def candidates() -> Iterator[Path]:
    """List the interpreters that may be Python 3.11.

    Yields
    ------
    Path
        The running one, then those on the path that are called so.
    """
    yield Path(sys.executable)
    for folder in os.get_exec_path():
        python = Path(folder) / f"python{'.'.join(map(str, VERSION))}"
        if python.exists():
            yield python


def interpreter(among: Iterable[Path]) -> Path:
    """Choose the interpreter to make the environment with.

    Parameters
    ----------
    among
        Candidates, the preferred first; they may be of any version, or not run at all.

    Returns
    -------
    Path
        The first that is Python 3.11 and can make virtual environments.

    Raises
    ------
    TrainingEnvironmentError
        If there is none.
    """
    for python in among:
        try:
            said = subprocess.run(  # noqa: S603 - asked which Python it is
                [str(python), "-c", _PROBE], capture_output=True, text=True, timeout=60, check=False
            )
        except (OSError, subprocess.SubprocessError):
            continue
        if said.stdout.split() == [str(number) for number in VERSION]:
            return python
    raise TrainingEnvironmentError(
        "Tensor2Tensor needs a Python 3.11 that can make virtual environments, and there is none on the path: "
        "install it (on Debian: apt-get install python3.11-venv), or run gridsense itself with Python 3.11"
    )
