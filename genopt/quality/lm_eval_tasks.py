"""Tasks of lm-evaluation-harness by name, offline: what is not on disk is an error with the remedy, never a download."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from genopt.engines.base import TextSession
from genopt.errors import DataError, InfeasibleError
from genopt.plan import Record
from genopt.quality.task_scoring import Text

OFFLINE = {"HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
"""What must be set before the harness is imported."""
INSTALL = "pip install 'genopt-ray[lm-eval]'"


class HarnessScores(Record):
    """A model's scores on one task.

    Attributes:
        metric: The task's first metric that scores each item between 0 and 1.
        scores: One per item, in the order of the data set.
    """

    metric: str
    scores: tuple[float, ...]


def require_harness() -> None:
    """Makes sure that the harness is installed; imports nothing.

    Raises:
        InfeasibleError: It is not.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise InfeasibleError(f"--eval-task needs lm-evaluation-harness, which is not installed; install it with: {INSTALL}.")


def run_task(
    name: str, session: Callable[[], TextSession], text: Text, *, context: int, stop_ids: Sequence[int], limit: int | None, seed: int
) -> HarnessScores:
    """Runs a task and returns each item's score.

    Args:
        name: A name that the harness knows, or the path of a task's YAML file.
        session: Opens the model; called once the task and its data are there.
        text: Its tokenizer.
        context: Tokens that the model can hold.
        stop_ids: End-of-sequence tokens.
        limit: Most items of each part of the task, or None for all.
        seed: Of few-shot examples.

    Raises:
        InfeasibleError: The harness is not installed.
        DataError: There is no such task, its data is not on disk, or no metric scores its items.
    """
    require_harness()
    os.environ.update(OFFLINE)
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from genopt.quality.lm_eval_model import SessionLM

    manager = TaskManager(include_defaults=not is_file(name))
    found = simple_evaluate(
        model=SessionLM(session, text, context, stop_ids), tasks=_tasks(manager, name), limit=limit, task_manager=manager, bootstrap_iters=0,
        log_samples=True, random_seed=seed, numpy_random_seed=seed, torch_random_seed=seed, fewshot_random_seed=seed,
    )  # fmt: skip
    samples = [sample for _, rows in sorted((found or {}).get("samples", {}).items()) for sample in rows]
    return _scores(name, samples)


def require_task(name: str) -> None:
    """Makes sure that a task and its data are there, before a run spends time.

    Raises:
        InfeasibleError: The harness is not installed.
        DataError: There is no such task, or its data is not on disk.
    """
    require_harness()
    os.environ.update(OFFLINE)
    from lm_eval.tasks import TaskManager

    _tasks(TaskManager(include_defaults=not is_file(name)), name)


def is_file(name: str) -> bool:
    """Whether a task is given by its YAML file."""
    return name.endswith((".yaml", ".yml"))


def _tasks(manager: Any, name: str) -> list[Any]:
    """The task, or the parts of a group, with their data."""
    known = Path(name).expanduser().is_file() if is_file(name) else name in manager.all_tasks
    if not known:
        raise DataError(f"lm-evaluation-harness has no task {name!r}; list its tasks with: lm-eval ls tasks, or give the path of a YAML file.")
    try:
        return list(manager.load(str(Path(name).expanduser()) if is_file(name) else name)["tasks"].values())
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise DataError(
            f"The data of the task {name!r} cannot be loaded without a network ({type(error).__name__}: {reason}); fetch it once where there is one, "
            f"into the same HF_HOME: lm-eval run --model dummy --tasks {name} --limit 1."
        ) from None


def _scores(name: str, samples: list[dict[str, Any]]) -> HarnessScores:
    """Each item once, by the task's first filter and its first metric that is a share."""
    if not samples:
        raise DataError(f"The task {name!r} has no items; choose another one.")
    kept = [sample for sample in samples if sample.get("filter") == samples[0].get("filter")]
    for metric in kept[0].get("metrics", []):
        values = [sample.get(metric) for sample in kept]
        shares = [float(value) for value in values if isinstance(value, bool | int | float) and 0 <= value <= 1]
        if len(shares) == len(values):
            return HarnessScores(metric=metric, scores=tuple(shares))
    raise DataError(f"The task {name!r} scores no item by itself between 0 and 1; choose one with accuracy or exact match.")
