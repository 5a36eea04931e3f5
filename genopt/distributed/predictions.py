"""What a run expects of its candidates before they are measured, and how it learns from those that were."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from genopt import catalog
from genopt.errors import GenoptError
from genopt.plan import Candidate, Plan, Prediction, plan_of
from genopt.search.footprint import Footprint
from genopt.search.predict import Predictor, interval, promise
from genopt.tasks.base import Task


class Predictions:
    """Predicts a task's pace metric for plans, from the profile of the original and from what was measured.

    Args:
        task: Whose metric is predicted.
        expected_s: Expected wall seconds of a plan from build to verdict.
    """

    def __init__(self, task: Task, expected_s: Callable[[Plan], float]) -> None:
        self._metric, self._expected_s = task.pace_metric, expected_s
        self._original: Footprint | None = None
        self._predictor: Predictor | None = None
        self._baseline: float | None = None
        self.made: dict[str, Prediction] = {}
        """By name of the candidate: what was predicted last, before it was measured."""

    def learn_profile(self, profile: Mapping[str, Any]) -> None:
        """Takes the machine's ceilings and the original's footprint; without them nothing is predicted."""
        if "footprint" in profile:
            self._original = Footprint.model_validate(profile["footprint"])
            ceilings = profile["ceilings"]
            self._predictor = Predictor(ceilings["read_gb_s"], ceilings["matmul_gflop_s"], self._original.layers)

    def learn(self, candidate: Candidate) -> None:
        """Learns from a measured candidate, references included."""
        metric = candidate.metrics.get(self._metric)
        if metric is None:
            return
        if candidate.name == "baseline":
            self._baseline = metric.value
        footprint = self._footprint(plan_of(candidate))
        if self._predictor is not None and footprint is not None:
            self._predictor.observe(plan_of(candidate), footprint, _layer_overhead_s(candidate.engine), metric.value / 1e3)

    def predict(self, plan: Plan) -> Prediction | None:
        """What a plan will come to, as far as is known now; None where nothing is."""
        footprint = self._footprint(plan)
        if self._predictor is None or footprint is None:
            return None
        expected = self._predictor.expect(plan, footprint, _layer_overhead_s(plan.engine))
        low, high = interval(expected)
        value = 1e3 * expected.seconds
        return Prediction(
            metric=self._metric, value=value, unit="ms", ci_low=1e3 * low, ci_high=1e3 * high,
            vs_baseline=self._baseline / value if self._baseline else None, chance=footprint.chance, seconds=self._expected_s(plan),
        )  # fmt: skip

    def promise(self, plan: Plan) -> float:
        """What trying a plan is worth per second; see `genopt.search.predict.promise`."""
        return promise(self.predict(plan))

    def record(self, plan: Plan) -> Prediction | None:
        """Predicts a plan that is about to be measured, to be held against what comes out."""
        found = self.predict(plan)
        if found is not None:
            self.made[plan.name] = found
        return found

    def _footprint(self, plan: Plan) -> Footprint | None:
        """The original's footprint after a plan's steps; None where a technique cannot tell."""
        found = self._original
        try:
            for step in plan.steps:
                found = catalog.load("techniques", step.technique).footprint(found, step.params) if found is not None else None
        except GenoptError:  # parameters that its check will refuse, with the reason
            return None
        return found


def _layer_overhead_s(engine: str) -> float:
    overhead: float = catalog.load("engines", engine).layer_overhead_s
    return overhead
