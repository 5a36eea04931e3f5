from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genopt.search.precision import (
    BITS,
    FAMILIES,
    ROUNDING,
    Part,
    Sensitivity,
    among_seeds,
    expressed,
    joined,
    predicted_kl,
    solve,
    stored_bits,
    tells_families,
    unbeaten,
)
from genopt.search.space import Space
from genopt.tasks.text_generation import TextGeneration

SPACE = TextGeneration.space()


def part(name: str, low: float, high: float = 0.0, weights: int = 1000) -> Part:
    return Part(name=name, kind="family" if name in FAMILIES else "layer", weights=weights, kl={8: high, 4: low})


def sensitivity(*parts: Part) -> Sensitivity:
    return Sensitivity(parts=parts, block_size=32, tokens=512)


COSTS = sensitivity(
    part("head", 0.002, weights=28_000), part("qkv_proj", 0.03, weights=16_000), part("o_proj", 0.001, weights=10_000),
    part("gate_up_proj", 0.02, weights=53_000), part("down_proj", 0.05, weights=26_000),
)  # fmt: skip

costs = st.floats(min_value=0, max_value=1)
parts = st.lists(st.tuples(costs, costs, st.integers(min_value=1, max_value=10**6)), min_size=1, max_size=5)


@given(parts, st.floats(min_value=4, max_value=10))
def test_no_mixture_within_the_target_is_closer(drawn: list[tuple[float, float, int]], target: float) -> None:
    families = [part(name, low, high, weights) for name, (low, high, weights) in zip(FAMILIES, drawn, strict=False)]
    total = sum(one.weights for one in families)
    every = []
    for bits in itertools.product(BITS, repeat=len(families)):
        size = sum(one.weights * stored_bits(count, 32) for one, count in zip(families, bits, strict=True)) / total
        every.append((size, sum(one.kl[count] for one, count in zip(families, bits, strict=True))))
    least = min((kl for size, kl in every if size <= target + ROUNDING), default=None)
    found = solve(sensitivity(*families), [target])
    assert [one.kl for one in found] == ([] if least is None else [pytest.approx(least)])
    assert all(one.effective_bits <= target + ROUNDING for one in found)


def test_mixtures_are_a_front() -> None:
    found = unbeaten(COSTS.families(), 32)
    assert [one.effective_bits for one in found] == sorted(one.effective_bits for one in found)
    assert [one.kl for one in found] == sorted((one.kl for one in found), reverse=True)
    assert found[0].bits == dict.fromkeys(FAMILIES, 4)
    assert found[-1].bits == dict.fromkeys(FAMILIES, 8)


def test_the_least_harmed_families_are_rounded_first() -> None:
    (found,) = solve(COSTS, [8.2])
    assert {family for family, bits in found.bits.items() if bits == 4} == {"head"}, "o_proj alone would not be small enough"
    (found,) = solve(COSTS, [8.0])
    assert {family for family, bits in found.bits.items() if bits == 4} == {"head", "o_proj"}


def test_a_pass_that_did_not_get_through_gives_no_mixtures() -> None:
    half = COSTS.parts[1].model_copy(update={"kl": {8: 0.0}})
    assert solve(sensitivity(COSTS.parts[0], half)) == []
    assert solve(sensitivity(part("3", 0.1))) == []


def test_shares_are_joined_in_order() -> None:
    found = joined([sensitivity(part("down_proj", 0.1), part("10", 0.1)), sensitivity(part("head", 0.1), part("9", 0.1))])
    assert found is not None
    assert [one.name for one in found.parts] == ["head", "down_proj", "9", "10"]
    assert joined([]) is None


def test_mixtures_that_should_hold_the_bar_come_after_the_first_seed_and_others_after_the_last() -> None:
    mixtures, seeds = solve(COSTS), TextGeneration.seeds()[:3]
    placed = among_seeds(seeds, SPACE, mixtures, 0.99)
    holds = [point not in seeds and math.exp(-predicted_kl(SPACE, point, COSTS)) >= 0.99 for point in placed]
    assert placed[0] == seeds[0]
    assert [point for point in placed if point in seeds] == seeds
    assert placed.index(seeds[1]) == 1 + sum(holds)
    found = [point for point in placed if point not in seeds]
    kls = [predicted_kl(SPACE, point, COSTS) for point in found]
    holding = [kl for kl in kls if math.exp(-kl) >= 0.99]
    assert len(found) == len(mixtures)
    assert 0 < len(holding) < len(kls)
    assert kls == sorted(holding, reverse=True) + sorted(kl for kl in kls if math.exp(-kl) < 0.99)


def test_mixtures_become_points_of_the_techniques_that_can_express_them() -> None:
    (point,) = expressed(SPACE, {"head": 4, "down_proj": 8})
    plan = SPACE.plan(point)
    assert plan.engine == "ort_genai"
    assert plan.steps[-1].params["head"] == 4
    assert expressed(SPACE, {"router": 4}) == []


def test_points_without_bits_are_expected_to_cost_nothing() -> None:
    assert predicted_kl(SPACE, SPACE.complete({"engine": "torch"}), COSTS) == 0
    (point,) = expressed(SPACE, dict.fromkeys(FAMILIES, 4))
    assert predicted_kl(SPACE, point, COSTS) == pytest.approx(0.103)


def test_only_some_spaces_tell_families() -> None:
    assert tells_families(SPACE)
    assert not tells_families(Space(engines=SPACE.engines, techniques=()))


def test_costs_survive_their_way_through_json() -> None:
    assert Sensitivity.model_validate_json(COSTS.model_dump_json()) == COSTS
