"""What transforms do to the denoiser of a pipeline: matrices in 8 bits with torchao, and weights set to zero.

Layers that are small, and those before the first and behind the last block, stay as they are: they cost little, and rounding
them shows most.
"""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from genopt.errors import InfeasibleError
from genopt.plan import JsonValue, Record, parse_settings
from genopt.search.footprint import MATRICES, Footprint
from genopt.search.space import Tunable
from genopt.techniques.base import GpuUse, Progress, TransformContext
from genopt.techniques.pipeline_files import copy_pipeline, load_denoiser

if TYPE_CHECKING:
    from torch import nn
    from torchao.core.config import AOBaseConfig

BLOCKS = ("blocks", "layers")
"""How the lists of a denoiser's blocks end, in the model definitions of diffusers."""


class QuantizeParams(Record):
    """Parameters.

    Attributes:
        least_features: Matrices with fewer inputs or outputs stay as they are.
    """

    least_features: int = Field(default=32, ge=1)


class PruneParams(Record):
    """Parameters.

    Attributes:
        sparsity: Share of the weights of each matrix and convolution that become zero.
    """

    sparsity: float = Field(default=0.3, gt=0, lt=1)


class _OnDenoisers:
    """What all share; see `genopt.techniques.base.Transform`."""

    name = ""
    version = 1
    phase = 40
    requires = frozenset({"diffusers"})
    excludes = frozenset({"quantized"})
    adds = frozenset({"quantized"})
    removes: frozenset[str] = frozenset()
    needs_calibration = False
    gpu: GpuUse = "unused"
    tunables: tuple[Tunable, ...] = ()
    environment: str | None = None
    settings: type[Record] = QuantizeParams
    chance = 0.8

    @classmethod
    def check(cls, source: Path, params: dict[str, JsonValue]) -> None:
        """See `Transform.check`."""
        parse_settings(cls.settings, params, cls.name)
        if importlib.util.find_spec("torchao") is None:
            raise InfeasibleError("torchao is not installed; install it with: pip install torchao.")

    @classmethod
    def footprint(cls, before: Footprint, params: dict[str, JsonValue]) -> Footprint:
        """See `Transform.footprint`: one scale per output channel costs next to nothing."""
        return before.stored(8.0, families=MATRICES).risked(cls.chance)


class _Rounded(_OnDenoisers, ABC):
    """Subclasses say into what."""

    @classmethod
    def apply(cls, source: Path, destination: Path, params: dict[str, JsonValue], context: TransformContext, progress: Progress) -> None:
        """See `Transform.apply`."""
        from torchao.quantization import quantize_

        from genopt.models import quantized

        least = parse_settings(QuantizeParams, params, cls.name).least_features
        name, denoiser = load_denoiser(source)
        chosen = _inner_matrices(denoiser, least)
        if not chosen:
            raise InfeasibleError(f"The denoiser has no matrix of {least} features or more within its blocks; give a smaller least_features.")
        progress(f"quantizing {len(chosen)} matrices of the {name} to 8 bits")
        quantize_(denoiser, cls.scheme(), filter_fn=lambda _, path: path in chosen)
        copy_pipeline(source, destination, without={name})
        quantized.save(denoiser, destination / name)

    @staticmethod
    @abstractmethod
    def scheme() -> AOBaseConfig:
        """What torchao is asked for."""


class DenoiserInt8WeightOnly(_Rounded):
    """W8A16: weights with one scale per output channel, activations as they are."""

    name = "diffusers_int8_weight_only"

    @staticmethod
    def scheme() -> AOBaseConfig:
        """See `_Rounded.scheme`."""
        from torchao.quantization import Int8WeightOnlyConfig

        return Int8WeightOnlyConfig(version=2)


class DenoiserInt8Dynamic(_Rounded):
    """W8A8: weights with one scale per output channel, activations with one per token, found while running."""

    name = "diffusers_int8_dynamic"
    chance = 0.5

    @staticmethod
    def scheme() -> AOBaseConfig:
        """See `_Rounded.scheme`."""
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig

        return Int8DynamicActivationInt8WeightConfig(version=2)


class DenoiserMagnitudePrune(_OnDenoisers):
    """Sets the smallest weights of every matrix and convolution to zero, which changes quality and not speed; see `MagnitudePrune`."""

    name = "diffusers_magnitude_prune"
    phase = 20
    adds = frozenset({"sparse"})
    settings = PruneParams

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
                if isinstance(module, torch.nn.Linear | torch.nn.Conv2d) and _is_inner(path):
                    magnitudes = module.weight.abs().float().flatten()
                    module.weight.view(-1)[magnitudes.argsort()[: round(sparsity * len(magnitudes))]] = 0
        copy_pipeline(source, destination, without={name})
        denoiser.save_pretrained(destination / name)


def _inner_matrices(denoiser: nn.Module, least_features: int) -> frozenset[str]:
    from genopt.models.pipeline_loading import matrices

    return frozenset(
        path for path, module in matrices(denoiser).items() if _is_inner(path) and min(module.in_features, module.out_features) >= least_features
    )


def _is_inner(path: str) -> bool:
    """Whether a layer lies within the blocks, and is no part of what tells them the time."""
    return path.partition(".")[0].endswith((*BLOCKS, "mid_block")) and "time_emb" not in path
