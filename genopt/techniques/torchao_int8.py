"""8-bit integers with torchao, one scale per output channel."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from genopt.errors import InfeasibleError
from genopt.models.capability import capability
from genopt.plan import JsonValue
from genopt.techniques import torchao_schemes
from genopt.techniques.base import GpuUse
from genopt.techniques.torchao_rounding import TorchaoRounding

if TYPE_CHECKING:
    from torchao.core.config import AOBaseConfig


class Int8WeightOnly(TorchaoRounding):
    """W8A16: activations stay as they are."""

    name = "torchao_int8_weight_only"
    what = "8-bit weights"

    @staticmethod
    def scheme(params: dict[str, JsonValue]) -> AOBaseConfig:
        """See `TorchaoRounding.scheme`."""
        return torchao_schemes.int8_weight_only()


class Int8Dynamic(TorchaoRounding):
    """W8A8: activations are rounded with one scale per token, found while running."""

    name = "torchao_int8_dynamic"
    what = "8-bit weights and activations"
    gpu: GpuUse = "used"
    chance = 0.4

    @classmethod
    def check(cls, source: Path, params: dict[str, JsonValue]) -> None:
        """See `Transform.check`; on GPUs PyTorch has no such product (`torch._int_mm`) of fewer than 17 rows."""
        super().check(source, params)
        if capability() is not None:
            raise InfeasibleError("PyTorch multiplies 8-bit integers on GPUs only for 17 tokens at once or more; use W8A8 in vLLM or 8-bit floats.")

    @staticmethod
    def scheme(params: dict[str, JsonValue]) -> AOBaseConfig:
        """See `TorchaoRounding.scheme`."""
        return torchao_schemes.int8_dynamic()
