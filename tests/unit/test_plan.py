"""Plans: what makes two candidates the same one."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from genopt.plan import Candidate, Metric, Plan, Step

VALUES = st.none() | st.booleans() | st.integers(-1000, 1000) | st.text(max_size=5) | st.floats(allow_nan=False, allow_infinity=False)
OPTIONS = st.dictionaries(st.text(max_size=5), VALUES, max_size=4)


@given(options=OPTIONS, params=OPTIONS)
def test_the_name_and_the_order_of_keys_do_not_make_another_candidate(options: dict[str, Any], params: dict[str, Any]) -> None:
    first = Plan(name="a", steps=(Step(technique="t", params=params),), engine="e", options=options)
    turned = Step(technique="t", params=dict(reversed(params.items())))
    second = Plan(name="b", steps=(turned,), engine="e", options=dict(reversed(options.items())))
    assert first.identity() == second.identity()


@pytest.mark.parametrize(
    "other",
    [
        Plan(name="a", engine="f", options={"x": 1}),
        Plan(name="a", engine="e", options={"x": 2}),
        Plan(name="a", engine="e", options={"x": 1}, steps=(Step(technique="t"),)),
    ],
)
def test_everything_else_does(other: Plan) -> None:
    assert other.identity() != Plan(name="a", engine="e", options={"x": 1}).identity()


def test_the_order_of_steps_matters() -> None:
    one, two = Step(technique="prune"), Step(technique="quantize")
    assert Plan(name="a", steps=(one, two), engine="e").identity() != Plan(name="a", steps=(two, one), engine="e").identity()


def test_an_identity_survives_json() -> None:
    plan = Plan(name="a", steps=(Step(technique="t", params={"keep": ["head"], "ratio": 0.5}),), engine="e", options={"compile": True})
    assert Plan.model_validate_json(plan.model_dump_json()).identity() == plan.identity()


def test_a_candidate_survives_json() -> None:
    candidate = Candidate(name="c", status="accepted", reason="held", engine="e", metrics={"tpot_ms": Metric(value=1.5, unit="ms", n=3)})
    assert Candidate.model_validate_json(candidate.model_dump_json()) == candidate


def test_unknown_keys_and_changes_are_refused() -> None:
    with pytest.raises(ValidationError):
        Plan.model_validate({"name": "a", "engine": "e", "optoins": {}})
    with pytest.raises(ValidationError):
        Plan(name="a", engine="e").engine = "f"  # type: ignore[misc]
