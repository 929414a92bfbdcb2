from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from streams import derive
from streams.align import Aligned
from streams.block import Block, Reason
from streams.channels import Channel, ChannelTable, Phase, Pmu, Quantity
from streams.derive import DeriveSettings
from tests.reference.derive import reference, rocof, sequences, unwrapped
from tests.reference.scene import HERTZ, IA, IM, VA, VM, ambient, one_phasor, phasor, table_of, three_phase

RATE = 30.0
FOUR = table_of(one_phasor(nominal=300e3), three_phase(), one_phasor(nominal=300e3), three_phase())


def block_of(aligned: Aligned, quality: NDArray[np.uint8] | None = None) -> Block:
    if quality is None:
        quality = np.where(np.isnan(aligned.values), Reason.MISSING, Reason.GOOD).astype(np.uint8)
        quality[:, ~aligned.table.present] = Reason.ABSENT
    return Block(aligned.table, aligned.rate_hz, aligned.time_ns, aligned.values, quality)


def derived(block: Block, settings: DeriveSettings | None = None) -> Block:
    return derive.derive(derive.initial(block.table, block.rate_hz, settings), block)[1]


def find(table: ChannelTable, pmu: int, quantity: Quantity, name: str | None = None, phase: Phase | None = None) -> int:
    found = [
        c
        for c, x in enumerate(table.pmus[pmu].channels)
        if x.quantity is quantity and name in {None, x.name} and phase in {None, x.phase}
    ]
    assert found, (quantity, name, phase)
    return found[0]


def series(
    block: Block, pmu: int, quantity: Quantity, name: str | None = None, phase: Phase | None = None
) -> NDArray[np.float32]:
    return block.values[:, pmu, find(block.table, pmu, quantity, name, phase)]


def raw(aligned: Aligned, pmu: int, quantity: Quantity, nth: int = 0) -> NDArray[np.float64]:
    place = np.flatnonzero(aligned.table.where(quantity)[pmu])[nth]
    return aligned.values[:, pmu, place].astype(np.float64)


def test_rocof_is_the_slope_of_the_last_half_second() -> None:
    a = ambient(FOUR, 200, seed=3)
    f = find(FOUR, 0, Quantity.FREQUENCY)
    rng = np.random.default_rng(0)
    a.values[rng.random(200) < 0.2, 0, f] = np.nan
    a.values[80:120, 0, f] = np.nan
    a.values[150:, 0, f] += np.float32(0.3) * np.arange(50, dtype=np.float32) / 30
    block = derived(block_of(a))
    hertz = raw(a, 0, Quantity.FREQUENCY)
    want = rocof(np.nan_to_num(hertz), ~np.isnan(hertz), RATE, 16)
    got = series(block, 0, Quantity.ROCOF)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    np.testing.assert_allclose(got, want, atol=2e-5)
    assert got[-1] == pytest.approx(0.3, abs=0.01)
    reasons = block.quality[:, 0, find(block.table, 0, Quantity.ROCOF)]
    assert reasons[100] == Reason.MISSING  # its own frequency is missing
    assert reasons[120] == Reason.COVERAGE  # too little is known yet


def test_three_phases_become_sequences() -> None:
    a = ambient(FOUR, 100, seed=1)
    k = int(np.flatnonzero(FOUR.where(VM)[1])[1])
    a.values[50:, 1, k] *= 0.7  # phase B sags
    block = derived(block_of(a))
    magnitudes = np.stack([raw(a, 1, VM, n) for n in range(3)])
    angles = np.stack([raw(a, 1, VA, n) for n in range(3)])
    zero, positive, negative = sequences(magnitudes * np.exp(1j * np.deg2rad(angles)))
    base = np.median(np.abs(positive[:30]))
    for phase, want in ((Phase.POSITIVE, positive), (Phase.NEGATIVE, negative), (Phase.ZERO, zero)):
        got = series(block, 1, VM, "V", phase)
        assert np.isnan(got[:29]).all()
        np.testing.assert_allclose(got[29:], np.abs(want[29:]) / base, atol=1e-6)
    assert series(block, 1, VM, "V", Phase.POSITIVE)[60] == pytest.approx(0.9, abs=1e-3)
    assert series(block, 1, VM, "V", Phase.NEGATIVE)[60] == pytest.approx(0.1, abs=1e-3)
    assert series(block, 1, VM, "V", Phase.ZERO)[60] == pytest.approx(0.1, abs=1e-3)


