"""Fuses a LoRA that was given beside a pipeline into the components that it was trained for, so that it costs nothing at run time.

It is one that was trained for few steps without guidance (LCM-LoRA: Luo et al., "LCM-LoRA: A Universal Stable-Diffusion Acceleration Module",
2023), so that the pipeline gets the scheduler of latent consistency models, which adds noise at every step.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from genopt.errors import InfeasibleError
from genopt.models.given import GivenParams
from genopt.plan import JsonValue, parse_settings
from genopt.search.footprint import Footprint
from genopt.techniques.base import Progress, Transform, TransformContext
from genopt.techniques.pipeline_files import copy_pipeline, save_component, set_scheduler

STEPS = 4
"""Of requests that name none."""


class Lora(Transform):
    """See `genopt.techniques.base.Transform`."""

    name = "diffusers_lora"
    version = 3
    phase = 10
    requires = frozenset({"diffusers"})
    excludes = frozenset({"quantized"})

    @classmethod
    def check(cls, source: Path, params: dict[str, JsonValue]) -> None:
        """See `Transform.check`."""
        parse_settings(GivenParams, params, cls.name)

    @staticmethod
    def footprint(before: Footprint, params: dict[str, JsonValue]) -> Footprint:
        """See `Transform.footprint`: a step costs what it did, there are fewer."""
        return before.risked(0.3)

    @classmethod
    def apply(cls, source: Path, destination: Path, params: dict[str, JsonValue], context: TransformContext, progress: Progress) -> None:
        """See `Transform.apply`."""
        from genopt.models import pipeline_sampling
        from genopt.models.pipeline_loading import load_pipeline, stored_dtype

        digest = parse_settings(GivenParams, params, cls.name).given
        file = _only_file(context.given_folder(digest))
        progress(f"fusing the LoRA {digest[:12]}")
        pipeline = load_pipeline(source, "float32")
        scheduler = _consistency_scheduler(pipeline.scheduler)
        changed = fuse(pipeline, file)
        copy_pipeline(source, destination, without=changed)
        for name in changed:
            save_component(pipeline.components[name].to(stored_dtype(source)), destination / name)
        set_scheduler(destination, scheduler)
        pipeline_sampling.write(destination, pipeline_sampling.Sampling(num_inference_steps=STEPS, guidance_scale=1.0))


def fuse(pipeline: Any, file: Path) -> tuple[str, ...]:
    """Adds a LoRA to the weights of an open pipeline and returns the names of the components that it changed.

    Raises:
        InfeasibleError: The pipeline takes none, or not this one.
    """
    from diffusers.loaders.lora_base import LoraBaseMixin

    if not isinstance(pipeline, LoraBaseMixin):
        raise InfeasibleError(f"{type(pipeline).__name__} takes no LoRA; leave --given lora out.")
    try:
        pipeline.load_lora_weights(file.parent, weight_name=file.name, local_files_only=True)
        changed = tuple(sorted(pipeline.get_list_adapters()))
    except (ValueError, KeyError, RuntimeError, OSError) as error:
        cause = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")
        raise InfeasibleError(f"{file} does not fit {type(pipeline).__name__} ({cause}); give a LoRA for this model's family.") from None
    if not changed:
        raise InfeasibleError(f"{file} changes nothing in {type(pipeline).__name__}; give a LoRA for this model's family.")
    pipeline.fuse_lora(components=list(changed), safe_fusing=True)
    pipeline.unload_lora_weights()
    return changed


def _consistency_scheduler(scheduler: Any) -> Any:
    from diffusers import DDIMScheduler, LCMScheduler

    if DDIMScheduler not in scheduler.compatibles:  # those that follow the same noise; LCM's own is missing among them
        raise InfeasibleError(f"{type(scheduler).__name__} cannot give way to LCM's scheduler, which such a LoRA needs; leave --given lora out.")
    return LCMScheduler.from_config(scheduler.config)


def _only_file(folder: Path) -> Path:
    found = sorted(folder.glob("*.safetensors"))
    if len(found) != 1:
        raise InfeasibleError(f"{folder} holds {len(found)} .safetensors files; give a folder with the LoRA alone.")
    return found[0]
