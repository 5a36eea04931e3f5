"""Brings chosen tokens from a GPU to the host while the GPU already works on the next ones."""

from __future__ import annotations

import torch
from torch import Tensor


class Readback:
    """Two tokens may be on their way at once."""

    def __init__(self) -> None:
        self._slots = [torch.empty(1, dtype=torch.long, pin_memory=True) for _ in range(2)]
        self._arrived = [torch.cuda.Event() for _ in self._slots]
        self._next = 0

    def send(self, token: Tensor) -> int:
        """Sends a tensor of one token off without waiting for it; returns the slot to take it from."""
        slot = self._next
        self._next = 1 - slot
        self._slots[slot].copy_(token.view(1), non_blocking=True)
        self._arrived[slot].record()
        return slot

    def take(self, slot: int) -> int:
        """The token, as soon as it has arrived."""
        self._arrived[slot].synchronize()
        return int(self._slots[slot])
