"""Runs a model with the clock alone and with the profiler: times come from the first, how they divide from the second."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch.profiler import profile

from genopt.models.kv_cache import CacheSize, cache_size
from genopt.profiling.causes import Cell, Place
from genopt.profiling.generation import Generation
from genopt.profiling.trace import marked, profiler, read_cells

WARM_UP_TOKENS = 4
PREFILLS = 3
ATTEMPTS = 3
UNDISTURBED = 1.25
"""Steps whose median is this many times the fastest one's were disturbed by something else on the machine."""
PROFILED_STEPS = 6
"""Each is recorded on its own, and the least disturbed one counts."""


@dataclass(frozen=True)
class Timings:
    """Times without the profiler.

    Attributes:
        prefill_s: From the call to the first token.
        decode_s: Per further token.
        steps: Decode steps behind it.
        cache: The cache after the last of them.
    """

    prefill_s: float
    decode_s: float
    steps: int
    cache: CacheSize


@dataclass(frozen=True)
class Recording:
    """One profiled run of a phase: its wall time, and what was recorded."""

    wall_s: float
    recorded: profile

    def cells(self, generation: Generation, true_s: float) -> dict[Place, Cell]:
        """What was recorded, by family and operator.

        Args:
            generation: The model.
            true_s: Seconds of the same without the profiler; kernels of a GPU are as fast with it, so what is left of this is idle time.
        """
        return read_cells(self.recorded, generation.device, true_s if generation.device.type == "cuda" else self.wall_s)

    def write(self, path: Path) -> None:
        """Writes a trace for Perfetto or chrome://tracing."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.recorded.export_chrome_trace(str(path))


def time_phases(generation: Generation, decode_steps: int, deadline: float) -> Timings:
    """Times prefill and decode after a warm-up; again where something disturbed the steps and time is left.

    Args:
        generation: The model.
        decode_steps: Steps to time; fewer where the deadline asks for it.
        deadline: Of the whole profile, on the monotonic clock.
    """
    warm_up, _ = generation.run(WARM_UP_TOKENS)
    left_s = deadline - time.monotonic()
    count = _fitting(0.1 * left_s, statistics.median(warm_up[1:]), 2, decode_steps)
    prefills: list[float] = []
    decode_s = math.inf
    for _ in range(ATTEMPTS):
        (prefill_s, *steps), cache = generation.run(1 + count)
        prefills.append(prefill_s)
        decode_s = min(decode_s, statistics.median(steps))
        if statistics.median(steps) < UNDISTURBED * min(steps) or deadline - time.monotonic() < 0.8 * left_s:
            break
    prefills += [generation.run(1)[0][0] for _ in range(_fitting(0.05 * left_s, min(prefills), 1, PREFILLS))]
    return Timings(prefill_s=statistics.median(prefills), decode_s=decode_s, steps=count, cache=cache_size(cache))


def record_prefill(generation: Generation, timings: Timings, left_s: float) -> Recording:
    """The least disturbed of some recorded prefills.

    Args:
        generation: The model.
        timings: Of `time_phases`.
        left_s: Seconds left of the whole profile.
    """
    found = []
    with marked(generation.layout.marks):
        for _ in range(_fitting(0.1 * left_s, timings.prefill_s, 1, PREFILLS)):
            recorded = profiler(generation.device)
            recorded.start()
            times, _ = generation.run(1, partial(_stop, recorded))
            found.append(Recording(times[0], recorded))
    return _least_disturbed(found)


def _stop(recorded: profile, _token: int) -> None:
    recorded.stop()


def record_step(generation: Generation, timings: Timings, left_s: float) -> Recording:
    """The least disturbed of some recorded decode steps; arguments as for `record_prefill`."""
    count = _fitting(0.2 * left_s, timings.decode_s, 1, PROFILED_STEPS)
    found: list[profile] = []

    def switch(token: int) -> None:
        if found:
            found[-1].stop()
        if WARM_UP_TOKENS <= token < WARM_UP_TOKENS + count:
            found.append(profiler(generation.device))
            found[-1].start()

    with marked(generation.layout.marks):
        times, _ = generation.run(WARM_UP_TOKENS + count, switch)
    return _least_disturbed([Recording(wall_s, recorded) for wall_s, recorded in zip(times[WARM_UP_TOKENS:], found, strict=True)])


def _least_disturbed(recordings: Sequence[Recording]) -> Recording:
    return min(recordings, key=lambda recording: recording.wall_s)


def _fitting(seconds: float, each_s: float, least: int, most: int) -> int:
    """How many of something fit into a time."""
    return max(least, min(most, int(seconds / max(each_s, 1e-6))))
