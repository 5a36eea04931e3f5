"""Makes and keeps the images of variants, one at a time, so that stopping loses at most one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from genopt.compare.answers import ANSWER_LIMIT_S, AnswerProgress, Setup, kept_answers, log_of
from genopt.compare.prompts import MOST_PROMPTS
from genopt.compare.variants import Variant
from genopt.engines.images import ImageRequest
from genopt.errors import DataError
from genopt.plan import JsonValue
from genopt.process import ImageProcess
from genopt.quality.comparison import ComparisonFolder, ImageAnswer
from genopt.store.files import write_atomically
from genopt.tasks.base import session_options
from genopt.tasks.image_data import evaluation_prompts

USUAL = 20
"""Prompts that are asked where the user gives none."""


class ImageAnswers:
    """See `genopt.compare.answers.Answers`: the same prompt and seed for both variants.

    Args:
        setup: With what they are made.

    Raises:
        DataError: The prompts cannot be used, or are more than people can vote on.
    """

    def __init__(self, setup: Setup) -> None:
        found, source = evaluation_prompts(Path(setup.model_folder), None if setup.prompts is None else str(setup.prompts))
        if setup.prompts is not None and len(found) > MOST_PROMPTS:
            raise DataError(f"{setup.prompts} has more than {MOST_PROMPTS} prompts, and people vote on every one; give a shorter file.")
        self._setup = setup
        self.prompts: Sequence[str] = found if setup.prompts is not None else found[:USUAL]
        self.settings: dict[str, JsonValue] = {"prompts": source, "seeds": "the number of the prompt"}

    def digest(self, variant: Variant) -> str:
        """See `Answers.digest`."""
        content = {"plan": variant.plan.identity(), "artifact": variant.artifact.digest, "model": self._setup.model_digest}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def of(self, variant: Variant, folder: ComparisonFolder, progress: AnswerProgress) -> list[ImageAnswer]:
        """See `Answers.of`."""
        kept = kept_answers(self._setup.run, variant, self.digest(variant))
        requests = {_file(kept, prompt, seed): ImageRequest(prompt=prompt, seed=seed) for seed, prompt in enumerate(self.prompts)}
        missing = [path for path in requests if not path.is_file()]
        if missing:
            done = len(requests) - len(missing)
            progress(variant.name, done=done, of=len(requests))
            with self._session(variant) as session:
                for count, path in enumerate(missing, start=done + 1):
                    (made,) = session.generate([requests[path]])
                    write_atomically(path, made.png)
                    progress(variant.name, done=count, of=len(requests))
        return [folder.add_image(path.read_bytes()) for path in requests]

    def _session(self, variant: Variant) -> ImageProcess:
        options = session_options(variant.plan, self._setup.threads)
        threads = options["threads"]
        return ImageProcess(
            variant.plan.engine, Path(variant.artifact.path), options, log=log_of(self._setup.run, variant), timeout_s=ANSWER_LIMIT_S,
            threads=threads if isinstance(threads, int) else None, environment=self._setup.environment,
        )  # fmt: skip


def _file(kept: Path, prompt: str, seed: int) -> Path:
    return kept / f"{seed:03d}-{hashlib.sha256(prompt.encode()).hexdigest()[:12]}.png"
