"""The benches of a run, one per measuring node: lost ones are replaced while their node lives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayError

from genopt.distributed.cluster import Node
from genopt.distributed.parts import Slot, parts_of, withhold
from genopt.errors import BudgetError, ClusterError, GenoptError
from genopt.tasks.base import References

ANSWER_S = 10.0
"""A bench that does not say what it does within this time is lost."""
REPLACEMENTS, REPLACEMENTS_OF_PARTS = 2, 1
"""Benches that a node, or a part of one, may lose before it is left out: other parts go on, and each loss costs a candidate an attempt."""


class Benches:
    """Starts benches and keeps the list of those that can measure.

    Args:
        start: Starts the bench of a node.
        measure: Has a bench measure the references on its node and returns them.
    """

    def __init__(self, start: Callable[[Node], ActorHandle[Any]], measure: Callable[[Sequence[Slot]], list[References | GenoptError]]) -> None:
        self._start, self._measure = start, measure
        self._lost: Counter[tuple[str, str]] = Counter()
        self._left_out: dict[tuple[str, str], Node] = {}
        self._holders: dict[tuple[str, str], ActorHandle[Any]] = {}
        self.slots: list[Slot] = []
        """Where candidates can be measured now; others hold this very list."""

    def open(self, nodes: Sequence[Node]) -> References:
        """Starts a bench on every node, or on every part of it, and returns the references of the first that could measure them.

        Raises:
            GenoptError: None of them could, with the first one's reason.
        """
        self.slots[:] = [(self._start(part), part) for node in nodes for part in parts_of(node)]
        found = self._measure(self.slots)
        for slot, answer in list(zip(self.slots, found, strict=True)):
            if isinstance(answer, GenoptError):
                self._drop(slot)
                self._leave_out(slot[1])
        good = [answer for answer in found if isinstance(answer, References)]
        if not good:
            raise next((answer for answer in found if isinstance(answer, GenoptError)), ClusterError("No node can measure; see `ray status`."))
        return good[0]

    def recover(self, slot: Slot) -> None:
        """After something on a slot was lost: keeps the bench if it can measure, else starts another one if its node lives.

        Raises:
            ClusterError: No node is left to measure on.
        """
        for node in self._left_out.values():  # what had such a GPU may have ended
            self._leave_out(node)
        if slot not in self.slots or _can_measure(slot[0]):
            return
        self._drop(slot)
        node = slot[1]
        self._lost[_key(node)] += 1
        if self._lost[_key(node)] > (REPLACEMENTS_OF_PARTS if node.parts else REPLACEMENTS):
            self._leave_out(node)
        elif _is_alive(node):
            successor = (self._start(node), node)
            # Which part of a node a task gets is Ray's choice: a bench of one measures its references before its first candidate.
            if node.parts or isinstance(self._measure([successor])[0], References):
                self.slots.append(successor)
            else:
                ray.kill(successor[0])
        if not self.slots:
            raise ClusterError("The last node that measured was lost; see `ray status`, then go on with `genopt resume`.")

    def states(self, patience_s: float) -> str:
        """What the benches do right now, as far as they answer in time."""
        asked = [bench.state.remote() for bench, _ in self.slots]
        done, _ = ray.wait(asked, num_returns=len(asked), timeout=patience_s) if asked else ([], [])
        return " · ".join(filter(None, map(_state, done)))

    def close(self) -> None:
        """Ends all benches, and with them the processes that they started."""
        for bench, _ in self.slots:
            ray.kill(bench)
        for holder in self._holders.values():
            ray.kill(holder)
        self.slots.clear()
        self._left_out.clear()
        self._holders.clear()

    def _drop(self, slot: Slot) -> None:
        self.slots.remove(slot)
        ray.kill(slot[0])

    def _leave_out(self, node: Node) -> None:
        """Keeps tasks away from the GPU of a part that measures no more; Ray places none on a node that is left out as a whole."""
        if node.parts and _key(node) not in self._holders and _is_alive(node):
            self._left_out[_key(node)] = node
            if (holder := withhold(node)) is not None:
                self._holders[_key(node)] = holder


def _key(node: Node) -> tuple[str, str]:
    return node.node_id, node.gpu


def _state(answer: ray.ObjectRef[str]) -> str:
    try:
        state: str = ray.get(answer)
    except RayError:  # lost; whoever waits for its work finds out
        return ""
    return state


def _can_measure(bench: ActorHandle[Any]) -> bool:
    """Whether it answers, and the original and the baseline are still there."""
    try:
        return bool(ray.get(bench.intact.remote(), timeout=ANSWER_S))
    except (GetTimeoutError, RayError):
        return False


def _is_alive(node: Node) -> bool:
    return any(item["Alive"] and item["NodeID"] == node.node_id for item in ray.nodes())


def budget_error(total_s: float) -> BudgetError:
    """The budget is over and there is nothing to compare with."""
    return BudgetError(
        f"The budget of {total_s:.0f} s ended before the baseline was measured; give a larger --budget, for example --budget {2 * total_s:.0f}s."
    )
