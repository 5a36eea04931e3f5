"""When a canary advances and when it is taken back; all of it without Ray."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genopt.serving.canary import Arm, Observation, Policy, Progress, Route, advance, decide, is_chosen, route, steps_from

BEGUN = Progress(rollout="r", variant="new", stable="old", step_began=100.0)
POLICY = Policy(step_s=10, step_requests=30)


def observed(arm: Arm, count: int, *, seed: int, slower: float = 1.0, tokens: int = 100, step: int = 0) -> list[Observation]:
    chance = random.Random(seed)

    def one() -> Observation:
        ttft, tpot = slower * chance.uniform(0.08, 0.12), slower * chance.uniform(0.008, 0.012)
        return Observation(arm=arm, ttft_s=ttft, tpot_s=tpot, tokens=chance.randint(tokens - 5, tokens), step=step)

    return [one() for _ in range(count)]


def seen(**changes: float) -> list[Observation]:
    tokens, slower = int(changes.get("tokens", 100)), changes.get("slower", 1.0)
    return [*observed("stable", 60, seed=1), *observed("canary", 60, seed=2, slower=slower, tokens=tokens)]


@pytest.mark.parametrize(
    ("seconds", "requests", "action"), [(5, 100, "hold"), (20, 29, "hold"), (20, 30, "advance")]
)  # fmt: skip
def test_a_step_needs_its_time_and_its_requests(seconds: float, requests: int, action: str) -> None:
    progress = BEGUN.model_copy(update={"step_requests": requests})
    assert decide(progress, POLICY, seen(), 100.0 + seconds).action == action


def test_a_healthy_canary_passes_every_step_and_then_waits() -> None:
    progress, shares, now = BEGUN, [], 100.0
    while progress.state == "running":
        shares.append(route(progress, POLICY).share)
        now += 11
        ready = progress.model_copy(update={"step_requests": 30})
        progress = advance(ready, POLICY, decide(ready, POLICY, seen(), now), now)
    assert shares == [5, 25, 50, 100]
    assert (progress.state, route(progress, POLICY).share) == ("complete", 100)
    assert decide(progress, POLICY, seen(), now + 1000).action == "hold"


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (seen(slower=2.0), "TTFT"),
        (seen(tokens=50), "Length"),
        (seen(tokens=300), "Length"),
        ([*observed("stable", 60, seed=1), *[Observation(arm="canary", failed=True)] * 10], "Error rate"),
        ([*seen(), *[Observation(arm="canary", agreement=0.0)] * 30], "Agreement"),
    ],
)
def test_a_breach_takes_it_back_for_good_with_its_reason(found: list[Observation], reason: str) -> None:
    decision = decide(BEGUN, POLICY, found, 101.0)
    assert decision.action == "roll_back"
    assert decision.reason.startswith(reason)
    after = advance(BEGUN, POLICY, decision, 101.0)
    assert (after.state, after.reason, route(after, POLICY).share) == ("rolled_back", decision.reason, 0)
    assert decide(after, POLICY, seen(), 1e6).action == "hold"


@pytest.mark.parametrize(
    ("steps", "step", "stable", "canary", "action"),
    [
        ((5.0, 25.0, 100.0), 1, (1.0, 1.6), 1.6, "hold"),  # everything is slower at this hour
        ((5.0, 25.0, 100.0), 1, (1.6, 1.0), 1.6, "roll_back"),
        ((5.0, 25.0, 100.0), 2, (1.6, 1.0), 1.6, "hold"),  # as slow as the other one was when it was as busy
        ((5.0, 25.0, 100.0), 2, (1.0, 1.6), 1.6, "roll_back"),
        ((50.0, 75.0, 100.0), 2, (1.0, 1.0), 1.6, "hold"),  # nobody knows how slow the other one would be
    ],
)  # fmt: skip
def test_times_are_compared_where_both_are_as_busy(
    steps: tuple[float, ...], step: int, stable: tuple[float, float], canary: float, action: str
) -> None:
    """Times as long as usual: the stable variant's in the first two steps, the canary's in the present one."""
    found = [one for index, slower in enumerate(stable) for one in observed("stable", 60, seed=index, slower=slower, step=index)]
    found += [*observed("canary", 60, seed=2, step=step - 1), *observed("canary", 60, seed=3, slower=canary, step=step)]
    progress = BEGUN.model_copy(update={"step": step})
    assert decide(progress, POLICY.model_copy(update={"steps": steps}), found, 101.0).action == action


@pytest.mark.parametrize("first", [5.0, 50.0])
def test_lengths_are_compared_whoever_was_how_busy(first: float) -> None:
    found = [*observed("stable", 60, seed=1), *observed("canary", 60, seed=2, tokens=50, step=1)]
    decision = decide(BEGUN.model_copy(update={"step": 1}), POLICY.model_copy(update={"steps": (first, 100.0)}), found, 101.0)
    assert decision.reason.startswith("Length")


def test_failures_that_both_have_are_no_breach() -> None:
    both = [Observation(arm=arm, failed=True) for arm in ("stable", "canary") for _ in range(30)]
    assert decide(BEGUN, POLICY, [*seen(), *both], 101.0).action == "hold"


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 120), st.integers(0, 120))
def test_two_alike_are_never_taken_for_a_breach(seed: int, stable: int, canary: int) -> None:
    found = [*observed("stable", stable, seed=seed), *observed("canary", canary, seed=seed + 1)]
    assert decide(BEGUN, POLICY, found, 101.0).action == "hold"


@settings(deadline=None)
@given(st.text(max_size=20), st.floats(0, 100), st.floats(0, 100))
def test_a_caller_keeps_the_canary_while_its_share_grows(caller: str, one: float, other: float) -> None:
    routes = [Route(rollout="r", variant="new", share=share, copies=0) for share in sorted((one, other))]
    assert is_chosen(caller, routes[0]) <= is_chosen(caller, routes[1])
    assert not is_chosen(caller, Route(rollout="r", variant="new", share=0, copies=0))
    assert is_chosen(caller, Route(rollout="r", variant="new", share=100, copies=0))


@pytest.mark.parametrize("share", [5, 25, 50])
def test_about_as_many_callers_get_it_as_the_share_says(share: float) -> None:
    chosen = sum(is_chosen(str(number), Route(rollout="r", variant="new", share=share, copies=0)) for number in range(10_000))
    assert chosen == pytest.approx(100 * share, abs=200)


def test_a_shadow_answers_nobody_until_it_is_promoted() -> None:
    shadow = POLICY.model_copy(update={"shadow": True})
    for state in ("running", "complete", "rolled_back"):
        assert route(BEGUN.model_copy(update={"state": state}), shadow).share == 0
    assert route(BEGUN, shadow).copies == 5
    assert route(BEGUN.model_copy(update={"state": "promoted"}), shadow).share == 100


@given(st.floats(0.1, 100))
def test_steps_rise_from_the_first_to_all(first: float) -> None:
    steps = steps_from(first)
    assert steps[0] == first
    assert steps[-1] == 100
    assert list(steps) == sorted(set(steps))
