"""Fans candidates out over the benches: builds and evaluates a few at a time, best first, within a deadline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.exceptions import RayError

from genopt import clock
from genopt.distributed.building import BuildFacts, spreads, submit_build
from genopt.distributed.measuring import evaluate_on
from genopt.distributed.parts import Slot, beside
from genopt.distributed.stages import window_of
from genopt.distributed.turns import Turn, next_turn
from genopt.plan import Plan
from genopt.tasks.base import Evaluation, failed

ATTEMPTS = 2
"""How often a candidate is tried whose failure is not its own, such as that of a lost node."""
IN_FLIGHT = 2
"""Candidates per bench: one is measured while the next one waits or is built on a node with room."""
TICK_S = 1.0


@dataclass(frozen=True)
class _Flight:
    """A submitted candidate: its expected time (on `clock.now`), and the slots that its build takes, on the first of which it is measured."""

    plan: Plan
    built: ray.ObjectRef[Any]
    begins: float
    ends: float
    slots: tuple[Slot, ...]


class FanOut:
    """Runs plans on benches.

    Args:
        slots: Where candidates are measured; others may change the list.
        facts: What builds need.
        estimate: Expected seconds of a plan.
        promise: What trying a plan is worth; of those that wait, the most promising goes first, and it is asked again each time.
        started: Told the plan and its expected seconds when it is submitted.
        finished: Told the result of each plan.
        tick: Called about once a second.
        recover: Told the slot on which something was lost.
        guard_s: Seconds before the deadline in which nothing starts that cannot finish.
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
        recover: Callable[[Slot], None],
        guard_s: float,
    ) -> None:
        self._slots = slots
        self._recover, self._guard_s = recover, guard_s
        self._attempts: Counter[str] = Counter()
        self._failed_on: dict[str, set[str]] = {}
        self._facts = facts
        self._estimate, self._promise = estimate, promise
        self._started, self._finished, self._tick = started, finished, tick
        self._running: dict[ray.ObjectRef[Any], _Flight] = {}

    def run(self, plans: Sequence[Plan], admit_until: float, deadline: float) -> list[Plan]:
        """Runs what fits and returns the plans that did not, in order.

        Args:
            plans: Candidates, the first of equally promising ones first.
            admit_until: When a candidate must be expected to end to be admitted, on `clock.now`.
            deadline: When running candidates are stopped, likewise.
        """
        waiting = list(plans)
        try:
            while waiting or self._running:
                while fitting := self._fitting(waiting, admit_until):
                    turn = self._next(fitting, admit_until)
                    waiting.remove(turn.plan)
                    self._submit(turn, admit_until, deadline)
                if not self._running:
                    break
                waiting = [*self._collect(deadline), *waiting]
                if clock.now() > deadline:
                    self._stop("the budget ended while it was being measured; give a larger --budget")
        finally:
            self._stop("the run was interrupted")
        return waiting

    def _fitting(self, waiting: Sequence[Plan], admit_until: float) -> list[Plan]:
        """What can be submitted now; asked again each time, as the ones before may have ended sooner than expected, and tell of others like them."""
        if len(self._running) >= IN_FLIGHT * len(self._slots):
            return []
        return [plan for plan in waiting if self._free(self._soonest(plan)) + self._estimate(plan) <= admit_until]

    def _next(self, waiting: Sequence[Plan], admit_until: float) -> Turn:
        def gains(plan: Plan) -> bool:
            return spreads(plan, self._facts)

        taken = sum(len(flight.slots) for flight in self._running.values() if gains(flight.plan))
        return next_turn(
            waiting, gains, promise=self._promise, estimate=self._estimate, slots=len(self._slots), taken=taken,
            left_s=admit_until - min(map(self._free, self._slots)),
        )  # fmt: skip

    def _submit(self, turn: Turn, admit_until: float, deadline: float) -> None:
        plan, expected = turn.plan, self._estimate(turn.plan)
        slots = self._chosen(turn, admit_until - expected)
        begins = max(map(self._free, slots))
        window = window_of(expected, deadline, self._guard_s)
        # A second attempt is built where it is measured: what failed may have been the other node's.
        _, node = slots[0]
        there = node if len(slots) > 1 or self._attempts[plan.identity()] else None
        built = submit_build(plan, self._facts, window, there, taken=len(slots))
        self._running[evaluate_on(beside(self._slots, node), node, plan, built, window)] = _Flight(plan, built, begins, begins + expected, slots)
        self._attempts[plan.identity()] += 1
        self._started(plan, expected)

    def _chosen(self, turn: Turn, latest: float) -> tuple[Slot, ...]:
        """The slot that is free soonest; where a build gains from several, also others of its node that are free in time."""
        first = self._soonest(turn.plan)
        if not spreads(turn.plan, self._facts):
            return (first,)
        others = [slot for slot in self._slots if slot[1].node_id == first[1].node_id and slot is not first and self._free(slot) <= latest]
        return (first, *sorted(others, key=self._free)[: turn.share - 1])

    def _soonest(self, plan: Plan) -> Slot:
        """The slot that is free soonest, on a node where the plan has not failed if there is one."""
        tried = self._failed_on.get(plan.identity(), set())
        # What takes longer than expected should end any moment, but a slot with nothing to do is free already.
        return min(
            [slot for slot in self._slots if slot[1].node_id not in tried] or self._slots,
            key=lambda slot: (self._free(slot), sum(slot in flight.slots for flight in self._running.values())),
        )  # fmt: skip

    def _free(self, slot: Slot) -> float:
        """When a slot is expected to have nothing left to do."""
        return max([clock.now(), *(flight.ends for flight in self._running.values() if slot in flight.slots)])

    def _collect(self, deadline: float) -> list[Plan]:
        """Waits until something ends, or the deadline passes, and hands on what ended; returns what is worth another attempt."""
        done: list[ray.ObjectRef[Any]] = []
        while not done and clock.now() <= deadline:
            done, _ = ray.wait(list(self._running), num_returns=1, timeout=TICK_S)
            self._tick()
        again = []
        for reference in done:
            flight = self._running.pop(reference)
            try:
                found = Evaluation.model_validate(ray.get(reference))
            except RayError as error:
                reason = f"Its node or worker was lost ({type(error).__name__}); run `genopt resume` to try it again."
                found = Evaluation(candidate=failed(flight.plan, "failed", reason), again="now")
            if found.again == "now":
                nodes = [stage.node for stage in found.stages[-1:]] or [flight.slots[0][1].node_id]
                self._failed_on.setdefault(flight.plan.identity(), set()).update(nodes)
            if found.again == "now" and self._attempts[flight.plan.identity()] < ATTEMPTS:
                again.append(flight.plan)
            else:
                self._finished(found)
            if found.again == "now":
                for slot in [one for one in self._slots if one[1].node_id == flight.slots[0][1].node_id]:
                    self._recover(slot)
        self._expect_anew()
        return again

    def _expect_anew(self) -> None:
        """Tells when those that run should end by what is known now: the ones before them have ended, and tell of others like them."""
        before: list[_Flight] = []
        for reference, flight in self._running.items():
            ahead = [one.ends for one in before if any(slot in one.slots for slot in flight.slots)]
            begins = max(clock.now(), *ahead) if ahead else min(clock.now(), flight.begins)
            before.append(replace(flight, begins=begins, ends=begins + self._estimate(flight.plan)))
            self._running[reference] = before[-1]

    def _stop(self, reason: str) -> None:
        """Cancels what runs; it counts as skipped, so that `resume` tries it again."""
        for reference, flight in list(self._running.items()):
            ray.cancel(flight.built, force=True)
            ray.cancel(reference, force=True)
            del self._running[reference]
            self._finished(Evaluation(candidate=failed(flight.plan, "skipped", reason)))
