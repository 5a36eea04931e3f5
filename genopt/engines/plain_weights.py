"""Weights that torchao rounded, for compiled code: as the plain tensors that they consist of, put together inside the code.

Code that takes tensors of torchao's classes takes them apart in Python at every call, 10 microseconds and more for each weight, which is longer than
a GPU needs for the step of a small model. And layers that hold them cannot be compiled once for all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

PREFIX = "plain_weight"


class _Plan(NamedTuple):
    """How a weight is put together: what its class says when it is taken apart, and the places of its plain tensors, or further plans."""

    kind: Any
    context: Any
    size: torch.Size
    stride: tuple[int, ...]
    parts: tuple[tuple[str, Any], ...]


class PlainWeights:
    """The linear layers of a model whose weights are of a class that can be taken apart.

    Args:
        model: Gets buffers that share memory with these weights.
    """

    def __init__(self, model: nn.Module) -> None:
        self._layers: list[tuple[nn.Linear, type[nn.Linear]]] = []
        kinds: list[tuple[_Plan, type[nn.Linear]]] = []
        for module in model.modules():
            if type(module) is nn.Linear and is_traceable_wrapper_subclass(module.weight):
                tensors: list[Tensor] = []
                plan = _plan(module.weight, tensors)
                for place, tensor in enumerate(tensors):
                    module.register_buffer(f"{PREFIX}_{place}", tensor, persistent=False)
                # Layers that are alike are told by what they call: weights of the same kind are put together by the same function.
                kind = next((made for other, made in kinds if other == plan), None)
                if kind is None:
                    kind = type("Linear", (nn.Linear,), {"forward": _product(_maker(plan), len(tensors))})
                    kinds.append((plan, kind))
                self._layers.append((module, kind))

    def __len__(self) -> int:
        return len(self._layers)

    def use(self) -> None:
        """From now on these layers multiply by weights that they put together anew; a class of their own says how, as with `Regions`."""
        for layer, kind in self._layers:
            layer.__class__ = kind

    def end(self) -> None:
        """From now on they multiply by their weights again; nothing where they do."""
        for layer, _ in self._layers:
            layer.__class__ = nn.Linear


def _plan(tensor: Any, tensors: list[Tensor]) -> _Plan:
    names, context = tensor.__tensor_flatten__()
    parts: list[tuple[str, Any]] = []
    for name in names:
        part = vars(tensor)[name]
        if is_traceable_wrapper_subclass(part):
            parts.append((name, _plan(part, tensors)))
        else:
            parts.append((name, len(tensors)))
            tensors.append(part)
    return _Plan(type(tensor), context, tensor.size(), tensor.stride(), tuple(parts))


def _maker(plan: _Plan) -> Callable[..., Tensor]:
    """Puts weights together; Dynamo, which knows no values of torchao's classes, takes the function as a whole."""

    def make(*tensors: Tensor) -> Tensor:
        return _put_together(plan, tensors)

    found: Callable[..., Tensor] = torch.compiler.allow_in_graph(make)
    return found


def _put_together(plan: _Plan, tensors: tuple[Tensor, ...]) -> Tensor:
    parts = {name: tensors[part] if isinstance(part, int) else _put_together(part, tensors) for name, part in plan.parts}
    whole: Tensor = plan.kind.__tensor_unflatten__(parts, plan.context, plan.size, plan.stride)
    return whole


def _product(maker: Callable[..., Tensor], count: int) -> Callable[..., Tensor]:
    def multiplied(self: nn.Linear, rows: Tensor) -> Tensor:
        weight = maker(*[self.get_buffer(f"{PREFIX}_{place}") for place in range(count)])
        return nn.functional.linear(rows, weight, self.bias)

    return multiplied
