"""How long a candidate is expected to take, before and after others like it ended."""

from __future__ import annotations

import pytest

from genopt.plan import Plan, Step
from genopt.search.estimate import CALIBRATION_S, UNKNOWN_S, expected_s
from genopt.search.predict import runtime_of

EAGER = Plan(name="eager", engine="torch", options={"compile": False})
COMPILED = Plan(name="compiled", engine="torch", options={"compile": True})
LOAD_S = {runtime_of(EAGER): 6.0, runtime_of(COMPILED): 98.0}


def test_what_is_not_compiled_is_not_expected_to_take_a_compilation() -> None:
    assert expected_s(EAGER, load_s=LOAD_S) == UNKNOWN_S + 6.0
    assert expected_s(COMPILED, load_s=LOAD_S) == UNKNOWN_S + 98.0
    assert expected_s(Plan(name="other", engine="ort_genai"), load_s=LOAD_S) == UNKNOWN_S


def test_no_candidate_is_expected_to_need_more_than_both_references() -> None:
    assert expected_s(EAGER, load_s=LOAD_S, references_s=20.0) == 26.0
    assert expected_s(EAGER, load_s=LOAD_S, references_s=260.0) == 136.0, "a large model takes its time in every engine"


def test_those_that_ended_tell_and_their_time_boxes_are_their_own() -> None:
    history = {runtime_of(COMPILED): [100.0, 120.0, 500.0]}
    calibrated = COMPILED.model_copy(update={"steps": (Step(technique="importance"),)})
    assert expected_s(calibrated, history, LOAD_S) == 120.0 + CALIBRATION_S
    boxed = COMPILED.model_copy(update={"steps": (Step(technique="distill", params={"time_s": 30.0}),)})
    assert expected_s(COMPILED, history, LOAD_S) == 120.0
    assert expected_s(boxed, history, LOAD_S) == pytest.approx(150.0)
