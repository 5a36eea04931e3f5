"""Leaves out the MLP neurons and groups of attention heads that contribute least, so that matrices really become smaller.

A unit is worth the root mean square of its activation on calibration text times the length of the weights that read it:
activations as in Muralidharan et al., "Compact Language Models via Pruning and Knowledge Distillation", 2024, weights beside
them as in Sun et al., "A Simple and Effective Pruning Approach for Large Language Models", 2023. All layers keep equally many,
so that any engine can load the result.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from genopt.errors import InfeasibleError
from genopt.plan import JsonValue, Record, parse_settings
from genopt.search.footprint import ATTENTION, MLP, PROJECTIONS, Footprint
from genopt.techniques.base import Progress, Transform, TransformContext
from genopt.techniques.calibration import calibration_sequences

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

NEURONS = ("intermediate_size", "n_inner", "ffn_dim")
"""What configs call the width of an MLP."""
LARGEST_MULTIPLE, SHARE_OF_WIDTH = 64, 8
"""Neurons are kept in multiples of a power of two that is at most so large, and at most this part of the width: blocks of
weights that share a scale, and the tiles of kernels, divide them."""


class PruneWidthParams(Record):
    """Parameters.

    Attributes:
        neurons: Share of each MLP's neurons to leave out.
        heads: Share of each layer's groups of heads, which share a key and a value, to leave out.
        calibration_tokens: Calibration tokens on which units are judged.
    """

    neurons: float = Field(default=0.25, ge=0, lt=1)
    heads: float = Field(default=0.0, ge=0, lt=1)
    calibration_tokens: int = Field(default=4096, ge=16)


class PruneWidth(Transform):
    """See `genopt.techniques.base.Transform`."""

    name = "prune_width"
    version = 2
    phase = 15
    requires = frozenset({"hf"})
    excludes = frozenset({"quantized", "sparse"})
    needs_calibration = True
    gpu = "used"

    @classmethod
    def check(cls, source: Path, params: dict[str, JsonValue]) -> None:
        """See `Transform.check`."""
        chosen = parse_settings(PruneWidthParams, params, cls.name)
        config = json.loads((source / "config.json").read_text(encoding="utf-8"))
        if not chosen.neurons and not chosen.heads:
            raise InfeasibleError("prune_width is to leave out neither neurons nor heads; give it a share of either.")
        groups = config.get("num_key_value_heads")
        if chosen.heads and groups is not None and kept_groups(groups, chosen.heads) == groups:
            raise InfeasibleError(f"The layers have {groups} groups of heads, of which {chosen.heads:.0%} is less than one; leave out more.")

    @staticmethod
    def footprint(before: Footprint, params: dict[str, JsonValue]) -> Footprint:
        """See `Transform.footprint`."""
        chosen = parse_settings(PruneWidthParams, params, "prune_width")
        fewer = before.narrowed(1 - chosen.neurons, (MLP,)).narrowed(1 - chosen.heads, (PROJECTIONS, ATTENTION))
        return fewer.risked(0.05)

    @classmethod
    def apply(cls, source: Path, destination: Path, params: dict[str, JsonValue], context: TransformContext, progress: Progress) -> None:
        """See `Transform.apply`."""
        from genopt.models.checkpoint import load_model, save_model

        chosen = parse_settings(PruneWidthParams, params, cls.name)
        sequences = calibration_sequences(context.calibration, chosen.calibration_tokens)
        model = load_model(source)
        narrow(model, chosen, sequences, progress)
        save_model(model, source, destination)


def kept_neurons(width: int, share: float) -> int:
    """How many of an MLP's neurons stay, a multiple of a power of two."""
    multiple = min(LARGEST_MULTIPLE, 1 << max(0, int(math.log2(max(1, width // SHARE_OF_WIDTH)))))
    return min(width, max(multiple, round((1 - share) * width / multiple) * multiple))


def kept_groups(groups: int, share: float) -> int:
    """How many groups of heads stay; at least one."""
    return max(1, groups - int(share * groups + 1e-9))


def narrow(model: PreTrainedModel, chosen: PruneWidthParams, sequences: list[list[int]], progress: Progress) -> None:
    """Leaves out units of a model, in place; its config says what is left.

    Args:
        model: On its device.
        chosen: How many.
        sequences: Token ids on which they are judged.
        progress: Told how far it is.

    Raises:
        InfeasibleError: The architecture's layers are of a kind that is not known.
    """
    from genopt.models import activations, width

    config = model.config.get_text_config(decoder=True)
    mlps = width.mlps(model) if chosen.neurons else []
    attentions = width.attentions(model) if chosen.heads else []
    blocks = [*mlps, *attentions]
    squares = activations.mean_squares(model, {str(place): block.reader for place, block in enumerate(blocks)}, sequences, progress)
    worth = [squares[str(place)].sqrt() * width.weights_of_units(block) for place, block in enumerate(blocks)]
    if mlps:
        count = kept_neurons(mlps[0].width, chosen.neurons)
        progress(f"keeping {count} of {mlps[0].width} neurons in each layer")
        for block, of_units in zip(mlps, worth, strict=False):
            width.keep(block, _best(of_units, count))
        config.update({next(name for name in NEURONS if name in config.to_dict()): count})
    if attentions:
        _narrow_attention(config, attentions, worth[len(mlps) :], chosen.heads, progress)


def _narrow_attention(config: Any, attentions: list[Any], worth: list[Tensor], share: float, progress: Progress) -> None:
    """Leaves out whole groups: query heads with the one key and value that they share."""
    import torch

    from genopt.models import width

    values = config.to_dict()
    heads, groups = values["num_attention_heads"], values.get("num_key_value_heads") or values["num_attention_heads"]
    size, count = attentions[0].width // heads, kept_groups(groups, share)
    progress(f"keeping {count} of {groups} groups of heads in each layer")
    for block, of_units in zip(attentions, worth, strict=True):
        best = _best(of_units.view(groups, -1).pow(2).sum(1), count)
        queries, shared = (
            torch.arange(total * size, device=of_units.device).view(groups, -1)[best].flatten() for total in (heads, groups)
        )  # fmt: skip
        width.keep(block, queries, (queries, shared, shared))
    config.update({"head_dim": size, "num_key_value_heads": count, "num_attention_heads": heads // groups * count})


def _best(worth: Tensor, count: int) -> Tensor:
    """Places of the most worthy units, in their own order."""
    return worth.topk(count).indices.sort().values
