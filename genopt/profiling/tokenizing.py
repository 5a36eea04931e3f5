"""How long a model's tokenizer takes: for a prompt, and for the text of one new token."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from genopt.models.tokenizer import TOKENIZER, load_tokenizer
from genopt.plan import Record

REPEATS = 20


class TokenizerTimes(Record):
    """Median seconds; None where the model has no `tokenizer.json`.

    Attributes:
        prompt_s: Encoding the prompt's text.
        token_s: Decoding one token.
    """

    prompt_s: float | None = None
    token_s: float | None = None


def time_tokenizer(folder: Path, prompt_ids: Sequence[int]) -> TokenizerTimes:
    """Times the fast tokenizer of a model's folder on the prompt's own text.

    Args:
        folder: The model's.
        prompt_ids: Tokens of the prompt.
    """
    if not (folder / TOKENIZER).is_file():
        return TokenizerTimes()
    tokenizer = load_tokenizer(folder)
    text = tokenizer.decode(list(prompt_ids))
    return TokenizerTimes(prompt_s=_median_s(lambda: tokenizer.encode(text)), token_s=_median_s(lambda: tokenizer.decode([prompt_ids[-1]])))


def _median_s(run: Callable[[], object]) -> float:
    run()
    found = []
    for _ in range(REPEATS):
        before = time.perf_counter()
        run()
        found.append(time.perf_counter() - before)
    return statistics.median(found)
