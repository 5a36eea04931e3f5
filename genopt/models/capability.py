"""What the GPU of this process can multiply."""

from __future__ import annotations

from genopt.errors import InfeasibleError

TENSOR_CORES = (8, 0)
"""Compute capability from which on GPUs multiply 16-bit floats of the range of 32-bit ones (bf16)."""
FLOAT8 = (8, 9)
"""Compute capability from which on GPUs multiply 8-bit floats."""


def capability() -> tuple[int, int] | None:
    """Compute capability of the GPU; None where there is none."""
    import torch

    return torch.cuda.get_device_capability() if torch.cuda.is_available() else None


def require_capability(least: tuple[int, int], what: str) -> None:
    """Refuses what this machine has no instructions for.

    Args:
        least: Compute capability from which on GPUs have them.
        what: Names it at the beginning of a sentence, in the plural.

    Raises:
        InfeasibleError: There is no GPU, or an older one.
    """
    require(capability(), least, what)


def require(found: tuple[int, int] | None, least: tuple[int, int], what: str) -> None:
    """As `require_capability`, where the capability is known."""
    if found is None:
        raise InfeasibleError(f"{what} need an NVIDIA GPU and there is none here; choose int8 weights instead.")
    if found < least:
        major, minor = least
        raise InfeasibleError(f"{what} need a GPU of compute capability {major}.{minor} or later; choose int8 weights instead.")
