"""When a canary gets more requests, and when none any more: pure functions of what was seen. Knows nothing of Ray."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from pydantic import Field

from genopt.measure.proportions import clopper_pearson
from genopt.measure.statistics import log_ratio_interval
from genopt.plan import Record

STEPS = (5.0, 25.0, 50.0, 100.0)
"""Shares of the requests, in percent, that a canary gets one after the other."""
KEPT = 400
"""Latest observations of each variant that are kept of a step: enough for narrow intervals, and bounded."""
ALIKE = 0.1
"""Part of an answer that must be the same for two answers to be alike."""
_LEVEL = 0.999
"""Of the exact intervals of error rates. Requests are looked at again and again, so that one look must hardly ever be wrong."""
_FEWEST = 20
"""Requests of each variant below which times and lengths are not compared."""
_ALMOST_ALL = 75.0
"""Percent of the requests of which a variant is about as busy as with all."""

Arm = Literal["stable", "canary"]
ARMS: tuple[Arm, ...] = ("stable", "canary")
State = Literal["running", "complete", "promoted", "replaced", "rolled_back"]


class Policy(Record):
    """How a rollout advances, and what ends it.

    Attributes:
        steps: Shares in percent, rising.
        step_s: Shortest time of a step, in seconds.
        step_requests: Fewest requests that the canary must have answered in a step; in shadow mode, fewest compared answers.
        shadow: The canary gets copies, and callers never its answers.
        slower: Accepted ratio of the canary's median time to the stable variant's, for each of TTFT, TPOT and whole answers.
        shorter: Least accepted ratio of median answer lengths: cut answers look like speed.
        longer: Largest accepted ratio of median answer lengths.
        errors: Accepted error rate above the stable variant's.
        agreement: Least accepted share of greedy answers that begin like the stable variant's. Good variants part after some
            tokens, so that an answer counts as alike when the first tenth of it is the same.
    """

    steps: tuple[float, ...] = Field(default=STEPS, min_length=1)
    step_s: float = Field(default=300.0, ge=0)
    step_requests: int = Field(default=50, gt=0)
    shadow: bool = False
    slower: float = Field(default=1.25, ge=1)
    shorter: float = Field(default=0.8, gt=0, le=1)
    longer: float = Field(default=1.5, ge=1)
    errors: float = Field(default=0.0, ge=0, lt=1)
    agreement: float = Field(default=0.5, ge=0, le=1)


def steps_from(first: float) -> tuple[float, ...]:
    """The steps of a rollout that begins with a share in percent: that one, then the usual ones above it."""
    return (first, *(step for step in STEPS if step > first))


class Observation(Record):
    """How one request went.

    Attributes:
        arm: Who had it.
        failed: It got no answer by the server's fault; only then are the others unset.
        ttft_s: Time to the first text of a streamed answer.
        tpot_s: Time per further token of a streamed answer.
        token_s: Time of a whole answer per token, of one that was not streamed.
        tokens: Length of the answer.
        agreement: Share of the answer that begins like the stable variant's to the same greedy request; set on copies only.
        step: Of the rollout when it learned of this; see `Progress`.
    """

    arm: Arm
    failed: bool = False
    ttft_s: float | None = None
    tpot_s: float | None = None
    token_s: float | None = None
    tokens: int | None = None
    agreement: float | None = None
    step: int = 0


class Decision(NamedTuple):
    """What is next, and why."""

    action: Literal["hold", "advance", "roll_back"]
    reason: str


class Progress(Record):
    """Where a rollout stands; what is written down.

    Attributes:
        rollout: Its id.
        variant: The canary.
        stable: The variant beside which it runs.
        state: `complete` is a canary that has all requests and has passed; it waits to be promoted. One that is `replaced` was
            promoted and is the stable variant by now.
        step: Index of the present step.
        step_began: Seconds since the epoch.
        step_requests: What the canary has answered in this step.
        reason: Why it is in its state.
    """

    rollout: str
    variant: str
    stable: str
    state: State = "running"
    step: int = 0
    step_began: float = 0.0
    step_requests: int = 0
    reason: str = ""


class Route(Record):
    """What a router does for a canary.

    Attributes:
        rollout: Id; who gets the canary depends on it.
        variant: The canary.
        share: Percent of the callers that it answers.
        copies: Percent of the greedy requests to the stable variant that it gets a copy of.
    """

    rollout: str
    variant: str
    share: float
    copies: float


def route(progress: Progress, policy: Policy) -> Route:
    """What routers do now. One that was rolled back gets nothing; one that is promoted gets everything."""
    share = policy.steps[progress.step] if progress.state == "running" else 0.0 if progress.state in ("replaced", "rolled_back") else 100.0
    if policy.shadow and progress.state != "promoted":
        return Route(rollout=progress.rollout, variant=progress.variant, share=0.0, copies=share if progress.state == "running" else 0.0)
    return Route(rollout=progress.rollout, variant=progress.variant, share=share, copies=min(share, 10.0) if progress.state == "running" else 0.0)


def is_chosen(caller: str, found: Route) -> bool:
    """Whether the canary answers a caller: always the same in a rollout, and never less when its share grows."""
    return _place(f"{found.rollout}\0{caller}") * 100 < found.share


def _place(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def decide(progress: Progress, policy: Policy, seen: Sequence[Observation], now: float) -> Decision:
    """Whether the canary may have more.

    A breach is what the intervals leave no doubt of: error rates whose exact 99.9 % intervals lie apart, medians of time and
    length whose ratio's bootstrap 95 % interval lies wholly beyond what the policy accepts, or an agreement that surely is.
    Medians are of one step, so that both variants had the same hour; `_times_tell` says what is done where the canary has everything.

    Args:
        progress: Where the rollout stands.
        policy: What is accepted.
        seen: The latest observations of both variants in each step.
        now: Seconds since the epoch.
    """
    if progress.state != "running":
        return Decision("hold", progress.reason)
    beside = _compared(progress, policy, seen)
    times = _TIMES if _times_tell(progress, policy) else ()
    looks = ((_errors, seen), *((check, beside) for check in times), (_length, beside), (_agreement, seen))
    breach = next((found for check, observations in looks if (found := check(policy, observations))), None)
    if breach is not None:
        return Decision("roll_back", breach)
    remaining = policy.step_s - (now - progress.step_began)
    if remaining > 0:
        return Decision("hold", f"{remaining:.0f} s of this step are left.")
    if progress.step_requests < policy.step_requests:
        return Decision("hold", f"The canary had {progress.step_requests} of {policy.step_requests} requests of this step.")
    return Decision("advance", f"No breach in {progress.step_requests} requests at {policy.steps[progress.step]:g} %.")


def _times_tell(progress: Progress, policy: Policy) -> bool:
    """Whether times tell of the variants and not of how busy they were.

    Where the canary has all requests, the stable variant has none; its times from when it had half of them would make any canary look slow.
    They are compared if it had almost all in the first step, and otherwise not at all.
    """
    return policy.steps[progress.step] < 100 or 100 - policy.steps[0] >= _ALMOST_ALL


def _compared(progress: Progress, policy: Policy, seen: Sequence[Observation]) -> list[Observation]:
    """What both variants did in the present step; the stable variant's first step where the canary has all requests."""
    theirs = progress.step if policy.steps[progress.step] < 100 else 0
    return [one for one in seen if one.step == (theirs if one.arm == "stable" else progress.step)]


