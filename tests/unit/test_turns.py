"""Candidates whose build gains from several GPUs come last and share them, as long as there is time for all."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as some

from genopt.distributed.turns import Turn, next_turn
from genopt.plan import Plan

SECONDS = {"a": 10.0, "b": 20.0, "wide-1": 30.0, "wide-2": 30.0, "wide-3": 30.0}


def plan(name: str) -> Plan:
    return Plan(name=name, steps=(), engine="any", options={})


def turn(names: Sequence[str], *, slots: int, taken: int = 0, left_s: float = 1000.0, best: str = "") -> Turn:
    return next_turn(
        [plan(name) for name in names], lambda one: one.name.startswith("wide"), promise=lambda one: float(one.name == best),
        estimate=lambda one: SECONDS[one.name], slots=slots, taken=taken, left_s=left_s,
    )  # fmt: skip


def test_others_come_first_the_most_promising_before_all() -> None:
    assert turn(["wide-1", "a", "b"], slots=2) == Turn(plan("a"), 1)
    assert turn(["wide-1", "a", "b"], slots=2, best="b") == Turn(plan("b"), 1)
    assert turn(["wide-1", "a", "b"], slots=2, best="wide-1") == Turn(plan("a"), 1)


def test_where_time_is_short_the_most_promising_comes_first_on_one_gpu() -> None:
    # (10 + 20) / 2 s for the others and 30 s for the last
    assert turn(["wide-1", "a", "b"], slots=2, left_s=45.0, best="wide-1").plan.name == "a"
    assert turn(["wide-1", "a", "b"], slots=2, left_s=44.0, best="wide-1") == Turn(plan("wide-1"), 1)
    assert turn(["wide-1", "a", "b"], slots=2, left_s=44.0, best="b").plan.name == "b"


def test_what_is_left_shares_all_gpus() -> None:
    assert turn(["wide-1"], slots=2) == Turn(plan("wide-1"), 2)
    assert turn(["wide-1"], slots=8, left_s=0.0) == Turn(plan("wide-1"), 8)
    assert turn(["wide-1", "wide-2"], slots=2) == Turn(plan("wide-1"), 1)
    assert turn(["wide-2"], slots=2, taken=1) == Turn(plan("wide-2"), 1)
    assert turn(["wide-2"], slots=1, taken=1) == Turn(plan("wide-2"), 1), "it waits for that one"


@given(some.integers(1, 16), some.integers(1, 12))
def test_shares_add_up_to_all_gpus_where_there_is_one_for_each(slots: int, count: int) -> None:
    waiting, taken, shares = ["wide-1"] * count, 0, []
    while waiting:
        shares.append(turn(waiting, slots=slots, taken=taken).share)
        taken += shares[-1]
        waiting.pop()
    assert min(shares) >= 1
    assert sum(shares) == max(slots, count)
    assert max(shares) - min(shares) <= 1
