"""What techniques share that round a language model's matrices with torchao, without calibration."""

from __future__ import annotations

from pathlib import Path

from genopt.errors import InfeasibleError
from genopt.models.experts import refuse_experts
from genopt.plan import JsonValue, Record, parse_settings
from genopt.search.footprint import HEAD, MATRICES, Footprint
from genopt.search.space import Tunable
from genopt.techniques.base import Progress, TransformContext
from genopt.techniques.torchao_schemes import mend_zeros
from genopt.techniques.torchao_technique import TorchaoTechnique

TRAIT = "torchao"
"""Files that PyTorch opens alone: vLLM would import torchao, which touches the GPU and keeps it from being forked."""


class RoundingParams(Record):
    """Parameters that all of these techniques have.

    Attributes:
        head: Round the head too, which else stays in the checkpoint's precision. Where it is the table of embeddings, it becomes a matrix
            of its own, and the table stays as it is: each step reads fewer bytes, and the files grow by the rounded head.
    """

    head: bool = False


class TorchaoRounding(TorchaoTechnique):
    """See `genopt.techniques.base.Transform`; subclasses say into what."""

    version = 4
    requires = frozenset({"hf"})
    adds = frozenset({TRAIT, "quantized"})
    removes = frozenset({"hf"})
    tunables: tuple[Tunable, ...] = (Tunable(name="head", choices=(False, True), words=("", "head")),)
    dtype: str | None = "auto"
    settings: type[RoundingParams] = RoundingParams

    @classmethod
    def check(cls, source: Path, params: dict[str, JsonValue]) -> None:
        """See `Transform.check`."""
        super().check(source, params)
        refuse_experts(source, cls.name)

    @classmethod
    def footprint(cls, before: Footprint, params: dict[str, JsonValue]) -> Footprint:
        """See `Transform.footprint`."""
        chosen = parse_settings(cls.settings, params, cls.name)
        return before.stored(cls.bits(params), families=(*MATRICES, HEAD) if chosen.head else MATRICES).risked(cls.chance)

    @classmethod
    def apply(cls, source: Path, destination: Path, params: dict[str, JsonValue], context: TransformContext, progress: Progress) -> None:
        """See `Transform.apply`."""
        from torchao.utils import TorchAOBaseTensor
        from transformers import TorchAoConfig

        from genopt.models.checkpoint import load_untied, load_with, save_model
        from genopt.models.matrices import require_most

        chosen = parse_settings(cls.settings, params, cls.name)
        progress(f"rounding to {cls.what}")
        config = TorchAoConfig(cls.scheme(params), modules_to_not_convert=None if not chosen.head else [])
        load = load_untied if chosen.head else load_with
        model = load(source, dtype=cls.dtype, quantization_config=config, device_map=cls.device())
        head = model.get_output_embeddings()
        own = set() if head is None else set(head.parameters())  # one that is rounded alone leaves every layer as it was
        if not any(isinstance(parameter, TorchAOBaseTensor) for parameter in set(model.parameters()) - own):
            raise InfeasibleError(
                f"{cls.name} rounds matrices of the kind nn.Linear, and this model has none besides its head; use another technique."
            )
        require_most(model, cls.name)
        mend_zeros(model)
        save_model(model, source, destination)
