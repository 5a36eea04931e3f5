"""Whether the process that takes the times was itself the bottleneck."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from genopt.measure.statistics import percentiles
from genopt.plan import Record

Clock = Callable[[], float]

MAX_CPU_SHARE = 0.8
"""Of one core: an event loop cannot use more than one, and near it waits in line."""
MAX_LAG_MS = 10.0
_PERIOD_S = 0.02


class ClientLoad(Record):
    """What a load test asked of its own process.

    Attributes:
        cpu_share: Processor time over wall time; 1 is one core. None where no time passed.
        lag_p99_ms: 99th percentile of how late a periodic task of the event loop woke up; None where it never did.
        lag_samples: How often it woke up.
        saturated: Whether either is over its limit, so that the measured times may be the client's.
    """

    cpu_share: float | None
    lag_p99_ms: float | None
    lag_samples: int
    saturated: bool

    def sentence(self) -> str:
        """What a saturated client means for the numbers; empty for one that is not."""
        if not self.saturated:
            return ""
        cpu = f"{100 * self.cpu_share:.0f}% of one core" if self.cpu_share is not None else "an unknown share of a core"
        lag = f"{self.lag_p99_ms:.1f} ms" if self.lag_p99_ms is not None else "an unknown time"
        return (
            f"The client used {cpu} and its event loop was late by {lag} (p99): these numbers may be the client's and not the server's; "
            "use less load, or run the test on another machine."
        )


class Watch:
    """Watches this process and its event loop while the block runs.

    Args:
        clock: Monotonic clock in seconds.
        cpu_clock: Processor time of this process in seconds.
    """

    def __init__(self, clock: Clock = time.perf_counter, cpu_clock: Clock = time.process_time) -> None:
        self._clock = clock
        self._cpu_clock = cpu_clock
        self._lags_ms: list[float] = []
        self._task: asyncio.Task[None] | None = None
        self._began = self._cpu_began = self._wall_s = self._cpu_s = 0.0

    async def __aenter__(self) -> Self:
        self._began, self._cpu_began = self._clock(), self._cpu_clock()
        self._task = asyncio.create_task(self._wake())
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._wall_s, self._cpu_s = self._clock() - self._began, self._cpu_clock() - self._cpu_began
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _wake(self) -> None:
        while True:
            due = self._clock() + _PERIOD_S
            await asyncio.sleep(_PERIOD_S)
            self._lags_ms.append(max(0.0, 1e3 * (self._clock() - due)))

    def load(self) -> ClientLoad:
        """What was seen, once the block has ended."""
        share = self._cpu_s / self._wall_s if self._wall_s > 0 else None
        lag = percentiles(self._lags_ms, (0.99,))[0] if self._lags_ms else None
        saturated = (share is not None and share > MAX_CPU_SHARE) or (lag is not None and lag > MAX_LAG_MS)
        return ClientLoad(cpu_share=share, lag_p99_ms=lag, lag_samples=len(self._lags_ms), saturated=saturated)
