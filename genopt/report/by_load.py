"""How fast every candidate is at every load: the fastest at one stream is often not the fastest at many."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

from genopt.plan import Candidate, Metric
from genopt.report import method, wording
from genopt.report.model import REFERENCES, Report

RATE = "throughput_tok_s@"
_IMAGES = "images_per_s@"
_BUSY = " Busy is the share of the time that the requests a second kept it at work; near 100% they come faster than they are answered."
Mark = Literal["", "best", "tied"]


class Cell(NamedTuple):
    """A value as it is printed, and whether it is the best of its column."""

    text: str
    mark: Mark = ""


class Row(NamedTuple):
    """A candidate's cells; `kind` is its status, `reference` or `winner`."""

    name: str
    kind: str
    cells: list[Cell]


class ByLoad(NamedTuple):
    """The table; without rows where nothing was measured at more than one load."""

    headings: list[str]
    rows: list[Row]
    remark: str


def by_load(report: Report) -> ByLoad:
    """Throughput of every measured candidate by number of streams, and what callers wait where requests arrive by themselves.

    The best of a column is the fastest that may be deployed: a reference or an accepted candidate. Those whose 95 %
    interval reaches into that of the best are tied with it.

    Args:
        report: What was measured.
    """
    shown = [candidate for candidate in method.ordered(report) if any(map(_streams, candidate.metrics))]
    prefix = RATE if report.model.modality == "text" else _IMAGES
    streams = sorted({count for candidate in shown for name in candidate.metrics if (count := _streams(name))})
    arrivals = next((kind for kind in ("poisson", "fixed") for candidate in shown if f"ttft_ms@{kind}" in candidate.metrics), None)
    if len(streams) < 2 and arrivals is None:
        return ByLoad([], [], "")
    marks = {count: _marks(shown, f"{prefix}{count}") for count in streams}
    rows = [
        Row(candidate.name, method.kind(candidate, report), [
            *(Cell(wording.metric(candidate.metrics.get(f"{prefix}{count}")), marks[count].get(candidate.name, "")) for count in streams),
            *(_waiting(candidate, arrivals) if arrivals else ()),
        ])
        for candidate in shown
    ]  # fmt: skip
    headings = [f"{count} {'stream' if count == 1 else 'streams'}" for count in streams]
    return ByLoad([*headings, *(_waiting_headings(shown, arrivals) if arrivals else ())], rows, _remark(marks) + (_BUSY if arrivals else ""))


def _streams(name: str) -> int:
    """The number of streams of a throughput's name; 0 for any other name."""
    return int(name.partition("@")[2]) if name.startswith((RATE, _IMAGES)) else 0


def _marks(shown: list[Candidate], name: str) -> dict[str, Mark]:
    rivals = {
        candidate.name: candidate.metrics[name] for candidate in shown
        if name in candidate.metrics and (candidate.name in REFERENCES or candidate.status == "accepted")
    }  # fmt: skip
    if not rivals:
        return {}
    best = max(rivals, key=lambda rival: rivals[rival].value)
    floor = _end(rivals[best], rivals[best].ci_low)
    tied: dict[str, Mark] = {rival: "tied" for rival, metric in rivals.items() if _end(metric, metric.ci_high) >= floor}
    return {**tied, best: "best"}


def _end(metric: Metric, end: float | None) -> float:
    return metric.value if end is None else end


def _remark(marks: dict[int, dict[str, Mark]]) -> str:
    """Who is fastest where."""
    best = {count: name for count, found in marks.items() for name, mark in found.items() if mark == "best"}
    if not best:
        return ""
    if len(set(best.values())) == 1:
        return f"Of all that hold the quality, {next(iter(best.values()))} is the fastest at every number of streams."
    places = ", ".join(f"{name} at {count}" for count, name in best.items())
    return f"Of all that hold the quality, the fastest changes with the number of streams: {places}."


def _waiting_headings(shown: list[Candidate], kind: str) -> Iterator[str]:
    rate = next(candidate.metrics[f"ttft_ms@{kind}"].conditions["rate"] for candidate in shown if f"ttft_ms@{kind}" in candidate.metrics)
    yield f"TTFT p50 / p99 at {rate} requests a second ({kind})"
    yield "Busy"


def _waiting(candidate: Candidate, kind: str) -> Iterator[Cell]:
    found = candidate.metrics.get(f"ttft_ms@{kind}")
    if found is None:
        yield from (Cell(wording.NONE), Cell(wording.NONE))
        return
    yield Cell(f"{wording.quantile(found, found.p50)} / {wording.quantile(found, found.p99)}")
    yield Cell(wording.percent(float(str(found.conditions["busy"])), 0))
