"""The part of a run in which Ray Tune proposes further candidates."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence

from genopt import clock
from genopt.clock import Moment
from genopt.distributed.benches import Benches
from genopt.distributed.building import BuildFacts
from genopt.distributed.outcome import Outcome
from genopt.distributed.predictions import Predictions
from genopt.plan import Candidate, Plan, plan_of
from genopt.search import precision
from genopt.search.budget import Budget
from genopt.search.predict import runtime_of
from genopt.search.propose import pool
from genopt.search.space import Point, Space
from genopt.spec import RunSpec
from genopt.tasks.base import Evaluation, Task, environments_of, needs_gpu

SEARCH_END_S = 3.0
"""Ray Tune needs this long to end after its last trial has."""


class SearchPhase:
    """Prepares searches from what the run knows, and starts them.

    Args:
        spec: The run's spec.
        task: Has the space.
        first: Candidates that are tried before; they are no trials of the search.
        budget: The run's clock.
        outcome: What was tried.
        predictions: What is expected of what was not.
        benches: Where candidates are evaluated.
        environments: Engine environments that candidates may need, besides ours.
        gpus: Whether there are GPUs.
        expected_s: How long a candidate takes.
        started: Told of a candidate and the seconds that it is expected to take.
        finished: Told how a candidate ended.
        tick: Called about once a second.
    """

    def __init__(
        self,
        spec: RunSpec,
        task: Task,
        first: Sequence[Plan],
        budget: Budget,
        outcome: Outcome,
        predictions: Predictions,
        benches: Benches,
        *,
        environments: Collection[str],
        gpus: bool,
        expected_s: Callable[[Plan], float],
        started: Callable[[Plan, float], None],
        finished: Callable[[Evaluation], None],
        tick: Callable[[], None],
    ) -> None:
        self._spec, self._task, self._budget = spec, task, budget
        self._first = frozenset(plan.identity() for plan in first)
        self._outcome, self._predictions, self._benches = outcome, predictions, benches
        self._environments, self._gpus = frozenset(environments), gpus
        self._expected_s, self._started, self._finished, self._tick = expected_s, started, finished, tick

    @property
    def has_time(self) -> bool:
        """Whether one more candidate fits the budget."""
        return self._budget.left_s > self.typical_s() + SEARCH_END_S

    @property
    def end(self) -> str:
        """Why it goes on no more."""
        if self.trials_left() == 0:
            return "the search added as many candidates as --max-trials allows"
        return "the search space was exhausted" if self.has_time else "the budget was used up"

    def wants(self, plan: Plan) -> bool:
        """Whether a plan is asked for and can run here."""
        return self._spec.wants(plan) and environments_of(plan) <= self._environments and (self._gpus or not needs_gpu(plan))

    def _goes_on(self) -> bool:
        return self.trials_left() != 0 and self.has_time

    def typical_s(self) -> float:
        """Expected seconds of one searched candidate."""
        plans = [self._task.space().plan(seed) for seed in self._task.seeds()]
        return self._expected_s(next(filter(self.wants, plans), plans[0]))

    def trials_left(self) -> int | None:
        """How many candidates the search may still add, those of earlier sessions counted; None for any number."""
        if self._spec.max_trials is None:
            return None
        first = self._first | {plan_of(one).identity() for one in self._outcome.candidates if one.earlier and not one.is_measured}
        return max(0, self._spec.max_trials - len(self._outcome.identities() - first))

    def go(self, facts: BuildFacts, baseline: Candidate, found: precision.Sensitivity | None) -> None:
        """Searches until no trial is left or fits the budget; where a bench is lost it goes on with those that are left.

        Args:
            facts: What builds need.
            baseline: What candidates are held against.
            found: What parts of the model suffer from fewer bits, where that is known.
        """
        if not self._goes_on():
            return
        from genopt.distributed.searcher import SearchRequest  # Ray Tune takes a second to import, and not every run searches
        from genopt.distributed.tuning import search

        space = self._task.space()
        seeds = self._task.seeds()
        if found is not None:
            seeds = precision.among_seeds(seeds, space, precision.solve(found), self._spec.quality)
        tried = [one.point for one in self._outcome.of_points(space, baseline, self._spec.objective)]
        candidates = pool(
            space, self._spec.seed, predict=lambda point: self._foreseen(space, point, found),
            wanted=lambda point: self.wants(space.plan(point)), known=(*seeds, *tried),
        )  # fmt: skip
        possible = [seed for seed in seeds if self.wants(space.plan(seed))]
        references = {plan.identity() for plan in self._task.references()}
        runtimes = {runtime_of(plan): plan for plan in map(space.plan, (*candidates.points, *possible))}
        lost = LostCandidates(self._finished)
        while self._goes_on():
            for slot in tuple(self._benches.slots):  # a node that died is dropped before anything waits for it
                self._benches.recover(slot)
            again = [point for plan in lost.waiting() if (point := space.point_of(plan)) is not None]
            request = SearchRequest(
                spec=self._spec, task=self._task.name, baseline=baseline, seeds=(*again, *possible),
                outcomes=tuple(self._outcome.of_points(space, baseline, self._spec.objective)),
                known=tuple(sorted(self._outcome.identities() | references)), deadline=Moment.of(clock.now() + self._budget.left_s - SEARCH_END_S),
                expected_s={runtime: self._expected_s(plan) for runtime, plan in runtimes.items()}, guard_s=self._budget.guard_s,
                trials=self.trials_left(),
            )  # fmt: skip
            interrupted = search(
                request, candidates, facts, self._benches.slots, finished=lost.note,
                started=lambda plan: self._started(plan, self._expected_s(plan)), tick=self._tick,
            )  # fmt: skip
            if not interrupted:
                break
        lost.give_up()

    def _foreseen(self, space: Space, point: Point, found: precision.Sensitivity | None) -> tuple[float, ...]:
        """What can be said of a point before it is tried: the logarithm of its expected pace, and what its bits are expected to cost."""
        expected = self._predictions.predict(space.plan(point))
        pace = math.log(expected.value) if expected is not None else math.nan
        return (pace,) if found is None else (pace, precision.predicted_kl(space, point, found))


class LostCandidates:
    """Candidates whose node or worker was lost, which says nothing about them: each is tried once more.

    Args:
        finished: Told how all others ended, and these if they are lost again.
    """

    def __init__(self, finished: Callable[[Evaluation], None]) -> None:
        self._finished = finished
        self._first: dict[str, Evaluation] = {}
        self._ended: set[str] = set()

    def note(self, found: Evaluation) -> None:
        """Takes how a candidate ended."""
        identity = plan_of(found.candidate).identity()
        if found.again == "now" and identity not in self._first:
            self._first[identity] = found
        else:
            self._ended.add(identity)
            self._finished(found)

    def waiting(self) -> list[Plan]:
        """Those that are to be tried once more."""
        return [plan_of(found.candidate) for identity, found in self._first.items() if identity not in self._ended]

    def give_up(self) -> None:
        """Hands on how those ended for which there was no second time."""
        for identity, found in self._first.items():
            if identity not in self._ended:
                self._ended.add(identity)
                self._finished(found)
