"""Stages as Ray tasks, and the per-node bench that holds the references.

Resources: a stage that measures takes its node (all processors but half of one, so that the thin
coordinators of a search still fit), so nothing else of ours runs there while it times. Builds take
one processor. The bench itself is an actor without resources: it keeps the reference sessions open,
and works only inside a task that holds the node.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from genopt import catalog, clock
from genopt.clock import Moment, Window
from genopt.distributed import parts
from genopt.distributed.cluster import Node
from genopt.distributed.sharing import Borrowed
from genopt.environments import place
from genopt.errors import BudgetError, GenoptError, StageCrashedError, StorageError, from_wire, to_wire
from genopt.measure import machine
from genopt.plan import Artifact, Plan, Record, Status
from genopt.process import run_stage
from genopt.store.artifacts import ArtifactStore, step_key
from genopt.store.shared import open_store
from genopt.tasks.base import Again, BenchConfig, Evaluation, References, StageTime, failed
from genopt.techniques.base import GpuUse

BUILD_CPUS = 1.0
GRACE_S = 3.0
"""What is stopped at its deadline has this long to say so itself; then it is killed."""
PATIENCE, LEAST_PATIENCE_S = 4.0, 120.0
"""A build or a measurement is stopped after so many times the candidate's expected time, so that one that hangs cannot eat the budget."""
LATE = "it could no longer be done within the budget; give a larger --budget"
AGAIN: Mapping[str, Again] = {"StorageError": "now", "OutOfMemoryError": "now", "StageTimeoutError": "later"}
"""Failures of a build that say little about the candidate: another node may have the room, and a resumption the time."""


class BuildFacts(Record):
    """What building a candidate needs besides its plan.

    `gpus` and `parts` are what a node has, `shared` as in `BenchConfig`, `given` as in `TransformContext`, `variables` of the environment of stages.
    """

    store: str
    shared: dict[str, Artifact] = {}
    original: Artifact
    given: dict[str, str] = {}
    calibration: str
    calibration_digest: str
    logs: str
    seed: int
    threads: int
    gpus: float
    parts: tuple[str, ...] = ()
    variables: dict[str, str] = {}
    libraries: dict[str, str]


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


def _gpu_environment(uses: bool = True) -> dict[str, str]:
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
        environment = {**_gpu_environment(), **variables}
        return {"result": run_stage(kind, payload, log=Path(log), timeout_s=timeout, threads=threads, environment=environment)}
    except GenoptError as error:
        return {"error": to_wire(error)}


@ray.remote(num_cpus=BUILD_CPUS, max_retries=2)
def build_task(plan: dict[str, Any], facts: dict[str, Any], window: dict[str, Any]) -> dict[str, Any]:
    """Builds a plan's artifact, step by step, each cached: `{"artifact"}`, `{"error"}` or `{"late"}`, each with `seconds` and `stages`."""
    allowed, started = Window.model_validate(window), clock.now()
    if clock.now() > allowed.latest_start.here():
        return {"late": True, "seconds": 0.0, "stages": []}
    needed = BuildFacts.model_validate(facts)
    try:
        with parts.pinned(needed.parts):
            artifact = build(Plan.model_validate(plan), needed, allowed.closes(started))
        answer: dict[str, Any] = {"artifact": artifact.model_dump(mode="json")}
    except GenoptError as error:
        answer = {"error": to_wire(error)}
    took = _stage_time("build", started)
    return {**answer, "seconds": clock.now() - started, "stages": [took.model_dump(mode="json")]}


def _stage_time(stage: Literal["build", "measure"], started: float) -> StageTime:
    """What began at `started` (on `clock.now`) and ends now."""
    ended = time.time()
    return StageTime(stage=stage, node=ray.get_runtime_context().get_node_id(), started=ended - (clock.now() - started), ended=ended)


def spreads(plan: Plan, facts: BuildFacts) -> bool:
    """Whether the build of a plan gains from all GPUs of a node that has several."""
    return bool(facts.parts) and any(catalog.load("techniques", step.technique).gpu == "spread" for step in plan.steps)


