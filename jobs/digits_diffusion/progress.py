"""Progress on stderr: one line every few seconds, with the time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

from torch import Tensor

EVERY_S = 5.0


def say(message: str) -> None:
    """One line."""
    print(message, file=sys.stderr, flush=True)


class Stage:
    """The steps of one stage of the training, ended early where its time is over.

    Args:
        name: What the lines call it.
        steps: How many steps it has.
        limit_s: Longest time from now on; without one, equal seeds take equal steps.
    """

    def __init__(self, name: str, steps: int, limit_s: float | None = None) -> None:
        self.name, self.steps, self.limit_s = name, steps, limit_s
        self.loss: float | Tensor = 0.0
        self.done = 0
        self._share, self._started = 0.0, time.monotonic()

    @property
    def share(self) -> float:
        """How much of the stage is over, between 0 and 1."""
        return self._share

    def __iter__(self) -> Iterator[int]:
        said = self._started
        while self._share < 1:
            yield self.done
            self.done += 1
            now = time.monotonic()
            of_time = 0.0 if self.limit_s is None else (now - self._started) / self.limit_s
            self._share = max(self.done / self.steps, of_time)
            if now - said > EVERY_S or self._share >= 1:
                left = (now - self._started) * (1 / self._share - 1)
                say(f"{self.name}: step {self.done} of {self.steps}, loss {float(self.loss):.4f}, {max(left, 0):.0f} s left")
                said = now
