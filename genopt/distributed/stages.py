"""Stages as Ray tasks: what those that build and those that measure have in common.

Resources: a stage that measures takes its node (all processors but half of one, so that the thin
coordinators of a search still fit), so nothing else of ours runs there while it times. Builds take
one processor.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, Literal

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from genopt import clock
from genopt.clock import Moment, Window
from genopt.distributed.cluster import Node
from genopt.environments import place
from genopt.errors import GenoptError, to_wire
from genopt.measure import machine
from genopt.process import run_stage
from genopt.tasks.base import StageTime

BUILD_CPUS = 1.0
GRACE_S = 3.0
"""What is stopped at its deadline has this long to say so itself; then it is killed."""
PATIENCE, LEAST_PATIENCE_S = 4.0, 120.0
"""A build or a measurement is stopped after so many times the candidate's expected time, so that one that hangs cannot eat the budget."""


def node_cpus(node: Node) -> float:
    """Processors that a measuring stage takes on a node: so many that neither another one nor a build finds room beside it.

    On parts of a node, all of them together leave no room.
    """
    count = max(1, len(node.parts))
    return max(0.6 * node.cpus, node.cpus - 0.5 / count)


def window_of(expected_s: float, deadline: float, guard_s: float) -> Window:
    """When a candidate may be built, and when it may be measured.

    Args:
        expected_s: Seconds that it should take.
        deadline: When it must be done. Who waits for it stops it then; its node does so a little later, in case they cannot.
        guard_s: Seconds before the deadline in which nothing starts that cannot finish.
    """
    return Window.until(deadline + GRACE_S, min(expected_s, guard_s), max(LEAST_PATIENCE_S, PATIENCE * expected_s))


def on_node(node: Node) -> NodeAffinitySchedulingStrategy:
    """Pins a task or actor to a node."""
    return NodeAffinitySchedulingStrategy(node.node_id, soft=False)


@ray.remote(num_cpus=0.1)
def machine_task() -> dict[str, Any]:
    """What the node is: `hardware`, `environment`, the `libraries` that decide the bytes of artifacts, and those of other `engines`."""
    environment = {**machine.environment(), "engine_environments": place.states()}
    return {"hardware": machine.hardware(), "environment": environment, "libraries": machine.libraries(), "engines": place.identities()}


def gpu_environment(uses: bool = True) -> dict[str, str]:
    """Hides every GPU from stages that were given none, or use none; Ray itself would leave them visible."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return {"CUDA_VISIBLE_DEVICES": visible if uses and ray.get_gpu_ids() else ""}


@ray.remote(num_cpus=BUILD_CPUS, max_retries=2)
def run_stage_task(
    kind: str, payload: dict[str, Any], log: str, deadline: dict[str, Any], threads: int, variables: dict[str, str]
) -> dict[str, Any]:  # fmt: skip
    """Runs one stage of `genopt.worker` in its own process: `{"result": ...}` or `{"error": ...}`."""
    try:
        timeout = max(1.0, Moment.model_validate(deadline).here() - clock.now())
        environment = {**gpu_environment(), **variables}
        return {"result": run_stage(kind, payload, log=Path(log), timeout_s=timeout, threads=threads, environment=environment)}
    except GenoptError as error:
        return {"error": to_wire(error)}


def stage_time(stage: Literal["build", "measure"], started: float) -> StageTime:
    """What began at `started` (on `clock.now`) and ends now."""
    ended = time.time()
    return StageTime(stage=stage, node=ray.get_runtime_context().get_node_id(), started=ended - (clock.now() - started), ended=ended)
