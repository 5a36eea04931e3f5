"""What enters matrices of a language model while it reads text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from genopt.models import products


def mean_squares(
    model: PreTrainedModel, matrices: Mapping[str, nn.Module], sequences: Sequence[Sequence[int]], progress: Callable[[str], None]
) -> dict[str, Tensor]:  # fmt: skip
    """By name of a matrix, the mean square of each of its inputs over all tokens, in float32.

    Args:
        model: On its device.
        matrices: Of the model.
        sequences: Token ids.
        progress: Told how far it is.
    """
    totals: dict[str, Tensor] = {}

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def add(_: nn.Module, received: tuple[Any, ...]) -> None:
            squares = received[0].float().pow(2).flatten(0, -2).sum(0)
            totals[name] = totals[name] + squares if name in totals else squares

        return add

    hooks = [module.register_forward_pre_hook(hook(name)) for name, module in matrices.items()]
    try:
        with torch.inference_mode(), products.by_fp32(products.are_slow_in(model)):
            for number, sequence in enumerate(sequences, start=1):
                model(input_ids=torch.tensor([list(sequence)], device=model.device), use_cache=False)
                progress(f"weighed the inputs of {len(matrices)} matrices on {number} of {len(sequences)} texts")
    finally:
        for one in hooks:
            one.remove()
    tokens = sum(map(len, sequences))
    return {name: total / tokens for name, total in totals.items()}
