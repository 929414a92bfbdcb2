"""Processors of a Kafka group killed and put to sleep, brokers too: nothing lost or doubled; and the check can fail."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts.check.kill_kafka import main
from scripts.faults.kafka import Commit, back, merged, overtaken, regional
from streams.log import Entry, Record

S = 10**9


def figures(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    """What the check found; it found nothing wrong."""
    status = main([*arguments, "--json"])
    said = capsys.readouterr()
    assert status == 0, said.out + said.err
    found: dict[str, object] = json.loads(said.out.splitlines()[-1])
    assert [found[name] for name in ("lost", "doubled", "differing", "unraised")] == [0, 0, 0, 0]
    assert found["frames_logged"] == found["frames_sent"]
    assert isinstance(found["changes"], int)
    assert found["changes"] > 0
    return found


@pytest.mark.slow
def test_five_kills_lose_and_double_nothing(
    kafka_can_run: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    del kafka_can_run
    found = figures(["--quick", "--seed", "3", "--keep", str(tmp_path / "line")], capsys)
    assert isinstance(found["kills"], dict)
    assert sum(found["kills"].values()) >= 5
    assert found["brokers"]


@pytest.mark.slow
def test_who_wakes_after_its_partitions_moved_commits_nothing_there(
    kafka_can_run: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    del kafka_can_run
    found = figures(["--fencing", "--quick", "--keep", str(tmp_path / "line")], capsys)
    assert (found["sleeps"], found["late"]) == (1, [])
    assert isinstance(found["moves"], int)
    assert found["moves"] > 0
    assert found["fenced"]


def test_a_group_that_goes_back_is_told() -> None:
    first, second = Commit("gridsense", 0, 10, "a", "1"), Commit("gridsense", 0, 12, "b", "1")
    assert back([first, second, second, Commit("gridsense", 1, 3, "a", "2")]) == []
    assert back([second, first]) == ["gridsense went back in partition 0 from 12 to 10"]


def test_who_was_overtaken_is_known() -> None:
    mine, other = Commit("gridsense", 0, 10, "a", "1"), Commit("gridsense", 1, 5, "b", "1")
    assert overtaken([mine, other], [mine, other, mine._replace(offset=11), other._replace(offset=7)]) == {}
    assert overtaken([mine, other], [mine, other, mine._replace(offset=12, member="b")]) == {0: "a"}


def test_partitions_are_merged_by_arrival_and_keep_their_order() -> None:
    one = [Entry(3, 5 * S, "north/a", b"1"), Entry(7, 2 * S, "north/a", b"2"), Entry(8, 9 * S, "north/a", b"3")]
    other = [Entry(0, 1 * S, "south/b", b"4"), Entry(1, 6 * S, "south/b", b"5")]
    ends: dict[int, int] = {}
    assert [record.value for record in merged([one, other, []], ends)] == [b"4", b"1", b"2", b"5", b"3"]
    assert ends == {0: 8, 1: 1, 2: -1}
    assert next(iter(merged([one], ends))) == Record(5 * S, "north/a", b"1")


def test_each_connection_becomes_a_region() -> None:
    told = '[[gateway.connections]]\nname = "NEPOOL"\nport = 1\n\n[[gateway.connections]]\nname = "PJM"\nport = 2\n'
    connections, regions = regional(told)
    assert regions == ["NEPOOL", "PJM"]
    assert 'name = "NEPOOL"\nregion = "NEPOOL"\nport = 1' in connections
