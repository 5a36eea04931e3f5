"""Measuring candidates: the bench of a node, which holds the references, and the tasks that let it work.

The bench is an actor without resources: it keeps the sessions of the references open, and works only inside a task that holds the node.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError

from genopt import catalog, clock
from genopt.clock import Moment, Window
from genopt.distributed import parts
from genopt.distributed.cluster import Node
from genopt.distributed.sharing import Borrowed
from genopt.distributed.stages import GRACE_S, node_cpus, on_node, stage_time
from genopt.errors import BudgetError, GenoptError, StageCrashedError, StorageError, from_wire, to_wire
from genopt.plan import Artifact, Plan, Status
from genopt.store.shared import open_store
from genopt.tasks.attempts import unforeseen
from genopt.tasks.base import Again, BenchConfig, Evaluation, References, StageTime, failed

LATE = "it could no longer be done within the budget; give a larger --budget"
AGAIN: Mapping[str, Again] = {"StorageError": "now", "OutOfMemoryError": "now", "StageTimeoutError": "later"}
"""Failures of a build that say little about the candidate: another node may have the room, and a resumption the time."""


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
        self._logs = Path(asked.logs)
        self._state = ""
        self._references: dict[str, Any] | None = None
        self._fit = True
        self._begun: int | None = None
        self._ends = ends

    def _note(self, message: str) -> None:
        self._state = message

    def state(self) -> str:
        """What the bench is doing."""
        return self._state

    def intact(self) -> bool:
        """Whether its references can still be measured against, or are yet to be measured."""
        return self._fit and not self._bench.lost()

    def begun(self) -> int | None:
        """Number of the task that had the references measured here first; None where none has yet."""
        return self._begun

    def references(self, deadline: dict[str, Any], number: int = 0) -> dict[str, Any]:
        """See `Bench.references`: `{"result": ...}` or `{"error": ...}`; they are measured once."""
        self._begun = number if self._begun is None else self._begun
        try:
            if self._references is None:
                self._references = self._bench.references(Moment.model_validate(deadline).here(), self._note).model_dump(mode="json")
            return {"result": self._references}
        except Exception as error:  # noqa: BLE001 - what is not caught here looks like a lost node to who waits
            self._bench.close()
            return {"error": to_wire(unforeseen(error, self._logs, "references"))}

    def evaluate(self, plan: dict[str, Any], artifact: dict[str, Any], deadline: dict[str, Any]) -> dict[str, Any]:
        """See `Bench.evaluate`."""
        self._note(f"{plan['name']}: starting")
        try:
            found = self._evaluated(Plan.model_validate(plan), Artifact.model_validate(artifact), Moment.model_validate(deadline).here())
            return found.model_dump(mode="json")
        finally:
            self._note("")

    def _evaluated(self, candidate: Plan, artifact: Artifact, deadline: float) -> Evaluation:
        def note(message: str) -> None:
            self._note(f"{candidate.name}: {message}")

        if self._references is None and "error" in (missed := self.references(self._ends)):  # others held this part's GPU when it was their turn
            reason, late = str(missed["error"]["message"]), missed["error"]["type"] == "StageTimeoutError"
            self._fit = late
            return Evaluation(candidate=failed(candidate, "failed", reason), again="later" if late else "now")
        try:
            with self._store.local(artifact) as here:
                found: Evaluation = self._bench.evaluate(candidate, here, deadline, note)
        except StorageError as error:
            found = Evaluation(candidate=failed(candidate, "failed", str(error)), again="now")
        if found.candidate.status == "failed" and found.again == "no" and not self.intact():
            found = found.model_copy(update={"again": "now"})  # the candidate may not be to blame for what took the original or the baseline
        return found

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
def references_task(benches: dict[str, ActorHandle[Any]], deadline: dict[str, Any], number: int) -> dict[str, Any]:
    """Measures the references on the bench of what this task holds, a node or a part of one; the answer is for `measured`."""
    gpu = parts.given(benches)
    return {"measured": {"gpu": gpu, **_references(benches[gpu], deadline, number)}}


def measured(answer: dict[str, Any]) -> tuple[str, References | GenoptError]:
    """The GPU that a node's references were measured on, empty where it has no parts, and what came of it."""
    found = answer["measured"]
    return found["gpu"], from_wire(found["error"]) if "error" in found else References.model_validate(found["result"])


def _references(bench: ActorHandle[Any], deadline: dict[str, Any], number: int) -> dict[str, Any]:
    try:
        return held(bench.references.remote(deadline, number), Moment.model_validate(deadline).here() - clock.now() + GRACE_S)
    except TimeoutError:
        ray.kill(bench)
        return {"error": to_wire(BudgetError("The budget ended before the baseline was measured; give a larger --budget."))}
    except RayError as error:
        lost = StageCrashedError(f"The bench of a node was lost ({type(error).__name__}); see `ray status`, then `genopt resume`.")
        return {"error": to_wire(lost)}


def references_on(benches: Mapping[str, ActorHandle[Any]], node: Node, deadline: float, number: int) -> ray.ObjectRef[Any]:
    """Submits the measurement of a node's references.

    Args:
        benches: The node's, by the GPU that each measures on; of a node that is not parted the only one, under an empty name.
        node: The node, or a part of it.
        deadline: When it must have ended, on this process's clock.
        number: Tells it from others, see `BenchActor.begun`.
    """
    options = references_task.options(num_cpus=node_cpus(node), num_gpus=min(1.0, node.gpus), scheduling_strategy=on_node(node))
    return options.remote(dict(benches), Moment.of(deadline).model_dump(mode="json"), number)


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
    stages = (*stages, stage_time("measure", started))
    return found.model_copy(update={"seconds": found.seconds + built["seconds"], "stages": stages}).model_dump(mode="json")
