"""What a quality verdict rests on, as the reports show it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from genopt.plan import Candidate, Quality, Record
from genopt.quality.divergence import WorstSequence
from genopt.report import method
from genopt.report.model import REFERENCES, Report

WORST = "worst_sequences"
SHEET = "contact_sheet"
_ELSEWHERE = (WORST, SHEET)


def facts(quality: Quality) -> list[tuple[str, str]]:
    """The details of a verdict by name, one line each; what has a place of its own is left out."""
    return list(_flat("", {name: value for name, value in quality.details.items() if name not in _ELSEWHERE}))


def worst(candidate: Candidate) -> tuple[WorstSequence, ...]:
    """The sequences on which a candidate strays most from the original."""
    found = candidate.quality.details.get(WORST) if candidate.quality else None
    return tuple(WorstSequence.model_validate(item) for item in found) if isinstance(found, list) else ()


class Pair(Record):
    """An image of the original beside the candidate's of the same prompt and seed; both small PNGs in base64."""

    prompt: str
    ssim: float
    original: str
    candidate: str


def contact_sheet(report: Report) -> list[tuple[str, tuple[Pair, ...]]]:
    """A few images of every candidate that may be deployed or could not be decided, the winner's first; empty for other modalities."""
    shown = [one for one in method.ordered(report) if one.status in ("accepted", "inconclusive") and one.name != REFERENCES[0]]
    found = [(one.name, one.quality.details.get(SHEET)) for one in shown if one.quality is not None]
    return [(name, tuple(Pair.model_validate(item) for item in pairs)) for name, pairs in found if isinstance(pairs, list)]


def _flat(prefix: str, values: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(f"{prefix}{name}.", value)
        else:
            yield f"{prefix}{name}", f"{value:.6g}" if isinstance(value, float) else str(value)
