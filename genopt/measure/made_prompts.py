"""English prompts of the length that is asked for, as whoever answers them counts it.

Tokenizers differ, and some take words apart into bytes; a chat template adds tokens of its own.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from statistics import fmean

import numpy as np
from pydantic import Field

from genopt.plan import Record

WORDS_PER_TOKEN = 0.7
"""Roughly, for English in byte-pair vocabularies."""
LEAST_WORDS, MOST_WORDS = 32, 256
"""Words of the passages that are counted: fewer tell little, and more may not fit into a small context."""
FEWEST_TOKENS = 0.5
"""Of a word, which is believed: a server that cuts long prompts counts fewer, and would be sent ever longer ones."""
FIRST_COUNTED = 2**32
"""Number of the first prompt that is counted; requests have smaller ones, so that none is asked twice."""

CountTokens = Callable[[str, int], Awaitable[int | None]]
"""Tokens of a prompt, which has a number; None where nobody tells."""


class Tokenization(Record):
    """How many tokens a made prompt has.

    Attributes:
        tokens_per_word: Of its passage.
        around: Besides: of the question after the passage, and of the chat template.
    """

    tokens_per_word: float = Field(default=1 / WORDS_PER_TOKEN, gt=0)
    around: float = 0.0


USUAL = Tokenization()
"""What is assumed where nobody tells."""


async def tokenization_of(tokens: int, count: CountTokens, *, seed: int) -> Tokenization:
    """What is counted of a made prompt with a single word and of two longer ones; `USUAL` where nobody tells, or too few to be believed.

    Args:
        tokens: How long prompts are wanted.
        count: Whoever knows.
        seed: Of the prompts.
    """
    words = min(MOST_WORDS, max(LEAST_WORDS, round(tokens * WORDS_PER_TOKEN)))
    counts: list[int] = []
    for number, length in enumerate((1, words, words), start=FIRST_COUNTED):
        found = await count(passages(length, seed=seed)(number), number)
        if found is None:
            return USUAL
        counts.append(found)
    per_word = (fmean(counts[1:]) - counts[0]) / (words - 1)
    return Tokenization(tokens_per_word=per_word, around=counts[0] - per_word) if per_word >= FEWEST_TOKENS else USUAL


def made_prompts(tokens: int, *, seed: int, tokenization: Tokenization = USUAL) -> Callable[[int], str]:
    """Prompts of about as many tokens, by their number; each number has its own.

    Args:
        tokens: Of a prompt, with what is around its passage.
        seed: Same seed, same prompts.
        tokenization: How they are counted.
    """
    return passages(max(1, round((tokens - tokenization.around) / tokenization.tokens_per_word)), seed=seed)


def passages(length: int, *, seed: int) -> Callable[[int], str]:
    """Prompts with a passage of Python's help texts, from another place for every number.

    The passage comes first, so that a cache of common beginnings helps no request.

    Args:
        length: Words of the passage.
        seed: Same seed, same prompts.
    """
    from pydoc_data.topics import topics

    words = " ".join(topics[name] for name in sorted(topics)).split()

    def prompt(number: int) -> str:
        start = int(np.random.default_rng((seed, number)).integers(len(words)))
        passage = " ".join(words[(start + offset) % len(words)] for offset in range(length))
        return f"{passage}\n\nExplain this in your own words."

    return prompt
