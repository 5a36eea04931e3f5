"""Energy counters of the node, where the hardware has them: NVML for GPUs, RAPL for processors. Never an estimate.

RAPL is read through Linux's powercap interface (Documentation/power/powercap), whose files only root may read by default.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from genopt.measure import gpu
from genopt.plan import Record

POWERCAP = Path("/sys/class/powercap")


class Energy(Record):
    """Joules since some start, by counter.

    Attributes:
        joules: By name of the counter.
        wraps: Joules at which a counter starts again, where it does.
    """

    joules: dict[str, float]
    wraps: dict[str, float]


def gpu_energy() -> Energy:
    """The counters of the GPUs that this process may use: all that is known where others work on the node's processors meanwhile."""
    joules = {f"gpu{index}": state.energy_j for index, state in enumerate(gpu.states()) if state.energy_j is not None}
    return Energy(joules=joules, wraps={})


def read_energy(powercap: Path | None = None) -> Energy:
    """All counters that can be read now; none on most virtual machines.

    Args:
        powercap: Linux's folder of zones, or another one for tests.
    """
    joules = dict(gpu_energy().joules)
    wraps: dict[str, float] = {}
    for zone in sorted((powercap or POWERCAP).glob("intel-rapl:[0-9]*")):
        try:
            if not _is_package(zone):
                continue
            joules[zone.name] = int((zone / "energy_uj").read_text(encoding="ascii")) / 1e6
            wraps[zone.name] = int((zone / "max_energy_range_uj").read_text(encoding="ascii")) / 1e6
        except (OSError, ValueError):
            joules.pop(zone.name, None)
    return Energy(joules=joules, wraps=wraps)


def _is_package(zone: Path) -> bool:
    """Whether a zone is a whole processor, neither a part of one nor, as `psys` is, the platform: those would count its energy twice."""
    return zone.name.count(":") == 1 and (zone / "name").read_text(encoding="ascii").startswith("package")


def spent(before: Energy, after: Energy) -> float | None:
    """Joules between two readings, all counters together; None where there is no counter."""
    names = before.joules.keys() & after.joules.keys()
    if not names:
        return None
    total = 0.0
    for name in names:
        difference = after.joules[name] - before.joules[name]
        total += difference if difference >= 0 else difference + after.wraps.get(name, 0.0)
    return total


def joules_per_token(run: Callable[[], int], read: Callable[[], Energy] = read_energy) -> float | None:
    """Runs something that returns how many tokens it made, and divides the energy that went by them.

    Returns:
        None where nothing counts energy or no token was made; `run` is not called without a counter.
    """
    before = read()
    if not before.joules:
        return None
    tokens = run()
    used = spent(before, read())
    return used / tokens if used is not None and tokens > 0 else None
