"""How long a candidate will take, learned from those that ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from types import MappingProxyType

from genopt import catalog
from genopt.plan import Plan, Record
from genopt.search.predict import engine_of, runtime_of

UNKNOWN_S = 45.0
"""Assumed for the first candidate of an engine, besides loading, where the references do not tell."""
CALIBRATION_S = 30.0
"""Assumed for a step that rounds with the help of calibration text."""
QUANTIZATION = 40
"""Phase from which on steps round; see `genopt.techniques.base.Transform`."""


class Forecast(Record):
    """What a run expects of one candidate.

    Attributes:
        name: The candidate.
        engine: Its engine.
        techniques: Its transforms in order.
        expected_s: Seconds before anything was measured, or None where it is ruled out.
        disk_bytes: Upper bound of what it adds to the store.
        reason: Why it is ruled out, or an empty text.
    """

    name: str
    engine: str
    techniques: tuple[str, ...]
    expected_s: float | None
    disk_bytes: int
    reason: str


def expected_s(
    plan: Plan, history: Mapping[str, Sequence[float]] = MappingProxyType({}), load_s: Mapping[str, float] = MappingProxyType({}),
    references_s: float = UNKNOWN_S,
) -> float:  # fmt: skip
    """Expected seconds from build to verdict.

    Time boxes that steps carry (a parameter named `time_s`) are added; they are not part of the history of others. So is what calibration takes.

    Args:
        plan: The candidate.
        history: What finished candidates tell (`own_s`), by what runs them (`genopt.search.predict.runtime_of`). Where none ran with the same
            options, the slowest kind of the same engine bounds what is assumed: pipelines run each candidate with others.
        load_s: Seconds that opening took for a reference, likewise: compiling a step takes longer than all else.
        references_s: Seconds that measuring both references took: no candidate is expected to need more, nor less than half of them, since
            large models take their time in every engine.
    """
    runtime = runtime_of(plan)
    past = history.get(runtime)
    alike = [median(seconds) for other, seconds in history.items() if seconds and engine_of(other) == plan.engine]
    unknown = max(min(UNKNOWN_S, references_s), references_s / 2)
    seconds = median(past) if past else min(unknown, max(alike, default=unknown)) + load_s.get(runtime, 0.0)
    return seconds + _time_boxes_s(plan) + _calibration_s(plan)


def own_s(plan: Plan, seconds: float) -> float:
    """What a finished candidate tells of others: its seconds without those that `expected_s` adds for its steps.

    How long calibration takes is a guess, so no more than half of the seconds are put down to it: too few would be expected of the others.

    Args:
        plan: The candidate.
        seconds: What it took from build to verdict.
    """
    unboxed = max(1.0, seconds - _time_boxes_s(plan))
    return max(unboxed - _calibration_s(plan), unboxed / 2)


def _calibration_s(plan: Plan) -> float:
    return CALIBRATION_S * sum(_calibrates(step.technique) for step in plan.steps)


def _time_boxes_s(plan: Plan) -> float:
    """Seconds that a plan's time-boxed steps use."""
    boxes = [step.params.get("time_s") for step in plan.steps]
    return float(sum(box for box in boxes if isinstance(box, int | float)))


def _calibrates(technique: str) -> bool:
    """Whether a technique rounds with the help of calibration text; what leaves layers out reads little of it."""
    found = catalog.load("techniques", technique)
    return bool(found.needs_calibration and found.phase >= QUANTIZATION)
