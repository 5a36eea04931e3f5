"""The arithmetic of limits: what work costs at least, what therefore bounds it, and what to try first. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from pydantic import Field

from genopt.plan import Record
from genopt.profiling.records import Bound

Part = TypeVar("Part")

EXPLAINED = 1 / 3
"""Work that takes more than this many times its limit (as 1/3: three times) is bound by neither memory nor arithmetic."""
DOMINANT = 1 / 2
"""Decoding whose limit explains less of its time than this gains more from less overhead than from fewer bits."""
MOST_PER_EVENT_S = 5e-6
"""The most that recording one event may cost; it is about 1 microsecond."""
LEAST_LEFT = 0.1
"""The correction leaves at least this share of a part, since that the profiler costs the same everywhere is only nearly so."""


class Work(Record):
    """What a part of the model does once.

    Attributes:
        bytes: Bytes that it must read: weights, and state such as the KV cache.
        operations: Floating-point operations; a multiplication and an addition are two.
    """

    bytes: float = 0.0
    operations: float = 0.0


class DeviceCeilings(Record):
    """What a device was measured to reach, whatever model runs on it.

    Attributes:
        read_gb_s: Reading memory, in GB/s.
        copy_gb_s: Copying memory, in GB/s; what is read and what is written both count.
        formats: Matrix products in GFLOP/s (integers: GOP/s) by the short names of number formats: `bf16`, `fp16`, `fp32`, `int8`.
        launch_us: Microseconds per operation that does next to nothing: on a CPU dispatching it, on a GPU starting its kernel.
    """

    read_gb_s: float = Field(gt=0)
    copy_gb_s: float = Field(gt=0)
    formats: dict[str, float]
    launch_us: float = Field(gt=0)


class Ceilings(Record):
    """What the machine was measured to reach, for a model in one number format.

    Attributes:
        read_gb_s: Reading memory, in GB/s.
        copy_gb_s: Copying memory, in GB/s; what is read and what is written both count.
        matmul_gflop_s: Matrix products in the model's number format, in GFLOP/s.
        formats: The same rate for other formats too, by their short names.
        launch_us: Microseconds per operation that does next to nothing.
    """

    read_gb_s: float
    copy_gb_s: float = 0.0
    matmul_gflop_s: float
    formats: dict[str, float]
    launch_us: float = 0.0


def memory_s(work: Work, ceilings: Ceilings) -> float:
    """The least time that reading takes."""
    return work.bytes / (1e9 * ceilings.read_gb_s)


def compute_s(work: Work, ceilings: Ceilings) -> float:
    """The least time that arithmetic takes."""
    return work.operations / (1e9 * ceilings.matmul_gflop_s)


def limit_s(work: Work, ceilings: Ceilings) -> float:
    """The least time of all: reading and arithmetic overlap."""
    return max(memory_s(work, ceilings), compute_s(work, ceilings))


def bound(seconds: float, work: Work, ceilings: Ceilings) -> Bound:
    """What limits work that took `seconds`: memory or arithmetic where they explain at least a third of it, else overhead."""
    if limit_s(work, ceilings) < EXPLAINED * seconds:
        return "overhead"
    return "memory" if memory_s(work, ceilings) >= compute_s(work, ceilings) else "compute"


def corrected(seconds: Mapping[Part, float], events: Mapping[Part, int], true_total_s: float) -> dict[Part, float]:
    """Takes the profiler's own cost out of profiled times.

    The profiler costs about the same per recorded event, so parts with many small operations look slower than they are.
    What a disturbance adds beyond that is spread over all parts.

    Args:
        seconds: Profiled time by part.
        events: Recorded events by part.
        true_total_s: The same work without the profiler.

    Returns:
        Times by part that sum to `true_total_s`; none is negative.
    """
    count = max(1, sum(events.values()))
    excess = min(max(0.0, sum(seconds.values()) - true_total_s), count * MOST_PER_EVENT_S)
    left = {name: max(LEAST_LEFT * value, value - excess * events.get(name, 0) / count) for name, value in seconds.items()}
    total = sum(left.values())
    return {name: value * true_total_s / total for name, value in left.items()} if total > 0 else left


def family_order(seconds: float, work: Work, ceilings: Ceilings, *, device: str) -> tuple[str, ...]:
    """Families of techniques, the most promising first.

    Args:
        seconds: Time of one decode step.
        work: What it does.
        ceilings: What the machine reaches.
        device: `cpu` or `cuda`.
    """
    if limit_s(work, ceilings) < DOMINANT * seconds:
        # On a GPU the launches of one step can be captured once; on a CPU other engines' kernels are what is faster.
        first = ("compile", "engine") if device == "cuda" else ("engine", "compile")
        return (*first, "quantization", "pruning")
    if compute_s(work, ceilings) > memory_s(work, ceilings):
        return ("quantization", "pruning", "engine", "compile")
    return ("quantization", "engine", "pruning", "compile")
