"""A user's own questions with their expected answers, read from JSON lines and checked before anything is measured."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Self

from pydantic import Field, ValidationError, model_validator

from genopt.errors import DataError
from genopt.plan import Record
from genopt.quality.text_files import read_json_lines

LEAST_ITEMS = 10
"""Fewer say nothing about a percent."""
MOST_ITEMS = 100_000


class TaskItem(Record):
    """One question.

    Attributes:
        prompt: What is asked.
        answer: What a right answer contains; None where there are choices.
        choices: Continuations of which one is right.
        label: Index of the right one.
    """

    prompt: str = Field(min_length=1)
    answer: str | None = Field(default=None, min_length=1)
    choices: tuple[str, ...] = ()
    label: int | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if self.choices and self.answer is None:
            if self.label is None or not 0 <= self.label < len(self.choices) or len(set(self.choices)) < 2:
                raise ValueError("choices need a label that is the index or the text of one of at least two different choices")
        elif self.answer is None or self.choices or self.label is not None:
            raise ValueError("a prompt needs either an answer, or choices with a label")
        return self


class TaskItems(Record):
    """Questions with their origin.

    Attributes:
        items: Each prompt once.
        source: What the report names as their origin.
        digest: SHA-256 over all items in order.
        repeated: Items that were left out, because they say the same as an earlier one.
    """

    items: tuple[TaskItem, ...] = Field(min_length=LEAST_ITEMS)
    source: str
    digest: str
    repeated: int


def holds_items(path: Path) -> bool:
    """Whether a file is a list of questions rather than of texts: JSON lines whose first object has a `prompt` and is no plain text.

    Raises:
        DataError: Its first line is not JSON.
    """
    if path.suffix.lower() != ".jsonl" or not path.is_file():
        return False
    try:
        _, first = next(read_json_lines(path), (0, None))
    except (OSError, UnicodeDecodeError):
        return False  # whoever reads the texts says what is wrong
    return isinstance(first, dict) and "prompt" in first and "text" not in first and "messages" not in first


def read_items(path: Path) -> TaskItems:
    """Reads and checks questions: objects with `prompt` and one of `answer`, or `choices` with `label`; other keys are ignored.

    Raises:
        DataError: A line cannot be used, two lines contradict each other, or there are too few.
    """
    found: dict[str, tuple[int, TaskItem]] = {}
    repeated = 0
    for number, content in read_json_lines(path):
        item = _item(content, number, path)
        line, earlier = found.setdefault(item.prompt, (number, item))
        if line != number:
            if earlier != item:
                raise DataError(f"Lines {line} and {number} of {path} ask the same and expect different answers; keep one of them.")
            repeated += 1
        if len(found) > MOST_ITEMS:
            raise DataError(f"{path} has more than {MOST_ITEMS:,} questions; give a sample of them.")
    items = tuple(item for _, item in found.values())
    if len(items) < LEAST_ITEMS:
        raise DataError(f"{path} has {len(items)} different questions, and fewer than {LEAST_ITEMS} say nothing about a percent; give more.")
    digest = hashlib.sha256(json.dumps([item.model_dump(mode="json") for item in items]).encode()).hexdigest()
    return TaskItems(items=items, source=str(path), digest=digest, repeated=repeated)


def _item(content: object, number: int, path: Path) -> TaskItem:
    values = content if isinstance(content, dict) else {}
    known = {name: values[name] for name in ("prompt", "answer", "choices", "label") if values.get(name) is not None}
    choices, label = known.get("choices"), known.get("label")
    if isinstance(choices, list) and isinstance(label, str) and label in choices:
        known["label"] = choices.index(label)
    try:
        return TaskItem.model_validate(known)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = "".join(f"`{part}`: " for part in first["loc"][:1])
        said = where + first["msg"].removeprefix("Value error, ")
        raise DataError(f"Line {number} of {path} is no question that can be marked ({said}); mend or remove that line.") from None
