"""Generates and scores with models in ONNX Runtime GenAI's format, on the CPU."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import Field

from genopt.engines.base import SPARE_THREADS, Generation, GenerationRequest, Memory, OnToken
from genopt.engines.decoding import DecodingBatch, generate_together
from genopt.engines.logits_session import LogitsSession
from genopt.engines.ort_model import OrtDecoder, OrtModel
from genopt.engines.process_memory import process_memory
from genopt.engines.rows import Logits
from genopt.errors import InfeasibleError
from genopt.plan import JsonValue, Record, parse_settings
from genopt.search.space import Tunable


class OrtGenaiOptions(Record):
    """Options of the engine.

    Attributes:
        threads: Threads of each operator; None takes one per core.
        max_context: Longest prompt with its answer, in tokens; None takes the model's.
        lookahead: Tokens of an answer that are guessed from what followed the same words before, in the prompt or the answer, and checked in one
            step: text that repeats is written faster, and greedy answers stay what they are. Only where one request is under way; 0 guesses
            nothing.
        spin: Let idle threads wait in a loop: faster on free cores, slower and wasteful on busy ones.
    """

    threads: int | None = Field(default=None, gt=0)
    max_context: int | None = Field(default=None, ge=3)
    lookahead: int = Field(default=0, ge=0, le=16)
    spin: bool = True


class OrtGenaiSession(LogitsSession):
    """See `genopt.engines.base.TextSession`.

    Args:
        folder: Artifact with the trait `onnx_genai`.
        options: Runtime options.
    """

    def __init__(self, folder: Path, options: OrtGenaiOptions) -> None:
        self._model = OrtModel(folder, threads=options.threads, spin=options.spin)
        shape = self._model.shape
        super().__init__(context=min(shape.context, options.max_context or shape.context), vocabulary=shape.vocabulary, threads=options.threads)
        self._lookahead = options.lookahead
        self._held_bytes = 0

    def generate(self, requests: Sequence[GenerationRequest], on_token: OnToken | None = None) -> list[Generation]:
        """See `LogitsSession.generate`."""
        decoder = OrtDecoder(self._model, max(1, len(requests)))
        found = generate_together(self._batch(decoder), requests, on_token)
        self._held_bytes = decoder.kv_bytes
        return found

    def running_batch(self, slots: int) -> DecodingBatch:
        """See `Joinable.running_batch`."""
        return self._batch(OrtDecoder(self._model, slots))

    def _batch(self, decoder: OrtDecoder) -> DecodingBatch:
        return DecodingBatch(decoder, self._check_request, checking=decoder, lookahead=self._lookahead)

    def _read(self, text: Sequence[int]) -> Iterator[Logits]:
        return self._model.read(text, self._model.cache(1, len(text)), 0)

    def memory(self) -> Memory:
        """See `TextSession.memory`."""
        found = process_memory()
        return found.model_copy(update={"kv_cache_bytes": self._held_bytes, "kv_bytes_per_token": self._model.kv_bytes_per_token})

    def close(self) -> None:
        """See `TextSession.close`."""
        super().close()
        del self._model


class OrtGenaiEngine:
    """See `genopt.engines.base.Engine`."""

    name = "ort_genai"
    modality = "text"
    accepts = frozenset({"onnx_genai"})
    tunables = (Tunable(name="lookahead", choices=(0, 4, 8), words=("", "lookahead-4", "lookahead-8")), SPARE_THREADS)
    environment: str | None = None
    layer_overhead_s = 4e-5

    @staticmethod
    def check(options: dict[str, JsonValue]) -> None:
        """See `Engine.check`."""
        parse_settings(OrtGenaiOptions, options, "ort_genai")
        if importlib.util.find_spec("onnxruntime") is None:
            raise InfeasibleError("onnxruntime is not installed; install it with: pip install onnxruntime.")

    @staticmethod
    def prepare() -> None:
        """See `Engine.prepare`."""
        importlib.import_module("onnxruntime")

    @staticmethod
    def open(artifact: Path, options: dict[str, JsonValue]) -> OrtGenaiSession:
        """See `Engine.open`."""
        session = OrtGenaiSession(artifact, parse_settings(OrtGenaiOptions, options, "ort_genai"))
        session.warm_up()
        return session
