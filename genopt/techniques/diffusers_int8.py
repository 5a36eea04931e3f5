"""8-bit integers for pipelines, with torchao: one scale per output channel."""

from __future__ import annotations

from typing import TYPE_CHECKING

from genopt.plan import JsonValue
from genopt.techniques import torchao_schemes
from genopt.techniques.diffusers_rounding import MODULATION, PipelineRounding, PipelineRoundingParams

if TYPE_CHECKING:
    from torch import nn
    from torchao.core.config import AOBaseConfig


class PipelineInt8WeightOnly(PipelineRounding):
    """W8A16: activations stay as they are."""

    name = "diffusers_int8_weight_only"

    @staticmethod
    def scheme(params: dict[str, JsonValue]) -> AOBaseConfig:
        """See `PipelineRounding.scheme`."""
        return torchao_schemes.int8_weight_only()


class PipelineInt8Dynamic(PipelineRounding):
    """W8A8: activations are rounded with one scale per token, found while running."""

    name = "diffusers_int8_dynamic"
    what = "8-bit weights and activations"
    chance = 0.5

    @staticmethod
    def takes(path: str, matrix: nn.Linear, chosen: PipelineRoundingParams) -> bool:
        """See `PipelineRounding.takes`."""
        return MODULATION not in path

    @staticmethod
    def scheme(params: dict[str, JsonValue]) -> AOBaseConfig:
        """See `PipelineRounding.scheme`."""
        return torchao_schemes.int8_dynamic()
