"""A fault is not bad data: whatever the grid does, nothing of it may be masked."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from streams import quality
from streams.align import Aligned
from streams.block import MARK_ONLY, Block, Reason
from streams.channels import Quantity
from tests.reference.scene import IA, IM, VA, VM, ambient, one_phasor, table_of, three_phase

RATE = 30.0
FRAMES = 450
TABLE = table_of(*([one_phasor(nominal=300e3)] * 3), *([three_phase()] * 3))
AT = 200
HERTZ = Quantity.FREQUENCY


def judged(aligned: Aligned, settings: quality.QualitySettings | None = None) -> Block:
    state, block = quality.judge(quality.initial(aligned.table, aligned.rate_hz, settings), aligned)
    _, rest = quality.flush(state)
    return Block(
        block.table, block.rate_hz, np.concatenate([block.time_ns, rest.time_ns]),
        np.concatenate([block.values, rest.values]), np.concatenate([block.quality, rest.quality]),
    )  # fmt: skip


def columns(pmu: int, *quantities: Quantity) -> NDArray[np.intp]:
    return np.flatnonzero(TABLE.where(*quantities)[pmu])


def scale(a: Aligned, rows: slice, pmu: int, quantity: Quantity, factor: float) -> None:
    for c in columns(pmu, quantity):
        a.values[rows, pmu, c] *= factor


def turn(a: Aligned, rows: slice, pmu: int, degrees: NDArray[np.float64] | float) -> None:
    for c in columns(pmu, VA, IA):
        a.values[rows, pmu, c] = (a.values[rows, pmu, c] + degrees + 180) % 360 - 180


def bolted_dip(a: Aligned) -> None:
    """Three-phase fault beside PMU 0 and 3: 0 V for 4 frames; the others see it at a distance."""
    rows = slice(AT, AT + 4)
    for pmu, depth in enumerate([0.0, 0.4, 0.85, 0.0, 0.7, 0.95]):
        scale(a, rows, pmu, VM, depth)
        scale(a, rows, pmu, IM, 8.0 if depth == 0 else 2.0)
        turn(a, rows, pmu, -25.0 * (1 - depth))
        a.values[AT, pmu, columns(pmu, HERTZ)] -= 0.6
        a.values[AT + 4, pmu, columns(pmu, HERTZ)] += 0.9
        a.values[AT : AT + 5, pmu, columns(pmu, Quantity.ROCOF)] += 25.0


def one_frame_dip(a: Aligned) -> None:
    """Cleared within a frame, seen by one PMU alone, with its frequency and angle thrown for that frame."""
    rows = slice(AT, AT + 1)
    scale(a, rows, 1, VM, 0.55)
    scale(a, rows, 1, IM, 4.0)
    turn(a, rows, 1, -12.0)
    a.values[AT, 1, columns(1, HERTZ)] -= 0.8
    a.values[AT, 1, columns(1, Quantity.ROCOF)] += 30.0


def single_phase_fault(a: Aligned) -> None:
    rows = slice(AT, AT + 3)
    phase_a = int(columns(3, VM)[0])
    a.values[rows, 3, phase_a] *= 0.1
    a.values[AT, 3, columns(3, HERTZ)] += 0.3


def generator_trip(a: Aligned) -> None:
    t = np.arange(FRAMES - AT) / RATE
    sag = -0.15 * (1 - np.exp(-t / 3)) - 0.02 * np.exp(-t / 4) * np.sin(2 * np.pi * 0.5 * t)
    for pmu in range(6):
        a.values[AT:, pmu, columns(pmu, HERTZ)] += sag[:, None].astype(np.float32)
        turn(a, slice(AT, None), pmu, np.cumsum(sag) * 360 / RATE)


def line_trip(a: Aligned) -> None:
    """Angles step by degrees, frequency made from them spikes for a frame; voltages hardly move."""
    for pmu, step in enumerate([4.0, 2.5, 1.2, -2.0, -0.8, -0.3]):
        turn(a, slice(AT, None), pmu, step)
        a.values[AT, pmu, columns(pmu, HERTZ)] += step / 360 * RATE
        a.values[AT, pmu, columns(pmu, Quantity.ROCOF)] += step / 360 * RATE**2
        scale(a, slice(AT, None), pmu, VM, 1 - 0.001 * abs(step))
    scale(a, slice(AT, None), 0, IM, 0.0)  # its line is open now: no current for the rest of the day


def islanding(a: Aligned) -> None:
    t = np.arange(FRAMES - AT) / RATE
    for pmu in range(6):
        away = (0.8 if pmu < 3 else -0.5) * (1 - np.exp(-t / 2))
        a.values[AT:, pmu, columns(pmu, HERTZ)] += away[:, None].astype(np.float32)
        turn(a, slice(AT, None), pmu, np.cumsum(away) * 360 / RATE)


def forced_oscillation(a: Aligned) -> None:
    t = np.arange(FRAMES) / RATE
    for pmu in range(6):
        wave = (0.05 * np.sin(2 * np.pi * 4.7 * t)).astype(np.float32)[:, None]
        a.values[:, pmu, columns(pmu, HERTZ)] += wave
        a.values[:, pmu, columns(pmu, VM)] *= 1 + wave / 5
        a.values[:, pmu, columns(pmu, IM)] *= 1 + wave


def collapse(a: Aligned) -> None:
    fall = np.linspace(1, 0.5, FRAMES - AT).astype(np.float32)[:, None]
    for pmu in range(6):
        a.values[AT:, pmu, columns(pmu, VM)] *= fall


def load_rejection(a: Aligned) -> None:
    for pmu in range(6):
        scale(a, slice(AT, None), pmu, VM, 1.3)
        scale(a, slice(AT, None), pmu, IM, 0.02)
        a.values[AT:, pmu, columns(pmu, HERTZ)] += np.minimum(np.arange(FRAMES - AT) / RATE, 2.5)[:, None].astype("f4")
        turn(a, slice(AT, None), pmu, np.cumsum(np.minimum(np.arange(FRAMES - AT) / RATE, 2.5)) * 360 / RATE)


@pytest.mark.parametrize(
    "happen",
    [
        bolted_dip, one_frame_dip, single_phase_fault, generator_trip, line_trip, islanding, forced_oscillation,
        collapse, load_rejection,
    ],
)  # fmt: skip
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_nothing_that_a_grid_does_is_masked(happen: Callable[[Aligned], None], seed: int) -> None:
    aligned = ambient(TABLE, FRAMES, RATE, seed)
    happen(aligned)
    block = judged(aligned)
    own = np.broadcast_to(TABLE.present, block.quality.shape)
    masked = own & ~block.good
    what = [
        (int(t), int(s), TABLE.pmus[s].channels[c], Reason(block.quality[t, s, c])) for t, s, c in np.argwhere(masked)
    ]
    assert not what[:5]
    np.testing.assert_array_equal(block.values[own], aligned.values[own])


def test_a_dip_is_marked() -> None:
    aligned = ambient(TABLE, FRAMES, RATE, 1)
    bolted_dip(aligned)
    block = judged(aligned)
    volts = columns(0, VM)
    assert (block.quality[AT : AT + 4, 0, volts] == Reason.EXCURSION).all()
    aligned = ambient(TABLE, FRAMES, RATE, 1)
    one_frame_dip(aligned)
    block = judged(aligned)
    assert (block.quality[AT, 1, columns(1, VM)] == Reason.SUSPECT_SPIKE).all()
    assert (block.quality >= MARK_ONLY).sum() == 2  # its voltage and its current, and no more


def test_ambient_is_plainly_good() -> None:
    for rate_hz, nominal in ((30.0, 60), (50.0, 50), (10.0, 60), (1.0, 50), (120.0, 60)):
        table = table_of(*([one_phasor(nominal=300e3)] * 3), three_phase(), nominal_hz=nominal)
        block = judged(ambient(table, 1500, rate_hz, 7))
        assert (block.quality[:, table.present] == 0).all()


def test_many_spikes_at_once_are_the_grids() -> None:
    """One frame, no voltage: a data fault if alone, the grid if in company."""
    alone, company = ambient(TABLE, FRAMES, RATE, 4), ambient(TABLE, FRAMES, RATE, 4)
    alone.values[AT, 2, columns(2, HERTZ)] += 0.4
    for pmu, size in ((2, 0.4), (0, 0.02), (4, -0.03)):
        company.values[AT, pmu, columns(pmu, HERTZ)] += size
    assert (judged(alone).quality[AT, 2, columns(2, HERTZ)] == Reason.SPIKE).all()
    assert (judged(company).quality[:, TABLE.present] == 0).all()
