"""A session of vLLM's asynchronous engine."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from genopt.engines.base import Generation, GenerationRequest, Memory, OnToken, RunningBatch, Scores
from genopt.engines.decoding import generate_together
from genopt.engines.distribution import Distributions, Wanted, require_rows
from genopt.engines.process_memory import process_memory
from genopt.engines.rows import require_fit
from genopt.engines.vllm_loop import FITTED, EngineLoop, open_loop
from genopt.engines.vllm_options import VllmOptions
from genopt.engines.vllm_reader import read_distributions
from genopt.errors import StageError

AGREES = 0.05
"""How far a log-probability that vLLM tells may lie from the one that follows from the logits that were read."""


class VllmSession:
    """See `genopt.engines.base.TextSession`, and `Joinable`.

    Args:
        folder: Artifact with the trait `hf`.
        options: Runtime options.

    Raises:
        InfeasibleError: vLLM does not know the architecture or the options' combination.
        OutOfMemoryError: Weights, keys and values do not fit.
    """

    def __init__(self, folder: Path, options: VllmOptions) -> None:
        self._loop = open_loop(folder, options)
        from genopt.engines.vllm_batch import Limits, VllmBatch

        config = self._loop.engine.vllm_config
        self._limits = Limits(context=_context(self._loop, options), vocabulary=config.model_config.get_vocab_size())
        self._bytes_per_token = _bytes_per_token(config)
        self._batch = VllmBatch(self._loop, self._limits)
        self._threads = options.threads or os.cpu_count() or 1
        self._texts = itertools.count()
        self._longest_text = 0

    def warm_up(self) -> None:
        """Runs a prompt and a decode step once."""
        self.generate([GenerationRequest(prompt_ids=(0,) * min(8, self._limits.context - 2), max_new_tokens=2)])

    def running_batch(self, slots: int) -> RunningBatch:
        """See `Joinable.running_batch`; vLLM itself keeps those waiting that are too many."""
        self._batch.give_up()
        return self._batch

    def generate(self, requests: Sequence[GenerationRequest], on_token: OnToken | None = None) -> list[Generation]:
        """See `TextSession.generate`.

        Raises:
            SpecError: A prompt with its answer is longer than the context, or has ids outside of the vocabulary.
        """
        for request in requests:
            self._check(request.prompt_ids, len(request.prompt_ids) + request.max_new_tokens)
        return generate_together(self._batch, requests, on_token)

    def score(self, sequences: Sequence[Sequence[int]]) -> Scores:
        """See `TextSession.score`.

        Raises:
            SpecError: A sequence is longer than the context, or has ids outside of the vocabulary.
        """
        for sequence in sequences:
            self._check(sequence, len(sequence))
        return Scores.of([self._distributions(sequence, 0) for sequence in sequences])

    def distributions(self, sequence: Sequence[int], wanted: Wanted) -> Distributions:
        """See `TextSession.distributions`.

        Raises:
            SpecError: The sequence is longer than the context, or has ids outside of the vocabulary.
            StageError: What was read is not what vLLM itself says about the text.
        """
        self._check(sequence, len(sequence))
        if not isinstance(wanted, int):
            require_rows(wanted, len(sequence))
        return self._distributions(sequence, wanted)

    def _distributions(self, sequence: Sequence[int], wanted: Wanted) -> Distributions:
        ids, count = (b"", wanted) if isinstance(wanted, int) else (np.ascontiguousarray(wanted, np.int32).tobytes(), None)
        self._loop.ask_worker("begin_text", list(sequence[1:]), count, ids, self._limits.vocabulary, self._threads)
        try:
            told = self._loop.run(self._read(sequence))
        finally:
            found = read_distributions(self._loop.ask_worker("end_text"))
        if found is None or len(found.log_probs) != len(told) or not np.allclose(found.log_probs, told, atol=AGREES):
            raise StageError("This release of vLLM computes a text's logits in another way than expected; use the one that genopt's lock names.")
        return found

    async def _read(self, sequence: Sequence[int]) -> list[float]:
        """Has vLLM read a text; returns the log-probability of each token but the first, as it tells it."""
        from vllm import SamplingParams

        asked = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0, detokenize=False, ignore_eos=True)
        told: list[float] = []
        self._longest_text = max(self._longest_text, len(sequence))
        async for output in self._loop.engine.generate({"prompt_token_ids": list(sequence)}, asked, f"text-{next(self._texts)}"):
            entries = (output.prompt_logprobs or [])[1:]
            told = [entry[token].logprob for token, entry in zip(sequence[1:], entries, strict=True) if entry is not None]
        return told

    def _check(self, ids: Sequence[int], length: int) -> None:
        require_fit(ids, length, context=self._limits.context, vocabulary=self._limits.vocabulary)

    def memory(self) -> Memory:
        """See `TextSession.memory`; both processes together."""
        own, worker = process_memory(), Memory.model_validate(self._loop.ask_worker("memory_of_worker"))
        filled = round(max(self._batch.most_tokens, self._longest_text) * self._bytes_per_token)
        return Memory(
            rss_bytes=own.rss_bytes + worker.rss_bytes, peak_rss_bytes=own.peak_rss_bytes + worker.peak_rss_bytes,
            device_peak_bytes=worker.device_peak_bytes, kv_cache_bytes=min(filled, worker.kv_reserved_bytes),
            kv_bytes_per_token=self._bytes_per_token, kv_reserved_bytes=worker.kv_reserved_bytes,
        )  # fmt: skip

    def close(self) -> None:
        """See `TextSession.close`."""
        self._loop.close()


def _context(loop: EngineLoop, options: VllmOptions) -> int:
    """Longest text that vLLM takes: what was asked for, the model's, or less than that where memory holds no text of that length.

    Release 0.22 counts a block that it keeps for itself as room for texts, and one that needs it as well would wait for ever (read in its
    scheduler, not seen).
    """
    model = loop.engine.vllm_config.model_config
    fitted: int = model.max_model_len  # as it came back from the process that has the memory
    if options.max_context is not None or fitted == model.get_and_verify_max_len(FITTED):
        return fitted
    return fitted - int(loop.ask_worker("tokens_of_block"))


def _bytes_per_token(config: Any) -> float:
    """Keys and values of a token of one sequence in a configured vLLM."""
    model, parallel = config.model_config, config.parallel_config
    width = 1 if "fp8" in config.cache_config.cache_dtype else torch.finfo(model.dtype).bits // 8
    return float(width * 2 * model.get_num_layers(parallel) * model.get_num_kv_heads(parallel) * model.get_head_size())
