"""Every command on a secured Kafka: right credentials work, wrong ones are told in a sentence and by the exit code.

`scripts/check/secure_kafka.py` does the same more thoroughly.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from kafka.admin import ACLOperation, ResourceType

from gridsense.cli import EXIT_OK, EXIT_PEER, run
from scripts.broker.cluster import Cluster
from scripts.check.secure_kafka import (
    COMMANDS,
    GATEWAY,
    NOBODY,
    RIGHTS,
    Right,
    Site,
    Way,
    refusal,
    try_rights,
    ways_in,
    ways_out,
)

OUT = (
    "wrong password",
    "unknown user",
    "expired token",
    "unknown authority",
    "no certificate",
    "in the clear",
    "no rights",
    NOBODY,
)
REFUSED = [(way, command) for way in OUT for command in COMMANDS if (way, command) != (NOBODY, GATEWAY)]


@pytest.fixture(scope="module")
def site(secure_kafka: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Topics with a minute of frames in them, and a device that sends."""
    with Site(secure_kafka, tmp_path_factory.mktemp("secured"), "secured-line.").open() as opened:
        yield opened


@pytest.fixture(scope="module")
def wrong(site: Site) -> dict[str, Way]:
    ways = {way.name: way for way in ways_out(site.cluster, site.folder)}
    assert tuple(ways) == OUT
    return ways


@pytest.mark.parametrize(("name", "command"), REFUSED)
def test_who_is_refused_is_told_where_and_as_whom_and_what_to_change(  # noqa: PLR0917 (two of them are the case)
    name: str,
    command: str,
    site: Site,
    wrong: dict[str, Way],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(site.place(command, wrong[name]))
    status = run(COMMANDS[command])
    told = capfd.readouterr()
    assert refusal(wrong[name], status, (told.out + told.err).splitlines(), site.secrets) == []


def test_a_gateway_goes_on_where_nobody_is(site: Site, wrong: dict[str, Way]) -> None:
    assert site.attempt(GATEWAY, wrong[NOBODY]).wrong == []


@pytest.mark.parametrize("command", COMMANDS)
def test_who_has_the_rights_of_its_service_and_no_others_can_do_its_work(command: str, site: Site) -> None:
    assert [one.wrong for one in try_rights(site, [command], print, withdraw=False)] == [[]]


def test_without_a_right_it_is_told_which_topic(site: Site) -> None:
    lacking = [right for right in RIGHTS["archive"] if not right.name.startswith("pmu.frames")]
    with site.allowed("lacking", lacking) as way:
        came = site.perform("archive", way)
    assert (came.status, came.worked) == (EXIT_PEER, False)
    assert "pmu.frames: no right to do this" in came.said[-1]


def test_settings_of_topics_that_are_not_shown_are_no_difference(site: Site) -> None:
    lacking = [right for right in RIGHTS["topics check"] if right.operation != ACLOperation.DESCRIBE_CONFIGS]
    with site.allowed("lacking", lacking) as way:
        came = site.perform("topics check", way)
    assert (came.status, came.complains) == (EXIT_PEER, True)


def test_a_processor_that_may_not_begin_ends(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    lacking = [right for right in RIGHTS["run"] if right.kind != ResourceType.GROUP]
    with site.allowed("lacking", lacking) as way:
        monkeypatch.chdir(site.place("run", way))
        assert run(["run", "--once"]) == EXIT_PEER


@pytest.mark.parametrize("n", range(3))
def test_by_password_certificate_and_token_all_get_in(n: int, site: Site) -> None:
    way = ways_in(site.cluster)[n]
    assert site.perform("watch", way).fine
    assert site.perform("topics check", way).fine


def test_what_a_refusal_must_say_is_held() -> None:
    way = Way("", "127.0.0.1:1", "", ("as me", "kafka.password_file"))
    sentence = "kafka 127.0.0.1:1 as me: check kafka.password_file"
    assert refusal(way, EXIT_PEER, [sentence], ["secret"]) == []
    assert refusal(way, EXIT_OK, [sentence], []) == ["exit code 0, not 4"]
    assert refusal(way, EXIT_PEER, ["kafka: no"], []) == [
        "it does not say '127.0.0.1:1'",
        "it does not say 'as me'",
        "it does not say 'kafka.password_file'",
    ]
    assert refusal(way, EXIT_PEER, ["the secret", sentence], ["secret"]) == ["it shows a secret"]
    assert refusal(way, EXIT_PEER, ["Traceback (most recent", sentence], []) == ["it shows a traceback"]


def test_who_may_alter_topics(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    alters = Right(ResourceType.TOPIC, "pmu.", ACLOperation.ALTER_CONFIGS, prefixed=True)
    rights = {*RIGHTS["topics create"], *RIGHTS["topics check"]}
    words = ["topics", "create", "--alter", "--set", "kafka.scores_retention=5h"]
    with site.allowed("alters", [*rights]) as way:
        monkeypatch.chdir(site.place("topics create", way))
        assert run(words[:2]) == EXIT_OK
        assert run(words) == EXIT_PEER
    with site.allowed("alters", [*rights, alters]):
        assert run(words) == EXIT_OK
        assert run(["topics", "check", *words[3:]]) == EXIT_OK


COLUMNS = (
    (ResourceType.TOPIC, ACLOperation.READ),
    (ResourceType.TOPIC, ACLOperation.WRITE),
    (ResourceType.GROUP, ACLOperation.READ),
    (ResourceType.TRANSACTIONAL_ID, ACLOperation.WRITE),
)


def test_operators_read_the_rights_that_were_tried() -> None:
    lines = (Path(__file__).parents[1] / "deploy" / "kafka" / "README.md").read_text().splitlines()
    for command, rights in RIGHTS.items():
        (row,) = [line for line in lines if line.startswith(f"| `gridsense {command}`")]
        cells = row.strip("|").split("|")[1:]
        names = {f"{right.name}{'*' if right.prefixed else ''}" for right in rights}
        if command.startswith("topics"):
            assert {"pmu.*"} == set(re.findall("`([^`]+)`", row)[-1:]) == names
            told = {
                operation.replace("Configs", "_Configs").upper() for operation in re.findall("[A-Z][A-Za-z]+", cells[0])
            }
            assert told == {right.operation.name for right in rights}
            continue
        for cell, (kind, operation) in zip(cells, COLUMNS, strict=True):
            wanted = {
                f"{right.name}{'*' if right.prefixed else ''}"
                for right in rights
                if (right.kind, right.operation) == (kind, operation)
            }
            assert set(re.findall("`([^`]+)`", cell)) == wanted
        assert {(right.kind, right.operation) for right in rights} <= set(COLUMNS)
