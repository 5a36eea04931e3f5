"""Listeners of every run: what its journal says while it works, and metrics for Prometheus through Ray."""

from __future__ import annotations

from collections import Counter as Tally

from ray.util.metrics import Counter, Gauge, Histogram

from genopt.plan import Candidate
from genopt.progress import Silent
from genopt.store.run_folder import RunFolder
from genopt.tasks.base import Evaluation

BOUNDARIES_S = [1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0]
"""Upper bounds of the histogram of seconds per candidate."""


class JournalListener(Silent):
    """Records what began, so that `genopt status` can tell what is under way; what ended is recorded by `Outcome`.

    Args:
        folder: The run's folder.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder

    def phase(self, name: str, detail: str) -> None:
        """See `Listener.phase`."""
        self._folder.append("phase_started", name=name)

    def started(self, name: str, expected_s: float) -> None:
        """See `Listener.started`."""
        self._folder.append("candidate_started", name=name, expected_s=expected_s)


class RayMetrics(Silent):
    """Counts a run's candidates in Ray's own metrics, each tagged with the run's name.

    `genopt_candidates` (gauge, by state), `genopt_in_flight` (gauge: built, waiting for a bench or measured),
    `genopt_candidate_seconds` (histogram, by engine), `genopt_budget_spent_seconds` (gauge), `genopt_phases` (counter, by phase).

    Args:
        run: Name of the run's folder.
    """

    def __init__(self, run: str) -> None:
        self._states: Tally[str] = Tally()
        self._in_flight: set[str] = set()
        tags = {"run": run}
        self._candidates = Gauge("genopt_candidates", "Candidates that ended, by state.", ("run", "state"))
        self._candidates.set_default_tags(tags)
        self._queue = Gauge("genopt_in_flight", "Candidates that are built, wait for a bench or are measured.", ("run",))
        self._queue.set_default_tags(tags)
        self._seconds = Histogram("genopt_candidate_seconds", "Seconds from build to verdict.", BOUNDARIES_S, ("run", "engine"))
        self._seconds.set_default_tags(tags)
        self._spent = Gauge("genopt_budget_spent_seconds", "Seconds of the budget that were used.", ("run",))
        self._spent.set_default_tags(tags)
        self._phases = Counter("genopt_phases", "Phases that began.", ("run", "phase"))
        self._phases.set_default_tags(tags)

    def phase(self, name: str, detail: str) -> None:
        """See `Listener.phase`."""
        self._phases.inc(1, {"phase": name})

    def budget(self, spent_s: float, total_s: float) -> None:
        """See `Listener.budget`."""
        self._spent.set(spent_s)

    def started(self, name: str, expected_s: float) -> None:
        """See `Listener.started`."""
        self._in_flight.add(name)
        self._queue.set(len(self._in_flight))

    def finished(self, candidate: Candidate) -> None:
        """See `Listener.finished`."""
        self._in_flight.discard(candidate.name)
        self._queue.set(len(self._in_flight))
        self._states[candidate.status] += 1
        self._candidates.set(self._states[candidate.status], {"state": candidate.status})

    def measured(self, found: Evaluation) -> None:
        """Takes the seconds of a candidate that ended."""
        if found.seconds > 0:
            self._seconds.observe(found.seconds, {"engine": found.candidate.engine})
