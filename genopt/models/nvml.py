"""NVIDIA's management library: it tells of GPUs without touching them, as torch does, which cannot be used in forked processes afterwards."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import takewhile
from typing import Any, NamedTuple

import psutil


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
        yield pynvml, _visible(pynvml, visible)
    finally:
        pynvml.nvmlShutdown()


def told(library: Any, question: Callable[..., Any], *arguments: Any) -> Any:
    """What the library answers; None where the GPU or its driver does not tell, as slices of a GPU and small ones often do not."""
    try:
        return question(*arguments)
    except library.NVMLError:
        return None


def _visible(library: Any, names: str | None) -> list[Any]:
    """Handles of the GPUs that a value of `CUDA_VISIBLE_DEVICES` names; as CUDA does, it stops at the first name that is none's."""
    every = [told(library, library.nvmlDeviceGetHandleByIndex, index) for index in range(library.nvmlDeviceGetCount())]
    if names is None:
        return [device for device in every if device is not None]
    found = (_named(library, name.strip(), every) for name in names.split(","))
    return list(takewhile(lambda device: device is not None, found))


def _named(library: Any, name: str, every: list[Any]) -> Any:
    """By index or by UUID, of which the beginning is enough where no other GPU's begins so."""
    if name.isdecimal():
        return every[int(name)] if int(name) < len(every) else None
    if (exact := told(library, library.nvmlDeviceGetHandleByUUID, name)) is not None:
        return exact
    alike = [device for device in every if device is not None and (told(library, library.nvmlDeviceGetUUID, device) or "").startswith(name)]
    return alike[0] if name and len(alike) == 1 else None


def memory() -> DeviceMemory | None:
    """That of the first GPU; the host's where the GPU has none of its own, such as GB10, and None where the driver does not tell."""
    with visible_devices() as (nvml, found):
        if not found:
            return None
        try:
            state = nvml.nvmlDeviceGetMemoryInfo(found[0])
        except nvml.NVMLError_NotSupported:
            host = psutil.virtual_memory()
            return DeviceMemory(host.available, host.total)
        except nvml.NVMLError:
            return None
    return DeviceMemory(state.free, state.total)


def capability() -> tuple[int, int] | None:
    """Compute capability of the first GPU; None where there is none."""
    with visible_devices() as (nvml, found):
        return tuple(nvml.nvmlDeviceGetCudaComputeCapability(found[0])) if found else None
