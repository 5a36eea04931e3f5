"""How long a candidate is expected to take, before and after others like it ended."""

from __future__ import annotations

from importlib.metadata import entry_points
from itertools import islice
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from genopt import catalog
from genopt.plan import Plan, Step
from genopt.search.estimate import CALIBRATION_S, UNKNOWN_S, expected_s, own_s
from genopt.search.predict import runtime_of
from genopt.tasks.base import environments_of, needs_gpu
from genopt.tasks.text_generation import TextGeneration

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


def test_others_of_the_same_engine_bound_what_is_assumed_where_options_are_new() -> None:
    fewer, many = (Plan(name=f"{steps}", engine="diffusers", options={"num_inference_steps": steps}) for steps in (10, 25))
    history = {runtime_of(many): [80.0, 90.0], runtime_of(COMPILED): [20.0]}
    assert expected_s(fewer, history, references_s=280.0) == 85.0
    assert expected_s(fewer, {runtime_of(COMPILED): [20.0]}, references_s=280.0) == 140.0, "other engines tell nothing"
    assert expected_s(EAGER, {runtime_of(COMPILED): [500.0]}, LOAD_S) == UNKNOWN_S + 6.0, "and what took longer does not make it more"


def test_a_search_asks_the_catalogue_a_few_times_and_not_for_each_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def counted(**facts: str) -> Any:
        read.append(str(facts))
        return entry_points(**facts)

    monkeypatch.setattr(catalog, "entry_points", counted)
    space = TextGeneration.space()
    plans = [space.plan(point) for point in islice(space.points(), 3000)]
    read.clear()
    for plan in plans:
        expected_s(plan)
        needs_gpu(plan)
        environments_of(plan)
    assert len(plans) == 3000
    assert len(read) < 150, "each time takes milliseconds"


@given(some.floats(1.0, 1000.0), some.sampled_from([(), ("importance",), ("importance", "distill")]))
def test_what_a_candidate_took_is_expected_of_the_next_one_like_it(took: float, techniques: tuple[str, ...]) -> None:
    steps = tuple(Step(technique=name, params={"time_s": 20.0} if name == "distill" else {}) for name in techniques)
    plan = COMPILED.model_copy(update={"steps": steps})
    added = CALIBRATION_S * ("importance" in techniques) + 20.0 * ("distill" in techniques)
    told = own_s(plan, added + took)
    assert told > 0
    expected = expected_s(plan, {runtime_of(plan): [told]}, LOAD_S)
    assert expected >= added + took - 1e-6
    if took >= CALIBRATION_S:
        assert expected == pytest.approx(added + took)


def test_no_more_than_half_of_what_a_candidate_took_is_put_down_to_calibration() -> None:
    calibrated = COMPILED.model_copy(update={"steps": (Step(technique="importance"),)})
    assert own_s(calibrated, 100.0) == 100.0 - CALIBRATION_S
    assert own_s(calibrated, 20.0) == 10.0
    assert own_s(COMPILED, 20.0) == 20.0
