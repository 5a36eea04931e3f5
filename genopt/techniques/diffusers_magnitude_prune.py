"""Sets the smallest weights of a denoiser's matrices and convolutions to zero, which changes quality and not speed; see `MagnitudePrune`."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from genopt.plan import JsonValue, Record, parse_settings
from genopt.search.footprint import Footprint
from genopt.techniques.base import Progress, Transform, TransformContext
from genopt.techniques.pipeline_files import copy_pipeline, is_inner, load_denoiser, save_component
from genopt.techniques.smallest import zero_smallest


class PruneParams(Record):
    """Parameters.

    Attributes:
        sparsity: Share of the weights of each matrix and convolution that become zero.
    """

    sparsity: float = Field(default=0.3, gt=0, lt=1)


class DenoiserMagnitudePrune(Transform):
    """See `genopt.techniques.base.Transform`."""

    name = "diffusers_magnitude_prune"
    version = 4
    phase = 20
    requires = frozenset({"diffusers"})
    excludes = frozenset({"quantized"})
    adds = frozenset({"sparse"})

    @classmethod
    def check(cls, source: Path, params: dict[str, JsonValue]) -> None:
        """See `Transform.check`."""
        parse_settings(PruneParams, params, cls.name)

    @classmethod
    def footprint(cls, before: Footprint, params: dict[str, JsonValue]) -> Footprint:
        """See `Transform.footprint`: zeros are read and multiplied like other numbers."""
        return before.risked(0.1)

    @classmethod
    def apply(cls, source: Path, destination: Path, params: dict[str, JsonValue], context: TransformContext, progress: Progress) -> None:
        """See `Transform.apply`."""
        import torch

        sparsity = parse_settings(PruneParams, params, cls.name).sparsity
        name, denoiser = load_denoiser(source)
        progress(f"setting {sparsity:.0%} of the {name}'s weights to zero")
        with torch.no_grad():
            for path, module in denoiser.named_modules():
                if isinstance(module, torch.nn.Linear | torch.nn.Conv2d) and is_inner(path):
                    zero_smallest(module.weight, round(sparsity * module.weight.numel()))
        copy_pipeline(source, destination, without={name})
        save_component(denoiser, destination / name)
