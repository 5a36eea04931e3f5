"""Trains a smaller model that was given beside the original, for a short while, to predict what the original predicts (see `distill`)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from genopt.errors import InfeasibleError
from genopt.models.given import GivenParams
from genopt.models.headers import read_json, weights
from genopt.plan import JsonValue, parse_settings
from genopt.search.footprint import Footprint
from genopt.techniques.base import Progress, Transform, TransformContext
from genopt.techniques.data_parallel import Team, run
from genopt.techniques.distillation_params import DistillParams

if TYPE_CHECKING:
    from genopt.techniques.distillation import Texts

WEIGHTS = "model.safetensors"


class DistillGivenParams(DistillParams, GivenParams):
    """Those of `distill`, and the model that is trained."""


class DistillGiven(Transform):
    """See `genopt.techniques.base.Transform`."""

    name = "distill_given"
    version = 4
    phase = 30
    requires = frozenset({"hf"})
    excludes = frozenset({"quantized", "sparse"})
    needs_calibration = True
    gpu = "spread"

    @classmethod
    def check(cls, source: Path, params: dict[str, JsonValue]) -> None:
        """See `Transform.check`."""
        parse_settings(DistillGivenParams, params, cls.name)

    @staticmethod
    def footprint(before: Footprint, params: dict[str, JsonValue]) -> Footprint:
        """See `Transform.footprint`: how much smaller the given model is cannot be told from its digest."""
        return before.risked(0.3)

    @classmethod
    def apply(cls, source: Path, destination: Path, params: dict[str, JsonValue], context: TransformContext, progress: Progress) -> None:
        """See `Transform.apply`."""
        from genopt.techniques.distillation import patience_of, texts_of

        chosen = parse_settings(DistillGivenParams, params, cls.name)
        original, folder = Path(context.original), context.given_folder(chosen.given)
        require_same_vocabulary(original, folder)
        texts = texts_of(context.calibration, chosen)
        run(_train, folder, destination, texts, chosen, context, progress, patience_s=patience_of(chosen, context))


def _train(
    team: Team, folder: Path, destination: Path, texts: Texts, chosen: DistillGivenParams, context: TransformContext, progress: Progress
) -> None:  # fmt: skip
    from genopt.models.checkpoint import load_model, save_model
    from genopt.techniques.distillation import taught

    original = Path(context.original)
    teacher, student = taught(team, folder, texts, chosen, context, progress)
    if team.rank == 0:
        model = load_model(folder)
        model.load_state_dict(student.state_dict())  # rounds to the checkpoint's precision
        model.generation_config = teacher.generation_config  # it learned to end as the original does
        save_model(model, original, destination)


def require_same_vocabulary(original: Path, folder: Path) -> None:
    """Refuses a folder that holds no language model, or one whose token ids are not the original's.

    Raises:
        InfeasibleError: With what is different.
        ModelError: A file is corrupt.
    """
    from tokenizers import Tokenizer

    if not (folder / "config.json").is_file() or not weights(folder, (WEIGHTS,))[1]:
        raise InfeasibleError(f"{folder} has no config.json with {WEIGHTS}; save the student with transformers' save_pretrained.")
    wanted, found = (_vocabulary_size(read_json(one / "config.json")) for one in (original, folder))
    if wanted != found:
        raise InfeasibleError(f"{folder} has a vocabulary of {found} tokens, the original {wanted}; give a smaller model of the same family.")
    files = [one / "tokenizer.json" for one in (original, folder)]
    if all(file.is_file() for file in files):
        ours, theirs = (Tokenizer.from_file(str(file)).get_vocab() for file in files)
        if ours != theirs:
            raise InfeasibleError(f"{folder} gives tokens other ids than the original does; give a smaller model of the same family.")


def _vocabulary_size(config: dict[str, Any]) -> Any:
    return config.get("text_config", config).get("vocab_size")
