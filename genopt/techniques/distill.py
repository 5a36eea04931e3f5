"""Trains a damaged model for a short while to predict what the original predicts (see `genopt.techniques.distillation`)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from genopt.plan import JsonValue, parse_settings
from genopt.search.footprint import Footprint
from genopt.techniques.base import Progress, Transform, TransformContext
from genopt.techniques.data_parallel import Team, run
from genopt.techniques.distillation_params import DistillParams

if TYPE_CHECKING:
    from genopt.techniques.distillation import Texts


class Distill(Transform):
    """See `genopt.techniques.base.Transform`."""

    name = "distill"
    version = 5
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
        from genopt.techniques.distillation import patience_of, texts_of

        chosen = parse_settings(DistillParams, params, cls.name)
        run(_train, source, destination, texts_of(context.calibration, chosen), chosen, context, progress, patience_s=patience_of(chosen, context))


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
