"""What NVIDIA's management library says about the GPUs that this process may use; nothing where there is none.

Everything here is a reading, never an estimate: what the driver does not tell is absent.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from typing import Any

from genopt.models import nvml
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
    with nvml.visible_devices() as (library, devices):
        return tuple(_state(library, device) for device in devices)


def foreign_processes(ours: Collection[int]) -> int:
    """Processes that compute on our GPUs and are not among `ours`.

    Inside a container the driver names processes of the host by other numbers; only those that exist here are counted.
    """
    with nvml.visible_devices() as (library, devices):
        found = {process.pid for device in devices for process in library.nvmlDeviceGetComputeRunningProcesses(device)}
    return len({pid for pid in found - set(ours) if os.path.exists(f"/proc/{pid}")})


def used_by(pids: Collection[int]) -> int | None:
    """Bytes of GPU memory that the driver counts for these processes: contexts and libraries, and what allocators keep, included.

    Returns:
        None where it lists none of them, or not their memory: inside a container it may know them by other numbers.
    """
    with nvml.visible_devices() as (library, devices):
        every = [process for device in devices for process in library.nvmlDeviceGetComputeRunningProcesses(device)]
    found = [int(process.usedGpuMemory) for process in every if process.pid in pids and process.usedGpuMemory is not None]
    return sum(found) if found else None


def _state(library: Any, device: Any) -> GpuState:
    reasons = library.nvmlDeviceGetCurrentClocksEventReasons(device)
    try:
        energy: float | None = library.nvmlDeviceGetTotalEnergyConsumption(device) / 1e3
    except library.NVMLError:
        energy = None
    return GpuState(
        name=library.nvmlDeviceGetName(device), sm_mhz=library.nvmlDeviceGetClockInfo(device, library.NVML_CLOCK_SM),
        memory_mhz=library.nvmlDeviceGetClockInfo(device, library.NVML_CLOCK_MEM),
        temperature_c=library.nvmlDeviceGetTemperature(device, library.NVML_TEMPERATURE_GPU),
        power_w=library.nvmlDeviceGetPowerUsage(device) / 1e3, throttled=tuple(name for bit, name in _THROTTLED.items() if reasons & bit),
        energy_j=energy, used_bytes=library.nvmlDeviceGetMemoryInfo(device).used,
    )  # fmt: skip
