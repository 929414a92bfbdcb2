"""Runs in the peers' environment: pyc37's PDC asks a PMU for everything, and what it understood is written as JSON.

Arguments: host, port, ID code, data frames to read, file to write. pyc37 takes what one read returns for one frame;
with a buffer of 4 bytes it reads a frame's length first, and then no more than the frame.
"""

from __future__ import annotations

import collections.abc  # noqa: F401 - pyc37 uses it without importing it
import json
import logging
import sys
from pathlib import Path

from pyc37.pdc import Pdc

COUNT_V = 1e-5


def listed(value: object, *, several: bool) -> list:
    """Make a list of what pyc37 keeps bare where there is one PMU only."""
    return value if several else [value]


def main(host: str, port: str, id_code: str, frames: str, out: str) -> None:
    """Ask, read, write."""
    Pdc.logger.setLevel(logging.WARNING)
    pdc = Pdc(pdc_id=int(id_code), pmu_ip=host, pmu_port=int(port), buffer_size=4)
    pdc.run()
    header = pdc.get_header().get_header()
    cfg = pdc.get_config()
    several = cfg.get_num_pmu() > 1
    stations = []
    for name, code, channels, phasors, analogs, nominal_hz in zip(
        listed(cfg.get_station_name(), several=several),
        listed(cfg.get_stream_id_code(), several=several),
        listed(cfg.get_channel_names(), several=several),
        listed(cfg.get_phasor_num(), several=several),
        listed(cfg.get_analog_num(), several=several),
        listed(cfg.get_fnom(), several=several),
        strict=True,
    ):
        kept = [c.strip() for c in channels[: phasors + analogs]]
        stations.append({"name": name.strip(), "id_code": code, "channels": kept, "nominal_hz": nominal_hz})
    pdc.start()
    read = []
    for _ in range(int(frames)):
        data = pdc.get()
        if data is None:
            read.append(None)
            continue
        pmus = []
        for place, (phasors, deviation_mhz, rocof, analogs, form) in enumerate(
            zip(
                listed(data.get_phasors(), several=several),
                listed(data.get_freq(), several=several),
                listed(data.get_dfreq(), several=several),
                listed(data.get_analog(), several=several),
                listed(cfg.get_data_format(), several=several),
                strict=True,
            )
        ):
            magnitudes = [m for m, _ in phasors]
            angles = [a for _, a in phasors]
            if form[0] and not form[1]:
                # an integer angle is a count of 1e-4 rad; pyc37 multiplies it by the phasor's scale instead
                units = listed(cfg.get_ph_units(), several=several)[place]
                angles = [a / (scale * COUNT_V) * 1e-4 for a, (scale, _) in zip(angles, units, strict=True)]
            pmus.append(
                {
                    "magnitude": magnitudes,
                    "angle_rad": angles,
                    "frequency_hz": stations[place]["nominal_hz"] + deviation_mhz / 1000,
                    "rocof_hz_s": rocof / 100,
                    "analog": analogs,
                }
            )
        fraction = data.get_frasec()[0]
        read.append({"soc": data.get_soc(), "fraction": fraction, "pmus": pmus})
    pdc.stop()
    pdc.quit()
    answer = {
        "header": header,
        "rate": cfg.get_data_rate(),
        "time_base": cfg.get_time_base(),
        "stations": stations,
        "frames": read,
    }
    Path(out).write_text(json.dumps(answer))


if __name__ == "__main__":
    main(*sys.argv[1:])
