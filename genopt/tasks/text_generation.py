"""The text-generation task: its references, its first candidates, and the space that is searched afterwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from genopt.plan import JsonValue, Plan, Step
from genopt.tasks.base import Bench, BenchConfig
from genopt.tasks.text_bench import TextBench

ORIGINAL = Plan(name="original", engine="torch", options={"compile": False})
BASELINE = Plan(name="baseline", engine="torch", options={"compile": True})

KEEP: Mapping[str, tuple[str, ...]] = {
    "nothing": (),
    "head": ("head",),
    "down_proj": ("down_proj",),
    "edge-layers": ("edge_layers",),
}
"""Which module families a quantized export leaves in full precision, by the name shown in reports."""

_FAMILIES: Mapping[str, str] = {
    "onnx_weight_only": "quantization", "torchao_int8_weight_only": "quantization", "torchao_int8_dynamic": "quantization",
    "magnitude_prune": "pruning", "drop_layers": "pruning", "distill": "pruning",
}  # fmt: skip


def _onnx(name: str, *before: Step, **quantization: JsonValue) -> Plan:
    quantize = (Step(technique="onnx_weight_only", params=quantization),) if quantization else ()
    return Plan(name=name, steps=(*before, Step(technique="onnx_genai"), *quantize), engine="ort_genai")


def _int8(block_size: int, symmetric: bool, keep: Sequence[str] = ()) -> dict[str, JsonValue]:
    return {"bits": 8, "block_size": block_size, "symmetric": symmetric, "keep": list(keep)}


def _torch(name: str, *steps: Step) -> Plan:
    return Plan(name=name, steps=steps, engine="torch", options={"compile": True})


class TextGeneration:
    """See `genopt.tasks.base.Task`."""

    name = "text-generation"
    modality = "text"
    prepare_stage = "prepare_text"
    profile_stage = "profile_text"
    tasks_stage = "score_text_tasks"
    pace_metric = "tpot_ms"

    @staticmethod
    def references() -> tuple[Plan, Plan]:
        """The original as users run it, and the best lossless form of it."""
        return ORIGINAL, BASELINE

    @staticmethod
    def catalogue() -> list[Plan]:
        """One candidate per technique and engine, cheap and promising ones first."""
        int4: dict[str, JsonValue] = {"bits": 4, "symmetric": True, "keep": []}
        drop, distill = Step(technique="drop_layers", params={"count": 2}), Step(technique="distill", params={"time_s": 30.0})
        return [
            _onnx("ort-int8-g32-sym", **_int8(32, symmetric=True)),
            _onnx("ort-fp32"),
            _onnx("ort-int4-g32", **int4, block_size=32),
            _onnx("ort-int4-g128", **int4, block_size=128),
            _torch("torchao-int8-weight-only", Step(technique="torchao_int8_weight_only")),
            _torch("torchao-int8-dynamic", Step(technique="torchao_int8_dynamic")),
            # Eager, so that it is compared with the original alone: zeros are no faster, and compiling would only cost time.
            ORIGINAL.model_copy(update={"name": "prune-magnitude-50", "steps": (Step(technique="magnitude_prune", params={"sparsity": 0.5}),)}),
            _torch("drop-2-layers-distilled", drop, distill),
        ]

    @staticmethod
    def families(plan: Plan) -> frozenset[str]:
        """Another engine, fewer bits, fewer weights."""
        engine = {"engine"} if plan.engine != BASELINE.engine else set()
        return frozenset(engine | {_FAMILIES[step.technique] for step in plan.steps if step.technique in _FAMILIES})

    @staticmethod
    def space() -> Mapping[str, Sequence[JsonValue]]:
        """8-bit exports that differ in their grid, in what stays at full precision, in layers dropped and in threads."""
        return {
            "block_size": [16, 32, 64, 128], "symmetric": [False, True], "keep": list(KEEP), "layers_dropped": [0, 1], "spare_threads": [0, 1]
        }  # fmt: skip

    @staticmethod
    def seeds() -> list[dict[str, JsonValue]]:
        """The least invasive changes of plain int8 first: a zero point per block, then other block sizes."""
        base: dict[str, JsonValue] = {"symmetric": False, "keep": "nothing", "layers_dropped": 0, "spare_threads": 0}
        return [{**base, "block_size": size} for size in (32, 64, 128, 16)]

    @staticmethod
    def plan(choices: Mapping[str, JsonValue]) -> Plan:
        """The plan of one point of the space; its name spells the choices."""
        keep, dropped, block = str(choices["keep"]), int(str(choices["layers_dropped"])), int(str(choices["block_size"]))
        symmetric, spare = bool(choices["symmetric"]), int(str(choices["spare_threads"]))
        name = "-".join(
            [f"ort-int8-g{block}-{'sym' if symmetric else 'asym'}", *([f"keep-{keep}"] if KEEP[keep] else []),
             *([f"drop-{dropped}"] if dropped else []), *([f"spare-{spare}-threads"] if spare else [])]
        )  # fmt: skip
        before = [Step(technique="drop_layers", params={"count": dropped})] if dropped else []
        plan = _onnx(name, *before, **_int8(block, symmetric, KEEP[keep]))
        return plan.model_copy(update={"options": {"spare_threads": spare}}) if spare else plan

    @staticmethod
    def bench(config: BenchConfig) -> Bench:
        """A closed bench."""
        return TextBench(config, (ORIGINAL, BASELINE))
