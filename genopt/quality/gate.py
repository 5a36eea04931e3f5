"""The likelihood gate: accepts or rejects a candidate with a bounded error rate, on as few tokens as it takes.

The quality ratio is exp(mean NLL of the reference - mean NLL of the candidate), that is perplexity of the
reference over perplexity of the candidate, on the same tokens. Sequences, not tokens, are the independent
units: both models see the same ones, so the interval is about paired differences per sequence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from genopt.errors import SpecError
from genopt.measure.statistics import LEVEL, RESAMPLES, Array, stretched, student_quantile
from genopt.plan import JsonValue, Quality, Verdict

IMPLAUSIBLE_RATIO = 1.05
"""A compressed model that predicts this much better than its original has most likely seen the text, or was scored wrongly."""
BOOTSTRAP_SEQUENCES = 20
"""Below this many sequences Student's interval is used, because the percentile bootstrap is then too narrow."""
LOG_LIMIT = 50.0
"""Ends of intervals are kept within exp(±50), so that every reported number is finite."""

LogProbs = Sequence[Sequence[float]]


class SequentialGate:
    """Decides at a few looks at growing evidence.

    The error rate `alpha` is spent over the looks by the Pocock-type function of Lan and DeMets, "Discrete
    sequential boundaries for clinical trials", Biometrika 70, 1983: alpha * ln(1 + (e - 1) t) at the share t of
    the last look's tokens. What a look adds to that sum is the two-sided error of its interval. By the union
    bound all looks together err with probability at most alpha; the exact boundaries would be a little wider
    open, at the price of numerical integration.

    Args:
        bar: Least ratio that is good enough.
        looks: Cumulative evaluation tokens at which a decision may be asked for, increasing.
        alpha: Chance of any wrong decision for a candidate that lies at the bar, both sides together.
        seed: Seed of the resampling.

    Raises:
        SpecError: The looks are not increasing positive numbers, or alpha is not a probability.
    """

    def __init__(self, bar: float, looks: Sequence[int], alpha: float = 0.05, seed: int = 0) -> None:
        self.bar = bar
        self.looks = tuple(looks)
        self._seed = seed
        if not self.looks or self.looks[0] < 1 or any(a >= b for a, b in pairwise(self.looks)):
            raise SpecError(f"The looks {list(self.looks)} are not increasing numbers of tokens; give for example 2048, 8192.")
        if not 0 < alpha < 1:
            raise SpecError(f"The error rate {alpha:g} is not a probability; give a number such as 0.05.")
        spent = [alpha * math.log1p((math.e - 1) * look / self.looks[-1]) for look in self.looks]
        self._levels = tuple(1 - (now - before) for before, now in pairwise([0.0, *spent]))

    def decide(self, reference: LogProbs, candidate: LogProbs, look: int, *, agreement: float) -> Quality:
        """Judges a candidate on all tokens up to a look.

        Accepts when the interval's lower end, at the look's level and at 95 %, is at or above the bar; rejects when
        the upper end at the look's level is below it; is inconclusive between, and always on a single sequence,
        which has no interval. The reported interval is the 95 % one. Implausible or unusable scores are anomalous;
        unusable ones are reported with a ratio of 0.

        Args:
            reference: Natural log-probabilities of the reference, one sequence of values per text window.
            candidate: Those of the candidate for the same tokens.
            look: Index into `looks`.
            agreement: Share of positions at which both prefer the same token.
        """
        facts: dict[str, JsonValue] = {
            "top1_agreement": agreement if math.isfinite(agreement) else None,
            "look": look, "sequences": len(candidate), "level": self._levels[look],
        }  # fmt: skip
        problem = _unusable(reference, candidate)
        if problem is not None:
            facts["anomaly"] = problem
            return _quality(0.0, (0.0, 0.0), sum(map(len, candidate)), "anomalous", facts)
        paired = _Paired.of(reference, candidate)
        shown = paired.interval(LEVEL, self._seed)
        facts |= {"nll_reference": paired.nll_reference, "nll_candidate": paired.nll_candidate, "delta_nll": -paired.log_ratio}
        ratio = _exp(paired.log_ratio)
        verdict = self._verdict(shown, paired.interval(self._levels[look], self._seed))
        if ratio > IMPLAUSIBLE_RATIO:
            facts["anomaly"] = f"each token is {ratio:.2f} times as likely as under the original, more than a compressed model can honestly gain"
            verdict = "anomalous"
        return _quality(ratio, shown, paired.tokens, verdict, facts)

    def _verdict(self, shown: tuple[float, float], at_look: tuple[float, float]) -> Verdict:
        if min(at_look[0], shown[0]) >= self.bar:
            return "accept"
        return "reject" if at_look[1] < self.bar else "inconclusive"


