"""Blocks that repeat, compiled once for all that are alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn


class Regions:
    """Makes blocks regions of what is compiled (`torch.compiler.nested_compile_region`), so that compiling takes little longer for many of them.

    They get a class of their own for that, with another `forward`. With a method of the block itself in its place, PyTorch 2.13 took the first
    block's weights for those of all others (tests/contract/test_compiled_denoiser.py): it tells blocks apart by how they are reached, and may
    reach one through such a method, but its weights through the model.

    Args:
        blocks: Those of a model that repeat; each class has its own region.
    """

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        regions = {kind: _region(kind) for kind in {type(block) for block in blocks}}
        self._blocks = [(block, type(block), regions[type(block)]) for block in blocks]

    def __len__(self) -> int:
        return len(self._blocks)

    def use(self) -> None:
        """From now on they are regions."""
        for block, _, region in self._blocks:
            block.__class__ = region

    def end(self) -> None:
        """From now on they are what they were; nothing where they are."""
        for block, kind, _ in self._blocks:
            block.__class__ = kind


def _region(kind: type[nn.Module]) -> type[nn.Module]:
    forward: Callable[..., Any] = kind.forward

    def run(self: nn.Module, *arguments: Any, **named: Any) -> Any:  # of our own, as PyTorch marks it, which it should not do to the library's
        return forward(self, *arguments, **named)

    return type(kind.__name__, (kind,), {"forward": torch.compiler.nested_compile_region(run)})
