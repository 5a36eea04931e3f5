"""A clock that never jumps, for deadlines: processes of one machine read the same, whatever is done to the time of day."""

from __future__ import annotations

import time
from pathlib import Path

from genopt.plan import Record


def now() -> float:
    """Seconds since this machine started, sleep included (`CLOCK_BOOTTIME`)."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Moment(Record):
    """A moment that other machines understand too.

    On the machine that named it nothing but `ticks` counts. Elsewhere the time of day is all there is in common, and is
    as good as the clocks agree.

    Attributes:
        machine: Which start of which machine `ticks` are counted from.
        ticks: What `now` says then.
        unix: Unix time then.
    """

    machine: str
    ticks: float
    unix: float

    @classmethod
    def of(cls, ticks: float) -> Moment:
        """A moment on this machine's clock."""
        return cls(machine=_machine(), ticks=ticks, unix=time.time() + ticks - now())

    def here(self) -> float:
        """The moment on the clock of the machine that asks."""
        return self.ticks if self.machine == _machine() else now() + self.unix - time.time()


class Window(Record):
    """When a stage may work.

    Attributes:
        latest_start: After this it could no longer be done in time, and does not begin.
        deadline: It is stopped then.
        longest_s: Or when it has worked for so long; None is no limit. What it waits for does not count.
    """

    latest_start: Moment
    deadline: Moment
    longest_s: float | None = None

    @classmethod
    def until(cls, deadline: float, needed_s: float = 0.0, longest_s: float | None = None) -> Window:
        """A window that closes at a deadline on this machine's clock, and takes in nothing that needs longer."""
        return cls(latest_start=Moment.of(deadline - needed_s), deadline=Moment.of(deadline), longest_s=longest_s)

    def closes(self, begun: float) -> float:
        """When a stage that began at `begun` is stopped, both on this machine's clock."""
        return self.deadline.here() if self.longest_s is None else min(self.deadline.here(), begun + self.longest_s)


def _machine() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
