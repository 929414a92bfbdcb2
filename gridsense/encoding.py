"""Channel tables in, C37.118 configurations and data frames out: what any source would have put on the wire.

In: batches of a source, with the configuration that it had or without one. Out: its frames. Values are written as they
stand; nothing is masked, scaled or timed here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from streams.block import FrameBatch
from streams.c37118.configuration import (
    AnalogDefinition,
    ConfigurationFrame,
    DigitalDefinition,
    PhasorDefinition,
    PmuConfiguration,
    channel_table,
    decode_configuration,
    encode_configuration,
)
from streams.c37118.frame import FrameType
from streams.c37118.samples import compile_layout, encode
from streams.channels import Channel, ChannelTable, Pmu, Quantity
from streams.errors import ConfigurationError

_MAGNITUDES = {
    Quantity.VOLTAGE_MAGNITUDE: Quantity.VOLTAGE_ANGLE,
    Quantity.CURRENT_MAGNITUDE: Quantity.CURRENT_ANGLE,
}
_ANGLES = {angle: magnitude for magnitude, angle in _MAGNITUDES.items()}


@dataclass(frozen=True, slots=True)
class Encoder:
    """How one source's batches become C37.118 data frames.

    Attributes
    ----------
    configuration
        Of the stream.
    source
        Name of the source.
    places
        `(S, C)`: the batch's channel in each field of a frame, the batch's width where there is none; None where the
        batch's axes are those of the configuration.
    """

    configuration: ConfigurationFrame
    source: str
    places: NDArray[np.int64] | None = None

    def encode(self, batch: FrameBatch) -> bytes:
        """Write data frames.

        Parameters
        ----------
        batch
            Of the source.

        Returns
        -------
        bytes
            Its frames, one after another.
        """
        layout = compile_layout(self.configuration, self.source)
        if self.places is None:
            return encode(layout, batch)
        padded = np.concatenate([batch.values, np.full((*batch.values.shape[:2], 1), np.nan)], 2)
        values = np.take_along_axis(padded, np.broadcast_to(self.places, (len(padded), *self.places.shape)), 2)
        return encode(layout, replace(batch, values=values))


def stored_encoder(stored: bytes, source: str) -> Encoder:
    """Take the configuration that an archive holds.

    Parameters
    ----------
    stored
        Its frames, one after another.
    source
        Name of the source.

    Returns
    -------
    Encoder
        For batches with the axes of that configuration.

    Raises
    ------
    ConfigurationError
        If the frames are damaged.
    """
    frames: list[bytes] = []
    while stored:
        size = int.from_bytes(stored[2:4], "big")
        if size < 4:
            raise ConfigurationError("the stored configuration frame is damaged")
        frames.append(stored[:size])
        stored = stored[size:]
    return Encoder(decode_configuration(frames), source)


def made_encoder(table: ChannelTable, rate_hz: float, id_code: int) -> Encoder:
    """Make a configuration for channels that never had one, and find each field's channel.

    Parameters
    ----------
    table
        Of the source: any quantities in any order.
    rate_hz
        Reporting rate.
    id_code
        Of the stream, where it carries several PMUs.

    Returns
    -------
    Encoder
        CFG-2 in floating point, phasors polar; CFG-3 where names or the number of PMUs ask for it.
    """
    made = [_made_pmu(pmu, place) for place, pmu in enumerate(table.pmus, 1)]
    rate = round(rate_hz) if rate_hz >= 1 else -round(1 / rate_hz)
    pmus = tuple(pmu for pmu, _ in made)
    code = pmus[0].id_code if len(pmus) == 1 else id_code
    configuration = ConfigurationFrame(code, pmus, rate)
    try:
        encode_configuration(configuration)
    except ConfigurationError:  # names or a number of PMUs beyond CFG-2
        configuration = replace(configuration, kind=FrameType.CFG3)
        encode_configuration(configuration)
    width = channel_table(configuration).width
    places = np.full((len(made), width), table.width)
    for s, (_, order) in enumerate(made):
        places[s, : len(order)] = [table.width if c is None else c for c in order]
    return Encoder(configuration, table.pmus[0].source, places)


def _made_pmu(pmu: Pmu, place: int) -> tuple[PmuConfiguration, list[int | None]]:
    """Sort a PMU's channels into the fields of a frame; None where a field has no channel."""
    rest = list(range(len(pmu.channels)))
    order: list[int | None] = []
    phasors = []
    for c, channel in enumerate(pmu.channels):
        if c not in rest or channel.quantity not in _MAGNITUDES | _ANGLES:
            continue
        rest.remove(c)
        other = (_MAGNITUDES | _ANGLES)[channel.quantity]
        pair = next((r for r in rest if _twins(pmu.channels[r], channel, other)), None)
        if pair is not None:
            rest.remove(pair)
        order += [c, pair] if channel.quantity in _MAGNITUDES else [pair, c]
        current = channel.quantity in (Quantity.CURRENT_MAGNITUDE, Quantity.CURRENT_ANGLE)
        phasors.append(PhasorDefinition(channel.name, current, phase=channel.phase))
    for quantity in (Quantity.FREQUENCY, Quantity.ROCOF):
        found = next((r for r in rest if pmu.channels[r].quantity is quantity), None)
        if found is not None:
            rest.remove(found)
        order.append(found)
    digitals = [r for r in rest if pmu.channels[r].quantity is Quantity.DIGITAL]
    analogs = [r for r in rest if r not in digitals]
    labels = tuple(f"bit {i}" for i in range(16))
    configuration = PmuConfiguration(
        station=pmu.station or pmu.name,
        id_code=pmu.id_code or place,
        nominal_hz=pmu.nominal_hz,
        phasors=tuple(phasors),
        analogs=tuple(AnalogDefinition(pmu.channels[r].name) for r in analogs),
        digitals=tuple(DigitalDefinition(labels) for _ in digitals),
    )
    return configuration, [*order, *analogs, *digitals]


def _twins(one: Channel, other: Channel, quantity: Quantity) -> bool:
    """Tell whether two channels are magnitude and angle of one phasor."""
    return one.quantity is quantity and one.name == other.name and one.phase is other.phase
