"""Decides about a candidate's images at a few looks at growing evidence: by a scorer, or without one by fidelity alone.

A candidate that makes the same images needs no scorer. One that makes others may be as good; only a scorer can say so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from pydantic import JsonValue

from genopt.measure.statistics import LEVEL
from genopt.plan import Quality
from genopt.quality.boundaries import nominal_errors
from genopt.quality.image import LEAST_PAIRS, LEAST_PROMPTS, anomalous, compare_image_scores, is_blank, ratio_interval, too_few_prompts
from genopt.quality.image_difference import Image, differences
from genopt.quality.image_scorers import ImageScorer

SAME_SSIM = 0.98
"""Images with at least this structural similarity on average, and none far from it, pass for the same."""
SAME_WORST = 0.9
"""Least similarity of any of them."""
REJECT_ERROR = 0.025
"""Chance of rejecting a candidate at the bar, over all looks together; only the last look accepts."""


@dataclass
class Pairs:
    """Images of a candidate beside the original's of the same prompts and seeds, as far as they were made.

    Attributes:
        prompts: One per pair.
        originals: The original's images.
        candidates: The candidate's.
        before: Scores of the original's; none without a scorer.
        after: Scores of the candidate's.
        differences: How far each pair differs, by measure.
    """

    prompts: list[str] = field(default_factory=list)
    originals: list[Image] = field(default_factory=list)
    candidates: list[Image] = field(default_factory=list)
    before: list[float] = field(default_factory=list)
    after: list[float] = field(default_factory=list)
    differences: list[dict[str, float]] = field(default_factory=list)

    def add(self, prompts: Sequence[str], originals: Sequence[Image], candidates: Sequence[Image], scorer: ImageScorer | None) -> None:
        """Adds pairs and scores them."""
        self.prompts += prompts
        self.originals += originals
        self.candidates += candidates
        self.differences += [differences(*pair) for pair in zip(originals, candidates, strict=True)]
        if scorer is not None:
            self.before += scorer.score(prompts, originals)
            self.after += scorer.score(prompts, candidates)

    @property
    def ssim(self) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """Structural similarity of each pair."""
        return np.array([item["ssim"] for item in self.differences])

    @property
    def are_same(self) -> bool:
        """Whether the candidate's images pass for the original's own."""
        return bool(self.differences) and float(self.ssim.mean()) >= SAME_SSIM and float(self.ssim.min()) >= SAME_WORST

    def facts(self) -> dict[str, JsonValue]:
        """What the record says besides the ratio."""
        means = {name: float(np.mean([item[name] for item in self.differences])) for name in (self.differences[0] if self.differences else {})}
        return {"pairs": len(self.prompts), **means, "worst_ssim": float(self.ssim.min()) if self.differences else 0.0, "same_images": self.are_same}


class ImageGate:
    """The gate.

    Args:
        bar: Least ratio that is good enough; without a scorer least mean structural similarity.
        looks: Cumulative pairs at each look, increasing; the last one may accept, all may reject.
        seed: Seed of the resampling.
        scorer: What says how good an image is.
    """

    def __init__(self, bar: float, looks: Sequence[int], *, seed: int, scorer: ImageScorer | None) -> None:
        self._bar, self.looks, self._seed, self.scorer = bar, tuple(looks), seed, scorer
        self._errors = nominal_errors(REJECT_ERROR, self.looks)

    def decide(self, pairs: Pairs, look: int) -> Quality:
        """Judges a candidate on all pairs up to a look.

        Args:
            pairs: As many as the look has.
            look: Index into `looks`.
        """
        facts = pairs.facts()
        blank = sum(map(is_blank, pairs.candidates)) - sum(map(is_blank, pairs.originals))
        if blank > 0:
            name = "ssim" if self.scorer is None else self.scorer.name
            return anomalous(name, len(pairs.candidates), f"{blank} images are blank that the original’s are not", facts)
        found = self._by_fidelity(pairs, facts) if self.scorer is None else self._by_score(self.scorer, pairs, facts, look)
        if found.verdict == "accept" and look < len(self.looks) - 1:
            early = f"accepting takes {self.looks[-1]} pairs of images; this look had {len(pairs.candidates)}"
            return found.model_copy(update={"verdict": "inconclusive", "details": {**found.details, "reason": early}})
        return found

    def _by_score(self, scorer: ImageScorer, pairs: Pairs, facts: dict[str, JsonValue], look: int) -> Quality:
        """Accepts and rejects by the interval of the scores' ratio."""
        return compare_image_scores(
            scorer.name, pairs.prompts, pairs.before, pairs.after, bar=self._bar, seed=self._seed,
            details={**facts, **scorer.facts(pairs.prompts)}, reject_error=self._errors[look],
        )  # fmt: skip

    def _by_fidelity(self, pairs: Pairs, facts: dict[str, JsonValue]) -> Quality:
        """Accepts what makes the same images; nothing else can be said without a scorer."""
        values = pairs.ssim
        ratio, prompts = float(values.mean()), len(set(pairs.prompts))
        # An image is wholly like itself, so that its similarity is a ratio, too.
        low, high = ratio_interval(pairs.prompts, np.ones(len(values)), values, self._seed, LEVEL)
        if len(values) < LEAST_PAIRS:
            verdict, reason = "inconclusive", f"{len(values)} pairs of images are too few to decide on (at least {LEAST_PAIRS}); give more prompts"
        elif pairs.are_same and prompts < LEAST_PROMPTS:
            verdict, reason = "inconclusive", too_few_prompts(prompts)
        elif low >= self._bar and pairs.are_same:
            verdict, reason = "accept", f"the images are the same: even the lower end of their mean SSIM, {low:.4f}, holds the bar of {self._bar:g}"
        else:
            verdict, reason = (
                "inconclusive",
                (f"the images differ (SSIM {ratio:.3f}) and nothing says whether they are as good; give a scorer with --scorer"),
            )
        return Quality.model_validate({
            "metric": "ssim", "ratio": ratio, "ci_low": low, "ci_high": max(ratio, min(1.0, high)), "n": len(values), "verdict": verdict,
            "details": {**facts, "reason": reason},
        })  # fmt: skip
