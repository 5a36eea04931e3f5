"""Runs exported models in OpenVINO on CPUs, in an environment of its own."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from genopt.engines.base import SPARE_THREADS
from genopt.engines.openvino_options import OpenVinoOptions
from genopt.errors import InfeasibleError
from genopt.plan import JsonValue, parse_settings
from genopt.search.space import Tunable

if TYPE_CHECKING:
    from genopt.engines.base import TextSession


class OpenVinoEngine:
    """See `genopt.engines.base.Engine`."""

    name = "openvino"
    modality = "text"
    accepts = frozenset({"openvino"})
    tunables = (
        Tunable(name="precision", choices=(None, "f32"), words=("", "f32")),
        Tunable(name="attention", choices=("sdpa", "paged"), words=("", "paged")),
        Tunable(name="lookahead", choices=(0, 4, 8), words=("", "lookahead-4", "lookahead-8"), when=(("attention", "paged"),)),
        SPARE_THREADS,
    )
    environment: str | None = "openvino"
    layer_overhead_s = 2e-4

    @staticmethod
    def check(options: dict[str, JsonValue]) -> None:
        """See `Engine.check`."""
        chosen = parse_settings(OpenVinoOptions, options, "openvino")
        if chosen.lookahead and chosen.attention != "paged":
            raise InfeasibleError("OpenVINO's own state cannot forget wrong guesses; give lookahead together with attention=paged.")

    @staticmethod
    def prepare() -> None:
        """See `Engine.prepare`."""
        importlib.import_module("genopt.engines.openvino_session")

    @staticmethod
    def open(artifact: Path, options: dict[str, JsonValue]) -> TextSession:
        """See `Engine.open`."""
        chosen = parse_settings(OpenVinoOptions, options, "openvino")
        from genopt.engines.openvino_session import PagedSession, StatefulSession

        session = PagedSession(artifact, chosen) if chosen.attention == "paged" else StatefulSession(artifact, chosen)
        session.warm_up()
        return session