def submit_build(plan: Plan, facts: BuildFacts, window: Window, node: Node | None = None, *, whole: bool = False) -> ray.ObjectRef[Any]:
    """Submits the build of a plan's artifact, with a GPU for steps that gain from one; the result is that of `build_task`.

    A GPU is taken whole, so such a build never runs beside a measurement on the same one. On a node with several GPUs every build takes a part of
    it, as measurements do, or all of it.

    Args:
        plan: What to build.
        facts: What building needs besides.
        window: When it may be built.
        node: Where; None leaves that to Ray.
        whole: Whether it takes all parts of a node; Ray starts it when all of them are free.
    """
    gains = any(catalog.load("techniques", step.technique).gpu != "unused" for step in plan.steps)
    taken = len(facts.parts) if whole else min(1, len(facts.parts))
    count, cpus = (float(taken), max(BUILD_CPUS, taken * facts.threads - 0.5)) if taken else (min(1.0, facts.gpus) if gains else 0.0, BUILD_CPUS)
    # Without an explicit strategy the placement group of a search's trial would capture the task and never fit it.
    strategy = "DEFAULT" if node is None else on_node(node)
    options = build_task.options(num_cpus=cpus, num_gpus=count, scheduling_strategy=strategy)
    return options.remote(plan.model_dump(mode="json"), facts.model_dump(mode="json"), window.model_dump(mode="json"))


def build(plan: Plan, facts: BuildFacts, deadline: float) -> Artifact:
    """Applies a plan's transforms to the original; finished steps come from the store.

    Raises:
        GenoptError: A transform refused, failed, died or took too long.
    """
    store, current = open_store(facts.store), facts.original
    with Borrowed(store, facts.shared) as here:
        return _built(plan, here.facts(facts), store, current.model_copy(update={"path": here.path(current.path)}), deadline)


def _built(plan: Plan, facts: BuildFacts, store: ArtifactStore, current: Artifact, deadline: float) -> Artifact:
    for step in plan.steps:
        technique = catalog.load("techniques", step.technique)
        context = {
            "seed": facts.seed, "calibration": facts.calibration_digest if technique.needs_calibration else None, "libraries": facts.libraries,
            "device": _device(technique.gpu, facts),  # they round differently, and several together see more in the same time
        }  # fmt: skip
        if technique.environment is not None:  # its libraries are those of the lock, not ours
            context["environment"] = place.identities().get(technique.environment, "")
        key = step_key(current.digest, step.technique, technique.version, step.params, context)
        source = current

        def make(
            folder: Path, source: Artifact = source, name: str = step.technique, params: dict[str, Any] = step.params, key: str = key
        ) -> tuple[str, ...]:
            log = Path(facts.logs) / f"{plan.name}.{name}.log"
            known = {
                "original": facts.original.path, "given": facts.given, "calibration": facts.calibration, "seed": facts.seed,
                "threads": facts.threads, "checkpoints": str(store.checkpoints(key)),
            }  # fmt: skip
            loaded = catalog.load("techniques", name)
            with store.local(source) as here:
                payload = {"technique": name, "source": here.path, "destination": str(folder), "params": params, "context": known}
                run_stage(
                    "transform", payload, log=log, timeout_s=max(1.0, deadline - clock.now()), threads=facts.threads,
                    environment={**_gpu_environment(loaded.gpu != "unused"), **facts.variables}, where=loaded.environment,
                )  # fmt: skip
            return tuple(sorted((set(source.traits) - loaded.removes) | loaded.adds))

        current = store.build(key, make, wait_s=max(1.0, deadline - clock.now()))
    return current


def _device(use: GpuUse, facts: BuildFacts) -> str:
    if use == "unused" or not facts.gpus:
        return "cpu"
    together = len(ray.get_gpu_ids()) if use == "spread" else 1
    return f"cuda x {together}" if together > 1 else "cuda"


