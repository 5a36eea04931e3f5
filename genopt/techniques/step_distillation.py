"""The training behind `diffusers_distill_steps`: collects what the original does, has the student do it in fewer steps, and judges the result."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from genopt.errors import DataError, InfeasibleError
from genopt.models import products
from genopt.techniques.base import Progress
from genopt.techniques.denoising_path import DenoisingPath, ask, guided, joined, predict
from genopt.techniques.step_distillation_params import DistillStepsParams

HELD_OUT_PROMPTS = 0.2
"""Share of the prompts that are not trained on."""
HELD_OUT = 16
"""Images of these that decide whether training helped."""
TOGETHER = 16
"""Images that the original makes at once."""
COLLECTING = 0.4
"""Most of the time that the original's images may take."""
WARM_UP = 10
"""Updates until the learning rate has its peak."""


class Trajectories(NamedTuple):
    """Ways from noise to images.

    Attributes:
        prompts: Which prompt each is of.
        points: Latents, of all, before the first and after each of the large steps.
    """

    prompts: list[int]
    points: list[Tensor]


class StepDistillation:
    """Trains a denoiser.

    Args:
        pipeline: The original, with `few_step_scheduler`.
        teacher: Its denoiser.
        student: In float32, on the same device.
        prompts: Some of them are held out.
        guidance: Scale that the student learns.
        seed: Of all noise.

    Raises:
        DataError: There are too few prompts.
    """

    def __init__(self, pipeline: Any, teacher: Any, student: Any, prompts: Sequence[str], guidance: float, seed: int) -> None:
        if len(prompts) < 2:
            raise DataError("There are too few calibration prompts to distill on; give more with --calib-data.")
        self._scheduler, self._teacher, self._student, self._guidance = pipeline.scheduler, teacher, student, guidance
        self._device = next(teacher.parameters()).device
        asked = [ask(pipeline, teacher, prompt) for prompt in prompts]
        self._without, _, self._shape = asked[0]
        self._given = [given for _, given, _ in asked]
        self._held_out = max(1, round(HELD_OUT_PROMPTS * len(prompts)))
        self._random = torch.Generator().manual_seed(seed)

    def run(self, params: DistillStepsParams, limit_s: float, progress: Progress) -> tuple[float, float]:
        """Trains the student in place.

        Args:
            params: How.
            limit_s: Seconds after which it ends.
            progress: Told how far it is.

        Returns:
            Mean squared distances from the original's latents, for prompts and noise that were held out: of the original's own at the student's
            cost (a guided step costs two), and of the student's.

        Raises:
            InfeasibleError: The original is too slow for it.
        """
        started = time.monotonic()
        until = started + COLLECTING * limit_s
        path = DenoisingPath(self._scheduler, params.steps, params.substeps)
        first_held_out = len(self._given) - self._held_out
        judged = self._travelled([first_held_out + place % self._held_out for place in range(HELD_OUT)], path, until)
        collected: list[Trajectories] = []
        while len(collected) * TOGETHER < params.trajectories and (not collected or time.monotonic() < until):
            count = min(TOGETHER, params.trajectories - len(collected) * TOGETHER)
            collected.append(self._travelled([int(place) for place in torch.randint(first_held_out, (count,), generator=self._random)], path))
            progress(f"the original made {sum(len(each.prompts) for each in collected)} images")
        prompts = [prompt for each in collected for prompt in each.prompts]
        training = Trajectories(prompts, [torch.cat(points) for points in zip(*(each.points for each in collected), strict=True)])
        self._train(training, path, params, limit_s - (time.monotonic() - started), progress)
        as_many = params.steps if self._guidance == 1 else params.steps // 2
        asked = self._asked(judged.prompts)
        alone = DenoisingPath(self._scheduler, as_many, 1).travel(judged.points[0], guided(self._teacher, *asked, self._guidance))
        ours = DenoisingPath(self._scheduler, params.steps, 1).travel(judged.points[0], guided(self._student, *asked, 1.0), second_order=False)
        before, after = (float((points[-1] - judged.points[-1]).square().mean()) for points in (alone, ours))
        return before, after

    def _asked(self, prompts: Sequence[int]) -> tuple[Any, Any]:
        """What the denoiser is given for no prompt and for some, a row for each."""
        return joined([self._without] * len(prompts)), joined([self._given[prompt] for prompt in prompts])

    def _travelled(self, prompts: list[int], path: DenoisingPath, until: float = math.inf) -> Trajectories:
        """The original's ways from new noise, which must end by a time."""
        predicted = guided(self._teacher, *self._asked(prompts), self._guidance)

        def in_time(latents: Tensor, timestep: int) -> Tensor:
            if time.monotonic() > until:
                raise InfeasibleError("The original makes too few images in this time to distill steps; give diffusers_distill_steps more time_s.")
            return predicted(latents, timestep)

        noise = torch.randn((len(prompts), *self._shape), generator=self._random).to(self._device)
        return Trajectories(prompts, path.travel(noise, in_time))

    def _train(self, found: Trajectories, path: DenoisingPath, params: DistillStepsParams, limit_s: float, progress: Progress) -> None:
        optimizer = torch.optim.AdamW(self._student.parameters(), lr=params.learning_rate, weight_decay=0.0)
        started = time.monotonic()
        self._student.train().to(memory_format=torch.channels_last)
        for number, batch in enumerate(islice(self._batches(found, params.batch), params.updates), start=1):
            elapsed = time.monotonic() - started
            if elapsed > limit_s:
                break
            # While it is on time its clock decides nothing, so that the same work gives the same bytes.
            share = (number - 1) / params.updates if elapsed / limit_s <= number / params.updates else elapsed / limit_s
            for group in optimizer.param_groups:
                group["lr"] = params.learning_rate * min(1.0, number / WARM_UP) * (1 - share)
            optimizer.zero_grad()
            loss = self._descend(batch, path)
            torch.nn.utils.clip_grad_norm_(self._student.parameters(), 1.0)
            optimizer.step()
            progress(f"update {number} of at most {params.updates}: loss {loss:.4f}")
        self._student.eval().to(memory_format=torch.contiguous_format)

    def _batches(self, found: Trajectories, size: int) -> Iterator[Trajectories]:
        """Without end, in a new order each time round."""
        while True:
            order = torch.randperm(len(found.prompts), generator=self._random)
            for chosen in order.split(size):
                yield Trajectories([found.prompts[place] for place in chosen], [points[chosen] for points in found.points])

    def _descend(self, batch: Trajectories, path: DenoisingPath) -> float:
        """Adds up the gradients of all large steps, each from where the student's last one led."""
        _, given = self._asked(batch.prompts)
        latents, total = batch.points[0], 0.0
        for stage, wanted in zip(path.stages, batch.points[1:], strict=True):
            begin, end = stage[0], stage[-1]
            with self._precision():
                predicted = predict(self._student, latents, begin.timestep, given)
            reached = path.step(latents, path.image(latents, predicted, begin), begin, end)
            loss = (reached - wanted).square().mean()
            loss.backward()
            latents, total = reached.detach(), total + loss.item()
        return total

    def _precision(self) -> AbstractContextManager[object]:
        """In fp32 on CPUs: the convolutions of a UNet took longer to learn in bf16."""
        return nullcontext() if self._device.type == "cpu" else products.autocast(self._device)


def few_step_scheduler(scheduler: Any) -> Any:
    """DDIM with the noise of a pipeline's scheduler, whose few steps begin where nothing but noise is left.

    Raises:
        InfeasibleError: The scheduler is of another kind.
    """
    from diffusers import DDIMScheduler

    if DDIMScheduler not in scheduler.compatibles:
        raise InfeasibleError(f"{type(scheduler).__name__} cannot give way to DDIM, which distilled steps need; leave diffusers_distill_steps out.")
    return DDIMScheduler.from_config(scheduler.config, timestep_spacing="trailing", clip_sample=False, thresholding=False)
