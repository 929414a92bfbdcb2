"""What a network was made for: its slots, horizons and scales, as they stand in an artifact.

In and out: a frozen `Spec` and its JSON. Everything that turns readings into the network's inputs, and the network's
outputs into predicted readings, is here, so that a network is never fed other than it was trained. It computes nothing.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields

from models.errors import ArtifactError

SLOTS = (
    "frequency",
    "rocof",
    "voltage_magnitude",
    "voltage_angle",
    "current_magnitude",
    "active_power",
    "reactive_power",
)
"""The quantities that one view of a PMU shows the network, in the order of the axis `C`."""

ANGLES = ("voltage_angle",)
"""Slots in degrees that wrap."""

FULL_TURN_DEG = 360.0


@dataclass(frozen=True, slots=True)
class Spec:
    """How readings become inputs, and outputs predictions.

    Attributes
    ----------
    rate_hz
        Frames a second that the network was trained at; it serves no other.
    horizons
        How many frames ahead each prediction looks, the next frame first. `K` of them.
    paces_s
        Time constants of the running levels that a reading is compared with; one fewer than horizons. The deviation
        from the last reading, and from each level, is what the inputs hold; its running scale is the unit of the
        prediction of the same place.
    scale
        `C` rows of `K`: the typical size of each deviation, from the training split, in the reading's unit (Hz, Hz/s,
        per unit, degrees). Where a running scale begins.
    slots
        The quantities, `C` of them.
    clip
        Inputs are bounded by this many scales.
    scale_s
        Time constant of the running scales, once they have run for so long.
    prior_s
        How many seconds of readings the stored scale is worth.
    bridge_s
        A gap no longer than this is bridged by predictions; after a longer one a stream begins anew.
    warm_s
        So long after it began a stream is not scored.
    """

    rate_hz: float
    horizons: tuple[int, ...]
    paces_s: tuple[float, ...]
    scale: tuple[tuple[float, ...], ...]
    slots: tuple[str, ...] = SLOTS
    clip: float = 8.0
    scale_s: float = 300.0
    prior_s: float = 5.0
    bridge_s: float = 1.0
    warm_s: float = 5.0

    @property
    def inputs(self) -> int:
        """`F`: deviations, the region's medians of them, and the missing mask."""
        return (2 * len(self.horizons) + 1) * len(self.slots)

    @property
    def outputs(self) -> int:
        """`O`: a mean and a spread for every slot and horizon."""
        return 2 * len(self.slots) * len(self.horizons)

    def to_json(self) -> str:
        """Write it down.

        Returns
        -------
        str
            JSON, one key a line.
        """
        return json.dumps(asdict(self), indent=1) + "\n"


def read_spec(text: str) -> Spec:
    """Read what `Spec.to_json` wrote.

    Parameters
    ----------
    text
        JSON.

    Returns
    -------
    Spec
        Checked.

    Raises
    ------
    ArtifactError
        If it is none, or does not fit together.
    """
    try:
        read = json.loads(text)
        named = {f.name for f in fields(Spec)}
        if set(read) != named:
            raise ArtifactError(f"spec.json has {sorted(read)} instead of {sorted(named)}; it is another version's")
        spec = Spec(
            rate_hz=float(read["rate_hz"]),
            horizons=tuple(int(h) for h in read["horizons"]),
            paces_s=tuple(float(p) for p in read["paces_s"]),
            scale=tuple(tuple(float(s) for s in row) for row in read["scale"]),
            slots=tuple(str(s) for s in read["slots"]),
            clip=float(read["clip"]),
            scale_s=float(read["scale_s"]),
            prior_s=float(read["prior_s"]),
            bridge_s=float(read["bridge_s"]),
            warm_s=float(read["warm_s"]),
        )
    except (ValueError, TypeError, OverflowError) as error:
        raise ArtifactError(f"spec.json cannot be read: {error}") from error
    slots, horizons = len(spec.slots), len(spec.horizons)
    if horizons != len(spec.paces_s) + 1 or sorted(set(spec.horizons)) != list(spec.horizons) or spec.horizons[0] != 1:
        raise ArtifactError(f"spec.json: horizons {spec.horizons} do not fit paces_s {spec.paces_s}")
    if len(spec.scale) != slots or any(len(row) != horizons or not _above_zero(*row) for row in spec.scale):
        raise ArtifactError(f"spec.json: scale must be {slots} rows of {horizons} numbers above zero")
    times_s = (spec.scale_s, spec.prior_s, spec.bridge_s, spec.warm_s, *spec.paces_s)
    if not _above_zero(spec.rate_hz, spec.clip, *times_s):
        raise ArtifactError("spec.json: rate, clip and times must be numbers above zero")
    return spec


def _above_zero(*numbers: float) -> bool:
    """Whether they are, and finite."""
    return all(0 < number < math.inf for number in numbers)
