"""Runs in the peers' environment: a PMU is asked with pySynphasor's packets, and what they dissect is written as JSON.

Arguments: host, port, ID code, data frames to read, file to write. pySynphasor is a set of scapy packets without a
client: the socket is ours, every byte of the commands and of what is understood is theirs, but for what is said below.
"""

from __future__ import annotations

import json
import math
import socket
import struct
import sys
from pathlib import Path

from pySynphasor import crc, synphasor
from pySynphasor.synphasor import synphasor as frame_of
from pySynphasor.synphasor import synphasor_cfg2, synphasor_cmd, synphasor_data, synphasor_header

TIMEOUT_S = 60


def command(code: int, number: int) -> bytes:
    """Build a command frame."""
    octets = bytes(frame_of(type=4, version=2, idcode=code, soc=0, fracsec=0) / synphasor_cmd(cmd=number))
    # pySynphasor begins the check word with 0, the standard says -1: sealed anew with its own function
    return octets[:-2] + struct.pack("!H", crc.crc16xmodem(octets[:-2], 0xFFFF))


def read_frame(link: socket.socket) -> bytes:
    """Read one frame."""
    octets = b""
    while len(octets) < 4 or len(octets) < int.from_bytes(octets[2:4], "big"):
        octets += link.recv(4 - len(octets) if len(octets) < 4 else int.from_bytes(octets[2:4], "big") - len(octets))
    if crc.crc16xmodem(octets[:-2], 0xFFFF) != int.from_bytes(octets[-2:], "big"):
        raise ValueError(f"the check word of {octets[:14].hex()}... does not fit")
    return octets


def signed(number: int) -> int:
    """Read 16 bits as signed: pySynphasor takes all of them for unsigned."""
    return struct.unpack("!h", struct.pack("!H", int(number)))[0]


def phasors(pmu: object, config: object) -> list[tuple[float, float]]:
    """Magnitude and angle of each."""
    out = []
    for sent, unit in zip(pmu.phasors, config.phunit, strict=True):
        one, other = sent.real, sent.imag
        if not config.phasor_dtype:
            scale = unit.phfactor * 1e-5  # left to the user
            if config.phasor_format:
                one, other = one * scale, signed(other) * 1e-4
            else:
                one, other = signed(one) * scale, signed(other) * scale
        out.append((one, other) if config.phasor_format else (math.hypot(one, other), math.atan2(other, one)))
    return out


def main(host: str, port: str, id_code: str, frames: str, out: str) -> None:
    """Ask, read, write."""
    code = int(id_code)
    link = socket.create_connection((host, int(port)), TIMEOUT_S)
    link.sendall(command(code, 3))
    header = frame_of(read_frame(link))
    link.sendall(command(code, 5))
    cfg = frame_of(read_frame(link))[synphasor_cfg2]
    first = cfg.pmu[0]
    # its own set_cfg_data sets local variables: the dissector goes by these of the module
    synphasor.pmu_count, synphasor.phasor_count = cfg.num_pmu, first.phnmr
    synphasor.analog_count, synphasor.digital_count = first.annmr, first.dgnmr
    synphasor.phasor_type, synphasor.freq_type, synphasor.analog_type = first.phasor_dtype, first.freq, first.analog
    stations = [
        {
            "name": pmu.stn.decode("ascii").strip(),
            "id_code": pmu.idcode,
            "channels": [c.decode("ascii").strip() for c in [*pmu.phname, *pmu.anname]],
            "nominal_hz": 50 if pmu.fnom else 60,
        }
        for pmu in cfg.pmu
    ]
    link.sendall(command(code, 2))
    read = []
    for _ in range(int(frames)):
        data = frame_of(read_frame(link))
        pmus = []
        for pmu, config, named in zip(data[synphasor_data].pmu_data, cfg.pmu, stations, strict=True):
            pairs = phasors(pmu, config)
            pmus.append(
                {
                    "stat": int.from_bytes(bytes(pmu)[:2], "big"),
                    "magnitude": [m for m, _ in pairs],
                    "angle_rad": [a for _, a in pairs],
                    "frequency_hz": pmu.freq if config.freq else named["nominal_hz"] + signed(pmu.freq) / 1000,
                    "rocof_hz_s": pmu.dfreq if config.freq else signed(pmu.dfreq) / 100,
                    "analog": [a if config.analog else signed(a) for a in pmu.analogs],
                }
            )
        read.append({"soc": data.soc, "fraction": data.fracsec & 0xFFFFFF, "pmus": pmus})
    link.sendall(command(code, 1))
    link.close()
    answer = {
        "header": header[synphasor_header].data.decode("ascii"),
        "rate": cfg.data_rate,
        "time_base": cfg.TIME_BASE & 0xFFFFFF,
        "stations": stations,
        "frames": read,
    }
    Path(out).write_text(json.dumps(answer))


if __name__ == "__main__":
    main(*sys.argv[1:])
