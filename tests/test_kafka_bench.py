"""The benchmark of the line on Kafka: what it counts is there, what it must refuse to call held it refuses."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gridsense.config import load
from scripts.bench.kafka import (
    KAFKA_PYTHON,
    Measured,
    Setup,
    Written,
    configuration,
    divided,
    lags,
    look_for_most,
    main,
)
from scripts.bench.live import Load
from scripts.check import soak
from scripts.spending import Spending
from streams.kafka.partitions import partition_of

GOOD = Measured(
    connections=10,
    pmus=3000,
    seconds=120.0,
    sent_s=300.0,
    received_s=300.0,
    frames_s=(150.0, 150.0),
    p50_ms=300.0,
    p99_ms=450.0,
    worst_ms=700.0,
    lag_s=0.2,
    growth_s=0.05,
    waiting_bytes=0,
    share={},
    rss_mib={},
    written=Written(3000, 600, 1.0, 0.2),
)
CONNECTIONS = "".join(f'[[gateway.connections]]\nname = "pdc{n}"\nport = {4712 + n}\n\n' for n in range(6))


@pytest.mark.slow
@pytest.mark.usefixtures("kafka_can_run")
def test_a_small_load_is_measured_end_to_end(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--quick", "--json", "--profile", "--pmus", "40"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    (load,) = told["loads"]
    assert load["pmus"] == load["written"]["pmus"] == 40
    assert load["written"]["ticks"] > 5
    assert load["written"]["share"] > 0.5
    assert sum(load["frames_s"]) > 0
    assert 0 < load["p50_ms"] <= load["p99_ms"] <= load["worst_ms"]
    assert set(load["share"]) == {"simulator", "processor-1", "gateway", "broker", "benchmark", "others", "the host"}
    assert set(told["kafka_python_share"]) == {"gateway", "processor-1"}
    assert all(0 < share < 1 for share in told["kafka_python_share"].values())


def test_what_is_not_held_is_not_called_so() -> None:
    assert GOOD.sustained
    assert GOOD.held
    late = replace(GOOD, p99_ms=501.0)
    assert late.sustained
    assert not late.held
    for fault in (
        replace(GOOD, growth_s=0.4),
        replace(GOOD, lag_s=1.5),
        replace(GOOD, frames_s=(150.0, 140.0)),
        replace(GOOD, written=Written(2990, 600, 1.0, 0.2)),
        replace(GOOD, written=Written(3000, 600, 0.9, 0.2)),
        replace(GOOD, written=Written(3000, 600, 1.0, 1.4)),
    ):
        assert not fault.sustained


def test_lag_is_that_of_the_partition_where_it_is_most() -> None:
    at_s = [float(t) for t in range(0, 120, 2)]
    steady = [(t, [round(100 * t), round(100 * t)], [round(100 * t) - 20, round(100 * t) - 20]) for t in at_s]
    assert lags(steady) == pytest.approx((0.2, 0.0), abs=1e-6)
    behind = [(t, ends, [done[0], round(95 * t)]) for t, ends, done in steady]
    lag_s, growth_s = lags(behind)
    assert lag_s == pytest.approx(0.05 * 114, rel=0.01)
    assert growth_s == pytest.approx(0.05 * 118, rel=0.01)
    silent = [(t, [ends[0], 7], [done[0], 0]) for t, ends, done in steady]
    assert lags(silent) == pytest.approx((0.2, 0.0), abs=1e-6)


def test_pmus_are_divided_among_concentrators() -> None:
    assert divided(3000, "concentrator") == Load(10, 300)
    assert divided(1000, "concentrator") == Load(4, 250)
    assert divided(100, "concentrator") == Load(1, 100)
    assert divided(500, "pmu") == Load(500, 1)


def test_processors_that_share_a_load_have_regions_in_partitions_of_their_own(tmp_path: Path) -> None:
    def read(setup: Setup) -> tuple[list[str], tuple[str, ...], int]:
        path = tmp_path / "gridsense.toml"
        path.write_text(configuration("127.0.0.1:9092", setup, "p.", "processor-1", CONNECTIONS))
        config = load(path).config
        return [one.key for one in config.gateway.connections], config.kafka.regions, config.kafka.partitions

    keys, regions, partitions = read(Setup(("quadratic",), processors=2))
    assert [partition_of(key, partitions, regions) for key in keys] == [0, 1, 2, 3, 0, 1]
    keys, regions, partitions = read(Setup(("quadratic",)))
    assert (keys, regions, partitions) == ([f"pdc{n}" for n in range(6)], (), 1)


@pytest.mark.parametrize(
    ("sustained", "held", "tried"), [(2400, 2400, [3000, 2700, 2400]), (3600, 3300, [3000, 3300, 3600, 3900])]
)
def test_the_most_is_looked_for(sustained: int, held: int, tried: list[int]) -> None:
    seen: list[int] = []

    def run(pmus: int) -> Measured:
        seen.append(pmus)
        growth_s, p99_ms = (0.0 if pmus <= sustained else 9.0), (400.0 if pmus <= held else 600.0)
        return replace(GOOD, growth_s=growth_s, p99_ms=p99_ms)

    look_for_most(3000, 300, run)
    assert seen == tried


def test_time_is_put_to_the_innermost_stage(tmp_path: Path) -> None:
    class Outer:
        def work(self, then: Callable[[], object]) -> None:
            burn()
            then()

    class Inner:
        def work(self) -> None:
            burn()
            burn()

    def burn() -> None:
        until_s = time.thread_time() + 0.01
        while time.thread_time() < until_s:
            pass

    spending = Spending(tmp_path / "spent.json", (("helper", KAFKA_PYTHON),))
    spending.watch(Outer, "outer")
    spending.watch(Inner, "inner", "work")
    ended, burnt = threading.Event(), threading.Event()
    helper = threading.Thread(target=lambda: (Inner().work(), burnt.set(), ended.wait()), name="helper-1")
    spending._begin(0, None)
    helper.start()
    for _ in range(10):
        Outer().work(Inner().work)
    burnt.wait()
    spending._end(0, None)
    ended.set()
    helper.join()
    spent = {(stage, thread): s for stage, thread, s in json.loads((tmp_path / "spent.json").read_text())}
    assert spent["outer", "MainThread"] == pytest.approx(0.1, rel=0.2)
    assert spent["inner", "MainThread"] == pytest.approx(0.2, rel=0.2)
    assert spent[KAFKA_PYTHON, "helper"] == pytest.approx(0.02, rel=0.3)
    assert ("inner", "helper") not in spent


def test_a_soak_on_kafka_judges_our_processes_and_not_the_broker() -> None:
    flat = {name: np.full(100, 1.0) for name in ("lag_s", "behind")}
    slopes = {"processor-1_mib": 1.0, "processor-1_handles": 0.0, "broker_mib": 900.0, "broker_handles": 90.0}
    assert soak.broken(slopes, flat, 120.0, 120.0) == []
    assert soak.broken(slopes | {"gateway_mib": 70.0, "gateway_handles": 5.0}, flat, 100.0, 120.0) == [
        "gateway_mib",
        "gateway_handles",
        "frames",
    ]
    assert soak.broken(slopes, flat | {"lag_s": np.full(100, 1.1), "behind": np.full(100, 250.0)}, 120.0, 120.0) == [
        "lag_s",
        "behind",
    ]
