"""Has the benches of a run measure the references, and goes on without nodes that are somebody else's."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import ray
from ray.exceptions import RayError

from genopt import clock
from genopt.distributed.fanout import TICK_S
from genopt.distributed.measuring import measured, references_on
from genopt.distributed.parts import Slot, beside
from genopt.distributed.stages import GRACE_S
from genopt.errors import ClusterError, GenoptError, StageCrashedError, StageError, StageTimeoutError, from_wire
from genopt.tasks.base import References

ANSWER_S = 10.0
"""Time for a bench to say whether it has begun."""
QUIET_S = 10.0
"""After so long a wait for a node it is said what is waited for."""


def measure_references(
    slots: Sequence[Slot], deadline: float, *, patience_s: float, tick: Callable[[], None], say: Callable[[str], None]
) -> list[References | GenoptError]:  # fmt: skip
    """The references of each slot, or why there are none.

    Args:
        slots: Benches and where they measure.
        deadline: When they must be measured, on `clock.now`.
        patience_s: How long what a slot needs may be held by something else.
        tick: Called about once a second.
        say: Told what is waited for.
    """
    started = clock.now()
    waiting = {references_on(beside(slots, node), node, deadline, number): number for number, (_, node) in enumerate(slots)}
    found: dict[tuple[str, str], References | GenoptError] = {}
    missing: GenoptError = StageError("Something else held this GPU while the references were measured.")
    idle = set(waiting.values())
    while waiting:
        done, _ = ray.wait(list(waiting), num_returns=1, timeout=TICK_S)
        tick()
        for reference in done:
            node = slots[waiting.pop(reference)][1]
            gpu, answer = _answer(reference, node.gpu)
            found[node.node_id, gpu] = answer
        waited_s = clock.now() - started
        if clock.now() > deadline + 2 * GRACE_S:
            missing = StageTimeoutError("The references were not measured in time; give a larger --budget.")
            _cancel(waiting, range(len(slots)))
        elif idle and waited_s > min(QUIET_S, patience_s) and (idle := _not_begun(slots, waiting.values())):
            say(f"waiting for {len(idle)} of {len(slots)} places that something else holds (see `ray status`)")
            if waited_s > patience_s:
                missing = ClusterError(
                    f"Something else has held the processors or GPUs of a node for {waited_s:.0f} s, so that nothing could be measured there; "
                    "see `ray status` for what runs, and free the node (a deployment ends with `genopt undeploy`) or add another one."
                )
                _cancel(waiting, idle)
    return [found.get((node.node_id, node.gpu), missing) for _, node in slots]


def _answer(reference: ray.ObjectRef[Any], gpu: str) -> tuple[str, References | GenoptError]:
    """The GPU on which a task measured, and what came of it."""
    try:
        answer: dict[str, Any] = ray.get(reference)
    except RayError as error:
        return gpu, StageCrashedError(f"The node or worker of a stage was lost ({type(error).__name__}); go on with `genopt resume`.")
    return (gpu, from_wire(answer["error"])) if "error" in answer else measured(answer)


def _not_begun(slots: Sequence[Slot], numbers: Collection[int]) -> set[int]:
    """Those tasks that no bench has heard of: Ray has not started them."""
    asked = [bench.begun.remote() for bench, _ in slots]
    done, unknown = ray.wait(asked, num_returns=len(asked), timeout=ANSWER_S)
    return set() if unknown else set(numbers) - {_number(answer) for answer in done}


def _number(answer: ray.ObjectRef[int | None]) -> int | None:
    try:
        number: int | None = ray.get(answer)
    except RayError:  # whoever waits for what it measures finds out
        return None
    return number


def _cancel(waiting: dict[ray.ObjectRef[Any], int], numbers: Collection[int]) -> None:
    for reference in [reference for reference, number in waiting.items() if number in numbers]:
        ray.cancel(reference, force=True)
        del waiting[reference]
