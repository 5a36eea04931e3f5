"""Medians, ratios and intervals: exact where they must be, and honest where samples are few."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genopt.errors import StageError
from genopt.measure.statistics import (
    combine,
    half_width,
    log_ratio_interval,
    median_interval,
    metric,
    percentiles,
    small_sample_stretch,
    student_quantile,
)
from genopt.plan import Ratio

TIMES = st.lists(st.floats(0.01, 1e4), min_size=2, max_size=12)


def ratios() -> st.SearchStrategy[Ratio]:
    shares = st.floats(1.0, 5.0)
    return st.builds(lambda value, down, up: Ratio(value=value, ci_low=value / down, ci_high=value * up), st.floats(0.1, 10.0), shares, shares)


@given(samples=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30), seed=st.integers(0, 1000))
def test_a_median_lies_in_its_interval_which_has_ends(samples: list[float], seed: int) -> None:
    median, low, high = median_interval(samples, seed=seed)
    assert -math.inf < low <= median <= high < math.inf
    assert low >= 0 or min(samples) <= 0, "what cannot be negative has no negative end"
    assert median == pytest.approx(float(np.median(samples)))
    assert median_interval(samples, seed=seed) == (median, low, high)
    if len(set(samples)) == 1:
        assert low == median == high


@pytest.mark.parametrize("count", [2, 3, 4, 8])
def test_an_interval_of_few_values_covers_the_median_about_as_often_as_it_says(count: int) -> None:
    """In 94, 88, 96 and 97 % of cases, the bootstrap's own in 54, 72, 87 and 93."""
    generator = np.random.default_rng(count)
    found = [median_interval(list(np.exp(generator.normal(0.0, 0.03, count))), seed=turn)[1:] for turn in range(300)]
    assert sum(low <= 1 <= high for low, high in found) / len(found) > 0.86


def test_values_that_are_worlds_apart_have_an_interval_that_can_be_told() -> None:
    assert median_interval([1e-300, 1e300], seed=0)[2] < math.inf


def test_a_higher_level_gives_a_wider_interval() -> None:
    samples = list(np.random.default_rng(1).lognormal(size=40))
    _, low, high = median_interval(samples, seed=0, level=0.8)
    _, lower, higher = median_interval(samples, seed=0, level=0.99)
    assert lower < low < high < higher


def test_percentiles_interpolate() -> None:
    assert percentiles([4.0, 1.0, 3.0, 2.0, 5.0]) == pytest.approx((3.0, 4.6, 4.96))
    assert percentiles([7.0], (0.1, 0.9)) == (7.0, 7.0)


def test_a_metric_carries_its_samples_summary() -> None:
    found = metric([10.0, 12.0, 11.0], "ms", seed=3, conditions={"concurrency": 1})
    assert (found.value, found.unit, found.n, found.p50, found.conditions) == (11.0, "ms", 3, 11.0, {"concurrency": 1})
    assert found.p90 is not None
    assert found.p99 is not None
    assert found.ci_low is not None
    assert found.ci_high is not None
    assert found.p50 is not None
    assert found.ci_low <= found.p50 <= found.p90 <= found.p99 <= found.ci_high + 1e-9


def test_one_sample_has_no_interval() -> None:
    found = metric([10.0], "ms", seed=0)
    assert (found.n, found.ci_low, found.ci_high) == (1, None, None)


def test_no_samples_are_an_error_with_a_remedy() -> None:
    with pytest.raises(StageError, match="measure at least one request"):
        median_interval([], seed=0)


def test_a_candidate_of_half_the_time_is_twice_as_fast() -> None:
    found = log_ratio_interval([1.0, 1.1, 0.9], [2.0, 2.2, 1.8], seed=0)
    assert found.value == pytest.approx(2.0)
    assert found.ci_low == pytest.approx(2.0)
    assert found.ci_high == pytest.approx(2.0)


