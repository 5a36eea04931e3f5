"""What the engines of vLLM may be told."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from genopt.plan import Record

TOKENS, HUMMING_TOKENS = 2048, 512
"""Tokens of a step. Release 0.1.2 of Humming's kernels, which vLLM 0.22 asks for, shares operands of larger products between multiprocessors without
waiting for them (mended in 0.1.13, pull request 56 of inclusionAI/humming): results are wrong there, and once on an H200 one never came."""
DRAFT = "draft"
"""Where an artifact has a smaller model that guesses for it."""


class VllmOptions(Record):
    """Options of the engine.

    Attributes:
        threads: CPU threads; None takes one per core.
        max_context: Longest prompt with its answer, in tokens; None takes the model's, or as much of it as there is room for.
        precision: Arithmetic; None takes the checkpoint's.
        quantization: Rounds the weights while it loads them, and activations as they come: `fp8` needs a GPU that multiplies them.
        cache_type: Number format of keys and values; None takes that of the arithmetic.
        max_streams: Most requests that are continued at once; more wait.
        max_batched_tokens: Most tokens of a step, prompts included: longer ones are read in pieces between the steps of others. None takes 2,048,
            and for Humming's kernels `HUMMING_TOKENS`.
        lookahead: Tokens of an answer that are guessed from what followed the same words before, in the prompt or the answer, and checked in one
            step (prompt lookup: Saxena, 2023); greedy answers stay what they are. 0 guesses none.
        draft_tokens: Likewise, guessed by the smaller model that the artifact brings (technique `attach_draft`).
        kernels: Which multiply by weights of a compressed checkpoint; None lets vLLM choose, which takes Machete for 4 bits on an H100 or H200.
            There steps of `humming`, compiled for the matrices at hand while it opens, were faster with 1 to 128 streams, and those of `marlin`
            with up to 32; where 128 prompts came at once, `humming` was slower, as it reads them `HUMMING_TOKENS` at a time.
        prefix_caching: Keep what was read of prompts for those that begin alike.
        graphs: Compile the model, and on GPUs replay its steps as graphs.
        cache_gib: Room for keys and values on CPUs, in GiB; GPUs give most of what is free.
        memory_share: Share of a GPU's free memory that weights, keys and values may take.
    """

    threads: int | None = Field(default=None, gt=0)
    max_context: int | None = Field(default=None, ge=3)
    precision: Literal["bfloat16", "float16", "float32"] | None = None
    quantization: Literal["fp8"] | None = None
    cache_type: Literal["fp8"] | None = None
    max_streams: int = Field(default=128, gt=0)
    max_batched_tokens: int | None = Field(default=None, ge=16)
    lookahead: int = Field(default=0, ge=0, le=16)
    draft_tokens: int = Field(default=0, ge=0, le=16)
    kernels: Literal["humming", "marlin"] | None = None
    prefix_caching: bool = False
    graphs: bool = True
    cache_gib: int = Field(default=1, gt=0)
    memory_share: float = Field(default=0.8, gt=0, le=1)
