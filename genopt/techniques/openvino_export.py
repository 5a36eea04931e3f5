"""Exports a Hugging Face model to OpenVINO's format, with weights rounded to 8 or 4 bits by NNCF where asked."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from genopt.engines.openvino_options import GRAPH, WEIGHTS
from genopt.errors import InfeasibleError
from genopt.models.trust import trusted
from genopt.plan import JsonValue, Record, parse_settings
from genopt.search.footprint import Footprint
from genopt.search.space import Tunable
from genopt.techniques.base import Progress, Transform, TransformContext

BITS: Mapping[str, float] = {"fp16": 16.0, "int8": 8.1, "int4": 4.5}
CHANCES: Mapping[str, float] = {"fp16": 1.0, "int8": 0.9, "int4": 0.3}
"""How often the format kept 99 % of the quality of small models."""


class OpenVinoParams(Record):
    """Parameters of the export.

    Attributes:
        weights: Number format of the matrices; int8 has a scale per row, int4 one per group.
        group_size: Consecutive weights that share a scale in int4; must divide the model's widths.
        symmetric: Without zero points.
    """

    weights: Literal["fp16", "int8", "int4"] = "int8"
    group_size: Literal[32, 64, 128] = 32
    symmetric: bool = False


class OpenVinoExport(Transform):
    """See `genopt.techniques.base.Transform`."""

    name = "openvino_export"
    version = 1
    phase = 50
    requires = frozenset({"hf"})
    excludes = frozenset({"quantized"})
    adds = frozenset({"openvino"})
    removes = frozenset({"hf"})
    tunables = (
        Tunable(name="weights", choices=("int8", "fp16", "int4"), words=("int8", "fp16", "int4")),
        Tunable(name="group_size", choices=(32, 64, 128), words=("g32", "g64", "g128"), when=(("weights", "int4"),)),
        Tunable(name="symmetric", choices=(False, True), words=("asym", "sym"), when=(("weights", "int4"),)),
    )
    environment = "openvino"

    @staticmethod
    def check(source: Path, params: dict[str, JsonValue]) -> None:
        """See `Transform.check`."""
        chosen = parse_settings(OpenVinoParams, params, "openvino_export")
        require_exportable(source, chosen.group_size if chosen.weights == "int4" else None)

    @staticmethod
    def footprint(before: Footprint, params: dict[str, JsonValue]) -> Footprint:
        """See `Transform.footprint`."""
        chosen = parse_settings(OpenVinoParams, params, "openvino_export")
        return before.stored(BITS[chosen.weights]).risked(CHANCES[chosen.weights])

    @staticmethod
    def apply(source: Path, destination: Path, params: dict[str, JsonValue], context: TransformContext, progress: Progress) -> None:
        """See `Transform.apply`."""
        from optimum.intel import OVWeightQuantizationConfig

        chosen = parse_settings(OpenVinoParams, params, "openvino_export")
        config: Any = None
        if chosen.weights == "int8":
            config = OVWeightQuantizationConfig(bits=8, sym=chosen.symmetric)
        if chosen.weights == "int4":
            config = OVWeightQuantizationConfig(bits=4, sym=chosen.symmetric, group_size=chosen.group_size, ratio=1.0)
        progress(f"exporting to OpenVINO ({chosen.weights})")
        write(exported(source, config), source, destination)


def require_exportable(source: Path, group_size: int | None) -> None:
    """Refuses what cannot be exported, as far as the configuration tells.

    Args:
        source: A Hugging Face folder.
        group_size: Consecutive weights that share a scale, where they do.

    Raises:
        InfeasibleError: It has no configuration, or groups do not divide a width.
    """
    path = source / "config.json"
    if not path.is_file():
        raise InfeasibleError(f"{source} has no config.json; only Hugging Face folders can be exported to OpenVINO.")
    config = json.loads(path.read_text(encoding="utf-8"))
    widths = {name: int(config[name]) for name in ("hidden_size", "intermediate_size") if name in config}
    odd = [name for name, width in widths.items() if group_size is not None and width % group_size]
    if odd:
        raise InfeasibleError(f"A group of {group_size} weights does not divide {odd[0]} = {widths[odd[0]]}; choose a smaller group_size.")


def exported(source: Path, config: Any) -> Any:
    """The model in optimum-intel.

    Args:
        source: A Hugging Face folder.
        config: How its weights are rounded; None leaves them.

    Raises:
        InfeasibleError: OpenVINO cannot take it.
    """
    from optimum.intel import OVModelForCausalLM

    try:
        return OVModelForCausalLM.from_pretrained(
            source, export=True, compile=False, local_files_only=True, load_in_8bit=False, quantization_config=config, trust_remote_code=trusted()
        )
    except (ValueError, KeyError, NotImplementedError) as error:
        raise InfeasibleError(f"OpenVINO cannot take this model ({str(error)[:200].rstrip('.')}); use another engine for it.") from error


def write(model: Any, source: Path, destination: Path) -> None:
    """Writes an artifact that the engine `openvino` opens.

    Args:
        model: A model in optimum-intel.
        source: The folder that it was exported from.
        destination: An empty folder.
    """
    with tempfile.TemporaryDirectory(prefix=".export-", dir=destination) as scratch:
        model.save_pretrained(scratch)
        shutil.move(Path(scratch, "openvino_model.bin"), destination / WEIGHTS)
        shutil.move(Path(scratch, "openvino_model.xml"), destination / GRAPH)
    for pattern in ("*.json", "*.jinja", "*.txt"):
        for path in source.glob(pattern):
            if not path.name.endswith(".index.json"):
                shutil.copyfile(path, destination / path.name)