@given(candidate=TIMES, baseline=TIMES, scale=st.floats(0.01, 100.0), seed=st.integers(0, 100))
@settings(max_examples=40)
def test_a_ratio_does_not_depend_on_the_unit_of_time(candidate: list[float], baseline: list[float], scale: float, seed: int) -> None:
    one = log_ratio_interval(candidate, baseline, seed=seed)
    other = log_ratio_interval([time * scale for time in candidate], [time * scale for time in baseline], seed=seed)
    assert one.ci_low <= one.value <= one.ci_high
    assert other.value == pytest.approx(one.value, rel=1e-6)
    assert other.ci_low == pytest.approx(one.ci_low, rel=1e-4)


def test_pairing_cancels_what_slows_both_sides_down() -> None:
    generator = np.random.default_rng(5)
    drift, noise = np.exp(generator.normal(0, 0.3, 9)), np.exp(generator.normal(0, 0.01, 9))
    baseline, candidate = 2 * drift, drift * noise
    paired = log_ratio_interval(list(candidate), list(baseline), seed=0)
    apart = log_ratio_interval(list(candidate), [*baseline, float(np.median(baseline))], seed=0)
    assert half_width(paired) < half_width(apart) / 3


@pytest.mark.parametrize("times", [[1.0], [1.0, 0.0], [1.0, -2.0], [1.0, math.nan]])
def test_times_that_give_no_ratio_are_refused(times: list[float]) -> None:
    with pytest.raises(StageError, match=r"at least two rounds|timestamps"):
        log_ratio_interval(times, [1.0, 1.0], seed=0)


@pytest.mark.parametrize(("rounds", "least"), [(2, 0.85), (4, 0.9), (8, 0.93)])
def test_the_interval_covers_the_true_ratio_even_for_few_rounds(rounds: int, least: float) -> None:
    generator = np.random.default_rng(rounds)
    covered = 0
    for trial in range(400):
        candidate, baseline = np.exp(generator.normal(0, 0.05, (2, rounds))) * [[1.0], [1.5]]
        found = log_ratio_interval(list(candidate), list(baseline), seed=trial)
        covered += found.ci_low <= 1.5 <= found.ci_high
    assert covered / 400 >= least


@given(a=ratios(), b=ratios())
def test_a_product_of_ratios_is_commutative_and_no_surer_than_its_factors(a: Ratio, b: Ratio) -> None:
    product, swapped = combine(a, b), combine(b, a)
    assert product.value == pytest.approx(a.value * b.value)
    assert product.ci_low == pytest.approx(swapped.ci_low)
    for factor in (a, b):
        assert product.value / product.ci_low >= factor.value / factor.ci_low * (1 - 1e-9)
        assert product.ci_high / product.value >= factor.ci_high / factor.value * (1 - 1e-9)


@given(a=ratios())
def test_an_exact_one_changes_nothing(a: Ratio) -> None:
    product = combine(a, Ratio(value=1.0, ci_low=1.0, ci_high=1.0))
    assert (product.value, product.ci_low, product.ci_high) == pytest.approx((a.value, a.ci_low, a.ci_high))


def test_asymmetric_sides_stay_asymmetric() -> None:
    product = combine(Ratio(value=2.0, ci_low=1.0, ci_high=2.0), Ratio(value=3.0, ci_low=3.0, ci_high=6.0))
    assert (product.value, product.ci_low, product.ci_high) == pytest.approx((6.0, 3.0, 12.0))


@pytest.mark.parametrize(("degrees", "expected"), [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (10, 2.2281), (30, 2.0423), (127, 1.9788)])
def test_student_quantiles_agree_with_the_tables(degrees: int, expected: float) -> None:
    assert student_quantile(0.95, degrees) == pytest.approx(expected, abs=1e-4)


def test_the_stretch_falls_to_one() -> None:
    factors = [small_sample_stretch(count) for count in range(2, 60)]
    assert factors == sorted(factors, reverse=True)
    assert 1.0 < factors[-1] < 1.05
