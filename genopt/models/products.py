"""Matrix products in 16-bit formats on processors that have no instructions for them.

Such a processor (x86 without AVX-512, for example) multiplies bf16 matrices a hundred times slower than fp32 ones.
Products of bf16 numbers that are added up in fp32 and rounded to bf16 at the end are what its newer siblings
compute in hardware, so doing just that by way of fp32 changes nothing but the time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

ROWS = 8
"""With fewer rows a product reads its weights once, and widening them would cost more than the product."""
LOW = (torch.bfloat16, torch.float16)
PRODUCTS = frozenset({
    nn.functional.linear, nn.functional.scaled_dot_product_attention, torch.matmul, torch.bmm, torch.Tensor.matmul, torch.Tensor.bmm,
    torch.Tensor.__matmul__, torch.baddbmm, torch.addmm,
})  # fmt: skip


def are_slow(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the processor has no instructions for products in this format.

    oneDNN is asked, because PyTorch leaves such products to it where it can take them. It is not tried out: equal
    inputs must take equal paths, however busy the machine is.

    Args:
        dtype: The format of the weights.
        device: Where they are; GPUs have instructions for all.
    """
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    supported = {torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported, torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported}
    return dtype in supported and not supported[dtype]()


def are_slow_in(model: nn.Module) -> bool:
    """Tries it with the format and device of a model's first weights."""
    first = next(model.parameters())
    return are_slow(first.dtype, first.device)


def by_fp32(slow: bool) -> AbstractContextManager[object]:
    """While it is open, products of 16-bit tensors go by way of fp32.

    Args:
        slow: Whether they should; otherwise nothing changes.
    """
    return ByFp32() if slow else nullcontext()


def autocast(device: torch.device) -> AbstractContextManager[object]:
    """Autocast to bf16 for training in fp32, except where bf16 would be the slower format."""
    return nullcontext() if are_slow(torch.bfloat16, device) else torch.autocast(device.type, dtype=torch.bfloat16)


class ByFp32(TorchFunctionMode):
    """Widens plain 16-bit tensors around products; quantized weights have arithmetic of their own and stay."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """See `torch.overrides.TorchFunctionMode`."""
        named = dict(kwargs or {})
        low = _widest(args) if func in PRODUCTS else None
        if low is None:
            return func(*args, **named)
        found = func(*map(_widened, args), **{name: _widened(value) for name, value in named.items()})
        return found.to(low)


def _widest(args: Sequence[Any]) -> torch.dtype | None:
    """The 16-bit format of a product that gains from going by way of fp32; None for all others."""
    tensors = [value for value in args if isinstance(value, torch.Tensor)]
    plain = all(type(tensor) in (torch.Tensor, nn.Parameter) for tensor in tensors)
    if not plain or not tensors or tensors[0].numel() < ROWS * tensors[0].shape[-1]:
        return None
    return next((tensor.dtype for tensor in tensors if tensor.dtype in LOW), None)


def _widened(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) and value.dtype in LOW else value
