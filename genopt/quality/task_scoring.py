"""Marks a model's answers to a user's questions: 1 for right, 0 for wrong, in the order of the items."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from genopt.engines.base import WRITTEN_AFTER_TEXT, GenerationRequest, TextSession
from genopt.models.text_prefix import fitted
from genopt.plan import Record
from genopt.quality.task_items import TaskItem

BATCH = 8
"""Answers that are generated at a time."""
LEAST_ANSWER, SPARE = 16, 2.0
"""New tokens for an answer: at least so many, and this many times what the expected one has."""

_WORD = re.compile(r"\w+")


class Text(Protocol):
    """How texts become token ids and back.

    Attributes:
        prefix: What the tokenizer puts before every text, see `genopt.models.text_prefix`.
    """

    prefix: tuple[int, ...]

    def encode(self, text: str, special: bool) -> list[int]:
        """Ids of a text, behind the prefix or without it; a text that begins with it does not get it twice."""

    def question(self, text: str) -> list[int]:
        """Ids of a question in the model's chat template; of a plain text where it has none."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids."""


class Marks(Record):
    """Scores of a model.

    Attributes:
        scores: One per item.
        shortened: Items whose prompt was cut at its beginning, because it is longer than the model's context.
    """

    scores: tuple[float, ...]
    shortened: int


def mark(
    session: TextSession, items: Sequence[TaskItem], text: Text, *, context: int, stop_ids: Sequence[int], progress: Callable[[str], None]
) -> Marks:
    """Lets a model answer all items.

    A choice is right where its tokens, after the prompt, are more probable together than those of every other choice (as
    `acc` of lm-evaluation-harness). An answer is right where the greedy continuation contains its words in a row,
    whatever their case, accents and punctuation.

    Args:
        session: The model.
        items: The questions.
        text: Its tokenizer.
        context: Tokens that the model can hold.
        stop_ids: End-of-sequence tokens.
        progress: Told how far it is.
    """
    scores: dict[int, float] = {}
    shortened: set[int] = set()
    answers: list[tuple[int, GenerationRequest]] = []
    for place, item in enumerate(items):
        if item.choices:
            pairs = [_continued(item.prompt, choice, text) for choice in item.choices]
            room = context - WRITTEN_AFTER_TEXT
            cut = [(fitted(ids, room, text.prefix), count) for ids, count in pairs]
            if any(len(ids) > room for ids, _ in pairs):
                shortened.add(place)
            found = session.score([ids for ids, _ in cut]).log_probs
            sums = [sum(values[-count:]) for values, (_, count) in zip(found, cut, strict=True)]
            scores[place] = float(max(range(len(sums)), key=sums.__getitem__) == item.label)
        else:
            new = min(context // 2, max(LEAST_ANSWER, int(SPARE * len(text.encode(item.answer or "", False)))))
            ids = text.question(item.prompt)
            if len(ids) > context - new:
                shortened.add(place)
            kept = fitted(ids, context - new, text.prefix)
            request = GenerationRequest(prompt_ids=tuple(kept), max_new_tokens=new, stop_token_ids=tuple(stop_ids))
            answers.append((place, request))
        if place % 50 == 49:
            progress(f"{len(scores)} of {len(items)} questions")
    for batch in _batches(answers):
        for (place, _), found_answer in zip(batch, session.generate([request for _, request in batch]), strict=True):
            scores[place] = float(contains(text.decode(found_answer.token_ids), items[place].answer or ""))
        progress(f"{len(scores)} of {len(items)} questions")
    return Marks(scores=tuple(scores[place] for place in range(len(items))), shortened=len(shortened))


def contains(text: str, answer: str) -> bool:
    """Whether a text has the words of an answer in a row; an answer without words must stand in it as it is."""
    words, wanted = normalised(text), normalised(answer)
    if not wanted:
        return answer.strip() in text
    return any(words[place : place + len(wanted)] == wanted for place in range(len(words) - len(wanted) + 1))


def normalised(text: str) -> list[str]:
    """Words without case and accents."""
    plain = "".join(letter for letter in unicodedata.normalize("NFKD", text.casefold()) if not unicodedata.combining(letter))
    return _WORD.findall(plain)


def _continued(prompt: str, choice: str, text: Text) -> tuple[list[int], int]:
    """Ids of a prompt with a choice, and how many at the end belong to the choice."""
    gap = "" if prompt[-1:].isspace() or choice[:1].isspace() else " "
    before, whole = text.encode(prompt, True), text.encode(f"{prompt}{gap}{choice}", True)
    shared = next((place for place, (one, other) in enumerate(zip(before, whole, strict=False)) if one != other), min(len(before), len(whole)))
    return whole, max(1, len(whole) - max(1, shared))


def _batches(requests: list[tuple[int, GenerationRequest]]) -> Iterator[list[tuple[int, GenerationRequest]]]:
    for start in range(0, len(requests), BATCH):
        yield requests[start : start + BATCH]
