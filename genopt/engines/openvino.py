"""Runs exported models in OpenVINO on CPUs, in an environment of its own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from genopt.engines.base import SPARE_THREADS
from genopt.plan import JsonValue, Record, parse_settings
from genopt.search.space import Tunable

if TYPE_CHECKING:
    from genopt.engines.openvino_session import OpenVinoSession


GRAPH, WEIGHTS = "openvino_model.xml", "openvino_model.ovweights"
"""Names in an artifact. The weights are plain numbers, and `.bin`, their usual ending, is that of pickled checkpoints."""


class OpenVinoOptions(Record):
    """Options of the engine.

    Attributes:
        threads: Threads of each operator; None takes one per core.
        max_context: Longest prompt with its answer, in tokens; None takes the model's.
        precision: Arithmetic; None lets the library choose, which takes bf16 where the processor has it.
        cache_type: Number format of keys and values; None lets the library choose.
        activation_group: Activations that share a scale where they are rounded to 8 bits before they meet quantized weights; 0 leaves
            them as they are, None lets the library choose.
    """

    threads: int | None = Field(default=None, gt=0)
    max_context: int | None = Field(default=None, ge=3)
    precision: Literal["f32", "bf16", "f16"] | None = None
    cache_type: Literal["u8", "f16", "bf16", "f32"] | None = None
    activation_group: int | None = Field(default=None, ge=0)


class OpenVinoEngine:
    """See `genopt.engines.base.Engine`."""

    name = "openvino"
    modality = "text"
    accepts = frozenset({"openvino"})
    tunables = (Tunable(name="precision", choices=(None, "f32"), words=("", "f32")), SPARE_THREADS)
    environment: str | None = "openvino"
    layer_overhead_s = 2e-4

    @staticmethod
    def check(options: dict[str, JsonValue]) -> None:
        """See `Engine.check`."""
        parse_settings(OpenVinoOptions, options, "openvino")

    @staticmethod
    def open(artifact: Path, options: dict[str, JsonValue]) -> OpenVinoSession:
        """See `Engine.open`."""
        from genopt.engines.openvino_session import OpenVinoSession

        session = OpenVinoSession(artifact, parse_settings(OpenVinoOptions, options, "openvino"))
        session.warm_up()
        return session
