"""The winner holds the bar and the limits, beats the baseline, and does not depend on noise."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genopt.plan import Artifact, Candidate, Earlier, Metric, Quality, Ratio
from genopt.search.selection import Selection, beside, choose
from genopt.spec import Objective


def made(
    name: str,
    *,
    speed: float = 1.5,
    width: float = 0.02,
    held: float = 0.995,
    size: int = 100,
    peak: float = 1000.0,
    throughput: float = 30.0,
    ttft_ms: float = 50.0,
    status: str = "accepted",
) -> Candidate:
    quality = Quality(metric="likelihood_ratio", ratio=held + 0.001, ci_low=held, ci_high=held + 0.002, n=1000, verdict="accept")
    return Candidate.model_validate({
        "name": name, "status": status, "reason": "", "engine": "torch", "quality": quality,
        "artifact": Artifact(digest=name, path=name, bytes=size),
        "metrics": {
            "ttft_ms": Metric(value=ttft_ms, unit="ms", p50=ttft_ms, p90=ttft_ms, p99=2 * ttft_ms),
            "throughput_tok_s@1": Metric(value=1.0, unit="tok/s"),
            "throughput_tok_s@16": Metric(value=throughput, unit="tok/s", ci_low=0.99 * throughput, ci_high=1.01 * throughput),
            "peak_memory_bytes": Metric(value=peak, unit="bytes"),
        },
        "speedup": {
            "vs_original": Ratio(value=2 * speed, ci_low=2 * speed * (1 - width), ci_high=2 * speed * (1 + width)),
            "vs_baseline": Ratio(value=speed, ci_low=speed * (1 - width), ci_high=speed * (1 + width)),
        },
    })  # fmt: skip


ORIGINAL = made("original", speed=0.5, throughput=10.0, held=0.999, size=400, peak=2000.0).model_copy(update={"quality": None})
BASELINE = made("baseline", speed=1.0, throughput=20.0, held=0.999, size=400, peak=2000.0)


def pick(
    *candidates: Candidate, objective: Objective = "latency", slo: Mapping[str, float] | None = None, aa: Mapping[str, float] | None = None
) -> Selection:
    return choose([ORIGINAL, BASELINE, *candidates], objective=objective, bar=0.99, slo=slo or {}, aa=aa)


def test_the_fastest_accepted_candidate_wins_on_latency() -> None:
    found = pick(made("slow", speed=1.5), made("fast", speed=3.0), made("broken", speed=9.0, status="rejected"))
    assert found.winner == "fast"
    assert "3.00x the baseline" in found.decision


@pytest.mark.parametrize("status", ["rejected", "inconclusive", "infeasible", "failed", "skipped"])
def test_only_accepted_candidates_compete(status: str) -> None:
    found = pick(made("fast", speed=3.0, status=status))
    assert found.winner is None
    assert "the baseline is kept" in found.decision


def test_a_candidate_under_the_bar_does_not_compete() -> None:
    assert pick(made("fast", speed=3.0, held=0.98)).winner is None


def test_the_references_never_win() -> None:
    found = choose([ORIGINAL, made("baseline", speed=5.0)], objective="latency", bar=0.99, slo={})
    assert found.winner is None
    assert found.decision == "No candidate was tried; the baseline is kept."


def test_a_winner_must_surely_beat_the_baseline() -> None:
    found = pick(made("same", speed=1.01, width=0.02))
    assert found.winner is None
    assert "none is surely better than the baseline in speed" in found.decision


def test_limits_are_in_seconds_and_exclude() -> None:
    candidates = made("fast", speed=3.0, ttft_ms=100.0), made("slow", speed=2.0, ttft_ms=40.0)
    assert pick(*candidates, slo={"ttft_p99": 0.2}).winner == "fast"
    assert pick(*candidates, slo={"ttft_p99": 0.1}).winner == "slow"
    found = pick(*candidates, slo={"ttft_p99": 0.01})
    assert found.winner is None
    assert "none meets ttft_p99" in found.decision


def test_where_nothing_is_asked_of_quality_the_fastest_wins_and_that_is_said() -> None:
    fast = made("fast", speed=3.0, held=0.1)
    assert pick(fast).winner is None
    found = choose([ORIGINAL, BASELINE, fast], objective="latency", bar=0.0, slo={})
    assert found.winner == "fast"
    assert "Nothing was asked of its quality" in found.decision
    assert "bar" not in found.decision


def test_limits_are_of_what_callers_wait_where_requests_were_let_arrive() -> None:
    fast, slow = made("fast", speed=3.0, ttft_ms=40.0), made("slow", speed=2.0, ttft_ms=40.0)
    queued = Metric(value=90.0, unit="ms", p50=90.0, p90=300.0, p99=500.0)
    waiting = fast.model_copy(update={"metrics": {**fast.metrics, "ttft_ms@poisson": queued}})
    assert pick(fast, slow, slo={"ttft_p99": 0.1}).winner == "fast"
    assert pick(waiting, slow, slo={"ttft_p99": 0.1}).winner == "slow"
    assert pick(waiting, slow, slo={"ttft_p50": 0.1}).winner == "fast"


def test_what_misses_a_limit_decides_no_tie_of_others() -> None:
    """It is better than the best of them in everything but that limit."""
    good, other = made("good", speed=1.50, held=0.998), made("other", speed=1.505, held=0.991, peak=900.0)
    late = made("late", speed=1.51, held=0.998, ttft_ms=200.0)
    assert pick(good, other, slo={"ttft_p99": 0.3}).winner == "good"
    assert pick(good, other, late, slo={"ttft_p99": 0.3}).winner == "good"


def test_a_throughput_is_held_against_the_baseline_that_was_measured_beside_it() -> None:
    """A resumed run measured its references again, on a machine that was slower that day."""
    before = made("before", throughput=20.2)
    before = before.model_copy(update={"metrics": before.metrics | beside(before.metrics, rated(BASELINE, 20.5, 0.01).metrics)})
    slower = rated(BASELINE, 18.0, 0.01)
    assert choose([ORIGINAL, slower, before], objective="throughput", bar=0.99, slo={}).winner is None
    faster = made("faster", throughput=20.2)
    assert choose([ORIGINAL, slower, before, faster], objective="throughput", bar=0.99, slo={}).winner == "faster"
    assert set(beside(before.metrics, BASELINE.metrics)) == {"throughput_tok_s@1", "throughput_tok_s@16"}
    assert beside(before.metrics, {}) == {}


def test_an_unmeasured_limit_is_not_met() -> None:
    assert pick(made("fast"), slo={"tpot_p99": 10.0}).winner is None


def test_ties_are_broken_by_quality_then_size_then_name() -> None:
    fast = made("fast", speed=2.02, held=0.9951, size=200)
    assert pick(fast, made("better", speed=2.0, held=0.9981, size=300)).winner == "better"
    assert pick(fast, made("smaller", speed=2.0, held=0.9953, size=100)).winner == "smaller"
    assert pick(fast, made("alike", speed=2.0, held=0.9951, size=200, peak=900.0)).winner == "alike"
    found = pick(fast, made("much-slower", speed=1.5, held=0.9981))
    assert found.winner == "fast"


def test_what_another_one_beats_in_everything_does_not_win_a_tie() -> None:
    assert pick(made("fast", speed=2.02), made("alike", speed=2.0)).winner == "fast"


def test_a_tie_is_told() -> None:
    found = pick(made("a", speed=2.0, held=0.998), made("b", speed=2.01))
    assert "within measurement noise of b" in found.decision


def test_noise_between_equal_runs_widens_the_tie() -> None:
    candidates = made("fast", speed=2.0, width=0.01), made("better", speed=1.9, width=0.01, held=0.998)
    assert pick(*candidates).winner == "fast"
    assert pick(*candidates, aa={"value": 1.0, "ci_low": 0.95, "ci_high": 1.05}).winner == "better"


def test_on_a_noisy_machine_a_gain_must_exceed_what_no_difference_looked_like() -> None:
    noisy = {"value": 0.95, "ci_low": 0.92, "ci_high": 0.97}
    assert pick(made("slightly", speed=1.08, width=0.02)).winner == "slightly"
    assert pick(made("slightly", speed=1.08, width=0.02), aa=noisy).winner is None
    assert pick(made("clearly", speed=1.3, width=0.02), aa=noisy).winner == "clearly"


def test_a_gain_smaller_than_the_baseline_s_own_spread_is_none() -> None:
    quiet = {"value": 1.0, "ci_low": 0.97, "ci_high": 1.03}
    assert pick(made("hardly", speed=1.025, width=0.01), aa=quiet).winner is None
    assert pick(made("clearly", speed=1.05, width=0.01), aa=quiet).winner == "clearly"


def test_a_badly_measured_candidate_does_not_tie_with_all() -> None:
    candidates = made("vague", speed=3.1, width=0.7), made("fast", speed=3.0), made("slow", speed=1.1, held=0.999)
    assert pick(*candidates).winner != "slow"


def test_a_badly_measured_candidate_does_not_win_by_the_width_of_its_interval() -> None:
    assert pick(made("vague", speed=2.2, width=0.5, held=0.999), made("fast", speed=3.0)).winner == "fast"


def test_quality_does_not_buy_a_candidate_that_is_far_behind_however_noisy_the_machine() -> None:
    noisy = {"value": 1.0, "ci_low": 0.7, "ci_high": 1.4}
    assert pick(made("behind", speed=2.5, width=0.2, held=0.999), made("fast", speed=3.0, width=0.2), aa=noisy).winner == "fast"


@given(jitter=st.lists(st.floats(-0.015, 0.015), min_size=3, max_size=3))
def test_noisy_timings_choose_the_same_winner(jitter: list[float]) -> None:
    names = {"a": 0.9962, "b": 0.9981, "c": 0.9915}
    candidates = [made(name, speed=2.0 * (1 + noise), held=held) for (name, held), noise in zip(names.items(), jitter, strict=True)]
    assert pick(*candidates).winner == "b"


@pytest.mark.parametrize(
    ("objective", "winner"), [("latency", "quick"), ("throughput", "wide"), ("memory", "small"), ("balanced", "even")]
)  # fmt: skip
def test_each_objective_has_its_own_winner(objective: Objective, winner: str) -> None:
    candidates = (
        made("quick", speed=3.0, throughput=22.0, peak=1900.0), made("wide", speed=1.2, throughput=60.0, peak=1900.0),
        made("small", speed=1.1, throughput=22.0, peak=400.0), made("even", speed=2.5, throughput=50.0, peak=600.0),
    )  # fmt: skip
    found = pick(*candidates, objective=objective)
    assert found.winner == winner
    assert set(found.pareto) >= {"quick", "small", "even"}


def rated(one: Candidate, value: float, spread: float) -> Candidate:
    rate = Metric(value=value, unit="tok/s", ci_low=value * (1 - spread), ci_high=value * (1 + spread))
    return one.model_copy(update={"metrics": {**one.metrics, "throughput_tok_s@16": rate}})


def test_a_baseline_that_is_badly_known_does_not_make_candidates_alike() -> None:
    original, baseline = ORIGINAL, rated(BASELINE, 3692, 0.024)
    leader, second = rated(made("leader", held=0.991), 9220, 0.01), rated(made("second", held=0.998), 8802, 0.004)
    chosen = choose([original, baseline, second, leader], objective="throughput", bar=0.99, slo={})
    assert chosen.winner == "leader"
    assert "2.50x the baseline [2.41, 2.58]" in chosen.decision, "the gain is known no better than the baseline"
    near = rated(made("near", held=0.998), 9110, 0.0002)
    assert choose([original, baseline, near, leader], objective="throughput", bar=0.99, slo={}).winner == "near", "another run may turn them round"


def test_what_is_slower_alone_may_win_on_throughput() -> None:
    """As W8A8 did on an H200, which no other matched with 128 streams, and another one in all but that."""
    best, other = made("best", speed=1.62, throughput=90.6), made("other", speed=1.64, throughput=88.2, peak=700.0, held=0.9952, size=120)
    found = pick(best, other, objective="throughput")
    assert found.winner == "best", "a tie, as other runs may turn them round, of equal quality, where the smaller one wins"
    assert {"best", "other"} <= set(found.pareto)


def test_equal_memory_is_decided_by_the_artifact() -> None:
    found = pick(made("a", peak=1000.0, size=90), made("b", speed=1.6, peak=1004.0, size=80, held=0.991), objective="memory")
    assert found.winner == "b"


@pytest.mark.parametrize("objective", ["throughput", "memory", "balanced"])
def test_what_was_not_measured_does_not_win(objective: Objective) -> None:
    bare = made("bare", speed=5.0).model_copy(update={"metrics": {}})
    assert pick(bare, objective=objective).winner is None


def test_the_front_holds_references_and_accepted_candidates_only() -> None:
    found = pick(made("good", speed=2.0, held=0.998), made("worse", speed=1.9, held=0.991), made("lost", speed=9.0, status="rejected"))
    assert found.pareto == ["baseline", "good"]
    assert not {"worse", "lost"} & set(found.pareto)


@given(speeds=st.permutations([1.2, 1.7, 2.4]), order=st.permutations(range(3)))
def test_the_order_of_candidates_does_not_matter(speeds: list[float], order: list[int]) -> None:
    candidates = [made(f"c{index}", speed=speed) for index, speed in enumerate(speeds)]
    assert pick(*candidates).winner == pick(*(candidates[index] for index in order)).winner == f"c{speeds.index(2.4)}"


def test_every_decision_is_whole_sentences() -> None:
    pools = [(), (made("a", status="failed"),), (made("a", speed=1.0),), (made("a"), made("b"))]
    objectives: tuple[Objective, ...] = ("latency", "memory")
    for pool, objective in itertools.product(pools, objectives):
        decision = pick(*pool, objective=objective).decision
        assert decision.endswith(".")
        assert "\n" not in decision


def test_what_another_run_measured_wins_nothing() -> None:
    earlier = Earlier(what="everything", run="runs/before", measured=1.0)
    believed = made("fast", speed=3.0).model_copy(update={"earlier": (earlier,)})
    assert pick(made("slow", speed=1.5), believed).winner == "slow"
    scored = made("fast", speed=3.0).model_copy(update={"earlier": (earlier.model_copy(update={"what": "quality"}),)})
    assert pick(made("slow", speed=1.5), scored).winner == "fast", "its speed is this run's"
