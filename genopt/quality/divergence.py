"""How far a candidate strays from the original: divergence, agreement, flips, and where it strays most.

None of it accepts a candidate: near the original, divergence does not rank quality. It shows what a likelihood hides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from genopt.plan import Record
from genopt.quality.reference import Compared

WORST = 3
"""Sequences that are shown."""
SPAN = 24
"""Choices that are shown of each."""
CONTEXT = 48
"""Tokens shown before them."""

Decode = Callable[[Sequence[int]], str]


class WorstSequence(Record):
    """Where a candidate strays most within a sequence: what both would have written next at each position of the text.

    Attributes:
        sequence: Its place in the evaluation set.
        kl: Mean divergence of the whole sequence, in nats per token.
        context: The text before.
        text: The text itself, token by token.
        original: The original's choices.
        candidate: The candidate's.
    """

    sequence: int
    kl: float
    context: str
    text: tuple[str, ...]
    original: tuple[str, ...]
    candidate: tuple[str, ...]


def summary(found: Compared, sequences: Sequence[Sequence[int]]) -> dict[str, JsonValue]:
    """Divergence in numbers; None where one is not finite.

    `kl_mean` and `kl_p99` are in nats per token. `top1_agreement` is the share of positions at which both prefer the same
    token. `flips_per_1000` counts the positions, of 1,000, at which exactly one of them prefers the token that the text
    has: flips in both directions, after Dutta et al., "Accuracy is Not All You Need", 2024.

    Args:
        found: The comparison.
        sequences: The compared sequences.
    """
    kl = np.concatenate([np.array(values) for values in found.kl])
    ours, theirs, text = (_flat(side) for side in (found.top_ids, found.reference_top_ids, [sequence[1:] for sequence in sequences]))
    return {
        "kl_mean": _finite(kl.mean()), "kl_p99": _finite(np.quantile(kl, 0.99)), "top1_agreement": float(np.mean(ours == theirs)),
        "flips_per_1000": float(1000 * np.mean((ours == text) != (theirs == text))),
    }  # fmt: skip


def worst(found: Compared, sequences: Sequence[Sequence[int]], decode: Decode) -> tuple[WorstSequence, ...]:
    """The sequences with the largest mean divergence, largest first; none of a candidate that gives no numbers.

    Args:
        found: The comparison.
        sequences: The compared sequences.
        decode: Text of token ids.
    """
    means = np.array([np.mean(values) for values in found.kl])
    if not np.isfinite(means).all():
        return ()
    return tuple(_shown(place, float(means[place]), found, sequences[place], decode) for place in np.argsort(-means, kind="stable")[:WORST].tolist())


def _shown(place: int, mean: float, found: Compared, sequence: Sequence[int], decode: Decode) -> WorstSequence:
    kl = np.array(found.kl[place])
    start = int(np.argmax(np.convolve(kl, np.ones(min(SPAN, len(kl))), mode="valid")))
    part = slice(start, start + SPAN)

    def pieces(ids: Sequence[int]) -> tuple[str, ...]:
        return tuple(decode([token]) for token in ids)

    return WorstSequence(
        sequence=place, kl=round(mean, 6), context=decode(sequence[max(0, start + 1 - CONTEXT) : start + 1]),
        text=pieces(sequence[1:][part]), original=pieces(found.reference_top_ids[place][part]), candidate=pieces(found.top_ids[place][part]),
    )  # fmt: skip


def _flat(rows: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    return np.array([token for row in rows for token in row], np.int64)


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
