"""The shape of a row of training data: constants on which `models.spec` and this environment must agree (a test)."""

SLOTS = (
    "frequency",
    "rocof",
    "voltage_magnitude",
    "voltage_angle",
    "current_magnitude",
    "active_power",
    "reactive_power",
)
CHANNELS = len(SLOTS)
"""Slots of the network, `C`."""
HORIZONS = 3
"""How many looks ahead, `K`."""
INPUTS = (2 * HORIZONS + 1) * CHANNELS
"""`F`: deviations, the region's medians of them, the missing mask."""
ANSWERS = CHANNELS * HORIZONS
"""Means; as many spreads; as many targets and weights in a row."""
ROW = INPUTS + 2 * ANSWERS
WINDOW = 192
"""Frames of one example, 6.4 s at 30 a second."""
NARROWEST, WIDEST = -5.0, 4.0
"""Bounds of the logarithm of a spread."""
SETTLING = 30
"""First frames of an example that count for nothing: a network that has seen nothing cannot know."""
