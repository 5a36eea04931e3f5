"""Puts a smaller model that was given beside the original into an artifact, whose guesses the engine checks (speculative decoding).

Leviathan et al., "Fast Inference from Transformers via Speculative Decoding" (2023): a small model writes some tokens, the large one reads
them in one step and keeps those that it would have written itself, so that answers stay what they are.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from genopt.engines.vllm_options import DRAFT
from genopt.errors import InfeasibleError
from genopt.models.given import GivenParams
from genopt.models.headers import read_json, weight_files
from genopt.plan import JsonValue, parse_settings
from genopt.search.footprint import Footprint
from genopt.techniques.base import Progress, Transform, TransformContext


class AttachDraft(Transform):
    """See `genopt.techniques.base.Transform`."""

    name = "attach_draft"
    version = 2
    phase = 60
    requires = frozenset({"hf"})
    excludes = frozenset({DRAFT})
    adds = frozenset({DRAFT})

    @classmethod
    def check(cls, source: Path, params: dict[str, JsonValue]) -> None:
        """See `Transform.check`."""
        parse_settings(GivenParams, params, cls.name)

    @staticmethod
    def footprint(before: Footprint, params: dict[str, JsonValue]) -> Footprint:
        """See `Transform.footprint`: how many guesses are right is known afterwards."""
        return before

    @classmethod
    def apply(cls, source: Path, destination: Path, params: dict[str, JsonValue], context: TransformContext, progress: Progress) -> None:
        """See `Transform.apply`."""
        digest = parse_settings(GivenParams, params, cls.name).given
        folder = context.given_folder(digest)
        weights = weight_files(folder)
        if not (folder / "config.json").is_file() or not weights:
            raise InfeasibleError(f"{folder} has no config.json with safetensors; give a model in Hugging Face's format.")
        sizes = [read_json(one / "config.json").get("vocab_size") for one in (source, folder)]
        if sizes[0] != sizes[1]:
            raise InfeasibleError(f"{folder} knows {sizes[1]} tokens and the model {sizes[0]}; give a smaller model with the same tokenizer.")
        progress(f"attaching the smaller model {digest[:12]}")
        shutil.copytree(source, destination, dirs_exist_ok=True)
        (destination / DRAFT).mkdir()
        for path in (folder / "config.json", *weights, *folder.glob("model.safetensors.index.json")):
            shutil.copyfile(path, destination / DRAFT / path.name)
