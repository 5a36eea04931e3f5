"""How far several raters agree with each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from genopt.plan import Record


class Agreement(Record):
    """Agreement on the questions that two or more raters judged.

    Attributes:
        share: Share of pairs of raters, over all such questions, that said the same.
        alpha: Krippendorff's alpha: 1 is perfect, 0 what chance gives; None where everybody always said the same.
        pairs: Number of those pairs.
    """

    share: float
    alpha: float | None
    pairs: int


def agreement(units: Iterable[Sequence[str]]) -> Agreement | None:
    """Pairwise agreement and Krippendorff's nominal alpha, which allows for missing judgements.

    alpha = 1 - observed / expected disagreement, from the matrix of coincidences (Krippendorff, "Computing Krippendorff's
    Alpha-Reliability", 2011).

    Args:
        units: Per question what its raters said, each rater once.

    Returns:
        None where no question has two judgements.
    """
    pairable = [unit for unit in units if len(unit) >= 2]
    if not pairable:
        return None
    totals: Counter[str] = Counter()
    agreeing, coincidences, pairs = 0, 0.0, 0
    for unit in pairable:
        counts = Counter(unit)
        totals.update(counts)
        same = sum(number * (number - 1) for number in counts.values())
        agreeing += same // 2
        pairs += len(unit) * (len(unit) - 1) // 2
        coincidences += same / (len(unit) - 1)
    count = sum(totals.values())
    expected = 1 - sum(number * (number - 1) for number in totals.values()) / (count * (count - 1))
    observed = 1 - coincidences / count
    return Agreement(share=agreeing / pairs, alpha=1 - observed / expected if expected > 0 else None, pairs=pairs)
