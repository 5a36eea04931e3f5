"""A session of llama.cpp."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from genopt.engines.base import Generation, GenerationRequest, Memory, OnToken, Scores
from genopt.engines.decoding import DecodingBatch, generate_together
from genopt.engines.distribution import Distributions, Wanted, require_rows
from genopt.engines.llamacpp import LlamaCppOptions
from genopt.engines.llamacpp_decoder import LlamaCppDecoder
from genopt.engines.llamacpp_model import LlamaCppModel
from genopt.engines.normalizer import Normalizer
from genopt.engines.process_memory import process_memory
from genopt.engines.rows import require_fit


class LlamaCppSession:
    """See `genopt.engines.base.TextSession`, and `Joinable`.

    Args:
        folder: Artifact with the trait `gguf`.
        options: Runtime options.

    Raises:
        StageError: The folder holds no GGUF file that this version of the library reads.
    """

    def __init__(self, folder: Path, options: LlamaCppOptions) -> None:
        self._model = LlamaCppModel(folder, options)
        self._lookahead = options.lookahead
        self._decoder = LlamaCppDecoder(self._model, 1)
        self._normalizer = Normalizer(options.threads or os.cpu_count() or 1)

    def warm_up(self) -> None:
        """Runs a prompt and a decode step once."""
        self.generate([GenerationRequest(prompt_ids=(0,) * min(8, self._model.limit - 2), max_new_tokens=2)])

    def generate(self, requests: Sequence[GenerationRequest], on_token: OnToken | None = None) -> list[Generation]:
        """See `TextSession.generate`.

        Raises:
            SpecError: A prompt with its answer is longer than the context, or has ids outside of the vocabulary.
        """
        return generate_together(self._batch(self._for(max(1, len(requests)))), requests, on_token)

    def running_batch(self, slots: int) -> DecodingBatch:
        """See `Joinable.running_batch`."""
        return self._batch(LlamaCppDecoder(self._model, slots))

    def _batch(self, decoder: LlamaCppDecoder) -> DecodingBatch:
        return DecodingBatch(decoder, self._check_request, checking=decoder, lookahead=self._lookahead)

    def _for(self, slots: int) -> LlamaCppDecoder:
        """The decoder at hand where it has so many slots, else another: making a cache takes longer than some requests."""
        if self._decoder.slots != slots:
            self._decoder = LlamaCppDecoder(self._model, slots)
        return self._decoder

    def _check_request(self, request: GenerationRequest) -> None:
        self._check(request.prompt_ids, len(request.prompt_ids) + request.max_new_tokens)

    def score(self, sequences: Sequence[Sequence[int]]) -> Scores:
        """See `TextSession.score`.

        Raises:
            SpecError: A sequence is longer than the context, or has ids outside of the vocabulary.
        """
        for sequence in sequences:
            self._check(sequence, len(sequence) - 1)
        return Scores.of([self._distributions(sequence, 0) for sequence in sequences])

    def distributions(self, sequence: Sequence[int], wanted: Wanted) -> Distributions:
        """See `TextSession.distributions`.

        Raises:
            SpecError: The sequence is longer than the context, or has ids outside of the vocabulary.
        """
        self._check(sequence, len(sequence) - 1)
        if not isinstance(wanted, int):
            require_rows(wanted, len(sequence))
        return self._distributions(sequence, wanted)

    def _distributions(self, sequence: Sequence[int], wanted: Wanted) -> Distributions:
        return self._normalizer.text(self._for(1).read_text(sequence[:-1]), sequence[1:], wanted)

    def _check(self, ids: Sequence[int], length: int) -> None:
        require_fit(ids, length, context=self._model.limit, vocabulary=self._model.vocabulary)

    def memory(self) -> Memory:
        """See `TextSession.memory`."""
        each = self._model.kv_bytes_per_token
        return process_memory().model_copy(update={"kv_cache_bytes": round(self._decoder.kv_tokens * each), "kv_bytes_per_token": each})

    def close(self) -> None:
        """See `TextSession.close`."""
        self._normalizer.close()
        del self._decoder, self._model
