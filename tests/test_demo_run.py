"""The demo: it ends by itself with the truth about what was found, and its frames really travel as bytes."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from gridsense import cli
from gridsense.demo import show
from gridsense.demo.wire import Recording, Wire, read_recording
from gridsense.encoding import made_encoder
from gridsense.errors import InputError, UsageError
from gridsense.events import Cause, rfc3339
from streams.archives import join_parquet, write_parquet
from streams.block import FrameBatch
from streams.c37118.configuration import channel_table
from streams.channels import Channel, ChannelTable, Pmu, Quantity

S = 1_000_000_000
BEGIN = 1_772_366_400 * S
RATE = 30
FAULT_S = 8.5
CHANNELS = (
    Channel("V1", Quantity.VOLTAGE_MAGNITUDE, unit="V"),
    Channel("V1", Quantity.VOLTAGE_ANGLE, unit="deg"),
    Channel("I1", Quantity.CURRENT_MAGNITUDE, unit="A"),
    Channel("I1", Quantity.CURRENT_ANGLE, unit="deg"),
    Channel("frequency", Quantity.FREQUENCY, unit="Hz", nominal=60.0),
    Channel("rocof", Quantity.ROCOF, unit="Hz/s", nominal=0.0),
)


def batches(seconds: int, begin_ns: int, fault_s: float | None, seed: int) -> list[FrameBatch]:
    random = np.random.default_rng(seed)
    time_ns = begin_ns + np.arange(seconds * RATE) * S // RATE
    out = []
    for n, source in enumerate(("NORTH", "SOUTH")):
        pmus = tuple(Pmu(f"{source} {i}", 100 * n + i, f"{source} {i}", 60, CHANNELS, source) for i in range(1, 5))
        shape = (len(time_ns), len(pmus), len(CHANNELS))
        values = random.normal([2e5, 10.0, 800.0, -5.0, 60.0, 0.0], [20.0, 0.002, 0.1, 0.003, 2e-4, 0.01], shape)
        if fault_s is not None:
            values[round(fault_s * RATE) : round(fault_s * RATE) + 4, :, 0] *= 0.6
        stat, flags = np.zeros(shape[:2], np.uint16), np.zeros(len(time_ns), np.uint8)
        out.append(FrameBatch(ChannelTable(pmus), RATE, time_ns, flags, stat, values.astype(np.float32), time_ns))
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Streams of a quarter of a minute with one fault, after a minute and a half of nothing."""
    place = tmp_path_factory.mktemp("demo")
    for name, sources in (
        (show.AMBIENT, batches(90, BEGIN - 200 * S, None, 1)),
        (show.STREAM, batches(15, BEGIN, FAULT_S, 2)),
    ):
        parts = [place / f"{batch.table.pmus[0].source}.{name}" for batch in sources]
        for part, batch in zip(parts, sources, strict=True):
            write_parquet(part, [batch])
        join_parquet(parts, place / name)
    at = rfc3339(BEGIN + round(FAULT_S * S))
    labels = [
        {"kind": "fault", "cause": "grid", "onset": at, "end": None, "element": "bus 1", "pmus": []},
        {
            "kind": "stuck",
            "cause": "data",
            "onset": rfc3339(BEGIN + 60 * S),
            "end": None,
            "element": "x",
            "pmus": ["x"],
        },
    ]
    (place / show.LABELS).write_text(json.dumps(labels))
    return place


def plain() -> Console:
    return Console(file=io.StringIO(), width=120)


