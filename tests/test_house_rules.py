"""The house: one distribution owns four names, the wheel holds them, the locks name nobody, the Makefile tells all."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from gridsense.cli import app

ROOT = Path(__file__).parents[1]
ROOMS = ("baselines", "gridsense", "models", "streams")
MAY_IMPORT = {
    "streams": {"comtrade", "numpy", "pyarrow", "dpkt", "fastcrc", "kafka", "msgspec"},
    "baselines": {"numpy", "scipy"},
    "models": {"numpy", "array_api_compat", "safetensors"},
    "gridsense": {
        "numpy",
        "scipy",
        "pyarrow",
        "msgspec",
        "rich",
        "cyclopts",
        "matplotlib",
        "prometheus_client",
        "pydantic",
        "safetensors",
        "structlog",
        "streams",
        "baselines",
        "models",
    },
}
DISTRIBUTIONS = {"kafka": "kafka-python"}
"""By the name that is imported, the name that is declared, where it is another."""
OPTIONAL_IN = {"models/engines.py": {"jax"}, "models/saved_model.py": {"tensorflow"}}
"""What an extra of the project brings."""
TRAINING = ROOT / "models" / "t2t"
"""Runs in an environment of its own: it knows nothing of ours, and nothing of ours imports it."""
MAY_IMPORT_TO_TRAIN = {
    "PIL": "pillow",
    "numpy": "numpy",
    "tensor2tensor": "tensor2tensor",
    "tensorflow": "tensorflow-cpu",
}
"""By the name that is imported, the name that is pinned."""
LOCKS = (
    "requirements.txt",
    "requirements-dev.txt",
    "requirements-engines.txt",
    "requirements-tools.txt",
    "models/t2t/requirements.txt",
    "models/t2t/requirements-source.txt",
)


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout: cannot tell which files belong to the project")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def texts() -> list[tuple[str, str]]:
    found = []
    for path in tracked():
        try:
            found.append((str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")))
        except UnicodeDecodeError:
            continue
    return found


@pytest.mark.skipif(not os.environ.get("CI"), reason="only CI must have tshark; elsewhere its tests skip")
def test_ci_compares_with_tshark() -> None:
    assert shutil.which("tshark"), ".ci/run installs tshark, so that the tests that compare with it are not skipped"


def test_the_four_names_come_from_this_distribution_alone() -> None:
    owners = importlib.metadata.packages_distributions()
    for name in ROOMS:
        if not owners.get(name):  # an editable install maps the names without listing files
            spec = importlib.metadata.distribution("gridsense-pmu").read_text("direct_url.json")
            assert spec is not None, "run `make setup`: the project is not installed"
        assert set(owners.get(name, ["gridsense-pmu"])) == {"gridsense-pmu"}, name


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--no-deps",
            "--no-build-isolation",
            "-w",
            str(folder),
            str(ROOT),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_holds_the_four_packages_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
        metadata = file.read(next(n for n in names if n.endswith("METADATA"))).decode()
        entries = file.read(next(n for n in names if n.endswith("entry_points.txt"))).decode()
    tops = {n.split("/")[0] for n in names}
    assert {t for t in tops if not t.endswith(".dist-info")} == set(ROOMS)
    assert any(n.endswith("licenses/LICENSE") for n in names)
    assert "gridsense = gridsense.cli:main" in entries
    assert "License-Expression: Apache-2.0" in metadata
    assert not [n for n in names if "test" in n.split("/")[0] or n.endswith((".pyc", ".ipynb"))]
    kinds = ("*.py", "requirements*.txt")
    for path in (p for room in ROOMS for kind in kinds for p in (ROOT / room).rglob(kind)):
        assert path.relative_to(ROOT).as_posix() in names


def test_the_wheel_alone_makes_the_names(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        file.extractall(tmp_path)
    program = (
        "import importlib.util as u, importlib.metadata as m, sys\n"
        f"for name in {ROOMS!r}: assert u.find_spec(name).origin.startswith(sys.path[0]), name\n"
        "assert m.version('gridsense-pmu')\n"
        f"assert {{k for k, v in m.packages_distributions().items() if 'gridsense-pmu' in v}} == set({ROOMS!r})\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{program}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def imported(path: Path) -> set[str]:
    """The modules that a file imports absolutely, anywhere in it."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    froms = [n for n in nodes if isinstance(n, ast.ImportFrom) and n.module and not n.level]
    return plain | {f"{n.module}.{alias.name}" for n in froms for alias in n.names}


@pytest.mark.parametrize("room", ROOMS)
def test_each_room_imports_only_what_it_may(room: str) -> None:
    strangers = {}
    for path in (ROOT / room).rglob("*.py"):
        name = path.relative_to(ROOT).as_posix()
        if path.is_relative_to(TRAINING):
            allowed = set(MAY_IMPORT_TO_TRAIN)
        else:
            allowed = MAY_IMPORT[room] | OPTIONAL_IN.get(name, set()) | {room}
            assert not [m for m in imported(path) if f"{m}.".startswith("models.t2t.")], name
        if strange := {m.split(".")[0] for m in imported(path)} - sys.stdlib_module_names - allowed:
            strangers[name] = strange
    assert strangers == {}


