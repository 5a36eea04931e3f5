"""Exports to OpenVINO's format with 4-bit weights that NNCF rounds with the help of calibration text.

Inputs that matter most are scaled up before the rounding (AWQ: Lin et al., 2023), and the scales of groups are then fitted to what the matrix
makes of the text (NNCF's scale estimation). `openvino_export` writes the same format without calibration.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from genopt.plan import JsonValue, Record, parse_settings
from genopt.search.footprint import Footprint
from genopt.techniques.base import Progress, Transform, TransformContext
from genopt.techniques.calibration import calibration_pieces
from genopt.techniques.openvino_export import BITS, exported, require_exportable, write


class OpenVinoAwqParams(Record):
    """Parameters.

    Attributes:
        group_size: Consecutive weights that share a scale; must divide the model's widths.
        symmetric: Without zero points.
        num_calibration_samples: Pieces of calibration text.
        max_seq_length: Tokens of each.
    """

    group_size: Literal[32, 64, 128] = 32
    symmetric: bool = False
    num_calibration_samples: int = Field(default=32, gt=0)
    max_seq_length: int = Field(default=128, ge=8)


class OpenVinoAwq(Transform):
    """See `genopt.techniques.base.Transform`."""

    name = "openvino_awq"
    version = 1
    phase = 50
    requires = frozenset({"hf"})
    excludes = frozenset({"quantized"})
    adds = frozenset({"openvino", "quantized"})
    removes = frozenset({"hf"})
    needs_calibration = True
    environment = "openvino"

    @classmethod
    def check(cls, source: Path, params: dict[str, JsonValue]) -> None:
        """See `Transform.check`."""
        require_exportable(source, parse_settings(OpenVinoAwqParams, params, cls.name).group_size)

    @classmethod
    def footprint(cls, before: Footprint, params: dict[str, JsonValue]) -> Footprint:
        """See `Transform.footprint`."""
        parse_settings(OpenVinoAwqParams, params, cls.name)
        return before.stored(BITS["int4"]).risked(0.4)

    @classmethod
    def apply(cls, source: Path, destination: Path, params: dict[str, JsonValue], context: TransformContext, progress: Progress) -> None:
        """See `Transform.apply`."""
        import nncf

        chosen = parse_settings(OpenVinoAwqParams, params, cls.name)
        pieces = calibration_pieces(context.calibration, chosen.num_calibration_samples, chosen.max_seq_length)
        progress("exporting to OpenVINO")
        model = exported(source, None)
        progress(f"rounding to 4 bits by {len(pieces)} pieces of {chosen.max_seq_length} tokens")
        mode = nncf.CompressWeightsMode.INT4_SYM if chosen.symmetric else nncf.CompressWeightsMode.INT4_ASYM
        model.model = nncf.compress_weights(
            model.model, mode=mode, ratio=1.0, group_size=chosen.group_size, dataset=nncf.Dataset(pieces, _inputs), subset_size=len(pieces),
            awq=True, scale_estimation=True,
        )  # fmt: skip
        write(model, source, destination)


def _inputs(piece: list[int]) -> dict[str, Any]:
    """A piece as the exported model reads it."""
    import numpy as np

    length = len(piece)
    return {
        "input_ids": np.array([piece], np.int64), "attention_mask": np.ones((1, length), np.int64), "position_ids": np.arange(length)[None],
        "beam_idx": np.zeros(1, np.int32),
    }  # fmt: skip
