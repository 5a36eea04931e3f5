"""A text-to-image pipeline opened in diffusers."""

from __future__ import annotations

import base64
import io
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genopt.engines.base import Memory
from genopt.engines.diffusers_engine import SCHEDULERS, DiffusersOptions
from genopt.engines.images import GeneratedImage, ImageRequest, OnStep, require_shape
from genopt.engines.process_memory import process_memory
from genopt.errors import InfeasibleError, OutOfMemoryError, SpecError, StageError
from genopt.models import pipeline_loading as pipelines

GUIDED: Mapping[str, tuple[str, ...]] = {
    "StableDiffusionPipeline": ("prompt_embeds",),
    "StableDiffusionXLPipeline": ("prompt_embeds", "add_text_embeds", "add_time_ids"),
    "StableDiffusion3Pipeline": ("prompt_embeds", "pooled_prompt_embeds"),
}
"""Pipelines that look anew at each step whether it is guided, and what they hold twice for that."""
ATTENTION_STEPS, ATTENTION_EVERY = (100, 850), 2
"""Pyramid Attention Broadcast: between which timesteps, and how often attention is computed there."""
WARM_UP_STEPS = 2
NO_STEP = 10**9
"""A timestep outside of every range."""


class _Cancelled(Exception):
    """Leaves the pipeline where nobody waits for any image of a batch."""


