"""Processors and memory as this process may use them: affinity and control group limits count."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil

CONTROL_GROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def usable_cores() -> int:
    """Processors that this process gets: those it may run on, or fewer where a control group has a quota."""
    allowed = len(usable_cpus())
    quotas = [_quota(folder) for folder in _groups("cpu")]
    return max(1, min([allowed, *(round(quota) for quota in quotas if quota)]))


def usable_cpus() -> tuple[int, ...]:
    """Numbers of the processors that this process may run on; all of them where the system does not tell."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return tuple(sorted(allowed))


def cpu_list(cpus: Iterable[int]) -> str:
    """Processor numbers as Linux writes them: `0-3,8`."""
    runs: list[list[int]] = []
    for cpu in sorted(set(cpus)):
        if runs and cpu == runs[-1][-1] + 1:
            runs[-1].append(cpu)
        else:
            runs.append([cpu])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def available_memory() -> int:
    """Bytes that can still be allocated without swapping, within the control group's limit."""
    free = int(psutil.virtual_memory().available)
    for folder in _groups("memory"):
        limit = _number(folder / "memory.max") or _number(folder / "memory.limit_in_bytes")
        used = _number(folder / "memory.current") or _number(folder / "memory.usage_in_bytes")
        if limit is not None and used is not None:
            free = min(free, max(0, limit - used + _reclaimable(folder)))
    return free


def total_memory() -> int:
    """Bytes of memory of the machine, or the control group's limit where that is lower."""
    limits = (_number(folder / name) for folder in _groups("memory") for name in ("memory.max", "memory.limit_in_bytes"))
    return min([int(psutil.virtual_memory().total), *(limit for limit in limits if limit)])


def _groups(controller: str) -> Iterator[Path]:
    """Folders of the control groups that hold this process, version 2 or 1, the innermost first."""
    try:
        lines = MEMBERSHIP.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, names, path = line.split(":", 2)
        if names and controller not in names.split(","):
            continue
        root = CONTROL_GROUPS / controller if names else CONTROL_GROUPS
        inner = root / path.lstrip("/")
        yield from (folder for folder in (inner, *inner.parents) if folder.is_relative_to(root))


def _quota(folder: Path) -> float | None:
    """Processors' worth of time that a control group may use; None without a limit."""
    try:
        amount, _, period = (folder / "cpu.max").read_text(encoding="utf-8").strip().partition(" ")
    except OSError:
        legacy, length = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
        return legacy / length if legacy and length and legacy > 0 else None
    return int(amount) / int(period) if amount != "max" else None


def _reclaimable(folder: Path) -> int:
    """Page cache of a control group, which counts as used but gives way."""
    try:
        entries = (line.split() for line in (folder / "memory.stat").read_text(encoding="utf-8").splitlines())
        return sum(int(value) for name, value in entries if name in ("inactive_file", "total_inactive_file"))
    except (OSError, ValueError):
        return 0


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # missing, or the word "max"
        return None