class BenchActor:
    """Holds one node's bench; `state` and `intact` answer while another call works.

    Args:
        task: Catalogue name of the task.
        config: A `BenchConfig` as plain values.
        gpu: Id of the GPU of the part of the node that it measures on; empty where it has the node to itself.
        gpus: Ids of all of the node's, for such a part.
        ends: Until when it may have to measure.
    """

    def __init__(self, task: str, config: dict[str, Any], gpu: str, gpus: list[str], ends: dict[str, Any]) -> None:
        parts.stay_in(gpu, gpus)
        asked = BenchConfig.model_validate(config)
        self._store = open_store(asked.store)
        self._borrowed = Borrowed(self._store, asked.shared)
        self._bench = catalog.load("tasks", task).bench(self._borrowed.bench(asked))
        self._state = ""
        self._references: dict[str, Any] | None = None
        self._ends = ends

    def _note(self, message: str) -> None:
        self._state = message

    def state(self) -> str:
        """What the bench is doing."""
        return self._state

    def intact(self) -> bool:
        """Whether its references can still be measured against."""
        return not self._bench.lost()

    def references(self, deadline: dict[str, Any]) -> dict[str, Any]:
        """See `Bench.references`: `{"result": ...}` or `{"error": ...}`; they are measured once."""
        try:
            if self._references is None:
                self._references = self._bench.references(Moment.model_validate(deadline).here(), self._note).model_dump(mode="json")
            return {"result": self._references}
        except GenoptError as error:
            self._bench.close()
            return {"error": to_wire(error)}

    def evaluate(self, plan: dict[str, Any], artifact: dict[str, Any], deadline: dict[str, Any]) -> dict[str, Any]:
        """See `Bench.evaluate`."""
        self._note(f"{plan['name']}: starting")
        note = lambda message: self._note(f"{plan['name']}: {message}")  # noqa: E731
        candidate = Plan.model_validate(plan)
        if self._references is None and "error" in (missed := self.references(self._ends)):  # others held this part's GPU when it was their turn
            return Evaluation(candidate=failed(candidate, "failed", str(missed["error"]["message"])), again="later").model_dump(mode="json")
        try:
            with self._store.local(Artifact.model_validate(artifact)) as here:
                found = self._bench.evaluate(candidate, here, Moment.model_validate(deadline).here(), note)
        except StorageError as error:
            found = Evaluation(candidate=failed(candidate, "failed", str(error)), again="now")
        if found.candidate.status == "failed" and found.again == "no" and not self.intact():
            found = found.model_copy(update={"again": "now"})  # the candidate may not be to blame for what took the original or the baseline
        content: dict[str, Any] = found.model_dump(mode="json")
        return content

    def close(self) -> None:
        """See `Bench.close`."""
        self._bench.close()
        self._borrowed.close()


def start_bench(node: Node, task: str, config: BenchConfig, deadline: float) -> ActorHandle[Any]:
    """Starts the bench of one node, or of a part of it, for measurements until a deadline."""
    actor = ray.remote(num_cpus=0, max_concurrency=2, max_restarts=0)(BenchActor)
    return actor.options(scheduling_strategy=on_node(node)).remote(
        task, config.model_dump(mode="json"), node.gpu, list(node.parts), Moment.of(deadline).model_dump(mode="json")
    )


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
def references_task(benches: dict[str, ActorHandle[Any]], deadline: dict[str, Any]) -> dict[str, Any]:
    """Measures the references on the bench of what this task holds, a node or a part of one; the answer is for `measured`."""
    gpu = parts.given(benches)
    return {"measured": {"gpu": gpu, **_references(benches[gpu], deadline)}}


def measured(answer: dict[str, Any]) -> tuple[str, References | GenoptError]:
    """The GPU that a node's references were measured on, empty where it has no parts, and what came of it."""
    found = answer["measured"]
    return found["gpu"], from_wire(found["error"]) if "error" in found else References.model_validate(found["result"])


