"""What a model's tokenizer puts before every text, such as a token that says that a text begins.

Some models (Gemma is one) were never shown a text without it, and predict next to nothing where it is missing. So whatever is made of plain text
for a model begins with it: what judges it, what calibrates it, what is timed, and what users ask.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SAMPLE = "The sea is blue."
"""Any text has the same prefix; a tokenizer may treat an empty one otherwise."""


def text_prefix(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The ids that a tokenizer puts before any text, without those that it puts behind one; none for most byte-pair tokenizers.

    Its `tokenizer.json` alone decides, as in transformers: `add_bos_token` in `tokenizer_config.json` only says what was written there.

    Args:
        tokenizer: Of a model's `tokenizer.json`.
    """
    plain: list[int] = tokenizer.encode(SAMPLE, add_special_tokens=False).ids
    whole: list[int] = tokenizer.encode(SAMPLE, add_special_tokens=True).ids
    places = (place for place in range(len(whole) - len(plain) + 1) if whole[place : place + len(plain)] == plain)
    return tuple(whole[: next(places, 0)])


def begun(ids: Sequence[int], prefix: Sequence[int]) -> list[int]:
    """A text's ids behind a prefix, which it gets only once: a text may say it itself, as a rendered conversation does."""
    return [*prefix, *unbegun(ids, prefix)]


def unbegun(ids: Sequence[int], prefix: Sequence[int]) -> list[int]:
    """A text's ids without the prefix, where they begin with it."""
    return list(ids[len(prefix) :] if tuple(ids[: len(prefix)]) == tuple(prefix) else ids)


def fitted(ids: Sequence[int], most: int, prefix: Sequence[int]) -> list[int]:
    """The end of a text that is too long, behind the prefix if it began with that.

    Args:
        ids: The text's.
        most: How many may be left.
        prefix: The tokenizer's.
    """
    if len(ids) <= most:
        return list(ids)
    kept = list(prefix) if len(prefix) < most and tuple(ids[: len(prefix)]) == tuple(prefix) else []
    return [*kept, *ids[len(ids) - most + len(kept) :]]
