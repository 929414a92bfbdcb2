"""Every field of every data frame as tshark decodes it, to the digits that it prints: of real captures and our own."""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from streams.block import FrameBatch
from streams.c37118.configuration import ConfigurationFrame, encode_configuration
from streams.c37118.frame import FrameType
from streams.captures import CaptureReader
from tests.reference.c37118 import random_configuration, random_frame

CAPTURES = Path(__file__).parents[1].parent / "shared" / "data" / "real" / "c37118_pcaps"
NAMES = ["C37.118_1PMU_TCP", "C37.118_1PMU_UDP", "C37.118_2PMUsInSync_TCP", "C37.118_4in1PMU_TCP"]

PHASOR = re.compile(r", +(\S+)[VA] ∠ *(\S+)° alt")
ACTUAL = re.compile(r"actual frequency: (\S+)Hz")
NUMBER = re.compile(r": (-?[\d.]+|-?nan|-?inf)Hz/s")
ANALOG = re.compile(r'", (\S+)')
STAT = {
    "status": 14, "sync": 13, "sorting": 12, "trigger": 11, "CFGchange": 10,
    "data_modified": 9, "pmu_tq": 6, "t_unlock": 4, "trigger_reason": 0,
}  # fmt: skip
FLAGS = {"lsdir": 6, "lsocc": 5, "lspend": 4, "timequalindic": 0}


@dataclass
class Printed:
    """A data frame as tshark prints it."""

    id_code: int
    soc: int
    fraction: int
    flags: int
    stat: list[int] = field(default_factory=list)
    values: list[list[float]] = field(default_factory=list)


