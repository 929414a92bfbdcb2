"""Runs in the peers' environment: PyMU's client asks a PMU for everything, and what it understood is written as JSON.

Arguments: host, port, ID code, data frames to read, file to write. PyMU reads a frame's length first for configurations
only; here it is done for data too. What PyMU leaves to its user, or gets wrong, is put right where it stands.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pymu.client import Client
from pymu.pmuCommandFrame import CommandFrame
from pymu.pmuDataFrame import DataFrame
from pymu.pmuFrame import PMUFrame
from pymu.tools import readConfigFrame2, requestConfigFrame2, turnDataOff, turnDataOn

TIMEOUT_S = 60


def read_exactly(client: Client, count: int) -> bytes:
    """Read so many bytes."""
    octets = b""
    while len(octets) < count:
        octets += client.readSample(count - len(octets))
    return octets


def read_frame(client: Client) -> str:
    """Read one frame, as the hexadecimal digits that PyMU parses."""
    head = read_exactly(client, 4)
    return (head + read_exactly(client, int.from_bytes(head[2:], "big") - 4)).hex()


def phasor(one: object, unit: object) -> tuple[float, float]:
    """Magnitude and angle of one phasor."""
    if one.phsrType == "FLOAT":
        return one.mag, one.rad
    scale = unit.value * 1e-5  # PyMU leaves it to its user
    if one.phsrFmt == "POLAR":
        return (one.mag & 0xFFFF) * scale, one.rad  # PyMU takes the unsigned magnitude for a signed one
    return one.mag * scale, one.rad


def nominal_hz(station: object) -> int:
    """Nominal frequency: PyMU takes it from a digit of the word behind it, so that it is always 60."""
    return 50 if int(station.stationFrame[station.length - 5], 16) & 1 else 60


def main(host: str, port: str, id_code: str, frames: str, out: str) -> None:
    """Ask, read, write."""
    client, code = Client(host, int(port)), int(id_code)
    client.setTimeout(TIMEOUT_S)
    client.sendData(CommandFrame("HEADER", code).fullFrameBytes)
    header = PMUFrame(read_frame(client))
    requestConfigFrame2(client, code)
    cfg = readConfigFrame2(client)
    stations = [
        {
            "name": s.stn.strip(),
            "id_code": s.idcode_data,
            "channels": [c.strip() for c in s.channels[: s.phnmr + s.annmr]],
            "nominal_hz": nominal_hz(s),
        }
        for s in cfg.stations
    ]
    turnDataOn(client, code)
    read = []
    for _ in range(int(frames)):
        data = DataFrame(read_frame(client), cfg)
        pmus = []
        for pmu, station, named in zip(data.pmus, cfg.stations, stations, strict=True):
            pairs = [phasor(p, u) for p, u in zip(pmu.phasors, station.phunits, strict=True)]
            floating = station.freqType == "FLOAT"
            pmus.append(
                {
                    "stat": int(pmu.stat.statHex, 16),
                    "magnitude": [m for m, _ in pairs],
                    "angle_rad": [a for _, a in pairs],
                    "frequency_hz": pmu.freq if floating else named["nominal_hz"] + pmu.freq / 1000,
                    "rocof_hz_s": pmu.dfreq * 100 if floating else pmu.dfreq,  # PyMU divides floats too
                    "analog": [value for _, value in pmu.analogs],
                }
            )
        read.append({"soc": data.soc.secCount, "fraction": data.fracsec & 0xFFFFFF, "pmus": pmus})
    turnDataOff(client, code)
    client.stop()
    answer = {
        "header": bytes.fromhex(header.frame[28:-4]).decode("ascii"),
        "rate": cfg.datarate,
        "time_base": cfg.time_base.baseDecStr,
        "stations": stations,
        "frames": read,
    }
    Path(out).write_text(json.dumps(answer))


if __name__ == "__main__":
    main(*sys.argv[1:])
