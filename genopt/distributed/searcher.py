"""OptunaSearch for Ray Tune: its study is the ledger of trials, and a model of the candidates proposes the next one."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from ray.tune.search.optuna import OptunaSearch

from genopt import catalog, clock
from genopt.clock import Moment
from genopt.plan import Candidate, Plan, Record
from genopt.search.predict import runtime_of
from genopt.search.propose import QUALITY, VALUES, Outcome, Pool, Proposer
from genopt.search.space import Point, Space
from genopt.spec import RunSpec
from genopt.tasks.base import Task

LOST = "lost"
BENCH = "bench"
"""Key beside a point's choices: the number of the bench that a trial has to itself."""


class SearchRequest(Record):
    """What the search may do.

    Attributes:
        spec: The run's spec: objective, quality bar, seed, what is wanted and how many trials.
        task: Catalogue name of the task, which has the space.
        baseline: What candidates are held against.
        seeds: Points to try first.
        outcomes: What earlier candidates came to, as far as they are points of the space.
        known: Identities of plans that were tried already.
        deadline: When no trial may run any more.
        expected_s: How long a trial takes, by what runs it (`genopt.search.predict.runtime_of`): compiling takes longer than all else.
        guard_s: Seconds before the deadline in which nothing starts that cannot finish.
        trials: Most candidates to add; None searches until the deadline.
    """

    spec: RunSpec
    task: str
    baseline: Candidate
    seeds: tuple[Point, ...]
    outcomes: tuple[Outcome, ...] = ()
    known: tuple[str, ...]
    deadline: Moment
    expected_s: dict[str, float]
    guard_s: float
    trials: int | None

    def seconds_of(self, plan: Plan) -> float:
        """How long a trial of a plan takes."""
        return self.expected_s[runtime_of(plan)]


class ModelSampler(BaseSampler):
    """Optuna's view of a `Proposer`.

    Args:
        space: The space.
        proposer: Proposes its points.
        allowed: Whether a point may be tried.
        seed: Of what Optuna asks for on its own.
    """

    def __init__(self, space: Space, proposer: Proposer, allowed: Callable[[Point], bool], seed: int) -> None:
        self._distributions = distributions(space)
        self._proposer, self._allowed = proposer, allowed
        self._random = RandomSampler(seed=seed)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All choices that a point may have."""
        return self._distributions

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        """The best point that may be tried, for a trial that was not given one."""
        if "fixed_params" in trial.system_attrs:
            return {}
        others = [_outcome(one) for one in study.get_trials(deepcopy=False) if one.number != trial.number and one.params]
        return dict(next((point for point in self._proposer.ranked(others) if self._allowed(point)), {}))

    def sample_independent(self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution) -> Any:
        """A choice that a given point lacks."""
        return self._random.sample_independent(study, trial, param_name, param_distribution)


class QualityOptunaSearch(OptunaSearch):
    """OptunaSearch whose failed trials leave no ghosts, which treats quality as a constraint and stops at the deadline.

    Without it a NaN metric leaves Optuna's trial running for ever.

    Args:
        request: The search that it serves.
        candidates: The points of the task's space.
        benches: How many there are; so many trials run at once.
    """

    def __init__(self, request: SearchRequest, candidates: Pool, benches: int) -> None:
        task: Task = catalog.load("tasks", request.task)
        self._request, self._candidates, self._space_of_points = request, candidates, task.space()
        self._seconds = dict(request.expected_s)
        self._runtimes: dict[str, str] = {}
        self._benches = range(benches)
        self._taken: dict[str, int] = {}
        self._seen = set(request.known)
        self._is_over = False
        space, seed = self._space_of_points, request.spec.seed
        super().__init__(
            space=self._define, metric=list(VALUES), mode=["max"] * len(VALUES), points_to_evaluate=self._new(request.seeds),
            sampler=ModelSampler(space, Proposer(space, candidates, request.spec.quality, seed), self._allows, seed),
        )  # fmt: skip
        for one in request.outcomes:
            self._ot_study.add_trial(_finished(space, one))

    def _define(self, trial: Any) -> None:
        """Asks Optuna for a point, choice by choice."""
        self._space_of_points.walk(lambda dimension: trial.suggest_categorical(dimension.name, dimension.choices))

    def _new(self, seeds: Iterable[Point]) -> list[Point]:
        """The seeds that may be tried, each once."""
        found = {self._space_of_points.plan(seed).identity(): seed for seed in seeds if self._allows(seed)}
        return list(found.values())

    def _allows(self, point: Point) -> bool:
        """Whether a point is wanted, new, and done in time."""
        plan = self._space_of_points.plan(point)
        in_time = clock.now() + self._seconds[runtime_of(plan)] <= self._request.deadline.here()
        return in_time and plan.identity() not in self._seen and self._request.spec.wants(plan)

    def suggest(self, trial_id: str) -> Any:
        """The next point, with a bench that no other trial has; finished when none is left that is done in time."""
        if self._is_over or not any(map(self._allows, self._candidates.points)):
            return self.FINISHED
        point = super().suggest(trial_id)
        if isinstance(point, dict):
            plan = self._space_of_points.plan(point)
            self._seen.add(plan.identity())
            self._runtimes[trial_id] = runtime_of(plan)
            self._taken[trial_id] = min(self._benches, key=Counter(self._taken.values()).__getitem__)
            return {**point, BENCH: self._taken[trial_id]}
        return point

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tells Optuna how a trial ended; nothing more is proposed to benches of which one may be lost."""
        self._is_over = self._is_over or error or bool(result and result.get(LOST))
        self._taken.pop(trial_id, None)
        if not error and (result is None or any(not result.get(name, math.nan) > 0 for name in VALUES)):
            super().on_trial_complete(trial_id, None, error=True)
            return
        if not error and result is not None:
            self._ot_trials[trial_id].set_constraint("quality", self._request.spec.quality - result[QUALITY])
            runtime = self._runtimes[trial_id]
            self._seconds[runtime] = max(self._seconds[runtime], float(result["seconds"]))
        super().on_trial_complete(trial_id, result, error=error)


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """The choices of a space as Optuna knows them."""
    return {dimension.name: CategoricalDistribution(dimension.choices) for dimension in space.dimensions()}


def _finished(space: Space, outcome: Outcome) -> FrozenTrial:
    """A candidate that ended before this search began, as a trial."""
    known = distributions(space)
    state = TrialState.FAIL if outcome.values is None else TrialState.COMPLETE
    return optuna.trial.create_trial(
        state=state, values=outcome.values, params=dict(outcome.point), distributions={name: known[name] for name in outcome.point}
    )  # fmt: skip


def _outcome(trial: FrozenTrial) -> Outcome:
    values = tuple(trial.values) if trial.state == TrialState.COMPLETE else None
    return Outcome(point=trial.params, values=values, runs=not trial.state.is_finished())
