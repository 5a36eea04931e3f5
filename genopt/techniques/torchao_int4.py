"""4-bit integers with torchao in the layout of PyTorch's own kernels for NVIDIA's tensor cores (tinygemm)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from genopt.plan import JsonValue, parse_settings
from genopt.search.space import Tunable
from genopt.techniques import torchao_schemes
from genopt.techniques.torchao_rounding import RoundingParams, TorchaoRounding
from genopt.techniques.torchao_schemes import GroupSize, Int4Method
from genopt.techniques.torchao_technique import Int4

if TYPE_CHECKING:
    from torchao.core.config import AOBaseConfig


class Int4Params(RoundingParams):
    """Parameters of the rounding.

    Attributes:
        group_size: Consecutive weights that share a scale and a zero point. Matrices whose width it does not divide stay as they are.
        method: How scales and zero points are found.
    """

    group_size: GroupSize = 128
    method: Int4Method = "hqq"


class Int4WeightOnly(Int4, TorchaoRounding):
    """W4A16: activations stay in bf16."""

    name = "torchao_int4_weight_only"
    settings = Int4Params
    tunables = (
        *TorchaoRounding.tunables,
        Tunable(name="group_size", choices=(128, 64, 32), words=("", "g64", "g32")),
        Tunable(name="method", choices=("hqq", "minmax"), words=("", "minmax")),
    )

    @staticmethod
    def bits(params: dict[str, JsonValue]) -> float:
        """See `TorchaoRounding.bits`."""
        return torchao_schemes.int4_bits(parse_settings(Int4Params, params, "torchao_int4_weight_only").group_size)

    @staticmethod
    def scheme(params: dict[str, JsonValue]) -> AOBaseConfig:
        """See `TorchaoRounding.scheme`."""
        chosen = parse_settings(Int4Params, params, "torchao_int4_weight_only")
        return torchao_schemes.int4_weight_only(chosen.group_size, chosen.method)
