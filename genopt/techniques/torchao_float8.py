"""8-bit floats with torchao, one scale per output channel; arithmetic and all that stays is in bf16."""

from __future__ import annotations

from typing import TYPE_CHECKING

from genopt.models.capability import FLOAT8
from genopt.plan import JsonValue
from genopt.techniques import torchao_schemes
from genopt.techniques.base import GpuUse
from genopt.techniques.torchao_rounding import TorchaoRounding

if TYPE_CHECKING:
    from torchao.core.config import AOBaseConfig


class Float8Dynamic(TorchaoRounding):
    """Activations are rounded with one scale per token, found while running, and the GPU multiplies 8-bit floats."""

    name = "torchao_float8_dynamic"
    what = "8-bit floats"
    gpu: GpuUse = "needed"
    least = FLOAT8
    dtype = "bfloat16"
    chance = 0.6

    @staticmethod
    def scheme(params: dict[str, JsonValue]) -> AOBaseConfig:
        """See `TorchaoRounding.scheme`."""
        return torchao_schemes.float8_dynamic()


class Float8WeightOnly(TorchaoRounding):
    """Activations stay as they are; compiled, the weights are widened while they are read."""

    name = "torchao_float8_weight_only"
    what = "8-bit floats"
    gpu: GpuUse = "needed"
    least = FLOAT8
    dtype = "bfloat16"
    chance = 0.7

    @staticmethod
    def scheme(params: dict[str, JsonValue]) -> AOBaseConfig:
        """See `TorchaoRounding.scheme`."""
        return torchao_schemes.float8_weight_only()
