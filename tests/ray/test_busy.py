"""Nodes that are somebody else's when a run begins: it goes on without them, and says so where there is no other."""

from __future__ import annotations

import time

import pytest
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from genopt.errors import ClusterError
from genopt.testing.nodes import Nodes
from genopt.testing.sleep_task import sleep_plan

pytestmark = pytest.mark.ray


class Deployment:
    """Holds what it was given for as long as it lives."""

    def ready(self) -> bool:
        return True


@pytest.fixture(scope="module")
def busy(nodes: Nodes) -> str:
    """The node on which something else holds a processor."""
    nodes.add("free")
    nodes.add("busy")
    ray.init(address=nodes.address, namespace="somebody", log_to_driver=False, logging_level="ERROR")
    (node,) = (node["NodeID"] for node in ray.nodes() if "busy" in node["Labels"].values())
    strategy = NodeAffinitySchedulingStrategy(node, soft=False)
    actor = ray.remote(num_cpus=1)(Deployment).options(name="held", lifetime="detached", scheduling_strategy=strategy).remote()
    assert ray.get(actor.ready.remote())
    ray.shutdown()
    return str(node)


def test_a_run_goes_on_without_a_node_that_is_held(nodes: Nodes, busy: str) -> None:
    plans = [sleep_plan(f"b-{number}", {"label": f"b-{number}"}, sleep_s=0.2, speed=1.0 + number / 10) for number in range(1, 4)]
    folder, report = nodes.run("busy", plans, budget="60s")  # a quarter of what a slow start leaves is what a free node has to begin in
    assert report.winner == "b-3"
    assert {candidate.status for candidate in report.tried} == {"accepted"}
    measured = [stage for event in folder.events() if event["event"] == "candidate_finished" for stage in event["stages"]]
    assert {stage["node"] for stage in measured if stage["stage"] == "measure"}.isdisjoint({busy})


def test_where_every_node_is_held_it_is_said_long_before_the_budget_ends(nodes: Nodes, busy: str) -> None:
    nodes.remove("free")
    before = time.monotonic()
    with pytest.raises(ClusterError, match="genopt undeploy"):
        nodes.run("held", [sleep_plan("one", {"label": "one"})], budget="45s")
    assert time.monotonic() - before < 40
