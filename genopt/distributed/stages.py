"""Stages as Ray tasks, and the per-node bench that holds the references.

Resources: a stage that measures takes its node (all processors but half of one, so that the thin
coordinators of a search still fit), so nothing else of ours runs there while it times. Builds take
one processor. The bench itself is an actor without resources: it keeps the reference sessions open,
and works only inside a task that holds the node.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from genopt import catalog
from genopt.distributed.cluster import Node
from genopt.errors import BudgetError, GenoptError, to_wire
from genopt.measure import machine
from genopt.plan import Artifact, Plan, Record, Status
from genopt.process import run_stage
from genopt.store.artifacts import ArtifactStore, step_key
from genopt.tasks.base import BenchConfig, Evaluation, failed

BUILD_CPUS = 1.0


class BuildFacts(Record):
    """What building a candidate needs besides its plan; `gpus` is what a node offers."""

    store: str
    original: Artifact
    calibration: str
    calibration_digest: str
    logs: str
    seed: int
    threads: int
    gpus: float
    libraries: dict[str, str]


def node_cpus(node: Node) -> float:
    """Processors that a measuring stage takes on a node."""
    return max(0.5, node.cpus - 0.5)


def on_node(node: Node) -> NodeAffinitySchedulingStrategy:
    """Pins a task or actor to a node."""
    return NodeAffinitySchedulingStrategy(node.node_id, soft=False)


@ray.remote(num_cpus=0.1)
def machine_task() -> dict[str, Any]:
    """What the node is: `hardware`, `environment` and the `libraries` that decide the bytes of artifacts."""
    return {"hardware": machine.hardware(), "environment": machine.environment(), "libraries": machine.libraries()}


def _gpu_environment() -> dict[str, str]:
    """Hides every GPU from stages that were given none; Ray itself would leave them visible."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return {"CUDA_VISIBLE_DEVICES": visible if ray.get_gpu_ids() else ""}


@ray.remote(num_cpus=BUILD_CPUS, max_retries=2)
def run_stage_task(kind: str, payload: dict[str, Any], log: str, deadline: float, threads: int) -> dict[str, Any]:
    """Runs one stage of `genopt.worker` in its own process: `{"result": ...}` or `{"error": ...}`."""
    try:
        timeout = max(1.0, deadline - time.time())
        return {"result": run_stage(kind, payload, log=Path(log), timeout_s=timeout, threads=threads, environment=_gpu_environment())}
    except GenoptError as error:
        return {"error": to_wire(error)}


@ray.remote(num_cpus=BUILD_CPUS, max_retries=2)
def build_task(plan: dict[str, Any], facts: dict[str, Any], deadline: float) -> dict[str, Any]:
    """Builds a plan's artifact, step by step, each cached: `{"artifact", "seconds"}` or `{"error", "seconds"}`."""
    started = time.time()
    try:
        artifact = build(Plan.model_validate(plan), BuildFacts.model_validate(facts), deadline)
        return {"artifact": artifact.model_dump(mode="json"), "seconds": time.time() - started}
    except GenoptError as error:
        return {"error": to_wire(error), "seconds": time.time() - started}


def submit_build(plan: Plan, facts: BuildFacts, deadline: float) -> ray.ObjectRef[Any]:
    """Submits the build of a plan's artifact, with a GPU for steps that gain from one; the result is that of `build_task`.

    A GPU is taken whole, so such a build never runs beside a measurement on the same one.
    """
    gains = any(catalog.load("techniques", step.technique).accelerated for step in plan.steps)
    # Without an explicit strategy the placement group of a search's trial would capture the task and never fit it.
    options = build_task.options(num_gpus=min(1.0, facts.gpus) if gains else 0, scheduling_strategy="DEFAULT")
    return options.remote(plan.model_dump(mode="json"), facts.model_dump(mode="json"), deadline)


def build(plan: Plan, facts: BuildFacts, deadline: float) -> Artifact:
    """Applies a plan's transforms to the original; finished steps come from the store.

    Raises:
        GenoptError: A transform refused, failed, died or took too long.
    """
    store, current = ArtifactStore(Path(facts.store)), facts.original
    for step in plan.steps:
        technique = catalog.load("techniques", step.technique)
        context = {
            "seed": facts.seed, "calibration": facts.calibration_digest if technique.needs_calibration else None, "libraries": facts.libraries,
            "device": "cuda" if technique.accelerated and facts.gpus else "cpu",  # they round differently
        }  # fmt: skip
        key = step_key(current.digest, step.technique, technique.version, step.params, context)
        source = current

        def make(folder: Path, source: Artifact = source, name: str = step.technique, params: dict[str, Any] = step.params) -> tuple[str, ...]:
            log = Path(facts.logs) / f"{plan.name}.{name}.log"
            payload = {
                "technique": name, "source": source.path, "destination": str(folder), "params": params,
                "context": {"original": facts.original.path, "calibration": facts.calibration, "seed": facts.seed, "threads": facts.threads},
            }  # fmt: skip
            timeout = max(1.0, deadline - time.time())
            run_stage("transform", payload, log=log, timeout_s=timeout, threads=facts.threads, environment=_gpu_environment())
            loaded = catalog.load("techniques", name)
            return tuple(sorted((set(source.traits) - loaded.removes) | loaded.adds))

        current = store.build(key, make, wait_s=max(1.0, deadline - time.time()))
    return current