def names_of(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[<>=~; ]", r)[0].lower().replace("_", "-") for r in requirements}


def test_what_the_rooms_import_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    optional = names_of(extras["plot"] + extras["jax"] + extras["tensorflow"]) - {"tensorflow-cpu"}
    used = set().union(*MAY_IMPORT.values(), *OPTIONAL_IN.values()) - set(ROOMS)
    assert {DISTRIBUTIONS.get(name, name).replace("_", "-") for name in used} == names_of(
        project["dependencies"]
    ) | optional


def test_what_training_imports_is_pinned_for_it() -> None:
    pins = names_of((TRAINING / "requirements.in").read_text().splitlines())
    assert set(MAY_IMPORT_TO_TRAIN.values()) <= pins


def test_no_module_is_called_after_nothing() -> None:
    vague = {"utils", "util", "helpers", "helper", "manager", "managers", "data", "common", "misc"}
    assert [p for p in tracked() if p.suffix == ".py" and p.stem in vague] == []


def test_nothing_names_a_registry_or_this_machine() -> None:
    # spelt apart, so that this file does not name them itself
    hosts = [
        a + b for a, b in (("pypi", ".org"), ("pythonhosted", ".org"), ("registry.npm", "js.org"), ("/opt/", "wheels"))
    ]
    places = [a + b for a, b in (("/wo", "rk/"), ("/ro", "ot/"), ("/home/", "runner"))]
    named = [(name, word) for name, text in texts() for word in (*hosts, *places) if word in text]
    assert named == []


def test_the_locks_hold_hashes_and_cover_the_project() -> None:
    for lock in LOCKS:
        text = (ROOT / lock).read_text()
        pins = re.findall(r"^([a-z0-9._-]+)==\S+ (?:; .+ )?\\$", text, re.MULTILINE)
        assert pins
        assert not re.search(r"^(?!\s|#|[a-z0-9._-]+==)", text.strip(), re.MULTILINE), "a line that is no pin"
        for block in re.split(r"^(?=[a-z])", text, flags=re.MULTILINE)[1:]:
            assert "--hash=sha256:" in block
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    engines = [d for d in extras["jax"] + extras["tensorflow"] if "!=" not in d]  # the lock is made on Linux, x86_64
    for lock, wanted in (
        ("requirements.txt", project["dependencies"]),
        ("requirements-dev.txt", project["dependencies"] + extras["dev"]),
        ("requirements-engines.txt", project["dependencies"] + engines),
    ):
        assert names_of(wanted) <= set(pins_of(lock)), f"{lock}: run make lock"


def pins_of(lock: str) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9._-]+)==(\S+)", (ROOT / lock).read_text(), re.MULTILINE))


def test_the_locks_agree() -> None:
    runtime, everything, engines = map(
        pins_of, ("requirements.txt", "requirements-dev.txt", "requirements-engines.txt")
    )
    assert {k: everything[k] for k in runtime} == runtime
    assert {k: engines[k] for k in runtime} == runtime
    assert {k: engines[k] for k in everything if k in engines} == {k: v for k, v in everything.items() if k in engines}


def test_the_training_lock_is_pinned_by_its_input() -> None:
    asked = dict(
        re.findall(
            r"^([A-Za-z0-9._-]+)==(\S+)",
            "".join((TRAINING / f"requirements{part}.in").read_text() for part in ("", "-source")),
            re.MULTILINE,
        )
    )
    locked = pins_of("models/t2t/requirements.txt") | pins_of("models/t2t/requirements-source.txt")
    assert {k: locked[k] for k in asked} == asked
    assert set(locked) - set(asked) == {"setuptools", "wheel"}  # they build; any that can will do
    assert set(pins_of("models/t2t/requirements-source.txt")) == names_of(
        [r for r in (TRAINING / "requirements-source.in").read_text().splitlines() if not r.startswith("#")]
    )


def test_every_target_is_in_the_help() -> None:
    text = (ROOT / "Makefile").read_text()
    phony = set(re.findall(r"^\.PHONY: (.*)$", text, re.MULTILINE)[0].split())
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {line.split()[1] for line in shown.splitlines() if line.strip()} == phony
    assert phony == {
        "help",
        "setup",
        "demo",
        "test",
        "lint",
        "types",
        "format",
        "train",
        "bench",
        "check",
        "lock",
        "clean",
    }


def test_the_commands_of_the_readme_exist() -> None:
    text = (ROOT / "README.md").read_text()
    targets = set(re.findall(r"^\s*(?:\$ )?make ([a-z]+)", text, re.MULTILINE))
    assert {"demo", "test"} <= targets
    makefile = (ROOT / "Makefile").read_text()
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    commands = set(re.findall(r"gridsense ([a-z][a-z-]*)", "\n".join(re.findall(r"^ {4}.*$", text, re.MULTILINE))))
    assert commands
    assert commands <= {name for name in app if not name.startswith("-")}
    for path in re.findall(r"\b((?:scripts|docs|deploy)/[\w./-]+\.\w+)", text):
        assert (ROOT / path).exists(), path


def test_ci_calls_the_test_command_of_the_readme() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
    assert "exec make test" in script.read_text()


def test_the_licence_is_apache_2() -> None:
    words = " ".join((ROOT / "LICENSE").read_text().split())
    assert words.startswith("Apache License Version 2.0, January 2004")
    assert "END OF TERMS AND CONDITIONS" in words


def test_the_changelog_knows_the_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    text = (ROOT / "CHANGELOG.md").read_text()
    assert "## Unreleased" in text or f"## {version}" in text
