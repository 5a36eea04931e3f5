"""What prompts say of a digit."""

from __future__ import annotations

import itertools
import string

import torch
from digits import BOLD, PLAIN, THIN
from torch import Tensor
from transformers import CLIPTokenizer

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
STYLES = {THIN: ("thin", "light"), PLAIN: (), BOLD: ("bold", "heavy")}
PLAIN_TEXTS = (
    "a handwritten {word}", "a handwritten {numeral}", "the digit {word}", "the digit {numeral}", "the number {word}", "handwritten digit {numeral}",
    "a picture of the number {word}", "a drawing of a {word}", "{word}", "{numeral}",
)  # fmt: skip
STYLED_TEXTS = (
    "a {style} handwritten {word}",
    "a {style} {word}",
    "the digit {numeral} in {style} ink",
    "a {style} handwritten {numeral}",
    "{style} {numeral}",
)


def captions(digit: int, style: int) -> list[str]:
    """Every text that fits a digit of a style; half of them speak of the style where there is something to say."""
    names = {"word": DIGITS[digit], "numeral": str(digit)}
    styled = [text.format(style=word, **names) for text, word in itertools.product(STYLED_TEXTS, STYLES[style])]
    return [text.format(**names) for text in PLAIN_TEXTS] + styled


def evaluation_prompts() -> list[tuple[str, int]]:
    """Prompts with the digit that each asks for, in turn through the digits."""
    texts = ("a handwritten {word}", "the digit {word}", "a thin handwritten {word}", "a bold handwritten {word}", "the number {word}")
    return [(text.format(word=word), digit) for text in texts for digit, word in enumerate(DIGITS)]


def words() -> list[str]:
    """Every word of the captions, once."""
    texts = " ".join(text for digit in range(10) for style in STYLES for text in captions(digit, style))
    return sorted({word for word in texts.split() if word[0] in string.ascii_lowercase})


def caption_tokens(tokenizer: CLIPTokenizer) -> Tensor:
    """Token ids by digit, style and number of the caption."""
    longest = max(len(captions(0, style)) for style in STYLES)
    table = [
        [_tokens(tokenizer, list(itertools.islice(itertools.cycle(captions(digit, style)), longest))) for style in sorted(STYLES)]
        for digit in range(10)
    ]
    return torch.stack([torch.stack(row) for row in table])


def empty_tokens(tokenizer: CLIPTokenizer) -> Tensor:
    """Token ids of no prompt, which guidance steers away from."""
    return _tokens(tokenizer, [""])[0]


def _tokens(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    ids: Tensor = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    return ids
