"""Measures what this machine reaches: reading and copying memory, matrix products, starting small operations. Takes seconds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch

from genopt.profiling.roofline import Ceilings, DeviceCeilings

BUFFER_BYTES = 256 * 2**20
MOST_BUFFER_BYTES = 448 * 2**20
CACHES = 4
"""The buffer is this many times the last-level cache where memory allows."""
GPU_BUFFER_BYTES = 2**30
"""Twenty times the cache of large GPUs; reading it takes long enough for the cost of starting a kernel not to matter."""
REPEATS = 7
SIZES = {"cpu": (256, 512, 1024, 2048), "cuda": (2048, 4096, 8192)}
"""Matrix sizes to try; the fastest counts, since small ones do not fill the machine and large ones may take too long."""
TRIAL_S = 0.5
"""Time for one size: a format without instructions of its own is a hundred times slower than others."""
TRIVIAL = 1000
"""Operations on one element behind each figure of what starting one costs."""
INT8 = "int8"
FORMATS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
"""Floating-point formats whose products are measured, by the short names that reports use."""

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


def measure_ceilings(device: torch.device) -> DeviceCeilings:
    """Measures all of them for a few seconds, with the threads that torch has.

    Args:
        device: Where models run.
    """
    read, copy = measure_memory(device)
    rates = {name: measure_matmul(device, dtype) for name, dtype in FORMATS.items()}
    integers = _integer_matmul(device)
    return DeviceCeilings(
        read_gb_s=read, copy_gb_s=copy, formats=rates | ({INT8: integers} if integers else {}), launch_us=1e6 * _launch_s(device)
    )  # fmt: skip


def for_dtype(found: DeviceCeilings, dtype: torch.dtype, device: torch.device) -> Ceilings:
    """The ceilings of a model in one number format; a format that is not among the usual ones is measured now."""
    name = short_name(dtype)
    rates = found.formats if name in found.formats else {**found.formats, name: measure_matmul(device, dtype)}
    # Where a processor has no instructions for a format, fp32 holds the same numbers and is a hundred times faster.
    rate = max(rates[name], rates["fp32"])
    return Ceilings(read_gb_s=found.read_gb_s, copy_gb_s=found.copy_gb_s, matmul_gflop_s=rate, formats=rates, launch_us=found.launch_us)


def measure_memory(device: torch.device) -> tuple[float, float]:
    """Bandwidth in GB/s of the best way to read memory, and of copying, where what is read and what is written both count."""
    size = _buffer_bytes(device)
    buffer = torch.ones(size // 4, dtype=torch.float32, device=device)
    copy = 2 * size / _median_s(partial(torch.empty_like(buffer).copy_, buffer), device)
    found = [size / _median_s(lambda: buffer.sum(), device), size / _median_s(lambda: buffer.max(), device)]
    if device.type == "cuda":
        found.append(copy)  # no kernel of PyTorch reads faster than its copy
    return max(found) / 1e9, copy / 1e9


def measure_read(device: torch.device) -> float:
    """The first figure of `measure_memory` in a fraction of its time."""
    size = _buffer_bytes(device)
    buffer = torch.ones(size // 4, dtype=torch.float32, device=device)
    return size / min(_median_s(lambda: buffer.sum(), device), _median_s(lambda: buffer.max(), device)) / 1e9


def _buffer_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return min(GPU_BUFFER_BYTES, torch.cuda.mem_get_info(device)[0] // 8)
    try:
        cache = int(_LAST_LEVEL.read_text(encoding="utf-8").strip().removesuffix("K")) * 1024
    except (OSError, ValueError):
        cache = 0
    return min(max(BUFFER_BYTES, CACHES * cache), MOST_BUFFER_BYTES)


def measure_matmul(device: torch.device, dtype: torch.dtype) -> float:
    """Rate in GFLOP/s of products as linear layers make them: by a transposed matrix, which some processors do ten times faster."""

    def matrix(size: int) -> torch.Tensor:
        return torch.randn(size, size, device=device).to(dtype)  # zeros would let a GPU clock higher

    return _best_rate(device, matrix, torch.mm)


def _integer_matmul(device: torch.device) -> float | None:
    """Rate of products of 8-bit integers in GOP/s; None where torch has none for the device."""

    def matrix(size: int) -> torch.Tensor:
        return torch.randint(-127, 127, (size, size), dtype=torch.int8, device=device)

    try:
        return _best_rate(device, matrix, torch._int_mm)
    except RuntimeError:
        return None


def _best_rate(device: torch.device, matrix: Callable[[int], torch.Tensor], product: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> float:
    best = 0.0
    for size in SIZES[device.type]:
        operations = 2.0 * size**3
        if best and operations / (1e9 * best) > TRIAL_S:
            break
        seconds = _median_s(partial(product, matrix(size), matrix(size).t()), device)
        best = max(best, operations / seconds / 1e9)
    return best


def _launch_s(device: torch.device) -> float:
    """Seconds per operation of many that do next to nothing: dispatching it, and on a GPU starting its kernel too."""
    one = torch.ones(1, device=device)

    def many() -> None:
        for _ in range(TRIVIAL):
            one.add_(1)

    return _median_s(many, device) / TRIVIAL


def _median_s(run: Callable[[], object], device: torch.device) -> float:
    """Median time of a few runs after a warm-up; fewer where they take long, and only the warm-up where that alone is too long."""
    warm_up = _seconds(run, device)
    if warm_up > 2 * TRIAL_S:
        return warm_up
    found: list[float] = []
    started = time.perf_counter()
    while len(found) < REPEATS and (not found or time.perf_counter() - started < TRIAL_S):
        found.append(_seconds(run, device))
    return statistics.median(found)


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    """One run's time, on a GPU between two events on its stream."""
    if device.type != "cuda":
        before = time.perf_counter()
        run()
        return time.perf_counter() - before
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


def short_name(dtype: torch.dtype) -> str:
    """How the ceilings name a number format."""
    return next((name for name, known in FORMATS.items() if known is dtype), str(dtype).removeprefix("torch."))
