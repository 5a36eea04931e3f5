"""Wall-clock arithmetic of a run: one deadline, phases that lend what they leave, and what was spent."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

SHARES: Mapping[str, float] = {"profile": 10 / 60, "compress": 20 / 60, "measure": 15 / 60, "tune": 10 / 60, "report": 5 / 60}
"""Default allotment of the budget; what a phase does not use is left for the later ones."""


class Budget:
    """The clock of one run.

    Args:
        total_s: Seconds from start to written report.
        spent_s: Seconds that an interrupted run had used before.
        clock: Monotonic clock in seconds.
    """

    def __init__(self, total_s: float, *, spent_s: float = 0.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.total_s = total_s
        self._clock = clock
        self._start = clock() - spent_s

    @property
    def spent_s(self) -> float:
        """Seconds used so far."""
        return self._clock() - self._start

    @property
    def reserve_s(self) -> float:
        """Seconds kept for stopping cleanly and writing the report."""
        return min(30.0, max(6.0, 0.02 * self.total_s))

    @property
    def left_s(self) -> float:
        """Seconds in which stages may still run; never negative."""
        return max(0.0, self.total_s - self.reserve_s - self.spent_s)

    @property
    def guard_s(self) -> float:
        """Seconds before the end in which nothing starts that cannot finish: two minutes, fewer of a short budget."""
        return min(120.0, 0.2 * self.total_s)

    def fits(self, seconds: float) -> bool:
        """Whether work that is expected to take `seconds` can finish in time."""
        return seconds <= self.left_s

    def until_share(self, *phases: str) -> float:
        """Seconds left until the end of the named phases' cumulative share of the budget; never negative."""
        return max(0.0, min(self.left_s, sum(SHARES[phase] for phase in phases) * self.total_s - self.spent_s))
