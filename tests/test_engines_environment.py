"""The environment with TensorFlow and JAX has them, and the project, in versions that go together."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from gridsense.sequence import BUNDLED

ROOT = Path(__file__).parents[1]
ENGINE_TESTS = ("tests/test_engines.py", "tests/test_network.py")

PROGRAM = """
import json
from importlib.metadata import version
import gridsense.cli, models, jax, jax.numpy, numpy, tensorflow
ones = numpy.ones((2, 2), numpy.float32)
print(json.dumps({
    "models": models.__file__,
    "project": version("gridsense-pmu"),
    "numpy": numpy.__version__,
    "tensorflow": [tensorflow.__version__, float(tensorflow.reduce_sum(tensorflow.matmul(ones, ones)))],
    "jax": [jax.default_backend(), float((jax.numpy.asarray(ones) @ ones).sum())],
}))
"""


@pytest.mark.slow
def test_it_runs_tensorflow_and_jax_beside_the_project(engines_python: Path, tmp_path: Path) -> None:
    done = subprocess.run([engines_python, "-c", PROGRAM], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert Path(found["models"]) == Path(__file__).parents[1] / "models" / "__init__.py"  # this checkout, editable
    assert found["numpy"].startswith("2.")
    assert tuple(map(int, found["tensorflow"][0].split(".")[:2])) >= (2, 20)
    assert (found["tensorflow"][1], *found["jax"]) == (8.0, "cpu", 8.0)


@pytest.mark.slow
def test_the_engines_pass_their_tests_there(engines_python: Path) -> None:
    done = subprocess.run(
        [engines_python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *ENGINE_TESTS],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "JAX is not installed" not in done.stdout
    assert "TensorFlow is not installed" not in done.stdout


@pytest.mark.slow
def test_the_bundled_model_is_verified_in_tensorflow_and_jax(engines_python: Path) -> None:
    program = engines_python.with_name("gridsense")
    done = subprocess.run(
        [program, "model", "verify", BUNDLED, "--frames", "1000"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    kept = [line for line in done.stdout.splitlines() if line.rstrip().endswith("kept")]
    assert [line.split(":")[0].split()[0] for line in kept[1:]] == ["numpy", "tensorflow", "jax", "tensorflow", "jax"]
