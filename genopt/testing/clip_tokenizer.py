"""Tokenizers for text encoders of diffusion pipelines, from vocabularies of a few words."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from genopt.testing.tiny_tokenizer import byte_characters

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"


def clip_tokenizer(words: Sequence[str], *, context: int) -> CLIPTokenizer:
    """A byte-level CLIP tokenizer that reads any text and gives each of these words one token.

    Args:
        words: In lower case.
        context: Tokens to which prompts are padded and cut.
    """
    from transformers import CLIPTokenizer

    merges: list[Any] = list(_merges(words))  # annotated as texts, read as pairs
    characters = byte_characters()
    tokens = [*characters, *(character + WORD_END for character in characters), *dict.fromkeys("".join(pair) for pair in merges), START, END]
    return CLIPTokenizer(vocab={token: number for number, token in enumerate(tokens)}, merges=merges, model_max_length=context)


def _merges(words: Sequence[str]) -> list[tuple[str, str]]:
    """The pairs that join each word's characters, most urgent first; no later word's pairs come before those that an earlier one needs."""
    ranks: dict[tuple[str, str], int] = {}
    for word in words:
        parts = [*word[:-1], word[-1] + WORD_END]
        while len(parts) > 1:
            pairs = list(pairwise(parts))
            pair = min(pairs, key=lambda known: ranks.get(known, len(ranks)))  # the first one where none is known
            ranks.setdefault(pair, len(ranks))
            place = pairs.index(pair)
            parts[place : place + 2] = ["".join(pair)]
    return list(ranks)
