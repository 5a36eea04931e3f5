"""Fans candidates out over the benches: builds and evaluates a few at a time, best first, within a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError

from genopt.distributed.cluster import Node
from genopt.distributed.stages import BuildFacts, evaluate_on, submit_build
from genopt.plan import Plan
from genopt.tasks.base import Evaluation, failed

Slot = tuple[ActorHandle[Any], Node]
"""A bench and the node that it measures on."""
IN_FLIGHT = 2
"""Candidates per bench: one is measured while the next one waits or is built on a node with room."""
TICK_S = 1.0
PATIENCE = 4.0
"""A candidate is stopped after this many times the expected time, so that one that hangs cannot eat the budget."""
LEAST_PATIENCE_S = 120.0


@dataclass(frozen=True)
class _Flight:
    """A submitted candidate: when it should end (Unix time), and on which slot it is measured."""

    plan: Plan
    built: ray.ObjectRef[Any]
    ends: float
    slot: int


class FanOut:
    """Runs plans on benches.

    Args:
        slots: Where candidates are measured.
        facts: What builds need.
        estimate: Expected seconds of a plan.
        promise: What trying a plan is worth; of those that wait, the most promising goes first, and it is asked again each time.
        started: Told the plan and its expected seconds when it is submitted.
        finished: Told the result of each plan.
        tick: Called about once a second.
    """

    def __init__(
        self,
        slots: Sequence[Slot],
        facts: BuildFacts,
        *,
        estimate: Callable[[Plan], float],
        promise: Callable[[Plan], float],
        started: Callable[[Plan, float], None],
        finished: Callable[[Evaluation], None],
        tick: Callable[[], None],
    ) -> None:
        self._slots = slots
        self._facts = facts
        self._estimate, self._promise = estimate, promise
        self._started, self._finished, self._tick = started, finished, tick
        self._running: dict[ray.ObjectRef[Any], _Flight] = {}

    def run(self, plans: Sequence[Plan], admit_until: float, deadline: float) -> list[Plan]:
        """Runs what fits and returns the plans that did not, in order.

        Args:
            plans: Candidates, the first of equally promising ones first.
            admit_until: Unix time by which a candidate must be expected to end to be admitted.
            deadline: Unix time at which running candidates are stopped.
        """
        waiting = list(plans)
        left_out: list[Plan] = []
        try:
            while waiting or self._running or left_out:
                while waiting and len(self._running) < IN_FLIGHT * len(self._slots):
                    plan = max(waiting, key=self._promise)  # the first of those that promise the same
                    waiting.remove(plan)
                    if not self._submit(plan, admit_until, deadline):
                        left_out.append(plan)
                if not self._running:
                    # What was left out may fit now that the ones before it have ended sooner than expected.
                    fitting = next((plan for plan in left_out if self._submit(plan, admit_until, deadline)), None)
                    if fitting is None:
                        break
                    left_out.remove(fitting)
                self._collect()
                if time.time() > deadline + 5:
                    self._stop("the budget ended while it was being measured; give a larger --budget")
        finally:
            self._stop("the run was interrupted")
        return left_out

    def _submit(self, plan: Plan, admit_until: float, deadline: float) -> bool:
        expected = self._estimate(plan)
        now = time.time()
        free = [max([now, *(flight.ends for flight in self._running.values() if flight.slot == index)]) for index in range(len(self._slots))]
        slot = min(range(len(self._slots)), key=lambda index: free[index])
        ends = free[slot] + expected
        if ends > admit_until:
            return False
        bench, node = self._slots[slot]
        limit = min(deadline, free[slot] + max(LEAST_PATIENCE_S, PATIENCE * expected))
        built = submit_build(plan, self._facts, limit)
        self._running[evaluate_on(bench, node, plan, built, limit)] = _Flight(plan, built, ends, slot)
        self._started(plan, expected)
        return True

    def _collect(self) -> None:
        """Waits a moment and hands on what ended."""
        done, _ = ray.wait(list(self._running), num_returns=1, timeout=TICK_S)
        self._tick()
        for reference in done:
            plan = self._running.pop(reference).plan
            try:
                found = Evaluation.model_validate(ray.get(reference))
            except RayError as error:
                reason = f"Its node or worker was lost ({type(error).__name__}); run `genopt resume` to try it again."
                found = Evaluation(candidate=failed(plan, "failed", reason))
            self._finished(found)

    def _stop(self, reason: str) -> None:
        """Cancels what runs; it counts as skipped, so that `resume` tries it again."""
        for reference, flight in list(self._running.items()):
            ray.cancel(flight.built, force=True)
            ray.cancel(reference, force=True)
            del self._running[reference]
            self._finished(Evaluation(candidate=failed(flight.plan, "skipped", reason)))
