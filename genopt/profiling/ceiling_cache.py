"""Keeps a machine's measured ceilings in the store, so that a profile measures them once per kind of hardware and not every time.

What disturbs a measurement only lowers it, so a moment in which the machine does clearly better than the kept figures proves them
too low, and they are measured again.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, ValidationError

from genopt.errors import StorageError
from genopt.measure.exclusivity import NodeWatch, Watch
from genopt.measure.machine import hardware
from genopt.plan import Record
from genopt.profiling.ceilings import measure_ceilings, measure_read
from genopt.profiling.roofline import DeviceCeilings
from genopt.store.files import write_atomically

VERSION = 1
"""Rises when the same machine would be measured otherwise."""
MOST_AGE_S = 7 * 86_400.0
"""Older figures are measured again: drivers, kernels and neighbours of virtual machines change."""
MOST_DISTURBED_AGE_S = 3600.0
"""The same for figures that were measured while the machine did other work as well."""
CLEARLY = 1.1
"""Reading this many times as fast as the kept figure says that the figure is too low."""
ROUNDS = 2
"""Times that a disturbed measurement is made; the better of each figure counts."""

_HARDWARE = ("cpu", "cpu_flags", "cores", "memory_bytes", "gpus")


class Kept(Record):
    """One file of the cache.

    Attributes:
        version: Of the way of measuring.
        measured_at: Unix time.
        disturbed: Whether the machine did other work meanwhile.
        machine: What the file's name is a digest of, for readers.
        ceilings: The figures.
    """

    version: int
    measured_at: float = Field(gt=0)
    disturbed: bool
    machine: dict[str, Any]
    ceilings: DeviceCeilings


class Found(Record):
    """Ceilings and where they come from.

    Attributes:
        ceilings: The figures.
        age_s: Seconds since they were measured; 0 where that was now.
        origin: The same in words, with the reason for measuring.
        read_now_gb_s: Bandwidth of reading at this moment.
    """

    ceilings: DeviceCeilings
    age_s: float
    origin: str
    read_now_gb_s: float


class CeilingCache:
    """The ceilings of this machine, from a folder where they are there and still right.

    Args:
        folder: Where the files are; one per kind of hardware, so nodes of one kind may share it.
        clock: Unix time, for tests.
        measure: Measures all ceilings; for tests.
        read: Measures reading alone; for tests.
        watch: Notices what else the machine does while it is measured; for tests.
    """

    def __init__(
        self,
        folder: Path,
        *,
        clock: Callable[[], float] = time.time,
        measure: Callable[[torch.device], DeviceCeilings] = measure_ceilings,
        read: Callable[[torch.device], float] = measure_read,
        watch: Watch | None = None,
    ) -> None:
        self._folder = folder
        self._clock, self._measure, self._read = clock, measure, read
        self._watch = watch if watch is not None else NodeWatch(lambda: (os.getpid(),))

    def get(self, device: torch.device, *, threads: int) -> Found:
        """The ceilings of a device; measured, and kept, where there are none that can be used.

        A file that is damaged counts as none, and one that cannot be written costs the next profile a few seconds.

        Args:
            device: Where models run.
            threads: CPU threads that torch has.
        """
        machine = _machine(device, threads)
        path = self._folder / f"{_digest(machine)}.json"
        now = self._read(device)
        kept, why = self._usable(path, now)
        if kept is None:
            found, disturbed = self._undisturbed(device)
            found = found.model_copy(update={"read_gb_s": max(now, found.read_gb_s)})
            kept = Kept(version=VERSION, measured_at=self._clock(), disturbed=disturbed, machine=machine, ceilings=found)
            origin = f"measured now ({why}{'' if _wrote(path, kept) else ', and the store did not take them'})"
            age = 0.0
        else:
            age = max(0.0, self._clock() - kept.measured_at)
            origin = f"measured {_ago(age)} ago on this kind of hardware"
        if kept.disturbed:
            origin += ", while the machine also did other work"
        return Found(ceilings=kept.ceilings, age_s=age, origin=origin, read_now_gb_s=now)

    def _usable(self, path: Path, now_gb_s: float) -> tuple[Kept | None, str]:
        """The file's content, or the reason for measuring."""
        try:
            kept = Kept.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None, "for the first time on this kind of hardware"
        except (OSError, ValidationError):
            return None, "the kept figures were damaged"
        age = self._clock() - kept.measured_at
        most = MOST_DISTURBED_AGE_S if kept.disturbed else MOST_AGE_S
        if kept.version != VERSION or abs(age) > most:  # from a future that far away is as little to be trusted
            return None, f"the kept figures were older than {_ago(most)}"
        if now_gb_s > CLEARLY * kept.ceilings.read_gb_s:
            return None, f"memory reads {now_gb_s / kept.ceilings.read_gb_s:.2f} times as fast as the kept figures said"
        return kept, ""

    def _undisturbed(self, device: torch.device) -> tuple[DeviceCeilings, bool]:
        """Measures, again where something else ran meanwhile; tells whether it did each time."""
        found: list[DeviceCeilings] = []
        disturbed = True
        while disturbed and len(found) < ROUNDS:
            self._watch.begin()
            found.append(self._measure(device))
            disturbed = self._watch.end().contended
        return reduce(_better, found), disturbed


def _wrote(path: Path, kept: Kept) -> bool:
    try:
        write_atomically(path, kept.model_dump_json(indent=2))
    except StorageError:
        return False
    return True


def _better(one: DeviceCeilings, other: DeviceCeilings) -> DeviceCeilings:
    """The higher of each figure; of the cost of an operation the lower."""
    formats = {name: max(rate, other.formats.get(name, 0.0)) for name, rate in one.formats.items()}
    return DeviceCeilings(
        read_gb_s=max(one.read_gb_s, other.read_gb_s), copy_gb_s=max(one.copy_gb_s, other.copy_gb_s), formats=formats,
        launch_us=min(one.launch_us, other.launch_us),
    )  # fmt: skip


def _machine(device: torch.device, threads: int) -> dict[str, Any]:
    """Everything that the ceilings depend on: processor, memory, GPUs with their driver, torch, threads."""
    facts = hardware()
    return {
        **{name: facts[name] for name in _HARDWARE}, "device": device.type, "threads": threads, "torch": torch.__version__, "version": VERSION
    }  # fmt: skip


def _digest(machine: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(machine, sort_keys=True, default=str).encode()).hexdigest()


def _ago(seconds: float) -> str:
    """An age in its largest unit."""
    for unit, size in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"
