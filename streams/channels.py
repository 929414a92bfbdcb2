"""What a stream measures: quantities, phases, channels, PMUs, and the table that names a block's axes.

In: the facts of a configuration frame or of an archive's columns. Out: immutable tables.
It knows neither bytes nor arrays of values.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

import numpy as np
from numpy.typing import NDArray


class Quantity(StrEnum):
    """What a channel measures; the value is the word used in archives and maps."""

    VOLTAGE_MAGNITUDE = "voltage_magnitude"
    VOLTAGE_ANGLE = "voltage_angle"
    CURRENT_MAGNITUDE = "current_magnitude"
    CURRENT_ANGLE = "current_angle"
    FREQUENCY = "frequency"
    ROCOF = "rocof"
    ACTIVE_POWER = "active_power"
    REACTIVE_POWER = "reactive_power"
    ANALOG = "analog"
    DIGITAL = "digital"


UNITS: dict[Quantity, str] = {
    Quantity.VOLTAGE_MAGNITUDE: "V",
    Quantity.VOLTAGE_ANGLE: "deg",
    Quantity.CURRENT_MAGNITUDE: "A",
    Quantity.CURRENT_ANGLE: "deg",
    Quantity.FREQUENCY: "Hz",
    Quantity.ROCOF: "Hz/s",
    Quantity.ACTIVE_POWER: "W",
    Quantity.REACTIVE_POWER: "var",
    Quantity.ANALOG: "",
    Quantity.DIGITAL: "",
}
"""The unit in which each quantity is kept, unless a channel says otherwise (per unit: ``pu``)."""


class Phase(StrEnum):
    """Phase or symmetrical component of a phasor; empty where the field does not say."""

    UNKNOWN = ""
    A = "A"
    B = "B"
    C = "C"
    POSITIVE = "1"
    NEGATIVE = "2"
    ZERO = "0"


@dataclass(frozen=True, slots=True)
class Channel:
    """One number per reporting time.

    Attributes
    ----------
    name
        As the device calls it (``VA``, ``Bus 2``); magnitude and angle of one phasor share it.
    quantity
        What it measures.
    phase
        Phase or symmetrical component, where known.
    unit
        Unit of the values; see `UNITS`.
    nominal
        Nominal value in `unit` (line to neutral for voltages), or None where unknown.
    """

    name: str
    quantity: Quantity
    phase: Phase = Phase.UNKNOWN
    unit: str = ""
    nominal: float | None = None


@dataclass(frozen=True, slots=True)
class Pmu:
    """One measuring device: one entry of the stream axis `S`.

    Attributes
    ----------
    name
        Unique within a table: the station's name, with the ID code appended where two share it.
    id_code
        C37.118 ID code of the data source; 0 in archives that have none.
    station
        Station name as sent.
    nominal_hz
        50 or 60.
    channels
        In the order of the block's last axis.
    source
        The connection, concentrator or file that carries it: what fails together.
    """

    name: str
    id_code: int
    station: str
    nominal_hz: int
    channels: tuple[Channel, ...]
    source: str = ""


@dataclass(frozen=True)
class ChannelTable:
    """Names of the axes `S` (PMUs) and `C` (channels) of a block.

    Attributes
    ----------
    pmus
        One for each place on the stream axis, names unique.
    """

    pmus: tuple[Pmu, ...]

    @cached_property
    def width(self) -> int:
        """`C`: the channels of the widest PMU (0 for an empty table)."""
        return max((len(p.channels) for p in self.pmus), default=0)

    @cached_property
    def index(self) -> dict[str, int]:
        """Place on the stream axis by PMU name."""
        return {p.name: s for s, p in enumerate(self.pmus)}

    @cached_property
    def present(self) -> NDArray[np.bool_]:
        """`(S, C)`: True where the PMU has this channel, False where it is padding."""
        out = np.zeros((len(self.pmus), self.width), bool)
        for s, pmu in enumerate(self.pmus):
            out[s, : len(pmu.channels)] = True
        return out

    def where(self, *quantities: Quantity) -> NDArray[np.bool_]:
        """Mark the channels of some quantities.

        Parameters
        ----------
        *quantities
            Any of these counts.

        Returns
        -------
        NDArray[np.bool_]
            `(S, C)`.
        """
        out = np.zeros((len(self.pmus), self.width), bool)
        for s, pmu in enumerate(self.pmus):
            out[s, : len(pmu.channels)] = [c.quantity in quantities for c in pmu.channels]
        return out
