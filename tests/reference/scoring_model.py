"""A network of random weights as a model: it predicts little more than the last reading, enough for most tests."""

from __future__ import annotations

from gridsense.sequence import Model
from models.engines import ArrayEngine
from models.spec import Spec
from tests.reference.small_network import small_weights

SCALES = (5e-4, 1e-2, 2e-5, 2e-3, 2e-3, 2e-3, 2e-3)
"""Of each slot's deviation from the last reading: Hz, Hz/s, per unit, degrees, per unit."""


def scoring_model(rate_hz: float = 30.0, warm_s: float = 5.0) -> Model:
    spec = Spec(
        rate_hz=rate_hz,
        horizons=(1, max(2, round(rate_hz / 2)), max(3, round(2 * rate_hz))),
        paces_s=(0.5, 3.0),
        scale=tuple((s, 2 * s, 4 * s) for s in SCALES),
        warm_s=warm_s,
    )
    weights = small_weights(1, inputs=spec.inputs, hidden=6, outputs=spec.outputs, scale=0.05)
    return Model(f"small {rate_hz:g}", spec, ArrayEngine(weights))
