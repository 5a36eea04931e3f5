"""Trains the denoiser of a pipeline for a short while to do in a few unguided steps what the original does in many guided ones.

One large step of the student is to lead where several small ones lead the original under classifier-free guidance: progressive distillation
(Salimans and Ho, 2022) of a guided model (Meng et al., "On Distillation of Guided Diffusion Models", 2023) in one round instead of several,
which are worth their time only where the large steps are very few. Consistency distillation was left aside: it noises real images, of which
there are none here, its target moves with the student, and its sampler adds noise at every step, so that no image resembles the original's.

What is trained on are the original's own ways from noise to image for calibration prompts, and the student goes them from its own points, as
it will when it is used. It is kept only if it ends closer to the original's images, for prompts and noise that were held out, than the
original itself in steps that cost as much.
"""

from __future__ import annotations

from pathlib import Path

from genopt.errors import InfeasibleError
from genopt.plan import JsonValue, parse_settings
from genopt.search.footprint import Footprint
from genopt.techniques.base import Progress, Transform, TransformContext
from genopt.techniques.calibration import calibration_prompts
from genopt.techniques.pipeline_files import copy_pipeline, load_denoiser, save_component, set_scheduler
from genopt.techniques.step_distillation_params import DistillStepsParams

PIPELINES = ("PixArtAlphaPipeline", "PixArtSigmaPipeline", "StableDiffusionPipeline", "StableDiffusionXLPipeline")
"""Those whose denoisers are guided by two predictions and sampled by DDIM."""
MOST_PROMPTS = 64
LIMIT_SHARE = 0.5
"""Most of the stage's time that distillation may take; loading and saving need the rest."""


class DistillSteps(Transform):
    """See `genopt.techniques.base.Transform`."""

    name = "diffusers_distill_steps"
    version = 3
    phase = 30
    requires = frozenset({"diffusers"})
    excludes = frozenset({"quantized", "sparse"})
    needs_calibration = True
    gpu = "used"

    @classmethod
    def check(cls, source: Path, params: dict[str, JsonValue]) -> None:
        """See `Transform.check`."""
        from genopt.models.pipeline_loading import class_name

        parse_settings(DistillStepsParams, params, cls.name)
        found = class_name(source)
        if found not in PIPELINES:
            raise InfeasibleError(f"The steps of {found} cannot be distilled; leave {cls.name} to {', '.join(PIPELINES)}.")

    @staticmethod
    def footprint(before: Footprint, params: dict[str, JsonValue]) -> Footprint:
        """See `Transform.footprint`: a step costs what it did, there are fewer."""
        return before.risked(0.3)

    @classmethod
    def apply(cls, source: Path, destination: Path, params: dict[str, JsonValue], context: TransformContext, progress: Progress) -> None:
        """See `Transform.apply`."""
        from genopt.models import pipeline_sampling
        from genopt.models.pipeline_loading import default, denoiser_name, load_pipeline
        from genopt.techniques.step_distillation import StepDistillation, few_step_scheduler

        chosen = parse_settings(DistillStepsParams, params, cls.name)
        prompts = calibration_prompts(context.calibration, MOST_PROMPTS)
        progress("loading the original and the denoiser to train")
        pipeline = load_pipeline(Path(context.original))
        pipeline.scheduler = scheduler = few_step_scheduler(pipeline.scheduler)
        name = denoiser_name(pipeline.components)
        teacher, student = pipeline.components[name], load_denoiser(source)[1]
        dtype = student.dtype
        student.to(teacher.device).float()
        guidance = chosen.guidance_scale or default(pipeline, "guidance_scale")
        distillation = StepDistillation(pipeline, teacher, student, prompts, guidance, context.seed)
        before, after = distillation.run(chosen, min(chosen.time_s, LIMIT_SHARE * context.time_limit_s), progress)
        progress(f"distance from the original's images {after:.4f}, where the original itself has {before:.4f} at the same cost")
        if not after < before:
            copy_pipeline(source, destination)
            return
        copy_pipeline(source, destination, without={name})
        save_component(student.to(dtype), destination / name)
        set_scheduler(destination, scheduler)
        pipeline_sampling.write(destination, pipeline_sampling.Sampling(num_inference_steps=chosen.steps, guidance_scale=1.0))
