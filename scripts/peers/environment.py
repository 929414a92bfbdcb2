"""The peers' own virtual environment, `.venv-peers`: made on demand from hash-locked requirements.

Nothing of it is ever imported by the product: its programs run in processes of their own.
"""

from __future__ import annotations

import sys
from pathlib import Path

from models.virtual_environment import Recipe, make

HERE = Path(__file__).parent
PEERS = Recipe(
    folder=HERE.parents[1] / ".venv-peers",
    download_mb=5,
    disk_mb=60,
    wheels=HERE / "requirements.txt",
    sources=HERE / "requirements-source.txt",
)


def peers_python() -> Path:
    """Find the interpreter of the peers' environment, or make both.

    Returns
    -------
    Path
        The interpreter.
    """
    return make(PEERS, Path(sys.executable), lambda line: print(line, file=sys.stderr, flush=True))


if __name__ == "__main__":
    print(peers_python())
