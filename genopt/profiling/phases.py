"""Puts what was timed, recorded and counted of one phase together. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from genopt.profiling import causes, wording
from genopt.profiling.causes import Cells
from genopt.profiling.records import FamilyShare, Phase
from genopt.profiling.roofline import Ceilings, Work, compute_s, memory_s


def total(works: Iterable[Work]) -> Work:
    """All parts of the work together."""
    every = list(works)
    return Work(bytes=sum(work.bytes for work in every), operations=sum(work.operations for work in every))


def assess(
    name: str, seconds: float, cells: Cells, works: Mapping[str, Work], ceilings: Ceilings, *, device: str, tokenizer_s: float | None
) -> Phase:  # fmt: skip
    """A phase against the machine's limits.

    Args:
        name: Of the phase.
        seconds: Its time without the profiler.
        cells: What the profiler saw.
        works: What each family must do in it.
        ceilings: What the machine reaches.
        device: `cpu` or `cuda`.
        tokenizer_s: Seconds that the tokenizer takes for it; None where that is not known.
    """
    times = causes.true_times(cells, seconds, device=device)
    work = total(works.values())
    by_cause = causes.causes(times, cells, work, ceilings, device=device, tokenizer_s=tokenizer_s)
    limited_by = next(iter(by_cause))
    return Phase(
        name=name, ms=1e3 * seconds, bytes=work.bytes, operations=work.operations, mbu=memory_s(work, ceilings) / seconds,
        mfu=compute_s(work, ceilings) / seconds, limited_by=limited_by, bound=causes.BOUNDS[limited_by],
        causes_ms={cause: 1e3 * value for cause, value in by_cause.items()},
        detail=wording.phase_detail(name, seconds, work, by_cause, ceilings), families=_families(causes.families(times), works, seconds),
        operators=causes.top_operators(times, cells),
    )  # fmt: skip


def _families(seconds: Mapping[str, float], works: Mapping[str, Work], whole_s: float) -> tuple[FamilyShare, ...]:
    """Every family that takes time or has something to do, the slowest first."""
    everything = total(works.values())
    found = []
    for name in sorted(seconds.keys() | works.keys(), key=lambda name: (-seconds.get(name, 0.0), name)):
        took, work = seconds.get(name, 0.0), works.get(name, Work())
        if took > 0 or work.bytes > 0:
            share = work.bytes / everything.bytes if everything.bytes > 0 else 0.0
            found.append(FamilyShare(
                name=name, ms=1e3 * took, time_share=min(1.0, took / whole_s), bytes=work.bytes, byte_share=min(1.0, share),
                operations=work.operations,
            ))  # fmt: skip
    return tuple(found)
