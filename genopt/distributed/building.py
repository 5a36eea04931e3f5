"""Building the artifacts of candidates, step by step, each kept in the store.

Builds take one processor, or one part of a node with several GPUs, and a GPU where a step gains from one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ray

from genopt import catalog, clock
from genopt.clock import Window
from genopt.distributed import parts
from genopt.distributed.cluster import Node
from genopt.distributed.sharing import Borrowed
from genopt.distributed.stages import BUILD_CPUS, gpu_environment, on_node, stage_time
from genopt.environments import place
from genopt.errors import GenoptError, to_wire
from genopt.plan import Artifact, Plan, Record
from genopt.process import run_stage
from genopt.store.artifacts import ArtifactStore, step_key
from genopt.store.shared import open_store
from genopt.techniques.base import GpuUse


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

    def on_this_machine(self, borrowed: Borrowed) -> BuildFacts:
        """The same with paths of this machine."""
        original = self.original.model_copy(update={"path": borrowed.path(self.original.path)})
        given = {digest: borrowed.path(folder) for digest, folder in self.given.items()}
        return self.model_copy(update={"original": original, "given": given, "calibration": borrowed.path(self.calibration)})


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
    took = stage_time("build", started)
    return {**answer, "seconds": clock.now() - started, "stages": [took.model_dump(mode="json")]}


def spreads(plan: Plan, facts: BuildFacts) -> bool:
    """Whether the build of a plan gains from several GPUs, and nodes have such."""
    return bool(facts.parts) and any(catalog.load("techniques", step.technique).gpu == "spread" for step in plan.steps)


def submit_build(plan: Plan, facts: BuildFacts, window: Window, node: Node | None = None, *, taken: int = 1) -> ray.ObjectRef[Any]:
    """Submits the build of a plan's artifact, with a GPU for steps that gain from one; the result is that of `build_task`.

    A GPU is taken whole, so such a build never runs beside a measurement on the same one. On a node with several GPUs every build takes a part of
    it, as measurements do, or several.

    Args:
        plan: What to build.
        facts: What building needs besides.
        window: When it may be built.
        node: Where; None leaves that to Ray.
        taken: Parts of a node that it takes, where nodes have such; Ray starts it when so many are free.
    """
    gains = any(catalog.load("techniques", step.technique).gpu != "unused" for step in plan.steps)
    taken = min(taken, len(facts.parts))
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
    store = open_store(facts.store)
    with Borrowed(store, facts.shared) as borrowed:
        return _built(plan, facts.on_this_machine(borrowed), store, deadline)


def _built(plan: Plan, facts: BuildFacts, store: ArtifactStore, deadline: float) -> Artifact:
    current = facts.original
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
                    environment={**gpu_environment(loaded.gpu != "unused"), **facts.variables}, where=loaded.environment,
                )  # fmt: skip
            return tuple(sorted((set(source.traits) - loaded.removes) | loaded.adds))

        current = store.build(key, make, wait_s=max(1.0, deadline - clock.now()))
    return current


def _device(use: GpuUse, facts: BuildFacts) -> str:
    if use == "unused" or not facts.gpus:
        return "cpu"
    together = len(ray.get_gpu_ids()) if use == "spread" else 1
    return f"cuda x {together}" if together > 1 else "cuda"
