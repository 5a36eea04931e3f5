"""Rows of a transformers cache that sequences join and leave: compiled where there is one, eager and padded on the left where there are more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import DynamicLayer, StaticLayer

from genopt.engines.rows import Logits
from genopt.engines.torch_step import Decode

Pairs = Sequence[tuple[Tensor, Tensor]]
CHUNK = 256


class Compiled:
    """The compiled step of single streams and the one cache that it works on, whose tensors stay in place.

    Args:
        step: Token, position and cache in, logits out.
        cache: For one sequence.
        length: Tokens that the cache has room for.
        settings: Under which the step runs.
    """

    def __init__(self, step: Decode, cache: StaticCache, length: int, settings: Callable[[], AbstractContextManager[None]]) -> None:
        self.cache = cache
        self.length = length
        self._step = step
        self._settings = settings

    def __call__(self, token: int, position: int, device: torch.device) -> Tensor:
        """Logits after a token, of shape (1, vocabulary)."""
        # The same strides each time, or the step is compiled again.
        ids = torch.full((1, 1), token, dtype=torch.long, device=device)
        with self._settings():
            return self._step(ids, torch.full_like(ids, position), self.cache)[0]


class TorchDecoder:
    """See `genopt.engines.decoding.Decoder`.

    Args:
        model: A causal language model.
        compiled: For as long as there is one row, if it fits.
        around: Opened around every call of the model.
    """

    chunk = CHUNK

    def __init__(self, model: Any, compiled: Compiled | None, around: Callable[[], AbstractContextManager[object]]) -> None:
        self._model = model
        self._compiled = compiled
        self._around = around
        self._prompt: DynamicCache | StaticCache = DynamicCache(config=model.config)
        self._cache: DynamicCache | StaticCache = self._prompt
        self._read = self._longest = 0
        self._lengths: list[int] = []

    @staticmethod
    def takes(model: Any) -> bool:
        """Whether rows of this model's cache can move: all of its layers keep all keys and values."""
        return all(type(layer) is DynamicLayer for layer in DynamicCache(config=model.config).layers)

    @property
    def _device(self) -> torch.device:
        device: torch.device = self._model.device
        return device

    @torch.inference_mode()
    def begin(self, rows: int, length: int) -> None:
        """See `Decoder.begin`."""
        self._read, self._longest = 0, length
        if not rows:
            self._lengths = []
        if not rows and self._compiled is not None and length <= self._compiled.length:
            self._prompt = self._compiled.cache
            self._prompt.reset()
        else:
            self._prompt = DynamicCache(config=self._model.config)

    @torch.inference_mode()
    def read(self, ids: Sequence[int]) -> Logits:
        """See `Decoder.read`."""
        positions = torch.arange(self._read, self._read + len(ids), device=self._device)[None]
        with self._around():
            output = self._model(
                input_ids=torch.tensor([ids], device=self._device), position_ids=positions, past_key_values=self._prompt, use_cache=True,
                logits_to_keep=1,
            )  # fmt: skip
        self._read += len(ids)
        logits: Logits = as_rows(output.logits[:, -1])[0]
        return logits

    @torch.inference_mode()
    def add(self, rows: int) -> None:
        """See `Decoder.add`."""
        if rows:
            width = max(*self._lengths, self._read)
            self._cache = self._stacked(_padded(self._movable(), width), _padded(self._prompt, width))
        else:
            self._cache = self._prompt
        self._lengths.append(self._read)

    def _movable(self) -> DynamicCache | StaticCache:
        """The cache itself, or a copy of what the compiled step's one holds."""
        if isinstance(self._cache, DynamicCache):
            return self._cache
        found = DynamicCache(config=self._model.config)
        for place, layer in enumerate(_layers(self._cache)):
            found.update(layer.keys[:, :, : self._lengths[0]].clone(), layer.values[:, :, : self._lengths[0]].clone(), place)
        return found

    def _stacked(self, above: Pairs, below: Pairs) -> DynamicCache:
        found = DynamicCache(config=self._model.config)
        for place, (one, other) in enumerate(zip(above, below, strict=True)):
            found.update(torch.cat([one[0], other[0]]), torch.cat([one[1], other[1]]), place)
        return found

    @torch.inference_mode()
    def step(self, tokens: Sequence[int]) -> Logits:
        """See `Decoder.step`."""
        with self._around():
            compiled = self._compiled_for_one()
            logits = self._several(tokens) if compiled is None else compiled(tokens[0], self._lengths[0], self._device)
        self._lengths = [length + 1 for length in self._lengths]
        return as_rows(logits)

    def _compiled_for_one(self) -> Compiled | None:
        """The compiled step, where one row is left that fits; the row is then where the step works."""
        compiled = self._compiled
        if compiled is None or len(self._lengths) > 1 or self._longest > compiled.length:
            return None
        if self._cache is not compiled.cache:
            if any(type(layer) is not StaticLayer for layer in compiled.cache.layers):
                return None
            compiled.cache.reset()
            for place, layer in enumerate(_layers(self._cache)):
                compiled.cache.update(layer.keys, layer.values, place)
            self._cache = compiled.cache
        return compiled

    def _several(self, tokens: Sequence[int]) -> Tensor:
        width = max(self._lengths)
        lengths = torch.tensor(self._lengths, device=self._device)[:, None]
        padded = min(self._lengths) < width
        mask = (torch.arange(width + 1, device=self._device)[None] >= width - lengths).long() if padded else None
        output = self._model(
            input_ids=torch.tensor(tokens, device=self._device)[:, None], attention_mask=mask, position_ids=lengths,
            past_key_values=self._cache, use_cache=True, logits_to_keep=1,
        )  # fmt: skip
        logits: Tensor = output.logits[:, -1]
        return logits

    @torch.inference_mode()
    def drop(self, row: int, rows: int) -> None:
        """See `Decoder.drop`."""
        last = self._lengths.pop()
        if row < rows - 1:
            self._lengths[row] = last
        kept = [place if place != row else rows - 1 for place in range(rows - 1)]
        if kept and isinstance(self._cache, DynamicCache):
            for layer in _layers(self._cache):
                layer.keys = layer.keys[kept, :, -max(self._lengths) :]
                layer.values = layer.values[kept, :, -max(self._lengths) :]


def _layers(cache: DynamicCache | StaticCache) -> list[Any]:
    """The layers; `TorchDecoder.takes` saw to it that all have keys and values."""
    return list(cache.layers)


def _padded(cache: DynamicCache | StaticCache, width: int) -> Pairs:
    """Keys and values of each layer, moved to the right end of so many places."""
    return [(_shifted(layer.keys, width), _shifted(layer.values, width)) for layer in _layers(cache)]


def _shifted(values: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(values, (0, 0, width - values.shape[-2], 0))


def as_rows(values: Tensor) -> Logits:
    """Logits as the choice of tokens takes them."""
    found: Logits = values.float().cpu().numpy()
    return found
