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


def read_energy(powercap: Path = POWERCAP) -> Energy:
    """All counters that can be read now; none on most virtual machines."""
    joules = {f"gpu{index}": state.energy_j for index, state in enumerate(gpu.states()) if state.energy_j is not None}
    wraps: dict[str, float] = {}
    for package in sorted(powercap.glob("intel-rapl:[0-9]*")):
        if package.name.count(":") > 1:  # a part of a package, which counts it already
            continue
        try:
            joules[package.name] = int((package / "energy_uj").read_text(encoding="ascii")) / 1e6
            wraps[package.name] = int((package / "max_energy_range_uj").read_text(encoding="ascii")) / 1e6
        except (OSError, ValueError):
            joules.pop(package.name, None)
    return Energy(joules=joules, wraps=wraps)


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
