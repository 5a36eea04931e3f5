"""What techniques share that round a language model's matrices with torchao, without calibration."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING

from genopt.errors import InfeasibleError
from genopt.models.capability import capability, require_capability
from genopt.plan import JsonValue, Record, parse_settings
from genopt.search.footprint import HEAD, MATRICES, Footprint
from genopt.search.space import Tunable
from genopt.techniques.base import GpuUse, Progress, TransformContext

if TYPE_CHECKING:
    from torchao.core.config import AOBaseConfig


class RoundingParams(Record):
    """Parameters that all of these techniques have.

    Attributes:
        head: Round the head too, which else stays in the checkpoint's precision. Where it is the table of embeddings, it becomes a matrix
            of its own, and the table stays as it is: each step reads fewer bytes, and the files grow by the rounded head.
    """

    head: bool = False


class TorchaoRounding(ABC):
    """See `genopt.techniques.base.Transform`; subclasses say into what."""

    name = ""
    version = 2
    phase = 40
    requires = frozenset({"hf"})
    excludes = frozenset({"quantized"})
    adds = frozenset({"quantized"})
    removes: frozenset[str] = frozenset()
    needs_calibration = False
    gpu: GpuUse = "unused"
    tunables: tuple[Tunable, ...] = (Tunable(name="head", choices=(False, True), words=("", "head")),)
    environment: str | None = None
    chance = 0.8
    """How often it kept 99 % of the quality of small models."""
    what = ""
    """Names the format in a sentence, in the plural."""
    least: tuple[int, int] | None = None
    """Compute capability that its products need; None where processors have them too."""
    dtype = "auto"
    """Precision of what stays, where the format prescribes it."""
    settings: type[RoundingParams] = RoundingParams

    @classmethod
    def check(cls, source: Path, params: dict[str, JsonValue]) -> None:
        """See `Transform.check`."""
        parse_settings(cls.settings, params, cls.name)
        if importlib.util.find_spec("torchao") is None:
            raise InfeasibleError("torchao is not installed; install it with: pip install torchao.")
        if cls.least is not None:
            require_capability(cls.least, cls.what)

    @classmethod
    def footprint(cls, before: Footprint, params: dict[str, JsonValue]) -> Footprint:
        """See `Transform.footprint`."""
        chosen = parse_settings(cls.settings, params, cls.name)
        return before.stored(cls.bits(params), families=(*MATRICES, HEAD) if chosen.head else MATRICES).risked(cls.chance)

    @classmethod
    def apply(cls, source: Path, destination: Path, params: dict[str, JsonValue], context: TransformContext, progress: Progress) -> None:
        """See `Transform.apply`."""
        from transformers import AutoModelForCausalLM, TorchAoConfig

        from genopt.models.checkpoint import load_untied, save_model

        chosen = parse_settings(cls.settings, params, cls.name)
        progress(f"rounding to {cls.what}")
        config = TorchAoConfig(cls.scheme(params), modules_to_not_convert=None if not chosen.head else [])
        device = "cpu" if cls.gpu == "unused" or capability() is None else "cuda"
        load = load_untied if chosen.head else AutoModelForCausalLM.from_pretrained
        model = load(source, dtype=cls.dtype, local_files_only=True, quantization_config=config, device_map=device)
        save_model(model, source, destination)

    @staticmethod
    def bits(params: dict[str, JsonValue]) -> float:
        """Of a weight, with its share of scales; one per row costs next to nothing."""
        return 8.0

    @staticmethod
    @abstractmethod
    def scheme(params: dict[str, JsonValue]) -> AOBaseConfig:
        """What torchao is asked for."""
