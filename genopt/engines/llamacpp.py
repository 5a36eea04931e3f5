"""Runs GGUF files in llama.cpp, in an environment of its own."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from genopt.engines.base import SPARE_THREADS
from genopt.plan import JsonValue, Record, parse_settings
from genopt.search.space import Tunable

if TYPE_CHECKING:
    from genopt.engines.llamacpp_session import LlamaCppSession

CacheType = Literal["f16", "bf16", "q8_0", "q4_0"]


class LlamaCppOptions(Record):
    """Options of the engine.

    Attributes:
        threads: Threads of a decode step; None takes one per core.
        threads_batch: Threads that read prompts; None takes those of a step.
        max_context: Longest prompt with its answer, in tokens; None takes the model's.
        cache_type_k: Number format of cached keys.
        cache_type_v: Number format of cached values; a quantized one needs flash attention.
        flash_attention: Fused attention; None lets the library choose.
        lookahead: Tokens of an answer that are guessed from what followed the same words before, in the prompt or the answer, and checked in one
            step: text that repeats is written faster, and greedy answers stay what they are. Only where one request is under way; 0 guesses
            nothing.
        mmap: Map the file instead of reading it: loads faster, and pages are shared between processes.
    """

    threads: int | None = Field(default=None, gt=0)
    threads_batch: int | None = Field(default=None, gt=0)
    max_context: int | None = Field(default=None, ge=3)
    cache_type_k: CacheType = "f16"
    cache_type_v: CacheType = "f16"
    flash_attention: bool | None = None
    lookahead: int = Field(default=0, ge=0, le=16)
    mmap: bool = True


class LlamaCppEngine:
    """See `genopt.engines.base.Engine`."""

    name = "llamacpp"
    modality = "text"
    accepts = frozenset({"gguf"})
    tunables = (
        Tunable(name="lookahead", choices=(0, 4, 8), words=("", "lookahead-4", "lookahead-8")),
        Tunable(name="flash_attention", choices=(None, True), words=("", "flash")), SPARE_THREADS,
    )  # fmt: skip
    environment: str | None = "llamacpp"
    layer_overhead_s = 1.5e-4

    @staticmethod
    def check(options: dict[str, JsonValue]) -> None:
        """See `Engine.check`."""
        parse_settings(LlamaCppOptions, options, "llamacpp")

    @staticmethod
    def prepare() -> None:
        """See `Engine.prepare`."""
        importlib.import_module("genopt.engines.llamacpp_session")

    @staticmethod
    def open(artifact: Path, options: dict[str, JsonValue]) -> LlamaCppSession:
        """See `Engine.open`."""
        from genopt.engines.llamacpp_session import LlamaCppSession

        session = LlamaCppSession(artifact, parse_settings(LlamaCppOptions, options, "llamacpp"))
        session.warm_up()
        return session
