"""Ray Tune proposes further candidates until the time for it ends.

Trials are thin coordinators: each submits the build and evaluation of one point to the cluster and
reports once. Nothing that matters lives in Tune's state: results go to the run's journal.
"""

from __future__ import annotations

import itertools
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import optuna
import ray
from ray import tune
from ray.actor import ActorHandle
from ray.tune.search.optuna import OptunaSearch

from genopt import catalog
from genopt.distributed.cluster import Node
from genopt.distributed.stages import BuildFacts, evaluate_on, submit_build
from genopt.plan import JsonValue, Plan, Record
from genopt.spec import RunSpec
from genopt.tasks.base import Evaluation, Task

SPEED, QUALITY = "speed", "quality"
REPEATS = 20
"""Suggestions of known points in a row after which the sampler is passed over."""


class SearchRequest(Record):
    """What the search may do.

    Attributes:
        spec: The run's spec: quality bar, seed, what is wanted and how many trials.
        task: Catalogue name of the task.
        space: Choices by flat name.
        seeds: Points to try first.
        known: Identities of plans that were tried already.
        deadline: Unix time after which no trial may run.
        expected_s: How long one trial takes.
    """

    spec: RunSpec
    task: str
    space: dict[str, tuple[JsonValue, ...]]
    seeds: tuple[dict[str, JsonValue], ...]
    known: tuple[str, ...]
    deadline: float
    expected_s: float


class QualityOptunaSearch(OptunaSearch):
    """OptunaSearch whose failed trials leave no ghosts, which treats quality as a constraint and stops at the deadline.

    Without it a NaN metric leaves Optuna's trial running for ever, which biases its sampler.

    Args:
        request: The search that it serves.
        known: (choices, speed, quality) of points evaluated before, which inform the sampler.
    """

    def __init__(self, request: SearchRequest) -> None:
        space = {name: tune.choice(list(choices)) for name, choices in request.space.items()}
        super().__init__(
            space=space, metric=[SPEED, QUALITY], mode=["max", "max"], points_to_evaluate=[dict(seed) for seed in request.seeds],
            seed=request.spec.seed,
        )  # fmt: skip
        self._request = request
        self._expected_s = request.expected_s
        self._seen = set(request.known)
        self._task: Task = catalog.load("tasks", request.task)

    def suggest(self, trial_id: str) -> Any:
        """The next point; finished when the time is up or the space is exhausted."""
        if time.time() + self._expected_s > self._request.deadline:
            return self.FINISHED
        for _ in range(REPEATS):
            choices = super().suggest(trial_id)
            if not isinstance(choices, dict) or self._is_new(choices):
                break
            self._withdraw(trial_id)
        else:  # the sampler goes round in circles, as samplers do in small spaces: take any point that is left
            left = next((point for point in self._points() if self._is_new(point)), None)
            if left is None:
                return self.FINISHED
            self._ot_study.enqueue_trial(left)
            choices = super().suggest(trial_id)
        if isinstance(choices, dict):
            self._seen.add(self._task.plan(choices).identity())
        return choices

    def _withdraw(self, trial_id: str) -> None:
        """Ends a suggestion that is not used; otherwise the base class would give it again for the same trial."""
        super().on_trial_complete(trial_id, None, error=True)
        del self._ot_trials[trial_id]
        self._completed_trials.discard(trial_id)

    def _is_new(self, choices: Mapping[str, JsonValue]) -> bool:
        plan = self._task.plan(choices)
        return plan.identity() not in self._seen and self._request.spec.wants(plan)

    def _points(self) -> Iterator[dict[str, JsonValue]]:
        """The whole space."""
        names = list(self._request.space)
        return (dict(zip(names, values, strict=True)) for values in itertools.product(*self._request.space.values()))

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tells Optuna how a trial ended."""
        if not error and (result is None or any(not math.isfinite(result.get(name, math.nan)) for name in (SPEED, QUALITY))):
            super().on_trial_complete(trial_id, None, error=True)
            return
        if not error and result is not None:
            self._ot_trials[trial_id].set_constraint("quality", self._request.spec.quality - result[QUALITY])
            self._expected_s = max(self._expected_s, float(result["seconds"]))
        super().on_trial_complete(trial_id, result, error=error)


class _Forward(tune.Callback):
    """Hands every finished trial to the driver."""

    def __init__(self, finished: Callable[[Evaluation], None], started: Callable[[Plan], None], tick: Callable[[], None], task: str) -> None:
        self._finished, self._started, self._tick, self._task = finished, started, tick, task

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its callbacks to restore a search, and ours are restored from the journal instead."""
        return {}

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self._tick()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._started(catalog.load("tasks", self._task).plan(trial.config))

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any) -> None:
        if "evaluation" in result:
            self._finished(Evaluation.model_validate(json.loads(result["evaluation"])))


def search(
    request: SearchRequest,
    facts: BuildFacts,
    benches: Sequence[tuple[ActorHandle[Any], Node]],
    finished: Callable[[Evaluation], None],
    started: Callable[[Plan], None],
    tick: Callable[[], None],
) -> None:
    """Runs trials until the deadline, the bound or the end of the space; results arrive through `finished`.

    Args:
        request: What to search.
        facts: What builds need.
        benches: Where candidates can be evaluated.
        finished: Called in this thread with every result.
        started: Called in this thread when a point is submitted.
        tick: Called in this thread now and then.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    trainable = tune.with_resources(tune.with_parameters(_trial, request=request, facts=facts, benches=list(benches)), {"cpu": 0.01})
    with tempfile.TemporaryDirectory(prefix="genopt-tune-") as folder:
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=QualityOptunaSearch(request), num_samples=-1 if request.spec.max_trials is None else request.spec.max_trials,
                max_concurrent_trials=len(benches), time_budget_s=max(1.0, request.deadline - time.time() + 5), reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="search", storage_path=folder, verbose=0, callbacks=[_Forward(finished, started, tick, request.task)],
                failure_config=tune.FailureConfig(max_failures=0),
            ),
        )  # fmt: skip
        tuner.fit()


def _trial(config: Mapping[str, JsonValue], request: SearchRequest, facts: BuildFacts, benches: list[tuple[ActorHandle[Any], Node]]) -> None:
    """Evaluates one point and reports its speed and quality once."""
    plan: Plan = catalog.load("tasks", request.task).plan(config)
    bench, node = benches[int(plan.identity(), 16) % len(benches)]
    built = submit_build(plan, facts, request.deadline)
    found = Evaluation.model_validate(ray.get(evaluate_on(bench, node, plan, built, request.deadline)))
    candidate = found.candidate
    speed = candidate.speedup["vs_baseline"].value if candidate.speedup else math.nan
    quality = candidate.quality.ratio if candidate.quality is not None else math.nan
    tune.report({SPEED: speed, QUALITY: quality, "seconds": found.seconds, "evaluation": found.model_dump_json()})