def tshark(path: Path) -> Iterator[Printed]:
    if shutil.which("tshark") is None:
        if os.environ.get("CI"):
            pytest.fail("tshark is missing: CI must install it")
        pytest.skip("tshark is not installed (Debian package tshark)")
    command = ["tshark", "-r", path, "-2", "-Y", "synphasor", "-T", "pdml"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        for _, element in ET.iterparse(process.stdout):  # noqa: S314 - tshark's own output
            if element.tag == "packet":
                for proto in element.iterfind("proto[@name='synphasor']"):
                    if int(shown(proto, "synphasor.frtype"), 16) == FrameType.DATA:
                        yield printed(proto)
                element.clear()
    assert process.returncode == 0


def shown(element: ET.Element, name: str, attribute: str = "show") -> str:
    found = element.find(f".//field[@name='{name}']")
    assert found is not None, name
    return found.attrib[attribute]


def printed(proto: ET.Element) -> Printed:
    assert "[correct]" in proto.attrib["showname"]
    moment = shown(proto, "synphasor.soc").replace(".000000000 UTC", "")
    soc = datetime.strptime(moment, "%b %d, %Y %H:%M:%S").replace(tzinfo=UTC).timestamp()
    out = Printed(
        int(shown(proto, "synphasor.idcode_stream_source")),
        int(soc),
        int(shown(proto, "synphasor.fracsec_raw")),
        sum(int(shown(proto, f"synphasor.timeqal.{n}"), 0) << shift for n, shift in FLAGS.items()),
    )
    for station in proto.iterfind("field[@name='synphasor.data']/field[@name='']"):
        out.stat.append(sum(int(shown(station, f"synphasor.data.{n}"), 0) << s for n, s in STAT.items()))
        values: list[float] = []
        for leaf in station.iter("field"):
            kind, text = leaf.attrib["name"].removeprefix("synphasor."), leaf.attrib.get("showname", "")
            if kind == "phasor":
                values += [float(v) for v in one(PHASOR, text)]
            elif kind == "frequency_deviation_from_nominal":
                values += [float(v) for v in one(ACTUAL, text)]
            elif kind == "actual_frequency_value":
                values.append(float(leaf.attrib["show"]))
            elif kind == "rate_change_frequency":
                found = NUMBER.search(text)
                values.append(float(found[1] if found else leaf.attrib["show"]))
            elif kind == "analog_value":
                values += [float(v) for v in one(ANALOG, text)]
            elif kind == "digital_status_word":
                values.append(int(leaf.attrib["show"], 16))
        out.values.append(values)
    return out


def one(pattern: re.Pattern[str], text: str) -> tuple[str, ...]:
    found = pattern.search(text)
    assert found, text
    return found.groups()


def compare(path: Path) -> int:
    """Compare our decode of a capture with tshark's; say how many frames were compared."""
    bases: dict[int, int] = {}
    ours: dict[int, list[FrameBatch]] = {}
    codes: dict[tuple[str, ...], int] = {}
    for source, item in CaptureReader(path, np.float64):
        if isinstance(item, ConfigurationFrame):
            bases[item.id_code] = item.time_base
            codes[(source, *(str(p.id_code) for p in item.pmus))] = item.id_code
        elif isinstance(item, FrameBatch):
            key = (source, *(str(p.id_code) for p in item.table.pmus))
            ours.setdefault(codes[key], []).append(item)
    theirs: dict[int, list[Printed]] = {}
    for frame in tshark(path):
        theirs.setdefault(frame.id_code, []).append(frame)
    assert ours.keys() == theirs.keys()
    for code, frames in theirs.items():
        batches = ours[code]
        base = bases[code]
        times = np.concatenate([b.time_ns for b in batches])
        expected = [f.soc * 10**9 + (f.fraction * 10**9 * 2 + base) // (2 * base) for f in frames]
        np.testing.assert_array_equal(times, expected)
        np.testing.assert_array_equal(np.concatenate([b.time_flags for b in batches]) & 0x7F, [f.flags for f in frames])
        np.testing.assert_array_equal(np.concatenate([b.stat for b in batches]), [f.stat for f in frames])
        values = np.concatenate([b.values for b in batches])
        for s, pmu in enumerate(batches[0].table.pmus):
            their_values = np.array([f.values[s] for f in frames])
            width = len(pmu.channels)
            assert their_values.shape == (len(frames), width)
            # printed to three decimals, or, in float32's own digits, to six
            difference = np.abs(values[:, s, :width] - their_values)
            difference = np.minimum(difference, np.abs(difference - 360.0))
            allowed = 5.01e-4 + 1.2e-7 * np.abs(their_values)
            np.testing.assert_array_equal(np.isnan(values[:, s, :width]), np.isnan(their_values))
            assert (np.isnan(their_values) | (difference <= allowed)).all(), (code, pmu.name, difference.max())
    return sum(map(len, theirs.values()))


@pytest.mark.parametrize(("name", "frames"), list(zip(NAMES, [252, 356, 3002, 1342], strict=True)))
def test_real_captures(name: str, frames: int) -> None:
    path = CAPTURES / f"{name}.pcap"
    if not path.exists():
        pytest.skip(f"{path} is not there: the shared captures come beside the checkout")
    assert compare(path) == frames


def udp_capture(path: Path, payloads: list[bytes]) -> None:
    """Write a pcap of UDP datagrams on the port that tshark takes for C37.118."""
    out = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 1 << 18, 1)
    for i, payload in enumerate(payloads):
        udp = struct.pack(">HHHH", 4713, 4713, 8 + len(payload), 0) + payload
        ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), i, 0, 64, 17, 0, b"\n\0\0\1", b"\n\0\0\2")
        packet = bytes(12) + b"\x08\x00" + ip + udp
        out += struct.pack("<IIII", 1_700_000_000 + i, 0, len(packet), len(packet)) + packet
    path.write_bytes(out)


@pytest.mark.parametrize("kind", [FrameType.CFG2, FrameType.CFG3])
def test_every_format_that_we_encode(tmp_path: Path, kind: FrameType) -> None:
    rng = np.random.default_rng(5)
    payloads: list[bytes] = []
    count = 0
    for code in range(1, 33):
        configuration = random_configuration(rng, kind, pmus=3, id_code=code)
        # tshark leaves a CFG-3's floats unscaled, where the standard says that they then have a scale of 1
        pmus = tuple(
            replace(
                p,
                phasors=tuple(replace(d, scale=1.0, angle_offset_rad=0.0) for d in p.phasors)
                if p.float_phasors
                else p.phasors,
                analogs=tuple(replace(d, scale=1.0, offset=0.0) for d in p.analogs) if p.float_analogs else p.analogs,
            )
            for p in configuration.pmus
        )
        configuration = replace(configuration, pmus=pmus)
        payloads += encode_configuration(configuration)
        # the integer filler of frequency and analogs is a number to tshark, the absent value of the standard to us
        frames = [random_frame(configuration, rng) for _ in range(3)]
        payloads += frames
        count += len(frames)
    path = tmp_path / "made.pcap"
    udp_capture(path, payloads)
    assert compare(path) == count
