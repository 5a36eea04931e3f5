"""What the engine of llama.cpp may be told."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from genopt.plan import Record

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