@dataclass(frozen=True)
class _Paired:
    """Per sequence: tokens and how much more likely the candidate finds them, in nats."""

    gains: Array
    lengths: Array
    nll_reference: float
    nll_candidate: float

    @classmethod
    def of(cls, reference: LogProbs, candidate: LogProbs) -> _Paired:
        before, after = (np.array([math.fsum(sequence) for sequence in side]) for side in (reference, candidate))
        lengths = np.array([float(len(sequence)) for sequence in reference])
        tokens = lengths.sum()
        return cls(after - before, lengths, float(-before.sum() / tokens), float(-after.sum() / tokens))

    @property
    def tokens(self) -> int:
        return int(self.lengths.sum())

    @property
    def log_ratio(self) -> float:
        return float(self.gains.sum() / self.lengths.sum())

    def interval(self, level: float, seed: int) -> tuple[float, float]:
        """Two-sided interval of the ratio; everything possible for a single sequence."""
        count = len(self.gains)
        if count < 2:
            return 0.0, max(_exp(self.log_ratio), IMPLAUSIBLE_RATIO)
        low, high = self._student(level) if count < BOOTSTRAP_SEQUENCES else self._bootstrap(level, seed)
        return _exp(low), _exp(high)

    def _student(self, level: float) -> tuple[float, float]:
        """Paired t interval of the token-weighted mean difference.

        The variance is that of a ratio of sums, linearized (Cochran, Sampling Techniques, 3rd ed. 1977, 6.4);
        for equally long sequences it is the ordinary paired t interval. Like every t interval it errs more often
        than it says where the differences of few sequences are strongly skewed.
        """
        count = len(self.gains)
        residuals = self.gains - self.log_ratio * self.lengths
        error = math.sqrt(count / (count - 1) * float((residuals**2).sum())) / float(self.lengths.sum())
        reach = student_quantile(level, count - 1) * error
        return self.log_ratio - reach, self.log_ratio + reach

    def _bootstrap(self, level: float, seed: int) -> tuple[float, float]:
        """Percentile interval over resampled whole sequences."""
        count = len(self.gains)
        rows = np.random.default_rng(seed).integers(0, count, size=(RESAMPLES, count))
        return stretched(self.log_ratio, self.gains[rows].sum(axis=1) / self.lengths[rows].sum(axis=1), count, level)


def _unusable(reference: LogProbs, candidate: LogProbs) -> str | None:
    """Why no ratio can be computed, if so."""
    if not any(map(len, reference)):
        return "no tokens were scored"
    if list(map(len, reference)) != list(map(len, candidate)):
        return f"scores are missing: {sum(map(len, candidate))} tokens where the original has {sum(map(len, reference))}"
    for who, side in (("original", reference), ("candidate", candidate)):
        if not all(math.isfinite(value) for sequence in side for value in sequence):
            return f"the {who} gave a log-probability that is not a finite number"
    return None


def _exp(value: float) -> float:
    return math.exp(min(LOG_LIMIT, max(-LOG_LIMIT, value)))


def _quality(ratio: float, interval: tuple[float, float], tokens: int, verdict: Verdict, details: dict[str, JsonValue]) -> Quality:
    return Quality(metric="likelihood_ratio", ratio=ratio, ci_low=interval[0], ci_high=interval[1], n=tokens, verdict=verdict, details=details)
