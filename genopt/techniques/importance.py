"""Measures which inputs of each matrix matter, for formats that round those weights most carefully.

The importance of an input is the mean of its squares over calibration text, as llama.cpp's importance matrix has it
(tools/imatrix/README.md): rounding a weight changes an output by its error times that input. The model stays as it is; a file
beside it tells what was found.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from genopt.models.experts import refuse_experts
from genopt.models.headers import weight_files
from genopt.plan import JsonValue, Record, parse_settings
from genopt.search.footprint import Footprint
from genopt.techniques.base import Progress, Transform, TransformContext
from genopt.techniques.calibration import calibration_sequences

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

FILE = "inputs.importance"
"""Of an artifact; laid out as safetensors are, and named otherwise, since it holds no weights."""
TRAIT = "importance"


class ImportanceParams(Record):
    """Parameters.

    Attributes:
        calibration_tokens: Calibration tokens that are read.
    """

    calibration_tokens: int = Field(default=16_384, ge=16)


class Importance(Transform):
    """See `genopt.techniques.base.Transform`."""

    name = "importance"
    version = 2
    phase = 45
    requires = frozenset({"hf"})
    excludes = frozenset({"quantized"})
    adds = frozenset({TRAIT})
    needs_calibration = True
    gpu = "used"

    @classmethod
    def check(cls, source: Path, params: dict[str, JsonValue]) -> None:
        """See `Transform.check`."""
        parse_settings(ImportanceParams, params, cls.name)
        refuse_experts(source, cls.name)

    @staticmethod
    def footprint(before: Footprint, params: dict[str, JsonValue]) -> Footprint:
        """See `Transform.footprint`."""
        return before

    @classmethod
    def apply(cls, source: Path, destination: Path, params: dict[str, JsonValue], context: TransformContext, progress: Progress) -> None:
        """See `Transform.apply`."""
        from safetensors.torch import save_file

        from genopt.models.checkpoint import copy_companions, load_model
        from genopt.models.matrices import require_most

        chosen = parse_settings(ImportanceParams, params, cls.name)
        sequences = calibration_sequences(context.calibration, chosen.calibration_tokens)
        model = load_model(source)
        require_most(model, cls.name)
        found = mean_squares(model, sequences, progress)
        copy_companions(source, destination)
        for path in (*weight_files(source), *source.glob("model.safetensors.index.json")):
            shutil.copyfile(path, destination / path.name)
        save_file({name: values.cpu() for name, values in found.items()}, destination / FILE)


def mean_squares(model: PreTrainedModel, sequences: list[list[int]], progress: Progress) -> dict[str, Tensor]:
    """By name of a weight matrix, the mean square of each of its inputs; see `genopt.models.activations.mean_squares`."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    from genopt.models import activations

    matrices = {f"{name}.weight": module for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)}
    return activations.mean_squares(model, matrices, sequences, progress)
