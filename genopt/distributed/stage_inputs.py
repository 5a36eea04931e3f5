"""What the stages of a run are given, from its spec, its model and where it runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from genopt.distributed.building import BuildFacts
from genopt.distributed.cluster import Node
from genopt.distributed.preparation import Preparation
from genopt.environments.declaration import declared
from genopt.models import trust
from genopt.models.gguf import original_traits
from genopt.plan import Artifact, Plan
from genopt.spec import BY_THROUGHPUT
from genopt.store.shared import compiled_folder
from genopt.tasks.base import BenchConfig, Prepared, session_options
from genopt.tasks.text_finalists import TaskRequest


class StageInputs:
    """Payloads and configurations of a run's stages.

    Args:
        run: Spec, model, folder and nodes.
    """

    def __init__(self, run: Preparation) -> None:
        self._run = run
        self.variables: Mapping[str, str] = trust.variables(run.spec.trust_remote_code)
        """Environment variables of every stage."""
        engines = {f"environment {one.name}": run.environments.get(one.name, one.digest())[:12] for one in declared()}
        self.computing = run.libraries | engines
        """Versions of all that computes, ours and those of engines' environments."""

    def original(self) -> Artifact:
        """The original, as what builds begin with and the references are measured on."""
        model = self._run.model
        return Artifact(digest=model.digest, path=model.path, bytes=model.bytes, traits=original_traits(Path(model.path)))

    def preparation(self) -> dict[str, Any]:
        """Payload of the stage that reads the data."""
        spec, model = self._run.spec, self._run.model
        return {
            "model": model.path, "eval_data": spec.eval_data, "calib_data": spec.calib_data, "seed": spec.seed,
            "prompts": spec.prompts, "prompt_tokens": spec.prompt_tokens, "output_tokens": spec.output_tokens,
            "max_context": model.max_context, "eval_tasks": spec.eval_tasks, "scorer": spec.scorer,
            "destination": str((self._run.folder.path / "data").absolute()),
        }  # fmt: skip

    def profile(self, prepared: Prepared, threads: int) -> dict[str, Any]:
        """Payload of the stage that profiles the original.

        Args:
            prepared: What reading the data gave.
            threads: Threads that it may use.
        """
        return {
            "model": self._run.model.path, "data": prepared.data, "threads": threads, "concurrency": self._run.spec.concurrency,
            "trace_folder": str((self._run.folder.path / "profile").absolute()), "ceilings": str(self._run.store / "ceilings"),
        }  # fmt: skip

    def bench(self, node: Node, prepared: Prepared, shared: Mapping[str, Artifact]) -> BenchConfig:
        """Configuration of a bench.

        Args:
            node: Where it measures.
            prepared: What reading the data gave.
            shared: Folders of this machine that others may borrow.
        """
        run, spec = self._run, self._run.spec
        environment = {"TORCHINDUCTOR_CACHE_DIR": str(compiled_folder(run.location)), "HF_HUB_OFFLINE": "1", **self.variables}
        if node.gpus == 0:
            environment["CUDA_VISIBLE_DEVICES"] = ""
        return BenchConfig(
            original=run.model.path, artifact=self.original(), data=prepared.data, logs=self._logs(), quality=spec.quality,
            concurrency=spec.concurrency, output_tokens=spec.output_tokens, arrivals=spec.arrivals, precision=spec.precision,
            threads=max(1, int(node.cpus)), parameters=run.model.parameters, seed=spec.seed, environment=environment,
            store=run.location, shared=dict(shared), libraries=self.computing, run=str(run.folder.path.absolute()), reuse=spec.reuse,
            batches_decide=spec.objective in BY_THROUGHPUT, alone=len(node.parts) < 2,
        )  # fmt: skip

    def build(self, node: Node, prepared: Prepared, shared: Mapping[str, Artifact]) -> BuildFacts:
        """What builds need besides their plan.

        Args:
            node: A node that measures, or a part of one.
            prepared: What reading the data gave.
            shared: Folders of this machine that others may borrow.
        """
        run = self._run
        return BuildFacts(
            store=run.location, shared=dict(shared), original=self.original(), given={one.digest: one.path for one in run.given.values()},
            calibration=prepared.calibration, calibration_digest=prepared.calibration_digest, logs=self._logs(), seed=run.spec.seed,
            threads=max(1, int(node.cpus)), gpus=run.nodes[0].gpus, parts=node.parts, libraries=run.libraries, variables=dict(self.variables),
        )  # fmt: skip

    def sensitivity(self, prepared: Prepared) -> dict[str, Any]:
        """Payload of the stage that tells which parts of the model bear fewer bits.

        Args:
            prepared: What reading the data gave.
        """
        return {"model": self._run.model.path, "calibration": prepared.calibration}

    def tasks(self, plan: Plan, artifact: Artifact, prepared: Prepared, items: str | None, threads: int) -> TaskRequest:
        """What the stage is asked that lets a candidate do tasks.

        Args:
            plan: The candidate.
            artifact: What it runs.
            prepared: What reading the data gave.
            items: File with the user's own questions.
            threads: Threads that it may use.
        """
        run, spec = self._run, self._run.spec
        return TaskRequest(
            model=run.model.path, artifact=artifact, engine=plan.engine, options=session_options(plan, threads), items=items,
            tasks=spec.eval_tasks, limit=spec.eval_limit, context=run.model.max_context, data=prepared.data, seed=spec.seed,
            store=run.location, libraries=self.computing, run=str(run.folder.path.absolute()),
            fresh=str(run.folder.path.absolute()) if spec.reuse == "nothing" else "",
        )  # fmt: skip

    def _logs(self) -> str:
        return str(self._run.folder.logs.absolute())
