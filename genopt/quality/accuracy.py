"""Whether a candidate solves as many tasks as the original, item by item.

Both get the same items, so only those count on which they differ. A percent is hard to see: with 5 % of the answers
changed it takes thousands of items. What a set cannot tell is said, with the number of items that it would take.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Literal

import numpy as np

from genopt.measure.proportions import net_interval, sign_test
from genopt.measure.statistics import LEVEL, RESAMPLES, Array, stretched
from genopt.plan import Record

POWER = 0.8
"""Chance of seeing that a candidate holds the bar, at the number of items that is named."""


class TaskResult(Record):
    """A candidate on one task.

    Attributes:
        task: Name.
        metric: What an item scores, such as `acc`.
        n: Items.
        original: Mean score of the original.
        candidate: Mean score of the candidate.
        ratio: Their ratio, with its 95 % interval; 0 where the original scores nothing.
        ci_low: Lower end.
        ci_high: Upper end.
        lost: Items on which only the original is right.
        gained: Items on which only the candidate is right.
        p_value: McNemar's exact test of "lost and gained are equally likely".
        verdict: `accept` where the interval holds the bar, `reject` where it misses it; `anomalous` where scores cannot be compared.
        reason: Why, in words.
        digest: Of the items, or an empty text.
    """

    task: str
    metric: str
    n: int
    original: float
    candidate: float
    ratio: float
    ci_low: float
    ci_high: float
    lost: int
    gained: int
    p_value: float
    verdict: Literal["accept", "reject", "inconclusive", "anomalous"]
    reason: str
    digest: str = ""


def compare_scores(
    task: str, metric: str, original: Sequence[float], candidate: Sequence[float], *, bar: float, seed: int, digest: str = ""
) -> TaskResult:
    """Holds a candidate's scores against the original's of the same items.

    Right or wrong is judged with Tango's score interval of the paired difference, which does not collapse where a few
    items differ or none; other scores with a paired bootstrap. The interval of the ratio is 1 plus that of the difference
    over the original's mean. McNemar's p-value is exact (McNemar, Psychometrika 12, 1947).

    Args:
        task: Its name.
        metric: What is scored.
        original: One score per item, larger is better.
        candidate: Likewise.
        bar: Least ratio that is good enough.
        seed: Seed of the resampling.
        digest: Digest of the items.
    """
    one, other = np.asarray(original, float), np.asarray(candidate, float)
    facts: dict[str, object] = {"task": task, "metric": metric, "n": len(one), "digest": digest}
    if one.shape != other.shape or not len(one):
        return _anomalous(facts, f"{len(other)} items were scored where the original has {len(one)}")
    if not (np.isfinite(one).all() and np.isfinite(other).all()):
        return _anomalous(facts, "a score is not a finite number")
    before, after = float(one.mean()), float(other.mean())
    facts |= {"original": before, "candidate": after}
    if before <= 0:
        return _anomalous(facts, "the original scores nothing, so that nothing can be lost")
    lost, gained = int((one > other).sum()), int((other > one).sum())
    low, high = _difference_interval(one, other, seed)
    ratio, ci_low, ci_high = after / before, max(0.0, 1 + low / before), 1 + high / before
    shown = f"{100 * after:.1f} against {100 * before:.1f} ({lost} lost, {gained} gained of {len(one)})"
    verdict: Literal["accept", "reject", "inconclusive"]
    if ci_low >= bar:
        verdict, reason = "accept", f"{shown}: at least {ci_low:.4f} of the original’s"
    elif ci_high < bar:
        verdict, reason = "reject", f"{shown}: at most {ci_high:.4f} of the original’s, below the bar of {bar:g}"
    else:
        needed = items_needed(before, max(lost + gained, 1) / len(one), bar)
        verdict = "inconclusive"
        reason = f"{shown}: between {ci_low:.4f} and {ci_high:.4f} of the original’s; it takes about {needed:,} items to tell"
    return TaskResult.model_validate({
        **facts, "ratio": ratio, "ci_low": ci_low, "ci_high": ci_high, "lost": lost, "gained": gained, "p_value": sign_test(lost, gained),
        "verdict": verdict, "reason": reason,
    })  # fmt: skip


def items_needed(score: float, flips: float, bar: float) -> int:
    """Items with which a candidate as good as the original would be accepted with `POWER`.

    n = (z_alpha + z_beta)^2 * flips / margin^2 with the margin (1 - bar) * score: the paired comparison of Miller, "Adding
    Error Bars to Evals", 2024, with one-sided 2.5 %.

    Args:
        score: The original's mean score.
        flips: Share of the items on which both differ.
        bar: Least ratio that is good enough, below 1.
    """
    if bar >= 1:
        return 10**9
    reach = NormalDist().inv_cdf((1 + LEVEL) / 2) + NormalDist().inv_cdf(POWER)
    return math.ceil(reach**2 * flips / ((1 - bar) * score) ** 2)


def _difference_interval(one: Array, other: Array, seed: int) -> tuple[float, float]:
    """95 % interval of the mean of `other - one`."""
    if set(np.unique(np.concatenate([one, other])).tolist()) <= {0.0, 1.0}:
        return net_interval(int((other > one).sum()), int((one > other).sum()), len(one))
    differences = other - one
    if len(differences) < 2:  # one item tells nothing, which a report must be able to hold
        reach = max(1.0, float(np.abs(np.concatenate([one, other])).max()))
        return -reach, reach
    rows = np.random.default_rng(seed).integers(0, len(differences), size=(RESAMPLES, len(differences)))
    return stretched(float(differences.mean()), differences[rows].mean(axis=1), len(differences), LEVEL)


def _anomalous(facts: dict[str, object], reason: str) -> TaskResult:
    values = {"original": 0.0, "candidate": 0.0, **facts}
    return TaskResult.model_validate({
        **values, "ratio": 0.0, "ci_low": 0.0, "ci_high": 0.0, "lost": 0, "gained": 0, "p_value": 1.0, "verdict": "anomalous", "reason": reason,
    })  # fmt: skip
