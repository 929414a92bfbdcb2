"""Lasting runs of refused samples become data events; a silent source becomes one comms event."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from gridsense.events import Cause, Event
from gridsense.outages import Outages
from streams.block import Block, Reason
from streams.channels import Channel, ChannelTable, Pmu, Quantity

RATE = 30
CHANNELS = (Channel("V1", Quantity.VOLTAGE_MAGNITUDE), Channel("V1", Quantity.VOLTAGE_ANGLE))
TABLE = ChannelTable(tuple(Pmu(f"bus{s}", s, f"bus{s}", 60, CHANNELS, "pdc1" if s < 3 else "pdc2") for s in range(5)))


def quality(seconds: float) -> np.ndarray:
    return np.zeros((round(seconds * RATE), 5, 2), np.uint8)


def run(reasons: np.ndarray, cuts: tuple[int, ...] = ()) -> list[Event]:
    outages = Outages(TABLE, "test", persist_s=2.0)
    state, out = outages.initial(), []
    time_ns = np.arange(len(reasons)) * (10**9 // RATE)
    values = np.zeros(reasons.shape, np.float32)
    edges = [0, *cuts, len(reasons)]
    for a, b in itertools.pairwise(edges):
        state, _, events = outages.step(state, Block(TABLE, RATE, time_ns[a:b], values[a:b], reasons[a:b]))
        out += events
    return out


def test_good_frames_are_no_event() -> None:
    assert run(quality(20)) == []


def test_a_silent_pmu_is_one_data_event_with_its_end() -> None:
    reasons = quality(30)
    reasons[10 * RATE : 20 * RATE, 1] = Reason.MISSING
    raised, ended = run(reasons)
    assert (raised.id, raised.end_ns) == (ended.id, None)
    assert (raised.cause, raised.kind, raised.pmus) == (Cause.DATA, "silent", ("bus1",))
    assert raised.onset_ns / 1e9 == pytest.approx(10, abs=0.01)
    assert (raised.raised_ns - raised.onset_ns) / 1e9 == pytest.approx(2.0)
    assert ended.end_ns is not None
    assert ended.end_ns / 1e9 == pytest.approx(20, abs=0.05)


def test_a_silent_source_is_one_comms_event_and_no_pmu_event() -> None:
    reasons = quality(30)
    reasons[10 * RATE : 20 * RATE, :3] = Reason.MISSING
    raised, _ = run(reasons)
    assert (raised.cause, raised.kind, raised.pmus) == (Cause.COMMS, "source_silent", ("bus0", "bus1", "bus2"))


def test_short_drop_outs_are_ordinary() -> None:
    reasons = quality(60)
    reasons[::200, 2] = Reason.NOT_A_NUMBER
    assert run(reasons) == []


def test_a_channel_that_was_never_good_is_a_standing_condition() -> None:
    reasons = quality(30)
    reasons[:, 1, 1] = Reason.OUT_OF_SYNC
    assert run(reasons) == []


def test_marks_do_not_refuse() -> None:
    reasons = quality(30)
    reasons[10 * RATE :, 1] = Reason.EXCURSION
    assert run(reasons) == []


@pytest.mark.parametrize("cuts", [(299, 300, 301), (360, 361), tuple(range(1, 900, 13))])
def test_events_do_not_depend_on_how_the_stream_is_cut(cuts: tuple[int, ...]) -> None:
    reasons = quality(30)
    reasons[10 * RATE : 20 * RATE, :3] = Reason.MISSING
    reasons[5 * RATE : 8 * RATE, 4] = Reason.STUCK
    reasons[8 * RATE + 20 : 12 * RATE, 4] = Reason.ZERO
    assert run(reasons, cuts) == run(reasons)


def test_frames_lost_here_and_there_are_no_silence() -> None:
    """As UDP loses them: 5 % of the frames, for minutes, of all PMUs of a source at once."""
    lost = np.random.default_rng(1).random(120 * RATE) < 0.05
    reasons = quality(120)
    reasons[lost, :3] = Reason.MISSING
    assert run(reasons) == []
    assert run(reasons, (100, 101, 1000)) == []


def test_a_frame_lost_just_before_does_not_move_the_onset() -> None:
    reasons = quality(30)
    reasons[10 * RATE - 20, 1] = Reason.MISSING
    reasons[10 * RATE : 20 * RATE, 1] = Reason.MISSING
    raised, _ = run(reasons)
    assert raised.onset_ns / 1e9 == pytest.approx(10, abs=0.01)


def test_a_sensor_that_stutters_is_one_event() -> None:
    """Two bad frames, one good: mostly not there."""
    reasons = quality(30)
    bad = np.arange(10 * RATE, 20 * RATE)
    reasons[bad[bad % 3 != 0], 1] = Reason.PMU_ERROR
    raised, ended = run(reasons)
    assert raised.id == ended.id
