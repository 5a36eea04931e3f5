"""PyTorch's kernels of scaled dot-product attention, and which of them it may choose from."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

from genopt.errors import InfeasibleError

Kernels = Literal["math", "flash", "efficient", "cudnn"]
NAMES: Mapping[Kernels, str] = {
    "math": "MATH", "flash": "FLASH_ATTENTION", "efficient": "EFFICIENT_ATTENTION", "cudnn": "CUDNN_ATTENTION"
}  # fmt: skip
"""What PyTorch calls them."""
FALLBACKS: tuple[Kernels, ...] = ("flash", "efficient", "cudnn", "math")
"""In which order those are tried that were not asked for."""
NO_KERNEL = "No available kernel"
"""What PyTorch says where those that it may choose from know no such shapes."""
FOR_GPUS: tuple[Kernels, ...] = ("efficient", "cudnn")
"""Those that PyTorch has for GPUs alone."""


def require_kernels(kernels: Kernels | None) -> None:
    """Refuses kernels that this machine does not have.

    Raises:
        InfeasibleError: They need a GPU and there is none.
    """
    import torch

    if kernels in FOR_GPUS and not torch.cuda.is_available():
        raise InfeasibleError(f"PyTorch's attention kernels {kernels} need an NVIDIA GPU and there is none here; leave the option out.")


def only(kernels: Kernels | None) -> AbstractContextManager[object]:
    """While it is open PyTorch computes attention with these kernels or not at all; None leaves the choice to it."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return nullcontext() if kernels is None else sdpa_kernel(getattr(SDPBackend, NAMES[kernels]))


def preferred(kernels: Kernels | None) -> AbstractContextManager[object]:
    """While it is open PyTorch computes attention with these kernels wherever they take its shapes and masks, and with others where not."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    if kernels is None:
        return nullcontext()
    order = (kernels, *(name for name in FALLBACKS if name != kernels))
    return sdpa_kernel([getattr(SDPBackend, NAMES[name]) for name in order], set_priority=True)
