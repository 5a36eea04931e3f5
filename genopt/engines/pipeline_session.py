"""A text-to-image pipeline that is open, whatever runs its parts: what is asked of it, and how it says how far it is."""

from __future__ import annotations

import base64
import inspect
import io
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genopt.engines.images import GeneratedImage, ImageRequest, OnStep, require_shape
from genopt.engines.pipeline_options import SCHEDULERS, PipelineOptions
from genopt.engines.step_times import StepTimes
from genopt.errors import InfeasibleError, OutOfMemoryError, SpecError, StageError
from genopt.models import pipeline_loading as pipelines
from genopt.models import pipeline_sampling
from genopt.models.pipeline_prompts import Prompts

GUIDED: Mapping[str, tuple[str, ...]] = {
    "StableDiffusionPipeline": ("prompt_embeds",),
    "StableDiffusionXLPipeline": ("prompt_embeds", "add_text_embeds", "add_time_ids"),
    "StableDiffusion3Pipeline": ("prompt_embeds", "pooled_prompt_embeds"),
}
"""Pipelines that look anew at each step whether it is guided, and what they hold twice for that."""
WARM_UP_STEPS = 2
FULL = ("can't allocate memory", "Failed to allocate memory", "bad_alloc")
"""What libraries say where there is too little memory."""


class _Cancelled(Exception):
    """Leaves the pipeline where nobody waits for any image of a batch."""


class PipelineSession(ABC):
    """The part of an `ImageSession` that does not depend on what runs the pipeline's parts.

    Args:
        folder: Folder of the pipeline.
        pipeline: What was loaded from it: of diffusers, or of a class that inherits its call.
        prompts: What it can be asked for.
        options: Runtime options.

    Raises:
        InfeasibleError: The pipeline cannot be run with these options.
    """

    def __init__(self, folder: Path, pipeline: Any, prompts: Prompts, options: PipelineOptions) -> None:
        self._pipeline, self._prompts, self._options = pipeline, prompts, options
        self._family = pipelines.class_name(folder)
        own = pipeline_sampling.read(folder)
        self._steps: int = options.num_inference_steps or own.num_inference_steps or pipelines.default(pipeline, "num_inference_steps")
        asked = (options.guidance_scale, own.guidance_scale)
        self._guidance: float | None = next((scale for scale in asked if scale is not None), pipelines.default(pipeline, "guidance_scale"))
        self._set_scheduler()
        self._require_guided()
        _draw_in_single_precision(pipeline)

    @property
    def pipeline(self) -> Any:
        """The opened pipeline."""
        return self._pipeline

    @property
    def steps(self) -> int:
        """Denoising steps of requests that name none."""
        return self._steps

    def warm_up(self) -> None:
        """Makes an image in few steps."""
        self.generate([ImageRequest(prompt=self._example, steps=min(WARM_UP_STEPS, self._steps))])

    @property
    def _example(self) -> str:
        """Any prompt that the pipeline takes."""
        return next(iter(self._prompts.examples), "a")

    @abstractmethod
    def _prepared(self, count: int) -> AbstractContextManager[None]:
        """Around the making of so many images."""

    def _set_scheduler(self) -> None:
        if self._options.scheduler is None:
            return
        name, settings = SCHEDULERS[self._options.scheduler]
        found = {each.__name__: each for each in self._pipeline.scheduler.compatibles}
        if name not in found:
            raise InfeasibleError(
                f"The scheduler {self._options.scheduler} does not fit {type(self._pipeline.scheduler).__name__}; "
                f"this pipeline takes {', '.join(key for key, (each, _) in SCHEDULERS.items() if each in found)}."
            )
        self._pipeline.scheduler = found[name].from_config(self._pipeline.scheduler.config, **settings)

    def _require_guided(self) -> None:
        if self._options.guidance_end < 1 and self._family not in GUIDED:
            raise InfeasibleError(f"{self._family} cannot end its guidance early; leave the option guidance_end out.")

    @torch.inference_mode()
    def generate(self, requests: Sequence[ImageRequest], on_step: OnStep | None = None) -> list[GeneratedImage]:
        """See `ImageSession.generate`."""
        if not requests:
            return []
        shape = require_shape(requests)
        for request in requests:
            self._require_prompt(request.prompt)
        run = _Run(len(requests), on_step, self._ending(shape.steps), self._stepped, self._step_times())
        guidance = self._guidance if shape.guidance is None else shape.guidance
        arguments: dict[str, Any] = {
            "prompt": [request.prompt for request in requests], "num_inference_steps": shape.steps or self._steps,
            "width": shape.width, "height": shape.height, "output_type": "pil", **self._told(run),
            "generator": [torch.Generator("cpu").manual_seed(request.seed) for request in requests],
            **({} if guidance is None else {"guidance_scale": guidance}),
            **({"use_resolution_binning": False} if pipelines.takes(self._pipeline, "use_resolution_binning") else {}),
        }  # fmt: skip
        try:
            with self._prepared(len(requests)):
                images = self._pipeline(**arguments).images
        except _Cancelled:
            return run.images(())
        except IndexError:
            if arguments["num_inference_steps"] > 1:
                raise
            raise SpecError(f"{type(self._pipeline.scheduler).__name__} has no single step; ask for two or more.") from None
        except torch.OutOfMemoryError:
            raise OutOfMemoryError(f"{len(requests)} images at once do not fit into the memory; ask for fewer or smaller ones.") from None
        except RuntimeError as error:
            if any(words in str(error) for words in FULL):
                raise OutOfMemoryError(f"{len(requests)} images at once do not fit into the memory; ask for fewer or smaller ones.") from None
            raise
        run.require_finite()
        return run.images([_png(image) for image in images])

    def _told(self, run: _Run) -> dict[str, Any]:
        """Arguments with which the pipeline says how far it is; older ones know another callback."""
        if pipelines.takes(self._pipeline, "callback_on_step_end"):
            halved = GUIDED[self._family] if self._options.guidance_end < 1 else ()
            return {"callback_on_step_end": run.step, "callback_on_step_end_tensor_inputs": ["latents", *halved]}

        def step(index: int, timestep: Any, latents: Tensor) -> None:
            run.step(self._pipeline, index, timestep, {"latents": latents})

        return {"callback": step, "callback_steps": 1}

    def _require_prompt(self, prompt: str) -> None:
        problem = self._prompts.objection(prompt)
        if problem:
            raise SpecError(problem, {"param": "prompt"})

    def _ending(self, steps: int | None) -> Callable[[int], tuple[str, ...]]:
        """What of the pipeline's inputs is halved after a step because guidance ends there."""
        last = math.ceil(self._options.guidance_end * (steps or self._steps))
        names = GUIDED.get(self._family, ())
        return lambda step: names if self._options.guidance_end < 1 and step == last else ()

    def _step_times(self) -> StepTimes:
        """What notes the steps of a batch."""
        return StepTimes()

    @abstractmethod
    def _stepped(self, timestep: Any) -> None:
        """Told the timestep of each step; it may lie on a GPU."""