def test_power_where_voltage_and_current_pair_up() -> None:
    a = ambient(FOUR, 100, seed=2)
    block = derived(block_of(a))
    for pmu, name in ((0, "I1"), (1, "I")):  # as one phasor, and as three phases
        np.testing.assert_allclose(
            series(block, pmu, Quantity.ACTIVE_POWER, name)[40:], np.cos(np.deg2rad(20)), atol=2e-3
        )
        np.testing.assert_allclose(
            series(block, pmu, Quantity.REACTIVE_POWER, name)[40:], np.sin(np.deg2rad(20)), atol=2e-3
        )
    np.testing.assert_allclose(
        series(block, 0, VM)[:], raw(a, 0, VM) / 300e3, rtol=1e-6
    )  # nominal known: from the start


def test_angles_are_relative_to_the_common_step_of_all() -> None:
    a = ambient(FOUR, 300, seed=5)
    block = derived(block_of(a))
    main = np.stack(
        [raw(a, 0, VA), np.rad2deg(np.angle(_positive(a, 1))), raw(a, 2, VA), np.rad2deg(np.angle(_positive(a, 3)))],
        axis=1,
    )
    ref = reference(main, np.ones(main.shape, bool))
    for pmu in range(4):
        want = unwrapped(main[:, pmu] - ref, np.ones(300, bool))
        np.testing.assert_allclose(series(block, pmu, VA), want, atol=1e-4)
    assert np.abs(series(block, 0, VA)).max() < 0.1  # the reference begins at the first good angle


def _positive(a: Aligned, pmu: int) -> NDArray[np.complex128]:
    parts = [raw(a, pmu, VM, n) * np.exp(1j * np.deg2rad(raw(a, pmu, VA, n))) for n in range(3)]
    return sequences(np.stack(parts))[1]


def turned(a: Aligned, rows: slice, pmu: int, degrees: NDArray[np.float64] | float) -> None:
    for c in np.flatnonzero(a.table.where(VA, IA)[pmu]):
        a.values[rows, pmu, c] = (a.values[rows, pmu, c] + degrees + 180) % 360 - 180


def test_one_bad_clock_moves_nobody_elses_angle() -> None:
    clean, bad = ambient(FOUR, 300, seed=6), ambient(FOUR, 300, seed=6)
    turned(bad, slice(100, 200), 2, 30.0)
    turned(bad, slice(200, None), 2, np.arange(100) * 2.0)
    a, b = derived(block_of(clean)), derived(block_of(bad))
    for pmu in (0, 1, 3):
        np.testing.assert_allclose(series(b, pmu, VA), series(a, pmu, VA), atol=0.05)
    got, was = series(b, 2, VA), series(a, 2, VA)
    assert got[150] - was[150] == pytest.approx(30, abs=0.05)
    assert got[299] - was[299] == pytest.approx(198, abs=0.1)  # unwrapped: it goes on beyond 180


@pytest.mark.parametrize("settings", [DeriveSettings(), DeriveSettings(reference=("P2", "P0"))])
def test_fail_over_of_the_reference_is_continuous(settings: DeriveSettings) -> None:
    a = ambient(FOUR, 300, seed=7)
    block = block_of(a)
    quality = block.quality.copy()
    quality[100:180, 2, :6] = Reason.MISSING  # the first reference goes
    quality[140:160, 0, :6] = Reason.MISSING  # then the second
    got = derived(replace(block, quality=quality), settings)
    for pmu in range(4):
        angle = series(got, pmu, VA)
        assert np.nanmax(np.abs(angle - np.nanmedian(angle))) < 0.1
    assert np.isnan(series(got, 2, VA)[100:180]).all()
    assert not np.isnan(series(got, 1, VA)).any()


def test_after_a_gap_an_angle_comes_back_where_it_was() -> None:
    a = ambient(FOUR, 300, seed=8)
    turned(a, slice(None), 3, np.linspace(0, 900, 300))  # many turns
    block = block_of(a)
    quality = block.quality.copy()
    quality[150:170, 3, :12] = Reason.PMU_ERROR
    whole, gap = series(derived(block), 3, VA), series(derived(replace(block, quality=quality)), 3, VA)
    assert whole[-1] - whole[0] == pytest.approx(900, abs=5)
    assert np.isnan(gap[150:170]).all()
    np.testing.assert_allclose(gap[170:], whole[170:], atol=0.5)


