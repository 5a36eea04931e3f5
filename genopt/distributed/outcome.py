"""What a run has found so far, kept in its journal: the one truth from which reports and resumption read."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from genopt.plan import Candidate, plan_of
from genopt.search.estimate import own_s
from genopt.search.predict import runtime_of
from genopt.search.propose import Outcome as Tried
from genopt.search.propose import values_of
from genopt.search.space import Space
from genopt.spec import Objective
from genopt.store.run_folder import RunFolder
from genopt.tasks.base import Evaluation, References

FLUSH_EVERY_S = 5.0
"""The tables are written whole, so not after every candidate; the journal has each at once."""


class Outcome:
    """Records results in the run's journal and Parquet tables as they arrive.

    Args:
        folder: The run's folder.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self.candidates: list[Candidate] = []
        self.references: References | None = None
        self._samples: list[dict[str, Any]] = []
        self.seconds: dict[str, list[float]] = {}
        self._flushed = 0.0

    def replay(self) -> None:
        """Takes over what an interrupted run had finished; what is worth another attempt is left out."""
        for event in self._folder.events():
            if event["event"] == "candidate_finished":
                candidate = Candidate.model_validate(event["candidate"])
                self._put(candidate, again=event.get("again", "no") != "no")
                self._learn(candidate, float(event.get("seconds", 0.0)))
        self._samples.extend(self._folder.known_records("samples"))

    def _put(self, candidate: Candidate, *, again: bool = False) -> None:
        """Each candidate counts once, as it ended last."""
        self.candidates = [item for item in self.candidates if item.name != candidate.name]
        if not again:
            self.candidates.append(candidate)

    def _learn(self, candidate: Candidate, seconds: float) -> None:
        """Notes what others like it may take; what was learned afterwards took no time, and one that was not measured tells nothing."""
        if candidate.metrics and seconds > 0:
            plan = plan_of(candidate)
            self.seconds.setdefault(runtime_of(plan), []).append(own_s(plan, seconds))

    def set_references(self, references: References) -> None:
        """Records the two references."""
        self.references = references
        self._samples.extend(references.samples)
        self._folder.append("references", **references.model_dump(mode="json", exclude={"samples"}))
        self.flush()

    def add(self, found: Evaluation) -> None:
        """Records one finished candidate."""
        self._put(found.candidate)
        self._samples.extend(found.samples)
        self._learn(found.candidate, found.seconds)
        rest = found.model_dump(mode="json", include={"candidate", "seconds", "stages", "again"})
        self._folder.append("candidate_finished", **rest)
        if time.monotonic() - self._flushed > FLUSH_EVERY_S:
            self.flush()

    def revise(self, candidate: Candidate) -> None:
        """Records what was learned about a finished candidate afterwards."""
        self.candidates = [candidate if item.name == candidate.name else item for item in self.candidates]
        self._folder.append("candidate_finished", candidate=candidate.model_dump(mode="json"), seconds=0.0)
        self.flush()

    def identities(self) -> set[str]:
        """Identities of everything that ended."""
        return {plan_of(item).identity() for item in self.candidates if item.status != "skipped"}

    def of_points(self, space: Space, baseline: Candidate, objective: Objective) -> Iterator[Tried]:
        """What candidates came to that are points of a space, as a search sees them that looks for what is best by an objective."""
        for candidate in self.candidates:
            point = space.point_of(plan_of(candidate)) if candidate.status != "skipped" else None
            if point is not None:
                yield Tried(point=point, values=values_of(candidate, baseline, objective))

    def flush(self) -> None:
        """Writes the Parquet tables."""
        self._flushed = time.monotonic()
        everything = [*([self.references.original, self.references.baseline] if self.references else []), *self.candidates]
        self._folder.write_records("candidates", [_row(item) for item in everything])
        self._folder.write_records("samples", self._samples)


def _row(candidate: Candidate) -> dict[str, Any]:
    """One flat row of the table of candidates."""
    quality, speedup = candidate.quality, candidate.speedup
    row: dict[str, Any] = {
        "name": candidate.name, "status": candidate.status, "reason": candidate.reason, "engine": candidate.engine,
        "techniques": "+".join(step.technique for step in candidate.steps),
        "artifact_bytes": candidate.artifact.bytes if candidate.artifact else None,
        "quality_ratio": quality.ratio if quality else None, "quality_low": quality.ci_low if quality else None,
        "quality_high": quality.ci_high if quality else None, "quality_tokens": quality.n if quality else None,
        "speedup_vs_original": speedup["vs_original"].value if "vs_original" in speedup else None,
        "predicted": candidate.predicted.value if candidate.predicted else None,
        "speedup_vs_baseline": speedup["vs_baseline"].value if "vs_baseline" in speedup else None,
    }  # fmt: skip
    return row | {name: metric.value for name, metric in candidate.metrics.items()}
