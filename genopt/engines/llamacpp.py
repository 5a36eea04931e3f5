"""Runs GGUF files in llama.cpp, in an environment of its own."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from genopt.engines.base import SPARE_THREADS
from genopt.engines.llamacpp_options import LlamaCppOptions
from genopt.plan import JsonValue, parse_settings
from genopt.search.space import Tunable

if TYPE_CHECKING:
    from genopt.engines.llamacpp_session import LlamaCppSession


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
