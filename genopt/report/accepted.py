"""The variants of a run that may leave it: deployed, or exported."""

from __future__ import annotations

from genopt.errors import DeploymentError
from genopt.plan import Artifact, Candidate
from genopt.report.model import REFERENCES, Report
from genopt.store.shared import is_shared, open_store


def accepted(report: Report, name: str | None) -> Candidate:
    """A variant that the gate let through, or a reference.

    Args:
        report: Of the run.
        name: Of the candidate; None takes the winner, or the baseline where there is none.

    Raises:
        DeploymentError: There is no such candidate, or it was not accepted.
    """
    wanted = name or report.winner or "baseline"
    found = next((candidate for candidate in report.candidates if candidate.name == wanted), None)
    if found is None:
        known = ", ".join(candidate.name for candidate in report.candidates if candidate.status == "accepted") or "none yet"
        raise DeploymentError(f"The run has no candidate {wanted!r}; it accepted {known}.")
    if found.status != "accepted" and wanted not in REFERENCES:
        raise DeploymentError(f"{wanted} is {found.status} ({found.reason}); choose an accepted candidate.")
    return found


def original_of(report: Report) -> Artifact:
    """The model's own files."""
    return Artifact(digest=report.model.digest, path=report.model.path, bytes=report.model.bytes, traits=("hf",))


def files_of(report: Report, candidate: Candidate, store: str | None) -> Artifact:
    """A candidate's files on this machine.

    Args:
        report: Of its run.
        candidate: One that `accepted` returned.
        store: The run's store.

    Raises:
        StorageError: They lie in an object store that does not have them any more.
    """
    artifact = candidate.artifact or original_of(report)
    if not is_shared(store):
        return artifact
    with open_store(store).local(artifact) as here:  # the path is that of the machine that measured it
        return here
