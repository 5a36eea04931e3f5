"""What the engine of OpenVINO may be told, and what the files of its artifacts are called."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from genopt.plan import Record

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
