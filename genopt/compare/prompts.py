"""What the variants are asked: a list of everyday prompts, or the user's own."""

from __future__ import annotations

from pathlib import Path

from genopt.errors import DataError
from genopt.measure.prompts import iterate_prompts

MOST_PROMPTS = 500
"""People vote on every one of them."""
LONGEST_LINE = 100_000
"""Characters."""

EVERYDAY: tuple[str, ...] = (
    "What is machine learning? Explain it to someone who has never used a computer for more than e-mail.",
    "Write a short, polite e-mail to my landlord: the kitchen tap has been dripping for a week.",
    'Rewrite this so that it sounds friendlier: "Your request was rejected because the form is incomplete."',
    "Summarize in one sentence: The town library closes for three weeks in July. The heating is replaced, the reading room gets new windows, and "
    "books can be returned at the town hall meanwhile.",
    "I have eggs, rice, spinach and an onion. Suggest a simple dinner and tell me how to cook it.",
    "A train leaves at 9:40 and arrives at 13:15. How long does the journey take? Show how you worked it out.",
    "Write a Python function that returns the second largest number of a list, and explain it briefly.",
    "List five things to check before buying a used bicycle.",
    'Translate into French: "Where can I buy a ticket for the museum?"',
    "What are the advantages and disadvantages of working from home? Give two of each.",
    "Tell a very short story about a lighthouse keeper who receives an unexpected letter.",
    'Is this review positive or negative, and why? "The room was clean, but we could not sleep because of the noise from the bar."',
    "Take the names and dates out of this text and list them: Anna moved to Lisbon on 3 March 2019, and her brother Paul followed in May 2021.",
    "Why is the sky blue during the day and red in the evening?",
    "Plan a rainy afternoon for two children of six and nine, at home and without screens.",
    "My friend failed an important exam. What could I say to her?",
    "Explain the difference between a virus and a bacterium in three sentences.",
    "Write four lines of verse about the first snow of the year.",
    'Answer with a JSON object with the keys "city" and "country": In which city does the Eiffel Tower stand?',
    "I sleep badly and feel tired in the morning. Give me three habits to try, with one sentence each.",
)
"""Explaining, writing, rewriting, summarizing, arithmetic, code, lists, translation, weighing up, fiction, classification, extraction, formats."""


def load_prompts(path: Path | None) -> tuple[str, ...]:
    """The prompts, each once, in the order given: the same one asked twice would count as more evidence than it is.

    Args:
        path: A file as `genopt.measure.prompts` reads it, with plain prompts; None takes the built-in list.

    Raises:
        DataError: The file cannot be used, has conversations, or more prompts than people can vote on.
    """
    if path is None:
        return EVERYDAY
    found: dict[str, None] = {}
    for prompt in iterate_prompts(path, LONGEST_LINE):
        if not isinstance(prompt, str):
            raise DataError(f"{path} has conversations, and people compare answers to single prompts; give each a text under `prompt`.")
        found[prompt.strip()] = None
        if len(found) > MOST_PROMPTS:
            raise DataError(f"{path} has more than {MOST_PROMPTS} prompts, and people vote on every one; give a shorter file.")
    return tuple(found)
