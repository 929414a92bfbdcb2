"""The errors of `baselines`, drawn.

    BaselinesError
    ├── ShapeError              arrays or settings that do not fit together
    ├── TimeOrderError          a block that does not follow the last one
    └── ReferenceMismatchError  a reference learned for other streams, channels or settings

A class exists only where a caller catches it differently. A message says what, which, and what to do.
"""

from __future__ import annotations


class BaselinesError(Exception):
    """Root of every error that `baselines` raises on purpose."""


class ShapeError(BaselinesError):
    """Arrays or settings that do not fit together; the message names the axis or the setting."""


class TimeOrderError(BaselinesError):
    """A block overlaps or precedes what has been scored already; the message names both times."""


class ReferenceMismatchError(BaselinesError):
    """A reference was learned for other streams, channels or settings than those being scored."""
