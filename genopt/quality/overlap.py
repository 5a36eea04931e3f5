"""Whether two sets of texts share passages: by hashes of normalised n-grams.

A technique that calibrates on text that also evaluates it looks better than it is. Whole documents are seldom copied
letter by letter, so what is compared are runs of 13 words, whatever their case and punctuation: the measure with which
contamination of test sets is looked for (Brown et al., "Language Models are Few-Shot Learners", 2020, appendix C).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

WORDS = 13
"""Words of an n-gram; a shorter text is one by itself."""
SHARED = 0.2
"""Share of a document's n-grams that stand elsewhere from which on it counts as shared; quotations stay below."""

_WORD = re.compile(r"\w+")


def grams(text: str) -> frozenset[int]:
    """Hashes of a text's n-grams; they are comparable within one process."""
    words = _WORD.findall(text.casefold()) or text.split()
    return frozenset(hash(tuple(words[place : place + WORDS])) for place in range(max(1, len(words) - WORDS + 1)))


def shared_documents(one: Iterable[str], other: Iterable[str]) -> tuple[list[str], list[str]]:
    """The documents of each set of which a good part stands in the other set."""
    first, second = ([(text, grams(text)) for text in side] for side in (one, other))
    in_first, in_second = (frozenset().union(*(found for _, found in side)) for side in (first, second))
    return [text for text, found in first if is_shared(found, in_second)], [text for text, found in second if is_shared(found, in_first)]


def distinct(texts: Sequence[str]) -> list[str]:
    """The texts, in order, without those of which a good part stands in longer ones."""
    seen: set[int] = set()
    kept: list[int] = []
    for place in sorted(range(len(texts)), key=lambda place: (-len(texts[place]), place)):
        found = grams(texts[place])
        if not is_shared(found, seen):
            kept.append(place)
            seen |= found
    return [texts[place] for place in sorted(kept)]


def apart(texts: Sequence[str], others: Sequence[str]) -> list[str]:
    """The texts without those that share passages with the others, by `shared_documents` in either direction.

    Between distinct texts that is rare: one that quotes many others, a little of each.
    """
    elsewhere: frozenset[int] = frozenset().union(*map(grams, others))
    kept = [text for text in texts if not is_shared(grams(text), elsewhere)]
    while any(shared_documents(others, kept)):
        quoted = frozenset().union(*map(grams, shared_documents(others, kept)[0]))
        kept.remove(max(kept, key=lambda text: len(grams(text) & quoted)))
    return kept


def is_shared(found: frozenset[int], elsewhere: frozenset[int] | set[int]) -> bool:
    """Whether a good part of a document's n-grams stands elsewhere."""
    return len(found & elsewhere) >= SHARED * len(found)
