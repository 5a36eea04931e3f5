"""8-bit floats with torchao, one scale per output channel; arithmetic and all that stays is in bf16."""

from __future__ import annotations

from typing import TYPE_CHECKING

from genopt.plan import JsonValue
from genopt.techniques import torchao_schemes
from genopt.techniques.torchao_rounding import TorchaoRounding
from genopt.techniques.torchao_technique import Float8

if TYPE_CHECKING:
    from torchao.core.config import AOBaseConfig


class Float8Dynamic(Float8, TorchaoRounding):
    """Activations are rounded with one scale per token, found while running, and the GPU multiplies 8-bit floats."""

    name = "torchao_float8_dynamic"
    chance = 0.6

    @staticmethod
    def scheme(params: dict[str, JsonValue]) -> AOBaseConfig:
        """See `TorchaoRounding.scheme`."""
        return torchao_schemes.float8_dynamic()


class Float8WeightOnly(Float8, TorchaoRounding):
    """Activations stay as they are; compiled, the weights are widened while they are read."""

    name = "torchao_float8_weight_only"
    chance = 0.7

    @staticmethod
    def scheme(params: dict[str, JsonValue]) -> AOBaseConfig:
        """See `TorchaoRounding.scheme`."""
        return torchao_schemes.float8_weight_only()
