"""The text-generation task: its references, its first candidates, and the space that is searched afterwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from genopt.plan import JsonValue, Plan, Step
from genopt.tasks.base import Bench, BenchConfig
from genopt.tasks.text_bench import TextBench

ORIGINAL = Plan(name="original", engine="torch", options={"compile": False})
BASELINE = Plan(name="baseline", engine="torch", options={"compile": True})

KEEP: Mapping[str, tuple[str, ...]] = {
    "nothing": (),
    "head": ("head",),
    "down_proj": ("down_proj",),
    "head+down_proj": ("head", "down_proj"),
    "edge layers": ("edge_layers",),
}
"""Which module families an ONNX export leaves in full precision, by the name shown in reports."""


def _onnx(name: str, **params: JsonValue) -> Plan:
    return Plan(name=name, steps=(Step(technique="onnx_genai", params=params),), engine="ort_genai")


class TextGeneration:
    """See `genopt.tasks.base.Task`."""

    name = "text-generation"
    modality = "text"
    prepare_stage = "prepare_text"
    profile_stage = "profile_text"

    @staticmethod
    def references() -> tuple[Plan, Plan]:
        """The original as users run it, and the best lossless form of it."""
        return ORIGINAL, BASELINE

    @staticmethod
    def catalogue(model_folder: Path) -> list[Plan]:
        """One candidate per technique and engine, cheap and promising ones first."""
        compiled: dict[str, JsonValue] = {"compile": True}
        return [
            _onnx("ort-int8", precision="int8", block_size=32),
            _onnx("ort-fp32", precision="fp32"),
            _onnx("ort-int4-g32", precision="int4", block_size=32),
            _onnx("ort-int4-g128", precision="int4", block_size=128),
            Plan(name="torchao-int8-weight-only", steps=(Step(technique="torchao_int8_weight_only"),), engine="torch", options=compiled),
            Plan(name="prune-magnitude-50", steps=(Step(technique="magnitude_prune", params={"sparsity": 0.5}),), engine="torch", options=compiled),
            Plan(
                name="drop-2-layers-distilled",
                steps=(Step(technique="drop_layers", params={"count": 2}), Step(technique="distill", params={"time_s": 30.0})),
                engine="torch", options=compiled,
            ),  # fmt: skip
            Plan(name="torchao-int8-dynamic", steps=(Step(technique="torchao_int8_dynamic"),), engine="torch", options=compiled),
        ]

    @staticmethod
    def space() -> Mapping[str, Sequence[JsonValue]]:
        """8-bit exports that differ in block size, in what stays at full precision, in layers dropped and in threads."""
        return {"block_size": [16, 32, 64, 128], "keep": list(KEEP), "layers_dropped": [0, 1], "threads": ["all", "all but one"]}

    @staticmethod
    def seeds() -> list[dict[str, JsonValue]]:
        """The least invasive repairs of plain int8 first."""
        base: dict[str, JsonValue] = {"layers_dropped": 0, "threads": "all"}
        return [{**base, "block_size": 32, "keep": "down_proj"}, {**base, "block_size": 16, "keep": "nothing"}]

    @staticmethod
    def plan(choices: Mapping[str, JsonValue]) -> Plan:
        """The plan of one point of the space; its name spells the choices."""
        keep, dropped, block = str(choices["keep"]), int(str(choices["layers_dropped"])), int(str(choices["block_size"]))
        steps = [Step(technique="drop_layers", params={"count": dropped})] if dropped else []
        steps.append(Step(technique="onnx_genai", params={"precision": "int8", "block_size": block, "keep": list(KEEP[keep])}))
        fewer = choices["threads"] == "all but one"
        parts = [f"ort-int8-g{block}", *([f"keep-{keep.replace(' ', '-')}"] if KEEP[keep] else [])]
        parts += [f"drop-{dropped}"] if dropped else []
        parts += ["fewer-threads"] if fewer else []
        return Plan(name="-".join(parts), steps=tuple(steps), engine="ort_genai", options={"spare_threads": 1} if fewer else {})

    @staticmethod
    def bench(config: BenchConfig) -> Bench:
        """A closed bench."""
        return TextBench(config, (ORIGINAL, BASELINE))
