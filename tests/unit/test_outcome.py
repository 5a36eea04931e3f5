"""What a resumption takes over from the journal: everything that ended, once, and nothing that may end otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest

from genopt.distributed.outcome import Outcome
from genopt.plan import Metric, Plan, Status
from genopt.search.predict import runtime_of
from genopt.spec import build, dump
from genopt.store.run_folder import RunFolder
from genopt.tasks.base import Again, Evaluation, StageTime, failed


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run", dump(build({"model": "m"})), {})


def plan(name: str) -> Plan:
    return Plan(name=name, engine="fake", options={"text": name})


def ended(name: str, status: Status = "failed", again: Again = "no") -> Evaluation:
    stage, samples = StageTime(stage="build", node="n", started=1.0, ended=2.0), ({"candidate": name, "ms": 1.0},)
    return Evaluation(candidate=failed(plan(name), status, "why"), samples=samples, seconds=1.0, stages=(stage,), again=again)


def resumed(run: RunFolder) -> Outcome:
    found = Outcome(RunFolder.existing(run.path))
    found.replay()
    return found


def test_what_ended_is_not_tried_again(run: RunFolder) -> None:
    outcome = Outcome(run)
    for found in (ended("own fault"), ended("skipped", "skipped"), ended("node lost", again="now"), ended("no time", again="later")):
        outcome.add(found)
    assert len(outcome.identities()) == 3, "in the same session nothing but what was skipped may come again"
    assert resumed(run).identities() == {plan("own fault").identity()}


def test_a_candidate_counts_as_it_ended_last(run: RunFolder) -> None:
    first = Outcome(run)
    first.add(ended("one", "skipped"))
    first.add(ended("two", again="later"))
    second = resumed(run)
    second.add(ended("one", "infeasible"))
    second.add(ended("two", "infeasible"))
    third = resumed(run)
    assert [(candidate.name, candidate.status) for candidate in third.candidates] == [("one", "infeasible"), ("two", "infeasible")]


def test_the_samples_of_earlier_sessions_are_kept(run: RunFolder) -> None:
    first = Outcome(run)
    first.add(ended("one"))
    first.flush()
    second = resumed(run)
    second.add(ended("two"))
    second.flush()
    assert [row["candidate"] for row in run.read_records("samples").to_pylist()] == ["one", "two"]
    assert run.read_records("candidates").column("name").to_pylist() == ["one", "two"]


def test_the_journal_says_who_worked_when(run: RunFolder) -> None:
    Outcome(run).add(ended("one", again="now"))
    (event,) = run.events()
    assert event["stages"] == [{"stage": "build", "node": "n", "started": 1.0, "ended": 2.0}]
    assert event["again"] == "now"


def test_what_candidates_took_tells_of_others_in_later_sessions_too(run: RunFolder) -> None:
    outcome, plans = Outcome(run), [plan("quick"), plan("unmeasured")]
    measured = failed(plans[0], "rejected", "why").model_copy(update={"metrics": {"tpot_ms": Metric(value=1.0, unit="ms")}})
    outcome.add(Evaluation(candidate=measured, seconds=12.0))
    outcome.add(Evaluation(candidate=failed(plans[1], "failed", "why"), seconds=3.0))
    outcome.revise(measured.model_copy(update={"reason": "it did tasks, too"}))
    assert outcome.seconds == {runtime_of(plans[0]): [12.0]}
    assert resumed(run).seconds == outcome.seconds
