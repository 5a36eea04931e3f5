"""Memory of all processes below one, from Linux's own counters."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from genopt.plan import Record

PERIOD_S = 0.1
"""Between two looks while memory is watched; one look costs about 0.2 ms."""
PROC = Path("/proc")


class TreePeak(Record):
    """The most that was seen.

    Attributes:
        bytes: Resident memory of all processes together; pages that they share count once for each.
        processes: The most processes at once.
    """

    bytes: int = 0
    processes: int = 0


class TreeMemory:
    """Follows the memory of all processes below one; that one, which only guards them, is left out.

    A peak between two looks is missed, except that of a single process, which the kernel keeps.

    Args:
        pid: The process above them.
        proc: Where the kernel shows processes; for tests.
    """

    def __init__(self, pid: int, proc: Path = PROC) -> None:
        self._pid = pid
        self._proc = proc
        self._peak = TreePeak()

    def look(self) -> TreePeak:
        """Looks now, and returns the most that was seen so far; what ended meanwhile is no error."""
        pids = below(self._pid, self._proc)
        resident, highest = 0, 0
        for pid in pids:
            now, peak = _memory(self._proc / str(pid) / "status")
            resident, highest = resident + now, max(highest, peak)
        self._peak = TreePeak(bytes=max(self._peak.bytes, resident, highest), processes=max(self._peak.processes, len(pids)))
        return self._peak

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Looks again and again while the block runs."""
        ended = threading.Event()

        def follow() -> None:
            while not ended.wait(PERIOD_S):
                self.look()

        follower = threading.Thread(target=follow, daemon=True)
        follower.start()
        try:
            yield
        finally:
            ended.set()
            follower.join()


def below(pid: int, proc: Path = PROC) -> tuple[int, ...]:
    """Children of a process, and theirs, and so on; empty where it has ended or the kernel does not tell."""
    found: list[int] = []
    left = [pid]
    while left:
        parent = left.pop()
        for path in _tasks(proc / str(parent) / "task"):
            with contextlib.suppress(OSError):  # the thread has ended
                children = [int(child) for child in path.joinpath("children").read_text(encoding="ascii").split()]
                found += children
                left += children
    return tuple(found)


def _tasks(folder: Path) -> list[Path]:
    try:
        return [Path(entry.path) for entry in os.scandir(folder)]
    except OSError:
        return []


def _memory(status: Path) -> tuple[int, int]:
    """Resident bytes of a process, now and at its peak; 0 for one that has ended."""
    try:
        fields = dict(line.split(":", 1) for line in status.read_text(encoding="ascii", errors="replace").splitlines() if ":" in line)
        now, peak = (int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
    except (OSError, KeyError, ValueError, IndexError):  # ended, or its memory is gone already
        return 0, 0
    return now, max(now, peak)
