"""What techniques share that round matrices with torchao, of language models and of pipelines."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING

from genopt.errors import InfeasibleError
from genopt.models.capability import FLOAT8, TENSOR_CORES, capability, require_capability
from genopt.plan import JsonValue, Record, parse_settings
from genopt.techniques.base import GpuUse, Transform

if TYPE_CHECKING:
    from torchao.core.config import AOBaseConfig


class TorchaoTechnique(Transform, ABC):
    """See `genopt.techniques.base.Transform`; subclasses say of what kind of model, and into what."""

    name = ""
    phase = 40
    excludes = frozenset({"quantized"})
    adds = frozenset({"quantized"})
    chance = 0.8
    """How often it keeps 99 % of the quality."""
    what = ""
    """Names the format in a sentence, in the plural."""
    least: tuple[int, int] | None = None
    """Compute capability that its products need; None where processors have them too."""
    dtype: str | None = None
    """Precision of what stays, where the format prescribes it."""
    settings: type[Record]
    """The record that declares the parameters."""

    @classmethod
    def check(cls, source: Path, params: dict[str, JsonValue]) -> None:
        """See `Transform.check`."""
        parse_settings(cls.settings, params, cls.name)
        if importlib.util.find_spec("torchao") is None:
            raise InfeasibleError("torchao is not installed; install it with: pip install torchao.")
        if cls.least is not None:
            require_capability(cls.least, cls.what)

    @classmethod
    def device(cls) -> str:
        """Where matrices are rounded."""
        return "cpu" if cls.gpu == "unused" or capability() is None else "cuda"

    @staticmethod
    def bits(params: dict[str, JsonValue]) -> float:
        """Of a weight, with its share of scales; one per row costs next to nothing."""
        return 8.0

    @staticmethod
    @abstractmethod
    def scheme(params: dict[str, JsonValue]) -> AOBaseConfig:
        """What torchao is asked for."""


class Float8:
    """What techniques declare alike that round to 8-bit floats; arithmetic and all that stays is in bf16."""

    version = 5
    what = "8-bit floats"
    gpu: GpuUse = "needed"
    least: tuple[int, int] | None = FLOAT8
    dtype: str | None = "bfloat16"


class Int4:
    """What techniques declare alike that round to 4-bit integers in the layout of PyTorch's own kernels; activations stay in bf16."""

    what = "4-bit weights"
    gpu: GpuUse = "needed"
    least: tuple[int, int] | None = TENSOR_CORES
    dtype: str | None = "bfloat16"
    chance = 0.3
