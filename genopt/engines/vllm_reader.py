"""Reads the logits of a text inside vLLM's own process: vLLM itself tells of the most probable tokens alone."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from genopt.engines.distribution import Distributions, Wanted
from genopt.engines.normalizer import Normalizer
from genopt.engines.process_memory import process_memory

EXTENSION = f"{__name__}.TextReader"
"""What vLLM is told to add to its worker."""


class TextReader:
    """Joins vLLM's worker (`worker_extension_cls`), which calls these methods by name; the worker has none called so itself."""

    model_runner: Any
    _heard: _Text | None

    def begin_text(self, following: list[int], wanted: int | None, ids: bytes, vocabulary: int, threads: int) -> None:
        """Keeps what the head gives from now on.

        Args:
            following: The text without its first token.
            wanted: How many of the most probable tokens to keep at each position, or None for `ids`.
            ids: Which tokens to keep, as int32, as many at each position.
            vocabulary: Number of token ids; the head may be wider.
            threads: Most that normalize.
        """
        if "_heard" not in vars(self):
            self._listen()
        asked = np.frombuffer(ids, np.int32).reshape(len(following), -1) if wanted is None else wanted
        self._heard = _Text(following, asked, vocabulary, threads)

    def end_text(self) -> bytes:
        """What was kept, as the bytes of an .npz file with the fields of `Distributions`."""
        text, self._heard = self._heard, None
        return b"" if text is None else text.end()

    def memory_of_worker(self) -> Mapping[str, int]:
        """Memory of vLLM's process, by the names of `genopt.engines.base.Memory`."""
        found = process_memory(torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0)
        known = found.model_dump(include={"rss_bytes", "peak_rss_bytes", "device_peak_bytes"})
        return {**known, "kv_reserved_bytes": _storage(self.model_runner.kv_caches)}

    def tokens_of_block(self) -> int:
        """How many tokens' keys and values a block holds, which is what vLLM hands out room in; 0 where the model keeps none."""
        return min((group.kv_cache_spec.block_size for group in self.model_runner.kv_cache_config.kv_cache_groups), default=0)

    def _listen(self) -> None:
        self._heard = None
        runner, model = self.model_runner, self.model_runner.get_model()
        execute, compute = runner.execute_model, model.compute_logits

        def executed(*arguments: Any, **named: Any) -> Any:
            if self._heard is not None:
                self._heard.begin_step()
            return execute(*arguments, **named)

        def computed(*arguments: Any, **named: Any) -> Any:
            logits = compute(*arguments, **named)
            if self._heard is not None and logits is not None:
                self._heard.hear(logits)
            return logits

        runner.execute_model, model.compute_logits = executed, computed


def _storage(caches: Iterable[torch.Tensor | Sequence[torch.Tensor]]) -> int:
    """Bytes behind the caches of all layers, each of which may be a part of what others share."""
    tensors = itertools.chain.from_iterable([one] if isinstance(one, torch.Tensor) else one for one in caches)
    return sum({part.data_ptr(): part.nbytes() for part in (tensor.untyped_storage() for tensor in tensors)}.values())


class _Text:
    """A text that is being read, in pieces of one step each.

    The head computes for the token that follows first, whatever it is, and then for the text.
    """

    def __init__(self, following: list[int], wanted: Wanted, vocabulary: int, threads: int) -> None:
        self._vocabulary, self._whole = vocabulary, len(following)
        self._normalizer = Normalizer(threads)
        self._text = self._normalizer.begin(following, wanted)
        self._first = True

    def begin_step(self) -> None:
        self._first = True

    def hear(self, logits: torch.Tensor) -> None:
        if self._first:
            self._first = False
            return
        self._text.take(logits[: self._text.missing, : self._vocabulary].float().cpu().numpy())

    def end(self) -> bytes:
        self._normalizer.close()
        file = io.BytesIO()
        if self._text.missing < self._whole:
            np.savez(file, **vars(self._text.distributions()))
        return file.getvalue()


def read_distributions(data: bytes) -> Distributions | None:
    """What `TextReader.end_text` returned; None where it heard nothing."""
    if not data:
        return None
    with np.load(io.BytesIO(data), allow_pickle=False) as found:
        return Distributions(**found)
