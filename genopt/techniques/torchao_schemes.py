"""What torchao is asked for, by format; the same for language models and pipelines.

Never to set up the compiler of the whole process besides: how steps are compiled is for the engine that opens what is rounded here.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import nn
    from torchao.core.config import AOBaseConfig

GroupSize = Literal[32, 64, 128, 256]
"""Consecutive weights that share a scale and a zero point."""
Int4Method = Literal["hqq", "minmax"]
"""How scales and zero points are found: by half-quadratic optimization (Badri and Shaji, "Half-Quadratic Quantization of Large Machine Learning
Models", 2023), or from the least and the greatest weight."""
LEAST = 1e-12
"""What the largest activation of a token counts as at least: scales of tokens of zeros, such as those that SDXL reads for an empty prompt, would
else be 0, and the tokens no numbers."""


def int8_weight_only() -> AOBaseConfig:
    """W8A16, one scale per output channel."""
    from torchao.quantization import Int8WeightOnlyConfig

    return Int8WeightOnlyConfig(version=2, set_inductor_config=False)


def int8_dynamic() -> AOBaseConfig:
    """W8A8, one scale per output channel and one per token, found while running."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig

    return Int8DynamicActivationInt8WeightConfig(version=2, set_inductor_config=False)


def float8_weight_only() -> AOBaseConfig:
    """8-bit floats, one scale per output channel; compiled, they are widened while they are read."""
    from torchao.quantization import Float8WeightOnlyConfig

    return Float8WeightOnlyConfig(set_inductor_config=False)


def float8_dynamic() -> AOBaseConfig:
    """8-bit floats, activations too, with one scale per token."""
    from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerRow

    return Float8DynamicActivationFloat8WeightConfig(granularity=PerRow(), activation_value_lb=LEAST, set_inductor_config=False)


def int4_weight_only(group_size: GroupSize, method: Int4Method) -> AOBaseConfig:
    """W4A16 in the layout of PyTorch's own kernels for NVIDIA's tensor cores (tinygemm)."""
    from torchao.quantization import Int4WeightOnlyConfig
    from torchao.quantization.quantize_.workflows import Int4ChooseQParamsAlgorithm, Int4PackingFormat

    found = Int4ChooseQParamsAlgorithm.HQQ if method == "hqq" else Int4ChooseQParamsAlgorithm.TINYGEMM
    return Int4WeightOnlyConfig(
        group_size=group_size, int4_packing_format=Int4PackingFormat.TILE_PACKED_TO_4D, int4_choose_qparams_algorithm=found,
        set_inductor_config=False,
    )  # fmt: skip


def int4_bits(group_size: GroupSize) -> float:
    """Of a weight, with its share of a scale and a zero point of 16 bits each."""
    return 4.0 + 32 / group_size


def round_matrices(model: nn.Module, scheme: AOBaseConfig, paths: Collection[str]) -> None:
    """Rounds some matrices of a model in place.

    Args:
        model: Whatever has them.
        scheme: Into what.
        paths: Their names within the model.
    """
    from torchao.quantization import quantize_

    quantize_(model, scheme, filter_fn=lambda _, path: path in paths)
    mend_zeros(model)


def mend_zeros(model: nn.Module) -> None:
    """Makes rows of zeros zeros again: as 8-bit floats torchao gives them the scale 0 and, as they are divided by it, no numbers."""
    import torch
    from torchao.quantization.quantize_.workflows import Float8Tensor

    with torch.no_grad():
        for matrix in model.parameters():
            if isinstance(matrix, Float8Tensor):
                zeros = matrix.scale == 0
                matrix.qdata.view(torch.uint8).masked_fill_(zeros, 0)
                matrix.scale.masked_fill_(zeros, 1)
