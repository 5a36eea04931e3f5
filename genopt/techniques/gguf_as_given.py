"""The GGUF file that a model was given as, unchanged."""

from __future__ import annotations

import shutil
from pathlib import Path

from genopt.errors import InfeasibleError
from genopt.models.gguf import GIVEN, GIVEN_TRAIT
from genopt.plan import JsonValue, Record, parse_settings
from genopt.search.footprint import Footprint
from genopt.techniques.base import Progress, Transform, TransformContext
from genopt.techniques.gguf import copy_companions

TYPICAL_BITS = 5.0
"""What such files mostly have, with scales; nobody looks into this one before it is measured."""


class NoParams(Record):
    """There is nothing to choose."""


class GgufAsGiven(Transform):
    """See `genopt.techniques.base.Transform`."""

    name = "gguf_as_given"
    version = 1
    phase = 50
    requires = frozenset({"hf", GIVEN_TRAIT})
    excludes = frozenset({"quantized"})
    adds = frozenset({"gguf"})
    removes = frozenset({"hf", GIVEN_TRAIT})

    @staticmethod
    def check(source: Path, params: dict[str, JsonValue]) -> None:
        """See `Transform.check`."""
        parse_settings(NoParams, params, "gguf_as_given")
        if not (source / GIVEN).is_file():
            raise InfeasibleError(f"{source} was not given as a GGUF file; give the .gguf file as MODEL, or use the technique gguf.")

    @staticmethod
    def footprint(before: Footprint, params: dict[str, JsonValue]) -> Footprint:
        """See `Transform.footprint`."""
        return before.stored(TYPICAL_BITS)

    @staticmethod
    def apply(source: Path, destination: Path, params: dict[str, JsonValue], context: TransformContext, progress: Progress) -> None:
        """See `Transform.apply`."""
        progress("copying the file that was given")
        copy_companions(source, destination)
        shutil.copyfile(source / GIVEN, destination / "model.gguf")
