"""Measures again what something else on the node disturbed, within limits."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from genopt.measure.exclusivity import Disturbance, Watch
from genopt.measure.gpu import GpuState

DISCARDS, PATIENCE = 6, 0.5
"""Disturbed measurements that are repeated, and the share of the time in which even more are; then they are kept, and said to be disturbed."""

Found = TypeVar("Found")
Row = dict[str, object]


class Repeats:
    """Watches measurements, and drops disturbed ones while there is patience.

    Args:
        watch: Notices what else happens on the node.
        clock: Monotonic clock in seconds.
        time_cap_s: Time for all measurements together.

    Attributes:
        rows: All rows so far; those of disturbed measurements say so under `disturbance`, and where they were dropped in their `phase` too.
        discarded: Disturbed measurements that were dropped.
        kept_disturbed: Whether one had to be kept.
        gpus: How the GPUs ran at the end of each measurement.
    """

    def __init__(self, watch: Watch, clock: Callable[[], float], time_cap_s: float) -> None:
        self._watch = watch
        self._clock = clock
        self._patient_until = clock() + PATIENCE * time_cap_s
        self.rows: list[Row] = []
        self.discarded = 0
        self.kept_disturbed = False
        self.gpus: list[GpuState] = []

    def measured(self, measure: Callable[[], Found]) -> Found | None:
        """What a measurement that adds to `rows` found; None where it was disturbed and is to be repeated."""
        first = len(self.rows)
        self._watch.begin()
        found = measure()
        disturbance = self._watch.end()
        self.gpus += disturbance.gpus
        for row in self.rows[first:]:
            row["gpus"] = [state.model_dump() for state in disturbance.gpus]
        if not disturbance.contended:
            return found
        dropped = self.discarded < DISCARDS or self._clock() < self._patient_until
        for row in self.rows[first:]:
            row["disturbance"] = _described(disturbance)
            if dropped:
                row["phase"] = f"{row['phase']}, disturbed"
        if dropped:
            self.discarded += 1
            return None
        self.kept_disturbed = True
        return found


def _described(disturbance: Disturbance) -> str:
    parts = [f"{disturbance.other_cores:.2f} processors used by others", f"{disturbance.steal:.1%} stolen"]
    if disturbance.foreign_gpu_processes:
        parts.append(f"{disturbance.foreign_gpu_processes} foreign GPU processes")
    return ", ".join(parts)
