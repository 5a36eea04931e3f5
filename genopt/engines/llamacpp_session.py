"""A session of llama.cpp."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from genopt.engines.base import Generation, GenerationRequest, Memory, OnToken
from genopt.engines.decoding import DecodingBatch, generate_together
from genopt.engines.llamacpp_decoder import LlamaCppDecoder
from genopt.engines.llamacpp_model import LlamaCppModel
from genopt.engines.llamacpp_options import LlamaCppOptions
from genopt.engines.logits_session import LogitsSession
from genopt.engines.process_memory import process_memory
from genopt.engines.rows import Logits


class LlamaCppSession(LogitsSession):
    """See `genopt.engines.base.TextSession`, and `Joinable`.

    Args:
        folder: Artifact with the trait `gguf`.
        options: Runtime options.

    Raises:
        StageError: The folder holds no GGUF file that this version of the library reads.
    """

    def __init__(self, folder: Path, options: LlamaCppOptions) -> None:
        self._model = LlamaCppModel(folder, options)
        super().__init__(context=self._model.limit, vocabulary=self._model.vocabulary, threads=options.threads)
        self._lookahead = options.lookahead
        self._decoder = LlamaCppDecoder(self._model, 1)

    def generate(self, requests: Sequence[GenerationRequest], on_token: OnToken | None = None) -> list[Generation]:
        """See `LogitsSession.generate`."""
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

    def _read(self, text: Sequence[int]) -> Iterator[Logits]:
        return self._for(1).read_text(text)

    def memory(self) -> Memory:
        """See `TextSession.memory`."""
        each = self._model.kv_bytes_per_token
        return process_memory().model_copy(update={"kv_cache_bytes": round(self._decoder.kv_tokens * each), "kv_bytes_per_token": each})

    def close(self) -> None:
        """See `TextSession.close`."""
        super().close()
        del self._decoder, self._model