class BenchActor:
    """Holds one node's bench; `state` answers while another call works.

    Args:
        task: Catalogue name of the task.
        config: A `BenchConfig` as plain values.
    """

    def __init__(self, task: str, config: dict[str, Any]) -> None:
        self._bench = catalog.load("tasks", task).bench(BenchConfig.model_validate(config))
        self._state = ""

    def _note(self, message: str) -> None:
        self._state = message

    def state(self) -> str:
        """What the bench is doing."""
        return self._state

    def references(self, deadline: float) -> dict[str, Any]:
        """See `Bench.references`: `{"result": ...}` or `{"error": ...}`."""
        try:
            found: dict[str, Any] = self._bench.references(deadline, self._note).model_dump(mode="json")
            return {"result": found}
        except GenoptError as error:
            self._bench.close()
            return {"error": to_wire(error)}

    def evaluate(self, plan: dict[str, Any], artifact: dict[str, Any], deadline: float) -> dict[str, Any]:
        """See `Bench.evaluate`."""
        self._note(f"{plan['name']}: starting")
        note = lambda message: self._note(f"{plan['name']}: {message}")  # noqa: E731
        found = self._bench.evaluate(Plan.model_validate(plan), Artifact.model_validate(artifact), deadline, note)
        content: dict[str, Any] = found.model_dump(mode="json")
        return content

    def close(self) -> None:
        """See `Bench.close`."""
        self._bench.close()


def start_bench(node: Node, task: str, config: BenchConfig) -> ActorHandle[Any]:
    """Starts the bench of one node."""
    actor = ray.remote(num_cpus=0, max_concurrency=2, max_restarts=0)(BenchActor)
    return actor.options(scheduling_strategy=on_node(node)).remote(task, config.model_dump(mode="json"))


def held(reference: ray.ObjectRef[Any], timeout_s: float) -> dict[str, Any]:
    """Waits for an answer while this task keeps its processors.

    A task that waits in `ray.get` gives its processors back, and a build would start beside the measurement.

    Raises:
        TimeoutError: The time is up.
        RayError: Whoever should answer was lost.
    """
    answer: dict[str, Any] = reference.future().result(timeout=max(1.0, timeout_s))
    return answer


@ray.remote(max_retries=0)
def references_task(bench: ActorHandle[Any], deadline: float) -> dict[str, Any]:
    """Measures the references on the bench of the node that this task holds: `{"result": ...}` or `{"error": ...}`."""
    try:
        return held(bench.references.remote(deadline), deadline - time.time() + 5)
    except TimeoutError:
        ray.kill(bench)
        return {"error": to_wire(BudgetError("The budget ended before the baseline was measured; give a larger --budget."))}


def references_on(bench: ActorHandle[Any], node: Node, deadline: float) -> ray.ObjectRef[Any]:
    """Submits the measurement of a node's references."""
    options = references_task.options(num_cpus=node_cpus(node), num_gpus=min(1.0, node.gpus), scheduling_strategy=on_node(node))
    return options.remote(bench, deadline)


def evaluate_on(bench: ActorHandle[Any], node: Node, plan: Plan, built: ray.ObjectRef[Any], deadline: float) -> ray.ObjectRef[Any]:
    """Submits the evaluation of a candidate that is being built; the result is an `Evaluation` as plain values."""
    options = evaluate_task.options(num_cpus=node_cpus(node), num_gpus=min(1.0, node.gpus), scheduling_strategy=on_node(node))
    return options.remote(bench, plan.model_dump(mode="json"), built, deadline)


@ray.remote(max_retries=0)
def evaluate_task(bench: ActorHandle[Any], plan: dict[str, Any], built: dict[str, Any], deadline: float) -> dict[str, Any]:
    """Evaluates a built candidate on the bench of the node that this task holds; failures are in the result."""
    candidate = Plan.model_validate(plan)
    if "error" in built:
        status: Status = "infeasible" if built["error"]["type"] == "InfeasibleError" else "failed"
        return _ended(candidate, status, str(built["error"]["message"]), built["seconds"])
    try:
        found = held(bench.evaluate.remote(plan, built["artifact"], deadline), deadline - time.time() + 10)
    except TimeoutError:
        return _ended(candidate, "failed", "The evaluation passed its deadline; give a larger --budget.", built["seconds"])
    except RayError as error:
        return _ended(candidate, "failed", f"The bench of this node was lost ({type(error).__name__}); run `genopt resume`.", built["seconds"])
    found["seconds"] += built["seconds"]
    return found


def _ended(plan: Plan, status: Status, reason: str, seconds: float) -> dict[str, Any]:
    return Evaluation(candidate=failed(plan, status, reason), seconds=seconds).model_dump(mode="json")
