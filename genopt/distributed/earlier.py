"""What earlier runs measured under the very conditions of this one: offered to later runs, and taken over where the spec allows that."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from genopt.distributed.outcome import Outcome
from genopt.models.given import named_by
from genopt.plan import Candidate, Earlier, Plan, plan_of
from genopt.search.selection import choose
from genopt.spec import RunSpec
from genopt.store.measured import Measured, MeasuredCandidates
from genopt.tasks.base import Evaluation, told
from genopt.version import __version__

DECIDES = ("quality", "seed", "output_tokens", "concurrency", "arrivals", "precision")
"""Keys of a spec that change what a measurement or a verdict means; texts and prompts are in the data's digest."""
LASTING = ("accepted", "rejected", "inconclusive")
"""How candidates end about which another run may believe this one."""


class EarlierRuns:
    """The measured candidates of all runs that agree in everything that decides numbers, this one included.

    Args:
        store: The store's folder.
        run: This run's folder.
        spec: This run's spec.
        conditions: What the numbers depend on besides the spec: model, data, libraries, hardware, GPUs, threads, references.
        environment: What readers of a report are told about this run.
        given: Digests of the models that were given to this run.
    """

    def __init__(
        self, store: Path, run: Path, spec: RunSpec, conditions: Mapping[str, Any], environment: Mapping[str, Any], given: Collection[str]
    ) -> None:  # fmt: skip
        chosen = {name: getattr(spec, name) for name in DECIDES}
        self._measured = MeasuredCandidates(store, {**conditions, "spec": chosen, "genopt": __version__})
        self._run, self._spec, self._environment = str(run.absolute()), spec, dict(environment)
        self._given = frozenset(given)

    def keep(self, found: Evaluation) -> None:
        """Keeps a candidate for later runs, if it was measured in this one and nothing but itself decided how it ended."""
        candidate, quality = found.candidate, found.candidate.quality
        hurried = quality is not None and "stopped" in quality.details
        if candidate.is_measured and candidate.status in LASTING and found.again == "no" and not hurried:
            origin = Earlier(what="everything", run=self._run, measured=time.time(), environment=self._environment)
            self._measured.keep(Measured(candidate=candidate, seconds=found.seconds, origin=origin))

    def take_over(self, done: set[str]) -> list[Evaluation]:
        """Wanted candidates of earlier runs, each as the result of an evaluation; none unless the spec takes over everything.

        Those that were made with a model which is not given to this run stay away: it could not measure them again.

        Args:
            done: Identities of plans that ended in this run.
        """
        if self._spec.reuse != "everything":
            return []
        others = [(plan_of(one.candidate), one) for one in self._measured if one.origin.run != self._run]
        return [_taken_over(one) for plan, one in others if self._takes(plan) and plan.identity() not in done]

    def _takes(self, plan: Plan) -> bool:
        return self._spec.wants(plan) and named_by(plan) <= self._given

    def count(self, plans: Sequence[Plan]) -> int:
        """How many of some plans earlier runs measured."""
        known = [self._measured.find(plan) for plan in plans]
        return sum(1 for one in known if one is not None and one.origin.run != self._run)


def _taken_over(found: Measured) -> Evaluation:
    candidate = found.taken_over()
    marked = candidate.model_copy(update={"reason": f"as {told(found.origin)} found it: {candidate.reason}"})
    return Evaluation(candidate=marked, seconds=found.seconds)


def to_measure_again(spec: RunSpec, outcome: Outcome) -> Candidate | None:
    """The candidate that would win if numbers of other runs counted like this one's; None where that one was measured in this run."""
    if outcome.references is None:
        return None
    believed = {one.name: one.model_copy(update={"earlier": ()}) for one in outcome.candidates}
    slo = {str(name): limit for name, limit in spec.slo.items()}
    everything = [outcome.references.original, outcome.references.baseline, *believed.values()]
    chosen = choose(everything, objective=spec.objective, bar=spec.quality, slo=slo, aa=outcome.references.aa).winner
    found = next((one for one in outcome.candidates if one.name == chosen), None)
    return found if found is not None and not found.is_measured else None


def measure_finalists(spec: RunSpec, outcome: Outcome, measure: Callable[[Plan], bool]) -> None:
    """Measures candidates of other runs again for as long as one of them would win.

    Args:
        spec: The run's spec.
        outcome: What is known.
        measure: Measures a plan, which replaces what is known of it; returns whether there was time.
    """
    asked: set[str] = set()
    while (finalist := to_measure_again(spec, outcome)) is not None and finalist.name not in asked:
        asked.add(finalist.name)
        if not measure(plan_of(finalist)):
            return
