"""What the engine of PyTorch may be told."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from genopt.engines.attention import Kernels
from genopt.plan import Record


class TorchOptions(Record):
    """Options of the engine.

    Attributes:
        compile: Compile the decode step of single streams; batches and long requests stay eager.
        dtype: Precision of weights and arithmetic; None takes the checkpoint's.
        threads: CPU threads; None leaves PyTorch's default.
        max_context: Longest prompt with its answer, in tokens; None takes the model's.
        cache_tokens: Longest request that the compiled step serves: its KV cache is that long from the start, and each step reads all of
            it. None takes 512 on CPUs and 1,024 on GPUs, where it costs less.
        attention: Kernels of PyTorch that compute attention wherever they take its shapes and masks. None leaves the choice to it, and has the
            compiled step compute attention as products, which the compiler fuses.
    """

    compile: bool = False
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    threads: int | None = Field(default=None, gt=0)
    max_context: int | None = Field(default=None, ge=3)
    cache_tokens: int | None = Field(default=None, ge=16)
    attention: Kernels | None = None
