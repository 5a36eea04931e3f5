"""Divides a phase's time by what took it: reading, arithmetic, slow kernels, launches, copies, the host's loop, the tokenizer. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from genopt.profiling.records import Bound, Operator
from genopt.profiling.roofline import Ceilings, Work, compute_s, corrected, limit_s, memory_s

PYTHON = "Python"
"""Stands for the operator where none ran: Python between operators."""
MEMORY, COMPUTE, KERNELS = "reading memory", "arithmetic", "slow kernels"
LAUNCHES, MOVEMENT, HOST, TOKENIZER = "launch overhead", "data movement", "host loop", "tokenizer"
BOUNDS: Mapping[str, Bound] = {
    MEMORY: "memory", COMPUTE: "compute", KERNELS: "overhead", LAUNCHES: "overhead", MOVEMENT: "io", HOST: "overhead", TOKENIZER: "overhead",
}  # fmt: skip
MOVERS = frozenset({
    "aten::_to_copy", "aten::cat", "aten::clone", "aten::contiguous", "aten::copy_", "aten::index_copy_", "aten::index_put_",
    "aten::_index_put_impl_", "aten::repeat", "aten::repeat_interleave",
})  # fmt: skip
"""Operators that only move or convert what is in memory, or carry it between host and device."""
TOP = 10
"""Operators that a profile lists."""

Place = tuple[str, str]
"""Family and operator."""


@dataclass
class Cell:
    """What the profiler saw of one operator in one family.

    Attributes:
        seconds: Own time, without that of operators inside it.
        events: Recorded events.
        launches: On a CPU, calls from Python; on a GPU, kernels.
    """

    seconds: float = 0.0
    events: int = 0
    launches: int = 0


Cells = Mapping[Place, Cell]


def true_times(cells: Cells, true_s: float, *, device: str) -> dict[Place, float]:
    """Seconds by family and operator without the profiler's own cost; together they are `true_s`.

    Kernels of a GPU take as long with the profiler as without, so that only what is left of the time between them changes.

    Args:
        cells: As recorded.
        true_s: Seconds of the same without the profiler.
        device: `cpu` or `cuda`.
    """
    seconds = {place: cell.seconds for place, cell in cells.items()}
    if device == "cpu":
        return corrected(seconds, {place: cell.events for place, cell in cells.items()}, true_s)
    total = sum(seconds.values())
    return {place: value * true_s / total for place, value in seconds.items()} if total > 0 else seconds


def families(times: Mapping[Place, float]) -> dict[str, float]:
    """Seconds by family, the slowest first."""
    return _summed((family, seconds) for (family, _), seconds in times.items())


def top_operators(times: Mapping[Place, float], cells: Cells, *, count: int = TOP) -> tuple[Operator, ...]:
    """The operators with the most time of their own, Python's left out."""
    total = sum(times.values())
    by_operator = _summed((operator, seconds) for (_, operator), seconds in times.items() if operator != PYTHON)
    calls = {operator: sum(cell.events for (_, name), cell in cells.items() if name == operator) for operator in by_operator}
    return tuple(
        Operator(name=operator, calls=calls[operator], ms=1e3 * seconds, share=min(1.0, seconds / total))
        for operator, seconds in list(by_operator.items())[:count] if seconds > 0
    )  # fmt: skip


def causes(
    times: Mapping[Place, float], cells: Cells, work: Work, ceilings: Ceilings, *, device: str, tokenizer_s: float | None = None
) -> dict[str, float]:  # fmt: skip
    """Seconds by cause, the largest first; they sum to the phase's time and the tokenizer's.

    What runs in operators is first charged the cost of starting them and of moving data; of the rest, the least time that the work needs
    on this machine is reading or arithmetic, whichever is larger, and what goes beyond it is the kernels'.

    Args:
        times: Of `true_times`.
        cells: What they were made of.
        work: What the phase must do.
        ceilings: What the machine reaches.
        device: `cpu` or `cuda`.
        tokenizer_s: Seconds that the tokenizer takes for it; None where that is not known.
    """
    launch_s = 1e-6 * ceilings.launch_us
    between = sum(seconds for (_, operator), seconds in times.items() if operator == PYTHON)
    operators = {place: seconds for place, seconds in times.items() if place[1] != PYTHON}
    if device == "cuda":  # kernels are started while others run, so starting them costs what is left between them
        launches = min(between, launch_s * sum(cell.launches for cell in cells.values()))
        between -= launches
    else:
        started = {place: min(seconds, launch_s * cells[place].launches) for place, seconds in operators.items()}
        operators = {place: seconds - started[place] for place, seconds in operators.items()}
        launches = sum(started.values())
    moving = sum(seconds for (_, operator), seconds in operators.items() if operator in MOVERS)
    kernels = sum(operators.values()) - moving
    least = max(0.0, min(kernels, limit_s(work, ceilings)))
    limit = MEMORY if memory_s(work, ceilings) >= compute_s(work, ceilings) else COMPUTE
    found = {limit: least, KERNELS: kernels - least, LAUNCHES: launches, MOVEMENT: moving, HOST: between, TOKENIZER: tokenizer_s or 0.0}
    return dict(sorted(((name, seconds) for name, seconds in found.items() if seconds > 0), key=lambda item: -item[1]))


def _summed(pairs: Iterable[tuple[str, float]]) -> dict[str, float]:
    totals: dict[str, float] = {}
    for name, value in pairs:
        totals[name] = totals.get(name, 0.0) + value
    return dict(sorted(totals.items(), key=lambda item: -item[1]))
