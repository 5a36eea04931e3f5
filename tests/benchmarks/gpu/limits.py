"""What the GPU that a benchmark runs on reaches at most, by its name."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Mapping
from typing import NamedTuple


class Limits(NamedTuple):
    """Of one GPU, as its data sheet says.

    Attributes:
        bandwidth: Of its memory, in TB/s.
        bf16: Products in bf16 without sparsity, in TFLOP/s.
    """

    bandwidth: float
    bf16: float


LIMITS: Mapping[str, Limits] = {"NVIDIA H100 80GB HBM3": Limits(3.35, 989.0), "NVIDIA H200": Limits(4.8, 989.0)}
ASKED = "import torch; print(torch.cuda.device_count(), torch.cuda.get_device_name() if torch.cuda.is_available() else 'CPU')"


@functools.cache
def device() -> tuple[int, str]:
    """How many GPUs there are, and the first one's name; `CPU` where there is none.

    Another process asks: one that has asked holds a part of a GPU to its end, and what is measured there afterwards would not be alone.
    """
    found = subprocess.run([sys.executable, "-c", ASKED], capture_output=True, text=True, check=True).stdout.splitlines()[-1]
    count, _, name = found.partition(" ")
    return int(count), name


def limits() -> Limits | None:
    """The first GPU's; None where they are not known, and shares of them are left out unless a flag says them."""
    return LIMITS.get(device()[1])
