"""Each data fault gets its reason, and nothing beside it."""

from __future__ import annotations

import numpy as np
import pytest

from streams import quality
from streams.align import Aligned
from streams.block import Block, Reason
from streams.channels import Channel, ChannelTable, Pmu, Quantity
from streams.quality import QualitySettings, pair_phasors, reason_counts
from tests.reference.scene import IA, IM, VA, VM, ambient, channel, one_phasor, part, phasor, table_of, three_phase

RATE = 30.0
TABLE = table_of(*([one_phasor(nominal=300e3)] * 3), three_phase())
HERTZ, ROCOF = Quantity.FREQUENCY, Quantity.ROCOF
AT = 100

Places = dict[tuple[range | int, int, int], Reason]
"""Reason by rows, PMU and channel."""


def judged(aligned: Aligned, settings: QualitySettings | None = None) -> Block:
    state, block = quality.judge(quality.initial(aligned.table, aligned.rate_hz, settings), aligned)
    _, rest = quality.flush(state)
    return Block(
        block.table, block.rate_hz, np.concatenate([block.time_ns, rest.time_ns]),
        np.concatenate([block.values, rest.values]), np.concatenate([block.quality, rest.quality]),
    )  # fmt: skip


def expect(block: Block, where: Places) -> None:
    """These reasons, and good everywhere else."""
    want = np.zeros(block.quality.shape, np.uint8)
    want[:, ~block.table.present] = Reason.ABSENT
    for place, reason in where.items():
        want[place] = reason
    differ = np.argwhere(want != block.quality)
    assert not [(*map(int, i), Reason(want[tuple(i)]), Reason(block.quality[tuple(i)])) for i in differ[:5]]
    masked = (want > 0) & (want < 128)
    kept = (want == Reason.OUT_OF_SYNC) | (want == Reason.SORTED_BY_ARRIVAL)
    assert np.isnan(block.values[masked & ~kept]).all()
    assert not np.isnan(block.values[~masked]).any()


def everything(pmu: int, rows: range | int, reason: Reason) -> Places:
    return {(rows, pmu, c): reason for c in range(len(TABLE.pmus[pmu].channels))}


def some(pmu: int, rows: range | int, reason: Reason, *quantities: Quantity) -> Places:
    return {(rows, pmu, int(c)): reason for c in np.flatnonzero(TABLE.where(*quantities)[pmu])}


def test_missing_frame() -> None:
    a = ambient(TABLE, 200)
    a.values[AT, 1], a.received[AT, 1] = np.nan, False
    expect(judged(a), everything(1, AT, Reason.MISSING))


def test_a_dropout_of_one_frame() -> None:
    """Frequency 0, the rest NaN: ordinary and many."""
    a = ambient(TABLE, 200)
    a.values[AT, 1] = np.nan
    f = channel(TABLE, 1, HERTZ)
    a.values[AT, 1, f] = 0
    expect(judged(a), everything(1, AT, Reason.NOT_A_NUMBER) | {(AT, 1, f): Reason.ZERO})


@pytest.mark.parametrize(("stat", "reason"), [(0x4000, "PMU_ERROR"), (0x8000, "TEST_MODE"), (0xC000, "PMU_ERROR")])
def test_error_masks_the_whole_pmu(stat: int, reason: str) -> None:
    a = ambient(TABLE, 200)
    a.stat[50:60, 3] = stat
    expect(judged(a), everything(3, range(50, 60), Reason[reason]))


@pytest.mark.parametrize("stat", [0x2000, 0x0030, 5 << 6, 7 << 6])
def test_lost_time_masks_angles_and_marks_the_rest(stat: int) -> None:
    a = ambient(TABLE, 200)
    a.stat[50:90, 0] = stat
    block = judged(a)
    rows = range(50, 90)
    expect(
        block,
        everything(0, rows, Reason.TIME_QUALITY) | some(0, rows, Reason.OUT_OF_SYNC, VA, IA),
    )
    np.testing.assert_array_equal(
        block.values[rows, 0, :6], a.values[rows, 0, :6]
    )  # angles too: for use within the PMU


def test_lost_time_masks_phasors_after_a_second_if_wanted() -> None:
    a = ambient(TABLE, 300)
    a.stat[50:150, 3] = 0x2000
    everything_ = everything(3, range(50, 150), Reason.TIME_QUALITY)
    angles = some(3, range(50, 150), Reason.OUT_OF_SYNC, VA, IA)
    later = some(3, range(80, 150), Reason.OUT_OF_SYNC, VM, IM, HERTZ, ROCOF)
    block = judged(a, QualitySettings(unsynced="phasors"))
    assert (block.quality[50:150, 3, channel(TABLE, 3, Quantity.ANALOG)] == Reason.TIME_QUALITY).all()
    expect(block, everything_ | angles | later)


