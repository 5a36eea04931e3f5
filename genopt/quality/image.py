"""Judges images against the original's of the same prompts and seeds.

The gated ratio is the mean score of the candidate's images over the original's, by whatever scorer the user has: CLIP, a
classifier, a function. It has a paired interval, since both made the same pictures, and one that resamples prompts, since
images of one prompt are damaged alike. How far the pictures differ is reported beside it and decides nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from pydantic import JsonValue

from genopt.measure.statistics import LEVEL, RESAMPLES, Array, stretched
from genopt.plan import Quality, Verdict
from genopt.quality.image_difference import Image, mean_differences
from genopt.quality.image_scorers import ImageScorer

LEAST_PAIRS = 8
"""Fewer pairs of images decide nothing."""
LEAST_PROMPTS = 8
"""Images of fewer prompts accept nothing, however many and alike they are: what one prompt suffers, none of so few may show."""
IMPLAUSIBLE_RATIO = 1.5
"""A candidate whose images score this much better than the original's was scored wrongly, or makes other images."""
BLANK = 1.0
"""An image whose pixels deviate less than this from their mean, of 255, shows nothing."""


def judge_images(
    prompts: Sequence[str], originals: Sequence[Image], candidates: Sequence[Image], scorer: ImageScorer, *, bar: float, seed: int
) -> Quality:
    """The verdict on a candidate's images.

    Accepts when the 95 % interval's lower end is at or above the bar, rejects when the upper end is below it, and is
    inconclusive between. Missing, blank or unscorable images are anomalous.

    Args:
        prompts: One per pair of images.
        originals: The original's images.
        candidates: The candidate's, of the same prompts and seeds in the same order.
        scorer: What says how good an image is.
        bar: Least ratio that is good enough.
        seed: Seed of the resampling.
    """
    if len(originals) != len(candidates) or not originals:
        return anomalous(scorer.name, len(candidates), f"{len(candidates)} images were made where the original made {len(originals)}")
    blank = sum(is_blank(image) for image in candidates) - sum(is_blank(image) for image in originals)
    details: dict[str, JsonValue] = {"pairs": len(originals), **mean_differences(list(zip(originals, candidates, strict=True)))}
    if blank > 0:
        return anomalous(scorer.name, len(candidates), f"{blank} images are blank that the original’s are not", details)
    return compare_image_scores(
        scorer.name, prompts, scorer.score(prompts, originals), scorer.score(prompts, candidates), bar=bar, seed=seed, details=details
    )


def compare_image_scores(
    metric: str, prompts: Sequence[str], originals: Sequence[float], candidates: Sequence[float], *, bar: float, seed: int,
    details: dict[str, JsonValue] | None = None, reject_error: float = (1 - LEVEL) / 2,
) -> Quality:  # fmt: skip
    """As `judge_images`, on scores.

    Args:
        metric: What is scored.
        prompts: One per image.
        originals: Scores of the original's images.
        candidates: Scores of the candidate's, in the same order.
        bar: Least ratio that is good enough.
        seed: Seed of the resampling.
        details: What the record says besides.
        reject_error: One-sided error of a rejection, where it is smaller than that of the reported interval because there are more looks.
    """
    before, after = np.asarray(originals, float), np.asarray(candidates, float)
    facts: dict[str, JsonValue] = dict(details or {})
    problem = _unusable(len(prompts), before, after)
    if problem is not None:
        return anomalous(metric, len(after), problem, facts)
    facts |= {"score_original": float(before.mean()), "score_candidate": float(after.mean())}
    ratio, (low, high) = float(after.mean() / before.mean()), ratio_interval(prompts, before, after, seed, LEVEL)
    surely = max(high, ratio_interval(prompts, before, after, seed, 1 - 2 * reject_error)[1]) if high < bar else high
    verdict, reason = _verdict(len(after), len(set(prompts)), ratio, low, surely, bar)
    if verdict == "anomalous":
        facts["anomaly"] = reason
    return Quality(metric=metric, ratio=ratio, ci_low=low, ci_high=high, n=len(after), verdict=verdict, details={**facts, "reason": reason})


