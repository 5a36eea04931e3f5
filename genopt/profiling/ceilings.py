"""Measures what this machine reaches: reading memory, and matrix products. Takes seconds and half a gigabyte."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from genopt.profiling.roofline import Ceilings

BUFFER_BYTES = 256 * 2**20
MOST_BUFFER_BYTES = 448 * 2**20
CACHES = 4
"""The buffer is this many times the last-level cache where memory allows."""
REPEATS = 7
SIZES = {"cpu": (512, 1024, 2048), "cuda": (2048, 4096, 8192)}
"""Matrix sizes to try; the fastest counts, since small ones do not fill the machine and large ones may take too long."""
TRIAL_S = 0.5
"""Time for one size: a format without instructions of its own is a hundred times slower than others."""

_LAST_LEVEL = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")


@contextmanager
def thread_count(threads: int) -> Iterator[None]:
    """Gives torch this many threads while the block runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def synchronize(device: torch.device) -> None:
    """Waits until a device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure_ceilings(*, device: torch.device, dtype: torch.dtype) -> Ceilings:
    """Measures for about two seconds, with the threads that torch has.

    Args:
        device: Where the model runs.
        dtype: The number format of its weights.
    """
    rates = {short_name(kind): _matmul(device, kind) for kind in dict.fromkeys((dtype, torch.bfloat16, torch.float32))}
    # Where a processor has no instructions for a format, fp32 holds the same numbers and is a hundred times faster.
    return Ceilings(read_gb_s=measure_read(device), matmul_gflop_s=max(rates[short_name(dtype)], rates["fp32"]), formats=rates)


def measure_read(device: torch.device) -> float:
    """Bandwidth in GB/s of the best way to read memory."""
    size = _buffer_bytes()
    buffer = torch.ones(size // 4, dtype=torch.float32, device=device)
    found = [size / _median_s(lambda: buffer.sum(), device), size / _median_s(lambda: buffer.max(), device)]
    if device.type == "cuda":
        target = torch.empty_like(buffer)
        found.append(2 * size / _median_s(lambda: target.copy_(buffer), device))  # reads and writes
    return max(found) / 1e9


def _buffer_bytes() -> int:
    try:
        cache = int(_LAST_LEVEL.read_text(encoding="utf-8").strip().removesuffix("K")) * 1024
    except (OSError, ValueError):
        cache = 0
    return min(max(BUFFER_BYTES, CACHES * cache), MOST_BUFFER_BYTES)


def _matmul(device: torch.device, dtype: torch.dtype) -> float:
    """Rate of square matrix products in GFLOP/s."""
    best = 0.0
    for size in SIZES["cuda" if device.type == "cuda" else "cpu"]:
        one, other = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))  # zeros would let a GPU clock higher
        operations = 2.0 * size**3
        if best and operations / (1e9 * best) > TRIAL_S:
            break
        best = max(best, operations / _median_s(lambda one=one, other=other: one @ other, device) / 1e9)  # type: ignore[misc]
    return best


def _median_s(run: Callable[[], object], device: torch.device) -> float:
    """Median time of a few runs after a warm-up; fewer where they take long."""
    run()
    synchronize(device)
    found: list[float] = []
    started = time.perf_counter()
    while len(found) < REPEATS and (not found or time.perf_counter() - started < TRIAL_S):
        before = time.perf_counter()
        run()
        synchronize(device)
        found.append(time.perf_counter() - before)
    return statistics.median(found)


def short_name(dtype: torch.dtype) -> str:
    """How the ceilings name a number format."""
    return {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}.get(dtype, str(dtype).removeprefix("torch."))
