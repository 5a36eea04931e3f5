"""The text-generation task: its references, its first candidates, and the space that is searched afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from genopt.models.given import require_given
from genopt.plan import JsonValue, Plan, Step
from genopt.search.space import ENGINE, Choice, Point, Space, compose
from genopt.spec import RunSpec
from genopt.tasks.base import Bench, BenchConfig, time_box
from genopt.tasks.text_bench import TextBench
from genopt.tasks.text_inputs import require_text_inputs

ORIGINAL = Plan(name="original", engine="torch", options={"compile": False, "spare_threads": 0})
BASELINE = Plan(name="baseline", engine="torch", options={"compile": True, "spare_threads": 0})

ENGINES: Mapping[str, str] = {"ort_genai": "ort", "torch": "torch", "llamacpp": "llamacpp", "openvino": "openvino", "vllm": "vllm"}
"""Engines of the space, with the words that begin the names of their candidates."""
TECHNIQUES: Mapping[str, str] = {
    "drop_layers": "drop", "torchao_int8_weight_only": "int8-weight-only", "torchao_int8_dynamic": "int8-dynamic",
    "torchao_float8_weight_only": "float8-weight-only", "torchao_float8_dynamic": "float8-dynamic", "torchao_int4_weight_only": "int4-weight-only",
    "onnx_genai": "onnx", "onnx_weight_only": "int8", "gguf": "", "openvino_export": "", "compressed_tensors": "",
}  # fmt: skip
"""Its techniques; magnitude pruning makes nothing faster here, and distillation has its own place in the first candidates."""

_FAMILIES: Mapping[str, str] = {
    "onnx_weight_only": "quantization", "torchao_int8_weight_only": "quantization", "torchao_int8_dynamic": "quantization",
    "torchao_float8_weight_only": "quantization", "torchao_float8_dynamic": "quantization", "torchao_int4_weight_only": "quantization",
    "compressed_tensors": "quantization", "llmcompressor": "quantization", "gguf": "quantization", "openvino_export": "quantization",
    "openvino_awq": "quantization", "importance": "quantization",
    "magnitude_prune": "pruning", "drop_layers": "pruning", "prune_width": "pruning", "distill": "pruning",
    "distill_given": "pruning",
}  # fmt: skip


@cache
def _space() -> Space:
    return compose(ENGINES, TECHNIQUES)


def _quantized(**choices: Choice) -> Point:
    """A point on ONNX Runtime with rounded weights."""
    return _space().complete({ENGINE: "ort_genai", "onnx_weight_only": True} | {f"onnx_weight_only.{name}": value for name, value in choices.items()})


def _int4(block_size: int) -> Point:
    return _quantized(head=4, qkv_proj=4, o_proj=4, gate_up_proj=4, down_proj=4, block_size=block_size, symmetric=True)


def _named(name: str, point: Point) -> Plan:
    return _space().plan(point).model_copy(update={"name": name})


def _torch(**choices: Choice) -> Point:
    return _space().complete({ENGINE: "torch", **choices})


def _llamacpp(number_format: str) -> Plan:
    return _space().plan(_space().complete({ENGINE: "llamacpp", "gguf.format": number_format}))


def _weighed(plan: Plan) -> Plan:
    """Besides the space: the same rounding, by what the inputs of each matrix matter on calibration text."""
    return plan.model_copy(update={"name": f"{plan.name}-imatrix", "steps": (Step(technique="importance"), *plan.steps)})


def _vllm(scheme: str, **options: Choice) -> Point:
    chosen = {f"vllm.{name}": value for name, value in options.items()}
    return _space().complete({ENGINE: "vllm", "compressed_tensors": True, "compressed_tensors.scheme": scheme, **chosen})


def _vllm_cpu(name: str, *steps: Step) -> Plan:
    """Beside the space: it starts for so long that a search could try little else."""
    return Plan(name=name, steps=steps, engine="vllm_cpu")


def _pruned(name: str, **params: JsonValue) -> Plan:
    """Eager, so that it is compared with the original alone: zeros are no faster, and compiling would only cost time."""
    return ORIGINAL.model_copy(update={"name": name, "steps": (Step(technique="magnitude_prune", params=params),)})


RECOVERY_SHARE, TEACHING_SHARE = 0.05, 0.1
"""What of a run's time one candidate is trained for: one that lost a part, and a smaller model that is given."""
_CALIBRATED = (("awq", "W4A16"), ("gptq", "W4A16"), ("smoothquant", "W8A8"), ("static", "FP8"))
"""Methods of llm-compressor for vLLM on GPUs, with what they round to."""


def _calibrated(engine: str, method: str, scheme: str) -> Plan:
    """Beside the space, since calibration takes minutes: what rounding to the same format gains from it."""
    params: dict[str, JsonValue] = {"method": method, "scheme": scheme, "group_size": 32, "num_calibration_samples": 16}
    name = f"{engine.replace('_', '-')}-{scheme.lower()}-{method}"
    return Plan(name=name, steps=(Step(technique="llmcompressor", params=params),), engine=engine)


def _student(digest: str, budget_s: float) -> list[Plan]:
    """Beside the space, which knows no given models: a smaller model that was trained on what the original predicts, as it is and rounded."""
    distilled = Step(technique="distill_given", params={"given": digest, "time_s": time_box(TEACHING_SHARE * budget_s)})
    rounded = _space().plan(_quantized(symmetric=True))
    return [
        Plan(name="student", steps=(distilled,), engine="torch", options={"compile": True}),
        rounded.model_copy(update={"name": "student-ort-int8", "steps": (distilled, *rounded.steps)}),
    ]


