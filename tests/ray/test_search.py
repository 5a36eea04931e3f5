"""The search of a run, through Ray Tune, on a space that it cannot try whole."""

from __future__ import annotations

import pytest

from genopt.report.model import Report
from genopt.search.pareto import front
from genopt.testing.nodes import Nodes
from genopt.testing.sleep_task import sleep_plan
from genopt.testing.wide_task import WideTask, outcome

pytestmark = pytest.mark.ray
TRIALS = 20
BAR = 0.99
FIRST = sleep_plan("first", speed=1.0)
"""The catalogue, which must not be empty."""


@pytest.fixture(scope="module")
def runs(nodes: Nodes) -> list[Report]:
    nodes.add("one")
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
