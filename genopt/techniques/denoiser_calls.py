"""What a pipeline asks of its denoiser while it makes images, and how much another denoiser answers differently."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from genopt.models import products
from genopt.models.pipeline_loading import takes
from genopt.techniques.torchao_schemes import round_matrices

if TYPE_CHECKING:
    from torchao.core.config import AOBaseConfig


class Call(NamedTuple):
    """One call of a denoiser.

    Attributes:
        arguments: By position.
        named: By name.
        answer: What it predicted.
    """

    arguments: tuple[Any, ...]
    named: dict[str, Any]
    answer: Tensor


def record(pipeline: Any, denoiser: nn.Module, prompts: Sequence[str], *, steps: int, seed: int) -> list[Call]:
    """The calls that a pipeline makes for one image of each prompt.

    Args:
        pipeline: An open one.
        denoiser: Its denoiser.
        prompts: What is asked for.
        steps: Denoising steps of each image.
        seed: Of the noise that the first image begins with; the next ones have the next seeds.
    """
    found: list[Call] = []

    def note(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], answer: Any) -> None:
        found.append(Call(arguments, named, _prediction(answer)))

    own = {"use_resolution_binning": False} if takes(pipeline, "use_resolution_binning") else {}
    handle = denoiser.register_forward_hook(note, with_kwargs=True)
    try:
        with torch.inference_mode(), products.by_fp32(products.are_slow_in(denoiser)):
            for number, prompt in enumerate(prompts):
                noise = torch.Generator("cpu").manual_seed(seed + number)
                pipeline([prompt], num_inference_steps=steps, output_type="latent", generator=noise, **own)
    finally:
        handle.remove()
    return found


def difference(denoiser: nn.Module, calls: Sequence[Call]) -> float:
    """Mean squared difference of a denoiser's answers from those in the calls, as a share of their mean square."""
    shares = []
    with torch.inference_mode(), products.by_fp32(products.are_slow_in(denoiser)):
        for call in calls:
            apart = _prediction(denoiser(*call.arguments, **call.named)) - call.answer
            shares.append(float(apart.square().mean() / call.answer.square().mean()))
    return sum(shares) / len(shares)


def most_sensitive(denoiser: nn.Module, calls: Sequence[Call], paths: Collection[str], scheme: AOBaseConfig, count: int) -> frozenset[str]:
    """The matrices which change a denoiser's answers most when each alone is rounded.

    Args:
        denoiser: Unchanged afterwards.
        calls: What it is asked, and what it answers.
        paths: The matrices.
        scheme: Into what they are rounded.
        count: How many are wanted.
    """
    costs: dict[str, float] = {}
    for path in sorted(paths):
        matrix = denoiser.get_submodule(path)
        weight = matrix.get_parameter("weight")
        round_matrices(denoiser, scheme, [path])
        costs[path] = difference(denoiser, calls)
        matrix.register_parameter("weight", weight)
    return frozenset(sorted(costs, key=lambda path: -costs[path])[:count])


def _prediction(answer: Any) -> Tensor:
    found: Tensor = answer[0]
    return found.float()
