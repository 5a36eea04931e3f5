"""What NVIDIA's management library says about the GPUs that this process may use; nothing where there is none.

Everything here is a reading, never an estimate: what the driver does not tell is absent.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from typing import Any

from genopt.models import nvml
from genopt.plan import Record

_THROTTLED = {
    0x04: "power cap", 0x08: "hardware slowdown", 0x20: "thermal limit", 0x40: "hardware thermal limit", 0x80: "power brake",
}  # fmt: skip
"""Bits of NVML's clocks event reasons that mean that the GPU ran slower than it could (NVML API reference, nvmlClocksEventReasons)."""


class GpuState(Record):
    """How a GPU runs at one moment; None where it or its driver does not tell, as slices of a GPU and small ones often do not.

    Attributes:
        name: Its name.
        sm_mhz: Clock of its multiprocessors.
        memory_mhz: Clock of its memory.
        temperature_c: Its temperature.
        power_w: What it draws.
        throttled: Why it runs slower than it could.
        energy_j: Energy since its driver was loaded.
        used_bytes: Memory in use by all processes.
    """

    name: str | None = None
    sm_mhz: int | None = None
    memory_mhz: int | None = None
    temperature_c: int | None = None
    power_w: float | None = None
    throttled: tuple[str, ...] | None = None
    energy_j: float | None = None
    used_bytes: int | None = None


def described(seen: Sequence[GpuState]) -> str:
    """How GPUs ran over several readings, in words: `1755-1980 MHz, 41-63 °C, 180-420 W, throttled by power cap`; empty where none told."""
    readings = {
        "MHz": [state.sm_mhz for state in seen], "°C": [state.temperature_c for state in seen],
        "W": [None if state.power_w is None else round(state.power_w) for state in seen],
    }  # fmt: skip
    known = {unit: [value for value in values if value is not None] for unit, values in readings.items()}
    parts = [f"{_range(values)} {unit}" for unit, values in known.items() if values]
    reasons = sorted({reason for state in seen for reason in state.throttled or ()})
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
        found = {process.pid for process in _processes(library, devices)}
    return len({pid for pid in found - set(ours) if os.path.exists(f"/proc/{pid}")})


def used_by(pids: Collection[int]) -> int | None:
    """Bytes of GPU memory that the driver counts for these processes: contexts and libraries, and what allocators keep, included.

    Returns:
        None where it lists none of them, or not their memory: inside a container it may know them by other numbers.
    """
    with nvml.visible_devices() as (library, devices):
        every = _processes(library, devices)
    found = [int(process.usedGpuMemory) for process in every if process.pid in pids and process.usedGpuMemory is not None]
    return sum(found) if found else None


def _processes(library: Any, devices: Sequence[Any]) -> list[Any]:
    """Those that the driver lists on some GPUs."""
    return [process for device in devices for process in nvml.told(library, library.nvmlDeviceGetComputeRunningProcesses, device) or ()]


def _state(library: Any, device: Any) -> GpuState:
    def told(question: Callable[..., Any], *arguments: Any) -> Any:
        return nvml.told(library, question, device, *arguments)

    reasons, memory = told(library.nvmlDeviceGetCurrentClocksEventReasons), told(library.nvmlDeviceGetMemoryInfo)
    power, energy = told(library.nvmlDeviceGetPowerUsage), told(library.nvmlDeviceGetTotalEnergyConsumption)
    return GpuState(
        name=told(library.nvmlDeviceGetName), sm_mhz=told(library.nvmlDeviceGetClockInfo, library.NVML_CLOCK_SM),
        memory_mhz=told(library.nvmlDeviceGetClockInfo, library.NVML_CLOCK_MEM),
        temperature_c=told(library.nvmlDeviceGetTemperature, library.NVML_TEMPERATURE_GPU),
        power_w=None if power is None else power / 1e3, energy_j=None if energy is None else energy / 1e3,
        throttled=None if reasons is None else tuple(name for bit, name in _THROTTLED.items() if reasons & bit),
        used_bytes=None if memory is None else memory.used,
    )  # fmt: skip
