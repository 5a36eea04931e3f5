"""Ray Tune proposes further candidates until the time for it ends.

Trials are thin coordinators: each submits the build and evaluation of one point to the cluster and
reports once. Nothing that matters lives in Tune's state: results go to the run's journal.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import optuna
import ray
from ray import tune
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayError
from ray.tune.search.optuna import OptunaSearch

from genopt import catalog, clock
from genopt.clock import Moment, Window
from genopt.distributed.cluster import Node
from genopt.distributed.fanout import TICK_S
from genopt.distributed.stages import GRACE_S, BuildFacts, evaluate_on, submit_build
from genopt.plan import JsonValue, Plan, Record
from genopt.spec import RunSpec
from genopt.tasks.base import Evaluation, Task, failed

SPEED, QUALITY, LOST = "speed", "quality", "lost"
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
        deadline: When no trial may run any more.
        expected_s: How long one trial takes.
        guard_s: Seconds before the deadline in which nothing starts that cannot finish.
        trials: Most candidates to add; None searches until the deadline.
    """

    spec: RunSpec
    task: str
    space: dict[str, tuple[JsonValue, ...]]
    seeds: tuple[dict[str, JsonValue], ...]
    known: tuple[str, ...]
    deadline: Moment
    expected_s: float
    guard_s: float
    trials: int | None


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
        self._is_over = False
        self._task: Task = catalog.load("tasks", request.task)

    def suggest(self, trial_id: str) -> Any:
        """The next point; finished when the time is up or the space is exhausted."""
        if self._is_over or clock.now() + self._expected_s > self._request.deadline.here():
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
        """Tells Optuna how a trial ended; nothing more is proposed to benches of which one may be lost."""
        self._is_over = self._is_over or error or bool(result and result.get(LOST))
        if not error and (result is None or any(not math.isfinite(result.get(name, math.nan)) for name in (SPEED, QUALITY))):
            super().on_trial_complete(trial_id, None, error=True)
            return
        if not error and result is not None:
            self._ot_trials[trial_id].set_constraint("quality", self._request.spec.quality - result[QUALITY])
            self._expected_s = max(self._expected_s, float(result["seconds"]))
        super().on_trial_complete(trial_id, result, error=error)


class _TimeIsUpError(Exception):
    """Ends a search whose trials do not end by themselves."""


class _Forward(tune.Callback):
    """Hands every finished trial to the driver, and ends the search when the time is up."""

    def __init__(
        self, finished: Callable[[Evaluation], None], started: Callable[[Plan], None], tick: Callable[[], None], request: SearchRequest
    ) -> None:
        self._finished, self._started, self._tick = finished, started, tick
        self._task: Task = catalog.load("tasks", request.task)
        self._deadline = request.deadline.here()
        self._ticked = 0.0
        self.running: dict[str, Plan] = {}
        self.lost = False

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its callbacks to restore a search, and ours are restored from the journal instead."""
        return {}

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if clock.now() > self._deadline + GRACE_S:
            raise _TimeIsUpError
        if clock.now() > self._ticked + TICK_S:
            self._ticked = clock.now()
            self._tick()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.running[trial.trial_id] = plan = self._task.plan(trial.config)
        self._started(plan)

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any) -> None:
        if "evaluation" in result:
            self.running.pop(trial.trial_id, None)
            self.lost = self.lost or bool(result[LOST])
            self._finished(Evaluation.model_validate(json.loads(result["evaluation"])))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The trial's own process was lost, which says nothing about the candidate."""
        self.lost = True
        self.give_up(trial.trial_id, "the process that waited for it was lost; run `genopt resume` to try it again")

    def give_up(self, trial_id: str, reason: str) -> None:
        """Records a trial that will not end."""
        plan = self.running.pop(trial_id, None)
        if plan is not None:
            self._finished(Evaluation(candidate=failed(plan, "skipped", reason)))


def search(
    request: SearchRequest,
    facts: BuildFacts,
    benches: Sequence[tuple[ActorHandle[Any], Node]],
    finished: Callable[[Evaluation], None],
    started: Callable[[Plan], None],
    tick: Callable[[], None],
) -> bool:
    """Runs trials until the deadline, the bound or the end of the space; results arrive through `finished`.

    Args:
        request: What to search.
        facts: What builds need.
        benches: Where candidates can be evaluated.
        finished: Called in this thread with every result.
        started: Called in this thread when a point is submitted.
        tick: Called in this thread now and then.

    Returns:
        Whether it stopped because something was lost on a bench; another search may go on once that is mended.
    """
    os.environ.setdefault("TUNE_FORCE_TRIAL_CLEANUP_S", str(int(GRACE_S)))  # instead of ten minutes
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # Ctrl-C ends the run, not the search alone
    forward = _Forward(finished, started, tick, request)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    trainable = tune.with_resources(tune.with_parameters(_trial, request=request, facts=facts, benches=list(benches)), {"cpu": 0.01})
    with tempfile.TemporaryDirectory(prefix="genopt-tune-") as folder:
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=QualityOptunaSearch(request), num_samples=-1 if request.trials is None else request.trials,
                max_concurrent_trials=len(benches), reuse_actors=True,  # no time_budget_s, which goes by the time of day
            ),
            run_config=tune.RunConfig(
                name="search", storage_path=folder, verbose=0, callbacks=[forward],
                failure_config=tune.FailureConfig(max_failures=0),
            ),
        )  # fmt: skip
        try:
            tuner.fit()
        except _TimeIsUpError:
            pass
        except Exception:
            if clock.now() < request.deadline.here():
                raise
    for trial_id in list(forward.running):
        forward.give_up(trial_id, "the budget ended while it was being measured; give a larger --budget")
    return forward.lost


def _trial(config: Mapping[str, JsonValue], request: SearchRequest, facts: BuildFacts, benches: list[tuple[ActorHandle[Any], Node]]) -> None:
    """Evaluates one point and reports its speed and quality once."""
    plan: Plan = catalog.load("tasks", request.task).plan(config)
    bench, node = benches[int(plan.identity(), 16) % len(benches)]
    deadline = request.deadline.here()
    window = Window.until(deadline + GRACE_S, min(request.expected_s, request.guard_s))
    built = submit_build(plan, facts, window)
    measured = evaluate_on(bench, node, plan, built, window)
    try:
        found = Evaluation.model_validate(ray.get(measured, timeout=max(1.0, deadline - clock.now())))
    except GetTimeoutError:
        for task in (built, measured):
            ray.cancel(task, force=True)
        found = Evaluation(candidate=failed(plan, "skipped", "the budget ended while it was being measured; give a larger --budget"))
    except RayError as error:
        reason = f"Its node or worker was lost ({type(error).__name__}); run `genopt resume` to try it again."
        found = Evaluation(candidate=failed(plan, "failed", reason), again="now")
    candidate = found.candidate
    speed = candidate.speedup["vs_baseline"].value if candidate.speedup else math.nan
    quality = candidate.quality.ratio if candidate.quality is not None else math.nan
    tune.report({SPEED: speed, QUALITY: quality, LOST: found.again == "now", "seconds": found.seconds, "evaluation": found.model_dump_json()})
