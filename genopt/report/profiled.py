"""The profile of the original as tables and sentences, for all forms of the report and the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from genopt.plan import Record
from genopt.profiling.records import GraphBreaks, Phase
from genopt.report import wording

CAUSE_LEAST = 0.005
"""Causes below this share of a phase's time are left out."""

_CEILINGS = {
    "read_gb_s": ("reading memory", "GB/s"), "copy_gb_s": ("copying memory, read and written bytes", "GB/s"),
    "launch_us": ("starting an operation", "µs"), "matmul_gflop_s": ("products in the model's format", "GFLOP/s"),
}  # fmt: skip


class Table(Record):
    """A table of texts.

    Attributes:
        title: What it shows.
        headings: Of its columns.
        rows: One text per column.
        numbers: Columns that are set to the right.
    """

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: tuple[int, ...] = ()


def phases(found: Sequence[Phase]) -> Table:
    """Each phase against the limits of the hardware."""
    headings = ("Phase", "Time", "Reads", "Bandwidth (MBU)", "Computes", "Arithmetic (MFU)", "Limited by", "Where its time goes")
    rows = tuple(
        (
            phase.name, milliseconds(phase.ms), wording.size(phase.bytes), wording.percent(phase.mbu), operations(phase.operations),
            wording.percent(phase.mfu), phase.limited_by, causes(phase),
        ) for phase in found
    )  # fmt: skip
    return Table(title="Phases against the limits of this hardware", headings=headings, rows=rows, numbers=(1, 2, 3, 4, 5))


def causes(phase: Phase) -> str:
    """What takes a phase's time, and the tokenizer's, with shares of both together."""
    whole = sum(phase.causes_ms.values())
    parts = (f"{cause} {wording.percent(ms / whole, 0)}" for cause, ms in phase.causes_ms.items() if ms >= CAUSE_LEAST * whole)
    return ", ".join(parts)


def families(found: Sequence[Phase]) -> Table:
    """Shares of time and of bytes of every part of the model, in each phase."""
    names = dict.fromkeys(family.name for phase in found for family in phase.families)
    by_phase = [{family.name: family for family in phase.families} for phase in found]
    rows = []
    for name in names:
        row = [name]
        for each in by_phase:
            family = each.get(name)
            row += [wording.percent(family.time_share), wording.percent(family.byte_share)] if family else [wording.NONE] * 2
        rows.append(tuple(row))
    headings = ("Part", *(heading for phase in found for heading in (f"{phase.name}: time", f"{phase.name}: bytes")))
    return Table(title="Parts of the model", headings=headings, rows=tuple(rows), numbers=tuple(range(1, len(headings))))


def operators(phase: Phase) -> Table:
    """The operators that take most of a phase's time."""
    rows = tuple((item.name, f"{item.calls:,}", milliseconds(item.ms), wording.percent(item.share)) for item in phase.operators)
    return Table(title=f"Top operators: {phase.name}", headings=("Operator", "Calls", "Time", "Share"), rows=rows, numbers=(1, 2, 3))


def breaks(found: GraphBreaks) -> str:
    """What `torch.compile` would make of a step, in one sentence."""
    if found.count is None:
        return f"Graph breaks under torch.compile: {found.note}."
    if found.count == 0:
        return f"Graph breaks under torch.compile: 0, so the whole step is one graph ({found.note})."
    graphs = f"{found.graphs} graphs instead of one"
    return f"Graph breaks under torch.compile: {found.count} {'place' if found.count == 1 else 'places'}, {graphs} ({found.note})."


def break_places(found: GraphBreaks) -> Table:
    """Where the breaks are, and why."""
    rows = tuple((f"{place.file}:{place.line}" if place.line else place.file, place.reason) for place in found.breaks)
    return Table(title="Graph breaks", headings=("Place", "Reason"), rows=rows)


def ceilings(found: dict[str, float]) -> tuple[tuple[str, str], ...]:
    """What the hardware reaches, in words and with units."""
    return tuple(_ceiling(name, value) for name, value in found.items())


def _ceiling(name: str, value: float) -> tuple[str, str]:
    if name in _CEILINGS:
        what, unit = _CEILINGS[name]
    elif name.startswith("matmul_"):
        number_format, _, rest = name.removeprefix("matmul_").partition("_")
        what, unit = f"products in {number_format}", "GOP/s" if rest == "gop_s" else "GFLOP/s"
    else:
        what, unit = name, ""
    return what, f"{value:,.0f} {unit}".strip() if value >= 100 else f"{value:.3g} {unit}".strip()


def milliseconds(value: float) -> str:
    """A time with three digits: `0.123 ms`, `12.3 ms`, `1,234 ms`."""
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.3g} ms" if value >= 0.001 else "< 0.001 ms"


def operations(value: float) -> str:
    """Floating-point operations: `17.2 GFLOP`."""
    for unit, scale in (("TFLOP", 1e12), ("GFLOP", 1e9), ("MFLOP", 1e6)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value / 1e3:.3g} kFLOP"
