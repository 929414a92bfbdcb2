"""Which channel stands in which slot: second currents in view 1, nothing where there is nothing, there and back."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from models.layout import place
from models.spec import SLOTS

WORDS = st.sampled_from([*SLOTS, "sequence ratio"])


def test_a_second_current_stands_in_view_1() -> None:
    one = [*SLOTS]
    two = ["voltage_magnitude", "current_magnitude", "harmonics", "current_magnitude", "reactive_power"]
    layout = place(SLOTS, [one, two], ["west", "west"])
    np.testing.assert_array_equal(
        layout.channel,
        [[[0, 1, 2, 3, 4, 5, 6], [-1] * 7], [[-1, -1, 0, -1, 1, -1, 4], [-1, -1, -1, -1, 3, -1, -1]]],
    )
    np.testing.assert_array_equal(layout.views, [0, 2, 3])
    np.testing.assert_array_equal(layout.stream_pmu, [0, 1, 1])
    assert layout.streams == 3
    np.testing.assert_array_equal(layout.predicted[1], [True, True, False, True, True, False, False])


def test_views_of_one_number_of_one_region_stand_together() -> None:
    two = [*SLOTS, "current_magnitude"]
    layout = place(SLOTS, [two, [*SLOTS], two, two], ["west", "west", "", "east"])
    region = layout.stream_region
    assert layout.streams == 7
    assert region[0] == region[2] >= 0
    assert region[1] >= 0
    assert region[3] == region[4] == -1
    assert len(np.unique(region[[0, 1, 5, 6]])) == 4


@given(quantities=st.lists(st.lists(WORDS, max_size=12), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_there_and_back(quantities: list[list[str]], seed: int) -> None:
    layout = place(SLOTS, quantities, ["one"] * len(quantities))
    predicted = [[name in SLOTS for name in names] + [False] * (layout.width - len(names)) for names in quantities]
    np.testing.assert_array_equal(layout.predicted, np.asarray(predicted, bool).reshape(len(quantities), -1))
    block = np.random.default_rng(seed).normal(size=(3, len(quantities), layout.width)).astype(np.float32)
    slots = layout.gather(block, np.nan)
    assert slots.shape == (3, layout.streams, len(SLOTS))
    assert (~np.isnan(slots)).any(2).all()
    assert (~np.isnan(slots)).sum() == 3 * layout.predicted.sum()
    back = layout.scatter(np.stack([slots, -slots], axis=3))
    expected = np.where(layout.predicted, block, np.nan)
    np.testing.assert_array_equal(back, np.stack([expected, -expected], axis=3))
    good = layout.gather(np.ones(block.shape, bool), absent=False)
    np.testing.assert_array_equal(good, ~np.isnan(slots))


@given(quantities=st.lists(st.lists(WORDS, max_size=12), min_size=1, max_size=5))
def test_every_channel_stands_under_its_own_quantity_in_the_order_of_the_pmu(quantities: list[list[str]]) -> None:
    layout = place(SLOTS, quantities, [""] * len(quantities))
    for names, channel in zip(quantities, layout.channel, strict=True):
        for c, slot in enumerate(SLOTS):
            there = [place for place, name in enumerate(names) if name == slot]
            assert channel[:, c].tolist() == there + [-1] * (len(channel) - len(there))


def test_no_pmu_is_no_trouble() -> None:
    layout = place(SLOTS, [], [])
    assert layout.streams == 0
    assert layout.gather(np.zeros((4, 0, 0), np.float32), np.nan).shape == (4, 0, 7)
    assert layout.scatter(np.zeros((4, 0, 7, 2), np.float32)).shape == (4, 0, 0, 2)
