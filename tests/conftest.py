"""Environments that tests start programs in; where one cannot be made its tests are skipped, but not in CI."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from models.errors import TrainingEnvironmentError, VirtualEnvironmentError
from models.training_environment import default_folder, python_of
from scripts.engines import environment as engines
from scripts.peers import environment as peers


def made(environment: Callable[[], Path]) -> Path:
    try:
        return environment()
    except (TrainingEnvironmentError, VirtualEnvironmentError) as error:
        if os.environ.get("CI"):
            pytest.fail(f"{error}: CI reaches the registries")
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def peers_python() -> Path:
    """The interpreter of `.venv-peers`: C37.118 by other people."""
    return made(peers.peers_python)


@pytest.fixture(scope="session")
def engines_python() -> Path:
    """The interpreter of `.venv-engines`: the project with TensorFlow and JAX."""
    return made(engines.engines_python)


@pytest.fixture(scope="session")
def training_python() -> Path:
    """The interpreter of the training environment: Tensor2Tensor."""
    return made(lambda: python_of(default_folder(), print))
