"""Environments are made once from their locks, by one maker, from the right Python; what goes wrong is said."""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from models.errors import TrainingEnvironmentError, VirtualEnvironmentError
from models.training_environment import PLATFORM, VARIABLE, VERSION, candidates, default_folder, interpreter, python_of
from models.virtual_environment import STAMP, Recipe, digest, is_made, make

SELF = Path(sys.executable)


def package(folder: Path, name: str = "tiny", version: str = "1.0") -> str:
    """Write a wheel without content; returns the line that locks it."""
    info = f"{name}-{version}.dist-info"
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{name}.py", f"VERSION = {version!r}\n")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", f"{name}.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
    return f"{name}=={version} --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """An environment of one package that pip finds in a folder, and nowhere else."""
    index = tmp_path / "index"
    index.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    lock = tmp_path / "lock.txt"
    lock.write_text(package(index))
    return Recipe(tmp_path / "below" / "environment", 1, 30, lock)


def version_in(python: Path) -> str:
    return subprocess.run(
        [python, "-c", "import tiny; print(tiny.VERSION)"], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_it_is_made_once_and_says_so_first(recipe: Recipe) -> None:
    said: list[str] = []
    python = make(recipe, SELF, said.append)
    assert python == recipe.folder / "bin" / "python"
    assert version_in(python) == "1.0"
    assert said[0].startswith(f"making {recipe.folder}: 1 packages, about 1 MB to download")
    assert said[-1] == "unpacking 1 packages"
    assert (recipe.folder / STAMP).read_text() == digest((recipe.wheels,))
    kept = recipe.folder / "kept"
    kept.touch()
    assert make(recipe, Path("no interpreter is asked for"), said.append) == python
    assert kept.exists()
    assert len(said) == 2


def test_another_lock_makes_it_anew(recipe: Recipe) -> None:
    make(recipe, SELF, print)
    (recipe.folder / "old").touch()
    recipe.wheels.write_text(package(recipe.wheels.parent / "index", version="2.0"))
    assert not is_made(recipe)
    assert version_in(make(recipe, SELF, print)) == "2.0"
    assert not (recipe.folder / "old").exists()


def test_a_second_lock_is_part_of_it(recipe: Recipe) -> None:
    more = recipe.wheels.with_name("more.txt")
    more.write_text(package(more.parent / "index", "other"))
    both = replace(recipe, sources=more)
    python = make(both, SELF, print)
    subprocess.run([python, "-c", "import tiny, other"], check=True)
    assert is_made(both)
    assert not is_made(recipe)


def test_what_was_broken_off_is_made_anew(recipe: Recipe) -> None:
    lock = recipe.wheels.read_text()
    recipe.wheels.write_text(lock.replace("sha256:", "sha256:0", 1)[:-2] + "\n")
    with pytest.raises(VirtualEnvironmentError, match=f"{recipe.folder} cannot be made: .*HASHES"):
        make(recipe, SELF, print)
    assert recipe.python.exists()
    recipe.wheels.write_text(lock)
    assert not is_made(recipe)
    assert version_in(make(recipe, SELF, print)) == "1.0"


def test_without_its_interpreter_it_is_not_made(recipe: Recipe) -> None:
    make(recipe, SELF, print)
    assert is_made(recipe)
    recipe.python.unlink()
    assert not is_made(recipe)


def test_what_is_not_to_be_had_is_named(recipe: Recipe) -> None:
    recipe.wheels.write_text(f"absent==3.1 --hash=sha256:{'0' * 64}\n")
    with pytest.raises(VirtualEnvironmentError, match=r"No matching distribution found for absent==3\.1"):
        make(recipe, SELF, print)


def test_an_index_out_of_reach_is_said(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # nobody listens to "discard"
    recipe.wheels.write_text(f"absent==3.1 --hash=sha256:{'0' * 64}\n")
    with pytest.raises(VirtualEnvironmentError, match="was not reached: is there a network"):
        make(recipe, SELF, print)


def test_somebody_elses_folder_is_not_emptied(recipe: Recipe) -> None:
    recipe.folder.mkdir(parents=True)
    (recipe.folder / "thesis.txt").touch()
    with pytest.raises(VirtualEnvironmentError, match="holds something else"):
        make(recipe, SELF, print)
    assert [p.name for p in recipe.folder.iterdir()] == ["thesis.txt"]


def test_a_full_disk_is_said_before_anything_is_downloaded(recipe: Recipe) -> None:
    with pytest.raises(VirtualEnvironmentError, match="takes about 1,000,000,000,000 MB"):
        make(replace(recipe, disk_mb=10**12), SELF, print)
    assert not recipe.python.exists()


def test_of_several_makers_one_makes_it(recipe: Recipe) -> None:
    said: list[str] = []
    with ThreadPoolExecutor(3) as makers:
        pythons = set(makers.map(lambda _: make(recipe, SELF, said.append), range(3)))
    assert pythons == {recipe.python}
    assert len([line for line in said if line.startswith("making ")]) == 1
    assert f"another process is making {recipe.folder}; waiting for it" in said


def test_a_step_that_outlives_its_maker_keeps_the_next_one_out(recipe: Recipe, tmp_path: Path) -> None:
    slow = tmp_path / "python"
    slow.write_text(f"#!/bin/sh\ntouch {tmp_path}/began\nexec sleep 60\n")
    slow.chmod(0o755)
    program = (
        "import sys; from pathlib import Path; from models.virtual_environment import Recipe, make\n"
        "make(Recipe(Path(sys.argv[1]), 1, 30, Path(sys.argv[2])), Path(sys.argv[3]), print)"
    )
    maker = subprocess.Popen(
        [sys.executable, "-c", program, recipe.folder, recipe.wheels, slow],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.DEVNULL,
        process_group=0,
    )
    while not (tmp_path / "began").exists():
        assert maker.poll() is None
        time.sleep(0.01)
    maker.kill()
    maker.wait()
    with recipe.folder.with_name(f"{recipe.folder.name}.lock").open("w") as lock, pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.killpg(maker.pid, signal.SIGKILL)  # the step is left of the group
    assert version_in(make(recipe, SELF, print)) == "1.0"


# --- the training environment


def fake(path: Path, says: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{says}\n")
    path.chmod(0o755)
    return path


def test_the_first_python_3_11_that_runs_is_taken(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    broken = fake(tmp_path / "a" / "python3.11", "echo 'command not found' >&2; exit 127")
    newer = fake(tmp_path / "b" / "python3.11", "echo 3 13")
    right, later = (fake(tmp_path / name / "python3.11", "echo 3 11") for name in "cd")
    assert interpreter([missing, broken, newer, right, later]) == right


def test_the_running_python_comes_first_then_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = [fake(tmp_path / name / "python3.11", "echo 3 11") for name in "ab"]
    fake(tmp_path / "c" / "python3.12", "echo 3 12")
    monkeypatch.setenv("PATH", ":".join(str(tmp_path / name) for name in "acb"))
    assert list(candidates()) == [SELF, *ours]


def test_without_python_3_11_it_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(TrainingEnvironmentError, match=r"apt-get install python3\.11-venv"):
        interpreter([fake(tmp_path / "python3.11", "echo 3 12")])


def test_it_is_told_where_it_goes_by_a_variable_the_checkout_or_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(__file__).parents[1]
    monkeypatch.delenv(VARIABLE, raising=False)
    assert default_folder() == root / ".venv-t2t"
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    assert default_folder() == tmp_path
    shutil.copytree(root / "models", tmp_path / "site" / "models", ignore=shutil.ignore_patterns("__pycache__"))
    installed = subprocess.run(
        [sys.executable, "-c", "from models.training_environment import default_folder; print(default_folder())"],
        cwd=tmp_path / "site",
        env={"XDG_CACHE_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=True,
    )
    locks = (root / "models" / "t2t" / "requirements.txt", root / "models" / "t2t" / "requirements-source.txt")
    assert Path(installed.stdout.strip()) == tmp_path / "cache" / "gridsense" / f"t2t-{digest(locks)[:12]}"


@pytest.mark.skipif(
    (sys.platform, platform.machine()) != PLATFORM, reason="Tensor2Tensor's lock is for Linux on x86_64"
)
@pytest.mark.skipif(sys.version_info[:2] != VERSION, reason="only this Python is sure to be there")
def test_it_says_what_it_downloads_and_why_it_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    said: list[str] = []
    with pytest.raises(TrainingEnvironmentError, match=f"No matching distribution found.*{VARIABLE}=FOLDER"):
        python_of(tmp_path / "environment", said.append)
    assert re.match(r"making \S+: \d{2,3} packages, about 550 MB to download .*, about 2,300 MB on disk", said[0])


@pytest.mark.skipif((sys.platform, platform.machine()) == PLATFORM, reason="here it can be made")
def test_on_another_platform_it_says_which_it_takes(tmp_path: Path) -> None:
    with pytest.raises(TrainingEnvironmentError, match="locked for linux on x86_64"):
        python_of(tmp_path / "environment", print)
