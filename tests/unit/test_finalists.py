"""Who would win is asked first; a task vetoes, and never decides what it cannot tell."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from genopt.distributed.finalists import confirm, items_of
from genopt.distributed.outcome import Outcome
from genopt.errors import StageTimeoutError
from genopt.plan import Artifact, Candidate, Earlier, Plan, Quality, Ratio
from genopt.spec import build, dump
from genopt.store.run_folder import RunFolder
from genopt.tasks.base import Evaluation, References
from genopt.tasks.text_finalists import TaskScores

RIGHT, WRONG = (1.0,) * 900 + (0.0,) * 100, (1.0,) * 500 + (0.0,) * 500
SPEC = build({"model": "m"})


def candidate(name: str, speed: float) -> Candidate:
    quality = Quality(metric="likelihood_ratio", ratio=0.997, ci_low=0.995, ci_high=0.999, n=8192, verdict="accept")
    ratio = Ratio(value=speed, ci_low=speed, ci_high=speed)
    artifact = Artifact(digest=name, path=name, bytes=1)
    return Candidate(
        name=name, status="accepted", reason="likelihood holds", engine="fake", artifact=artifact, quality=quality, speedup={"vs_baseline": ratio}
    )  # fmt: skip


@pytest.fixture
def outcome(tmp_path: Path) -> Outcome:
    found = Outcome(RunFolder.create(tmp_path / "run", dump(SPEC), {}))
    aa = {"value": 1.0, "ci_low": 1.0, "ci_high": 1.0}
    found.set_references(References(original=candidate("original", 0.5), baseline=candidate("baseline", 1.0), aa=aa, evaluation={}))
    for name, speed in (("fast", 4.0), ("faster", 6.0), ("slow", 2.0)):
        found.add(Evaluation(candidate=candidate(name, speed)))
    return found


def scores(values: Sequence[float], task: str = "quiz") -> list[TaskScores]:
    return [TaskScores(task=task, metric="accuracy", scores=tuple(values))]


def run(outcome: Outcome, by_name: dict[str, Sequence[float] | Exception], *, left_s: float = 1000.0) -> list[str]:
    asked: list[str] = []

    def answer(name: str) -> list[TaskScores]:
        asked.append(name)
        found = by_name.get(name, RIGHT)
        if isinstance(found, Exception):
            raise found
        return scores(found)

    def score(plan: Plan, artifact: Artifact) -> list[TaskScores]:
        assert artifact.digest == plan.name
        return answer(plan.name)

    confirm(SPEC, outcome, lambda: answer("original"), score, record=outcome.revise, left_s=lambda: left_s)
    return asked


def named(outcome: Outcome, name: str) -> Candidate:
    (found,) = [item for item in outcome.candidates if item.name == name]
    return found


def test_the_fastest_is_asked_and_stays_where_it_holds(outcome: Outcome) -> None:
    assert run(outcome, {}) == ["original", "faster"]
    found = named(outcome, "faster")
    assert found.status == "accepted"
    assert found.quality is not None
    tasks = found.quality.details["tasks"]
    assert isinstance(tasks, dict)
    assert isinstance(tasks["quiz"], dict)
    assert tasks["quiz"]["original"] == 0.9
    assert "quiz: 90.0 against 90.0" in found.reason


def test_who_fails_is_rejected_and_the_next_is_asked(outcome: Outcome) -> None:
    assert run(outcome, {"faster": WRONG}) == ["original", "faster", "fast"]
    found = named(outcome, "faster")
    assert (found.status, found.quality and found.quality.verdict) == ("rejected", "reject")
    assert found.reason.startswith("quiz: 50.0 against 90.0")
    assert named(outcome, "fast").status == "accepted"


def test_nobody_is_left_when_all_fail(outcome: Outcome) -> None:
    assert run(outcome, dict.fromkeys(("faster", "fast", "slow"), WRONG)) == ["original", "faster", "fast", "slow"]
    assert {item.status for item in outcome.candidates} == {"rejected"}


def test_scores_that_are_missing_reject(outcome: Outcome) -> None:
    run(outcome, {"faster": RIGHT[:-1]})
    assert "999 items were scored where the original has 1000" in named(outcome, "faster").reason


def test_an_original_that_can_do_nothing_vetoes_nobody(outcome: Outcome) -> None:
    assert run(outcome, {"original": (0.0,) * 1000}) == ["original", "faster"]
    assert named(outcome, "faster").status == "accepted"
    assert "the original scores nothing" in named(outcome, "faster").reason


@pytest.mark.parametrize("name", ["original", "faster"])
def test_a_failure_is_noted_and_vetoes_nobody(outcome: Outcome, name: str) -> None:
    run(outcome, {name: StageTimeoutError("It took too long.")})
    found = named(outcome, "faster")
    assert found.status == "accepted"
    assert "tasks could not be judged: It took too long." in found.reason


def test_without_time_the_verdict_of_the_likelihood_stands(outcome: Outcome) -> None:
    assert run(outcome, {}, left_s=0.0) == ["original"]
    assert "no time left for its tasks" in named(outcome, "faster").reason


def test_what_an_interrupted_run_had_asked_is_not_asked_again(outcome: Outcome) -> None:
    run(outcome, {})
    before = named(outcome, "faster")
    assert run(outcome, {}) == ["original"]
    assert named(outcome, "faster") == before


def test_only_questions_are_tasks(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "a", "answer": "b"}')
    assert items_of(build({"model": "m", "eval_data": str(path)})) == str(path)
    path.write_text('{"text": "a"}')
    assert items_of(build({"model": "m", "eval_data": str(path)})) is None
    assert items_of(SPEC) is None


def test_scores_of_another_run_mark_the_candidate(outcome: Outcome) -> None:
    origin = Earlier(what="quality", run="runs/before", measured=1.0)

    def score(_plan: Plan, _artifact: Artifact) -> list[TaskScores]:
        return [one.model_copy(update={"origin": origin}) for one in scores(RIGHT)]

    confirm(SPEC, outcome, lambda: scores(RIGHT), score, record=outcome.revise, left_s=lambda: 1000.0)
    assert {one.name: one.earlier for one in outcome.candidates} == {"faster": (origin,), "fast": (), "slow": ()}
