"""What people said about a run's variants, beside what the gate said."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from genopt.plan import Candidate, Verdict
from genopt.quality.comparison import ComparisonFolder, comparisons
from genopt.quality.preference import HumanResult, human_result
from genopt.report.model import REFERENCES


def human_results(run: Path, candidates: Sequence[Candidate]) -> tuple[HumanResult, ...]:
    """All comparisons of a run that have votes, by name.

    Args:
        run: The run folder.
        candidates: With the gate's verdicts.

    Raises:
        StorageError: A comparison is damaged.
    """
    found = (evaluate(folder, candidates) for folder in comparisons(run))
    return tuple(result for result in found if result.judged)


def evaluate(folder: ComparisonFolder, candidates: Sequence[Candidate]) -> HumanResult:
    """One comparison with the votes so far.

    Raises:
        StorageError: It is damaged.
    """
    asked = folder.read()
    verdicts = {candidate.name: _verdict(candidate) for candidate in candidates}
    return human_result(folder.path.name, asked, folder.ballots(), (verdicts.get(asked.a), verdicts.get(asked.b)))


def _verdict(candidate: Candidate) -> Verdict | None:
    """The gate's; the original is the reference by definition."""
    if candidate.name == REFERENCES[0]:
        return "reference"
    return candidate.quality.verdict if candidate.quality else None
