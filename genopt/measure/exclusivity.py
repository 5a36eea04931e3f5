"""Whether a node did nothing else while it measured: what other processes and the hypervisor took away meanwhile."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable
from typing import Protocol

import psutil

from genopt.measure.gpu import GpuState, foreign_processes, states
from genopt.plan import Record

OTHER_CORES = 0.2
"""Processors' worth of time that others may use: Ray's own daemons need a tenth of it."""
ROOM, SPARED = 0.5, 0.05
"""Where at least the first share of the processors is idle, others may use the second one besides: they need none that we do."""
STEAL = 0.05
"""Share of its processors' time that a virtual machine may lose to others."""
LEAST_S = 0.05
"""Less time than this is within the resolution of the kernel's counters, which is 10 ms per processor."""


class Disturbance(Record):
    """What happened beside a measurement.

    Attributes:
        seconds: Wall time that was watched.
        other_cores: Processor time of processes that are not ours, per second.
        steal: Share of the processors' time that the hypervisor gave to others.
        processors: How many there are for us and others.
        idle: Share of their time in which they did nothing.
        foreign_gpu_processes: Processes on our GPUs that are not ours.
        gpus: How the GPUs ran at its end: clocks, temperature, power, and why they were throttled.
    """

    seconds: float
    other_cores: float
    steal: float
    processors: float = 0.0
    idle: float = 0.0
    foreign_gpu_processes: int = 0
    gpus: tuple[GpuState, ...] = ()

    @property
    def contended(self) -> bool:
        """Whether what was measured meanwhile should be measured again."""
        harmless = max(OTHER_CORES, SPARED * self.processors if self.idle >= ROOM else 0.0)
        others = self.other_cores > harmless and self.other_cores * self.seconds > LEAST_S
        stolen = self.steal > STEAL and self.steal * self.seconds > LEAST_S
        return others or stolen or self.foreign_gpu_processes > 0


class Counters(Record):
    """Counters of a node, in seconds since some start.

    Attributes:
        wall: Monotonic clock.
        busy: Processor time of all processes on the processors that we may use.
        ours: Processor time of our processes.
        stolen: Time that the hypervisor took.
        total: Time of those processors, idle included.
    """

    wall: float
    busy: float
    ours: float
    stolen: float
    total: float


class Watch(Protocol):
    """Watches a node during one measurement after another."""

    def begin(self) -> None:
        """A measurement begins."""

    def end(self) -> Disturbance:
        """It ended; tells what disturbed it."""


class NodeWatch:
    """Watches this node's processors and GPUs.

    Args:
        ours: Gives the process ids whose work is the measurement, and whose children's is.
        read: Reads the counters; for tests.
    """

    def __init__(self, ours: Callable[[], Iterable[int]], read: Callable[[Iterable[int]], Counters] | None = None) -> None:
        self._ours = ours
        self._read = read or read_counters
        self._before: Counters | None = None

    def begin(self) -> None:
        """See `Watch.begin`."""
        self._before = self._read(self._ours())

    def end(self) -> Disturbance:
        """See `Watch.end`."""
        ours = set(self._ours())
        before, now = self._before, self._read(ours)
        if before is None:
            raise RuntimeError("end() without begin()")
        seconds = max(1e-9, now.wall - before.wall)
        others = (now.busy - before.busy) - (now.ours - before.ours)
        total = max(1e-9, now.total - before.total)
        stolen, busy = (now.stolen - before.stolen) / total, (now.busy - before.busy) / total
        return Disturbance(
            seconds=seconds, other_cores=max(0.0, others / seconds), steal=min(1.0, max(0.0, stolen)), processors=total / seconds,
            idle=min(1.0, max(0.0, 1 - busy - stolen)), foreign_gpu_processes=foreign_processes(_with_children(ours)), gpus=states(),
        )  # fmt: skip


class Unwatched:
    """Sees no disturbance, where nothing can be known: sessions on a clock of their own, other systems than Linux."""

    def begin(self) -> None:
        """See `Watch.begin`."""

    def end(self) -> Disturbance:
        """See `Watch.end`."""
        return Disturbance(seconds=0.0, other_cores=0.0, steal=0.0)


def read_counters(ours: Iterable[int]) -> Counters:
    """This node's counters now.

    Args:
        ours: Process ids that count as ours, with all below them; this process does too.
    """
    allowed = os.sched_getaffinity(0)
    each = [times for index, times in enumerate(psutil.cpu_times(percpu=True)) if index in allowed]
    busy = sum(times.user + times.nice + times.system + times.irq + times.softirq for times in each)
    stolen = sum(times.steal for times in each)
    idle = sum(times.idle + times.iowait for times in each)
    spent = 0.0
    for pid in _with_children(ours):
        with contextlib.suppress(psutil.Error):
            used = psutil.Process(pid).cpu_times()
            spent += used.user + used.system
    return Counters(wall=time.monotonic(), busy=busy, ours=spent, stolen=stolen, total=busy + stolen + idle)


def _with_children(pids: Iterable[int]) -> set[int]:
    found = {os.getpid()}
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            found |= {pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))}
    return found
