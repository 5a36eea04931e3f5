"""Runs exported models in OpenVINO on CPUs, in an environment of its own."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from genopt.engines.base import SPARE_THREADS
from genopt.errors import InfeasibleError
from genopt.plan import JsonValue, Record, parse_settings
from genopt.search.space import Tunable

if TYPE_CHECKING:
    from genopt.engines.base import TextSession


GRAPH, WEIGHTS = "openvino_model.xml", "openvino_model.ovweights"
"""Names in an artifact. The weights are plain numbers, and `.bin`, their usual ending, is that of pickled checkpoints."""


class OpenVinoOptions(Record):
    """Options of the engine.

    Attributes:
        threads: Threads of each operator; None takes one per core.
        max_context: Longest prompt with its answer, in tokens; None takes the model's.
        precision: Arithmetic; None lets the library choose, which takes bf16 where the processor has it.
        cache_type: Number format of keys and values; None lets the library choose.
        attention: `sdpa` keeps keys and values as the graph's state, a block of memory for all streams; `paged` in pages, so that requests join
            and leave between steps. With 8 bits, a page's keys share their scales.
        lookahead: Tokens of an answer that are guessed and checked in one step, as in `OrtGenaiOptions.lookahead`; needs `paged`.
        activation_group: Activations that share a scale where they are rounded to 8 bits before they meet quantized weights; 0 leaves
            them as they are, None lets the library choose.
    """

    threads: int | None = Field(default=None, gt=0)
    max_context: int | None = Field(default=None, ge=3)
    precision: Literal["f32", "bf16", "f16"] | None = None
    cache_type: Literal["u8", "f16", "bf16", "f32"] | None = None
    activation_group: int | None = Field(default=None, ge=0)
    attention: Literal["sdpa", "paged"] = "sdpa"
    lookahead: int = Field(default=0, ge=0, le=16)


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