@pytest.mark.parametrize(
    ("stat", "flags", "angle", "rest"),
    [
        (0x1000, 0, "SORTED_BY_ARRIVAL", "TIME_QUALITY"),
        (4 << 6, 0, "TIME_QUALITY", "TIME_QUALITY"),
        (0x0010, 0, "TIME_QUALITY", "TIME_QUALITY"),
        (0x0200, 0, "DATA_MODIFIED", "DATA_MODIFIED"),
        (0x0800, 0, "TRIGGER", "TRIGGER"),
        (0x0400, 0, "GOOD", "GOOD"),  # the configuration will change
        (1 << 6, 0x0F, "GOOD", "GOOD"),  # the concentrator's clock is bad, the PMU's is not
        (0, 0x0F, "OUT_OF_SYNC", "TIME_QUALITY"),
        (0, 0x07, "OUT_OF_SYNC", "TIME_QUALITY"),
        (0, 0x06, "TIME_QUALITY", "TIME_QUALITY"),
        (0, 0x75, "GOOD", "GOOD"),  # leap second bits are no time quality
    ],
)
def test_the_whole_stat_word_and_fracsec(stat: int, flags: int, angle: str, rest: str) -> None:
    a = ambient(TABLE, 100)
    a.stat[40:60, 2], a.time_flags[40:60, 2] = stat, flags
    rows = range(40, 60)
    expect(judged(a), everything(2, rows, Reason[rest]) | some(2, rows, Reason[angle], VA, IA))


def test_sync_bit_of_old_devices_can_be_ignored() -> None:
    a = ambient(TABLE, 100)
    a.stat[:] = 0x2000
    expect(judged(a, QualitySettings(use_sync_bit=False)), {})


def test_frequency_spike_with_its_rocof() -> None:
    a = ambient(TABLE, 200)
    f, r = channel(TABLE, 1, HERTZ), channel(TABLE, 1, ROCOF)
    a.values[AT, 1, f] += 0.5
    a.values[AT, 1, r] += 15
    a.values[AT + 1, 1, r] -= 15
    expect(judged(a), {(AT, 1, f): Reason.SPIKE, (AT, 1, r): Reason.SPIKE, (AT + 1, 1, r): Reason.SPIKE})


def test_angle_spike() -> None:
    a = ambient(TABLE, 200)
    k = channel(TABLE, 3, VA, 1)
    a.values[AT, 3, k] += 5
    expect(judged(a), {(AT, 3, k): Reason.SPIKE})


def test_mean_of_both_ends_of_the_circle() -> None:
    a = ambient(TABLE, 200, offset_hz=0.2)
    k = channel(TABLE, 3, VA)
    a.values[:, 3, k] = (np.arange(200) * 2.4 - 2.4 * AT - 180.5 + 180) % 360 - 180
    assert a.values[AT - 1, 3, k] > 170
    assert a.values[AT + 1, 3, k] < -170
    a.values[AT, 3, k] = 0.7
    expect(judged(a), {(AT, 3, k): Reason.ANGLE_WRAP})


def test_magnitude_spikes_are_marked_only() -> None:
    a = ambient(TABLE, 200)
    v, i = channel(TABLE, 3, VM, 2), channel(TABLE, 3, IM)
    a.values[AT, 3, v] *= 1.1
    a.values[AT + 40, 3, i] *= 2
    expect(judged(a), {(AT, 3, v): Reason.SUSPECT_SPIKE, (AT + 40, 3, i): Reason.SUSPECT_SPIKE})


@pytest.mark.parametrize(
    ("quantity", "value"),
    [
        (HERTZ, 65.536),
        (HERTZ, 27.232),
        (HERTZ, 92.767),
        (HERTZ, -1.0),
        (ROCOF, 5000.0),
        (VM, -3.0),
        (VM, 1e9),
        (IM, -1.0),
    ],
)
def test_impossible_values(quantity: Quantity, value: float) -> None:
    a = ambient(TABLE, 200)
    k = channel(TABLE, 0, quantity)
    a.values[80:120, 0, k] = value
    expect(judged(a), {(range(80, 120), 0, k): Reason.OUT_OF_RANGE})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_a_number(value: float) -> None:
    a = ambient(TABLE, 200)
    a.values[80:120, 0, 0] = value
    expect(judged(a), {(range(80, 120), 0, 0): Reason.NOT_A_NUMBER})


def test_zeros() -> None:
    a = ambient(TABLE, 300)
    v, va, i = channel(TABLE, 3, VM), channel(TABLE, 3, VA), channel(TABLE, 3, IM)
    a.values[50, 3, v] = 0  # for one frame between two like ones
    a.values[100:180, 3, v] = 0  # for long
    a.values[200:280, 3, i] = 0  # an open breaker
    late = range(130, 180)
    expect(
        judged(a),
        {(50, 3, v): Reason.ZERO, (50, 3, va): Reason.ZERO, (late, 3, v): Reason.ZERO, (late, 3, va): Reason.ZERO},
    )


def test_a_device_that_sends_zeros() -> None:
    a = ambient(TABLE, 200)
    a.values[80:90, 0] = 0
    block = judged(a)
    rows = range(80, 90)
    expect(block, some(0, rows, Reason.ZERO, VM, VA, IM, IA, HERTZ))


def test_stuck_device() -> None:
    a = ambient(TABLE, 400)
    a.values[100:300, 3] = a.values[100, 3]
    expect(judged(a), some(3, range(160, 300), Reason.STUCK, VM, VA, IM, IA, HERTZ, ROCOF))


