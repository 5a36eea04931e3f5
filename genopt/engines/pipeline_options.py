"""Options that every engine of text-to-image pipelines has: how many steps, with which scheduler, guided for how long."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from genopt.errors import SpecError
from genopt.plan import JsonValue, Record
from genopt.search.space import Tunable

SCHEDULERS: Mapping[str, tuple[str, dict[str, JsonValue]]] = {
    "ddim": ("DDIMScheduler", {"clip_sample": False}),  # its default is for pixels, and these are latents
    "pndm": ("PNDMScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "dpmsolver++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "dpmsolver++_karras": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "use_karras_sigmas": True}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "deis": ("DEISMultistepScheduler", {}),
    "lcm": ("LCMScheduler", {}),
    "flow_euler": ("FlowMatchEulerDiscreteScheduler", {}),
    "flow_heun": ("FlowMatchHeunDiscreteScheduler", {}),
}
"""Class in diffusers and what is set besides the pipeline's own configuration, by name."""
STEPS = (30, 25, 20, 15, 12, 10, 8, 6, 4)
SCHEDULE: tuple[Tunable, ...] = (
    Tunable(name="num_inference_steps", choices=(None, *STEPS), words=("", *(f"{steps}-steps" for steps in STEPS))),
    Tunable(name="scheduler", choices=(None, "dpmsolver++", "unipc", "euler", "deis"), words=("", "dpm", "unipc", "euler", "deis")),
    Tunable(name="guidance_end", choices=(1.0, 0.75, 0.5, 0.25), words=("", "guidance-75", "guidance-50", "guidance-25")),
)
"""What a search may change about them."""


class PipelineOptions(Record):
    """Options of an engine.

    Attributes:
        num_inference_steps: Denoising steps of requests that name none; None takes what the pipeline was distilled for, else its default, as for
            the guidance.
        guidance_scale: Scale of classifier-free guidance of such requests.
        guidance_end: Share of the steps after which there is no classifier-free guidance any more, so that each costs half.
        scheduler: A key of `SCHEDULERS`; None keeps the pipeline's.
        threads: CPU threads; None leaves the library's default.
    """

    num_inference_steps: int | None = Field(default=None, gt=0, le=1000)
    guidance_scale: float | None = Field(default=None, ge=0)
    guidance_end: float = Field(default=1.0, gt=0, le=1)
    scheduler: str | None = None
    threads: int | None = Field(default=None, gt=0)


def require_scheduler(options: PipelineOptions, engine: str) -> None:
    """Refuses schedulers that are not known.

    Raises:
        SpecError: This one is not.
    """
    if options.scheduler is not None and options.scheduler not in SCHEDULERS:
        raise SpecError(f"The engine {engine} has no scheduler {options.scheduler!r}; choose one of {', '.join(SCHEDULERS)}.")
