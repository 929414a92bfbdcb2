"""The peers' own virtual environment, `.venv-peers`: made on demand from hash-locked requirements.

Nothing of it is ever imported by the product: its programs run in processes of their own. Several processes may ask for
it at once, one makes it.
"""

from __future__ import annotations

import fcntl
import hashlib
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FOLDER = ROOT / ".venv-peers"
CACHE = ROOT / ".cache"
LOCKS = (HERE / "requirements.txt", HERE / "requirements-source.txt")
"""What comes as wheels, the build tool among it; and what is built by it."""
PATIENCE_S = 300.0


class EnvironmentMissingError(Exception):
    """The environment cannot be made: the registry cannot be reached, say."""


def peers_python(folder: Path = FOLDER) -> Path:
    """Find the interpreter of the peers' environment, or make both.

    Parameters
    ----------
    folder
        Where it is.

    Returns
    -------
    Path
        The interpreter.

    Raises
    ------
    EnvironmentMissingError
        If it is not there and cannot be made.
    """
    python, stamp = folder / "bin" / "python", folder / "lock.sha256"
    wanted = hashlib.sha256(b"".join(lock.read_bytes() for lock in LOCKS)).hexdigest()
    CACHE.mkdir(exist_ok=True)
    with (CACHE / f"{folder.name}.lock").open("w") as alone:
        fcntl.flock(alone, fcntl.LOCK_EX)
        if not (stamp.exists() and stamp.read_text() == wanted):
            _make(folder, python)
            stamp.write_text(wanted)
    return python


def _make(folder: Path, python: Path) -> None:
    """Make the environment anew."""
    try:
        venv.create(folder, clear=True, with_pip=True)
        for lock, options in zip(LOCKS, (["--only-binary", ":all:"], ["--no-build-isolation"]), strict=True):
            _pip(python, "install", "--require-hashes", "--no-deps", *options, "-r", str(lock))
    except (OSError, subprocess.SubprocessError) as error:
        said = str(getattr(error, "stderr", "") or "").strip().splitlines()
        raise EnvironmentMissingError(f"{folder.name} cannot be made: {said[-1] if said else error}") from error


def _pip(python: Path, *arguments: str) -> None:
    quiet = ["--quiet", "--retries", "1", "--disable-pip-version-check", "--no-input"]
    subprocess.run(
        [python, "-m", "pip", *arguments, *quiet], check=True, capture_output=True, text=True, timeout=PATIENCE_S
    )


if __name__ == "__main__":
    print(peers_python(), file=sys.stdout)