def test_stuck_phasor() -> None:
    a = ambient(TABLE, 400)
    v, va = channel(TABLE, 3, VM), channel(TABLE, 3, VA)
    a.values[100:300, 3, [v, va]] = a.values[100, 3, [v, va]]
    rows = range(160, 300)
    expect(judged(a), {(rows, 3, v): Reason.STUCK, (rows, 3, va): Reason.STUCK})


@pytest.mark.parametrize("quantity", [VM, VA, HERTZ])
def test_stuck_lone_channel(quantity: Quantity) -> None:
    a = ambient(TABLE, 2000)
    k = channel(TABLE, 1, quantity)
    a.values[900:1800, 1, k] = a.values[900, 1, k]
    block = judged(a)
    first = int(np.argmax(block.quality[:, 1, k] == Reason.STUCK))
    assert 900 + 5 * RATE <= first <= 900 + 28 * RATE
    assert (block.quality[first:1800, 1, k] == Reason.STUCK).all()
    assert (block.quality[1800:, 1, :6] == 0).all()
    assert (block.quality[:, [0, 2]][:, :, :6] == 0).all()


def test_frequency_of_a_few_values() -> None:
    a = ambient(TABLE, 3000)
    f = channel(TABLE, 2, HERTZ)
    a.values[:, 2, f] = np.where(np.arange(3000) // 700 % 2, 59.98, 59.97)
    block = judged(a)
    assert (block.quality[1800:, 2, f] == Reason.STUCK).all()
    assert (block.quality[:140, 2, f] == 0).all()


def test_constant_by_nature_is_not_stuck() -> None:
    """A test set at exactly nominal frequency, analogs, digitals; and coarse quantisation."""
    a = ambient(table_of(three_phase(), three_phase()), 1200)
    a.values[:] = a.values[:1]
    a.values[:, :, channel(a.table, 0, HERTZ)] = 60
    assert (judged(a).quality == 0).all()
    a = ambient(TABLE, 2400)
    v = np.flatnonzero(TABLE.where(VM).ravel())
    flat = a.values.reshape(2400, -1)
    flat[:, v] = np.round(flat[:, v] / 100) * 100  # 0.1 kV
    assert (judged(a).quality[:, TABLE.present] == 0).all()


def test_a_new_run_after_a_gap_is_not_judged_against_the_old() -> None:
    a = ambient(TABLE, 300)
    b = Aligned(a.table, a.rate_hz, a.time_ns + 10**12, a.values * 1.0, a.stat, a.received, a.time_flags)
    state = quality.initial(TABLE, RATE)
    state, one = quality.judge(state, part(a, 0, 200))
    state, two = quality.judge(state, part(b, 200, 250))
    state, three = quality.judge(state, part(b, 250, 300))
    _, four = quality.flush(state)
    assert [len(x.time_ns) for x in (one, two, three, four)] == [197, 3, 97, 3]
    times = np.concatenate([x.time_ns for x in (one, two, three, four)])
    np.testing.assert_array_equal(times, np.concatenate([a.time_ns[:200], b.time_ns[200:]]))
    assert all((x.quality[:, TABLE.present] == 0).all() for x in (one, two, three, four))


def test_relayout_remembers_who_stays() -> None:
    a = ambient(TABLE, 400)
    a.values[50:, 2] = a.values[50, 2]  # stuck
    new = ChannelTable((Pmu("new", 9, "new", 60, three_phase(), "x"), TABLE.pmus[2], TABLE.pmus[3]))
    state, _ = quality.judge(quality.initial(TABLE, RATE), part(a, 0, 200))
    state, rest = quality.relayout(state, new)
    assert len(rest.time_ns) == 3
    assert rest.table is TABLE
    b = ambient(new, 400)
    b.values[:, 1:] = a.values[:, 2:]
    _, block = quality.judge(state, part(b, 200, 300))
    f = channel(TABLE, 2, HERTZ)
    assert (block.quality[:, 1, f] == Reason.STUCK).all()  # from the first frame on
    assert (block.quality[:, [0, 2]] == 0).all()


def test_counts_by_reason() -> None:
    a = ambient(TABLE, 100)
    a.values[10:15, 1], a.received[10:15, 1] = np.nan, False
    block = judged(a)
    counts = reason_counts(block)
    reasons = list(Reason)
    assert counts.shape == (4, len(reasons))
    assert counts[1, reasons.index(Reason.MISSING)] == 5 * 6
    assert counts[1, reasons.index(Reason.ABSENT)] == 100 * (TABLE.width - 6)
    assert counts.sum() == block.quality.size


def test_phasors_pair_up_by_name_and_order() -> None:
    lone = Channel("VX", VA)
    channels = (*phasor("VA"), lone, Channel("IB", IM), *phasor("VA"), Channel("IB", IA), Channel("Z", VM))
    assert pair_phasors(channels) == [(0, 1), (3, 6), (4, 5), (7, -1)]
    assert pair_phasors((Channel("f", HERTZ),)) == []
