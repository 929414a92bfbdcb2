"""Runs in the peers' environment: pySynphasor's packets say what a JSON file says, to whoever connects.

Argument: the file. It says its port on stdout and ends when stdin does. Commands are dissected by pySynphasor too; the
socket is ours. Data frames go out two to a write, so that frames share segments. It has no CFG-3 and answers none.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
import threading
from pathlib import Path

from pySynphasor import crc, synphasor
from pySynphasor.synphasor import (
    ANUNIT,
    PHUNIT,
    PMU_CFG,
    PMU_DATA,
    synphasor_cfg2,
    synphasor_cmd,
    synphasor_data,
    synphasor_header,
)
from pySynphasor.synphasor import synphasor as frame_of

TOGETHER = 2
DATA_OFF, DATA_ON, SEND_HEADER, SEND_CFG2 = 1, 2, 3, 5


def name(text: str) -> bytes:
    """Fill a name up to 16 bytes: pySynphasor takes zeros for it, the standard says blanks."""
    return text.encode("ascii").ljust(16)


def sealed(packet: object) -> bytes:
    """Seal a frame as the standard says: pySynphasor begins the check word with 0 instead of -1."""
    octets = bytes(packet)
    return octets[:-2] + struct.pack("!H", crc.crc16xmodem(octets[:-2], 0xFFFF))


def unsigned(number: float) -> int:
    """16 bits: pySynphasor knows no sign."""
    return int(number) & 0xFFFF


def configuration(told: dict) -> bytes:
    """Build the configuration frame."""
    pmus = [
        PMU_CFG(
            stn=name(s["name"]),
            idcode=s["id_code"],
            freq=int(s["float_frequency"]),
            analog=int(s["float_analogs"]),
            phasor_dtype=int(s["float_phasors"]),
            phasor_format=int(s["polar"]),
            phnmr=len(s["phasors"]),
            annmr=len(s["analogs"]),
            dgnmr=0,
            phname=[name(p["name"]) for p in s["phasors"]],
            anname=[name(a) for a in s["analogs"]],
            dgname=[],
            phunit=[PHUNIT(flag=int(p["is_current"]), phfactor=p["steps"]) for p in s["phasors"]],
            anunit=[ANUNIT(flag=1, anfactor=0) for _ in s["analogs"]],
            dgunit=[],
            fnom=int(s["nominal_hz"] == 50),
            CFGCNT=1,
        )
        for s in told["stations"]
    ]
    body = synphasor_cfg2(TIME_BASE=told["time_base"], num_pmu=len(pmus), pmu=pmus, data_rate=told["rate"])
    return sealed(frame_of(type=3, version=2, idcode=told["id_code"], soc=told["frames"][0]["soc"], fracsec=0) / body)


def data(told: dict, frame: dict) -> bytes:
    """Build a data frame."""
    first = told["stations"][0]
    synphasor.phasor_type, synphasor.analog_type = int(first["float_phasors"]), int(first["float_analogs"])
    synphasor.freq_type = int(first["float_frequency"])
    pmus = []
    for pmu, station in zip(frame["pmus"], told["stations"], strict=True):
        stat = pmu["stat"]
        phasors = [complex(*p) if station["float_phasors"] else complex(*map(unsigned, p)) for p in pmu["phasors"]]
        pmus.append(
            PMU_DATA(
                data_error=stat >> 14,
                pmu_sync=stat >> 13 & 1,
                data_storing=stat >> 12 & 1,
                pmu_trigger=stat >> 11 & 1,
                cfg_change=stat >> 10 & 1,
                data_modified=stat >> 9 & 1,
                pmu_time_quality=stat >> 6 & 7,
                unlocked_time=stat >> 4 & 3,
                trigger_reason=stat & 15,
                phasors=phasors,
                freq=pmu["frequency"] if station["float_frequency"] else unsigned(pmu["frequency"]),
                dfreq=pmu["rocof"] if station["float_frequency"] else unsigned(pmu["rocof"]),
                analogs=pmu["analog"] if station["float_analogs"] else [unsigned(a) for a in pmu["analog"]],
                digitals=[],
            )
        )
    head = frame_of(type=0, version=2, idcode=told["id_code"], soc=frame["soc"], fracsec=frame["fraction"])
    return sealed(head / synphasor_data(pmu_data=pmus))


def converse(link: socket.socket, told: dict, cfg: bytes, frames: list[bytes]) -> None:
    """Answer until the client goes."""
    octets, sent = b"", False
    while received := link.recv(4096):
        octets += received
        while len(octets) >= 18:
            command = frame_of(octets[:18])[synphasor_cmd].cmd
            octets = octets[18:]
            if command == SEND_CFG2:
                link.sendall(cfg)
            elif command == SEND_HEADER:
                head = frame_of(type=1, version=2, idcode=told["id_code"], soc=0, fracsec=0)
                link.sendall(sealed(head / synphasor_header(data=told["header"])))
            elif command == DATA_ON and not sent:
                sent = True
                for first in range(0, len(frames), TOGETHER):
                    link.sendall(b"".join(frames[first : first + TOGETHER]))


def main(path: str) -> None:
    """Serve until stdin ends."""
    told = json.loads(Path(path).read_text())
    cfg, frames = configuration(told), [data(told, one) for one in told["frames"]]
    server = socket.create_server(("127.0.0.1", 0))
    print("listening", server.getsockname()[1], flush=True)
    threading.Thread(target=lambda: (os.read(0, 1), os._exit(0)), daemon=True).start()
    while True:
        link, _ = server.accept()
        with link:
            converse(link, told, cfg, frames)


if __name__ == "__main__":
    main(sys.argv[1])
