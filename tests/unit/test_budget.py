"""The budget's arithmetic holds for every clock."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genopt.search.budget import SHARES, Budget

TOTALS = st.floats(1.0, 1e5)
TIMES = st.lists(st.floats(0.0, 1e4), min_size=1, max_size=20)


class Clock:
    """A clock that moves when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_shares_are_the_whole_budget() -> None:
    assert sum(SHARES.values()) == pytest.approx(1.0)


@given(total=TOTALS, steps=TIMES)
def test_time_only_runs_out(total: float, steps: list[float]) -> None:
    clock = Clock()
    budget = Budget(total, clock=clock)
    left = budget.left_s
    for step in steps:
        clock.now += step
        assert 0.0 <= budget.left_s <= left
        left = budget.left_s
    assert budget.spent_s == pytest.approx(sum(steps), abs=1e-6)


@given(total=TOTALS, steps=TIMES)
def test_what_is_left_and_spent_and_kept_never_exceeds_the_total(total: float, steps: list[float]) -> None:
    clock = Clock()
    budget = Budget(total, clock=clock)
    clock.now += sum(steps)
    if budget.left_s > 0:
        assert budget.left_s + budget.spent_s + budget.reserve_s == pytest.approx(total)
    else:
        assert budget.spent_s + budget.reserve_s >= total - 1e-6


@given(total=TOTALS)
def test_the_reserve_has_bounds(total: float) -> None:
    assert 6.0 <= Budget(total, clock=Clock()).reserve_s <= 30.0


@given(total=TOTALS, seconds=st.floats(0.0, 1e5))
def test_work_fits_exactly_when_its_time_is_left(total: float, seconds: float) -> None:
    budget = Budget(total, clock=Clock())
    assert budget.fits(seconds) == (seconds <= budget.left_s)


@given(total=TOTALS, spent=st.floats(0.0, 1e5), later=st.floats(0.0, 1e4))
def test_a_resumed_run_has_what_the_first_one_left(total: float, spent: float, later: float) -> None:
    clock, fresh_clock = Clock(), Clock()
    resumed, whole = Budget(total, spent_s=spent, clock=clock), Budget(total, clock=fresh_clock)
    clock.now += later
    fresh_clock.now += spent + later
    assert resumed.left_s == pytest.approx(whole.left_s, abs=1e-6)


@given(total=TOTALS, spent=st.floats(0.0, 1e5))
def test_a_phase_lends_what_it_leaves_to_the_later_ones(total: float, spent: float) -> None:
    clock = Clock()
    budget = Budget(total, clock=clock)
    clock.now += spent
    limits = [budget.until_share(*list(SHARES)[:count]) for count in range(len(SHARES) + 1)]
    assert limits == sorted(limits)
    assert limits[0] == 0.0
    assert limits[-1] == pytest.approx(budget.left_s)
