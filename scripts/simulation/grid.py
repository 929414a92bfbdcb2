"""The solved grid as the worker describes it, and where its PMUs stand.

In: the worker's description of a case. Out: buses, branches, loads and machines with the flows before the event, a
choice of PMU places that depends on nothing but the case, and the channel table of the streams. It simulates nothing.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streams.channels import Channel, ChannelTable, Phase, Pmu, Quantity

PLACES = {"npcc": (46, 8), "ieee39": (29, 10), "wecc": (60, 12)}
"""By case: PMUs on network buses, and on machine terminals."""
SOURCES = {"NYISO2": "NYISO"}
"""Areas whose PMUs report through another area's concentrator."""
RATINGS_A = (400.0, 600.0, 800.0, 1200.0, 1600.0, 2000.0, 3000.0, 4000.0, 5000.0, 8000.0, 12000.0, 20000.0, 40000.0)
"""Primary currents of current transformers; the next one above the flow is a channel's nominal."""
STATION_LENGTH = 16
"""Of a station name in a C37.118 configuration frame of 2005 or 2011 (CFG-2)."""
NETWORK_KV = 100.0


@dataclass(frozen=True)
class Grid:
    """One case, solved.

    Attributes
    ----------
    about
        What the worker answered to `describe`.
    """

    about: dict[str, Any]

    @property
    def case(self) -> str:
        """Short name of the case."""
        return str(self.about["case"])

    @cached_property
    def place(self) -> dict[Any, int]:
        """Column of a bus in simulated arrays, by the bus' idx."""
        return {b["idx"]: k for k, b in enumerate(self.about["buses"])}

    @cached_property
    def kv(self) -> NDArray[np.float64]:
        """`(buses,)`: nominal voltage, line to line."""
        return np.array([b["kv"] for b in self.about["buses"]])

    @cached_property
    def ends(self) -> NDArray[np.int64]:
        """`(lines, 2)`: columns of the two buses of each branch."""
        return np.array([[self.place[k["bus1"]], self.place[k["bus2"]]] for k in self.about["lines"]])

    @cached_property
    def degree(self) -> NDArray[np.int64]:
        """`(buses,)`: branches at each bus."""
        return np.bincount(self.ends.ravel(), minlength=len(self.kv))

    @cached_property
    def machine_buses(self) -> set[int]:
        """Columns of the buses that have a machine."""
        return {self.place[m["bus"]] for m in self.about["machines"]}

    @cached_property
    def start(self) -> NDArray[np.complex128]:
        """`(1, buses)`: bus phasors of the power flow, per unit."""
        phasors = np.array([b["v"] * np.exp(1j * b["a"]) for b in self.about["buses"]])
        return phasors[None]

    @cached_property
    def flows_mw(self) -> NDArray[np.float64]:
        """`(lines,)`: active power of each branch before any event, at its first end."""
        current = np.concatenate([self.current(k, 0, self.start[:, pair]) for k, pair in enumerate(self.ends)])
        power: NDArray[np.float64] = (self.start[0, self.ends[:, 0]] * current.conj()).real
        return power * self.about["mva"]

    def bus_name(self, column: int) -> str:
        """Name and idx of a bus, for people."""
        bus = self.about["buses"][column]
        return f"{bus['name']} ({bus['kv']:g} kV, bus {bus['idx']})"

    def line_name(self, k: int) -> str:
        """Idx and ends of a branch, for people."""
        one, two = self.ends[k]
        return f"{self.about['lines'][k]['idx']}: {self.bus_name(one)} - {self.bus_name(two)}"

    def is_line(self, k: int) -> bool:
        """Whether a branch is a line rather than a transformer."""
        one, two = self.ends[k]
        branch = self.about["lines"][k]
        return bool(self.kv[one] == self.kv[two] and branch["tap"] == 1 and branch["phi"] == 0)

    def connected_without(self, k: int) -> bool:
        """Whether the grid stays in one piece when branch `k` opens."""
        groups = np.arange(len(self.kv))
        for j, (one, two) in enumerate(self.ends):
            if j != k and self.about["lines"][j]["u"]:
                groups[groups == groups[two]] = groups[one]
        return len(set(groups.tolist())) == 1

    def current(self, k: int, end: int, volts: NDArray[np.complex128]) -> NDArray[np.complex128]:
        """Compute the current into a branch from its own model.

        Parameters
        ----------
        k
            Which branch.
        end
            0 or 1: at which of its buses.
        volts
            `(T, 2)` per unit: at its two buses.

        Returns
        -------
        NDArray[np.complex128]
            `(T,)` per unit, positive into the branch.
        """
        branch = self.about["lines"][k]
        series = 1 / (branch["r"] + 1j * branch["x"])
        ratio = branch["tap"] * np.exp(1j * branch["phi"])
        half = (branch["g"] + 1j * branch["b"]) / 2
        one, two = volts.T
        if end == 0:
            shunt = half + branch["g1"] + 1j * branch["b1"]
            into: NDArray[np.complex128] = one * (series + shunt) / abs(ratio) ** 2 - two * series / np.conj(ratio)
        else:
            shunt = half + branch["g2"] + 1j * branch["b2"]
            into = two * (series + shunt) - one * series / ratio
        return into


