"""Checkpoints in the format compressed-tensors, which vLLM reads: weights rounded to the nearest, without calibration.

The head stays in the checkpoint's precision, as do the embeddings.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from genopt.errors import InfeasibleError
from genopt.models.experts import refuse_experts
from genopt.plan import JsonValue, Record, parse_settings
from genopt.search.footprint import MATRICES, Footprint
from genopt.search.space import Tunable
from genopt.techniques.base import Progress, Transform, TransformContext

if TYPE_CHECKING:
    from compressed_tensors.quantization import QuantizationScheme
    from torch import Tensor, nn
    from transformers import PreTrainedModel

Scheme = Literal["W4A16", "W8A16", "W8A8", "FP8_DYNAMIC"]
TRAIT = "compressed_tensors"
BITS: Mapping[str, float] = {"W4A16": 4.0, "W8A16": 8.0, "W8A8": 8.0, "FP8_DYNAMIC": 8.0}
CHANCES: Mapping[str, float] = {"W4A16": 0.3, "W8A16": 0.9, "W8A8": 0.4, "FP8_DYNAMIC": 0.6}
"""How often the scheme kept 99 % of the quality of small models."""
FORMATS: Mapping[str, str] = {"W4A16": "pack-quantized", "W8A16": "pack-quantized", "W8A8": "int-quantized", "FP8_DYNAMIC": "float-quantized"}
"""What compressed-tensors calls the way in which the weights lie in the file."""
GROUPED = ("W4A16", "W8A16")


class CompressedTensorsParams(Record):
    """Parameters of the rounding.

    Attributes:
        scheme: Bits of weights and activations, as compressed-tensors names them. Activations are rounded while the model runs.
        group_size: Consecutive weights that share a scale where activations stay as they are; else a row does.
    """

    scheme: Scheme = "W4A16"
    group_size: Literal[32, 64, 128] = 128


class CompressedTensors(Transform):
    """See `genopt.techniques.base.Transform`."""

    name = "compressed_tensors"
    version = 2
    phase = 50
    requires = frozenset({"hf"})
    excludes = frozenset({"quantized"})
    adds = frozenset({TRAIT, "quantized"})
    removes = frozenset({"hf"})
    gpu = "used"
    tunables = (
        Tunable(name="scheme", choices=("FP8_DYNAMIC", "W8A8", "W8A16", "W4A16"), words=("fp8_dynamic", "w8a8", "w8a16", "w4a16")),
        Tunable(name="group_size", choices=(128, 64, 32), words=("", "g64", "g32"), when=(("scheme", "W8A16"), ("scheme", "W4A16"))),
    )

    @staticmethod
    def check(source: Path, params: dict[str, JsonValue]) -> None:
        """See `Transform.check`."""
        parse_settings(CompressedTensorsParams, params, "compressed_tensors")
        if importlib.util.find_spec("compressed_tensors") is None:
            raise InfeasibleError("compressed-tensors is not installed; install it with: pip install compressed-tensors.")
        refuse_experts(source, "compressed_tensors")

    @staticmethod
    def footprint(before: Footprint, params: dict[str, JsonValue]) -> Footprint:
        """See `Transform.footprint`: each scale takes 16 bits."""
        chosen = parse_settings(CompressedTensorsParams, params, "compressed_tensors")
        scales = 16 / chosen.group_size if chosen.scheme in GROUPED else 0.0
        return before.stored(BITS[chosen.scheme] + scales, families=MATRICES).risked(CHANCES[chosen.scheme])

    @staticmethod
    def apply(source: Path, destination: Path, params: dict[str, JsonValue], context: TransformContext, progress: Progress) -> None:
        """See `Transform.apply`."""
        from torch import nn

        from genopt.models.checkpoint import load_model, save_model
        from genopt.models.matrices import require_most

        chosen = parse_settings(CompressedTensorsParams, params, "compressed_tensors")
        scheme = named_scheme(chosen.scheme, chosen.group_size)
        model = load_model(source)
        linear = inner_matrices(model)
        if not linear:
            raise InfeasibleError("This model has no linear layers, which is all that compressed-tensors knows; use another technique for it.")
        require_most(model, "compressed_tensors")
        if chosen.scheme in GROUPED:
            require_groups(model, chosen.group_size)
        state = model.state_dict()
        progress(f"rounding {len(linear)} matrices ({chosen.scheme})")
        for name, module in linear.items():
            del state[f"{name}.weight"]
            state |= {f"{name}.{part}": values for part, values in _rounded(module.weight.detach(), scheme).items()}
        ignored = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name not in linear]
        model.config.quantization_config = {
            "quant_method": "compressed-tensors", "format": FORMATS[chosen.scheme], "quantization_status": "compressed", "ignore": ignored,
            "config_groups": {"group_0": scheme.model_dump(mode="json", exclude_none=True, exclude={"format"})},
        }  # fmt: skip
        save_model(model, source, destination, state)


def named_scheme(name: str, group_size: int) -> QuantizationScheme:
    """A scheme of compressed-tensors.

    Args:
        name: As it calls the scheme.
        group_size: Consecutive weights that share a scale, where the scheme has groups.
    """
    from compressed_tensors.quantization.quant_scheme import preset_name_to_scheme

    scheme = preset_name_to_scheme(name, ["Linear"])
    if scheme.weights is None or name not in GROUPED:
        return scheme
    weights = scheme.weights.model_copy(update={"strategy": "group", "group_size": group_size})  # until 0.17, rows shared a scale in W8A16
    return scheme.model_copy(update={"weights": weights})


def inner_matrices(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """The linear layers of a model by name, without its head."""
    from torch import nn

    head = model.get_output_embeddings()
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear) and module is not head}


def require_groups(model: PreTrainedModel, group_size: int) -> None:
    """Refuses groups that do not divide a matrix.

    Raises:
        InfeasibleError: Names the first such matrix.
    """
    for name, module in inner_matrices(model).items():
        if module.in_features % group_size:
            raise InfeasibleError(f"Groups of {group_size} weights do not divide the {module.in_features} of {name}; choose smaller ones.")


def _rounded(weight: Tensor, scheme: QuantizationScheme) -> dict[str, Tensor]:
    """What takes the place of a weight matrix in the checkpoint, by the last part of its name."""
    import torch
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
    from compressed_tensors.quantization.lifecycle.forward import quantize
    from compressed_tensors.quantization.utils import calculate_qparams

    arguments = scheme.weights
    if arguments is None:
        raise InfeasibleError("The scheme leaves the weights as they are; choose another one.")
    groups = weight.float().unflatten(1, (-1, arguments.group_size or weight.shape[1]))
    scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), arguments)
    found = quantize(weight.float(), scale, zero, arguments, dtype=arguments.pytorch_dtype())
    stored = {"weight_scale": scale.to(weight.dtype)}
    if scheme.input_activations is not None:
        return {"weight": found, **stored}
    packed = pack_to_int32(found.to(torch.int8), arguments.num_bits)
    return {"weight_packed": packed, "weight_shape": torch.tensor(weight.shape, dtype=torch.int64), **stored}
