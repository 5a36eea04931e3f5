"""How large a language model's cache is: keys and values that grow with the context, and states that do not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from genopt.plan import Record


class CacheSize(Record):
    """Bytes of a cache of transformers.

    Attributes:
        layers: Per layer with keys and values: tokens that it has room for, and bytes per token of one sequence.
        state_bytes: Bytes of all else, such as the state of recurrent layers.
        rows: Sequences in it.
    """

    layers: tuple[tuple[int, float], ...]
    state_bytes: int
    rows: int

    @property
    def bytes_per_token(self) -> float:
        """Bytes by which one sequence grows per token, while it is shorter than any window."""
        return sum(each for _, each in self.layers)

    @property
    def bytes(self) -> int:
        """Bytes of everything that it holds."""
        return round(self.rows * sum(tokens * each for tokens, each in self.layers)) + self.state_bytes

    def at(self, context: int) -> float:
        """Bytes of one sequence of so many tokens; layers with a window keep no more than what they held when they were measured."""
        return sum(min(tokens, context) * each for tokens, each in self.layers) + self.state_bytes / max(1, self.rows)


def cache_size(cache: Any) -> CacheSize:
    """Measures a cache that a model has filled.

    Args:
        cache: As `past_key_values` gives it; one without layers, or none, is empty.
    """
    layers: list[tuple[int, float]] = []
    state, rows = 0, 1
    for layer in getattr(cache, "layers", None) or ():
        fields = vars(layer)
        pair = [fields[name] for name in ("keys", "values") if isinstance(fields.get(name), Tensor) and fields[name].dim() == 4]
        if pair and pair[0].numel():
            rows, tokens = pair[0].shape[0], pair[0].shape[-2]
            layers.append((tokens, sum(map(_bytes, pair)) / (rows * tokens)))
        state += sum(_bytes(tensor) for name, value in fields.items() if name not in ("keys", "values") for tensor in _tensors(value))
    return CacheSize(layers=tuple(layers), state_bytes=state, rows=rows)


def _tensors(value: Any) -> Iterator[Tensor]:
    """A tensor, or those in a dict of them; single numbers such as lengths are left out."""
    for item in value.values() if isinstance(value, dict) else (value,):
        if isinstance(item, Tensor) and item.numel() > 1:
            yield item


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
