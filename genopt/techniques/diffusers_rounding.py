"""What techniques share that round matrices of a pipeline with torchao: those of its denoiser, its text encoders, or both.

Layers that are small, and those before the first and behind the last block, stay as they are: they cost little, and rounding
them shows most.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from genopt.errors import InfeasibleError
from genopt.plan import JsonValue, Record, parse_settings
from genopt.search.footprint import MATRICES, Footprint
from genopt.search.space import Tunable
from genopt.techniques.base import Progress, TransformContext
from genopt.techniques.pipeline_files import copy_pipeline, denoiser_of, is_inner, load_component, text_encoders_of
from genopt.techniques.torchao_schemes import round_matrices
from genopt.techniques.torchao_technique import TorchaoTechnique

if TYPE_CHECKING:
    from torch import nn
JUDGED, JUDGED_STEPS = "a", 2
"""Prompt and steps of the image on which matrices are judged; every pipeline reads so short a prompt."""
MODULATION = ".norm"
"""In the paths of matrices that say how a block scales and shifts what it reads: they see one row per image, and products of 8-bit integers on GPUs
need 17."""


class PipelineRoundingParams(Record):
    """Parameters that all of these techniques have.

    Attributes:
        components: What is rounded. Text encoders take memory rather than time: they run once per image.
        least_features: Matrices with fewer inputs or outputs stay as they are.
        kept: Matrices of the denoiser that stay as they are besides: those which change its predictions most when each alone is rounded.
    """

    components: Literal["denoiser", "text_encoders", "all"] = "denoiser"
    least_features: int = Field(default=32, ge=1)
    kept: int = Field(default=0, ge=0)


class PipelineRounding(TorchaoTechnique):
    """See `genopt.techniques.base.Transform`; subclasses say into what."""

    version = 4
    requires = frozenset({"diffusers"})
    tunables: tuple[Tunable, ...] = ()
    what = "8-bit weights"
    settings: type[PipelineRoundingParams] = PipelineRoundingParams

    @classmethod
    def footprint(cls, before: Footprint, params: dict[str, JsonValue]) -> Footprint:
        """See `Transform.footprint`: steps run the denoiser alone."""
        rounded = parse_settings(cls.settings, params, cls.name).components != "text_encoders"
        return (before.stored(cls.bits(params), families=MATRICES) if rounded else before).risked(cls.chance)

    @classmethod
    def apply(cls, source: Path, destination: Path, params: dict[str, JsonValue], context: TransformContext, progress: Progress) -> None:
        """See `Transform.apply`."""
        from genopt.models import quantized

        chosen = parse_settings(cls.settings, params, cls.name)
        names = {"denoiser": [denoiser_of(source)], "text_encoders": text_encoders_of(source)}
        wanted = [name for kind, found in names.items() if chosen.components in (kind, "all") for name in found]
        copy_pipeline(source, destination, without=wanted)
        for name in wanted:
            component = load_component(source, name, cls.dtype).to(cls.device())
            matrices = cls._matrices(component, chosen)
            if chosen.kept and name in names["denoiser"]:
                progress(f"rounding {len(matrices)} matrices of the {name} one by one")
                matrices -= cls._sensitive(source, matrices, params, context.seed)
            if not matrices:
                raise InfeasibleError(
                    f"The {name} has no matrix of {chosen.least_features} features or more within its blocks that can be rounded to {cls.what}; "
                    "give a smaller least_features."
                )
            progress(f"rounding {len(matrices)} matrices of the {name} to {cls.what}")
            round_matrices(component, cls.scheme(params), matrices)
            quantized.save(component, destination / name)

    @classmethod
    def _sensitive(cls, source: Path, matrices: frozenset[str], params: dict[str, JsonValue], seed: int) -> frozenset[str]:
        from genopt.models.pipeline_loading import denoiser_name, load_pipeline
        from genopt.techniques.denoiser_calls import most_sensitive, record

        pipeline = load_pipeline(source, cls.dtype)
        denoiser = pipeline.components[denoiser_name(pipeline.components)]
        calls = record(pipeline, denoiser, [JUDGED], steps=JUDGED_STEPS, seed=seed)
        return most_sensitive(denoiser, calls, matrices, cls.scheme(params), parse_settings(cls.settings, params, cls.name).kept)

    @classmethod
    def _matrices(cls, component: nn.Module, chosen: PipelineRoundingParams) -> frozenset[str]:
        from genopt.models.pipeline_loading import matrices

        return frozenset(
            path
            for path, module in matrices(component).items()
            if is_inner(path) and min(module.in_features, module.out_features) >= chosen.least_features and cls.takes(path, module, chosen)
        )

    @staticmethod
    def takes(path: str, matrix: nn.Linear, chosen: PipelineRoundingParams) -> bool:
        """Whether the format can hold a matrix of a component."""
        return True
