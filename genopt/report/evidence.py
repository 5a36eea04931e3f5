"""What a quality verdict rests on, as the reports show it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from genopt.plan import Candidate, Quality
from genopt.quality.divergence import WorstSequence

WORST = "worst_sequences"


def facts(quality: Quality) -> list[tuple[str, str]]:
    """The details of a verdict by name, one line each; what has a place of its own is left out."""
    return list(_flat("", {name: value for name, value in quality.details.items() if name != WORST}))


def worst(candidate: Candidate) -> tuple[WorstSequence, ...]:
    """The sequences on which a candidate strays most from the original."""
    found = candidate.quality.details.get(WORST) if candidate.quality else None
    return tuple(WorstSequence.model_validate(item) for item in found) if isinstance(found, list) else ()


def _flat(prefix: str, values: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(f"{prefix}{name}.", value)
        else:
            yield f"{prefix}{name}", f"{value:.6g}" if isinstance(value, float) else str(value)