def text(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_small_grid_is_learned_watched_and_judged(folder: Path) -> None:
    console = plain()
    outcome = show.run(console, 0, folder)
    assert outcome is not None
    assert outcome.whole
    assert [f.event is not None for f in outcome.grid] == [True]
    assert outcome.verdict.false_grid == ()
    assert outcome.measurement == (), "what the stream did not reach is not judged"
    assert 0 < outcome.grid[0].delay_s < 1
    event = outcome.grid[0].event
    assert event is not None
    assert outcome.shown_ns[event.id] > event.raised_ns
    assert event.id in outcome.sightings
    out = text(console)
    assert "seen first" in out
    assert "\x1b" not in out
    assert [line.split()[1] for line in out.splitlines() if " GRID " in line] == ["raised"], "it lasts to the end"
    assert "1 of 1 found" in out


def test_frames_travel_over_tcp(folder: Path) -> None:
    outcome = show.run(plain(), 0, folder)
    assert outcome is not None
    assert outcome.frames_sent == outcome.frames_received == 2 * 15 * RATE
    assert outcome.refused == 0
    assert outcome.bytes_sent == 2 * 15 * RATE * (16 + 4 * 26)


def test_what_arrives_is_what_was_recorded(folder: Path) -> None:
    recording = read_recording(folder / show.STREAM)
    wire = Wire(recording)
    step = 7 * S // 10
    received = [pair for ns in range(BEGIN, BEGIN + 16 * S, step) for pair in wire.receive(ns)]
    for sent in recording.batches:
        mine = [batch for source, batch in received if source == sent.table.pmus[0].source]
        late_ns = np.concatenate([b.time_ns for b in mine]) - sent.time_ns
        assert np.abs(late_ns).max() <= 500, "FRACSEC counts microseconds"
        assert np.array_equal(np.concatenate([b.stat for b in mine]), sent.stat)
        values = np.concatenate([b.values for b in mine])
        exact = [0, 2, 4, 5]
        assert np.array_equal(values[..., exact], sent.values[..., exact])
        assert np.allclose(values, sent.values, rtol=1e-6)
        names = [(p.name, p.id_code, [(c.name, c.quantity) for c in p.channels]) for p in mine[0].table.pmus]
        assert names == [(p.name, p.id_code, [(c.name, c.quantity) for c in p.channels]) for p in sent.table.pmus]


def test_nothing_is_received_before_it_is_due(folder: Path) -> None:
    wire = Wire(read_recording(folder / show.STREAM))
    assert wire.receive(BEGIN) == []
    assert wire.frames_sent == 2, "configurations first"
    assert wire.counts.frames_by_type == {"cfg2": 2}
    first = wire.receive(BEGIN + S, BEGIN + 2 * S)
    assert sum(len(batch.time_ns) for _, batch in first) == 2 * RATE
    assert {source for source, _ in first} == {"NORTH", "SOUTH"}
    assert {int(t) for _, batch in first for t in batch.arrival_ns} == {BEGIN + 2 * S}


def test_channels_in_another_order_are_sent_in_a_frames_order() -> None:
    pmu = Pmu("a", 1, "a", 60, (*CHANNELS[2:], *CHANNELS[:2]), "s")
    made = channel_table(made_encoder(ChannelTable((pmu,)), 30.0, 1).configuration).pmus[0].channels
    assert {(c.name, c.quantity, c.unit) for c in made} == {(c.name, c.quantity, c.unit) for c in CHANNELS}


def test_on_a_terminal_it_draws_and_leaves_the_screen_as_it_was(folder: Path) -> None:
    console = Console(file=io.StringIO(), width=100, height=30, force_terminal=True)
    outcome = show.run(console, 0, folder)
    out = text(console)
    assert outcome is not None
    assert out.count("\x1b[?1049h") == out.count("\x1b[?1049l") == 1
    assert "most atypical now" in out
    assert out.rindex("what happened, and what GridSense said") > out.index("\x1b[?1049l")


@pytest.mark.parametrize("width", [80, 100, 140])
def test_the_summary_fits(folder: Path, width: int) -> None:
    outcome = show.run(plain(), 0, folder)
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    console.print(outcome)
    lines = text(console).splitlines()
    assert max(map(len, lines)) <= width
    (row,) = [line.split() for line in lines if line.split()[:2] == ["grid", "fault"]]
    assert row[2:4] == ["1", "1"]
    assert row[-1] == "fault"


def test_it_keeps_the_pace_that_was_asked_for(folder: Path) -> None:
    outcome = show.run(plain(), 15.0, folder)
    assert outcome is not None
    assert outcome.wall_s > 14.9 / 15.0 * 0.95
    assert outcome.busy_s < outcome.wall_s


class Impatient(io.StringIO):
    """A terminal at which somebody presses Ctrl-C as soon as a word appears."""

    def __init__(self, word: str) -> None:
        super().__init__()
        self.word: str | None = word

    def write(self, s: str, /) -> int:
        if self.word is not None and self.word in s:
            self.word = None
            raise KeyboardInterrupt
        return super().write(s)


@pytest.mark.parametrize("terminal", [True, False])
def test_an_interrupt_ends_it_with_the_summary_so_far(folder: Path, *, terminal: bool) -> None:
    console = Console(
        file=Impatient("GRID"), width=120, height=40, force_terminal=terminal, color_system=None if terminal else "auto"
    )
    outcome = show.run(console, 20, folder)  # paced, so that the screen is drawn on the way and not only at the end
    assert outcome is not None
    assert not outcome.whole
    assert [f.event is not None for f in outcome.grid] == [True]
    assert "stopped before the end" in text(console)


def test_missing_streams_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ambient\.parquet, demo\.parquet, demo\.json is missing"):
        show.run(plain(), 0, tmp_path)
    with pytest.raises(UsageError, match="--speed -1"):
        show.run(plain(), -1.0, tmp_path)
    assert cli.run(["demo", "--speed", "nonsense"]) == cli.EXIT_USAGE


def test_a_recording_knows_its_length(folder: Path) -> None:
    recording = read_recording(folder / show.STREAM)
    assert isinstance(recording, Recording)
    assert recording.length_s == pytest.approx(15 - 1 / RATE)


@pytest.mark.slow
def test_the_bundled_grid() -> None:
    bundle = Path(str(files("gridsense.demo")))
    absent = [name for name in (show.AMBIENT, show.STREAM, show.LABELS) if not (bundle / name).is_file()]
    if absent:
        pytest.skip(f"the bundled {', '.join(absent)} is not there: scripts/simulate_grid.py bundle makes it")
    labels = json.loads((bundle / show.LABELS).read_text())
    grid = sum(label["cause"] == Cause.GRID for label in labels)
    program = [sys.executable, "-c", "from gridsense.cli import main; main()", "demo", "--speed", "0"]
    done = subprocess.run(program, capture_output=True, text=True, timeout=170, check=False)
    assert done.returncode == 0, done.stderr
    out = " ".join(done.stdout.split())
    assert f"grid disturbances {grid} of {grid} found" in out
    assert "false grid events 0 in" in out
    assert "noticed, 0 called a grid event" in out
    frames = re.search(r"C37\.118 received ([\d,]+) of ([\d,]+) frames.* 0 refused", out)
    assert frames is not None, done.stdout
    assert frames[1] == frames[2]
    assert int(frames[1].replace(",", "")) > 50_000
    assert done.stderr == ""
