"""What people preferred, how sure that is, and whether it agrees with the automatic verdict.

The prompt is the independent unit: several raters' votes on one prompt are about the same two answers, so they are first
reduced to what most of them preferred. Ties are reported apart from the sign test, and count in the net preference.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Literal

from genopt.measure.proportions import clopper_pearson, net_interval, sign_test
from genopt.plan import Record, Verdict
from genopt.quality.agreement import Agreement, agreement
from genopt.quality.comparison import Comparison, Question
from genopt.quality.votes import Ballots, Side, Vote

TOLERATED = 0.20
"""A net preference within this of 0, such as 40 prompts against 60 of 100, counts as no loss and no gain."""
SIGNIFICANT = 0.05
FEWEST = 10
"""Judged prompts below which "no loss" is not claimed, because the interval of the net preference is then too narrow."""

Relation = Literal["confirms", "contradicts", "open", "none"]
Expectation = Literal["as_good", "worse", "better"]


class Estimate(Record):
    """A value with its 95 % interval."""

    value: float
    ci_low: float
    ci_high: float


class PromptVotes(Record):
    """The votes on one prompt.

    Attributes:
        question: Id of the question.
        prompt: What was asked.
        a: Votes for the first variant.
        b: Votes for the second.
        tie: Votes for "as good as each other".
        bad: Votes for "both bad".
        preferred: What more of them preferred; None without any vote.
    """

    question: str
    prompt: str
    a: int = 0
    b: int = 0
    tie: int = 0
    bad: int = 0
    preferred: Literal["a", "b", "neither"] | None = None


class RaterVotes(Record):
    """How far a rater came, and what that rater said in all."""

    rater: str
    votes: int
    finished: bool
    a: int
    b: int
    tie: int
    bad: int


class HumanResult(Record):
    """One comparison by people, as report.json gives it.

    Attributes:
        comparison: Name of its folder.
        a: The first variant, the one that the other is measured by.
        b: The second variant.
        prompts: Questions that were asked.
        judged: Questions with a vote.
        votes: Votes of all raters, by choice.
        prompts_a: Questions on which more raters preferred the first variant.
        prompts_b: Questions on which more preferred the second.
        prompts_even: Questions with votes on which neither is ahead.
        preference: Share of the second variant among the questions with a preference, with the exact interval of
            Clopper and Pearson; None without any.
        p_value: Exact two-sided sign test of "both are preferred equally often"; None without any preference.
        net: (prompts_b - prompts_a) / judged, in [-1, 1]; even questions count. None without any vote.
        first_shown: Share of the preferences that went to the answer that was shown first: far from one half the place
            decided, and not the answer. None without any.
        agreement: Between raters; None where no question has two votes.
        raters: Those who voted, by name.
        verdict: The gate's automatic verdict about the second variant, or None.
        relation: Whether people confirm or contradict what the automatic verdicts say about the two; `open` where the
            votes are too few to tell, `none` where there is nothing to agree with.
        decision: All that in words.
        notes: What else a reader should know: how far raters agree, and whether the place decided.
        details: The votes by question.
    """

    comparison: str
    a: str
    b: str
    prompts: int
    judged: int
    votes: dict[str, int]
    prompts_a: int
    prompts_b: int
    prompts_even: int
    preference: Estimate | None
    p_value: float | None
    net: Estimate | None
    first_shown: Estimate | None
    agreement: Agreement | None
    raters: tuple[RaterVotes, ...]
    verdict: Verdict | None
    relation: Relation
    decision: str
    notes: tuple[str, ...]
    details: tuple[PromptVotes, ...]


def human_result(name: str, comparison: Comparison, ballots: Ballots, verdicts: tuple[Verdict | None, Verdict | None]) -> HumanResult:
    """Evaluates the votes so far.

    Args:
        name: Of the comparison's folder.
        comparison: What was asked.
        ballots: What was said; votes on other questions are left out.
        verdicts: The gate's about the first and the second variant; `reference` for the original.
    """
    ids = {question.id for question in comparison.questions}
    votes = [vote for vote in ballots.votes if vote.question in ids]
    details = tuple(_prompt_votes(question, [vote for vote in votes if vote.question == question.id]) for question in comparison.questions)
    preferred = Counter(item.preferred for item in details if item.preferred)
    first, second, even = preferred["a"], preferred["b"], preferred["neither"]
    judged = first + second + even
    expected = _expectation(*verdicts)
    net = _net(first, second, judged)
    p_value = sign_test(second, first) if first + second else None
    relation = _relation(expected, p_value, net if judged >= FEWEST else None)
    found = HumanResult(
        comparison=name, a=comparison.a, b=comparison.b, prompts=len(details), judged=judged, votes=_choices(votes),
        prompts_a=first, prompts_b=second, prompts_even=even, preference=_share(second, first + second), p_value=p_value, net=net,
        first_shown=_first_shown(votes), agreement=agreement(_by_question(votes)),
        raters=tuple(_rater_votes(rater, votes, rater in ballots.finished) for rater in sorted({vote.rater for vote in votes}, key=_natural)),
        verdict=verdicts[1], relation=relation, decision="", notes=(), details=details,
    )  # fmt: skip
    decision = " ".join(_sentences(found, expected)) if judged else "Nobody has voted yet."
    return found.model_copy(update={"decision": decision, "notes": tuple(_notes(found))})


def _choices(votes: Sequence[Vote]) -> dict[str, int]:
    counts = Counter(vote.choice for vote in votes)
    return {"a": counts["a"], "b": counts["b"], "tie": counts["tie"], "bad": counts["bad"]}


def _by_question(votes: Sequence[Vote]) -> list[list[str]]:
    found: dict[str, list[str]] = {}
    for vote in votes:
        found.setdefault(vote.question, []).append(vote.choice)
    return list(found.values())


def _prompt_votes(question: Question, votes: Sequence[Vote]) -> PromptVotes:
    counts = _choices(votes)
    ahead: Literal["a", "b", "neither"] = "a" if counts["a"] > counts["b"] else "b" if counts["b"] > counts["a"] else "neither"
    return PromptVotes(question=question.id, prompt=question.prompt, **counts, preferred=ahead if votes else None)


def _rater_votes(rater: str, votes: Sequence[Vote], finished: bool) -> RaterVotes:
    own = [vote for vote in votes if vote.rater == rater]
    return RaterVotes(rater=rater, votes=len(own), finished=finished, **_choices(own))


def _natural(name: str) -> tuple[int, str]:
    """`rater 10` after `rater 9`."""
    return len(name), name


def _share(successes: int, count: int) -> Estimate | None:
    if not count:
        return None
    low, high = clopper_pearson(successes, count)
    return Estimate(value=successes / count, ci_low=low, ci_high=high)


def _net(first: int, second: int, judged: int) -> Estimate | None:
    if not judged:
        return None
    low, high = net_interval(second, first, judged)
    return Estimate(value=(second - first) / judged, ci_low=low, ci_high=high)


def _first_shown(votes: Sequence[Vote]) -> Estimate | None:
    decided = [vote for vote in votes if vote.choice in ("a", "b")]
    return _share(sum(vote.choice == vote.left for vote in decided), len(decided))


def _expectation(first: Verdict | None, second: Verdict | None) -> Expectation | None:
    """What the automatic verdicts say about the second variant, seen from the first; None where they say nothing."""
    holds = {"accept": True, "reference": True, "reject": False}
    a, b = (holds.get(verdict) if verdict else None for verdict in (first, second))
    if a is None or b is None or not (a or b):
        return None
    return "as_good" if a and b else "worse" if a else "better"


def _relation(expected: Expectation | None, p_value: float | None, net: Estimate | None) -> Relation:
    """A preference is real at the sign test's 5 %; "no loss" is shown where the net preference's interval excludes one."""
    if expected is None:
        return "none"
    if net is None:
        return "open"
    real = p_value is not None and p_value < SIGNIFICANT
    better, worse = real and net.value > 0, real and net.value < 0
    no_loss, no_gain = net.ci_low >= -TOLERATED or better, net.ci_high <= TOLERATED or worse
    confirmed, contradicted = {"as_good": (no_loss, worse), "worse": (worse, no_loss), "better": (better, no_gain)}[expected]
    return "confirms" if confirmed else "contradicts" if contradicted else "open"


def _sentences(found: HumanResult, expected: Expectation | None) -> list[str]:
    so_far = f"So far {found.judged} of {_prompts(found.prompts)} {'has' if found.judged == 1 else 'have'} a vote."
    return [*([so_far] if found.judged < found.prompts else []), _finding(found), _agreeing(found, expected)]


def _finding(found: HumanResult) -> str:
    decided = found.prompts_a + found.prompts_b
    if found.preference is None or found.p_value is None:
        return f"People preferred neither {found.a} nor {found.b} on any of {_prompts(found.judged)}."
    test = f"sign test {_p(found.p_value)}"
    even = f"; {found.prompts_even} {'was' if found.prompts_even == 1 else 'were'} even" if found.prompts_even else ""
    if found.prompts_a == found.prompts_b:
        return f"People preferred {found.a} and {found.b} equally often, on {_prompts(found.prompts_a)} each ({test}){even}."
    leader: Side = "b" if found.prompts_b > found.prompts_a else "a"
    share = found.preference if leader == "b" else _mirrored(found.preference)
    interval = f"{share.value:.0%}, 95% interval {100 * share.ci_low:.0f}–{share.ci_high:.0%}"
    name, count = (found.b, found.prompts_b) if leader == "b" else (found.a, found.prompts_a)
    return f"People preferred {name} on {count} of the {_prompts(decided)} with a preference ({interval}; {test}){even}."


def _agreeing(found: HumanResult, expected: Expectation | None) -> str:
    if expected is None or found.net is None:
        return "There is no automatic verdict about these two to compare that with."
    says = {"as_good": f"{found.b} is as good as {found.a}", "worse": f"{found.b} is worse than {found.a}",
            "better": f"{found.b} is better than {found.a}"}[expected]  # fmt: skip
    points = f"the net preference for {found.b} lies between {_points(found.net.ci_low)} and {_points(found.net.ci_high)} points (95%)"
    if found.relation == "confirms":
        return f"That confirms the automatic verdict that {says}: {points}."
    if found.relation == "contradicts":
        return f"That contradicts the automatic verdict that {says}: {points}."
    return f"That neither confirms nor contradicts the automatic verdict that {says}: {points}, so more prompts are needed."


def _notes(found: HumanResult) -> Iterator[str]:
    if found.agreement is not None:
        alpha = f" (Krippendorff's alpha {_signed(f'{found.agreement.alpha:.2f}')})" if found.agreement.alpha is not None else ""
        yield f"Two raters said the same about {found.agreement.share:.0%} of the prompts that both judged{alpha}."
    if found.first_shown is not None and not found.first_shown.ci_low <= 0.5 <= found.first_shown.ci_high:
        yield (
            f"The answer shown first won {found.first_shown.value:.0%} of the preferences (95% interval {100 * found.first_shown.ci_low:.0f}–"
            f"{found.first_shown.ci_high:.0%}): the place decided more than it should, which blurs the comparison and favours neither variant."
        )


def _mirrored(share: Estimate) -> Estimate:
    return Estimate(value=1 - share.value, ci_low=1 - share.ci_high, ci_high=1 - share.ci_low)


def _prompts(count: int) -> str:
    return "1 prompt" if count == 1 else f"{count} prompts"


def _points(share: float) -> str:
    return _signed(f"{100 * share:+.0f}")


def _signed(number: str) -> str:
    """With a minus sign instead of a hyphen."""
    return number.replace("-", "\u2212")


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.2g}"
