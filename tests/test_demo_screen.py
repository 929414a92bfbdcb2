"""The screen: whatever the terminal, no line too long, none too many, and nothing said by colour alone."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from gridsense.events import Cause, Event
from gridsense.pipeline import Output, Pipeline, Scorer, Settings
from gridsense.screen import Screen, event_line
from gridsense.sequence import load_model
from streams.block import FrameBatch
from streams.channels import Channel, ChannelTable, Pmu, Quantity

S = 1_000_000_000
BEGIN = 1_772_366_400 * S
RATE = 30
SIZES = [(80, 24), (100, 30), (140, 40), (120, 40), (200, 60), (60, 15), (30, 8)]


def table(source: str, pmus: int) -> ChannelTable:
    channels = (
        Channel("V1", Quantity.VOLTAGE_MAGNITUDE, unit="V"),
        Channel("V1", Quantity.VOLTAGE_ANGLE, unit="deg"),
        Channel("frequency", Quantity.FREQUENCY, unit="Hz", nominal=60.0),
        Channel("rocof", Quantity.ROCOF, unit="Hz/s", nominal=0.0),
    )
    return ChannelTable(tuple(Pmu(f"{source} {i}", i + 1, f"{source} {i}", 60, channels, source) for i in range(pmus)))


def outputs(
    seconds: int, sources: int = 3, pmus: int = 7, scorers: tuple[Scorer, ...] = ("quadratic",)
) -> list[Output]:
    random = np.random.default_rng(1)
    time_ns = BEGIN + np.arange(seconds * RATE) * S // RATE
    batches = []
    for n in range(sources):
        shape = (len(time_ns), pmus, 4)
        values = random.normal([2e5, 10.0, 60.0, 0.0], [20.0, 0.002, 2e-4, 0.01], shape)
        name = f"AREA{n}"
        flags, stat = np.zeros(len(time_ns), np.uint8), np.zeros(shape[:2], np.uint16)
        batch = FrameBatch(table(name, pmus), RATE, time_ns, flags, stat, values.astype(np.float32), time_ns)
        batches.append((name, batch))
    pipeline = Pipeline(Settings(learn_s=10.0, scorers=scorers, model=load_model()))
    return [*pipeline.feed(batches), *pipeline.finish()]


def event(second: int, cause: Cause, **changes: object) -> Event:
    onset = BEGIN + second * S
    plain = Event(
        id=f"{cause} {second}",
        source="t",
        onset_ns=onset,
        raised_ns=onset + S // 5,
        end_ns=onset + 3 * S,
        cause=cause,
        kind="voltage_measurement",
        first_pmu="A PMU WITH A VERY LONG NAME INDEED, LONGER THAN ANY",
        pmus=("a", "b"),
        minus_ln_p=30.0,
        scorer="fast",
        contributions=(),
        sentence="voltage fell to [bold]0.54[/bold] of its level; " * 6,
    )
    return replace(plain, **changes)  # type: ignore[arg-type]  # a test names the fields it changes


def drawn(screen: Screen, width: int, height: int) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=width, height=height, force_terminal=True, color_system=None).print(screen, end="")
    return out.getvalue().rstrip("\n").split("\n")


@pytest.fixture(scope="module")
def watched() -> list[Output]:
    return outputs(20)


@pytest.fixture(scope="module")
def both() -> list[Output]:
    return outputs(30, scorers=("quadratic", "sequence"))


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_it_fits_the_terminal(watched: list[Output], width: int, height: int) -> None:
    screen = Screen("21 PMUs of 3 concentrators", 12.5)
    screen.note = "0:20 of 5:50  3.1 x real time  464 frames/s  138 kB/s of C37.118"
    for moment in range(3):
        lines = drawn(screen, width, height)
        assert max(map(len, lines)) <= width
        if height >= 15:
            assert len(lines) == height
        for output in watched if moment == 0 else ():
            screen.show(output)
        for second in range(moment * 10):
            screen.show_event(event(second, list(Cause)[second % len(Cause)]))


@pytest.mark.parametrize("width", [80, 100, 140])
def test_what_matters_is_said_in_words(watched: list[Output], width: int) -> None:
    screen = Screen("test", 12.5)
    assert "STARTING" in drawn(screen, width, 30)[0]
    for output in watched:
        screen.show(output)
    text = "\n".join(drawn(screen, width, 30))
    assert "NORMAL" in text
    assert "nothing out of the ordinary" in text
    assert "AREA0" in text
    assert "7/7" in text
    assert "learning: " in text
    screen.show_event(event(5, Cause.DATA, end_ns=None, kind="stuck"))
    assert "DATA: stuck" in drawn(screen, width, 30)[0]
    screen.show_event(event(9, Cause.GRID, end_ns=None, kind="line_trip"))
    lines = drawn(screen, width, 30)
    assert "GRID EVENT: line trip" in lines[0]
    assert "2026-03-01 12:00:19" in lines[0]
    newest = [line for line in lines if "12:00:0" in line]
    assert ["GRID" in newest[0], "DATA" in newest[1]] == [True, True]
    assert newest[0].split()[1] != newest[1].split()[1], "the grid's events have an edge of their own"
    assert "[bold]0.54[/bold]" in "\n".join(lines), "a sentence is text, not markup"


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_both_scorers_stand_side_by_side(both: list[Output], width: int, height: int) -> None:
    screen = Screen("test", 12.5)
    for output in both:
        screen.show(output)
    lines = drawn(screen, width, height)
    assert max(map(len, lines)) <= width
    if width >= 80:
        (title,) = [line for line in lines if "grid, fast: " in line]
        assert "grid, sequence: " in title
        assert "12.9" in title
        assert "14.6" in title
        assert "most atypical now: fast, sequence" in "\n".join(lines)


def test_a_pmu_is_loud_where_either_scorer_says_so(both: list[Output]) -> None:
    screen = Screen("test", 12.5)
    for output in both:
        ticks = output.scored.ticks
        tracks = [replace(t, score=t.score.copy()) for t in ticks.tracks]
        for track in tracks:
            if track.name == "sequence":
                track.score[:, 2] = 77.7
        screen.show(replace(output, scored=replace(output.scored, ticks=replace(ticks, tracks=tracks))))
    lines = drawn(screen, 100, 30)
    (worst,) = [line for line in lines if "77.7" in line]
    assert "AREA0 2" in worst
    (area,) = [line for line in lines if "AREA0 " in line and "7/7" in line]
    assert area.split("AREA0 ")[1][2] == "█"


def test_an_event_grows_in_its_place() -> None:
    screen = Screen("test", 12.5)
    raised = event(5, Cause.GRID, end_ns=None)
    screen.show_event(raised)
    assert "lasting" in "\n".join(drawn(screen, 100, 30))
    screen.show_event(replace(raised, end_ns=raised.onset_ns + 4 * S))
    text = "\n".join(drawn(screen, 100, 30))
    assert "4.0 s" in text
    assert "lasting" not in text
    assert "events, newest first: 1 of the grid, 0 of data or comms" in text


def test_a_silent_source_is_seen() -> None:
    first = outputs(20)
    screen = Screen("test", 12.5)
    for output in first:
        scored = output.scored
        refused = scored.ticks.refused.copy()
        refused[:, :7] = True
        screen.show(replace(output, scored=replace(scored, ticks=replace(scored.ticks, refused=refused))))
    (line,) = [line for line in drawn(screen, 100, 30) if "AREA0" in line and "SILENT" in line]
    assert "xxxxxxx" in line


def test_a_loud_grid_is_drawn_above_the_threshold(watched: list[Output]) -> None:
    screen = Screen("test", 12.5)
    quiet = Screen("test", 12.5)
    restless = Screen("test", 12.5)
    for output in watched:
        quiet.show(output)
        grid = replace(output.grid, score=np.full_like(output.grid.score, 150.0))
        screen.show(replace(output, grid=grid))
        restless.show(replace(output, grid=replace(grid, background=np.full_like(grid.background, 145.0))))

    def bars(lines: list[str]) -> int:
        (row,) = [i for i, line in enumerate(lines) if "┼" in line]
        return sum(line.count("█") for line in lines[3:row])

    assert bars(drawn(screen, 100, 40)) > 20
    assert bars(drawn(quiet, 100, 40)) == 0
    assert bars(drawn(restless, 100, 40)) == 0, "it has been so all the time"


def test_a_line_of_a_log() -> None:
    line = event_line(event(5, Cause.COMMS, sentence="NYISO: all 18 PMUs are silent at once", end_ns=None))
    assert " ".join(line.split()) == (
        "12:00:05.000 COMMS voltage measurement lasting 2 PMUs NYISO: all 18 PMUs are silent at once"
    )
