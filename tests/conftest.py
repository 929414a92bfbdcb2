"""What tests run against and is not ours: environments of other programs, and a Kafka broker.

Where one cannot be had its tests are skipped, but not in CI.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from models.errors import TrainingEnvironmentError, VirtualEnvironmentError
from models.training_environment import default_folder, python_of
from scripts.broker.cluster import Cluster
from scripts.broker.jars import KafkaMissingError, jars, java
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


@pytest.fixture(scope="session")
def kafka_can_run() -> None:
    """Java, and the jars of a Kafka broker."""
    try:
        java()
        jars()
    except KafkaMissingError as error:
        if os.environ.get("CI"):
            pytest.fail(f"{error}: .ci/run installs what Kafka needs")
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def kafka(kafka_can_run: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:  # noqa: ARG001 a gate
    """A broker for all tests of this worker; a test that kills or suspends one starts its own."""
    with Cluster(tmp_path_factory.mktemp("kafka")) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def secure_kafka(kafka_can_run: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:  # noqa: ARG001 a gate
    """A broker that asks who one is, by password, token or certificate, and has access lists."""
    with Cluster(tmp_path_factory.mktemp("secure-kafka"), security="scram") as cluster:
        yield cluster


@pytest.fixture
def kafka_prefix() -> str:
    """A prefix of topics, groups and transactional ids that no other test has."""
    return f"test-{uuid.uuid4().hex[:12]}."
