"""Fans out the pass that tells which parts of a model bear fewer bits, within a small share of the budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import ray
from ray.exceptions import RayError

from genopt import clock
from genopt.clock import Moment
from genopt.distributed import stages
from genopt.distributed.cluster import Node
from genopt.distributed.fanout import TICK_S
from genopt.search.budget import Budget
from genopt.search.precision import FAMILIES, Sensitivity, joined
from genopt.store.run_folder import RunFolder

SHARE = 0.05
"""Most of the whole budget that the pass may take."""
LEAST_S = 45.0
"""What starting and trying a few families takes on a small machine; with less the pass is not worth its time."""
TOKENS, MORE_TOKENS, LONG_S = 512, 2_048, 120.0
"""Calibration tokens that are compared, and more of them where there is that much time."""


def allowed_s(total_s: float, left_s: float) -> float:
    """Seconds that the pass may take; 0 where the budget is too short for it.

    Args:
        total_s: The whole budget.
        left_s: What is left of it.
    """
    found = min(SHARE * total_s, left_s / 4)
    return found if found >= LEAST_S else 0.0


def of_run(
    folder: RunFolder,
    budget: Budget,
    kind: str,
    payload: dict[str, Any],
    nodes: Sequence[Node],
    phase: Callable[[str, str], AbstractContextManager[None]],
    tick: Callable[[], None],
    variables: Mapping[str, str],
) -> Sensitivity | None:
    """What an earlier session of a run found, else what a pass finds now; None where there is no time for one, which the journal then says.

    Args:
        folder: The run's folder.
        budget: The run's clock.
        kind: The task's stage.
        payload: As for `measure`.
        nodes: As for `measure`.
        phase: Opens a phase of the run.
        tick: Called about once a second.
        variables: Environment variables of stages.
    """
    earlier = next((event["sensitivity"] for event in folder.events() if event["event"] == "sensitivity"), None)
    if earlier is not None:
        return Sensitivity.model_validate(earlier)
    limit_s = allowed_s(budget.total_s, budget.left_s)
    if not limit_s:
        reason = f"the budget is too short to try the model's parts one by one, which takes {LEAST_S:.0f} s of it or more"
        folder.append("sensitivity_skipped", reason=reason)
        return None
    with phase("sensitivity", "which parts of the model bear fewer bits"):
        found = measure(kind, payload, nodes, lambda number: str(folder.logs / f"sensitivity-{number}.log"), limit_s, tick, variables)
    if found is None or not found.parts:
        folder.append("sensitivity_skipped", reason="no part could be tried in its time; see logs/sensitivity-0.log")
        return None
    folder.append("sensitivity", sensitivity=found.model_dump(mode="json"))
    return found


def measure(
    kind: str, payload: dict[str, Any], nodes: Sequence[Node], log: Callable[[int], str], limit_s: float, tick: Callable[[], None],
    variables: Mapping[str, str],
) -> Sensitivity | None:  # fmt: skip
    """Runs the passes side by side, one per GPU or processor and at most one per family; None where none of them gave anything.

    A share that is lost or too slow costs only itself.

    Args:
        kind: The task's stage.
        payload: Its payload, without the share, tokens and threads.
        nodes: Where stages may run; the first one's machine has the texts.
        log: Path of the log of a share.
        limit_s: Seconds that it may take.
        tick: Called about once a second.
        variables: Environment variables of stages.
    """
    node, until = nodes[0], clock.now() + limit_s
    count = max(1, min(len(FAMILIES), int(node.gpus or node.cpus)))
    threads = max(1, int(node.cpus) // count)
    tokens = MORE_TOKENS if limit_s >= LONG_S else TOKENS
    options = stages.run_stage_task.options(num_cpus=float(threads), num_gpus=min(1.0, node.gpus), scheduling_strategy=stages.on_node(node))
    running = [
        options.remote(
            kind, {**payload, "tokens": tokens, "threads": threads, "share": [number, count]}, log(number),
            Moment.of(until).model_dump(mode="json"), threads, dict(variables),
        ) for number in range(count)
    ]  # fmt: skip
    found: list[Sensitivity] = []
    try:
        while running and clock.now() < until + stages.GRACE_S:
            ended, running = ray.wait(running, num_returns=1, timeout=TICK_S)
            tick()
            found += [answer for reference in ended if (answer := _answer(reference)) is not None]
    finally:
        for reference in running:
            ray.cancel(reference, force=True)
    return joined(found)


def _answer(reference: ray.ObjectRef[Any]) -> Sensitivity | None:
    try:
        answer: dict[str, Any] = ray.get(reference)
    except RayError:
        return None
    return Sensitivity.model_validate(answer["result"]) if "result" in answer else None
