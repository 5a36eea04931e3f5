"""Which two variants of a run are compared, and how a run's comparisons are evaluated."""

from __future__ import annotations

from genopt.errors import SpecError
from genopt.plan import Artifact, Plan, Record, plan_of
from genopt.report.accepted import original_of
from genopt.report.model import REFERENCES, Report
from genopt.store.artifacts import is_whole

ORIGINAL = REFERENCES[0]


class Variant(Record):
    """Something that answers.

    Attributes:
        plan: Its engine and options are opened.
        artifact: The bytes that the engine opens.
    """

    plan: Plan
    artifact: Artifact

    @property
    def name(self) -> str:
        """Name of the candidate."""
        return self.plan.name


def choose_variants(report: Report, a: str | None, b: str | None) -> tuple[Variant, Variant]:
    """The two variants of a comparison, whatever the gate said about them.

    Args:
        report: What the run found.
        a: Name of the first; the original unless given.
        b: Name of the second; the winner unless given.

    Raises:
        SpecError: There is no such candidate, it has no artifact, its files are gone, or it is compared with itself.
    """
    if not report.candidates:
        raise SpecError("The run ended before it had a baseline, so there is nothing to compare; run it again with a larger --budget.")
    if b is None and report.winner is None:
        raise SpecError(f"{report.decision} Name two candidates to compare: {_known(report)}.")
    first, second = _variant(report, a or ORIGINAL), _variant(report, b or str(report.winner))
    if first.name == second.name:
        raise SpecError(f"{first.name} would be compared with itself; name two of {_known(report)}.")
    return first, second


def _variant(report: Report, name: str) -> Variant:
    found = next((candidate for candidate in report.candidates if candidate.name == name), None)
    if found is None:
        raise SpecError(f"The run has no candidate {name!r}; choose of {_known(report)}.")
    artifact = found.artifact or (original_of(report) if name in REFERENCES else None)  # what changes no file is the original
    if artifact is None:
        raise SpecError(f"{name} has nothing that can be opened, because it is {found.status} ({found.reason}); choose of {_known(report)}.")
    if not is_whole(artifact):
        raise SpecError(f"{artifact.path} is gone from the store; run the optimization again, or restore the store it was made with.")
    return Variant(plan=plan_of(found), artifact=artifact)


def _known(report: Report) -> str:
    return ", ".join(candidate.name for candidate in report.candidates if candidate.artifact or candidate.name in REFERENCES)
