"""The grid of SmolLM2 candidates on which searches are compared: a part of the task's space, recorded once.

Every record is a line of JSON with the name of a point and what was measured of it. Quality depends on the weights alone and
not on the machine's mood, so it is recorded once for all points that share their weights; speed is a ratio to a reference
that was timed in the same seconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from genopt.search.space import Point
from genopt.tasks.text_generation import TextGeneration

DATA = Path(__file__).parent / "data"
RECORDS, PROFILE, SENSITIVITY = DATA / "smollm2_grid.jsonl", DATA / "smollm2_profile.json", DATA / "smollm2_sensitivity.json"
AXES: Mapping[str, tuple[Any, ...]] = {
    "engine": ("ort_genai",), "drop_layers": (False, True), "drop_layers.count": (1,), "onnx_weight_only": (True,),
    "onnx_weight_only.block_size": (32, 128), "onnx_weight_only.symmetric": (False, True), "onnx_weight_only.head": (8, 4),
    "onnx_weight_only.qkv_proj": (8, 4), "onnx_weight_only.o_proj": (8,), "onnx_weight_only.gate_up_proj": (8, 4),
    "onnx_weight_only.down_proj": (8, 4), "onnx_weight_only.edge_layers": (None,), "ort_genai.spare_threads": (0, 1), "ort_genai.lookahead": (0,),
}  # fmt: skip
"""What the grid holds of each choice."""
FAMILIES = tuple(f"onnx_weight_only.{name}" for name in ("head", "qkv_proj", "o_proj", "gate_up_proj", "down_proj"))
"""Choices of bits."""
RUNTIME = ("ort_genai.spare_threads",)
"""Choices that leave the weights alone."""


def grid() -> list[Point]:
    """All points of the grid."""
    return [point for point in TextGeneration.space().points() if all(value in AXES[name] for name, value in point.items())]


def uniform() -> list[Point]:
    """Points of the space in which all matrices have the same bits, with the grid's other choices; those at 4 bits are none of the grid's."""
    axes = {**AXES, **dict.fromkeys(FAMILIES, (8, 4))}
    points = (point for point in TextGeneration.space().points() if all(value in axes[name] for name, value in point.items()))
    return [point for point in points if len({point[family] for family in FAMILIES}) == 1]


def name(point: Point) -> str:
    """A point's name."""
    return TextGeneration.space().name(point)


def weights_of(point: Point) -> str:
    """The name of the point with the same weights and default runtime options."""
    return TextGeneration.space().name(TextGeneration.space().complete({key: value for key, value in point.items() if key not in RUNTIME}))


def read(path: Path = RECORDS) -> Iterator[dict[str, Any]]:
    """The records; a line that a crash cut short is left out."""
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue


def recorded(kind: str, path: Path = RECORDS) -> dict[str, dict[str, Any]]:
    """The last record of a kind for each point."""
    return {record["name"]: record for record in read(path) if record["kind"] == kind}
