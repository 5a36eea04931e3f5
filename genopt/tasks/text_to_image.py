"""The text-to-image task: its references, its first candidates, and the space that is searched afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from genopt.errors import DataError, SpecError
from genopt.models.given import require_given
from genopt.plan import Plan, Step
from genopt.search.space import ENGINE, Choice, Point, Space, compose
from genopt.spec import RunSpec
from genopt.tasks.base import Bench, BenchConfig, time_box
from genopt.tasks.image_bench import ImageBench
from genopt.tasks.image_data import plain_prompts

ORIGINAL = Plan(name="original", engine="diffusers", options={"spare_threads": 0})
BASELINE = Plan(name="baseline", engine="diffusers", options={"compile": "denoiser", "channels_last": True, "spare_threads": 0})
TRAITS = frozenset({"diffusers"})
"""Of an original pipeline."""
_ROUNDED = {
    "diffusers_int8_weight_only": "int8-weight-only", "diffusers_int8_dynamic": "int8-dynamic",
    "diffusers_float8_weight_only": "float8-weight-only", "diffusers_float8_dynamic": "float8-dynamic",
    "diffusers_int4_weight_only": "int4-weight-only",
}  # fmt: skip
"""Techniques of the space that only round, with the words for them in the names of candidates."""
_PRUNED = ("diffusers_magnitude_prune", "diffusers_drop_blocks")
_DROPPED = Step(technique="diffusers_drop_blocks", params={"count": 1})
_DISTILLATION = "diffusers_distill_steps"
DISTILLATION_SHARE = 0.15
"""What of a run's time one candidate is trained for."""
_EXPORT = {"diffusers_onnx": ""}


@cache
def _space() -> Space:
    return compose({"diffusers": "", "ort_diffusers": "ort"}, {**_ROUNDED, **_EXPORT}, TRAITS)


def _point(technique: str = "", **options: Choice) -> Point:
    used: dict[str, Choice] = {technique: True} if technique else {}
    return _space().complete({ENGINE: "diffusers", **used} | {f"diffusers.{name}": value for name, value in options.items()})


def _named(name: str, technique: str = "", **options: Choice) -> Plan:
    return _space().plan(_point(technique, **options)).model_copy(update={"name": name})


def _ort(name: str, choices: Mapping[str, Choice]) -> Plan:
    return _space().plan(_space().complete({ENGINE: "ort_diffusers", **choices})).model_copy(update={"name": name})


def _changed(name: str, *steps: Step, engine: str = ORIGINAL.engine) -> Plan:
    return ORIGINAL.model_copy(update={"name": name, "steps": steps, "engine": engine})


def _tiny_vae(digest: str) -> list[Plan]:
    """Beside the space, which knows no given models: what decoding alone gains, and after few steps, of which it is a larger part."""
    steps = (Step(technique="diffusers_tiny_vae", params={"given": digest}),)
    few = _named("tiny-vae-dpm-15-steps", num_inference_steps=15, scheduler="dpmsolver++")
    return [few.model_copy(update={"steps": steps}), _changed("tiny-vae", *steps)]


def _lora(digest: str) -> list[Plan]:
    """Beside the space, which knows no given models: the result brings its scheduler along, and goes without guidance."""
    steps = (Step(technique="diffusers_lora", params={"given": digest}),)
    counts = (4, 8)
    return [_named(f"lora-lcm-{count}-steps", num_inference_steps=count).model_copy(update={"steps": steps}) for count in counts]


