"""When the denoising steps of an image were over, without making a GPU wait for the host between them."""

from __future__ import annotations

import time

import torch


class StepTimes:
    """On the host a step is over when the pipeline says so."""

    def __init__(self) -> None:
        self._over: list[int] = []

    def note(self) -> None:
        """A step is over; on a GPU it has been begun."""
        self._over.append(time.monotonic_ns())

    def over_ns(self) -> tuple[int, ...]:
        """When each was over, on the monotonic clock."""
        return tuple(self._over)


class GpuStepTimes(StepTimes):
    """A GPU is given the next step while it works on one, so that it never waits for what the host does between them.

    The host is one step ahead and no more: what is told of steps, and what is cancelled, is at most one step late.
    """

    def __init__(self) -> None:
        super().__init__()
        self._began, self._events = torch.cuda.Event(enable_timing=True), list[torch.cuda.Event]()
        self._began.record()
        self._began.synchronize()
        self._began_ns = time.monotonic_ns()

    def note(self) -> None:
        """See `StepTimes.note`; waits for the step before."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        if self._events:
            self._events[-1].synchronize()
        self._events.append(event)

    def over_ns(self) -> tuple[int, ...]:
        """See `StepTimes.over_ns`; waits for the last one."""
        for event in self._events[-1:]:
            event.synchronize()
        return tuple(self._began_ns + int(1e6 * self._began.elapsed_time(event)) for event in self._events)