def ratio_interval(prompts: Sequence[str], before: Array, after: Array, seed: int, level: float) -> tuple[float, float]:
    """Paired cluster bootstrap of the ratio of means; everything possible for a single prompt.

    All images of a drawn prompt come together (Davison and Hinkley, "Bootstrap Methods and their Application", 1997, section
    3.8; Field and Welsh, "Bootstrapping clustered data", JRSS B 69, 2007), and the interval is stretched as one of so many
    prompts. With 8 images of each and a correlation of 0.3 between the damage of two images of one prompt, an interval that
    drew images one by one accepted 13 % of 3,000 simulated candidates at the bar, with 10 prompts as with 26. This one accepts
    2.8 and 2.8 % (10 and 26 prompts) without correlation, and 3.3 and 2.9 % with it, where damage is normal; where a few
    prompts suffer most (exponential damage), 4.2 and 4.1 %, and 6.4 and 4.7 %.

    Args:
        prompts: One per image.
        before: Scores of the original's images.
        after: Scores of the candidate's.
        seed: Seed of the resampling.
        level: Two-sided confidence.
    """
    names, places = np.unique(np.asarray(prompts), return_inverse=True)
    count = len(names)
    if count < 2:
        return 0.0, IMPLAUSIBLE_RATIO
    sums = (np.bincount(places, scores, count) for scores in (before, after))
    rows = np.random.default_rng(seed).integers(0, count, size=(RESAMPLES, count))
    drawn, kept = (np.maximum(side[rows].sum(axis=1), 1e-12) for side in sums)
    value = math.log(max(float(after.sum()), 1e-12) / float(before.sum()))
    low, high = stretched(value, np.log(kept / drawn), count, level)
    return math.exp(max(low, -50.0)), math.exp(min(high, 50.0))


def _verdict(pairs: int, prompts: int, ratio: float, low: float, high: float, bar: float) -> tuple[Verdict, str]:
    if ratio > IMPLAUSIBLE_RATIO:
        return "anomalous", f"its images score {ratio:.2f} times as much as the original’s, more than faster ones can honestly gain"
    if pairs < LEAST_PAIRS:
        return "inconclusive", f"{pairs} pairs of images are too few to decide on (at least {LEAST_PAIRS}); give more prompts"
    if high >= bar and prompts < LEAST_PROMPTS:
        return "inconclusive", too_few_prompts(prompts)
    if low >= bar:
        return "accept", f"even the lower end of the interval, {low:.4f}, holds the bar of {bar:g}"
    if high < bar:
        return "reject", f"even the upper end of the interval, {high:.4f}, is below the bar of {bar:g}"
    return "inconclusive", f"the interval, {low:.4f} to {high:.4f}, contains the bar of {bar:g}"


def too_few_prompts(prompts: int) -> str:
    """Why images that may be good enough are not accepted."""
    return f"{prompts} prompts are too few to accept on (at least {LEAST_PROMPTS}), as others may suffer what these do not; give more prompts"


def _unusable(prompts: int, before: Array, after: Array) -> str | None:
    if not prompts == len(before) == len(after) or not prompts:
        return f"{len(after)} images were scored where the original has {len(before)}"
    if not (np.isfinite(before).all() and np.isfinite(after).all()):
        return "a score is not a finite number"
    if (before < 0).any() or (after < 0).any():
        return "a score is negative, so that a ratio means nothing; shift the scorer to start at 0"
    return "the original’s images score nothing" if before.mean() <= 0 else None


def is_blank(image: Image) -> bool:
    """Whether an image shows nothing."""
    return bool(image.astype(np.float64).std() < BLANK)


def anomalous(metric: str, count: int, reason: str, details: dict[str, JsonValue] | None = None) -> Quality:
    """A verdict on images that cannot be judged, or not be believed."""
    facts: dict[str, JsonValue] = {**(details or {}), "anomaly": reason, "reason": reason}
    return Quality(metric=metric, ratio=0.0, ci_low=0.0, ci_high=0.0, n=count, verdict="anomalous", details=facts)
