"""NVIDIA's management library: it tells of GPUs without touching them, as torch does, which cannot be used in forked processes afterwards."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple


class DeviceMemory(NamedTuple):
    """Memory of a GPU, in bytes."""

    free: int
    total: int


@contextmanager
def visible_devices() -> Iterator[tuple[Any, list[Any]]]:
    """The library, and handles of the GPUs in `CUDA_VISIBLE_DEVICES`; all of them where it is not set, none without a driver."""
    import pynvml

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible == "":
        yield pynvml, []
        return
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:  # no driver
        yield pynvml, []
        return
    try:
        yield pynvml, [_handle(pynvml, name) for name in (visible.split(",") if visible else range(pynvml.nvmlDeviceGetCount()))]
    finally:
        pynvml.nvmlShutdown()


def _handle(nvml: Any, name: str | int) -> Any:
    """By index or, as in `CUDA_VISIBLE_DEVICES`, by UUID."""
    text = str(name)
    return nvml.nvmlDeviceGetHandleByIndex(int(text)) if text.isdigit() else nvml.nvmlDeviceGetHandleByUUID(text)


def memory() -> DeviceMemory:
    """That of the first GPU, which there must be."""
    with visible_devices() as (nvml, found):
        state = nvml.nvmlDeviceGetMemoryInfo(found[0])
    return DeviceMemory(state.free, state.total)


def capability() -> tuple[int, int] | None:
    """Compute capability of the first GPU; None where there is none."""
    with visible_devices() as (nvml, found):
        return tuple(nvml.nvmlDeviceGetCudaComputeCapability(found[0])) if found else None
