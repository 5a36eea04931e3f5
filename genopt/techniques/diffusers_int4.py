"""4-bit integers for pipelines, with torchao, in the layout of PyTorch's own kernels for NVIDIA's tensor cores (tinygemm)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from genopt.plan import JsonValue, parse_settings
from genopt.search.space import Tunable
from genopt.techniques import torchao_schemes
from genopt.techniques.diffusers_rounding import PipelineRounding, PipelineRoundingParams
from genopt.techniques.torchao_schemes import GroupSize, Int4Method
from genopt.techniques.torchao_technique import Int4

if TYPE_CHECKING:
    from torch import nn
    from torchao.core.config import AOBaseConfig


class PipelineInt4Params(PipelineRoundingParams):
    """Parameters of the rounding.

    Attributes:
        group_size: Consecutive weights that share a scale and a zero point. Matrices whose width it does not divide stay as they are.
        method: How scales and zero points are found.
    """

    group_size: GroupSize = 64
    method: Int4Method = "hqq"


class PipelineInt4WeightOnly(Int4, PipelineRounding):
    """W4A16: activations stay in bf16."""

    name = "diffusers_int4_weight_only"
    settings = PipelineInt4Params
    tunables = (Tunable(name="group_size", choices=(64, 32, 128), words=("", "g32", "g128")),)

    @classmethod
    def takes(cls, path: str, matrix: nn.Linear, chosen: PipelineRoundingParams) -> bool:
        """See `PipelineRounding.takes`."""
        group_size: int = chosen.model_dump()["group_size"]
        return matrix.in_features % group_size == 0

    @staticmethod
    def bits(params: dict[str, JsonValue]) -> float:
        """See `PipelineRounding.bits`."""
        return torchao_schemes.int4_bits(parse_settings(PipelineInt4Params, params, "diffusers_int4_weight_only").group_size)

    @staticmethod
    def scheme(params: dict[str, JsonValue]) -> AOBaseConfig:
        """See `PipelineRounding.scheme`."""
        chosen = parse_settings(PipelineInt4Params, params, "diffusers_int4_weight_only")
        return torchao_schemes.int4_weight_only(chosen.group_size, chosen.method)
