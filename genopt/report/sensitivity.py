"""Which parts of the model bear fewer bits: what rounding each of them alone costs."""

from __future__ import annotations

from genopt.report import wording
from genopt.report.model import Report
from genopt.report.profiled import Table
from genopt.search.precision import BITS, Sensitivity, solve, stored_bits


def tables(report: Report) -> list[Table]:
    """One table of the parts and one of the mixtures that follow; none where nothing was tried."""
    found = report.sensitivity
    return [] if found is None else [_parts(found), *([_mixtures(found)] if solve(found) else [])]


def sentence(report: Report) -> str:
    """What was done, or why it was not; empty where it is of no use."""
    found = report.sensitivity
    if found is None:
        return f"The parts of the model were not tried one by one: {report.sensitivity_note}." if report.sensitivity_note else ""
    return (
        f"Each part was rounded alone, in blocks of {found.block_size} weights, while the rest of the model stayed as it is. KL is the mean "
        f"divergence from the original's predictions in nats per token, over {found.tokens:,} tokens of calibration text. The mixtures have the "
        "least sum of these for their size; they were proposed to the search."
    )


def _parts(found: Sensitivity) -> Table:
    headings = ("Part", "Weights", *(heading for bits in BITS for heading in (f"KL at {bits} bits", f"Size at {bits} bits")))
    rows = []
    for part in found.parts:
        row = [part.name if part.kind == "family" else f"layer {part.name}", wording.count(part.weights)]
        for bits in BITS:
            row += [f"{part.kl[bits]:.5f}" if bits in part.kl else wording.NONE, _size(part.weights, stored_bits(bits, found.block_size))]
        rows.append(tuple(row))
    return Table(title="Parts of the model at fewer bits", headings=headings, rows=tuple(rows), numbers=tuple(range(1, len(headings))))


def _mixtures(found: Sensitivity) -> Table:
    low = min(BITS)
    rows = tuple(
        (f"{one.effective_bits:.2f}", ", ".join(name for name, bits in one.bits.items() if bits == low) or "none", f"{one.kl:.5f}")
        for one in solve(found)
    )
    return Table(title="Best mixtures", headings=("Effective bits", f"Families at {low} bits", "Predicted KL"), rows=rows, numbers=(0, 2))


def _size(weights: int, bits: float) -> str:
    return wording.size(round(weights * bits / 8))
