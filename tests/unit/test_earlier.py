"""Candidates of earlier runs: found under equal conditions only, marked, and measured again before one of them wins."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from genopt.cli.options import reuse_of
from genopt.distributed.earlier import EarlierRuns, measure_finalists, to_measure_again
from genopt.distributed.outcome import Outcome
from genopt.errors import SpecError
from genopt.plan import Artifact, Candidate, Plan, Quality, Ratio, Status, Step, Verdict, plan_of
from genopt.spec import RunSpec, build, dump
from genopt.store.run_folder import RunFolder
from genopt.tasks.base import Again, Evaluation, References

CONDITIONS = {"model": "m", "libraries": {"torch": "2.13.0"}, "hardware": "h"}


def measured(
    name: str, speed: float = 2.0, verdict: Verdict = "accept", status: Status = "accepted", steps: tuple[Step, ...] = (), **details: Any
) -> Candidate:  # fmt: skip
    quality = Quality(metric="likelihood", ratio=0.999, ci_low=0.998, ci_high=1.0, n=9000, verdict=verdict, details=details)
    ratio = Ratio(value=speed, ci_low=0.99 * speed, ci_high=1.01 * speed)
    return Candidate(
        name=name, status=status, reason="as it was", steps=steps, engine="fake", options={"text": name}, quality=quality,
        artifact=Artifact(digest="d" * 64, path="p", bytes=1), speedup={"vs_original": ratio, "vs_baseline": ratio},
    )  # fmt: skip


def runs(store: Path, name: str, conditions: dict[str, Any] = CONDITIONS, given: tuple[str, ...] = (), **spec: Any) -> EarlierRuns:
    asked = build({"model": "m", "reuse": "everything", **spec})
    return EarlierRuns(store, Path("runs", name), asked, conditions, {"cpu": "Example"}, given)


def kept(store: Path, *candidates: Candidate, again: Again = "no") -> None:
    earlier = runs(store, "first")
    for one in candidates:
        earlier.keep(Evaluation(candidate=one, seconds=12.0, again=again))


def found(earlier: EarlierRuns) -> list[str]:
    return [one.candidate.name for one in earlier.take_over(set())]


def test_a_later_run_takes_over_what_an_earlier_one_measured(own_store: Path) -> None:
    kept(own_store, measured("a"), measured("b"))
    later = runs(own_store, "second")
    one, other = later.take_over(set())
    assert (one.candidate.name, other.candidate.name, one.seconds) == ("a", "b", 12.0)
    assert not one.candidate.is_measured
    (origin,) = one.candidate.earlier
    assert (origin.what, Path(origin.run).name, origin.environment) == ("everything", "first", {"cpu": "Example"})
    assert one.candidate.reason.startswith("as the run first on 2")
    assert [found.candidate.name for found in later.take_over({plan_of(measured("a")).identity()})] == ["b"]
    assert later.count([plan_of(measured("a")), plan_of(measured("c"))]) == 1
    assert found(runs(own_store, "first")) == [], "what a run measured itself is not taken over by it"


@pytest.mark.parametrize(
    "spec", [{"quality": 0.98}, {"seed": 1}, {"output_tokens": 64}, {"concurrency": (1, 8)}, {"reuse": "quality"}, {"reuse": "nothing"}]
)
def test_another_spec_finds_nothing(own_store: Path, spec: dict[str, Any]) -> None:
    kept(own_store, measured("a"))
    assert found(runs(own_store, "second", **spec)) == []


@pytest.mark.parametrize("name", list(CONDITIONS))
def test_other_conditions_find_nothing(own_store: Path, name: str) -> None:
    kept(own_store, measured("a"))
    assert found(runs(own_store, "second", {**CONDITIONS, name: "other"})) == []


def test_budgets_and_objectives_may_differ_and_unwanted_ones_stay_away(own_store: Path) -> None:
    kept(own_store, measured("good"), measured("bad"))
    assert found(runs(own_store, "second", budget="5m", objective="memory", exclude=("bad",))) == ["good"]


def test_what_was_made_with_a_given_model_is_taken_over_only_where_that_is_given_again(own_store: Path) -> None:
    lora, plain = Step(technique="diffusers_lora", params={"given": "a" * 64}), Step(technique="drop_layers")
    kept(own_store, measured("plain", steps=(plain,)), measured("few steps", steps=(plain, lora)))
    assert found(runs(own_store, "second")) == ["plain"]
    assert found(runs(own_store, "second", given=("b" * 64,))) == ["plain"]
    assert found(runs(own_store, "second", given=("b" * 64, "a" * 64))) == ["plain", "few steps"]


def test_only_what_was_measured_and_decided_is_kept(own_store: Path) -> None:
    kept(own_store, measured("failed", status="failed"), measured("hurried", verdict="inconclusive", status="inconclusive", stopped="no time"))
    kept(own_store, measured("lost"), again="now")
    taken = runs(own_store, "first")
    for one in runs(own_store, "second").take_over(set()):
        taken.keep(one)
    assert found(runs(own_store, "third")) == []


def test_a_damaged_record_is_as_good_as_none(own_store: Path) -> None:
    kept(own_store, measured("a"), measured("b"))
    next(own_store.glob("measured/*/*.json")).write_text("{", encoding="utf-8")
    assert len(found(runs(own_store, "second"))) == 1


def outcome(folder: Path, *candidates: Candidate) -> tuple[RunSpec, Outcome]:
    spec = build({"model": "m", "reuse": "everything"})
    made = Outcome(RunFolder.create(folder, dump(spec), {}))
    made.set_references(References(
        original=measured("original", 0.5), baseline=measured("baseline", 1.0), aa={"value": 1.0, "ci_low": 0.99, "ci_high": 1.01}, evaluation={},
    ))  # fmt: skip
    for one in candidates:
        made.add(Evaluation(candidate=one))
    return spec, made


def taken(own_store: Path, *candidates: Candidate) -> Sequence[Candidate]:
    kept(own_store, *candidates)
    return [one.candidate for one in runs(own_store, "second").take_over(set())]


def test_who_would_win_is_measured_until_the_winner_was(own_store: Path, tmp_path: Path) -> None:
    believed = taken(own_store, measured("fast", 3.0), measured("fair", 2.0), measured("slow", 1.2))
    spec, known = outcome(tmp_path / "run", measured("own", 1.5), *believed)
    asked: list[str] = []

    def measure(plan: Plan) -> bool:
        asked.append(plan.name)
        known.add(Evaluation(candidate=measured(plan.name, 1.4)))  # both were measured on a better day
        return True

    measure_finalists(spec, known, measure)
    assert asked == ["fast", "fair"]
    assert to_measure_again(spec, known) is None


def test_without_time_nothing_is_measured_again(own_store: Path, tmp_path: Path) -> None:
    spec, known = outcome(tmp_path / "run", *taken(own_store, measured("fast", 3.0)))
    measure_finalists(spec, known, lambda plan: False)
    assert to_measure_again(spec, known) is not None


def test_two_flags_that_contradict_each_other_are_refused() -> None:
    assert [reuse_of(False, None), reuse_of(True, None), reuse_of(True, "nothing"), reuse_of(False, "everything")] == [
        None, "nothing", "nothing", "everything"
    ]  # fmt: skip
    with pytest.raises(SpecError, match="leave one of them out"):
        reuse_of(True, "quality")
