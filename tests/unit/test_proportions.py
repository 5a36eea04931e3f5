"""Exact tests and intervals of counts: right in the tables' cases, and never surer than they claim."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genopt.measure.proportions import binomial_tail, clopper_pearson, net_interval, sign_test


@st.composite
def successes(draw: st.DrawFn, least: int = 0, most: int = 60) -> tuple[int, int]:
    count = draw(st.integers(least, most))
    return draw(st.integers(0, count)), count


@pytest.mark.parametrize(
    ("wins", "losses", "p"), [(8, 2, 0.109375), (9, 1, 0.021484375), (5, 5, 1.0), (0, 6, 0.03125), (1, 0, 1.0), (0, 0, 1.0), (14, 6, 0.115318)]
)
def test_the_sign_test_agrees_with_the_tables(wins: int, losses: int, p: float) -> None:
    assert sign_test(wins, losses) == pytest.approx(p, abs=1e-6)
    assert sign_test(losses, wins) == pytest.approx(p, abs=1e-6)


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [
        (8, 10, 0.44390, 0.97479), (0, 10, 0.0, 0.30850), (10, 10, 0.69150, 1.0), (15, 20, 0.50895, 0.91343), (1, 2, 0.01258, 0.98742),
        (0, 0, 0.0, 1.0),
    ],
)  # fmt: skip
def test_the_exact_interval_agrees_with_the_tables(k: int, n: int, low: float, high: float) -> None:
    assert clopper_pearson(k, n) == pytest.approx((low, high), abs=1e-5)


@given(case=successes())
def test_interval_and_test_never_contradict_each_other(case: tuple[int, int]) -> None:
    wins, count = case
    low, high = clopper_pearson(wins, count)
    assert (low > 0.5 or high < 0.5) == (sign_test(wins, count - wins) < 0.05)


@given(case=successes(), level=st.floats(0.5, 0.999))
def test_the_exact_interval_holds_the_estimate_and_is_mirrored(case: tuple[int, int], level: float) -> None:
    wins, count = case
    low, high = clopper_pearson(wins, count, level)
    assert 0 <= low <= high <= 1
    if count:
        assert low <= wins / count <= high
    mirrored = clopper_pearson(count - wins, count, level)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-9)


@pytest.mark.parametrize("count", [1, 2, 5, 12, 20, 40])
@pytest.mark.parametrize("share", [0.01, 0.1, 0.3, 0.5, 0.77, 0.98])
def test_the_exact_interval_covers_at_least_what_it_claims(count: int, share: float) -> None:
    covered = 0.0
    for wins in range(count + 1):
        low, high = clopper_pearson(wins, count)
        if low <= share <= high:
            covered += math.comb(count, wins) * share**wins * (1 - share) ** (count - wins)
    assert covered >= 0.95 - 1e-9


@given(case=successes(), share=st.floats(0.0, 1.0))
def test_the_tail_is_the_sum_of_its_terms(case: tuple[int, int], share: float) -> None:
    most, count = case
    exact = math.fsum(math.comb(count, wins) * share**wins * (1 - share) ** (count - wins) for wins in range(most + 1))
    assert binomial_tail(most, count, share) == pytest.approx(exact, abs=1e-9)


def test_many_observations_do_not_overflow() -> None:
    low, high = clopper_pearson(1_800, 3_000)
    assert 0.58 < low < 0.6 < high < 0.62
    assert 0 < sign_test(1_800, 1_200) < 1e-25


@given(case=successes(), ties=st.integers(0, 60), level=st.floats(0.5, 0.999))
def test_the_net_interval_is_mirrored_and_within_reach(case: tuple[int, int], ties: int, level: float) -> None:
    wins, decided = case
    losses, count = decided - wins, decided + ties
    low, high = net_interval(wins, losses, count, level)
    assert -1 <= low < high <= 1
    if count:
        assert low - 1e-9 <= (wins - losses) / count <= high + 1e-9
    assert net_interval(losses, wins, count, level) == pytest.approx((-high, -low), abs=1e-9)


@pytest.mark.parametrize(("wins", "losses", "count"), [(12, 2, 44), (10, 10, 20), (1, 7, 30), (3, 5, 8)])
def test_at_its_ends_the_score_of_the_likeliest_true_shares_is_1_96(wins: int, losses: int, count: int) -> None:
    for end in net_interval(wins, losses, count):
        low, high = max(0.0, -end), (1 - end) / 2

        def log_likelihood(lose: float, end: float = end) -> float:
            ties = count - wins - losses
            return wins * math.log(lose + end) + losses * math.log(lose) + ties * math.log(max(1e-300, 1 - 2 * lose - end))

        lose = max((low + (high - low) * step / 100_000 for step in range(1, 100_000)), key=log_likelihood)
        deviation = math.sqrt(count * (2 * lose + end - end**2))
        assert abs(wins - losses - count * end) / deviation == pytest.approx(1.96, abs=0.001)


def test_ties_are_evidence_for_a_draw() -> None:
    few, many = net_interval(1, 1, 20), net_interval(1, 1, 200)
    assert many[1] - many[0] < (few[1] - few[0]) / 3
    assert net_interval(0, 0, 0) == (-1.0, 1.0)


@pytest.mark.parametrize("count", [10, 20, 40])
@pytest.mark.parametrize(("win", "lose"), [(0.1, 0.1), (0.5, 0.5), (0.6, 0.2), (0.3, 0.3), (0.05, 0.4)])
def test_the_net_interval_covers_about_what_it_claims(count: int, win: float, lose: float) -> None:
    covered = 0.0
    for wins in range(count + 1):
        for losses in range(count - wins + 1):
            low, high = net_interval(wins, losses, count)
            if low <= win - lose <= high:
                ways = math.comb(count, wins) * math.comb(count - wins, losses)
                covered += ways * win**wins * lose**losses * max(0.0, 1 - win - lose) ** (count - wins - losses)
    assert covered >= 0.91
