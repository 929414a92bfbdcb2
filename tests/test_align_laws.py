from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from streams import align
from streams.align import Aligned, AlignSettings, AlignState, grid_of
from streams.block import FrameBatch
from streams.channels import Channel, ChannelTable, Pmu, Quantity
from streams.errors import AlignmentError
from tests.reference.align import Oracle

SECOND = 1_000_000_000
START = 1_700_000_000 * 30


def table(source: str, pmus: int = 1, channels: int = 2) -> ChannelTable:
    rows = tuple(Channel(f"C{c}", Quantity.ANALOG) for c in range(channels))
    return ChannelTable(tuple(Pmu(f"{source}{i}", i, source, 60, rows, source) for i in range(pmus)))


def batch(
    of: ChannelTable, slots: list[int], value: list[int], arrival: list[int] | None = None, rate_hz: float = 30.0
) -> FrameBatch:
    n, s, c = len(slots), len(of.pmus), of.width
    time_ns = grid_of(rate_hz).time(np.asarray(slots, np.int64)) if slots else np.zeros(0, np.int64)
    values = np.zeros((n, s, c), np.float32) + np.asarray(value, np.float32)[:, None, None]
    came = time_ns if arrival is None else np.asarray(arrival, np.int64)
    stat = np.broadcast_to(np.asarray(value, np.uint16)[:, None], (n, s))
    return FrameBatch(of, rate_hz, time_ns, np.full(n, 3, np.uint8), stat, values, came)


def joined(runs: list[Aligned]) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.bool_]]:
    return (
        np.concatenate([np.zeros(0, np.int64), *(r.time_ns for r in runs)]),
        np.concatenate([r.values for r in runs]) if runs else np.zeros((0, 1, 1), np.float32),
        np.concatenate([r.received for r in runs]) if runs else np.zeros((0, 1), bool),
    )


def play(
    state: AlignState, frames: list[tuple[int, int, int]], cuts: list[int], tables: dict[str, ChannelTable]
) -> tuple[AlignState, list[Aligned]]:
    """Frames as (source, slot, arrival), cut at some places; the value of a frame is its place in the list."""
    names = list(tables)
    runs: list[Aligned] = []
    edges = [0, *sorted(cuts), len(frames)]
    for lo, hi in itertools.pairwise(edges):
        parts = []
        for n, name in enumerate(names):
            mine = [i for i in range(lo, hi) if frames[i][0] == n]
            parts.append(
                (
                    name,
                    batch(tables[name], [frames[i][1] for i in mine], mine, [frames[i][2] for i in mine]),
                )
            )
        state, out = align.step(state, parts)
        runs += out
    state, out = align.close(state)
    return state, runs + list(out)


SCENE = st.lists(
    st.tuples(
        st.integers(0, 2),  # source
        st.one_of(st.integers(-9, 3), st.sampled_from([-40, 40, 300, 5000])),  # slot against the arrival
        st.one_of(st.integers(0, 2), st.sampled_from([0, 70, 200])),  # slots of arrival that pass before
    ),
    min_size=1,
    max_size=60,
)


