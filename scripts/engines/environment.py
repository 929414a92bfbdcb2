"""The engines' own virtual environment, `.venv-engines`: the project, editable, with current TensorFlow and JAX.

Made on demand from hash-locked requirements. Tests, measurements and `gridsense model verify` run in it what `.venv`,
which has neither, cannot: `.venv/bin/python scripts/engines/environment.py` prints its interpreter.
"""

from __future__ import annotations

import sys
from pathlib import Path

from models.virtual_environment import Recipe, make

ROOT = Path(__file__).parents[2]
ENGINES = Recipe(
    folder=ROOT / ".venv-engines",
    download_mb=520,
    disk_mb=2_400,
    wheels=ROOT / "requirements-engines.txt",
    project=ROOT,
)


def engines_python() -> Path:
    """Find the interpreter of the engines' environment, or make both.

    Returns
    -------
    Path
        The interpreter.
    """
    return make(ENGINES, Path(sys.executable), lambda line: print(line, file=sys.stderr, flush=True))


if __name__ == "__main__":
    print(engines_python())
