"""Runs Hugging Face checkpoints in PyTorch: eager as users run them, or with the decode step of single streams compiled."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from genopt.engines.attention import require_kernels
from genopt.engines.base import SPARE_THREADS
from genopt.engines.compiler import require_compiler
from genopt.engines.torch_options import TorchOptions
from genopt.plan import JsonValue, parse_settings
from genopt.search.space import Tunable

if TYPE_CHECKING:
    from genopt.engines.torch_session import TorchSession


class TorchEngine:
    """See `genopt.engines.base.Engine`."""

    name = "torch"
    modality = "text"
    accepts = frozenset({"hf", "torchao"})
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
        if found.compile:
            require_compiler()
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
