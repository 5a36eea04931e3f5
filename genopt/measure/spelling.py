"""How long made prompts are to a server: its tokenizer may take words apart into bytes, and its template adds to them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from statistics import fmean

from genopt.measure.load_spec import ENGLISH, WORDS_PER_TOKEN, Spelling, passages

Count = Callable[[str, int], Awaitable[int | None]]
"""Tokens of a prompt, which has a number; None where nobody tells."""

LEAST_WORDS, MOST_WORDS = 32, 256
"""Words of the passages that are counted: fewer tell little, and more may not fit into a small context."""
FEWEST = 0.5
"""Tokens of a word that are believed: a server that cuts long prompts counts fewer, and would be sent ever longer ones."""
FIRST = 2**32
"""Number of the first of these prompts; requests have smaller ones, so that none is asked twice."""


async def spelling_of(tokens: int, count: Count, *, seed: int) -> Spelling:
    """What is counted of a made prompt with a single word and of two longer ones; `ENGLISH` where nobody tells, or too few to be believed.

    Args:
        tokens: How long prompts are wanted.
        count: Whoever knows.
        seed: Of the prompts.
    """
    words = min(MOST_WORDS, max(LEAST_WORDS, round(tokens * WORDS_PER_TOKEN)))
    counts: list[int] = []
    for number, length in enumerate((1, words, words), start=FIRST):
        found = await count(passages(length, seed=seed)(number), number)
        if found is None:
            return ENGLISH
        counts.append(found)
    per_word = (fmean(counts[1:]) - counts[0]) / (words - 1)
    return Spelling(tokens_per_word=per_word, around=counts[0] - per_word) if per_word >= FEWEST else ENGLISH