def _references(bench: ActorHandle[Any], deadline: dict[str, Any]) -> dict[str, Any]:
    try:
        return held(bench.references.remote(deadline), Moment.model_validate(deadline).here() - clock.now() + GRACE_S)
    except TimeoutError:
        ray.kill(bench)
        return {"error": to_wire(BudgetError("The budget ended before the baseline was measured; give a larger --budget."))}
    except RayError as error:
        lost = StageCrashedError(f"The bench of a node was lost ({type(error).__name__}); see `ray status`, then `genopt resume`.")
        return {"error": to_wire(lost)}


def references_on(benches: Mapping[str, ActorHandle[Any]], node: Node, deadline: float) -> ray.ObjectRef[Any]:
    """Submits the measurement of a node's references.

    Args:
        benches: The node's, by the GPU that each measures on; of a node that is not parted the only one, under an empty name.
        node: The node, or a part of it.
        deadline: When it must have ended, on this process's clock.
    """
    options = references_task.options(num_cpus=node_cpus(node), num_gpus=min(1.0, node.gpus), scheduling_strategy=on_node(node))
    return options.remote(dict(benches), Moment.of(deadline).model_dump(mode="json"))


def evaluate_on(benches: Mapping[str, ActorHandle[Any]], node: Node, plan: Plan, built: ray.ObjectRef[Any], window: Window) -> ray.ObjectRef[Any]:
    """Submits the evaluation of a candidate that is being built; the result is an `Evaluation` as plain values.

    Which part of a node measures it is decided by Ray, with the GPU that it gives the task.

    Args:
        benches: As for `references_on`.
        node: The node, or a part of it.
        plan: The candidate.
        built: Answer of `submit_build`.
        window: When it may be measured.
    """
    options = evaluate_task.options(num_cpus=node_cpus(node), num_gpus=min(1.0, node.gpus), scheduling_strategy=on_node(node))
    return options.remote(dict(benches), plan.model_dump(mode="json"), built, window.model_dump(mode="json"))


@ray.remote(max_retries=0)
def evaluate_task(benches: dict[str, ActorHandle[Any]], plan: dict[str, Any], built: dict[str, Any], window: dict[str, Any]) -> dict[str, Any]:
    """Evaluates a built candidate on the bench of the node that this task holds; failures are in the result."""
    candidate, allowed, started = Plan.model_validate(plan), Window.model_validate(window), clock.now()
    stages = tuple(StageTime.model_validate(item) for item in built["stages"])
    ended = Evaluation(candidate=failed(candidate, "skipped", LATE), seconds=built["seconds"], stages=stages)
    if "error" in built:
        kind, reason = built["error"]["type"], str(built["error"]["message"])
        status: Status = "infeasible" if kind == "InfeasibleError" else "failed"
        found = ended.model_copy(update={"candidate": failed(candidate, status, reason), "again": AGAIN.get(kind, "no")})
        return found.model_dump(mode="json")
    if "late" in built or clock.now() > allowed.latest_start.here() + built["seconds"]:
        return ended.model_dump(mode="json")
    gpu = parts.given(benches)
    if gpu not in benches:
        lost = failed(candidate, "failed", f"The bench on GPU {gpu} was lost; run `genopt resume` to try it again.")
        return ended.model_copy(update={"candidate": lost, "again": "now"}).model_dump(mode="json")
    bench = benches[gpu]
    try:
        ends = allowed.closes(started)
        answer = held(bench.evaluate.remote(plan, built["artifact"], Moment.of(ends).model_dump(mode="json")), ends - clock.now() + GRACE_S)
        found = Evaluation.model_validate(answer)
    except TimeoutError:
        ray.kill(bench)  # whatever it waits for, it would not measure another one
        reason = "The evaluation passed its deadline; give a larger --budget."
        found = Evaluation(candidate=failed(candidate, "failed", reason), again="later")
    except RayError as error:
        reason = f"The bench of this node was lost ({type(error).__name__}); run `genopt resume` to try it again."
        found = Evaluation(candidate=failed(candidate, "failed", reason), again="now")
    stages = (*stages, _stage_time("measure", started))
    return found.model_copy(update={"seconds": found.seconds + built["seconds"], "stages": stages}).model_dump(mode="json")
