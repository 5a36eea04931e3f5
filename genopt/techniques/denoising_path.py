"""The way from noise to an image in a few large steps, and what a guided denoiser makes of it in many small ones.

Steps are those of DDIM (Song et al., 2021), which the result is sampled with. The small ones are of second order, DPM-Solver++(2M) (Lu et al.,
2022): each of its steps is DDIM's towards an image that is extrapolated from the last two.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from genopt.models import products
from genopt.models.pipeline_loading import takes

if TYPE_CHECKING:
    from torch import nn

LATENTS, TIMESTEP = ("sample", "hidden_states"), "timestep"
"""What denoisers call that which changes with every step."""
Given = Mapping[str, Any]
"""What a denoiser is given besides: text, sizes."""


class Level(NamedTuple):
    """How far an image is on its way: `signal` times the image and `noise` times noise, at this timestep."""

    signal: float
    noise: float
    timestep: int

    @property
    def log_snr(self) -> float:
        """Half the logarithm of the ratio of signal to noise."""
        if self.signal == 0 or self.noise == 0:
            return -math.inf if self.signal == 0 else math.inf
        return math.log(self.signal / self.noise)


class DenoisingPath:
    """The levels of a scheduler.

    Args:
        scheduler: diffusers' DDIMScheduler.
        steps: Large steps.
        between: Small steps of each.
    """

    def __init__(self, scheduler: Any, steps: int, between: int) -> None:
        scheduler.set_timesteps(steps)
        self._kind: str = scheduler.config.prediction_type
        ends = [*map(int, scheduler.timesteps), 0]
        alphas, final = scheduler.alphas_cumprod.tolist(), float(scheduler.final_alpha_cumprod)

        def level(timestep: int, alpha: float) -> Level:
            return Level(math.sqrt(alpha), math.sqrt(1 - alpha), timestep)

        self.stages: list[list[Level]] = []
        """Levels of the small steps of each large one, from its beginning to its end."""
        for begin, end in pairwise(ends):
            times = [round(begin + (end - begin) * place / between) for place in range(between + 1)]
            self.stages.append([level(time, alphas[time]) for time in times])
        self.stages[-1][-1] = level(0, final)

    def image(self, latents: Tensor, predicted: Tensor, level: Level) -> Tensor:
        """The image that a prediction amounts to."""
        if self._kind == "sample":
            return predicted
        if self._kind == "v_prediction":
            return level.signal * latents - level.noise * predicted
        return (latents - level.noise * predicted) / level.signal

    @staticmethod
    def step(latents: Tensor, image: Tensor, level: Level, following: Level) -> Tensor:
        """Latents at the following level, on the straight way to an image."""
        noise = (latents - level.signal * image) / level.noise
        return following.signal * image + following.noise * noise

    def travel(self, latents: Tensor, predict: Callable[[Tensor, int], Tensor], *, second_order: bool = True) -> list[Tensor]:
        """Takes all small steps; returns the latents before the first and after each of the large ones.

        Args:
            latents: Noise.
            predict: The denoiser's output for latents at a timestep.
            second_order: Whether steps look at the one before.
        """
        found: list[Tensor] = [latents]
        before: tuple[Tensor, Level] | None = None
        for stage in self.stages:
            for level, following in pairwise(stage):
                image = self.image(latents, predict(latents, level.timestep), level)
                last = following is self.stages[-1][-1]  # too long a step to extrapolate over
                towards = image if before is None or last else _extrapolated(image, level, following, *before)
                latents = self.step(latents, towards, level, following)
                before = (image, level) if second_order else None
            found.append(latents)
        return found


def _extrapolated(image: Tensor, level: Level, following: Level, earlier_image: Tensor, earlier: Level) -> Tensor:
    """The image halfway to the following level, where both distances are known."""
    ahead, behind = following.log_snr - level.log_snr, level.log_snr - earlier.log_snr
    if not math.isfinite(ahead) or not math.isfinite(behind):
        return image
    return image + (image - earlier_image) * ahead / (2 * behind)


def predict(denoiser: nn.Module, latents: Tensor, timestep: int, given: Given) -> Tensor:
    """What a denoiser makes of latents, in float32; variances that some learn beside it are left out.

    Args:
        denoiser: Of any family whose timesteps are whole numbers.
        latents: In float32.
        timestep: Of all of them.
        given: What else it is given, as many rows.
    """
    times = torch.full((len(latents),), timestep, device=latents.device)
    found: Tensor = denoiser(latents.to(next(denoiser.parameters()).dtype), timestep=times, **given)[0]
    return found[:, : latents.shape[1]].float()


def guided(denoiser: nn.Module, without: Given, given: Given, scale: float) -> Callable[[Tensor, int], Tensor]:
    """The denoiser under classifier-free guidance (Ho and Salimans, 2021).

    Args:
        denoiser: On its device.
        without: What it is given for no prompt.
        given: What it is given for the prompts.
        scale: Of guidance; at 1 there is none.
    """
    both = joined([without, given])
    slow = products.are_slow_in(denoiser)

    @torch.no_grad()
    def predicted(latents: Tensor, timestep: int) -> Tensor:
        with products.by_fp32(slow):
            if scale == 1:
                return predict(denoiser, latents, timestep, given)
            plain, prompted = predict(denoiser, torch.cat([latents, latents]), timestep, both).chunk(2)
        return plain + scale * (prompted - plain)

    return predicted


class _Called(Exception):
    """Leaves a pipeline at the first call of its denoiser."""


def ask(pipeline: Any, denoiser: nn.Module, prompt: str) -> tuple[Given, Given, torch.Size]:
    """What a pipeline gives its denoiser for no prompt and for a prompt, one row each, and the shape of one latent.

    Args:
        pipeline: An open one that can be guided.
        denoiser: Its denoiser, which is not run.
        prompt: What is asked for.
    """
    received: dict[str, Any] = {}

    def stop(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        received.update(inspect.signature(denoiser.forward).bind(*arguments, **named).arguments)
        raise _Called

    own = {"use_resolution_binning": False} if takes(pipeline, "use_resolution_binning") else {}
    handle = denoiser.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        with torch.no_grad():
            pipeline([prompt], num_inference_steps=2, guidance_scale=2.0, output_type="latent", **own)
    except _Called:
        pass
    finally:
        handle.remove()
    shape = next(received.pop(name).shape[1:] for name in LATENTS if name in received)
    received.pop(TIMESTEP)
    return _rows(received, slice(0, 1)), _rows(received, slice(1, 2)), shape


def _rows(value: Any, which: slice) -> Any:
    """The same value with some rows of each tensor."""
    if isinstance(value, dict):
        return {name: _rows(each, which) for name, each in value.items()}
    return value[which] if isinstance(value, Tensor) else value


def joined(values: Sequence[Any]) -> Any:
    """One value with the rows of all tensors; what is no tensor is that of the first."""
    first = values[0]
    if isinstance(first, dict):
        return {name: joined([value[name] for value in values]) for name in first}
    return torch.cat(list(values)) if isinstance(first, Tensor) else first
