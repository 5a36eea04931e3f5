"""A second run on the same store: what the first one measured is taken over where that is asked for, and its best is measured again."""

from __future__ import annotations

from typing import Any

import pytest

from genopt.report.model import Report
from genopt.store.run_folder import RunFolder
from genopt.testing.nodes import Nodes
from genopt.testing.sleep_task import sleep_plan

pytestmark = pytest.mark.ray
PLANS = [
    sleep_plan("fair", sleep_s=0.1, speed=1.5), sleep_plan("good", {"label": "good"}, sleep_s=0.1, speed=2.0),
    sleep_plan("wrong", sleep_s=0.1, speed=3.0, quality=0.9),
]  # fmt: skip
NEW = sleep_plan("new", sleep_s=0.1, speed=1.2)


@pytest.fixture(scope="module", autouse=True)
def one_node(nodes: Nodes) -> None:
    nodes.add("one")


def measured(folder: RunFolder) -> set[str]:
    """Names of the candidates that were measured in a run."""
    ended: list[dict[str, Any]] = [event for event in folder.events() if event["event"] == "candidate_finished"]
    return {event["candidate"]["name"] for event in ended if any(stage["stage"] == "measure" for stage in event["stages"])}


def from_elsewhere(report: Report) -> set[str]:
    return {one.name for one in report.tried if one.earlier}


def test_an_earlier_run_saves_a_later_one_work_and_wins_nothing(nodes: Nodes) -> None:
    first, report = nodes.run("first", PLANS)
    assert (measured(first), from_elsewhere(report)) == ({"fair", "good", "wrong"}, set())

    second, report = nodes.run("second", PLANS)
    assert (measured(second), from_elsewhere(report)) == ({"fair", "good", "wrong"}, set()), "speeds are this run's own unless asked for"

    third, report = nodes.run("third", [*PLANS, NEW], reuse="everything")
    assert report.winner == "good"
    assert measured(third) == {"good", "new"}
    assert from_elsewhere(report) == {"fair", "wrong"}
    assert {one.name for one in report.tried if one.status == "rejected"} == {"wrong"}
    assert {name for one in report.tried for name in (one.earlier[0].run.rpartition("/")[2] if one.earlier else "",)} == {"", "second"}


def test_without_gpus_nothing_is_taken_over_that_was_measured_with_one(nodes: Nodes) -> None:
    nodes.run("with", PLANS)
    nodes.remove("one")
    nodes.add("without", num_gpus=0)
    without, report = nodes.run("without", PLANS, reuse="everything")
    assert (measured(without), from_elsewhere(report)) == ({"fair", "good", "wrong"}, set())
