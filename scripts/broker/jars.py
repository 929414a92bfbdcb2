"""The jars of Apache Kafka, from Maven Central: resolved once, by `pom.xml`, and checked by `jars.sha256`.

In: Java 17 or later on the machine, and Maven the first time. Out: a folder of jars in `.cache/kafka`, and the program
that runs them. Several processes may ask at once, one resolves; afterwards no network is needed.
`python scripts/broker/jars.py` prints the folder; with `lock` behind it, it writes `jars.sha256` anew.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
POM = HERE / "pom.xml"
LOCK = HERE / "jars.sha256"
CACHE = HERE.parents[1] / ".cache" / "kafka"
JAVA_VERSION = 17
"""The oldest that Kafka 4 runs on."""
PATIENCE_S = 600.0
"""How long Maven may take to download 43 MB."""

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class KafkaMissingError(Exception):
    """No broker can be had on this machine; the message says what is missing."""


def java() -> Path:
    """Find Java.

    Returns
    -------
    Path
        The program.

    Raises
    ------
    KafkaMissingError
        If there is none, or only one that is too old.
    """
    home = os.environ.get("JAVA_HOME")
    found = shutil.which("java", path=f"{home}/bin") if home else shutil.which("java")
    wanted = f"Kafka needs Java {JAVA_VERSION} or later (on Debian: apt-get install openjdk-17-jre-headless)"
    if not found:
        raise KafkaMissingError(f"no java{f' in {home}/bin' if home else ''}: {wanted}")
    said = subprocess.run([found, "-version"], capture_output=True, text=True, check=False).stderr
    version = re.search(r'version "(?:1\.)?(\d+)', said)
    if not version or int(version[1]) < JAVA_VERSION:
        raise KafkaMissingError(f"{found} is {said.splitlines()[0] if said else 'no Java'}: {wanted}")
    return Path(found)


def jars() -> Path:
    """Find the jars, or download them.

    Returns
    -------
    Path
        The folder that holds them.

    Raises
    ------
    KafkaMissingError
        If they cannot be had: Maven is missing or fails, or they are other than the lock says.
    """
    folder = CACHE / hashlib.sha256(POM.read_bytes() + LOCK.read_bytes()).hexdigest()[:16]
    if folder.is_dir():
        return folder
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            half = _resolved()
            if (is_now := digests(half)) != LOCK.read_text(encoding="utf-8"):
                differing = {line.split()[-1] for line in set(is_now.splitlines()) ^ set(LOCK.read_text().splitlines())}
                raise KafkaMissingError(
                    f"the jars that Maven brought are not those of {LOCK.name}: {', '.join(sorted(differing))};"
                    f" if {POM.name} was changed on purpose: python scripts/broker/jars.py lock"
                )
            half.rename(folder)  # what stands there is whole
    return folder


def digests(folder: Path) -> str:
    """Say what tells these jars from others.

    Parameters
    ----------
    folder
        Holds them.

    Returns
    -------
    str
        Lines as `sha256sum` prints them.
    """
    return "".join(f"{hashlib.sha256(j.read_bytes()).hexdigest()}  {j.name}\n" for j in sorted(folder.glob("*.jar")))


def _resolved() -> Path:
    """Have Maven bring the jars into a folder that is nobody's yet."""
    maven = shutil.which("mvn")
    if not maven:
        raise KafkaMissingError("no mvn: Kafka's jars are had by Maven (on Debian: apt-get install maven)")
    java()
    half = CACHE / "half"
    shutil.rmtree(half, ignore_errors=True)
    print("resolving Kafka from Maven Central: 43 MB, once ...", file=sys.stderr, flush=True)
    command = [
        maven, "--batch-mode", "--quiet", "--strict-checksums", "--file", str(POM), "dependency:copy-dependencies",
        f"-DoutputDirectory={half}", "-DincludeScope=runtime",
    ]  # fmt: skip
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=PATIENCE_S
        )
    except subprocess.TimeoutExpired as error:
        raise KafkaMissingError(f"Maven did not bring Kafka's jars within {PATIENCE_S:.0f} s") from error
    if done.returncode:
        errors = [line for line in done.stdout.splitlines() if "ERROR" in line] or [done.stdout + done.stderr]
        raise KafkaMissingError(f"Maven cannot bring Kafka's jars: {_COLOUR.sub('', errors[0]).strip()}")
    return half


if __name__ == "__main__":
    try:
        if sys.argv[1:] == ["lock"]:
            LOCK.write_text(digests(_resolved()), encoding="utf-8")
        print(jars())
    except KafkaMissingError as error:
        sys.exit(f"error: {error}")
