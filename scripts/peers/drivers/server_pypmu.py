"""Runs in the peers' environment: a PMU of pyPMU's family sends what a JSON file says.

Arguments: ``pyc37`` or ``synchrophasor``, the file. It says its port on stdout and ends when stdin does. To each client
all frames are given once, ten to a write; the PMU sends them after data-on. Time stamps are the file's.
"""

from __future__ import annotations

import collections
import collections.abc
import json
import logging
import os
import sys
import threading
import time
from pathlib import Path

collections.Sequence = collections.abc.Sequence  # synchrophasor is older than Python 3.10

if sys.argv[1] == "pyc37":
    from pyc37.frame import ConfigFrame2, DataFrame
    from pyc37.pmu import Pmu
else:
    from synchrophasor.frame import ConfigFrame2, DataFrame
    from synchrophasor.pmu import Pmu

TOGETHER = 10
"""Frames of one write."""


def bare(values: list) -> object:
    """Give pyPMU what it wants: a list for several PMUs, else the one."""
    return values if len(values) > 1 else values[0]


def configuration(told: dict) -> ConfigFrame2:
    """Build the configuration."""
    stations = told["stations"]
    return ConfigFrame2(
        told["id_code"],
        told["time_base"],
        len(stations),
        bare([s["name"] for s in stations]),
        bare([s["id_code"] for s in stations]),
        bare([(s["polar"], s["float_phasors"], s["float_analogs"], s["float_frequency"]) for s in stations]),
        bare([len(s["phasors"]) for s in stations]),
        bare([len(s["analogs"]) for s in stations]),
        bare([0 for _ in stations]),
        bare([[p["name"] for p in s["phasors"]] + s["analogs"] for s in stations]),
        bare([[(p["steps"], "i" if p["is_current"] else "v") for p in s["phasors"]] for s in stations]),
        bare([[(0, "rms") for _ in s["analogs"]] for s in stations]),
        bare([[] for _ in stations]),
        bare([s["nominal_hz"] for s in stations]),
        bare([1 for _ in stations]),
        told["rate"],
    )


def encoded(told: dict, frame: dict, cfg: ConfigFrame2) -> bytes:
    """Build a data frame."""
    pmus = frame["pmus"]
    return DataFrame(
        told["id_code"],
        bare([p["stat"] for p in pmus]),
        bare([[tuple(pair) for pair in p["phasors"]] for p in pmus]),
        bare([p["frequency"] for p in pmus]),
        bare([p["rocof"] for p in pmus]),
        bare([p["analog"] for p in pmus]),
        bare([[] for _ in pmus]),
        cfg,
        frame["soc"],
        (frame["fraction"],),  # bare, a fraction of 0 would become that of now
    ).convert2bytes()


def main(path: str) -> None:
    """Serve until stdin ends."""
    told = json.loads(Path(path).read_text())
    Pmu.logger.setLevel(logging.ERROR)
    cfg = configuration(told)
    frames = [encoded(told, one, cfg) for one in told["frames"]]
    pmu = Pmu(pmu_id=told["id_code"], data_rate=told["rate"], port=0, ip="127.0.0.1", set_timestamp=False)
    pmu.set_configuration(cfg)
    pmu.set_header(told["header"])
    for one in (pmu.cfg2, pmu.header):
        one.set_time(told["frames"][0]["soc"], (1,))
    pmu.run()
    print("listening", pmu.socket.getsockname()[1], flush=True)
    ended = threading.Event()  # os.read holds no lock that a forked process would wait for
    threading.Thread(target=lambda: (os.read(0, 1), ended.set()), daemon=True).start()
    served = 0
    while not ended.is_set():
        if len(pmu.clients) > served:
            served = len(pmu.clients)
            for first in range(0, len(frames), TOGETHER):
                pmu.send(b"".join(frames[first : first + TOGETHER]))
        time.sleep(0.01)
    for client in pmu.clients:
        client.terminate()
    os._exit(0)  # nobody reads the queues any more


if __name__ == "__main__":
    main(sys.argv[2])
