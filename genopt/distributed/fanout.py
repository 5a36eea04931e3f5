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
from genopt.plan import Plan
from genopt.tasks.base import Evaluation, failed

ATTEMPTS = 2
"""How often a candidate is tried whose failure is not its own, such as that of a lost node."""
IN_FLIGHT = 2
"""Candidates per bench: one is measured while the next one waits or is built on a node with room."""
TICK_S = 1.0


@dataclass(frozen=True)
class _Flight:
    """A submitted candidate: when it should end (on `clock.now`), on which slot it is measured, and whether its build takes that one's whole node."""

    plan: Plan
    built: ray.ObjectRef[Any]
    ends: float
    slot: Slot
    whole: bool


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
                while waiting and self._has_room():
                    plan = max(waiting, key=self._promise)  # the first of those that promise the same
                    if spreads(plan, self._facts) and not self._idle():
                        break  # what goes on ends first: Ray would not keep a node free for it
                    waiting.remove(plan)
                    if not self._submit(plan, admit_until, deadline):
                        left_out.append(plan)
                if not self._running:
                    # What was left out may fit now that the ones before it have ended sooner than expected.
                    fitting = next((plan for plan in left_out if self._submit(plan, admit_until, deadline)), None)
                    if fitting is None:
                        break
                    left_out.remove(fitting)
                waiting = [*self._collect(), *waiting]
                if clock.now() > deadline:
                    self._stop("the budget ended while it was being measured; give a larger --budget")
        finally:
            self._stop("the run was interrupted")
        return left_out

    def _submit(self, plan: Plan, admit_until: float, deadline: float) -> bool:
        expected = self._estimate(plan)
        tried, whole = self._failed_on.get(plan.identity(), set()), spreads(plan, self._facts)
        slots = self._idle() if whole else self._open()
        _, node = slot = min([one for one in slots if one[1].node_id not in tried] or slots, key=self._free)
        free = self._free(slot)
        ends = free + expected
        if ends > admit_until:
            return False
        window = window_of(expected, deadline, self._guard_s)
        # A second attempt is built where it is measured: what failed may have been the other node's.
        parts = beside(self._slots, node)
        there = node if whole or self._attempts[plan.identity()] else None
        built = submit_build(plan, self._facts, window, there, taken=len(parts) if whole else 1)
        self._running[evaluate_on(parts, node, plan, built, window)] = _Flight(plan, built, ends, slot, whole)
        self._attempts[plan.identity()] += 1
        self._started(plan, expected)
        return True

    def _open(self) -> list[Slot]:
        """Slots of nodes that no build has to itself."""
        builds = {flight.built: flight.slot[1].node_id for flight in self._running.values() if flight.whole}
        _, unfinished = ray.wait(list(builds), num_returns=len(builds), timeout=0) if builds else ([], [])
        taken = {builds[build] for build in unfinished}
        return [slot for slot in self._slots if slot[1].node_id not in taken]

    def _idle(self) -> list[Slot]:
        """Slots of nodes on which nothing goes on."""
        busy = {flight.slot[1].node_id for flight in self._running.values()}
        return [slot for slot in self._slots if slot[1].node_id not in busy]

    def _has_room(self) -> bool:
        slots = self._open()
        nodes = {node.node_id for _, node in slots}
        return sum(flight.slot[1].node_id in nodes for flight in self._running.values()) < IN_FLIGHT * len(slots)

    def _free(self, slot: Slot) -> float:
        """When a slot is expected to have nothing left to do."""
        return max([clock.now(), *(flight.ends for flight in self._running.values() if flight.slot is slot)])

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
                nodes = [stage.node for stage in found.stages[-1:]] or [flight.slot[1].node_id]
                self._failed_on.setdefault(flight.plan.identity(), set()).update(nodes)
            if found.again == "now" and self._attempts[flight.plan.identity()] < ATTEMPTS:
                again.append(flight.plan)
            else:
                self._finished(found)
            if found.again == "now":
                for slot in [one for one in self._slots if one[1].node_id == flight.slot[1].node_id]:
                    self._recover(slot)
        return again

    def _stop(self, reason: str) -> None:
        """Cancels what runs; it counts as skipped, so that `resume` tries it again."""
        for reference, flight in list(self._running.items()):
            ray.cancel(flight.built, force=True)
            ray.cancel(reference, force=True)
            del self._running[reference]
            self._finished(Evaluation(candidate=failed(flight.plan, "skipped", reason)))
