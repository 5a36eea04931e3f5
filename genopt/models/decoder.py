"""The stack of decoder layers inside a language model: finding it, looking past one layer, leaving some out."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor
from torch.nn import Module, ModuleList
from transformers import PretrainedConfig, PreTrainedModel

from genopt.errors import InfeasibleError


def decoder_layers(model: PreTrainedModel) -> tuple[str, ModuleList]:
    """Name and list of the decoder layers: the one list as long as the config says.

    Raises:
        InfeasibleError: There is none, or more than one.
    """
    count = model.config.get_text_config(decoder=True).num_hidden_layers
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, ModuleList) and len(module) == count]
    if len(found) != 1:
        raise InfeasibleError(f"{type(model).__name__} has {len(found)} stacks of {count} layers where one is expected; use another technique.")
    return found[0]


@contextmanager
def replayed(layers: Mapping[Module, int], hidden: Tensor) -> Iterator[None]:
    """Within the block some layers do nothing but hand on `hidden`, so that only what follows them is computed.

    Args:
        layers: With each layer how many things it returns in a tuple, the hidden states first; 0 for one that returns these alone.
        hidden: The states.
    """
    for layer, count in layers.items():
        layer.forward = partial(_hand_on, hidden, count)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _hand_on(hidden: Tensor, count: int, *_: Any, **__: Any) -> Tensor | tuple[Tensor | None, ...]:
    """What a layer returns that leaves the states as they are; what else it would tell, such as weights of attention, nobody asks for."""
    return (hidden, *[None] * (count - 1)) if count else hidden


def without_layers(model: PreTrainedModel, dropped: Collection[int]) -> PreTrainedModel:
    """A new model that lacks some decoder layers, with a config that any engine can load.

    Args:
        model: The whole model; its other weights are shared with the result's state, not copied twice.
        dropped: Indices of layers to leave out.

    Raises:
        InfeasibleError: The model's layers cannot be told from its config.
    """
    name, layers = decoder_layers(model)
    kept = [index for index in range(len(layers)) if index not in dropped]
    state = {}
    places = {old: new for new, old in enumerate(kept)}
    for key, value in model.state_dict().items():
        if not key.startswith(f"{name}."):
            state[key] = value
            continue
        index, _, rest = key.removeprefix(f"{name}.").partition(".")
        if int(index) in places:
            state[f"{name}.{places[int(index)]}.{rest}"] = value
    # Its own class, whatever transformers would take for such a config.
    smaller: PreTrainedModel = type(model)._from_config(_config(model.config, kept, len(layers)), dtype=model.dtype)
    smaller.load_state_dict(state)
    smaller.generation_config = model.generation_config
    smaller.eval()
    return smaller


def _config(config: PretrainedConfig, kept: list[int], count: int) -> PretrainedConfig:
    """The config of the smaller model: fewer layers, and lists with an entry per layer cut alike."""
    smaller = copy.deepcopy(config)
    values = smaller.to_dict()
    per_layer = {key: [value[index] for index in kept] for key, value in values.items() if isinstance(value, list) and len(value) == count}
    cut: PretrainedConfig = type(config).from_dict({**values, **per_layer, "num_hidden_layers": len(kept)})
    return cut
