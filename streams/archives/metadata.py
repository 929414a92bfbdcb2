"""What an archive's metadata says: the channel table, the rate and the configuration frames, as JSON.

In: a channel table. Out: the JSON text under the key `gridsense` of a Parquet schema, and back. It knows no columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from streams.channels import Channel, ChannelTable, Phase, Pmu, Quantity
from streams.errors import ArchiveError

KEY = b"gridsense"
VERSION = 1


class _Channel(msgspec.Struct, frozen=True):
    """One channel on disk."""

    name: str
    quantity: Quantity
    phase: Phase
    unit: str
    nominal: float | None


class _Pmu(msgspec.Struct, frozen=True):
    """One PMU on disk."""

    name: str
    id_code: int
    station: str
    nominal_hz: int
    source: str
    channels: tuple[_Channel, ...]


class _Document(msgspec.Struct, frozen=True):
    """The whole of it."""

    version: int
    rate_hz: float
    pmus: tuple[_Pmu, ...]
    configurations: dict[str, str] = {}


@dataclass(frozen=True, slots=True)
class Description:
    """What the metadata of an archive says.

    Attributes
    ----------
    table
        All PMUs of the file.
    rate_hz
        Configured reporting rate, frames a second.
    configurations
        By source: the C37.118 configuration frame (or frames, one after the other) that the values came under.
        Sources that had none are left out.
    """

    table: ChannelTable
    rate_hz: float
    configurations: Mapping[str, bytes]


def encode(description: Description) -> bytes:
    """Write the description as JSON.

    Parameters
    ----------
    description
        Of the file to be written.

    Returns
    -------
    bytes
        UTF-8.
    """
    document = _Document(
        version=VERSION,
        rate_hz=description.rate_hz,
        pmus=tuple(
            _Pmu(
                name=p.name,
                id_code=p.id_code,
                station=p.station,
                nominal_hz=p.nominal_hz,
                source=p.source,
                channels=tuple(_Channel(c.name, c.quantity, c.phase, c.unit, c.nominal) for c in p.channels),
            )
            for p in description.table.pmus
        ),
        configurations={source: frame.hex() for source, frame in description.configurations.items()},
    )
    return msgspec.json.encode(document)


def decode(text: bytes) -> Description:
    """Read the description back.

    Parameters
    ----------
    text
        What `encode` wrote.

    Returns
    -------
    Description
        As it was.

    Raises
    ------
    ArchiveError
        If the text is not such a description, or of a version from the future.
    """
    try:
        document = msgspec.json.decode(text, type=_Document)
        configurations = {source: bytes.fromhex(frame) for source, frame in document.configurations.items()}
    except (msgspec.MsgspecError, ValueError) as error:
        raise ArchiveError(f"the archive's metadata `{KEY.decode()}` cannot be read: {error}") from error
    if document.version > VERSION:
        raise ArchiveError(
            f"the archive is of version {document.version}, this program reads up to {VERSION}; install a newer one"
        )
    table = ChannelTable(
        tuple(
            Pmu(
                name=p.name,
                id_code=p.id_code,
                station=p.station,
                nominal_hz=p.nominal_hz,
                channels=tuple(Channel(c.name, c.quantity, c.phase, c.unit, c.nominal) for c in p.channels),
                source=p.source,
            )
            for p in document.pmus
        )
    )
    return Description(table, document.rate_hz, configurations)
