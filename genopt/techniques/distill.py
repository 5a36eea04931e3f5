"""Trains a damaged model for a short while to predict what the original predicts (see `genopt.techniques.distillation`)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from genopt.plan import JsonValue, Record, parse_settings
from genopt.search.footprint import Footprint
from genopt.techniques.base import Progress, Transform, TransformContext
from genopt.techniques.data_parallel import Team, run

if TYPE_CHECKING:
    from genopt.techniques.distillation import Texts


class DistillParams(Record):
    """Parameters.

    Attributes:
        steps: Updates of the weights, each on one sequence, or on one for every GPU.
        time_s: Seconds after which training ends although steps are left.
        learning_rate: Peak of AdamW's learning rate.
        max_seq_length: Tokens per sequence.
        hidden_weight: Weight of the hidden states' distance beside the divergence of what is predicted; 0 leaves it out, as models do whose
            hidden states have another width than the original's.
        written_sequences: Sequences that the original writes itself, which are trained on in turn with calibration text.
    """

    steps: int = Field(default=1000, gt=0)
    time_s: float = Field(default=30.0, gt=0)
    learning_rate: float = Field(default=5e-5, gt=0)
    max_seq_length: int = Field(default=256, ge=8)
    hidden_weight: float = Field(default=0.0, ge=0)
    written_sequences: int = Field(default=0, ge=0)


class Distill(Transform):
    """See `genopt.techniques.base.Transform`."""

    name = "distill"
    version = 4
    phase = 30
    requires = frozenset({"hf"})
    excludes = frozenset({"quantized", "sparse"})
    needs_calibration = True
    gpu = "spread"

    @classmethod
    def check(cls, source: Path, params: dict[str, JsonValue]) -> None:
        """See `Transform.check`."""
        parse_settings(DistillParams, params, cls.name)

    @staticmethod
    def footprint(before: Footprint, params: dict[str, JsonValue]) -> Footprint:
        """See `Transform.footprint`: the shapes stay."""
        return before

    @classmethod
    def apply(cls, source: Path, destination: Path, params: dict[str, JsonValue], context: TransformContext, progress: Progress) -> None:
        """See `Transform.apply`."""
        from genopt.techniques.distillation import texts_of

        chosen = parse_settings(DistillParams, params, cls.name)
        run(_train, source, destination, texts_of(context.calibration, chosen), chosen, context, progress)


def _train(
    team: Team, source: Path, destination: Path, texts: Texts, chosen: DistillParams, context: TransformContext, progress: Progress
) -> None:  # fmt: skip
    from genopt.models.checkpoint import load_model, save_model
    from genopt.techniques.distillation import taught

    _, student = taught(team, source, texts, chosen, context, progress)
    if team.rank == 0:
        model = load_model(source)
        model.load_state_dict(student.state_dict())  # rounds to the checkpoint's precision
        save_model(model, source, destination)