def _guessed(digest: str) -> list[Plan]:
    """Beside the space: the original, whose next tokens a given smaller model guesses."""
    attached = Step(technique="attach_draft", params={"given": digest})
    return [
        Plan(name=f"{engine.replace('_', '-')}-draft", steps=(attached,), engine=engine, options={"draft_tokens": 4})
        for engine in ("vllm", "vllm_cpu")
    ]


class TextGeneration:
    """See `genopt.tasks.base.Task`."""

    name = "text-generation"
    modality = "text"
    prepare_stage = "prepare_text"
    profile_stage = "profile_text"
    tasks_stage = "score_text_tasks"
    sensitivity_stage = "text_sensitivity"
    pace_metric = "tpot_ms"
    given: Mapping[str, str] = {
        "student": "a smaller model with the same vocabulary, a Hugging Face folder",
        "draft": "a smaller model with the same vocabulary, whose guesses vLLM checks, a Hugging Face folder",
    }

    @staticmethod
    def require_inputs(spec: RunSpec) -> None:
        """Texts, questions, prompts and given models."""
        require_text_inputs(spec)
        require_given(spec.given, TextGeneration.given)

    @staticmethod
    def references() -> tuple[Plan, Plan]:
        """The original as users run it, and the best lossless form of it."""
        return ORIGINAL, BASELINE

    @staticmethod
    def catalogue(given: Mapping[str, str], budget_s: float) -> list[Plan]:
        """One candidate per technique and engine, cheap and promising ones first."""
        drop = Step(technique="drop_layers", params={"count": 2})
        distill = Step(technique="distill", params={"time_s": time_box(RECOVERY_SHARE * budget_s)})
        narrow = Step(technique="prune_width", params={"neurons": 0.125})
        return [
            *(_student(given["student"], budget_s) if "student" in given else ()),
            _named("ort-int8-g32-sym", _quantized(symmetric=True)),
            _llamacpp("Q8_0"),
            _llamacpp("native"),
            Plan(name="llamacpp-as-given", steps=(Step(technique="gguf_as_given"),), engine="llamacpp"),
            _space().plan(_space().complete({ENGINE: "openvino"})),
            _named("vllm-native", _space().complete({ENGINE: "vllm"})),
            _space().plan(_vllm("FP8_DYNAMIC")),
            _space().plan(_vllm("W4A16")),
            _space().plan(_vllm("W8A8")),
            *(_guessed(given["draft"]) if "draft" in given else ()),
            _vllm_cpu("vllm-cpu-native"),
            _vllm_cpu("vllm-cpu-w8a8", Step(technique="compressed_tensors", params={"scheme": "W8A8"})),
            *(_calibrated("vllm", method, scheme) for method, scheme in _CALIBRATED),
            _calibrated("vllm_cpu", "smoothquant", "W8A8"),
            _named("ort-fp32", _space().complete({ENGINE: "ort_genai"})),
            Plan(name="openvino-int4-awq", steps=(Step(technique="openvino_awq"),), engine="openvino"),
            _named("ort-int4-g32", _int4(32)),
            _named("ort-int4-g128", _int4(128)),
            _llamacpp("Q6_K"),
            _llamacpp("Q4_K_M"),
            _weighed(_llamacpp("Q4_K_M")),
            _named("torchao-int8-weight-only", _torch(torchao_int8_weight_only=True)),
            _named("torchao-int8-dynamic", _torch(torchao_int8_dynamic=True)),
            _named("torchao-float8-weight-only", _torch(torchao_float8_weight_only=True)),
            _named("torchao-float8-dynamic", _torch(torchao_float8_dynamic=True)),
            _named("torchao-int4-weight-only", _torch(torchao_int4_weight_only=True)),
            _pruned("prune-magnitude-50", sparsity=0.5),
            _pruned("prune-magnitude-2-of-4", pattern="2:4"),
            Plan(name="drop-2-layers-distilled", steps=(drop, distill), engine="torch", options={"compile": True}),
            Plan(name="prune-neurons-12-distilled", steps=(narrow, distill), engine="torch", options={"compile": True}),
        ]

    @staticmethod
    def families(plan: Plan) -> frozenset[str]:
        """Another engine, fewer bits, fewer weights."""
        engine = {"engine"} if plan.engine != BASELINE.engine else set()
        return frozenset(engine | {_FAMILIES[step.technique] for step in plan.steps if step.technique in _FAMILIES})

    @staticmethod
    def space() -> Space:
        """The engines, with all that can be done to the model for them; a run leaves out those that it cannot have."""
        return _space()

    @staticmethod
    def seeds() -> list[Point]:
        """The least invasive changes of plain int8 first: a zero point per block, guesses, other block sizes; then what other engines have."""
        blocks = [_quantized(block_size=size) for size in (32, 64, 128, 16)]
        blocks[1:1] = [blocks[0] | {"ort_genai.lookahead": 8}, blocks[1] | {"ort_genai.lookahead": 8}]
        blocks.insert(3, _space().complete({ENGINE: "llamacpp", "gguf.format": "Q8_0", "llamacpp.lookahead": 8}))
        paged = _space().complete({ENGINE: "openvino", "openvino.attention": "paged", "openvino.lookahead": 8})
        served = [_vllm("FP8_DYNAMIC", cache_type="fp8"), _vllm("W4A16", kernels="humming"), _vllm("FP8_DYNAMIC", max_batched_tokens=8192)]
        return [*blocks, paged, *served]

    @staticmethod
    def bench(config: BenchConfig) -> Bench:
        """A closed bench."""
        return TextBench(config, (ORIGINAL, BASELINE))