def advance(progress: Progress, policy: Policy, decision: Decision, now: float) -> Progress:
    """The rollout after a decision."""
    if decision.action == "roll_back":
        return progress.model_copy(update={"state": "rolled_back", "reason": decision.reason})
    if decision.action == "hold":
        return progress
    last = progress.step + 1 == len(policy.steps)
    changes = {"state": "complete"} if last else {"step": progress.step + 1, "step_began": now, "step_requests": 0}
    return progress.model_copy(update={**changes, "reason": decision.reason})


def counts(observation: Observation, policy: Policy) -> bool:
    """Whether an observation is one of the requests that a step needs."""
    return observation.arm == "canary" and (observation.agreement is not None) == policy.shadow and not observation.failed


def _errors(policy: Policy, seen: Sequence[Observation]) -> str | None:
    failures, requests = dict.fromkeys(ARMS, 0), dict.fromkeys(ARMS, 0)
    for one in seen:
        requests[one.arm] += 1
        failures[one.arm] += one.failed
    low, _ = clopper_pearson(failures["canary"], requests["canary"], _LEVEL)
    _, high = clopper_pearson(failures["stable"], requests["stable"], _LEVEL)
    if low <= high + policy.errors:
        return None
    told = {arm: f"{failures[arm]} of {requests[arm]}" for arm in requests}
    return f"Error rate: {told['canary']} requests to the canary failed, {told['stable']} to the stable variant."


def _ratio(seen: Sequence[Observation], value: Callable[[Observation], float | None]) -> tuple[float, float, float] | None:
    """Canary's median over the stable variant's with its interval; None where there is too little to compare."""
    mine = [found for one in seen if one.arm == "canary" and one.agreement is None and (found := value(one))]
    theirs = [found for one in seen if one.arm == "stable" and (found := value(one))]
    if min(len(mine), len(theirs)) < _FEWEST:
        return None
    ratio = log_ratio_interval(theirs, mine, seed=0)
    return ratio.value, ratio.ci_low, ratio.ci_high


def _slower(name: str, value: Callable[[Observation], float | None]) -> Callable[[Policy, Sequence[Observation]], str | None]:
    def check(policy: Policy, seen: Sequence[Observation]) -> str | None:
        found = _ratio(seen, value)
        if found is None or found[1] <= policy.slower:
            return None
        return f"{name}: the canary takes {found[0]:.2f} times as long (at least {found[1]:.2f}; {policy.slower:g} is accepted)."

    return check


def _length(policy: Policy, seen: Sequence[Observation]) -> str | None:
    found = _ratio(seen, lambda one: one.tokens)
    if found is None or (found[2] >= policy.shorter and found[1] <= policy.longer):
        return None
    return f"Length: the canary's answers are {found[0]:.2f} times as long ({policy.shorter:g} to {policy.longer:g} is accepted)."


def _agreement(policy: Policy, seen: Sequence[Observation]) -> str | None:
    values = [one.agreement for one in seen if one.agreement is not None]
    alike = sum(value >= ALIKE for value in values)
    _, high = clopper_pearson(alike, len(values), _LEVEL)
    if high >= policy.agreement:
        return None
    return f"Agreement: {alike} of {len(values)} greedy answers begin like the stable variant's (at least {policy.agreement:.0%} are to)."


_TIMES: tuple[Callable[[Policy, Sequence[Observation]], str | None], ...] = (
    _slower("TTFT", lambda one: one.ttft_s), _slower("TPOT", lambda one: one.tpot_s), _slower("Time per token", lambda one: one.token_s),
)  # fmt: skip
