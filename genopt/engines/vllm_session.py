"""A session of vLLM, whose engine core runs in this process, so that a step is a call and its logits can be read."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from genopt.engines.base import Generation, GenerationRequest, Memory, OnToken, RunningBatch, Scores
from genopt.engines.decoding import generate_together
from genopt.engines.distribution import Distributions, Wanted, require_rows
from genopt.engines.normalizer import Normalizer
from genopt.engines.process_memory import process_memory
from genopt.engines.rows import require_fit
from genopt.engines.vllm import DRAFT, VllmOptions
from genopt.errors import InfeasibleError, OutOfMemoryError, StageError
from genopt.models.trust import trusted

Logits = NDArray[np.float32]
AGREES = 0.05
"""How far a log-probability that vLLM tells may lie from the one that follows from the logits that were read."""

KERNELS: Mapping[str | None, Mapping[str, str]] = {None: {}, "humming": {"quantization": "humming"}, "marlin": {"linear_backend": "marlin"}}
"""How vLLM is asked for the kernels that multiply by compressed weights."""
LOOKED_UP = {"prompt_lookup_min": 2, "prompt_lookup_max": 4}
"""Tokens of the text's end that are looked for further up."""


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
        self._model = _loaded(folder, options)
        from genopt.engines.vllm_batch import Limits, VllmBatch

        config = self._model.llm_engine.vllm_config
        self._limits = Limits(context=config.model_config.max_model_len, vocabulary=config.model_config.get_vocab_size())
        self._cache = _CacheRoom.of(config)
        self._batch = VllmBatch(self._model.llm_engine, self._limits)
        self._normalizer = Normalizer(options.threads or os.cpu_count() or 1)
        self._heard: list[torch.Tensor] = []
        self._listening = False
        self._model.apply_model(self._listen)

    def _listen(self, model: Any) -> None:
        """Keeps what the model's head gives while a text is read: vLLM itself tells of the most probable tokens alone."""
        compute = model.compute_logits

        def heard(*arguments: Any, **named: Any) -> Any:
            logits = compute(*arguments, **named)
            if self._listening and logits is not None:
                self._heard.append(logits)
            return logits

        model.compute_logits = heard

    def warm_up(self) -> None:
        """Runs a prompt and a decode step once."""
        self.generate([GenerationRequest(prompt_ids=(0,) * min(8, self._limits.context - 2), max_new_tokens=2)])

    def running_batch(self, slots: int) -> RunningBatch:
        """See `Joinable.running_batch`; vLLM itself keeps those waiting that are too many."""
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
        told: list[float] = []
        found = self._normalizer.text(self._read(sequence, told), sequence[1:], wanted)
        if not np.allclose(found.log_probs, told, atol=AGREES):
            raise StageError("This release of vLLM computes a text's logits in another way than expected; use the one that genopt's lock names.")
        return found

    def _read(self, sequence: Sequence[int], told: list[float]) -> Iterator[Logits]:
        """The logits after each token but the last, in the pieces in which vLLM reads them; adds what it says of the text to `told`.

        The head computes twice in a step: for the token that follows, whatever it is, and for the text.
        """
        from vllm import SamplingParams

        engine, missing = self._model.llm_engine, len(sequence) - 1
        asked = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0, detokenize=False, ignore_eos=True)
        engine.add_request("text", {"prompt_token_ids": list(sequence)}, asked)
        self._listening = True
        try:
            while engine.has_unfinished_requests():
                outputs = engine.step()
                for logits in self._heard[1:]:
                    piece = logits[:missing, : self._limits.vocabulary].float().cpu().numpy()
                    missing -= len(piece)
                    if len(piece):
                        yield piece
                self._heard.clear()
                for output in outputs:
                    told += [entry[token].logprob for token, entry in zip(sequence[1:], output.prompt_logprobs[1:], strict=True)]
        finally:
            self._listening = False
            self._heard.clear()
            engine.abort_request(["text"])

    def _check(self, ids: Sequence[int], length: int) -> None:
        require_fit(ids, length, context=self._limits.context, vocabulary=self._limits.vocabulary)

    def memory(self) -> Memory:
        """See `TextSession.memory`."""
        peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
        found = {"device_peak_bytes": peak, "kv_cache_bytes": self._cache.bytes, "kv_bytes_per_token": self._cache.per_token}
        return process_memory().model_copy(update=found)

    def close(self) -> None:
        """See `TextSession.close`."""
        self._normalizer.close()
        self._model.llm_engine.engine_core.shutdown()
        del self._model, self._batch


