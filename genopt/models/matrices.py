"""The matrices of a language model by family, and the same matrices rounded to fewer bits."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from genopt.models.decoder import decoder_layers
from genopt.models.experts import fused

HEAD = "head"
_NAMES = {
    "qkv_proj": r"(q|k|v|qkv)_proj|c_attn|query_key_value|query|key|value|Wqkv",
    "o_proj": r"o_proj|out_proj|(attn|attention|self_attn|self_attention)\.(c_proj|dense)",
    "gate_up_proj": r"(gate|up|gate_up)_proj|c_fc|fc1|dense_h_to_4h|w1|w3",
    "down_proj": r"down_proj|mlp\.c_proj|fc2|dense_4h_to_h|w2",
}
"""How the names of a family's modules end, in the model definitions of transformers."""
_PATTERNS = {family: re.compile(rf"(?:^|\.)(?:{pattern})$") for family, pattern in _NAMES.items()}

MOST = 0.9
"""Least share of a decoder's weights that techniques must reach; models without experts have 0.98 and more."""

Matrix = nn.Linear | Conv1D


def by_family(model: PreTrainedModel) -> dict[str, list[Matrix]]:
    """Matrix layers by family, the head first; a family that the model lacks is missing.

    Raises:
        InfeasibleError: The model's layers cannot be told from its config.
    """
    _, layers = decoder_layers(model)
    found: dict[str, list[Matrix]] = {}
    head = model.get_output_embeddings()
    if isinstance(head, nn.Linear):
        found[HEAD] = [head]
    for family, pattern in _PATTERNS.items():
        modules = [module for name, module in layers.named_modules() if isinstance(module, Matrix) and pattern.search(name)]
        if modules:
            found[family] = modules
    return found


def by_layer(model: PreTrainedModel) -> list[list[Matrix]]:
    """Matrix layers of each decoder layer.

    Raises:
        InfeasibleError: The model's layers cannot be told from its config.
    """
    _, layers = decoder_layers(model)
    return [[module for module in layer.modules() if isinstance(module, Matrix)] for layer in layers]


def share(model: PreTrainedModel) -> float:
    """Share of the decoder's weights that lie in matrices of their own, which techniques can change; vectors such as those of norms do not count.

    Raises:
        InfeasibleError: The model's layers cannot be told from its config.
    """
    _, layers = decoder_layers(model)
    reached = sum(_weights(module) for layer in by_layer(model) for module in layer)
    return reached / max(1, _weights(layers))


def _weights(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.ndim > 1)


def require_most(model: PreTrainedModel, technique: str) -> None:
    """Refuses a model most of whose weights a technique would leave as they are.

    Args:
        model: Loaded.
        technique: Its name.

    Raises:
        InfeasibleError: Its experts are fused, or its layers cannot be told from its config.
    """
    if share(model) < MOST:
        raise fused(technique)


def outputs_by_inputs(module: Matrix) -> Tensor:
    """A matrix with a row for each output, which shares its memory with the module: transformers' Conv1D keeps it the other way round."""
    return module.weight.T if isinstance(module, Conv1D) else module.weight


@contextmanager
def rounded_to(modules: Iterable[Matrix], bits: int, block_size: int) -> Iterator[None]:
    """Within the block the matrices hold what is left of them after rounding; a table tied to one of them does not change.

    Args:
        modules: Which.
        bits: Of each weight.
        block_size: Consecutive inputs that share a scale and a zero point.
    """
    before = [(module, module.weight) for module in modules]
    for module, _ in before:
        found = rounded(outputs_by_inputs(module).detach(), bits, block_size)
        module.weight = nn.Parameter(found.T if isinstance(module, Conv1D) else found, requires_grad=False)
    try:
        yield
    finally:
        for module, weight in before:
            module.weight = weight


def rounded(weight: Tensor, bits: int, block_size: int) -> Tensor:
    """A matrix after rounding to a grid between the least and the largest weight of each block of a row."""
    rows, width = weight.shape
    padded = nn.functional.pad(weight.float(), (0, -width % block_size)).view(rows, -1, block_size)
    low, high = padded.amin(2, keepdim=True).clamp(max=0), padded.amax(2, keepdim=True).clamp(min=0)
    step = torch.where(high > low, (high - low) / (2**bits - 1), torch.ones_like(low))
    zero = (-low / step).round()
    levels = ((padded / step).round() + zero).clamp(0, 2**bits - 1)
    return ((levels - zero) * step).view(rows, -1)[:, :width].to(weight.dtype)
