"""A causal language model as users run it: eager, in the checkpoint's number format, through `generate`, with a clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from genopt.errors import ModelError
from genopt.models.checkpoint import load_with
from genopt.models.kv_cache import CacheSize
from genopt.profiling.ceilings import synchronize
from genopt.profiling.families import Layout, attention_operations
from genopt.profiling.roofline import Work
from genopt.search.footprint import Footprint


def load(folder: Path, device: torch.device) -> Any:
    """The model in a folder, on a device.

    Raises:
        ModelError: It cannot be loaded.
    """
    try:
        model: Any = load_with(folder, dtype="auto")
    except (OSError, ValueError, KeyError, ImportError) as error:
        cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"{folder} cannot be loaded as a causal language model ({cause}); check the folder with transformers.") from None
    model.generation_config = GenerationConfig(pad_token_id=0)  # no end token: every step is timed
    return model.to(device).eval()


class _Clock(LogitsProcessor):
    """Stamps every new token; the callback's own time counts for no step."""

    def __init__(self, device: torch.device, on_token: Callable[[int], None] | None) -> None:
        self._device, self._on_token = device, on_token
        self.before: list[float] = []
        self.after: list[float] = []

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Leaves the scores alone."""
        synchronize(self._device)
        self.before.append(time.perf_counter())
        if self._on_token is not None:
            self._on_token(len(self.before))
        self.after.append(time.perf_counter())
        return scores


class Generation:
    """A loaded model with its prompt.

    Args:
        model: As `load` gives it.
        device: Where it is.
        prompt_ids: Tokens of the prompt; cut where the model's context would be too short for `new_tokens` more.
        new_tokens: The most tokens that will be asked for.
    """

    def __init__(self, model: Any, device: torch.device, prompt_ids: Sequence[int], new_tokens: int) -> None:
        self.device = device
        self.model = model
        self.layout = Layout(model)
        self._config = model.config.get_text_config()
        longest = getattr(self._config, "max_position_embeddings", None)
        kept = max(1, longest - new_tokens) if longest else len(prompt_ids)
        self._ids = torch.tensor([list(prompt_ids)[:kept]], device=device)

    @property
    def dtype(self) -> torch.dtype:
        """The number format of the weights."""
        found: torch.dtype = next(self.model.parameters()).dtype
        return found

    @property
    def prompt(self) -> list[int]:
        """Tokens of the prompt, after the cut."""
        found: list[int] = self._ids[0].tolist()
        return found

    @property
    def tokens(self) -> int:
        """Length of the prompt."""
        return int(self._ids.shape[1])

    def run(self, count: int, on_token: Callable[[int], None] | None = None) -> tuple[list[float], Any]:
        """Seconds to the first and to each further token, and the cache."""
        clock = _Clock(self.device, on_token)
        started = time.perf_counter()
        found = self.model.generate(
            self._ids, attention_mask=torch.ones_like(self._ids), max_new_tokens=count, do_sample=False, return_dict_in_generate=True,
            logits_processor=LogitsProcessorList([clock]),
        )  # fmt: skip
        return [end - start for start, end in zip([started, *clock.after], clock.before, strict=False)], found.get("past_key_values")

    def footprint(self, cache: CacheSize, context: int) -> Footprint:
        """One token at a context, in the terms in which techniques say what they change."""
        operations = attention_operations(self._config, tokens=1, context=context)
        parts = self.layout.parts(bits=8.0 * self.dtype.itemsize, attention_operations=operations)
        return Footprint(parts=parts, state_bytes=cache.at(context), layers=getattr(self._config, "num_hidden_layers", None) or 1)

    def prefill_work(self, cache: CacheSize) -> Mapping[str, Work]:
        """What the families do for the prompt, with a cache of the size that it fills."""
        operations = attention_operations(self._config, tokens=self.tokens, context=0)
        return self.layout.work(tokens=self.tokens, state_bytes=cache.at(self.tokens), attention_operations=operations)

    def decode_work(self, cache: CacheSize, context: int) -> Mapping[str, Work]:
        """What the families do for one token after `context` earlier ones."""
        operations = attention_operations(self._config, tokens=1, context=context)
        return self.layout.work(tokens=1, state_bytes=cache.at(context), attention_operations=operations)
