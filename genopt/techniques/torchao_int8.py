"""8-bit weights with torchao, by rounding, without calibration. The head stays in the checkpoint's precision."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from genopt.errors import InfeasibleError
from genopt.plan import JsonValue, Record, parse_settings
from genopt.search.footprint import MATRICES, Footprint
from genopt.search.space import Tunable
from genopt.techniques.base import Progress, TransformContext

if TYPE_CHECKING:
    from torchao.core.config import AOBaseConfig


class NoParams(Record):
    """These techniques have no parameters."""


class _Int8:
    """What both share; see `genopt.techniques.base.Transform`."""

    name = ""
    version = 1
    phase = 40
    requires = frozenset({"hf"})
    excludes = frozenset({"quantized"})
    adds = frozenset({"quantized"})
    removes: frozenset[str] = frozenset()
    needs_calibration = False
    accelerated = False
    tunables: tuple[Tunable, ...] = ()
    environment: str | None = None
    chance = 0.8

    @classmethod
    def check(cls, source: Path, params: dict[str, JsonValue]) -> None:
        """See `Transform.check`."""
        parse_settings(NoParams, params, cls.name)
        if importlib.util.find_spec("torchao") is None:
            raise InfeasibleError("torchao is not installed; install it with: pip install torchao.")

    @classmethod
    def footprint(cls, before: Footprint, params: dict[str, JsonValue]) -> Footprint:
        """See `Transform.footprint`: one scale per output channel costs next to nothing."""
        return before.stored(8.0, families=MATRICES).risked(cls.chance)

    @classmethod
    def _write(cls, scheme: AOBaseConfig, source: Path, destination: Path, progress: Progress) -> None:
        from transformers import AutoModelForCausalLM, TorchAoConfig

        from genopt.models.checkpoint import save_model

        progress("quantizing to 8 bits")
        config = TorchAoConfig(scheme)
        model = AutoModelForCausalLM.from_pretrained(source, dtype="auto", local_files_only=True, quantization_config=config, device_map="cpu")
        save_model(model, source, destination)


class Int8WeightOnly(_Int8):
    """W8A16: weights with one scale per output channel, activations as they are."""

    name = "torchao_int8_weight_only"

    @classmethod
    def apply(cls, source: Path, destination: Path, params: dict[str, JsonValue], context: TransformContext, progress: Progress) -> None:
        """See `Transform.apply`."""
        from torchao.quantization import Int8WeightOnlyConfig

        cls._write(Int8WeightOnlyConfig(version=2), source, destination, progress)


class Int8Dynamic(_Int8):
    """W8A8: weights with one scale per output channel, activations with one per token, found while running."""

    name = "torchao_int8_dynamic"
    chance = 0.4

    @classmethod
    def apply(cls, source: Path, destination: Path, params: dict[str, JsonValue], context: TransformContext, progress: Progress) -> None:
        """See `Transform.apply`."""
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig

        cls._write(Int8DynamicActivationInt8WeightConfig(version=2), source, destination, progress)