def test_a_single_pmu_is_compared_with_its_own_past() -> None:
    """Whatever the frequency is, the angle stays; a step of the angle is seen; a bad clock does not matter."""
    table = table_of((*phasor("Bus 1"), *phasor("Bus 2"), *phasor("Line", current=True), *HERTZ))
    a = ambient(table, 600, seed=9, offset_hz=0.4)
    turned(a, slice(300, None), 0, 5.0)
    block = block_of(a)
    quality = block.quality.copy()
    quality[:, 0, [1, 3, 5]] = Reason.OUT_OF_SYNC
    got = derived(replace(block, quality=quality))
    names = [(c.name, c.quantity) for c in got.table.pmus[0].channels]
    assert names == [
        ("f", Quantity.FREQUENCY), ("f", Quantity.ROCOF), ("Bus 1", VM), ("Bus 2", VM), ("Bus 1", VA),
        ("Bus 2 to Bus 1", VA), ("Line", IM), ("Line", Quantity.ACTIVE_POWER), ("Line", Quantity.REACTIVE_POWER),
    ]  # fmt: skip
    angle = series(got, 0, VA, "Bus 1")
    assert np.abs(angle[:300]).max() < 2.0  # follows the slow wander of the frequency
    assert angle[300] - angle[299] == pytest.approx(5, abs=0.3)
    np.testing.assert_allclose(series(got, 0, VA, "Bus 2 to Bus 1"), 0, atol=0.02)
    marked = [find(got.table, 0, q) for q in (VA, Quantity.ACTIVE_POWER, Quantity.REACTIVE_POWER)]
    assert (got.quality[30:, 0][:, marked] == Reason.TIME_QUALITY).all()


def test_an_unsynchronised_pmu_among_others_keeps_what_is_its_own() -> None:
    a = ambient(FOUR, 200, seed=10)
    block = block_of(a)
    quality = block.quality.copy()
    quality[:, 1][:, FOUR.where(VA, IA)[1]] = Reason.OUT_OF_SYNC
    got = derived(replace(block, quality=quality))
    assert (got.quality[:, 1, find(got.table, 1, VA)] == Reason.OUT_OF_SYNC).all()
    for quantity in (VM, Quantity.ACTIVE_POWER):
        assert (got.quality[40:, 1, find(got.table, 1, quantity)] == Reason.TIME_QUALITY).all()
        np.testing.assert_array_equal(series(got, 1, quantity), series(derived(block), 1, quantity))


def test_the_worst_reason_of_the_inputs_goes_on() -> None:
    a = ambient(FOUR, 100, seed=11)
    block = block_of(a)
    quality = block.quality.copy()
    volts, angles = np.flatnonzero(FOUR.where(VM)[1]), np.flatnonzero(FOUR.where(VA)[1])
    quality[50, 1, volts[0]], quality[50, 1, angles[2]] = Reason.SUSPECT_SPIKE, Reason.SPIKE
    quality[60, 1, volts[0]], quality[60, 1, volts[1]] = Reason.TIME_QUALITY, Reason.EXCURSION
    quality[70, 1, volts[0]], quality[70, 1, angles[1]] = Reason.MISSING, Reason.STUCK
    got = derived(replace(block, quality=quality))
    v, p = find(got.table, 1, VM), find(got.table, 1, Quantity.ACTIVE_POWER)
    for t, reason in ((50, Reason.SPIKE), (60, Reason.EXCURSION), (70, Reason.MISSING), (80, Reason.GOOD)):
        assert got.quality[t, 1, v] == got.quality[t, 1, p] == reason


def test_bases_are_medians_of_the_first_good_second() -> None:
    table = table_of(one_phasor(), one_phasor())
    a = ambient(table, 200, seed=12)
    a.values[5, 0, 0] = 9e9  # a spike in the first second does no harm
    a.values[:40, 1, 2] = 0  # the line is open at first: nothing to be learnt from that
    got = derived(block_of(a))
    np.testing.assert_allclose(series(got, 0, VM)[40:], 1, atol=2e-4)
    assert (got.quality[:69, 1, find(got.table, 1, IM)] == Reason.COVERAGE).all()
    np.testing.assert_allclose(series(got, 1, IM)[69:], 1, atol=1e-3)


def test_a_phasor_without_magnitude_has_no_angle() -> None:
    a = ambient(FOUR, 200, seed=13)
    c = find(FOUR, 0, VM)
    a.values[100:104, 0, c] = 0
    a.values[100:104, 0, find(FOUR, 0, VA)] = 0
    got = derived(block_of(a))
    assert (got.quality[100:104, 0, find(got.table, 0, VA)] == Reason.COVERAGE).all()
    assert (got.quality[100:104, 0, find(got.table, 0, VM)] == Reason.EXCURSION).all()
    assert (series(got, 0, VM)[100:104] == 0).all()
    assert abs(series(got, 0, VA)[104] - series(got, 0, VA)[99]) < 0.05


