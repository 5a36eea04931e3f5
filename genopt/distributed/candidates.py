"""The candidates that a run tries first, and whether the spec's words for choosing among them mean any."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches

from genopt import catalog
from genopt.errors import SpecError
from genopt.models.given import GivenModel, digests_of
from genopt.plan import Plan
from genopt.spec import RunSpec
from genopt.tasks.base import Task


def first_candidates(spec: RunSpec, task: str, given: Mapping[str, GivenModel]) -> list[Plan]:
    """The candidates that a run tries first, of which the spec wants some.

    Args:
        spec: The spec.
        task: Catalogue name of the task.
        given: What was given beside the model, by kind.

    Raises:
        SpecError: It wants none, or names some that there are not.
    """
    declared: Task = catalog.load("tasks", task)
    plans = declared.catalogue(digests_of(given), spec.budget)
    words = _words(declared)
    _require_known("--include", spec.include, words)
    _require_known("--exclude", spec.exclude, words)
    if not any(map(spec.wants, plans)):
        raise SpecError(f"No candidate is left by --include and --exclude; the first ones are {', '.join(plan.name for plan in plans)}.")
    return plans


def _words(task: Task) -> list[str]:
    """What names are made of, also of what is searched or needs a given model; the whole catalogue counts: one spec may serve several tasks."""
    plans = task.catalogue(dict.fromkeys(task.given, ""), budget_s=0.0)  # names do not depend on it
    names = {word for plan in plans for word in plan.words} | {*catalog.names("engines"), *catalog.names("techniques")}
    return sorted(names | {word for dimension in task.space().dimensions() for word in dimension.words if word})


def _require_known(flag: str, asked: Sequence[str], words: Sequence[str]) -> None:
    """Refuses a value that no name can contain: the search joins words with hyphens, so each part of it has to be in some word.

    Raises:
        SpecError: There is one.
    """
    for value in asked:
        if not all(any(part in word for word in words) for part in value.split("-")):
            near = get_close_matches(value.lower(), words)
            remedy = f"near it are {', '.join(near)}" if near else "see what there is with: genopt plan MODEL"
            raise SpecError(f"{flag} {value} is in no name of a candidate, engine or technique; {remedy}.")
