"""What can be said about a model without a cluster: the plan of a run, and a profile."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from genopt import catalog
from genopt.distributed.candidates import first_candidates
from genopt.distributed.preparation import require_task, resolve_model
from genopt.environments.place import require_all
from genopt.errors import GenoptError
from genopt.measure import machine
from genopt.models import trust
from genopt.models.gguf import original_traits
from genopt.models.given import resolve_given
from genopt.plan import Plan
from genopt.process import run_stage
from genopt.progress import Silent
from genopt.search.estimate import Forecast, expected_s
from genopt.spec import RunSpec
from genopt.store.shared import open_root
from genopt.tasks.base import Prepared, Task, environments_of, fits
from genopt.techniques.run import check_transform

PROFILE_LIMIT_S = 600.0


class _Told(Silent):
    """Passes on what a resolution says."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say

    def activity(self, text: str) -> None:
        self._say(text)


def dry_run(spec: RunSpec, say: Callable[[str], None]) -> list[Forecast]:
    """The first candidates of a run, with what rules them out here; nothing is built or measured.

    Raises:
        GenoptError: The model cannot be used.
    """
    store = open_root(spec.store)
    model = resolve_model(spec, store, _Told(say))
    name = require_task(spec, model)
    first = first_candidates(spec, name, resolve_given(spec.given, say))
    task: Task = catalog.load("tasks", name)
    traits = original_traits(Path(model.path))
    plans = [*task.references(), *(plan for plan in first if spec.wants(plan) and fits(plan, traits))]
    return [_forecast(plan, Path(model.path), model.parameters) for plan in plans]


def _forecast(plan: Plan, folder: Path, parameters: int) -> Forecast:
    techniques = tuple(step.technique for step in plan.steps)
    reason = ""
    try:
        require_all(environments_of(plan))
        catalog.load("engines", plan.engine).check({name: value for name, value in plan.options.items() if name != "spare_threads"})
        for step in plan.steps[:1]:  # later steps see a model that does not exist yet
            check_transform(catalog.load("techniques", step.technique), folder, step.params)
    except GenoptError as error:
        reason = str(error)
    seconds = None if reason else expected_s(plan)
    return Forecast(
        name=plan.name, engine=plan.engine, techniques=techniques, expected_s=seconds, disk_bytes=4 * parameters if techniques else 0, reason=reason
    )  # fmt: skip


def profile_model(spec: RunSpec, out: Path | None, say: Callable[[str], None]) -> dict[str, Any]:
    """Profiles a model on this machine, in processes of their own.

    Args:
        spec: Names the model.
        out: Folder that keeps the traces and logs; None keeps none.
        say: Told what happens.

    Raises:
        GenoptError: The model cannot be used or the profile failed.
    """
    store = open_root(spec.store)
    model = resolve_model(spec, store, _Told(say))
    task: Task = catalog.load("tasks", require_task(spec, model))
    threads = int(machine.hardware()["cores"])
    with tempfile.TemporaryDirectory(prefix="genopt-profile-") as scratch:
        kept = out.absolute() if out is not None else Path(scratch)
        kept.mkdir(parents=True, exist_ok=True)
        say("preparing requests")
        payload: dict[str, Any] = {
            "model": model.path, "eval_data": None, "calib_data": None, "seed": spec.seed, "prompts": spec.prompts,
            "prompt_tokens": spec.prompt_tokens, "output_tokens": spec.output_tokens, "max_context": model.max_context,
            "destination": str(Path(scratch, "data")),
        }  # fmt: skip
        run = partial(
            run_stage, log=kept / "profile.log", timeout_s=PROFILE_LIMIT_S, threads=threads, environment=trust.variables(spec.trust_remote_code)
        )  # fmt: skip
        prepared = Prepared.model_validate(run(task.prepare_stage, payload))
        say("profiling")
        payload = {
            "model": model.path, "data": prepared.data, "threads": threads, "concurrency": spec.concurrency, "trace_folder": str(kept),
            "ceilings": str(store / "ceilings"),
        }  # fmt: skip
        found = run(task.profile_stage, payload)
    return found if out is not None else {**found, "traces": {}}
