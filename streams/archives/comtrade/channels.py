"""What the channels of somebody else's COMTRADE record are: by a map, or by their names, phases and units.

In: a record. Out: a plan, as for any other table. What annex H of the revision of 2013 names is taken by its word; the
rest is guessed from as in CSV files. It reads no rows.
"""

from __future__ import annotations

import os
from dataclasses import replace

from streams.archives.columns import STAT, TIME, TIME_FLAGS, split_column
from streams.archives.comtrade.configuration import Record
from streams.archives.placing import Placement, Plan, guess, in_unit, read_map
from streams.channels import Phase, Quantity
from streams.errors import ArchiveError

_PHASES = dict(zip("AR1BS2CT3P+N-Z0", "AAABBBCCC112200", strict=True))
_UNSCALED = frozenset(
    {Quantity.VOLTAGE_ANGLE, Quantity.CURRENT_ANGLE, Quantity.FREQUENCY, Quantity.ROCOF, Quantity.DIGITAL, None}
)


def place(record: Record, channels: str | os.PathLike[str] | None) -> Plan:
    """Say what the channels of somebody else's record are.

    Parameters
    ----------
    record
        From `open_record`.
    channels
        A map of them (see `placing.read_map`); None to guess from names, phases and units.

    Returns
    -------
    Plan
        With the ratio of secondary values in the scale of their columns.

    Raises
    ------
    ArchiveError
        If the map cannot be read, or a channel cannot be placed.
    """
    if channels is not None:
        plan = read_map(channels, record.columns, record.units)
    else:
        own = tuple(c for c in record.columns[1:] if c.rpartition(".")[2] == TIME_FLAGS or c == TIME_FLAGS)
        placed = _places(record)
        rest = [c for c in record.columns[1:] if c not in placed and c not in own]
        guessed = guess([TIME, *rest], record.units, record.station or record.path.stem).placements if rest else ()
        placed |= {p.column: _with_phase(p, record) for p in guessed}
        placements = tuple(placed[c] for c in record.columns[1:] if c in placed)
        if not placements:
            raise ArchiveError(f"{record.path}: has no channel")
        plan = Plan(TIME, placements, guessed=True, ignored=own)
    ratios = {a.column: a.ratio for a in record.analogs if a.ratio != 1}
    return replace(
        plan,
        placements=tuple(
            replace(p, scale=p.scale * ratios[p.column]) if p.column in ratios and p.quantity not in _UNSCALED else p
            for p in plan.placements
        ),
    )


def _with_phase(placement: Placement, record: Record) -> Placement:
    """Add the phase that the record states where the name tells none."""
    stated = next((a.phase.upper() for a in record.analogs if a.column == placement.column), "")
    if placement.phase is Phase.UNKNOWN and stated in ("A", "B", "C") and placement.quantity not in _UNSCALED:
        return replace(placement, phase=Phase(stated))
    return placement


def _places(record: Record) -> dict[str, Placement]:
    """Place what annex H of the revision of 2013 names: phasors, frequencies, STAT and digital words, single bits."""
    voltage = {
        (a.name, a.phase[:1].upper()): a.unit.lower() in ("v", "kv")
        for a in record.analogs
        if a.unit.lower() in ("v", "kv", "a", "ka")
    }
    placed: dict[str, Placement] = {}
    for a in record.analogs:
        pmu, _, channel = (part.strip() for part in a.name.partition(":"))
        phase, kind = a.phase[:1].upper(), a.phase.upper()
        alone = pmu.lower() in ("f", "freq", "frequency", "df", "dfdt", "df/dt", "rocof")
        quantity = None
        if split_column(a.name) is not None:
            continue
        if kind == "F" and a.unit.lower() in ("", "hz", "mhz"):
            quantity = Quantity.FREQUENCY
        elif kind == "DF":
            quantity = Quantity.ROCOF
        elif len(kind) == 2 and phase in _PHASES and kind[1] in "MA" and (a.name, phase) in voltage:
            sizes = (Quantity.VOLTAGE_MAGNITUDE, Quantity.CURRENT_MAGNITUDE)
            angles = (Quantity.VOLTAGE_ANGLE, Quantity.CURRENT_ANGLE)
            quantity = (sizes if kind[1] == "M" else angles)[not voltage[a.name, phase]]
        if quantity is None:
            continue
        name = (record.station or record.path.stem) if alone and not channel else pmu
        is_phasor = quantity not in (Quantity.FREQUENCY, Quantity.ROCOF)
        made = Placement(
            a.column, name, channel or str(quantity), quantity, Phase(_PHASES[phase]) if is_phasor else Phase.UNKNOWN
        )
        placed[a.column] = in_unit(made, a.unit, f"channel {a.column!r}")
    names = {p.pmu for p in placed.values()}
    only = names.pop() if len(names) == 1 else record.station or record.path.stem
    for word in record.words:
        pmu, colon, channel = (part.strip() for part in word.column.partition(":"))
        if word.is_stat and not word.column.startswith(":"):
            placed[word.column] = Placement(word.column, word.column.rpartition(":")[0].strip(), STAT, None)
        elif colon:
            placed[word.column] = Placement(word.column, pmu or only, channel, Quantity.DIGITAL)
        else:
            placed[word.column] = Placement(word.column, only, word.column, Quantity.DIGITAL)
    return placed
