"""8-bit floats for pipelines, with torchao: one scale per output channel; arithmetic and all that stays is in bf16."""

from __future__ import annotations

from typing import TYPE_CHECKING

from genopt.plan import JsonValue
from genopt.techniques import torchao_schemes
from genopt.techniques.diffusers_rounding import PipelineRounding, PipelineRoundingParams
from genopt.techniques.torchao_technique import Float8

if TYPE_CHECKING:
    from torch import nn
    from torchao.core.config import AOBaseConfig

MULTIPLE = 16
"""The GPU multiplies 8-bit floats in matrices whose sides it divides."""


class PipelineFloat8WeightOnly(Float8, PipelineRounding):
    """Activations stay as they are; compiled, the weights are widened while they are read."""

    name = "diffusers_float8_weight_only"
    chance = 0.7

    @staticmethod
    def scheme(params: dict[str, JsonValue]) -> AOBaseConfig:
        """See `PipelineRounding.scheme`."""
        return torchao_schemes.float8_weight_only()


class PipelineFloat8Dynamic(Float8, PipelineRounding):
    """Activations are rounded with one scale per token, found while running, and the GPU multiplies 8-bit floats."""

    name = "diffusers_float8_dynamic"
    chance = 0.5

    @staticmethod
    def takes(path: str, matrix: nn.Linear, chosen: PipelineRoundingParams) -> bool:
        """See `PipelineRounding.takes`."""
        return matrix.in_features % MULTIPLE == 0 and matrix.out_features % MULTIPLE == 0

    @staticmethod
    def scheme(params: dict[str, JsonValue]) -> AOBaseConfig:
        """See `PipelineRounding.scheme`."""
        return torchao_schemes.float8_dynamic()
