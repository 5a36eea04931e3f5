"""The search of a run, through Ray Tune, on a space that it cannot try whole."""

from __future__ import annotations

import pytest

from genopt.report.model import Report
from genopt.search.budget import Budget
from genopt.search.pareto import front
from genopt.testing.nodes import Nodes
from genopt.testing.sleep_task import sleep_plan
from genopt.testing.wide_task import WideTask, outcome

pytestmark = pytest.mark.ray
TRIALS = 20
BAR = 0.99
FIRST = sleep_plan("first", speed=1.0)
"""The catalogue, which must not be empty."""


@pytest.fixture(scope="module", autouse=True)
def one(nodes: Nodes) -> None:
    nodes.add("one")


@pytest.fixture(scope="module")
def runs(nodes: Nodes) -> list[Report]:
    return [nodes.run(f"run-{number}", [FIRST], task="wide", max_trials=TRIALS, seed=7)[1] for number in range(2)]


def test_the_same_seed_gives_the_same_front(runs: list[Report]) -> None:
    one, other = (set(report.pareto) for report in runs)
    assert len(one & other) / len(one | other) >= 0.9
    assert runs[0].winner == runs[1].winner


def test_a_sixth_of_the_space_is_enough_for_the_best_of_it(runs: list[Report]) -> None:
    space = WideTask.space()
    plans = [space.plan(point) for point in space.points()]
    values = {plan.name: (outcome(plan).speed, outcome(plan).quality) for plan in plans}
    tried = {candidate.name for candidate in runs[0].tried} - {FIRST.name}
    assert len(tried) == TRIALS < len(plans) / 6
    assert runs[0].ended == "the search added as many candidates as --max-trials allows"
    holding = {name: value for name, value in values.items() if value[1] >= BAR}
    assert runs[0].winner is not None
    assert values[runs[0].winner][0] == max(speed for speed, _ in holding.values())
    whole = front(values)
    assert len(tried & set(whole)) >= len(whole) / 2


def test_what_was_put_off_is_not_measured_again_once_the_search_has_tried_it(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    def used_up(_budget: Budget, *_phases: str) -> float:
        return 0.0

    monkeypatch.setattr(Budget, "until_share", used_up)
    best = sleep_plan("mine", speed=2.5, quality=1.0, sleep_s=0.1)
    other = sleep_plan("other", speed=2.0)
    _, report = nodes.run("put-off", [best, other], max_trials=1)
    assert {candidate.name: candidate.status for candidate in report.tried} == {"speed-2.5-quality-1.0": "accepted", "other": "accepted"}
