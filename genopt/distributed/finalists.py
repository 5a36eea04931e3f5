"""Who would win does the user's tasks first: a likelihood cannot say everything, and tasks cost too much for all."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from genopt.distributed.outcome import Outcome
from genopt.errors import GenoptError
from genopt.plan import Artifact, Candidate, Plan, Quality, plan_of
from genopt.quality.accuracy import TaskResult, compare_scores
from genopt.quality.task_items import holds_items
from genopt.search.selection import choose
from genopt.spec import RunSpec
from genopt.tasks.text_finalists import TaskScores

SLACK = 1.2
"""A finalist is only asked where this many times the original's time is left."""

Score = Callable[[Plan, Artifact], Sequence[TaskScores]]


def items_of(spec: RunSpec) -> str | None:
    """The file with the user's own questions, if the evaluation data are such."""
    path = Path(spec.eval_data).expanduser() if spec.eval_data is not None else None
    return str(path.absolute()) if path is not None and holds_items(path) else None


def confirm(
    spec: RunSpec, outcome: Outcome, score_original: Callable[[], Sequence[TaskScores]], score: Score, *, record: Callable[[Candidate], None],
    left_s: Callable[[], float],
) -> None:  # fmt: skip
    """Lets the candidate that would win do the tasks, and the next one where it fails, until one holds or the time is up.

    A task vetoes: who surely loses more than the bar allows is rejected. Who is as good as far as the items can tell stays
    accepted, with what is not known in its reason.

    Args:
        spec: The run's spec.
        outcome: What was found so far.
        score_original: Scores of the original.
        score: Scores of a candidate.
        record: Told each candidate with what its tasks said.
        left_s: Seconds that are left.
    """
    started = time.monotonic()
    try:
        reference = {item.task: item for item in score_original()}
    except GenoptError as error:
        first = _winner(spec, outcome)
        if first is not None:
            record(_noted(first, f"its tasks could not be judged: {error}"))
        return
    needed_s = SLACK * (time.monotonic() - started)
    asked: set[str] = set()
    while (finalist := _winner(spec, outcome)) is not None and finalist.name not in asked and finalist.artifact is not None:
        asked.add(finalist.name)
        if finalist.quality is not None and "tasks" in finalist.quality.details:
            return  # an interrupted run had asked before
        if left_s() < needed_s:
            record(_noted(finalist, "there was no time left for its tasks"))
            return
        try:
            scores = score(plan_of(finalist), finalist.artifact)
        except GenoptError as error:
            record(_noted(finalist, f"its tasks could not be judged: {error}"))
            return
        found = judged(finalist, [_result(reference[item.task], item, spec) for item in scores])
        origins = tuple(item.origin for item in scores if item.origin is not None)
        record(found.model_copy(update={"earlier": (*found.earlier, *origins)}))


def judged(candidate: Candidate, results: Sequence[TaskResult]) -> Candidate:
    """A candidate with what its tasks said: rejected where one surely misses the bar, or its scores cannot be used."""
    quality = candidate.quality
    if quality is None:
        return candidate
    details = {**quality.details, "tasks": {item.task: item.model_dump(mode="json", exclude={"task"}) for item in results}}
    failed = [item for item in results if item.verdict == "reject" or (item.verdict == "anomalous" and item.original > 0)]
    said = "; ".join(f"{item.task}: {item.reason}" for item in failed or results)
    if not failed:
        return candidate.model_copy(update={"quality": quality.model_copy(update={"details": details}), "reason": f"{candidate.reason}; {said}"})
    verdict = "reject" if any(item.verdict == "reject" for item in failed) else "anomalous"
    rejected: Quality = quality.model_copy(update={"verdict": verdict, "details": {**details, "reason": said}})
    return candidate.model_copy(update={"status": "rejected", "reason": f"{said}; {candidate.reason}", "quality": rejected})


def _winner(spec: RunSpec, outcome: Outcome) -> Candidate | None:
    references = outcome.references
    if references is None:
        return None
    last = {candidate.name: candidate for candidate in outcome.candidates}
    slo = {str(name): limit for name, limit in spec.slo.items()}
    everything = [references.original, references.baseline, *last.values()]
    chosen = choose(everything, objective=spec.objective, bar=spec.quality, slo=slo, aa=references.aa)
    return last.get(chosen.winner) if chosen.winner is not None else None


def _result(original: TaskScores, candidate: TaskScores, spec: RunSpec) -> TaskResult:
    return compare_scores(
        candidate.task, candidate.metric, original.scores, candidate.scores, bar=spec.quality, seed=spec.seed, digest=candidate.digest
    )  # fmt: skip


def _noted(candidate: Candidate, note: str) -> Candidate:
    return candidate.model_copy(update={"reason": f"{candidate.reason}; {note}"})
