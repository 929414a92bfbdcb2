"""Which partition a key goes to: all of a region to one, so that one process scores together what belongs together.

In: a record's key. Out: the number of a partition, the same in every process and at every time. It asks no broker.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from streams.log import region_of


def partition_of(key: str, partitions: int, regions: Sequence[str] = ()) -> int:
    """Name the partition that the records of a key go to.

    Parameters
    ----------
    key
        Of a record: ``region/name``, or ``name`` alone, whose region is empty.
    partitions
        How many the topic has.
    regions
        In the order in which they have partitions of their own, again from the first where there are fewer of them.

    Returns
    -------
    int
        From 0. A region that is not listed goes where its checksum says.
    """
    region = region_of(key)
    place = regions.index(region) if region in regions else zlib.crc32(region.encode())
    return place % partitions
