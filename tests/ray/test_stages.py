"""Stages on a real Ray: who holds which processors when."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from genopt.distributed import cluster, stages
from genopt.plan import Plan
from genopt.tasks.base import Evaluation, failed

pytestmark = pytest.mark.ray
SECONDS = 1.5


class SlowBench:
    """Measures for a while, and remembers when."""

    def __init__(self) -> None:
        self._begun = threading.Event()

    def begun(self) -> bool:
        return self._begun.wait(30)

    def evaluate(self, plan: dict[str, Any], artifact: dict[str, Any], deadline: float) -> dict[str, Any]:
        started = time.time()
        self._begun.set()
        time.sleep(SECONDS)
        found = Evaluation(candidate=failed(Plan.model_validate(plan), "skipped", "not a real one"), seconds=0.0).model_dump(mode="json")
        return {**found, "samples": [{"started": started, "ended": time.time()}]}


@ray.remote(num_cpus=stages.BUILD_CPUS)
def build() -> float:
    return time.time()


@pytest.fixture
def node() -> Iterator[cluster.Node]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(stages.__file__).parents[2]))
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(address="local", include_dashboard=False, num_cpus=2, object_store_memory=100 * 2**20, log_to_driver=False, logging_level="ERROR")
        yield cluster.nodes()[0]
        ray.shutdown()


def test_nothing_is_built_on_a_node_while_it_measures(node: cluster.Node) -> None:
    bench = ray.remote(num_cpus=0, max_concurrency=2)(SlowBench).remote()
    plan, built = Plan(name="one", engine="fake"), ray.put({"artifact": {}, "seconds": 0.0})
    ray.get(build.remote())  # the worker is there, so that only resources decide
    measuring = stages.evaluate_on(bench, node, plan, built, time.time() + 60)
    assert ray.get(bench.begun.remote())
    other = build.remote()
    (sample,) = ray.get(measuring)["samples"]
    assert ray.get(other) >= sample["ended"]


def test_a_bench_that_does_not_answer_in_time_is_given_up(node: cluster.Node) -> None:
    bench = ray.remote(num_cpus=0)(SlowBench).remote()
    with pytest.raises(TimeoutError):
        stages.held(bench.begun.remote(), 0)