@dataclass(frozen=True)
class Placement:
    """The PMUs of a case.

    Attributes
    ----------
    grid
        The case.
    buses
        `(S,)`: column of each PMU's bus.
    branches
        `(S, 2)`: the branch whose current it measures, and at which end.
    table
        PMUs and channels: voltage, current, frequency, ROCOF.
    """

    grid: Grid
    buses: NDArray[np.int64]
    branches: NDArray[np.int64]
    table: ChannelTable

    @property
    def sources(self) -> tuple[str, ...]:
        """The concentrators, in order of first mention."""
        return tuple(dict.fromkeys(p.source for p in self.table.pmus))

    @cached_property
    def source_of(self) -> NDArray[np.int64]:
        """`(S,)`: place of each PMU's concentrator in `sources`."""
        return np.array([self.sources.index(p.source) for p in self.table.pmus])


def place_pmus(grid: Grid) -> Placement:
    """Put PMUs where they see most: each next one at the bus with most neighbours that no PMU sees yet.

    Parameters
    ----------
    grid
        The case.

    Returns
    -------
    Placement
        The same for every seed, so that what was learned on one stream holds for the next.
    """
    network, machines = PLACES[grid.case]
    through = np.bincount(grid.ends.ravel(), np.repeat(np.abs(grid.flows_mw), 2), len(grid.kv))
    seen = np.eye(len(grid.kv), dtype=bool)
    seen[grid.ends[:, 0], grid.ends[:, 1]] = seen[grid.ends[:, 1], grid.ends[:, 0]] = True
    worthy = (grid.kv >= NETWORK_KV) & (grid.degree > 1)
    covered = np.zeros(len(grid.kv), bool)
    chosen: list[int] = []
    for _ in range(min(network, int(worthy.sum()))):
        gain = (seen & ~covered).sum(1) + through / (1 + through.max())
        gain[chosen] = gain[~worthy] = -1
        best = int(np.argmax(gain))
        chosen.append(best)
        covered |= seen[best]
    power = np.bincount([grid.place[m["bus"]] for m in grid.about["machines"]],
                        [m["p"] for m in grid.about["machines"]], len(grid.kv))  # fmt: skip
    power[chosen] = -1
    chosen += [int(k) for k in np.argsort(-power)[:machines]]
    # Concentrator by concentrator, as they will arrive.
    areas = [_source(grid, k) for k in chosen]
    order = sorted(range(len(chosen)), key=lambda n: (list(grid.about["areas"].values()).index(areas[n]), chosen[n]))
    buses = np.array([chosen[n] for n in order])
    branches = np.array([_main_branch(grid, int(b)) for b in buses])
    return Placement(grid, buses, branches, _table(grid, buses, branches))


def _source(grid: Grid, column: int) -> str:
    """Name the concentrator of a bus."""
    area = str(grid.about["areas"][grid.about["buses"][column]["area"]])
    return SOURCES.get(area, area)


def _main_branch(grid: Grid, column: int) -> tuple[int, int]:
    """Find the branch whose current is measured: the fullest line, or transformer where there is no line."""
    here = [k for k in range(len(grid.ends)) if column in grid.ends[k]]
    best = max(here, key=lambda k: (grid.is_line(k), abs(grid.flows_mw[k])))
    return best, int(grid.ends[best, 1] == column)


def _table(grid: Grid, buses: NDArray[np.int64], branches: NDArray[np.int64]) -> ChannelTable:
    """Name the PMUs and their channels."""
    abouts = [grid.about["buses"][b] for b in buses]
    plain = [a["name"].strip() for a in abouts]
    with_kv = [f"{n} {a['kv']:g}" if plain.count(n) > 1 else n for n, a in zip(plain, abouts, strict=True)]
    names = [f"{p} {a['idx']}" if with_kv.count(n) > 1 else n for p, n, a in zip(plain, with_kv, abouts, strict=True)]
    counts: Counter[str] = Counter()
    sources = list(dict.fromkeys(_source(grid, int(b)) for b in buses))
    pmus = []
    for name, column, (branch, end) in zip(names, buses, branches, strict=True):
        source = _source(grid, int(column))
        counts[source] += 1
        volts = round(float(grid.kv[column]) * 1e3 / 3**0.5, 1)
        per_unit_a = grid.about["mva"] * 1e3 / (np.sqrt(3) * grid.kv[column])
        flow_a = abs(grid.current(int(branch), int(end), grid.start[:, grid.ends[branch]])[0]) * per_unit_a
        amps = next((a for a in RATINGS_A if a >= 1.2 * flow_a), RATINGS_A[-1])
        nominal_hz = grid.about["nominal_hz"]
        channels = (
            Channel("V1", Quantity.VOLTAGE_MAGNITUDE, Phase.POSITIVE, "V", volts),
            Channel("V1", Quantity.VOLTAGE_ANGLE, Phase.POSITIVE, "deg"),
            Channel("I1", Quantity.CURRENT_MAGNITUDE, Phase.POSITIVE, "A", amps),
            Channel("I1", Quantity.CURRENT_ANGLE, Phase.POSITIVE, "deg"),
            Channel("frequency", Quantity.FREQUENCY, Phase.UNKNOWN, "Hz", nominal_hz),
            Channel("rocof", Quantity.ROCOF, Phase.UNKNOWN, "Hz/s", 0.0),
        )
        code = 1000 * (1 + sources.index(source)) + counts[source]
        pmus.append(Pmu(name[:STATION_LENGTH], code, name[:STATION_LENGTH], int(nominal_hz), channels, source))
    return ChannelTable(tuple(pmus))
