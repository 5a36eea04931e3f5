"""Stages that a run needs once, on its first node."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from genopt import clock
from genopt.clock import Moment
from genopt.distributed import stages
from genopt.distributed.cluster import Node
from genopt.distributed.fanout import TICK_S
from genopt.errors import StageCrashedError, StageTimeoutError, from_wire


class FirstNode:
    """Runs stages one after the other, and waits for others.

    Args:
        node: The run's first one.
        logs: Folder that gets a log per stage.
        tick: Called about once a second while something is waited for.
        variables: Environment variables of stages.
    """

    def __init__(self, node: Node, logs: Path, tick: Callable[[], None], variables: Mapping[str, str]) -> None:
        self.node = node
        self._variables = dict(variables)
        self._logs = logs
        self._tick = tick

    @property
    def threads(self) -> int:
        """Threads of a stage that has the node to itself."""
        return max(1, int(self.node.cpus))

    @property
    def gpus(self) -> float:
        """GPUs that a stage takes which gains from one."""
        return min(1.0, self.node.gpus)

    def run(self, kind: str, payload: dict[str, Any], deadline: float, cpus: float, gpus: float = 0.0) -> dict[str, Any]:
        """Runs a stage to its end and returns its result.

        Args:
            kind: A key of `genopt.worker.STAGES`.
            payload: JSON values for the stage.
            deadline: When it must have ended, on `clock.now`.
            cpus: Processors that it takes.
            gpus: GPUs that it takes.

        Raises:
            GenoptError: As `wait`.
        """
        log, wire = str(self._logs / f"{kind}.log"), Moment.of(deadline).model_dump(mode="json")
        options = stages.run_stage_task.options(num_cpus=cpus, num_gpus=gpus, scheduling_strategy=stages.on_node(self.node))
        found: dict[str, Any] = self.wait(options.remote(kind, payload, log, wire, self.threads, self._variables), deadline)["result"]
        return found

    def wait(self, reference: ray.ObjectRef[Any], deadline: float) -> dict[str, Any]:
        """Waits for a stage's answer; Ctrl-C gets through. What is stopped at its deadline may say so, but not for long.

        Args:
            reference: A task that answers `{"error"}` or something else.
            deadline: When it must have ended, on `clock.now`.

        Raises:
            StageTimeoutError: It did not end in time.
            StageCrashedError: Its node or worker was lost.
            GenoptError: What the stage itself raised.
        """
        while not ray.wait([reference], timeout=TICK_S)[0]:
            self._tick()
            if clock.now() > deadline + 2 * stages.GRACE_S:
                ray.cancel(reference, force=True)
                raise StageTimeoutError("A stage did not end in time and was stopped; see `ray status`, or give a larger --budget.")
        try:
            answer: dict[str, Any] = ray.get(reference)
        except RayError as error:
            raise StageCrashedError(f"The node or worker of a stage was lost ({type(error).__name__}); go on with `genopt resume`.") from None
        if "error" in answer:
            raise from_wire(answer["error"])
        return answer
