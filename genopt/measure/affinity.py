"""Which processors a measured process should run on, so that two measurements have the same ones."""

from __future__ import annotations

from pathlib import Path

from genopt.measure.limits import usable_cores, usable_cpus

TOPOLOGY = Path("/sys/devices/system/cpu")


def cpus_for(threads: int | None, topology: Path = TOPOLOGY) -> tuple[int, ...]:
    """Processors for a process with so many threads.

    All that this process may use, where it has as many threads or only a share of their time (a control group's quota): the
    scheduler knows better then which of them are idle. Fewer threads get one processor each, of different cores while there are any.

    Args:
        threads: CPU threads; None stands for as many as there are processors.
        topology: Where the kernel tells which processors share a core; for tests.
    """
    usable = usable_cpus()
    if threads is None or threads >= len(usable) or usable_cores() < len(usable):
        return usable
    taken: dict[str, int] = {}
    turns = {}
    for cpu in usable:
        core = _core(topology / f"cpu{cpu}" / "topology" / "thread_siblings_list", cpu)
        turns[cpu] = taken[core] = taken.get(core, -1) + 1
    return tuple(sorted(sorted(usable, key=lambda cpu: (turns[cpu], cpu))[: max(1, threads)]))


def _core(path: Path, cpu: int) -> str:
    """A name of the core that a processor belongs to; its own where the kernel does not tell."""
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return str(cpu)
