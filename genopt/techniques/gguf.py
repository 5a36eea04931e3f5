"""Writes a Hugging Face model as a GGUF file, in its own precision or quantized by llama.cpp."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from genopt.errors import InfeasibleError
from genopt.plan import JsonValue, Record, parse_settings
from genopt.search.footprint import Footprint
from genopt.search.space import Tunable
from genopt.techniques.base import Progress, Transform, TransformContext
from genopt.techniques.gguf_shape import read_shape

Format = Literal["native", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0"]
BITS: Mapping[str, float] = {"Q8_0": 8.5, "Q6_K": 6.6, "Q5_K_M": 5.7, "Q4_K_M": 4.9, "Q4_0": 4.5}
"""Stored bits per weight, with scales (llama.cpp, tools/quantize/README.md)."""
CHANCES: Mapping[str, float] = {"native": 1.0, "Q8_0": 0.95, "Q6_K": 0.8, "Q5_K_M": 0.5, "Q4_K_M": 0.3, "Q4_0": 0.15}
"""How often the format kept 99 % of the quality of small models."""
BLOCK = 32
"""Weights of the smallest block of every quantized format."""
COMPANIONS = ("*.json", "*.jinja", "*.txt", "*.model")


class GgufParams(Record):
    """Parameters of the conversion.

    Attributes:
        format: Number format of the matrices, in llama.cpp's words; `native` keeps the checkpoint's.
    """

    format: Format = "native"


class Gguf(Transform):
    """See `genopt.techniques.base.Transform`."""

    name = "gguf"
    version = 3
    phase = 50
    requires = frozenset({"hf"})
    excludes = frozenset({"quantized"})
    adds = frozenset({"gguf"})
    removes = frozenset({"hf"})
    tunables = (
        Tunable(
            name="format",
            choices=("Q8_0", "native", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0"),
            words=("q8_0", "native", "q6_k", "q5_k_m", "q4_k_m", "q4_0"),
        ),
    )
    environment = "llamacpp"

    @staticmethod
    def check(source: Path, params: dict[str, JsonValue]) -> None:
        """See `Transform.check`."""
        chosen = parse_settings(GgufParams, params, "gguf")
        odd = read_shape(source).odd_width(BLOCK)
        if chosen.format != "native" and odd is not None:
            name, width = odd
            raise InfeasibleError(f"{chosen.format} stores blocks of {BLOCK} weights, which do not divide {name} = {width}; use the format native.")

    @staticmethod
    def footprint(before: Footprint, params: dict[str, JsonValue]) -> Footprint:
        """See `Transform.footprint`."""
        chosen = parse_settings(GgufParams, params, "gguf")
        stored = before if chosen.format == "native" else before.stored(BITS[chosen.format])
        return stored.risked(CHANCES[chosen.format])

    @staticmethod
    def apply(source: Path, destination: Path, params: dict[str, JsonValue], context: TransformContext, progress: Progress) -> None:
        """See `Transform.apply`."""
        from genopt.techniques.gguf_file import importance, quantize, write_gguf

        chosen = parse_settings(GgufParams, params, "gguf")
        copy_companions(source, destination)
        result = destination / "model.gguf"
        if chosen.format == "native":
            progress("writing GGUF in the checkpoint's precision")
            write_gguf(source, result)
            return
        with tempfile.TemporaryDirectory(prefix=".gguf-", dir=destination) as scratch:
            whole = Path(scratch, "native.gguf")
            progress("writing GGUF in the checkpoint's precision")
            write_gguf(source, whole)
            weighed = importance(source)
            progress(f"quantizing to {chosen.format}" + (f", {len(weighed)} matrices by what their inputs matter" if weighed else ""))
            quantize(whole, result, chosen.format, threads=context.threads, weighed=weighed)


def copy_companions(source: Path, destination: Path) -> None:
    """Copies the tokenizer, the configuration and the chat template of a model."""
    for pattern in COMPANIONS:
        for path in source.glob(pattern):
            if not path.name.endswith(".index.json"):
                shutil.copyfile(path, destination / path.name)
