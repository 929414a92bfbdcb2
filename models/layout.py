"""Which channel of which PMU stands in which slot of the network.

In: the quantities of each PMU's channels, and its region. Out: places. The n-th channel of a quantity stands in view n
of its PMU, so that a network of seven slots sees every phasor of every PMU, and PMUs of any width share it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

N = TypeVar("N", np.float32, np.bool_)


@dataclass(frozen=True)
class Layout:
    """Places of channels and streams.

    Attributes
    ----------
    channel
        `(S, V, C)`: the PMU's channel in each slot of each view; -1 where there is none.
    region
        `(S,)`: the region of each PMU, -1 where it has none.
    width
        `C'`: channels of the blocks.
    """

    channel: NDArray[np.intp]
    region: NDArray[np.intp]
    width: int

    @property
    def streams(self) -> int:
        """`N`: network streams, `S * V`; PMUs first."""
        return int(np.prod(self.channel.shape[:2]))

    @property
    def stream_region(self) -> NDArray[np.intp]:
        """`(N,)`: views of one number of one region stand together."""
        pmus, views, _ = self.channel.shape
        region: NDArray[np.intp] = self.region[:, None] * views + np.arange(views)
        return np.where(np.broadcast_to(self.region[:, None] < 0, (pmus, views)), -1, region).reshape(-1)

    @property
    def predicted(self) -> NDArray[np.bool_]:
        """`(S, C')`: the channels that stand in some slot."""
        out = np.zeros((len(self.channel), self.width + 1), bool)
        np.put_along_axis(out, self.channel.reshape(len(out), -1) % (self.width + 1), values=True, axis=1)
        return out[:, :-1]

    def gather(self, block: NDArray[N], absent: float) -> NDArray[N]:
        """Put the channels of a frame, or of many, into their slots.

        Parameters
        ----------
        block
            `(..., S, C')`.
        absent
            What stands in slots that have no channel.

        Returns
        -------
        NDArray[N]
            `(..., N, C)`.
        """
        pad = np.full((*block.shape[:-1], 1), absent, block.dtype)
        padded = np.concatenate([block, pad], axis=-1)
        pmu = np.arange(len(self.channel))[:, None, None]
        slots = padded[..., pmu, self.channel % (self.width + 1)]
        return slots.reshape(*block.shape[:-2], self.streams, self.channel.shape[2])

    def scatter(self, slots: NDArray[np.float32]) -> NDArray[np.float32]:
        """Put slots back into the order of a block's channels.

        Parameters
        ----------
        slots
            `(..., N, C, X)`.

        Returns
        -------
        NDArray[np.float32]
            `(..., S, C', X)`; NaN for channels that stand in no slot.
        """
        pmus, views, width = self.channel.shape
        lead, depth = slots.shape[:-3], slots.shape[-1]
        out = np.full((*lead, pmus, self.width + 1, depth), np.nan, slots.dtype)
        pmu = np.broadcast_to(np.arange(pmus)[:, None, None], self.channel.shape)
        out[..., pmu, self.channel % (self.width + 1), :] = slots.reshape(*lead, pmus, views, width, depth)
        return out[..., :-1, :]


def place(slots: Sequence[str], quantities: Sequence[Sequence[str]], regions: Sequence[str]) -> Layout:
    """Find every channel's slot.

    Parameters
    ----------
    slots
        The network's quantities.
    quantities
        Of each PMU, its channels' quantities in their order; those that the network does not know stay out.
    regions
        Of each PMU, what it stands together with: its concentrator, say; empty where nobody knows.

    Returns
    -------
    Layout
        With as many views as the PMU with the most channels of one quantity needs, at least one.
    """
    rows = []
    for names in quantities:
        columns = [[c for c, name in enumerate(names) if name == slot] for slot in slots]
        views = max((len(column) for column in columns), default=0)
        rows.append([[column[v] if v < len(column) else -1 for column in columns] for v in range(views)])
    views = max([1, *map(len, rows)])
    blank = [-1] * len(slots)
    channel = np.asarray([row + [blank] * (views - len(row)) for row in rows], np.intp)
    known = {name: r for r, name in enumerate(dict.fromkeys(regions))}
    region = np.asarray([known[name] if name else -1 for name in regions], np.intp)
    return Layout(channel.reshape(len(rows), views, len(slots)), region, max(map(len, quantities), default=0))
