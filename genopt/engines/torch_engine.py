"""Runs Hugging Face checkpoints in PyTorch: eager as users run them, or with a compiled decode step."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from genopt.engines.attention import Kernels, require_kernels
from genopt.engines.base import SPARE_THREADS
from genopt.errors import InfeasibleError
from genopt.plan import JsonValue, Record, parse_settings
from genopt.search.space import Tunable

if TYPE_CHECKING:
    from genopt.engines.torch_session import TorchSession

COMPILERS = ("g++", "clang++", "c++")
"""What TorchInductor compiles its kernels for CPUs with, unless `CXX` names another."""


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


class TorchEngine:
    """See `genopt.engines.base.Engine`."""

    name = "torch"
    modality = "text"
    accepts = frozenset({"hf"})
    tunables = (
        Tunable(name="compile", choices=(True, False), words=("", "eager")),
        Tunable(name="attention", choices=(None, "flash", "cudnn"), words=("", "flash", "cudnn"), gpu=True),
        SPARE_THREADS,
    )
    environment: str | None = None
    layer_overhead_s = 2e-4

    @staticmethod
    def check(options: dict[str, JsonValue]) -> None:
        """See `Engine.check`."""
        found = parse_settings(TorchOptions, options, "torch")
        if found.compile and not any(map(shutil.which, COMPILERS)) and not _has_gpu():
            raise InfeasibleError("torch.compile needs a C++ compiler on CPUs; install one, for example with: apt install g++.")
        require_kernels(found.attention)

    @staticmethod
    def prepare() -> None:
        """See `Engine.prepare`."""
        importlib.import_module("genopt.engines.torch_session")

    @staticmethod
    def open(artifact: Path, options: dict[str, JsonValue]) -> TorchSession:
        """See `Engine.open`."""
        from genopt.engines.torch_session import TorchSession

        session = TorchSession(artifact, parse_settings(TorchOptions, options, "torch"))
        session.warm_up()
        return session


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
