"""From a finished run to a comparison that people can vote on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

from genopt.compare.answers import AnswerProgress, Answers, Setup
from genopt.compare.image_answers import ImageAnswers
from genopt.compare.text_answers import TextAnswers
from genopt.compare.variants import choose_variants
from genopt.measure.limits import usable_cores
from genopt.quality.comparison import Comparison, ComparisonFolder, Question, comparison_folder
from genopt.report.assemble import assemble
from genopt.store.run_folder import RunFolder

MAX_TOKENS = 256
MAKERS: Mapping[str, Callable[[Setup], Answers]] = {"text": TextAnswers, "image": ImageAnswers}
"""By modality."""


def prepare_comparison(
    folder: RunFolder, *, a: str | None, b: str | None, prompts: Path | None, max_tokens: int, progress: AnswerProgress
) -> ComparisonFolder:
    """Makes sure that both variants' answers are in the run folder; generates those that are missing.

    The same variants, prompts and limit are the same comparison, whose votes go on where they stopped.

    Args:
        folder: The run's folder.
        a: Name of the first variant; the original unless given.
        b: Name of the second; the winner unless given.
        prompts: File of prompts, or None for the built-in ones.
        max_tokens: Most new tokens of an answer, where it has such.
        progress: Told how far the answers are.

    Raises:
        SpecError: The variants cannot be compared.
        DataError: The prompts cannot be used.
        GenoptError: An engine failed.
    """
    report = assemble(folder)
    first, second = choose_variants(report, a, b)
    started = next((event for event in folder.events() if event["event"] == "run_started"), {})
    answers = MAKERS[report.model.modality](Setup(
        run=folder.path, model_folder=report.model.path, model_digest=report.model.digest, prompts=prompts, max_tokens=max_tokens,
        threads=usable_cores(), environment={} if started.get("cluster", {}).get("gpus") else {"CUDA_VISIBLE_DEVICES": ""},
    ))  # fmt: skip
    digests = [answers.digest(variant) for variant in (first, second)]
    digest = hashlib.sha256(json.dumps([digests, list(answers.prompts)]).encode()).hexdigest()
    found = comparison_folder(folder.path, first.name, second.name, digest)
    if not found.exists():
        both = [answers.of(variant, found, progress) for variant in (first, second)]
        found.write(Comparison(
            a=first.name, b=second.name, settings=answers.settings,
            questions=tuple(
                Question(id=f"q{number:03d}", prompt=prompt, a=one, b=other)
                for number, (prompt, one, other) in enumerate(zip(answers.prompts, *both, strict=True), start=1)
            ),
        ))  # fmt: skip
    return found
