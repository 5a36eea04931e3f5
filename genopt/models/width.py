"""Decoder layers with fewer MLP neurons and attention heads: their matrices really become smaller, in place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from genopt.errors import InfeasibleError
from genopt.models.decoder import decoder_layers

MLPS: Sequence[tuple[tuple[str, ...], str]] = (
    (("gate_proj", "up_proj"), "down_proj"), (("up_proj",), "down_proj"), (("c_fc",), "c_proj"), (("fc1",), "fc2"),
)  # fmt: skip
"""What architectures call the matrices whose outputs are an MLP's neurons, and the one that reads them."""
ATTENTION = ("q_proj", "k_proj", "v_proj"), "o_proj"
"""Likewise of attention; where queries, keys and values lie in one matrix, heads are left alone."""


@dataclass(frozen=True)
class Block:
    """Matrices around units that can be left out.

    Attributes:
        writers: Their outputs are the units, or groups of them.
        reader: Its inputs are the units.
    """

    writers: tuple[nn.Module, ...]
    reader: nn.Module

    @property
    def width(self) -> int:
        """Inputs of the reader."""
        return _weight(self.reader).shape[_axis(self.reader, of_outputs=False)]


def mlps(model: PreTrainedModel) -> list[Block]:
    """The MLP of each decoder layer.

    Raises:
        InfeasibleError: A layer has none of a kind that is known, or several, as mixtures of experts have.
    """
    _, layers = decoder_layers(model)
    return [_only(layer, "MLP", MLPS) for layer in layers]


def attentions(model: PreTrainedModel) -> list[Block]:
    """The attention of each decoder layer; see `mlps`."""
    _, layers = decoder_layers(model)
    return [_only(layer, "attention", (ATTENTION,)) for layer in layers]


def _only(layer: nn.Module, what: str, kinds: Sequence[tuple[tuple[str, ...], str]]) -> Block:
    for writers, reader in kinds:
        parts = [dict(module.named_children()) for module in layer.modules()]
        found = [part for part in parts if {*writers, reader} <= part.keys() and all(_is_matrix(part[name]) for name in (*writers, reader))]
        if len(found) == 1:
            return Block(writers=tuple(found[0][name] for name in writers), reader=found[0][reader])
        if found:
            break
    raise InfeasibleError(f"Its layers ({type(layer).__name__}) have no single {what} of a known kind to make narrower; use another technique.")


def _is_matrix(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | Conv1D)


def _weight(module: nn.Module) -> Tensor:
    weight = module.weight
    if not isinstance(weight, Tensor):
        raise InfeasibleError(f"{type(module).__name__} has no weight matrix; use another technique.")
    return weight


def _axis(module: nn.Module, *, of_outputs: bool) -> int:
    """The axis of a weight; transformers' Conv1D, which is a linear layer, has its axes the other way round."""
    return int(of_outputs) if isinstance(module, Conv1D) else int(not of_outputs)


def weights_of_units(block: Block) -> Tensor:
    """How much of each unit the reader takes in: the length of its weights, in float32."""
    lengths: Tensor = _weight(block.reader).float().norm(dim=_axis(block.reader, of_outputs=True))
    return lengths


def keep(block: Block, units: Tensor, groups: Sequence[Tensor] | None = None) -> None:
    """Leaves only some units.

    Args:
        block: Changed in place.
        units: Places that stay, of the reader's inputs.
        groups: Places that stay of each writer's outputs, where they differ from these.
    """
    for writer, places in zip(block.writers, groups or [units] * len(block.writers), strict=True):
        _cut(writer, places, of_outputs=True)
    _cut(block.reader, units, of_outputs=False)


def _cut(module: nn.Module, places: Tensor, *, of_outputs: bool) -> None:
    module.weight = nn.Parameter(_weight(module).index_select(_axis(module, of_outputs=of_outputs), places), requires_grad=False)
    if of_outputs and isinstance(module.bias, Tensor):
        module.bias = nn.Parameter(module.bias.index_select(0, places), requires_grad=False)
