"""Which channel of which PMU stands in which slot of the network.

In: the quantities of each PMU's channels, and its region. Out: places. The n-th channel of a quantity stands in view n
of its PMU, so that a network of seven slots sees every phasor of every PMU, and PMUs of any width share it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
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

    @cached_property
    def views(self) -> NDArray[np.intp]:
        """`(N,)`: the network streams: those of the `S * V` views, PMUs first, that have any channel."""
        found: NDArray[np.intp] = np.flatnonzero((self.channel >= 0).any(2))
        return found

    @property
    def streams(self) -> int:
        """`N`."""
        return len(self.views)

    @cached_property
    def stream_pmu(self) -> NDArray[np.intp]:
        """`(N,)`: whose each stream is."""
        pmu: NDArray[np.intp] = self.views // self.channel.shape[1]
        return pmu

    @property
    def stream_region(self) -> NDArray[np.intp]:
        """`(N,)`: views of one number of one region stand together."""
        number = self.channel.shape[1]
        region = self.region[self.stream_pmu]
        return np.where(region < 0, -1, region * number + self.views % number)

    @property
    def predicted(self) -> NDArray[np.bool_]:
        """`(S, C')`: the channels that stand in some slot."""
        predicted: NDArray[np.bool_] = self._slot.reshape(len(self.channel), self.width) >= 0
        return predicted

    @cached_property
    def _channel(self) -> NDArray[np.intp]:
        """`(N * C,)`: where among `S * C'` the channel of each slot is; -1 where there is none."""
        channel = self.channel.reshape(-1, self.channel.shape[2])[self.views]
        return np.where(channel < 0, -1, channel + self.width * self.stream_pmu[:, None]).reshape(-1)

    @cached_property
    def _slot(self) -> NDArray[np.intp]:
        """`(S * C',)`: where among `N * C` the slot of each channel is; -1 where it stands in none."""
        slot = np.full(len(self.channel) * self.width, -1, np.intp)
        taken = np.flatnonzero(self._channel >= 0)
        slot[self._channel[taken]] = taken
        return slot

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
        lead: tuple[int, ...] = block.shape[:-2]
        shape = (*lead, self.streams, self.channel.shape[2])
        if not self.streams:
            return np.empty(shape, block.dtype)
        slots = np.take(block.reshape(*lead, len(self._slot)), self._channel, axis=-1)
        slots[..., self._channel < 0] = absent
        return slots.reshape(shape)

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
        lead, depth = slots.shape[:-3], slots.shape[-1]
        shape = (*lead, len(self.channel), self.width, depth)
        if not self.streams:
            return np.full(shape, np.nan, slots.dtype)
        block = np.take(slots.reshape(*lead, len(self._channel), depth), self._slot, axis=-2)
        if (self._slot < 0).any():
            block[..., self._slot < 0, :] = np.nan
        return block.reshape(shape)


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
