"""DiT's pipeline, which makes images of classes, asked as pipelines of text are: a prompt is the name of a class."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import DiTPipeline
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from genopt.errors import SpecError

OnStepEnd = Callable[[Any, int, Any, dict[str, Tensor]], dict[str, Tensor]]


class ClassPipeline(DiTPipeline):
    """Diffusers' pipeline with the arguments that those of text have; see `genopt.models.pipeline_prompts.ClassNames`."""

    def __call__(
        self, prompt: Sequence[str], num_inference_steps: int = 50, guidance_scale: float = 4.0, width: int | None = None, height: int | None = None,
        generator: Sequence[torch.Generator] | None = None, output_type: str = "pil", callback_on_step_end: OnStepEnd | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> Any:  # fmt: skip
        """Makes images.

        Args:
            prompt: Names of classes.
            num_inference_steps: Denoising steps.
            guidance_scale: Of classifier-free guidance.
            width: Pixels; there is one size only, as for the height.
            height: Pixels.
            generator: One per image.
            output_type: See `DiTPipeline`.
            callback_on_step_end: Called after each step with the pipeline, the step's number, its timestep and the latents.
            callback_on_step_end_tensor_inputs: Not used: there are only latents.

        Raises:
            SpecError: The pipeline makes no images of this size.
        """
        side = self.transformer.config.sample_size
        pixels = side * 2 ** (len(self.vae.config.block_out_channels) - 1)
        for asked in (width, height):
            if asked not in (None, pixels):
                raise SpecError(f"This pipeline makes images of {pixels}x{pixels} only; ask for this size.", {"param": "size"})
        shape = (len(prompt), self.transformer.config.in_channels, side, side)
        # The base class draws in the denoiser's precision, in which PyTorch 2.11 draws other numbers.
        noise = randn_tensor(shape, generator=None if generator is None else list(generator), device=self._execution_device, dtype=torch.float32)
        with self._observed(noise, callback_on_step_end):
            return super().__call__(
                self.get_label_ids(list(prompt)), guidance_scale=guidance_scale, generator=None if generator is None else list(generator),
                num_inference_steps=num_inference_steps, output_type=output_type,
            )  # fmt: skip

    @contextmanager
    def _observed(self, noise: Tensor, on_step_end: OnStepEnd | None) -> Iterator[None]:
        """The scheduler is where the base class begins and ends a step: there it begins with this noise, and there others are told.

        The base class hands on the latents as they were scaled for the denoiser, where schedulers that scale want them as they were.
        """
        scheduler = self.scheduler
        scale, advance = scheduler.scale_model_input, scheduler.step
        begun = 0
        unscaled = noise

        def begin(latents: Tensor, timestep: Any) -> Any:
            nonlocal begun, unscaled
            if not begun:
                first = (noise * scheduler.init_noise_sigma).to(latents.dtype)
                latents = first.repeat(len(latents) // len(first), 1, 1, 1)
            begun, unscaled = begun + 1, latents
            return scale(latents, timestep)

        def end(output: Tensor, timestep: Any, _: Tensor, **named: Any) -> Any:
            found = advance(output, timestep, unscaled, **named)
            if on_step_end is not None:
                on_step_end(self, begun - 1, timestep, {"latents": found.prev_sample[: len(noise)]})
            return found

        scheduler.scale_model_input, scheduler.step = begin, end
        try:
            yield
        finally:
            del scheduler.scale_model_input, scheduler.step
