"""What is served: frames as captured, PMUs cut out, concentrators made up; and when, in turns and shifts."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from fastcrc.crc16 import ibm_3740
from hypothesis import given, settings
from hypothesis import strategies as st

from gridsense import convert
from gridsense.errors import InputError, UsageError
from gridsense.simulator.frames import apart, sealed, shifted, times
from gridsense.simulator.playback import Playback
from gridsense.simulator.script import Script, made_script, read_script
from gridsense.sources import open_source, read_rounds
from streams.archives import write_parquet
from streams.block import FrameBatch
from streams.c37118.configuration import encode_configuration
from streams.c37118.frame import FrameType
from streams.c37118.samples import compile_layout, decode
from streams.c37118.stream import StreamParser
from streams.captures import read_capture
from streams.channels import ChannelTable
from tests.reference.small_grid import CHANNELS, RATE, START_NS, small_grid

CAPTURES = Path(__file__).parents[2] / "shared" / "data" / "real"
SECOND = 10**9


def side_by_side(path: Path, *batches: FrameBatch) -> Path:
    """Write sources of equal length as one archive."""
    table = ChannelTable(tuple(p for b in batches for p in b.table.pmus))
    first = batches[0]
    whole = replace(
        first,
        table=table,
        stat=np.concatenate([b.stat for b in batches], 1),
        values=np.concatenate([b.values for b in batches], 1),
    )
    write_parquet(path, whole)
    return path


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("simulator")
    north, south = small_grid("north", 11, 3, 1, seconds=7), small_grid("south", 21, 2, 2, seconds=7)
    return side_by_side(folder / "grid.parquet", north, south)


def frames_of(script: Script, stream: int) -> list[bytes]:
    return [f for pieces in script.rounds() for p in pieces if p.stream == stream for f in apart(p.octets)]


def decoded(script: Script, stream: int) -> FrameBatch:
    layout = compile_layout(script.streams[stream].configuration, script.streams[stream].name)
    return decode(layout, b"".join(frames_of(script, stream)))


def told(table: ChannelTable) -> list[tuple[object, ...]]:
    """What C37.118 says of a table: all but the nominal values of phasors and the name of the frequency."""
    return [
        (p.name, p.id_code, p.station, p.nominal_hz, p.source, [(c.quantity, c.phase, c.unit) for c in p.channels])
        for p in table.pmus
    ]


def test_an_archive_is_served_source_by_source_with_its_names_and_values(archive: Path) -> None:
    script = read_script([archive])
    assert [s.name for s in script.streams] == ["north", "south"]
    assert len({s.id_code for s in script.streams}) == 2
    read: dict[str, list[FrameBatch]] = {}
    for together in read_rounds([open_source(archive)]):
        for _, batch in together:
            read.setdefault(batch.table.pmus[0].source, []).append(batch)
    for place, stream in enumerate(script.streams):
        batch = decoded(script, place)
        parts = read[stream.name]
        own = len(CHANNELS)
        assert [(p.name, p.id_code, p.source) for p in batch.table.pmus] == [
            (p.name, p.id_code, p.source) for p in parts[0].table.pmus
        ]
        assert np.abs(batch.time_ns - np.concatenate([b.time_ns for b in parts])).max() <= 500
        np.testing.assert_allclose(batch.values[..., :own], np.concatenate([b.values for b in parts]), rtol=3e-7)


def test_rounds_are_seconds_in_order(archive: Path) -> None:
    rounds = list(read_script([archive]).rounds())
    assert len(rounds) == 7
    last = 0
    for pieces in rounds:
        due = np.concatenate([p.due_ns for p in pieces])
        assert due.min() > last
        assert due.max() - due.min() < SECOND
        last = int(due.max())


def test_captured_frames_are_served_byte_for_byte_and_garbage_is_not(archive: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain.c37118"
    convert.convert(archive, plain, None, lambda _: None)
    octets = plain.read_bytes()
    spoiled = tmp_path / "spoiled.c37118"
    middle = len(octets) // 2
    start = octets.index(b"\xaa\x02", middle)
    size = int.from_bytes(octets[start + 2 : start + 4], "big")
    damaged = bytearray(octets[start : start + size])
    damaged[20] ^= 0x40
    spoiled.write_bytes(octets[:start] + b"\xaa\x02\xff\xff rubbish" + bytes(damaged) + octets[start + size :])
    script, whole = read_script([spoiled]), read_script([plain])
    assert [s.id_code for s in script.streams] == [1, 2]
    assert [s.name for s in script.streams] == ["spoiled.c37118#1", "spoiled.c37118#2"]
    served = [frames_of(script, 0), frames_of(script, 1)]
    expected = [frames_of(whole, 0), frames_of(whole, 1)]
    assert sum(map(len, expected)) == 2 * 7 * RATE
    assert sum(map(len, served)) == 2 * 7 * RATE - 1
    for own, full in zip(served, expected, strict=True):
        assert [f for f in full if f in set(own)] == own
        assert all(octets.count(f) == 1 for f in own)


@pytest.mark.parametrize(
    ("name", "frames"),
    [("C37.118_4in1PMU_TCP", [1342]), ("C37.118_2PMUsInSync_TCP", [1501, 1501]), ("C37.118_1PMU_UDP", [356])],
)
def test_real_captures_are_served_byte_for_byte(name: str, frames: list[int]) -> None:
    path = CAPTURES / "c37118_pcaps" / f"{name}.pcap"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    script = read_script([path])
    flows: dict[str, bytes] = {}
    for chunk in read_capture(path):
        flows[chunk.flow] = flows.get(chunk.flow, b"") + chunk.data
    for place, count in enumerate(frames):
        served = frames_of(script, place)
        assert len(served) == count
        assert all(any(frame in octets for octets in flows.values()) for frame in served)
        assert not any(map(ibm_3740, served))
        configuration = script.streams[place].configuration
        text = b"".join(encode_configuration(configuration)) + b"".join(served)
        parser = StreamParser()
        (batch,) = [i for i in parser.feed(text) if isinstance(i, FrameBatch)]
        assert len(batch.time_ns) == count


def test_ieee_1344_is_served_as_c37118() -> None:
    path = CAPTURES / "shelby" / "Sample1344.PmuCapture"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    script = read_script([path])
    (stream,) = script.streams
    assert stream.configuration.version == 2
    batch = decoded(script, 0)
    read = [b for together in read_rounds([open_source(path)]) for _, b in together]
    np.testing.assert_allclose(batch.values, np.concatenate([b.values for b in read]), rtol=1e-6)
    assert told(batch.table) == told(read[0].table)


def test_split_serves_each_pmu_alone_with_the_bytes_that_it_had(archive: Path) -> None:
    whole, split = read_script([archive]), read_script([archive], split=True)
    assert [s.name for s in split.streams] == ["north0", "north1", "north2", "south0", "south1"]
    assert len({s.id_code for s in split.streams}) == 5
    expected = np.concatenate([decoded(whole, 0).values, decoded(whole, 1).values], 1)
    for place, stream in enumerate(split.streams):
        batch = decoded(split, place)
        assert [p.name for p in batch.table.pmus] == [stream.name]
        np.testing.assert_array_equal(batch.values[:, 0], expected[:, place])
        assert not any(map(ibm_3740, frames_of(split, place)))


def test_pmus_of_one_name_are_split_under_different_names(tmp_path: Path) -> None:
    batch = small_grid("north", 11, 2, 1, seconds=2)
    pmus = tuple(replace(p, name=f"Bus {p.id_code}", station="Bus") for p in batch.table.pmus)
    path = tmp_path / "twins.parquet"
    write_parquet(path, replace(batch, table=ChannelTable(pmus)))
    assert [s.name for s in read_script([path], split=True).streams] == ["Bus 11", "Bus 12"]


def test_files_run_side_by_side(tmp_path: Path) -> None:
    first, second = tmp_path / "a.parquet", tmp_path / "b.parquet"
    write_parquet(first, small_grid("same", 1, 1, 1, seconds=3))
    later = small_grid("same", 2, 1, 2, seconds=3)
    write_parquet(second, replace(later, time_ns=later.time_ns + SECOND, arrival_ns=later.time_ns + SECOND))
    script = read_script([first, second])
    assert [s.name for s in script.streams] == ["same", "same (2)"]
    seen = [{p.stream for p in pieces} for pieces in script.rounds()]
    assert seen == [{0}, {0, 1}, {0, 1}, {1}]


def test_made_concentrators_repeat_the_pmus_of_the_file_at_other_times(archive: Path) -> None:
    script = made_script([archive], 3, 4)
    assert [s.name for s in script.streams] == ["PDC 1", "PDC 2", "PDC 3"]
    stations = [p.station for s in script.streams for p in s.configuration.pmus]
    assert stations[:7] == ["north0", "north1", "north2", "south0", "south1", "north0 (2)", "north1 (2)"]
    assert len(set(stations)) == 12
    values = np.concatenate([decoded(script, n).values for n in range(3)], 1)
    rows = 7 * RATE
    for k in (1, 2):  # 12 PMUs of 5 are three turns
        own = values[:, 5 * k : 5 * k + 2]
        np.testing.assert_array_equal(own, np.roll(values[:, :2], -(k * rows // 3), axis=0))
        assert not np.array_equal(own, values[:, :2])
    assert np.abs(decoded(script, 2).time_ns - START_NS - np.arange(rows) * SECOND / RATE).max() <= 501
    assert not any(map(ibm_3740, frames_of(script, 1)))


def test_a_made_stream_of_one_pmu_is_called_as_the_pmu(archive: Path) -> None:
    script = made_script([archive], 7, 1)
    names = [s.name for s in script.streams]
    assert names == ["north0", "north1", "north2", "south0", "south1", "north0 (2)", "north1 (2)"]
    assert [s.id_code for s in script.streams] == [1, 2, 3, 4, 5, 6, 7]


def test_made_concentrators_send_filler_where_the_file_has_nothing(tmp_path: Path) -> None:
    batch = small_grid("north", 1, 1, 1, seconds=2)
    keep = np.ones(2 * RATE, bool)
    keep[10:15] = False
    path = tmp_path / "gap.parquet"
    write_parquet(
        path,
        FrameBatch(
            batch.table,
            batch.rate_hz,
            batch.time_ns[keep],
            batch.time_flags[keep],
            batch.stat[keep],
            batch.values[keep],
            batch.time_ns[keep],
        ),
    )
    made = decoded(made_script([path], 1, 1), 0)
    assert len(made.time_ns) == 2 * RATE
    assert (made.stat[10:15] == 0x8000).all()
    assert np.isnan(made.values[10:15]).all()
    assert (made.stat[keep] == 0).all()


def test_integers_are_within_a_count_of_what_the_file_says(archive: Path) -> None:
    exact = decoded(made_script([archive], 1, 5), 0)
    script = made_script([archive], 1, 5, integers=True)
    (stream,) = script.streams
    assert not any(p.float_phasors for p in stream.configuration.pmus)
    rough = decoded(script, 0)
    scale = max(d.scale for p in stream.configuration.pmus for d in p.phasors)
    assert np.abs(rough.values[..., 0] - exact.values[..., 0]).max() <= scale
    turned = (rough.values[..., 1] - exact.values[..., 1] + 180) % 360 - 180
    assert np.abs(turned).max() <= np.rad2deg(1e-4)


def test_many_pmus_go_as_cfg3(archive: Path) -> None:
    (stream,) = made_script([archive], 1, 1500).streams
    assert stream.configuration.kind is FrameType.CFG3
    assert len(encode_configuration(stream.configuration)) > 1


@pytest.mark.parametrize(("concentrators", "pmus"), [(0, 1), (1, 0), (1, 5000)])
def test_what_cannot_be_made_is_refused(archive: Path, concentrators: int, pmus: int) -> None:
    with pytest.raises(UsageError, match="pmus-each"):
        made_script([archive], concentrators, pmus)


def test_files_of_different_rates_make_no_concentrator(archive: Path, tmp_path: Path) -> None:
    other = tmp_path / "slow.parquet"
    batch = small_grid("slow", 1, 1, 1, seconds=4)
    write_parquet(other, replace(batch, rate_hz=10.0, time_ns=START_NS + np.arange(120) * (SECOND // 10)))
    with pytest.raises(UsageError, match="10, 30 Hz"):
        made_script([archive, other], 1, 1)


def test_a_capture_without_data_is_refused(archive: Path, tmp_path: Path) -> None:
    path = tmp_path / "empty.c37118"
    path.write_bytes(b"".join(encode_configuration(read_script([archive]).streams[0].configuration)))
    with pytest.raises(InputError, match="no data frame"):
        read_script([path])


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 2**24 - 1),
    st.integers(-(2**40), 2**40),
    st.integers(2**31, 2**32 - 2**21),
    st.integers(0, 255),
    st.data(),
)
def test_a_shift_moves_the_stamp_to_the_nearest_count_and_nothing_else(
    base: int, shift: int, soc: int, flags: int, data: st.DataObject
) -> None:
    fraction = data.draw(st.integers(0, base - 1))
    shift_s = Fraction(shift, 2**21)
    frame = bytes([0xAA, 2, 0, 20, 0, 7, *soc.to_bytes(4), flags, *fraction.to_bytes(3), 1, 2, 3, 4, 5, 6])
    octets = np.frombuffer(frame * 2, np.uint8).reshape(2, 20)
    out = sealed(shifted(octets, base, shift_s))
    before = Fraction(soc) + Fraction(fraction, base)
    moved = out[1].tobytes()
    after = Fraction(int.from_bytes(moved[6:10])) + Fraction(int.from_bytes(moved[11:14]), base)
    assert abs(after - before - shift_s) <= Fraction(1, 2 * base)
    assert int.from_bytes(moved[11:14]) < base
    assert (moved[:6], moved[10], moved[14:18]) == (frame[:6], flags, frame[14:18])
    assert ibm_3740(moved) == 0
    assert abs(int(times(out, base)[0]) - after * SECOND) <= 1


def played(playback: Playback, rounds: int) -> tuple[list[int], list[bytes]]:
    due: list[int] = []
    frames: list[bytes] = []
    for _ in range(rounds):
        ready = playback.read()
        if ready is None:
            break
        assert ready.due_ns == sorted(ready.due_ns)
        due += ready.due_ns
        frames += ready.frames
    return due, frames


def stamps(frames: list[bytes]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return times(np.frombuffer(b"".join(frames), np.uint8).reshape(len(frames), -1), 1_000_000)


def test_without_loop_and_shift_frames_are_untouched(archive: Path) -> None:
    script = read_script([archive], split=True)
    playback = Playback(script, loop=False, delays_ns=[0] * 5)
    assert playback.begin() == START_NS
    _, frames = played(playback, 100)
    assert sorted(frames) == sorted(f for n in range(5) for f in frames_of(script, n))
    assert playback.read() is None


def test_turns_follow_each_other_on_the_grid(tmp_path: Path) -> None:
    path = tmp_path / "short.parquet"
    batch = small_grid("north", 1, 1, 1, seconds=4)
    cut = 2 * RATE + 7  # no whole number of seconds
    fields = ("time_ns", "time_flags", "stat", "values", "arrival_ns")
    write_parquet(path, replace(batch, **{name: getattr(batch, name)[:cut] for name in fields}))
    playback = Playback(read_script([path]), loop=True, delays_ns=[0])
    playback.begin()
    due, frames = played(playback, 12)
    assert playback.turns == 3
    at = stamps(frames)
    slots = (at - START_NS) * RATE / SECOND
    np.testing.assert_array_equal(np.rint(slots), np.arange(len(frames)))
    assert np.abs(slots - np.rint(slots)).max() < 1e-4
    assert np.abs(np.array(due) - at).max() <= 1000
    assert not any(map(ibm_3740, frames))


def test_streams_of_different_rates_turn_together(tmp_path: Path) -> None:
    first, second = tmp_path / "thirty.parquet", tmp_path / "ten.parquet"
    write_parquet(first, small_grid("thirty", 1, 1, 1, seconds=2))
    slow = small_grid("ten", 2, 1, 2, seconds=1)
    at = START_NS + np.arange(30) * (SECOND // 10)
    write_parquet(second, replace(slow, rate_hz=10.0, time_ns=at, arrival_ns=at))
    playback = Playback(read_script([first, second]), loop=True, delays_ns=[0, 0])
    playback.begin()
    for _ in range(4):
        ready = playback.read()
    assert playback.turns == 1
    assert ready is not None
    assert ready.due_ns[:2] == [START_NS + 3 * SECOND] * 2


def test_a_shift_is_in_whole_seconds_and_periods(archive: Path) -> None:
    playback = Playback(read_script([archive]), loop=False, delays_ns=[0, 0])
    first = playback.begin()
    assert playback.shift(1000) == 1000
    due, frames = played(playback, 1)
    assert due[0] == first + 1000 * SECOND
    assert int(stamps(frames[:1])[0]) == first + 1000 * SECOND


def test_delays_move_what_leaves_and_not_what_is_said(archive: Path) -> None:
    playback = Playback(read_script([archive]), loop=False, delays_ns=[0, 5_000_000])
    playback.begin()
    ready = playback.read()
    assert ready is not None
    assert ready.streams[:4] == [0, 1, 0, 1]
    assert ready.due_ns[:2] == [START_NS, START_NS + 5_000_000]


def test_a_wild_stamp_holds_nobody_up(archive: Path, tmp_path: Path) -> None:
    octets = b"".join(frames_of(read_script([archive]), 0))
    configuration = b"".join(encode_configuration(read_script([archive]).streams[0].configuration))
    for place in (0, 100, 7 * RATE - 1):
        frames = np.frombuffer(octets, np.uint8).reshape(7 * RATE, -1).copy()
        frames[place] = shifted(frames[place : place + 1], 1_000_000, Fraction(10**7))[0]
        path = tmp_path / f"wild{place}.c37118"
        path.write_bytes(configuration + sealed(frames).tobytes())
        script = read_script([path])
        due = np.concatenate([p.due_ns for pieces in script.rounds() for p in pieces])
        assert due.max() <= START_NS + 9 * SECOND
        assert len(due) == 7 * RATE
