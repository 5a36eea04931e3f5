"""4-bit integers with torchao in the layout of PyTorch's own kernels for NVIDIA's tensor cores (tinygemm)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from genopt.models.capability import TENSOR_CORES
from genopt.plan import JsonValue, parse_settings
from genopt.search.space import Tunable
from genopt.techniques.base import GpuUse
from genopt.techniques.torchao_rounding import RoundingParams, TorchaoRounding

if TYPE_CHECKING:
    from torchao.core.config import AOBaseConfig


class Int4Params(RoundingParams):
    """Parameters of the rounding.

    Attributes:
        group_size: Consecutive weights that share a scale and a zero point. Matrices whose width it does not divide stay as they are.
        method: How scales and zero points are found: by half-quadratic optimization (Badri and Shaji, "Half-Quadratic Quantization of Large
            Machine Learning Models", 2023), or from the least and the greatest weight.
    """

    group_size: Literal[32, 64, 128, 256] = 128
    method: Literal["hqq", "minmax"] = "hqq"


class Int4WeightOnly(TorchaoRounding):
    """W4A16: activations stay in bf16."""

    name = "torchao_int4_weight_only"
    what = "4-bit weights"
    gpu: GpuUse = "needed"
    least = TENSOR_CORES
    dtype = "bfloat16"
    chance = 0.3
    settings = Int4Params
    tunables = (
        *TorchaoRounding.tunables,
        Tunable(name="group_size", choices=(128, 64, 32), words=("", "g64", "g32")),
        Tunable(name="method", choices=("hqq", "minmax"), words=("", "minmax")),
    )

    @staticmethod
    def bits(params: dict[str, JsonValue]) -> float:
        """See `TorchaoRounding.bits`; a scale and a zero point take 16 bits each."""
        return 4.0 + 32 / parse_settings(Int4Params, params, "torchao_int4_weight_only").group_size

    @staticmethod
    def scheme(params: dict[str, JsonValue]) -> AOBaseConfig:
        """See `TorchaoRounding.scheme`."""
        from torchao.quantization import Int4WeightOnlyConfig
        from torchao.quantization.quantize_.workflows import Int4ChooseQParamsAlgorithm, Int4PackingFormat

        chosen = parse_settings(Int4Params, params, "torchao_int4_weight_only")
        found = Int4ChooseQParamsAlgorithm.HQQ if chosen.method == "hqq" else Int4ChooseQParamsAlgorithm.TINYGEMM
        return Int4WeightOnlyConfig(
            group_size=chosen.group_size, int4_packing_format=Int4PackingFormat.TILE_PACKED_TO_4D, int4_choose_qparams_algorithm=found,
            set_inductor_config=False,
        )  # fmt: skip
