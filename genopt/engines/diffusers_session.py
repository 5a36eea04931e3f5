"""A text-to-image pipeline opened in diffusers."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch

from genopt.engines.attention import NO_KERNEL, only
from genopt.engines.base import Memory
from genopt.engines.compiled_denoiser import CompiledDenoiser
from genopt.engines.diffusers_options import DiffusersOptions
from genopt.engines.images import ImageRequest
from genopt.engines.pipeline_session import PipelineSession
from genopt.engines.process_memory import process_memory
from genopt.engines.step_times import GpuStepTimes, StepTimes
from genopt.errors import InfeasibleError
from genopt.models import pipeline_loading as pipelines
from genopt.models.pipeline_prompts import prompts_of

ATTENTION_STEPS, ATTENTION_EVERY = (100, 850), 2
"""Pyramid Attention Broadcast: between which timesteps, and how often attention is computed there."""
NO_STEP = 10**9
"""A timestep outside of every range."""

UNCACHEABLE = ("SD3Transformer2DModel",)
"""Denoisers whose last block gives no text back, which diffusers' First-Block Cache subtracts from."""


class DiffusersSession(PipelineSession):
    """See `genopt.engines.images.ImageSession`.

    Args:
        folder: Folder of the pipeline.
        options: Runtime options.

    Raises:
        InfeasibleError: The pipeline cannot be run with these options.
        ModelError: The pipeline cannot be loaded.
    """

    _options: DiffusersOptions

    def __init__(self, folder: Path, options: DiffusersOptions) -> None:
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        pipeline = pipelines.load_pipeline(folder, options.dtype)
        if not pipelines.takes(pipeline, "prompt"):
            raise InfeasibleError(f"{type(pipeline).__name__} makes images of something else than a prompt; give a text-to-image pipeline.")
        self._denoiser_name = pipelines.denoiser_name(pipeline.components)
        self._denoiser: Any = pipeline.components[self._denoiser_name]
        super().__init__(folder, pipeline, prompts_of(folder), options)
        self._timestep = NO_STEP
        self._set_cache()
        self._lay_out()
        self._set_attention()
        self._alone = self._compiled()

    @property
    def denoiser(self) -> Any:
        """Its component that every step runs."""
        return self._denoiser

    def _set_cache(self) -> None:
        from diffusers.hooks.first_block_cache import FirstBlockCacheConfig, apply_first_block_cache
        from diffusers.hooks.pyramid_attention_broadcast import PyramidAttentionBroadcastConfig, apply_pyramid_attention_broadcast

        if self._options.cache == "first_block":
            if type(self._denoiser).__name__ in UNCACHEABLE:
                raise InfeasibleError(f"diffusers' First-Block Cache does not fit {type(self._denoiser).__name__}; leave it out.")
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
            self._fuse_projections()
        if self._options.channels_last:
            for part in (self._denoiser, self._pipeline.vae):
                part.to(memory_format=torch.channels_last)
        if self._options.vae_slicing:
            self._pipeline.vae.enable_slicing()
        if self._options.vae_tiling:
            self._pipeline.vae.enable_tiling()

    def _fuse_projections(self) -> None:
        for part in (self._pipeline, self._denoiser):  # some pipelines leave it to their denoiser
            with suppress(AttributeError):
                part.fuse_qkv_projections()
                return
        raise InfeasibleError(f"{type(self._pipeline).__name__} has no projections that diffusers can fuse; leave the option out.")

    def _set_attention(self) -> None:
        """Only the denoiser's: those of a text encoder and a VAE have masks and widths that some kernels do not know."""
        if self._options.attention is None:
            return
        forward = self._denoiser.forward

        @functools.wraps(forward)  # pipelines look at what it takes
        def attending(*arguments: Any, **named: Any) -> Any:
            with only(self._options.attention):
                return forward(*arguments, **named)

        self._denoiser.forward = attending

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
        return CompiledDenoiser(self._denoiser, self._repeated_blocks(), graphs=self._options.graphs)

    def _repeated_blocks(self) -> list[Any]:
        """Blocks that are alike, as diffusers names their classes; none where hooks of a cache tell them apart."""
        from diffusers import ModelMixin

        names = self._denoiser._repeated_blocks if isinstance(self._denoiser, ModelMixin) and self._options.cache == "none" else ()
        return [module for module in self._denoiser.modules() if type(module).__name__ in names]

    @property
    def _device(self) -> torch.device:
        found: torch.device = next(self._denoiser.parameters()).device
        return found

    def _step_times(self) -> StepTimes:
        return GpuStepTimes() if self._device.type == "cuda" else StepTimes()

    def _stepped(self, timestep: Any) -> None:
        if self._options.cache == "attention":
            self._timestep = int(timestep)  # a GPU must finish the step to tell, so others are not asked

    def warm_up(self) -> None:
        """Makes an image, with all of its steps where they are compiled: guided ones and others are two kinds."""
        if self._options.compile == "none":
            super().warm_up()
        else:
            self.generate([ImageRequest(prompt=self._example)])

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
            except RuntimeError as error:
                if NO_KERNEL not in str(error):
                    raise
                raise InfeasibleError(
                    f"PyTorch's attention kernels {self._options.attention} do not take this denoiser's shapes or precision; choose others."
                ) from None
            finally:
                setattr(self._pipeline, self._denoiser_name, self._denoiser)

    def memory(self) -> Memory:
        """See `Session.memory`."""
        return process_memory(torch.cuda.max_memory_allocated() if self._device.type == "cuda" else 0)

    def close(self) -> None:
        """See `Session.close`."""
        del self._pipeline, self._denoiser, self._alone
