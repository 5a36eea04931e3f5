"""Fans candidates out over the benches: builds and evaluates a few at a time, best first, within a deadline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
    """A submitted candidate: when it should end (on `clock.now`), and the slots that its build takes, on the first of which it is measured."""

    plan: Plan
    built: ray.ObjectRef[Any]
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
        left_out: list[Plan] = []
        try:
            while waiting or self._running or left_out:
                while waiting and len(self._running) < IN_FLIGHT * len(self._slots):
                    turn = self._next(waiting, admit_until)
                    waiting.remove(turn.plan)
                    if not self._submit(turn, admit_until, deadline):
                        left_out.append(turn.plan)
                if not self._running:
                    # What was left out may fit now that the ones before it have ended sooner than expected; nothing else needs a GPU then.
                    fitting = next((plan for plan in left_out if self._submit(Turn(plan, len(self._slots)), admit_until, deadline)), None)
                    if fitting is None:
                        break
                    left_out.remove(fitting)
                waiting = [*self._collect(), *waiting]
                if clock.now() > deadline:
                    self._stop("the budget ended while it was being measured; give a larger --budget")
        finally:
            self._stop("the run was interrupted")
        return left_out

    def _next(self, waiting: Sequence[Plan], admit_until: float) -> Turn:
        def gains(plan: Plan) -> bool:
            return spreads(plan, self._facts)

        taken = sum(len(flight.slots) for flight in self._running.values() if gains(flight.plan))
        return next_turn(
            waiting, gains, promise=self._promise, estimate=self._estimate, slots=len(self._slots), taken=taken,
            left_s=admit_until - min(map(self._free, self._slots)),
        )  # fmt: skip

    def _submit(self, turn: Turn, admit_until: float, deadline: float) -> bool:
        plan, expected = turn.plan, self._estimate(turn.plan)
        slots = self._chosen(plan, turn.share)
        ends = max(map(self._free, slots)) + expected
        if ends > admit_until:
            return False
        window = window_of(expected, deadline, self._guard_s)
        # A second attempt is built where it is measured: what failed may have been the other node's.
        _, node = slots[0]
        there = node if len(slots) > 1 or self._attempts[plan.identity()] else None
        built = submit_build(plan, self._facts, window, there, taken=len(slots))
        self._running[evaluate_on(beside(self._slots, node), node, plan, built, window)] = _Flight(plan, built, ends, slots)
        self._attempts[plan.identity()] += 1
        self._started(plan, expected)
        return True

    def _chosen(self, plan: Plan, share: int) -> tuple[Slot, ...]:
        """The slots that are free soonest: one, or so many of its node where a build gains from them."""
        tried = self._failed_on.get(plan.identity(), set())
        first = min([slot for slot in self._slots if slot[1].node_id not in tried] or self._slots, key=self._free)
        if not spreads(plan, self._facts):
            return (first,)
        others = sorted((slot for slot in self._slots if slot[1].node_id == first[1].node_id and slot is not first), key=self._free)
        return (first, *others[: share - 1])

    def _free(self, slot: Slot) -> float:
        """When a slot is expected to have nothing left to do."""
        return max([clock.now(), *(flight.ends for flight in self._running.values() if slot in flight.slots)])

    def _collect(self) -> list[Plan]:
        """Waits a moment and hands on what ended; returns what is worth another attempt."""
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
        return again

    def _stop(self, reason: str) -> None:
        """Cancels what runs; it counts as skipped, so that `resume` tries it again."""
        for reference, flight in list(self._running.items()):
            ray.cancel(flight.built, force=True)
            ray.cancel(reference, force=True)
            del self._running[reference]
            self._finished(Evaluation(candidate=failed(flight.plan, "skipped", reason)))