class _Run:
    """One batch on its way through the pipeline."""

    def __init__(
        self, count: int, on_step: OnStep | None, ending: Callable[[int], tuple[str, ...]], stepped: Callable[[Any], None], times: StepTimes
    ) -> None:
        self._on_step, self._ending, self._stepped = on_step, ending, stepped
        self._wanted = dict.fromkeys(range(count), True)
        self._times = times
        self._latents: Tensor | None = None
        self._started = time.monotonic_ns()

    def step(self, pipeline: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        """Called by the pipeline after each step; asks a GPU for nothing that it would have to finish the step for."""
        self._times.note()
        self._latents = tensors["latents"]
        self._stepped(timestep)
        if self._on_step is not None:
            for request, wanted in self._wanted.items():
                self._wanted[request] = wanted and self._on_step(request, index + 1, len(pipeline.scheduler.timesteps))
        if not any(self._wanted.values()):
            raise _Cancelled
        ended = self._ending(index + 1)
        if not ended or not pipeline.do_classifier_free_guidance:
            return tensors
        pipeline._guidance_scale = 0.0
        return {**tensors, **{name: tensors[name].chunk(2)[-1] for name in ended if tensors.get(name) is not None}}

    def require_finite(self) -> None:
        """Raises `StageError` where the pipeline computed something that is not a number: it paints such images black."""
        if self._latents is not None and not bool(torch.isfinite(self._latents).all()):
            raise StageError("The denoiser's output is not a number (NaN), so the image would be black; use another precision or scheduler.")

    def images(self, files: Sequence[bytes]) -> list[GeneratedImage]:
        """The results; without files all were cancelled."""
        finished, over = time.monotonic_ns(), self._times.over_ns()
        return [
            GeneratedImage(
                png=base64.b64encode(files[request] if files and wanted else b""), started_ns=self._started, timestamps_ns=over,
                finished_ns=finished, finish_reason="done" if files and wanted else "cancelled",
            )
            for request, wanted in self._wanted.items()
        ]  # fmt: skip


def _draw_in_single_precision(pipeline: Any) -> None:
    """Begins a seed's image with the same noise whatever the arithmetic: PyTorch 2.11 draws other numbers in bfloat16 than in float32."""
    if not pipelines.draws_noise(pipeline):
        return
    draw = pipeline.prepare_latents
    signature = inspect.signature(draw)

    def drawn(*arguments: Any, **named: Any) -> Any:
        given = signature.bind(*arguments, **named)
        wanted = given.arguments["dtype"]
        given.arguments["dtype"] = torch.float32
        found = draw(*given.args, **given.kwargs)
        return tuple(part.to(wanted) for part in found) if isinstance(found, tuple) else found.to(wanted)

    pipeline.prepare_latents = drawn


def _png(image: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format="png", compress_level=1)
    return stream.getvalue()
