from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from streams import derive, quality
from streams.align import Aligned
from streams.block import Block
from streams.derive import DeriveSettings
from streams.quality import QualitySettings
from tests.reference.scene import ambient, one_phasor, part, spoil, table_of, three_phase

TABLE = table_of(one_phasor(), three_phase(), one_phasor(nominal=300e3), three_phase())
BRIEF = QualitySettings(stuck_s=0.5, stuck_lone_s=1.0, zero_s=0.3, stuck_values=5)


def through(
    aligned: Aligned, cuts: list[int], brief: QualitySettings, reference: tuple[str, ...]
) -> tuple[Block, Block]:
    judging = quality.initial(aligned.table, aligned.rate_hz, brief)
    deriving = derive.initial(aligned.table, aligned.rate_hz, DeriveSettings(reference=reference))
    judged, derived = [], []
    for lo, hi in itertools.pairwise([0, *sorted(cuts), len(aligned.time_ns)]):
        judging, block = quality.judge(judging, part(aligned, lo, hi))
        deriving, out = derive.derive(deriving, block)
        judged.append(block)
        derived.append(out)
    judging, block = quality.flush(judging)
    deriving, out = derive.derive(deriving, block)
    return joined([*judged, block]), joined([*derived, out])


def joined(blocks: list[Block]) -> Block:
    return Block(
        blocks[0].table, blocks[0].rate_hz, np.concatenate([b.time_ns for b in blocks]),
        np.concatenate([b.values for b in blocks]), np.concatenate([b.quality for b in blocks]),
    )  # fmt: skip


def assert_same(a: Block, b: Block) -> None:
    np.testing.assert_array_equal(a.time_ns, b.time_ns)
    np.testing.assert_array_equal(a.quality, b.quality)
    np.testing.assert_array_equal(a.values.view(np.uint32), b.values.view(np.uint32))


@given(
    seed=st.integers(0, 10**6),
    rate_hz=st.sampled_from([1.0, 10.0, 30.0]),
    reference=st.sampled_from([(), ("P2",), ("P9", "P1", "P0")]),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_cutting_the_stream_changes_no_bit(
    seed: int, rate_hz: float, reference: tuple[str, ...], data: st.DataObject
) -> None:
    aligned = spoil(ambient(TABLE, 200, rate_hz, seed), seed)
    cuts = data.draw(st.lists(st.integers(0, 200), max_size=12))
    whole = through(aligned, [], BRIEF, reference)
    pieces = through(aligned, cuts, BRIEF, reference)
    assert_same(whole[0], pieces[0])
    assert_same(whole[1], pieces[1])
    assert len(whole[1].time_ns) == 200
    masked = ~whole[1].good
    assert np.isnan(whole[1].values[masked]).all()
    assert np.isfinite(whole[1].values[~masked]).all()


def test_frame_by_frame_is_the_same_too() -> None:
    aligned = spoil(ambient(TABLE, 120, 30.0, 5), 5)
    whole = through(aligned, [], BRIEF, ())
    single = through(aligned, list(range(120)), BRIEF, ())
    assert_same(whole[0], single[0])
    assert_same(whole[1], single[1])


def test_no_other_pmus_signal_depends_on_one_that_is_spoilt() -> None:
    """All but the angles, whose reference is everybody's."""
    clean, dirty = ambient(TABLE, 200, 30.0, 1), ambient(TABLE, 200, 30.0, 1)
    dirty.values[40:120, 0] = np.nan
    dirty.received[40:120, 0] = False
    a, b = through(clean, [], BRIEF, ())[1], through(dirty, [], BRIEF, ())[1]
    np.testing.assert_array_equal(a.quality[:, 1:], b.quality[:, 1:])
    np.testing.assert_allclose(a.values[:, 1:], b.values[:, 1:], atol=0.05)


@given(seed=st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_garbage_raises_nothing_and_harms_nobody_else(seed: int) -> None:
    """Whatever 32 bits a device sends; the others' own signals stay as they were."""
    rng = np.random.default_rng(seed)
    aligned, clean = ambient(TABLE, 120, 30.0, seed), ambient(TABLE, 120, 30.0, seed)
    hit = rng.random((120, TABLE.width)) < rng.choice([0.05, 1.0])
    bits = rng.integers(0, 2**32, (120, TABLE.width), dtype=np.uint32).view(np.float32)
    aligned.values[:, 1] = np.where(hit, bits, aligned.values[:, 1])
    aligned.stat[:, 1] = rng.integers(0, 2**16, 120)
    judged, derived = through(aligned, [50], BRIEF, ())
    for block in (judged, derived):
        assert np.isfinite(block.values[block.good]).all()
    want = through(clean, [50], BRIEF, ())[0]
    # Shared: whether a spike or a standstill has company. Neither is in the clean ones.
    np.testing.assert_array_equal(judged.quality[:, [0, 2, 3]], want.quality[:, [0, 2, 3]])
    np.testing.assert_array_equal(judged.values[:, [0, 2, 3]], want.values[:, [0, 2, 3]])