class _CacheRoom:
    """Room for keys and values.

    Attributes:
        bytes: Of all blocks.
        per_token: Of a token of one sequence.
    """

    def __init__(self, tokens: int, per_token: float) -> None:
        self.bytes, self.per_token = round(tokens * per_token), per_token

    @classmethod
    def of(cls, config: Any) -> _CacheRoom:
        """What a configured vLLM has."""
        model, parallel, cache = config.model_config, config.parallel_config, config.cache_config
        width = 1 if "fp8" in cache.cache_dtype else torch.finfo(model.dtype).bits // 8
        numbers = 2 * model.get_num_layers(parallel) * model.get_num_kv_heads(parallel) * model.get_head_size()
        return cls(cache.num_gpu_blocks * cache.block_size, float(width * numbers))


def _loaded(folder: Path, options: VllmOptions) -> Any:
    # Read when vLLM is imported: one process without reports to its makers, and room for keys and values on CPUs.
    settings = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    os.environ.update({**settings, "VLLM_CPU_KVCACHE_SPACE": str(options.cache_gib)})
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    from vllm import LLM

    named: dict[str, Any] = {"max_model_len": options.max_context, "quantization": options.quantization}
    if options.cache_type is not None:
        named["kv_cache_dtype"] = options.cache_type
    if options.kernels is not None and "quantization_config" not in json.loads((folder / "config.json").read_text(encoding="utf-8")):
        raise InfeasibleError("Kernels are chosen for compressed checkpoints, which this is not; leave kernels out.")
    named |= KERNELS[options.kernels]
    if options.lookahead:
        named["speculative_config"] = {"method": "ngram", "num_speculative_tokens": options.lookahead, **LOOKED_UP}
    if options.draft_tokens:
        if options.lookahead:
            raise InfeasibleError("vLLM guesses in one way at a time; give lookahead or draft_tokens.")
        if not (folder / DRAFT).is_dir():
            raise InfeasibleError(f"{folder} brings no smaller model that could guess; attach one with the technique attach_draft.")
        named["speculative_config"] = {"method": "draft_model", "model": str(folder / DRAFT), "num_speculative_tokens": options.draft_tokens}
    if torch.cuda.is_available():
        # Others hold memory of the same GPU, such as the references that a candidate is compared with.
        free, total = torch.cuda.mem_get_info()
        named["gpu_memory_utilization"] = options.memory_share * free / total
    try:
        return LLM(
            model=str(folder), skip_tokenizer_init=True, dtype=options.precision or "auto", max_num_seqs=options.max_streams,
            max_num_batched_tokens=options.max_batched_tokens, enable_chunked_prefill=True, enable_prefix_caching=options.prefix_caching,
            enforce_eager=not options.graphs, trust_remote_code=trusted(), **named,
        )  # fmt: skip
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError("vLLM found no room for the weights; use fewer bits or a larger GPU.") from error
    except (ValueError, NotImplementedError) as error:
        first = next(iter(str(error).splitlines()), "")[:200].rstrip(".")
        if "memory" in first or "KV cache" in first:
            raise OutOfMemoryError(f"vLLM has too little room for keys and values ({first}); lower max_context.") from error
        raise InfeasibleError(f"vLLM cannot take this model ({first}); use another engine for it.") from error
