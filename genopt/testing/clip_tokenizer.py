"""Tokenizers for text encoders of diffusion pipelines, from vocabularies of a few words."""

from __future__ import annotations

from collections.abc import Sequence
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

    merges: list[Any] = list(dict.fromkeys(pair for word in words for pair in _merges(word)))  # annotated as texts, read as pairs
    characters = byte_characters()
    tokens = [*characters, *(character + WORD_END for character in characters), *dict.fromkeys("".join(pair) for pair in merges), START, END]
    return CLIPTokenizer(vocab={token: number for number, token in enumerate(tokens)}, merges=merges, model_max_length=context)


def _merges(word: str) -> list[tuple[str, str]]:
    """The pairs that join a word's characters from left to right."""
    parts = [*word[:-1], word[-1] + WORD_END]
    return [("".join(parts[:end]), parts[end]) for end in range(1, len(parts))]
