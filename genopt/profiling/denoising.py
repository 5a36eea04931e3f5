"""Runs a pipeline's components one by one: how long each takes, and what the denoiser's families of modules must do in a step."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from genopt.profiling.ceilings import synchronize
from genopt.profiling.roofline import Work
from genopt.search.footprint import ATTENTION, MLP, NORMALISATION, OTHER, PROJECTIONS

CONVOLUTIONS = "convolutions"
TEXT_ENCODERS, DENOISER, VAE, PIPELINE = "text encoders", "denoiser", "VAE decoder", "scheduler and pipeline"


@dataclass
class Calls:
    """What a component was called with, and how long each call took."""

    seconds: list[float] = field(default_factory=list)
    last: tuple[tuple[Any, ...], dict[str, Any]] | None = None


def parts(pipeline: Any, denoiser: nn.Module) -> dict[str, list[nn.Module]]:
    """The modules that make an image, by component."""
    found: dict[str, list[nn.Module]] = {TEXT_ENCODERS: [], DENOISER: [denoiser], VAE: []}
    for name, module in pipeline.components.items():
        if name.startswith("text_encoder") and module is not None:
            found[TEXT_ENCODERS].append(module)
    if isinstance(pipeline.components.get("vae"), nn.Module):
        found[VAE].append(pipeline.vae.decoder)
    return found


@contextmanager
def timed(modules: Mapping[str, list[nn.Module]], device: torch.device) -> Iterator[dict[str, Calls]]:
    """Times every call of these modules while the block runs."""
    found = {name: Calls() for name in modules}
    started: list[float] = []
    handles = []

    def begin(_module: nn.Module, _arguments: Any, _named: Any) -> None:
        synchronize(device)
        started.append(time.monotonic())

    def ended(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, arguments: Any, named: Any, _output: Any) -> None:
            synchronize(device)
            found[name].seconds.append(time.monotonic() - started.pop())
            found[name].last = (arguments, named)

        return hook

    for name, listed in modules.items():
        for module in listed:
            handles.append(module.register_forward_pre_hook(begin, with_kwargs=True))
            handles.append(module.register_forward_hook(ended(name), with_kwargs=True))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def median_call_s(calls: Calls) -> float:
    """Of a component, without its first call where there are more."""
    return statistics.median(calls.seconds[1:] or calls.seconds)


def marks(denoiser: nn.Module) -> list[tuple[nn.Module, str]]:
    """Modules that begin a family, outer ones first."""
    return [(module, family) for _, module in denoiser.named_modules() if (family := _family(module)) is not None]


def _family(module: nn.Module) -> str | None:
    kind = type(module).__name__.lower()
    if isinstance(module, nn.Linear):
        return PROJECTIONS
    if isinstance(module, nn.Conv2d):
        return CONVOLUTIONS
    if "norm" in kind:
        return NORMALISATION
    if kind.endswith("feedforward"):
        return MLP
    return ATTENTION if kind == "attention" or kind.endswith("attention") else None


def works(denoiser: nn.Module, call: Callable[[], object]) -> dict[str, Work]:
    """What each family reads and computes in one step.

    Operations of matrices and convolutions are counted from their shapes; what torch's own counter finds beyond them is the
    attention's.

    Args:
        denoiser: The module.
        call: Runs it once.
    """
    operations: dict[str, float] = {}
    families = _of_matrices(denoiser)

    def count(module: nn.Module, _arguments: Any, output: Tensor) -> None:
        weight = module.get_parameter("weight")
        each = weight.numel() / len(weight)
        operations[families[module]] = operations.get(families[module], 0.0) + 2.0 * output.numel() * each

    handles = [module.register_forward_hook(count) for module in families]
    try:
        with FlopCounterMode(display=False) as counter:
            call()
    finally:
        for handle in handles:
            handle.remove()
    operations[ATTENTION] = max(0.0, counter.get_total_flops() - sum(operations.values()))
    read = dict.fromkeys((*operations, OTHER), 0.0)
    for module, family in families.items():
        read[family] += sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())
    everything = sum(parameter.numel() * parameter.element_size() for parameter in denoiser.parameters())
    read[OTHER] += max(0.0, everything - sum(read.values()))
    return {family: Work(bytes=read[family], operations=operations.get(family, 0.0)) for family in read}


def _of_matrices(denoiser: nn.Module) -> dict[nn.Module, str]:
    """Linear layers and convolutions with their families; those of a feed-forward are its own."""
    inside = {child for _, module in denoiser.named_modules() if _family(module) == MLP for child in module.modules()}
    return {
        module: MLP if module in inside else CONVOLUTIONS if isinstance(module, nn.Conv2d) else PROJECTIONS
        for module in denoiser.modules() if isinstance(module, nn.Linear | nn.Conv2d)
    }  # fmt: skip
