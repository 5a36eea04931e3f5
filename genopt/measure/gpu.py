"""What NVIDIA's management library says about the GPUs that this process may use; nothing where there is none.

Everything here is a reading, never an estimate: what the driver does not tell is absent.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from genopt.plan import Record

_THROTTLED = {
    0x04: "power cap", 0x08: "hardware slowdown", 0x20: "thermal limit", 0x40: "hardware thermal limit", 0x80: "power brake",
}  # fmt: skip
"""Bits of NVML's clocks event reasons that mean that the GPU ran slower than it could (NVML API reference, nvmlClocksEventReasons)."""


class GpuState(Record):
    """How a GPU runs at one moment.

    Attributes:
        name: Its name.
        sm_mhz: Clock of its multiprocessors.
        memory_mhz: Clock of its memory.
        temperature_c: Its temperature.
        power_w: What it draws.
        throttled: Why it runs slower than it could.
        energy_j: Energy since its driver was loaded; None where it does not count.
        used_bytes: Memory in use by all processes.
    """

    name: str
    sm_mhz: int
    memory_mhz: int
    temperature_c: int
    power_w: float
    throttled: tuple[str, ...]
    energy_j: float | None
    used_bytes: int


def described(seen: Sequence[GpuState]) -> str:
    """How GPUs ran over several readings, in words: `1755-1980 MHz, 41-63 °C, 180-420 W, throttled by power cap`."""
    if not seen:
        return ""
    parts = [
        f"{_range([state.sm_mhz for state in seen])} MHz", f"{_range([state.temperature_c for state in seen])} °C",
        f"{_range([round(state.power_w) for state in seen])} W",
    ]  # fmt: skip
    reasons = sorted({reason for state in seen for reason in state.throttled})
    return ", ".join([*parts, *([f"throttled by {' and '.join(reasons)}"] if reasons else [])])


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low}-{high}"


def states() -> tuple[GpuState, ...]:
    """The state of every visible GPU; none without a driver."""
    with _devices() as (nvml, devices):
        return tuple(_state(nvml, device) for device in devices)


def foreign_processes(ours: Collection[int]) -> int:
    """Processes that compute on our GPUs and are not among `ours`.

    Inside a container the driver names processes of the host by other numbers; only those that exist here are counted.
    """
    with _devices() as (nvml, devices):
        found = {process.pid for device in devices for process in nvml.nvmlDeviceGetComputeRunningProcesses(device)}
    return len({pid for pid in found - set(ours) if os.path.exists(f"/proc/{pid}")})


def used_by(pids: Collection[int]) -> int | None:
    """Bytes of GPU memory that the driver counts for these processes: contexts and libraries, and what allocators keep, included.

    Returns:
        None where it lists none of them, or not their memory: inside a container it may know them by other numbers.
    """
    with _devices() as (nvml, devices):
        every = [process for device in devices for process in nvml.nvmlDeviceGetComputeRunningProcesses(device)]
    found = [int(process.usedGpuMemory) for process in every if process.pid in pids and process.usedGpuMemory is not None]
    return sum(found) if found else None


def _state(nvml: Any, device: Any) -> GpuState:
    reasons = nvml.nvmlDeviceGetCurrentClocksEventReasons(device)
    try:
        energy: float | None = nvml.nvmlDeviceGetTotalEnergyConsumption(device) / 1e3
    except nvml.NVMLError:
        energy = None
    return GpuState(
        name=nvml.nvmlDeviceGetName(device), sm_mhz=nvml.nvmlDeviceGetClockInfo(device, nvml.NVML_CLOCK_SM),
        memory_mhz=nvml.nvmlDeviceGetClockInfo(device, nvml.NVML_CLOCK_MEM),
        temperature_c=nvml.nvmlDeviceGetTemperature(device, nvml.NVML_TEMPERATURE_GPU),
        power_w=nvml.nvmlDeviceGetPowerUsage(device) / 1e3, throttled=tuple(name for bit, name in _THROTTLED.items() if reasons & bit),
        energy_j=energy, used_bytes=nvml.nvmlDeviceGetMemoryInfo(device).used,
    )  # fmt: skip


@contextmanager
def _devices() -> Iterator[tuple[Any, list[Any]]]:
    """NVML and handles of the GPUs in `CUDA_VISIBLE_DEVICES`; all of them where it is not set."""
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
