"""What a search does with candidates whose node or worker was lost."""

from __future__ import annotations

from genopt.distributed.search_phase import LostCandidates
from genopt.plan import Plan
from genopt.tasks.base import Evaluation, failed
from genopt.testing.sleep_task import sleep_plan

ONE, OTHER = sleep_plan("one", speed=1.0), sleep_plan("other", speed=2.0)


def lost(plan: Plan) -> Evaluation:
    return Evaluation(candidate=failed(plan, "failed", "its node was lost"), again="now")


def ended(plan: Plan) -> Evaluation:
    return Evaluation(candidate=failed(plan, "rejected", "it is worse"))


def test_who_was_lost_is_tried_once_more_and_counts_as_it_ends_then() -> None:
    found: list[Evaluation] = []
    candidates = LostCandidates(found.append)
    candidates.note(lost(ONE))
    candidates.note(ended(OTHER))
    assert [one.identity() for one in candidates.waiting()] == [ONE.identity()]
    assert [(one.candidate.name, one.candidate.status) for one in found] == [("other", "rejected")]
    candidates.note(ended(ONE))
    candidates.give_up()
    assert candidates.waiting() == []
    assert [(one.candidate.name, one.candidate.status) for one in found] == [("other", "rejected"), ("one", "rejected")]


def test_who_is_lost_twice_failed() -> None:
    found: list[Evaluation] = []
    candidates = LostCandidates(found.append)
    for _ in range(2):
        candidates.note(lost(ONE))
    candidates.give_up()
    assert candidates.waiting() == []
    assert [one.candidate.status for one in found] == ["failed"]


def test_who_gets_no_second_time_is_recorded_all_the_same() -> None:
    found: list[Evaluation] = []
    candidates = LostCandidates(found.append)
    candidates.note(lost(ONE))
    assert found == []
    candidates.give_up()
    candidates.give_up()
    assert [(one.candidate.name, one.again) for one in found] == [("one", "now")]