def test_layouts_met_in_the_field() -> None:
    """Threes beside the device's own sequences; currents of another phase; powers, analogs; magnitudes alone."""
    own = [Channel("V1", VM, Phase.POSITIVE), Channel("V1", VA, Phase.POSITIVE)]
    threes = [c for p in (Phase.A, Phase.B, Phase.C) for c in phasor(f"Bus-{p}", phase=p)]
    single = phasor("Tie", phase=Phase.A, current=True) + phasor("N", phase=Phase.ZERO, current=True)
    more = [
        Channel("MW", Quantity.ACTIVE_POWER, unit="W"),
        Channel("T", Quantity.ANALOG),
        Channel("D", Quantity.DIGITAL),
    ]
    alone = [Channel("v", VM), Channel("a", VA), Channel("r", Quantity.ROCOF)]
    sequence = [*own, Channel("V2", VM, Phase.NEGATIVE), Channel("V2", VA, Phase.NEGATIVE)]
    table = table_of((*own, *threes, *single, *more), tuple(alone), tuple(sequence), (Channel("T", Quantity.ANALOG),))

    def names(pmu: Pmu) -> list[tuple[str, str, str]]:
        return [(c.name, c.quantity.value, c.phase.value) for c in pmu.channels]

    plan = derive.plan(table, DeriveSettings())
    first, second, third, fourth = (names(p) for p in plan.table.pmus)
    assert first == [
        ("Bus", "voltage_magnitude", "1"), ("Bus", "voltage_magnitude", "2"), ("Bus", "voltage_magnitude", "0"),
        ("Bus", "voltage_angle", "1"), ("Tie", "current_magnitude", "A"), ("Tie to Bus", "current_angle", "A"),
        ("N", "current_magnitude", "0"), ("N to Bus", "current_angle", "0"), ("MW", "active_power", ""),
    ]  # fmt: skip
    assert second == [("r", "rocof", ""), ("v", "voltage_magnitude", ""), ("a", "voltage_angle", "")]
    assert third[:2] == [("V1", "voltage_magnitude", "1"), ("V2", "voltage_magnitude", "2")]
    assert fourth == []
    with_all = derive.plan(table, DeriveSettings(pass_through=True))
    assert names(with_all.table.pmus[0])[-2:] == [("T", "analog", ""), ("D", "digital", "")]
    a = ambient(table, 100)
    got = derived(block_of(a), DeriveSettings(pass_through=True))
    np.testing.assert_array_equal(series(got, 3, Quantity.ANALOG), raw(a, 3, Quantity.ANALOG))
    assert (got.quality[40:][:, got.table.present] < 128).all()
    assert not np.isnan(series(got, 2, VM, "V2")[40:]).any()


def test_nothing_in_nothing_out() -> None:
    for table in (ChannelTable(()), table_of(()), FOUR):
        empty = block_of(ambient(table, 0))
        state, out = derive.derive(derive.initial(table, RATE), empty)
        assert out.values.shape == (0, len(table.pmus), out.table.width)
        state, out = derive.derive(state, block_of(ambient(table, 5)))
        assert out.values.shape == (5, len(table.pmus), out.table.width)


def test_relayout_keeps_who_stays() -> None:
    a = ambient(FOUR, 300, seed=14)
    block = block_of(a)
    whole = derived(block)
    state, _ = derive.derive(derive.initial(FOUR, RATE), _rows(block, 0, 150))
    new = ChannelTable((FOUR.pmus[3], Pmu("new", 9, "new", 60, three_phase(), "x"), FOUR.pmus[1], FOUR.pmus[0]))
    state = derive.relayout(state, new)
    values = ambient(new, 300, seed=15).values
    values[:, [0, 2, 3]] = a.values[:, [3, 1, 0]]
    again = block_of(replace(a, table=new, values=values, stat=a.stat, received=a.received))
    state, second = derive.derive(state, _rows(again, 150, 300))
    for here, there in ((0, 3), (2, 1), (3, 0)):
        for c, channel in enumerate(second.table.pmus[here].channels):
            assert channel == whole.table.pmus[there].channels[c]
            assert (second.quality[:, here, c] == whole.quality[150:, there, c]).all()
            # the reference is made by others now, but goes on from where it was
            np.testing.assert_allclose(second.values[:, here, c], whole.values[150:, there, c], atol=0.05)
    assert np.isnan(series(second, 1, VM)[:29]).all()
    assert not np.isnan(series(second, 1, VM)[29:]).any()


def _rows(block: Block, lo: int, hi: int) -> Block:
    rows = slice(lo, hi)
    return Block(block.table, block.rate_hz, block.time_ns[rows], block.values[rows], block.quality[rows])
