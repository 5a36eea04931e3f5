"""Leaves out the decoder layers whose absence changes the model's predictions least."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from genopt.errors import InfeasibleError
from genopt.plan import JsonValue, Record, parse_settings
from genopt.search.footprint import Footprint
from genopt.search.space import Tunable
from genopt.techniques.base import Progress, Transform, TransformContext
from genopt.techniques.calibration import calibration_sequences

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import ModuleList
    from transformers import PreTrainedModel


class DropLayersParams(Record):
    """Parameters.

    Attributes:
        count: Layers to leave out.
        calibration_tokens: Calibration tokens on which every layer is judged.
    """

    count: int = Field(default=1, gt=0)
    calibration_tokens: int = Field(default=1024, ge=16)


class DropLayers(Transform):
    """See `genopt.techniques.base.Transform`."""

    name = "drop_layers"
    version = 2
    phase = 10
    requires = frozenset({"hf"})
    excludes = frozenset({"quantized", "sparse"})
    needs_calibration = True
    gpu = "used"
    tunables = (Tunable(name="count", choices=(1, 2), words=("1-layer", "2-layers")),)

    @classmethod
    def check(cls, source: Path, params: dict[str, JsonValue]) -> None:
        """See `Transform.check`."""
        count = parse_settings(DropLayersParams, params, cls.name).count
        config = json.loads((source / "config.json").read_text(encoding="utf-8"))
        layers = next((config[key] for key in ("num_hidden_layers", "n_layer", "num_layers") if key in config), None)
        if layers is not None and count >= layers:
            raise InfeasibleError(f"The model has {layers} layers, so {count} cannot be left out; drop fewer.")

    @staticmethod
    def footprint(before: Footprint, params: dict[str, JsonValue]) -> Footprint:
        """See `Transform.footprint`."""
        count = parse_settings(DropLayersParams, params, "drop_layers").count
        return before.with_layers(max(1.0, before.layers - count)).risked(0.3**count)

    @classmethod
    def apply(cls, source: Path, destination: Path, params: dict[str, JsonValue], context: TransformContext, progress: Progress) -> None:
        """See `Transform.apply`."""
        from genopt.models.checkpoint import load_model, save_model
        from genopt.models.decoder import without_layers

        chosen = parse_settings(DropLayersParams, params, cls.name)
        sequences = calibration_sequences(context.calibration, chosen.calibration_tokens)
        model = load_model(source)
        losses = layer_losses(model, sequences, progress)
        dropped = sorted(range(len(losses)), key=lambda index: losses[index])[: chosen.count]
        progress(f"leaving out {', '.join(f'layer {index} (KL {losses[index]:.4f})' for index in sorted(dropped))}")
        save_model(without_layers(model, dropped), source, destination)


def layer_losses(model: PreTrainedModel, sequences: list[list[int]], progress: Progress) -> list[float]:
    """Mean KL divergence per token, in nats, from the model to itself without each of its layers.

    Everything before a left-out layer is as in the whole model, so only what follows it is computed again.

    Args:
        model: On its device.
        sequences: Token ids.
        progress: Told how far it is.
    """
    import torch

    from genopt.models import products
    from genopt.models.decoder import decoder_layers, replayed

    _, layers = decoder_layers(model)
    totals = [0.0] * len(layers)
    with torch.inference_mode(), products.by_fp32(products.are_slow_in(model)):
        for number, sequence in enumerate(sequences, start=1):
            ids = torch.tensor([sequence], device=model.device)
            inputs, counts, reference = _observed(model, layers, ids)
            for index, hidden in enumerate(inputs):
                with replayed(dict(zip(layers[: index + 1], counts[: index + 1], strict=True)), hidden):
                    found = _log_probs(model, ids)
                totals[index] += float((reference.exp() * (reference - found)).sum())
            progress(f"judged all layers on {number} of {len(sequences)} texts")
    tokens = sum(map(len, sequences))
    return [total / tokens for total in totals]


def _observed(model: PreTrainedModel, layers: ModuleList, ids: Tensor) -> tuple[list[Tensor], list[int], Tensor]:
    """What enters each layer, how many things it returns in a tuple (0 for no tuple), and the log-probabilities that come out in the end."""
    inputs: list[Tensor] = []
    counts: list[int] = []
    before = [layer.register_forward_pre_hook(lambda _, received: inputs.append(received[0])) for layer in layers]
    after = [layer.register_forward_hook(lambda _, received, made: counts.append(len(made) if isinstance(made, tuple) else 0)) for layer in layers]
    try:
        reference = _log_probs(model, ids)
    finally:
        for hook in (*before, *after):
            hook.remove()
    return inputs, counts, reference


def _log_probs(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Of every next token, in float32."""
    return model(input_ids=ids, use_cache=False).logits[0].float().log_softmax(dim=-1)  # type: ignore[no-any-return]