@given(scene=SCENE, data=st.data())
@settings(max_examples=150, deadline=None)
def test_fate_of_every_frame_is_the_oracles_for_any_cut(scene: list[tuple[int, int, int]], data: st.DataObject) -> None:
    tables = {n: table(n) for n in "ABC"}
    now, frames = START, []
    for i, (source, off, pause) in enumerate(scene):
        now += pause
        frames.append((source, now + off, now * SECOND // 30 + i))
    # The first consensus is shown elsewhere: here all three begin in step.
    frames = [(n, START, START * SECOND // 30 - 3 + n) for n in range(3)] + frames
    cuts = data.draw(st.lists(st.integers(0, len(frames)), max_size=6))
    start = align.initial(tables, 30.0, AlignSettings(lateness_s=0.2, ahead_s=2.0, dead_s=1.0, gap_s=10.0))
    state, runs = play(start, frames, cuts, tables)

    oracle = Oracle(3, START, 6, 60, SECOND)
    for i, (source, slot, arrival) in enumerate(frames):
        oracle.take(source, slot, arrival, i)
    assert {k: getattr(state.counts, k).tolist() for k in oracle.counts} == oracle.counts

    time_ns, values, received = joined(runs)
    slots = grid_of(30.0).slot(time_ns)
    assert np.all(np.diff(slots) >= 1)
    assert all(np.all(np.diff(grid_of(30.0).slot(r.time_ns)) == 1) for r in runs)
    found = {(int(slots[t]), int(s)): int(values[t, s, 0]) for t, s in zip(*np.nonzero(received), strict=True)}
    assert found == oracle.cells
    assert np.all(np.isnan(values[~received]))


@given(
    seed=st.integers(0, 10**6),
    rate_hz=st.sampled_from([0.2, 1.0, 12.5, 30.0, 120.0]),
    cut=st.integers(1, 40),
)
@settings(max_examples=60, deadline=None)
def test_order_of_arrival_within_the_lateness_changes_nothing(seed: int, rate_hz: float, cut: int) -> None:
    rng = np.random.default_rng(seed)
    grid = grid_of(rate_hz)
    tables = {n: table(n, 2) for n in "AB"}
    late = 5
    it = AlignSettings(lateness_s=late / rate_hz)
    slots = int(grid.slot(np.asarray(START * SECOND // 30))) + np.arange(40)
    frames = [(n, k, 100 * n + i) for n in range(2) for i, k in enumerate(slots) if rng.random() > 0.1 or not i]
    results = []
    for shuffled in (False, True):
        delay = rng.uniform(0, late, len(frames)) if shuffled else np.zeros(len(frames))
        order = np.argsort([f[1] + d for f, d in zip(frames, delay, strict=True)], kind="stable")
        state, runs = align.initial(tables, rate_hz, it), []
        for lo in range(0, len(order), cut):
            parts = []
            for n, name in enumerate(tables):
                mine = [frames[i] for i in order[lo : lo + cut] if frames[i][0] == n]
                came = [int(grid.time(np.asarray(frames[i][1])) + delay[i] * SECOND / rate_hz)
                        for i in order[lo : lo + cut] if frames[i][0] == n]  # fmt: skip
                parts.append((name, batch(tables[name], [m[1] for m in mine], [m[2] for m in mine], came, rate_hz)))
            state, out = align.step(state, parts)
            runs += out
        state, out = align.close(state)
        results.append((joined(runs + list(out)), state.counts))
    (plain, counts), (shuffled_, counts_) = results
    for a, b in zip(plain, shuffled_, strict=True):
        np.testing.assert_array_equal(a, b)
    assert counts.accepted.sum() == len(frames) == counts_.accepted.sum()


@given(
    rate_hz=st.sampled_from([0.05, 0.2, 1.0, 10.0, 12.5, 29.97, 30.0, 50.0, 60.0, 120.0]),
    second=st.integers(0, 4 * 10**9),
    jitter=st.floats(-0.49, 0.49),
)
def test_slot_is_the_nearest_on_the_grid(rate_hz: float, second: int, jitter: float) -> None:
    grid = grid_of(rate_hz)
    slot = int(second * rate_hz)
    time_ns = grid.time(np.asarray([slot]))
    assert grid.slot(time_ns + round(jitter * SECOND / rate_hz)) == slot
    exact = slot * SECOND * grid.denominator
    assert abs(int(time_ns[0]) * grid.numerator - exact) <= grid.numerator // 2 + 1


def test_time_stamps_on_the_grid_only_to_rounding() -> None:
    tables = {"A": table("A")}
    of = tables["A"]
    times = np.asarray(
        [START * SECOND // 30 + k * 33_333_000 for k in range(30)], np.int64
    )  # truncated to microseconds
    b = FrameBatch(
        of, 30.0, times, np.zeros(30, np.uint8), np.zeros((30, 1), np.uint16), np.ones((30, 1, 2), np.float32), times
    )
    state, runs = align.step(align.initial(tables, 30.0), [("A", b)])
    state, rest = align.close(state)
    time_ns, _, received = joined([*runs, *rest])
    assert len(time_ns) == 30
    assert received.all()
    assert abs(time_ns - times).max() < 20_000


def test_slot_closes_as_soon_as_all_have_delivered() -> None:
    tables = {n: table(n) for n in "AB"}
    state = align.initial(tables, 30.0)
    state, runs = align.step(state, [(n, batch(tables[n], list(range(START, START + 60)), [1] * 60)) for n in "AB"])
    assert joined(list(runs))[0][-1] == grid_of(30.0).time(np.asarray(START + 59))
    state, runs = align.step(state, [("A", batch(tables["A"], [START + 60], [1]))])
    assert not runs
    state, runs = align.step(state, [("B", batch(tables["B"], [START + 60], [1]))])
    assert len(runs[0].time_ns) == 1
    assert len(state.values) == 0


def test_dead_source_holds_nobody_back() -> None:
    tables = {n: table(n) for n in "AB"}
    state = align.initial(tables, 30.0)
    state, _ = align.step(state, [(n, batch(tables[n], list(range(START, START + 60)), [1] * 60)) for n in "AB"])
    delays = []
    for k in range(START + 60, START + 60 + 150):
        state, runs = align.step(state, [("A", batch(tables["A"], [k], [1]))])
        newest = grid_of(30.0).slot(runs[-1].time_ns)[-1] if runs else None
        delays.append(None if newest is None else k - int(newest))
        for run in runs:
            assert run.received[:, 0].all()
            assert not run.received[:, 1].any()
            assert np.isnan(run.values[:, 1]).all()
    assert delays[40] == 31  # waits for the lateness at first
    assert delays[-1] == 0  # then no longer
    # It comes back: taken up from the first slot that nobody has delivered yet.
    back = START + 210
    state, _ = align.step(state, [("A", batch(tables["A"], [back], [1])), ("B", batch(tables["B"], [back], [1]))])
    state, runs = align.step(state, [(n, batch(tables[n], [back + 1], [1])) for n in "AB"])
    assert state.counts.late.tolist() == [0, 1]
    assert runs[-1].received[-1].all()


def test_wall_clock_closes_when_frames_stop() -> None:
    tables = {n: table(n) for n in "AB"}
    state = align.initial(tables, 30.0, AlignSettings(lateness_s=1.0, grace_s=0.5))
    state, _ = align.step(state, [(n, batch(tables[n], list(range(START, START + 60)), [1] * 60)) for n in "AB"])
    last = START + 60
    state, runs = align.step(state, [("A", batch(tables["A"], [last], [1]))])
    came = int(grid_of(30.0).time(np.asarray(last)))
    state, runs = align.step(state, [], came + SECOND)
    assert not runs
    state, runs = align.step(state, [], came + 2 * SECOND)
    slots = grid_of(30.0).slot(runs[0].time_ns)
    assert slots.tolist() == list(range(last, last + 15))  # half a second further than lateness and grace
    assert runs[0].received[0].tolist() == [True, False]
    assert not runs[0].received[1:].any()
    # A frame for a closed slot is late, the next ones go on without a hole.
    state, runs = align.step(
        state, [("B", batch(tables["B"], [last + 3], [1], [came + 2 * SECOND]))], came + 2 * SECOND
    )
    assert state.counts.late.tolist() == [0, 1]
    more = list(range(last + 15, last + 90))
    state, runs = align.step(state, [(n, batch(tables[n], more, [1] * 75)) for n in "AB"])
    assert grid_of(30.0).slot(runs[0].time_ns)[0] == last + 15
    assert state.counts.accepted.tolist() == [61 + 75, 60 + 75]


def test_wild_clock_closes_nobodys_slots() -> None:
    tables = {n: table(n) for n in "ABC"}
    state = align.initial(tables, 30.0)
    for k in range(START, START + 300):
        wild = k + 30 * 3600 if k > START + 30 else k
        parts = [("A", batch(tables["A"], [k], [1])), ("B", batch(tables["B"], [k], [1]))]
        parts.append(("C", batch(tables["C"], [wild], [1])))
        state, runs = align.step(state, parts)
    assert state.counts.accepted.tolist() == [300, 300, 31]
    assert state.counts.ahead.tolist() == [0, 0, 269]
    assert grid_of(30.0).slot(runs[-1].time_ns)[-1] == START + 299  # and waits for it no more
    # Everybody moves: believed as soon as most do.
    moved = START + 10**7
    for k in range(moved, moved + 60):
        state, runs = align.step(state, [(n, batch(tables[n], [k], [1])) for n in "ABC"])
    assert state.counts.ahead.tolist() == [1, 0, 269]
    assert grid_of(30.0).slot(runs[-1].time_ns)[-1] == moved + 59


@pytest.mark.parametrize("wild", [-(10**8), 10**8])
def test_first_source_heard_has_a_wild_clock(wild: int) -> None:
    tables = {n: table(n) for n in "ABC"}
    state = align.initial(tables, 30.0)
    runs: list[Aligned] = []
    for k in range(START, START + 60):
        parts = [(n, batch(tables[n], [k + wild * (n == "A")], [1], [k * SECOND // 30])) for n in "ABC"]
        for part in parts:
            state, out = align.step(state, [part])
            runs += out
    state, out = align.close(state)
    time_ns, _, received = joined([*runs, *out])
    assert len(time_ns) == 60
    assert received[:, 1:].all()
    assert not received[:, 0].any()


def test_lone_source_may_jump_and_the_run_ends() -> None:
    tables = {"A": table("A")}
    slots = [*range(START, START + 50), *range(START + 10**6, START + 10**6 + 50)]
    state, runs = align.step(align.initial(tables, 30.0), [("A", batch(tables["A"], slots, list(range(100))))])
    state, rest = align.close(state)
    assert next(len(r.time_ns) for r in (*runs, *rest)) == 50
    assert len(joined([*runs, *rest])[0]) == 100
    assert state.counts.accepted.tolist() == [100]


def test_gap_within_the_bound_is_filled() -> None:
    tables = {"A": table("A")}
    slots = [*range(START, START + 50), *range(START + 350, START + 400)]
    state, runs = align.step(align.initial(tables, 30.0), [("A", batch(tables["A"], slots, list(range(100))))])
    _, rest = align.close(state)
    time_ns, _, received = joined([*runs, *rest])
    assert len(time_ns) == 400
    assert received.sum() == 100


def test_mixed_rates_are_refused() -> None:
    tables = {n: table(n) for n in "AB"}
    state = align.initial(tables, 30.0)
    with pytest.raises(AlignmentError, match="'B' reports at 60 Hz, the others at 30 Hz"):
        align.step(state, [("B", batch(tables["B"], [START], [1], rate_hz=60.0))])


def test_changed_configuration_is_refused_until_laid_out_anew() -> None:
    tables = {"A": table("A", 2), "B": table("B")}
    state = align.initial(tables, 30.0)
    parts = [(n, batch(tables[n], list(range(START, START + 40)), list(range(40)))) for n in tables]
    state, _ = align.step(state, parts)
    state, _ = align.step(state, [("A", batch(tables["A"], [START + 40], [40]))])  # open: B has not come
    wider = table("B", 2, 3)
    with pytest.raises(AlignmentError, match="'B' has changed its configuration"):
        align.step(state, [("B", batch(wider, [START + 40], [40]))])
    state = align.relayout(state, {"C": table("C"), "A": tables["A"], "B": wider})
    assert [p.name for p in state.layout.table.pmus] == ["C0", "A0", "A1", "B0", "B1"]
    new = dict(zip(state.layout.sources, state.layout.tables, strict=True))
    state, runs = align.step(state, [("B", batch(wider, [START + 40], [7]))])
    assert len(runs) == 1
    np.testing.assert_array_equal(runs[0].received, [[False, True, True, True, True]])
    np.testing.assert_array_equal(runs[0].values[0, :, 0], [np.nan, 40, 40, 7, 7])
    state, runs = align.step(state, [(n, batch(new[n], [START + 41], [1])) for n in new])
    assert runs[0].received.all()
    assert state.counts.accepted.tolist() == [1, 42, 42]


def test_names_shared_by_two_sources_are_told_apart() -> None:
    layout = align.lay_out({"x": table("A"), "y": table("A"), "z": table("B")})
    assert [p.name for p in layout.table.pmus] == ["x/A0", "y/A0", "B0"]
    assert layout.source_of.tolist() == [0, 1, 2]


def test_state_given_is_never_changed() -> None:
    tables = {n: table(n) for n in "AB"}
    state = align.initial(tables, 30.0)
    state, _ = align.step(state, [("A", batch(tables["A"], list(range(START, START + 9)), list(range(9))))])
    state, _ = align.step(state, [("B", batch(tables["B"], list(range(START, START + 4)), list(range(4))))])
    kept = {f: np.array(getattr(state, f)) for f in ("values", "stat", "received", "heard", "live_from", "claim")}
    parts = [("B", batch(tables["B"], list(range(START + 4, START + 60)), list(range(56))))]
    first = align.step(state, parts)
    again = align.step(state, parts)
    for name, array in kept.items():
        np.testing.assert_array_equal(getattr(state, name), array)
    np.testing.assert_array_equal(first[0].values, again[0].values)


@pytest.mark.parametrize("rate_hz", [0.0, -5.0, float("nan"), 1e-5, 5000.0])
def test_impossible_rates_are_refused(rate_hz: float) -> None:
    with pytest.raises(AlignmentError, match="reporting rate"):
        grid_of(rate_hz)


def test_a_reader_that_gives_sources_in_turn_is_fed_round_by_round() -> None:
    tables = {n: table(n) for n in "ABC"}
    stretches = []
    for k in range(10):  # five seconds each, far more than the lateness; sometimes somebody is silent
        slots = list(range(START + 150 * k, START + 150 * (k + 1)))
        stretches += [(n, batch(tables[n], slots, [k] * 150)) for n in "ABC" if (k, n) not in {(3, "A"), (5, "C")}]
    state, runs = align.initial(tables, 30.0), []
    for together in align.rounds(iter(stretches), "ABC"):
        state, out = align.step(state, together)
        runs += out
    state, out = align.close(state)
    assert state.counts.late.tolist() == [0, 0, 1]  # the frame with which C came back, after A's and B's of that time
    assert len(joined([*runs, *out])[0]) == 1500
