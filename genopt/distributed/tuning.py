"""Ray Tune proposes further candidates until the time for it ends.

Trials are thin coordinators: each submits the build and evaluation of one point to the cluster and
reports once. Nothing that matters lives in Tune's state: results go to the run's journal.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optuna
import ray
from ray import tune
from ray.exceptions import GetTimeoutError, RayError

from genopt import catalog, clock
from genopt.distributed.building import BuildFacts, submit_build
from genopt.distributed.fanout import TICK_S
from genopt.distributed.measuring import evaluate_on
from genopt.distributed.parts import Slot, beside
from genopt.distributed.searcher import BENCH, LOST, QualityOptunaSearch, SearchRequest
from genopt.distributed.stages import GRACE_S, window_of
from genopt.plan import Plan
from genopt.search.propose import VALUES, Pool, values_of
from genopt.tasks.base import Evaluation, Task, failed


class _TimeIsUpError(Exception):
    """Ends a search whose trials do not end by themselves."""


class _Forward(tune.Callback):
    """Hands every finished trial to the driver, and ends the search when the time is up."""

    def __init__(
        self, finished: Callable[[Evaluation], None], started: Callable[[Plan], None], tick: Callable[[], None], request: SearchRequest
    ) -> None:
        self._finished, self._started, self._tick = finished, started, tick
        task: Task = catalog.load("tasks", request.task)
        self._space = task.space()
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
        self.running[trial.trial_id] = plan = self._space.plan(trial.config)
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
    candidates: Pool,
    facts: BuildFacts,
    benches: Sequence[Slot],
    finished: Callable[[Evaluation], None],
    started: Callable[[Plan], None],
    tick: Callable[[], None],
) -> bool:
    """Runs trials until the deadline, the bound or the end of the space; results arrive through `finished`.

    Args:
        request: What to search.
        candidates: The points of the task's space.
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
                search_alg=QualityOptunaSearch(request, candidates, len(benches)), max_concurrent_trials=len(benches),
                num_samples=-1 if request.trials is None else request.trials, reuse_actors=True,  # no time_budget_s, which goes by the time of day
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


def _trial(config: Mapping[str, Any], request: SearchRequest, facts: BuildFacts, benches: list[Slot]) -> None:
    """Evaluates one point on its bench and reports what it came to once."""
    plan: Plan = catalog.load("tasks", request.task).space().plan(config)
    _, node = benches[config[BENCH]]
    deadline = request.deadline.here()
    window = window_of(request.seconds_of(plan), deadline, request.guard_s)
    built = submit_build(plan, facts, window)
    measured = evaluate_on(beside(benches, node), node, plan, built, window)
    try:
        found = Evaluation.model_validate(ray.get(measured, timeout=max(1.0, deadline - clock.now())))
    except GetTimeoutError:
        for task in (built, measured):
            ray.cancel(task, force=True)
        found = Evaluation(candidate=failed(plan, "skipped", "the budget ended while it was being measured; give a larger --budget"))
    except RayError as error:
        reason = f"Its node or worker was lost ({type(error).__name__}); run `genopt resume` to try it again."
        found = Evaluation(candidate=failed(plan, "failed", reason), again="now")
    values = values_of(found.candidate, request.baseline, request.spec.objective) or (math.nan,) * len(VALUES)
    rest = {LOST: found.again == "now", "seconds": found.seconds, "evaluation": found.model_dump_json()}
    tune.report({**dict(zip(VALUES, values, strict=True)), **rest})
