"""A specification there and back through JSON, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from models.errors import ArtifactError
from models.spec import SLOTS, Spec, read_spec
from tests.reference.small_predictor import SPEC


def test_there_and_back() -> None:
    assert read_spec(SPEC.to_json()) == SPEC


def test_inputs_and_outputs_are_counted() -> None:
    wide = Spec(30.0, (1, 15, 60), (0.5, 2.0), ((1.0, 1.0, 1.0),) * len(SLOTS))
    assert (wide.inputs, wide.outputs) == (49, 42)
    narrow = Spec(30.0, (1,), (), ((1.0,),) * 2, slots=SLOTS[:2])
    assert (narrow.inputs, narrow.outputs) == (6, 4)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"horizons": [1, 3]}, "do not fit paces_s"),
        ({"horizons": [2, 3, 7]}, "horizons"),
        ({"horizons": [1, 7, 3]}, "horizons"),
        ({"horizons": [1, 3, 3]}, "horizons"),
        ({"horizons": []}, "horizons"),
        ({"horizons": [1, "x", 7]}, "cannot be read"),
        ({"horizons": 3}, "cannot be read"),
        ({"horizons": [1, 3, float("inf")]}, "cannot be read"),
        ({"scale": [[1.0, 1.0, 1.0]]}, "7 rows of 3"),
        ({"scale": [[1.0, 1.0]] * 7}, "7 rows of 3"),
        ({"scale": [[1.0, 1.0, 0.0]] * 7}, "7 rows of 3"),
        ({"scale": [[1.0, 1.0, float("nan")]] * 7}, "7 rows of 3"),
        ({"rate_hz": 0}, "numbers above zero"),
        ({"clip": float("nan")}, "above zero"),
        ({"scale_s": float("inf")}, "above zero"),
        ({"bridge_s": -1.0}, "above zero"),
        ({"paces_s": [1.0, -1.0]}, "above zero"),
        ({"rate_hz": None}, "cannot be read"),
        ({"colour": "blue"}, "another version"),
    ],
)
def test_what_does_not_fit_together_is_refused(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(ArtifactError, match=reason):
        read_spec(json.dumps(json.loads(SPEC.to_json()) | change))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", '"rate_hz"', '["rate_hz"]', "{}"])
def test_what_is_none_is_refused(text: str) -> None:
    with pytest.raises(ArtifactError, match=r"spec\.json"):
        read_spec(text)


def test_what_lacks_a_key_is_refused() -> None:
    lacking = json.loads(SPEC.to_json())
    del lacking["warm_s"]
    with pytest.raises(ArtifactError, match="another version"):
        read_spec(json.dumps(lacking))