class TextToImage:
    """See `genopt.tasks.base.Task`."""

    name = "text-to-image"
    modality = "image"
    prepare_stage = "prepare_images"
    profile_stage = "profile_images"
    tasks_stage = ""
    sensitivity_stage = ""
    pace_metric = "latency_ms"
    given: Mapping[str, str] = {
        "vae": "a tiny autoencoder of the model's family (diffusers' AutoencoderTiny)",
        "lora": "a LoRA for few steps of the model's family (LCM-LoRA)",
    }  # fmt: skip

    @staticmethod
    def require_inputs(spec: RunSpec) -> None:
        """Prompts, a scorer and given models."""
        for file in (spec.eval_data, spec.calib_data, spec.prompts):
            if file is not None:
                plain_prompts(Path(file).expanduser())
        require_given(spec.given, TextToImage.given)
        if spec.eval_tasks:
            raise SpecError("--eval-task is for models that write text; score images with --scorer.")
        if spec.slo:
            raise SpecError("--slo limits what readers of a text wait for its tokens; images have none, so leave it out.")
        if spec.arrivals != "closed":
            raise SpecError("--arrivals is for models that write text; images are timed one after the other and in batches, so leave it out.")
        if spec.scorer is not None and ":" not in spec.scorer and not Path(spec.scorer).expanduser().is_dir():
            raise DataError(f"There is no scorer {spec.scorer}; give a folder with a CLIP model or classifier, or module:callable.")

    @staticmethod
    def references() -> tuple[Plan, Plan]:
        """The original as users run it, and the best lossless form of it."""
        return ORIGINAL, BASELINE

    @staticmethod
    def catalogue(given: Mapping[str, str], budget_s: float) -> list[Plan]:
        """Fewer steps with a better scheduler first: they save most."""
        distilled = Step(technique=_DISTILLATION, params={"steps": 4, "time_s": time_box(DISTILLATION_SHARE * budget_s)})
        return [
            *(_lora(given["lora"]) if "lora" in given else ()),
            *(_tiny_vae(given["vae"]) if "vae" in given else ()),
            _named("dpm-25-steps", num_inference_steps=25, scheduler="dpmsolver++"),
            _named("dpm-15-steps", num_inference_steps=15, scheduler="dpmsolver++"),
            _named("dpm-10-steps", num_inference_steps=10, scheduler="dpmsolver++"),
            _named("unipc-10-steps", num_inference_steps=10, scheduler="unipc"),
            _named("guidance-half", guidance_end=0.5),
            _named("dpm-15-guidance-half", num_inference_steps=15, scheduler="dpmsolver++", guidance_end=0.5),
            _named("dpm-15-compiled", num_inference_steps=15, scheduler="dpmsolver++", compile="denoiser", channels_last=True),
            _named("compiled-graphs", compile="denoiser", channels_last=True, graphs=True),
            _ort("ort-fp32", {}),
            _ort("ort-dpm-15-steps", {"ort_diffusers.num_inference_steps": 15, "ort_diffusers.scheduler": "dpmsolver++"}),
            _ort("ort-int8", {"diffusers_onnx.weights": "int8"}),
            _named("attention-cache", cache="attention"),
            _named("first-block-cache", cache="first_block", cache_threshold=0.1),
            _named("int8-dynamic", "diffusers_int8_dynamic"),
            _named("int8-weight-only", "diffusers_int8_weight_only"),
            _named("float8-dynamic", "diffusers_float8_dynamic", compile="denoiser"),
            _named("float8-weight-only", "diffusers_float8_weight_only", compile="denoiser"),
            _named("int4-weight-only", "diffusers_int4_weight_only", compile="denoiser"),
            _named("bf16", dtype="bfloat16"),
            _changed("int8-weight-only-everywhere", Step(technique="diffusers_int8_weight_only", params={"components": "all"})),
            _changed("prune-magnitude-30", Step(technique="diffusers_magnitude_prune", params={"sparsity": 0.3})),
            _changed("drop-1-block", _DROPPED),
            _changed("distilled-4-steps", distilled),
            _changed("ort-distilled-4-steps", distilled, Step(technique="diffusers_onnx", params={"weights": "fp32"}), engine="ort_diffusers"),
            _changed("drop-1-block-distilled-4-steps", _DROPPED, distilled),
        ]

    @staticmethod
    def families(plan: Plan) -> frozenset[str]:
        """Another engine, fewer steps, as they are or after training, cheaper steps, fewer bits, fewer weights."""
        found = {"quantization"} if any(step.technique in _ROUNDED or step.params.get("weights") == "int8" for step in plan.steps) else set()
        if plan.engine != BASELINE.engine:
            found.add("engine")
        if any(step.technique in _PRUNED for step in plan.steps):
            found.add("pruning")
        if plan.options.get("num_inference_steps") is not None or plan.options.get("guidance_end", 1.0) != 1.0:
            found.add("steps")
        if _DISTILLATION in {step.technique for step in plan.steps}:
            found.add("distillation")  # fewer steps too, and comes after what needs no training
        if plan.options.get("cache", "none") != "none":
            found.add("cache")
        if plan.options.get("compile", "none") != "none":
            found.add("compile")
        return frozenset(found)

    @staticmethod
    def space() -> Space:
        """Steps, scheduler, guidance interval, cache and precision, with all that can be done to the denoiser for them."""
        return _space()

    @staticmethod
    def seeds() -> list[Point]:
        """Between the first candidates: steps that are few but not fewest, with and without an end of guidance."""
        return [
            _point(num_inference_steps=12, scheduler="dpmsolver++", channels_last=True),
            _point(num_inference_steps=8, scheduler="dpmsolver++", channels_last=True),
            _point(num_inference_steps=12, scheduler="dpmsolver++", guidance_end=0.75, channels_last=True),
            _point(num_inference_steps=8, scheduler="unipc", guidance_end=0.5, channels_last=True),
        ]

    @staticmethod
    def bench(config: BenchConfig) -> Bench:
        """A closed bench."""
        return ImageBench(config, (ORIGINAL, BASELINE))