class DiffusersSession:
    """See `genopt.engines.images.ImageSession`.

    Args:
        folder: Folder of the pipeline.
        options: Runtime options.

    Raises:
        InfeasibleError: The pipeline cannot be run with these options.
        ModelError: The pipeline cannot be loaded.
    """

    def __init__(self, folder: Path, options: DiffusersOptions) -> None:
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        self._options = options
        self._pipeline = pipelines.load_pipeline(folder, options.dtype)
        self._denoiser_name = pipelines.denoiser_name(self._pipeline.components)
        self._denoiser: Any = self._pipeline.components[self._denoiser_name]
        self._tokenizers = pipelines.Tokenizers.of_pipeline(self._pipeline)
        self._steps: int = options.num_inference_steps or pipelines.default(self._pipeline, "num_inference_steps")
        self._guidance: float | None = options.guidance_scale
        if self._guidance is None:
            self._guidance = pipelines.default(self._pipeline, "guidance_scale")
        self._timestep = NO_STEP
        self._set_scheduler()
        self._require_guided()
        self._set_cache()
        self._lay_out()
        self._alone = self._compiled()

    @property
    def pipeline(self) -> Any:
        """The opened pipeline."""
        return self._pipeline

    @property
    def denoiser(self) -> Any:
        """Its component that every step runs."""
        return self._denoiser

    @property
    def steps(self) -> int:
        """Denoising steps of requests that name none."""
        return self._steps

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
        if self._options.guidance_end < 1 and type(self._pipeline).__name__ not in GUIDED:
            raise InfeasibleError(f"{type(self._pipeline).__name__} cannot end its guidance early; leave the option guidance_end out.")

    def _set_cache(self) -> None:
        from diffusers.hooks.first_block_cache import FirstBlockCacheConfig, apply_first_block_cache
        from diffusers.hooks.pyramid_attention_broadcast import PyramidAttentionBroadcastConfig, apply_pyramid_attention_broadcast

        if self._options.cache == "first_block":
            try:
                apply_first_block_cache(self._denoiser, FirstBlockCacheConfig(threshold=self._options.cache_threshold))
            except (ValueError, KeyError, IndexError):
                raise InfeasibleError(
                    f"First-Block Cache needs repeated transformer blocks, which {type(self._denoiser).__name__} has not; leave it out."
                ) from None
        elif self._options.cache == "attention":
            config = PyramidAttentionBroadcastConfig(
                spatial_attention_block_skip_range=ATTENTION_EVERY, cross_attention_block_skip_range=ATTENTION_EVERY,
                spatial_attention_timestep_skip_range=ATTENTION_STEPS, cross_attention_timestep_skip_range=ATTENTION_STEPS,
                current_timestep_callback=lambda: self._timestep,
            )  # fmt: skip
            apply_pyramid_attention_broadcast(self._denoiser, config)

    def _lay_out(self) -> None:
        if self._options.fuse_projections:
            try:
                self._pipeline.fuse_qkv_projections()
            except AttributeError:
                raise InfeasibleError(f"{type(self._pipeline).__name__} has no projections that diffusers can fuse; leave the option out.") from None
        if self._options.channels_last:
            for part in (self._denoiser, self._pipeline.vae):
                part.to(memory_format=torch.channels_last)
        if self._options.vae_slicing:
            self._pipeline.vae.enable_slicing()
        if self._options.vae_tiling:
            self._pipeline.vae.enable_tiling()

    def _compiled(self) -> Any:
        """The denoiser for images that are made alone; batches of every size would be compiled again."""
        if self._options.compile == "regional":
            try:
                self._denoiser.compile_repeated_blocks(dynamic=False)
            except ValueError:
                name = type(self._denoiser).__name__
                raise InfeasibleError(f"{name} does not say which of its blocks repeat, so they cannot be compiled alone.") from None
        if self._options.compile != "denoiser":
            return None
        # Without "max-autotune": on an H200 it took 18 minutes for the UNet of SDXL and 5 for half of FLUX.1, where compiling the blocks
        # alone was done in 20 seconds and came within 2 % of it.
        return torch.compile(self._denoiser, dynamic=False)

    @property
    def _device(self) -> torch.device:
        found: torch.device = next(self._denoiser.parameters()).device
        return found

    def warm_up(self) -> None:
        """Makes an image, with all of its steps where they are compiled: guided ones and others are two kinds."""
        steps = self._steps if self._options.compile != "none" else min(WARM_UP_STEPS, self._steps)
        self.generate([ImageRequest(prompt="a", steps=steps)])

    @torch.inference_mode()
    def generate(self, requests: Sequence[ImageRequest], on_step: OnStep | None = None) -> list[GeneratedImage]:
        """See `ImageSession.generate`."""
        if not requests:
            return []
        shape = require_shape(requests)
        for request in requests:
            self._require_prompt(request.prompt)
        run = _Run(len(requests), on_step, self._ending(shape.steps), self._noted)
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
        except torch.OutOfMemoryError:
            raise OutOfMemoryError(f"{len(requests)} images at once do not fit into the memory; ask for fewer or smaller ones.") from None
        except RuntimeError as error:
            if "can't allocate memory" in str(error):
                raise OutOfMemoryError(f"{len(requests)} images at once do not fit into the memory; ask for fewer or smaller ones.") from None
            raise
        run.require_finite()
        return run.images([_png(image) for image in images])

    def _told(self, run: _Run) -> dict[str, Any]:
        """Arguments with which the pipeline says how far it is; older ones know another callback."""
        if pipelines.takes(self._pipeline, "callback_on_step_end"):
            halved = GUIDED[type(self._pipeline).__name__] if self._options.guidance_end < 1 else ()
            return {"callback_on_step_end": run.step, "callback_on_step_end_tensor_inputs": ["latents", *halved]}

        def step(index: int, timestep: Any, latents: Tensor) -> None:
            run.step(self._pipeline, index, timestep, {"latents": latents})

        return {"callback": step, "callback_steps": 1}

    def _require_prompt(self, prompt: str) -> None:
        problem = self._tokenizers.objection(prompt)
        if problem:
            raise SpecError(problem, {"param": "prompt"})

    def _ending(self, steps: int | None) -> Callable[[int], tuple[str, ...]]:
        """What of the pipeline's inputs is halved after a step because guidance ends there."""
        last = math.ceil(self._options.guidance_end * (steps or self._steps))
        names = GUIDED.get(type(self._pipeline).__name__, ())
        return lambda step: names if self._options.guidance_end < 1 and step == last else ()

    def _noted(self, timestep: int) -> None:
        self._timestep = timestep

    @contextmanager
    def _prepared(self, count: int) -> Iterator[None]:
        """With the denoiser for so many images, and caches that know of no earlier ones."""
        from diffusers.hooks.hooks import HookRegistry
        from diffusers.models.cache_utils import CacheMixin

        context: AbstractContextManager[None] = nullcontext()
        if self._options.cache != "none":
            HookRegistry.check_if_exists_or_initialize(self._denoiser).reset_stateful_hooks(recurse=True)
            if not isinstance(self._denoiser, CacheMixin):  # pipelines of these do not say whose call it is
                context = CacheMixin.cache_context(self._denoiser, "image")
        self._timestep = NO_STEP
        alone = self._alone if count == 1 else None
        with context, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # images of pixels that are no numbers, which are looked at afterwards
            setattr(self._pipeline, self._denoiser_name, self._denoiser if alone is None else alone)
            try:
                yield
            finally:
                setattr(self._pipeline, self._denoiser_name, self._denoiser)

    def memory(self) -> Memory:
        """See `Session.memory`."""
        return process_memory(torch.cuda.max_memory_allocated() if self._device.type == "cuda" else 0)

    def close(self) -> None:
        """See `Session.close`."""
        del self._pipeline, self._denoiser, self._alone


class _Run:
    """One batch on its way through the pipeline."""

    def __init__(
        self, count: int, on_step: OnStep | None, ending: Callable[[int], tuple[str, ...]], noted: Callable[[int], None]
    ) -> None:  # fmt: skip
        self._on_step, self._ending, self._noted = on_step, ending, noted
        self._wanted = dict.fromkeys(range(count), True)
        self._times: list[int] = []
        self._latents: Tensor | None = None
        self._started = time.monotonic_ns()

    def step(self, pipeline: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        """Called by the pipeline after each step."""
        self._times.append(time.monotonic_ns())
        self._latents = tensors["latents"]
        self._noted(int(timestep))
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
        finished = time.monotonic_ns()
        return [
            GeneratedImage(
                png=base64.b64encode(files[request] if files and wanted else b""), started_ns=self._started, timestamps_ns=tuple(self._times),
                finished_ns=finished, finish_reason="done" if files and wanted else "cancelled",
            )
            for request, wanted in self._wanted.items()
        ]  # fmt: skip


def _png(image: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format="png", compress_level=1)
    return stream.getvalue()
