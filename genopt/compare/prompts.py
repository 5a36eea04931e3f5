"""What the variants are asked: a list of everyday prompts, or the user's own."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from genopt.errors import DataError

MOST_PROMPTS = 500
"""People vote on every one of them."""
LONGEST_LINE = 100_000
"""Characters; also keeps a file without line ends from being read whole."""

EVERYDAY: tuple[str, ...] = (
    "What is machine learning? Explain it to someone who has never used a computer for more than e-mail.",
    "Write a short, polite e-mail to my landlord: the kitchen tap has been dripping for a week.",
    "Rewrite this so that it sounds friendlier: \"Your request was rejected because the form is incomplete.\"",
    "Summarize in one sentence: The town library closes for three weeks in July. The heating is replaced, the reading room gets new windows, and "
    "books can be returned at the town hall meanwhile.",
    "I have eggs, rice, spinach and an onion. Suggest a simple dinner and tell me how to cook it.",
    "A train leaves at 9:40 and arrives at 13:15. How long does the journey take? Show how you worked it out.",
    "Write a Python function that returns the second largest number of a list, and explain it briefly.",
    "List five things to check before buying a used bicycle.",
    "Translate into French: \"Where can I buy a ticket for the museum?\"",
    "What are the advantages and disadvantages of working from home? Give two of each.",
    "Tell a very short story about a lighthouse keeper who receives an unexpected letter.",
    "Is this review positive or negative, and why? \"The room was clean, but we could not sleep because of the noise from the bar.\"",
    "Take the names and dates out of this text and list them: Anna moved to Lisbon on 3 March 2019, and her brother Paul followed in May 2021.",
    "Why is the sky blue during the day and red in the evening?",
    "Plan a rainy afternoon for two children of six and nine, at home and without screens.",
    "My friend failed an important exam. What could I say to her?",
    "Explain the difference between a virus and a bacterium in three sentences.",
    "Write four lines of verse about the first snow of the year.",
    "Answer with a JSON object with the keys \"city\" and \"country\": In which city does the Eiffel Tower stand?",
    "I sleep badly and feel tired in the morning. Give me three habits to try, with one sentence each.",
)
"""Explaining, writing, rewriting, summarizing, arithmetic, code, lists, translation, weighing up, fiction, classification, extraction, formats."""


def load_prompts(path: Path | None) -> tuple[str, ...]:
    """The prompts, each once, in the order given.

    Args:
        path: A `.txt` with one prompt a line, or a `.jsonl` with one object a line whose `prompt` it is; None takes the
            built-in list.

    Raises:
        DataError: The file cannot be used, or has no prompt or more than people can vote on.
    """
    if path is None:
        return EVERYDAY
    if path.suffix.lower() not in (".txt", ".jsonl"):
        raise DataError(f"{path} is neither .txt nor .jsonl; give one prompt a line, or a JSON object with a `prompt` a line.")
    try:
        with path.open(encoding="utf-8") as stream:
            found = _distinct(_parsed(path, _lines(path, stream)), path)
    except OSError as error:
        raise DataError(f"Cannot read the prompts {path} ({error.strerror}); give the path of a .txt or .jsonl file.") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}); convert it to UTF-8.") from None
    if not found:
        raise DataError(f"{path} has no prompts; write one a line.")
    return found


def _lines(path: Path, stream: IO[str]) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, with their numbers."""
    number = 0
    while line := stream.readline(LONGEST_LINE + 1):
        number += 1
        if len(line) > LONGEST_LINE:
            raise DataError(f"Line {number} of {path} is longer than {LONGEST_LINE} characters; give one prompt a line.")
        if line.strip():
            yield number, line.strip().removeprefix("\ufeff")


def _parsed(path: Path, lines: Iterable[tuple[int, str]]) -> Iterator[str]:
    for number, line in lines:
        yield _json_prompt(path, number, line) if path.suffix.lower() == ".jsonl" else line


def _json_prompt(path: Path, number: int, line: str) -> str:
    try:
        content = json.loads(line)
    except ValueError:
        raise DataError(f"Line {number} of {path} is not JSON; mend or remove it.") from None
    prompt = content.get("prompt") if isinstance(content, dict) else None
    if not isinstance(prompt, str) or not prompt.strip():
        raise DataError(f"Line {number} of {path} has no text under `prompt`; give every line a string there.")
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise DataError(f"Line {number} of {path} has half a character (a lone surrogate) in `prompt`; mend it.") from None
    return prompt.strip()


def _distinct(prompts: Iterable[str], path: Path) -> tuple[str, ...]:
    """Each prompt once: the same one asked twice would count as more evidence than it is."""
    found: dict[str, None] = {}
    for prompt in prompts:
        found[prompt] = None
        if len(found) > MOST_PROMPTS:
            raise DataError(f"{path} has more than {MOST_PROMPTS} prompts, and people vote on every one; give a shorter file.")
    return tuple(found)
