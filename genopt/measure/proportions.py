"""Counts of yes and no: exact intervals and tests that hold for a handful of observations too."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist

from genopt.measure.statistics import LEVEL


def sign_test(wins: int, losses: int) -> float:
    """Two-sided exact p-value of "wins and losses are equally likely"; ties are left out beforehand.

    It is twice the smaller binomial tail, at most 1 (Conover, Practical Nonparametric Statistics, 3rd ed. 1999, 3.4). Below
    0.05 exactly when the 95 % `clopper_pearson` interval of the wins leaves one half out.
    """
    return min(1.0, 2 * binomial_tail(min(wins, losses), wins + losses, 0.5))


def clopper_pearson(successes: int, count: int, level: float = LEVEL) -> tuple[float, float]:
    """Exact interval of a proportion: its coverage is never below the level (Clopper and Pearson, Biometrika 26, 1934).

    Args:
        successes: Between 0 and `count`.
        count: Independent observations; without any, everything is possible.
        level: Two-sided confidence.

    Returns:
        Lower and upper end, in [0, 1].
    """
    error = (1 - level) / 2
    low = 0.0 if successes == 0 else _solve(lambda share: binomial_tail(count - successes, count, 1 - share) < error)
    high = 1.0 if successes == count else _solve(lambda share: binomial_tail(successes, count, share) > error)
    return low, high


def net_interval(wins: int, losses: int, count: int, level: float = LEVEL) -> tuple[float, float]:
    """Interval of (wins - losses) / count over paired judgements of which the rest are ties.

    Score interval of Tango, "Equivalence test and confidence interval for the difference in proportions for the
    paired-sample design", Statistics in Medicine 17, 1998. Unlike the sign test it counts a tie as evidence that both are
    alike. Its coverage is about the level on average and, from ten judgements on, at worst 4 points below 95 %.

    Args:
        wins: Judgements for one side.
        losses: Judgements for the other.
        count: All judgements, ties included; without any, everything is possible.
        level: Two-sided confidence.

    Returns:
        Lower and upper end, in [-1, 1].
    """
    if not count:
        return -1.0, 1.0
    reach = NormalDist().inv_cdf((1 + level) / 2)
    low = _solve(lambda share: _score(wins, losses, count, 2 * share - 1) > reach)
    high = _solve(lambda share: _score(wins, losses, count, 2 * share - 1) > -reach)
    return 2 * low - 1, 2 * high - 1


def _score(wins: int, losses: int, count: int, difference: float) -> float:
    """Tango's statistic of "the true difference is this one"; it falls with the difference."""
    surplus = wins - losses - count * difference
    a, b = 2 * count, (2 * count - wins + losses) * difference - wins - losses
    c = -losses * difference * (1 - difference)
    likeliest_loss = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
    variance = count * (2 * likeliest_loss + difference * (1 - difference))
    if variance <= 0:
        return math.copysign(math.inf, surplus) if surplus else 0.0
    return surplus / math.sqrt(variance)


def binomial_tail(most: int, count: int, share: float) -> float:
    """P(X <= most) for X successes in `count` trials of probability `share`."""
    if most >= count or share <= 0:
        return 1.0
    if share >= 1:
        return 0.0
    logs = [
        math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1) + k * math.log(share) + (count - k) * math.log1p(-share)
        for k in range(most + 1)
    ]
    return min(1.0, math.fsum(math.exp(value) for value in logs))


def _solve(is_below: Callable[[float], bool]) -> float:
    """The share up to which `is_below` holds, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if is_below(middle) else (low, middle)
    return (low + high) / 2
