"""What a comparison needs of the variants' answers, whatever they are made of."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from genopt.compare.variants import Variant
from genopt.plan import JsonValue, Record
from genopt.quality.comparison import FOLDER, ComparisonFolder, ImageAnswer, TextAnswer

ANSWER_LIMIT_S = 900.0
"""Longest wait for an engine to open or to answer once."""


class Setup(Record):
    """With what answers are made.

    Attributes:
        run: The run folder.
        model_folder: The original model.
        model_digest: Digest of that folder.
        prompts: The user's file of prompts; None takes those that fit the model.
        max_tokens: Most new tokens of an answer, where it has such.
        threads: CPU threads of an engine.
        environment: Variables of the engines' processes.
    """

    run: Path
    model_folder: str
    model_digest: str
    prompts: Path | None
    max_tokens: int
    threads: int
    environment: dict[str, str] = {}


class AnswerProgress(Protocol):
    """Told how far the answers are."""

    def __call__(self, variant: str, *, done: int, of: int) -> None:
        """`done` of `of` answers of a variant are there; the first call comes before its engine is opened."""


class Answers(Protocol):
    """Answers of one modality, made of a `Setup`."""

    prompts: Sequence[str]
    """What is asked, each once."""
    settings: dict[str, JsonValue]
    """How, for the record."""

    def digest(self, variant: Variant) -> str:
        """Over what decides a variant's answers but the prompts."""

    def of(self, variant: Variant, folder: ComparisonFolder, progress: AnswerProgress) -> Sequence[TextAnswer | ImageAnswer]:
        """One answer per prompt; what was made earlier in the same way is taken from the run folder.

        Args:
            variant: What answers.
            folder: The comparison's, for answers that are files.
            progress: Told how far it is.

        Raises:
            DataError: A prompt does not fit the model.
            GenoptError: The engine refused, failed, died or took too long.
        """


def kept_answers(run: Path, variant: Variant, digest: str, ending: str = "") -> Path:
    """Where a run keeps the answers of a variant."""
    return run / FOLDER / "answers" / f"{_slug(variant.name)}-{digest[:12]}{ending}"


def log_of(run: Path, variant: Variant) -> Path:
    """The log of the engine that answers."""
    return run / "logs" / f"{_slug(variant.name)}.compare.log"


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-.")[:60]
