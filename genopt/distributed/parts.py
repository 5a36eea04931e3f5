"""Parts of a node with several GPUs, so that it measures on all of them at once.

Each part has one GPU, a share of the processors that no other part's processes run on, and a bench. Ray says which GPU a task has, and so
which part it works on; nothing else uses that GPU meanwhile, as Ray gives each to one task at a time.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from genopt.distributed.cluster import Node

Slot = tuple[ActorHandle[Any], Node]
"""A bench, and the node or part of one that it measures on."""


WITHHOLD_S = 10.0
"""How long a GPU that is to be withheld may be somebody else's."""


class _Holder:
    """Keeps the GPU that Ray gave it from all others, by being there."""

    def gpu(self) -> str:
        """Which one that is."""
        return str(ray.get_gpu_ids()[0])


@ray.remote(num_cpus=0)
def _gpus_task(count: int) -> list[str]:
    """Ids of a node's GPUs, as Ray tells them to tasks that it gives one."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return visible.split(",")[:count] if visible else [str(index) for index in range(count)]


def parts_of(node: Node) -> tuple[Node, ...]:
    """A node with several GPUs in parts that are alike; any other one as it is."""
    count = int(node.gpus)
    if count < 2:
        return (node,)
    strategy = NodeAffinitySchedulingStrategy(node.node_id, soft=False)
    gpus = tuple(ray.get(_gpus_task.options(scheduling_strategy=strategy).remote(count)))
    return tuple(node.model_copy(update={"cpus": node.cpus / count, "gpus": 1.0, "parts": gpus, "gpu": gpu}) for gpu in gpus)


def beside(slots: Sequence[Slot], node: Node) -> dict[str, ActorHandle[Any]]:
    """The benches of a node by their GPUs; of one that has no parts the only one, under an empty name."""
    return {other.gpu: bench for bench, other in slots if other.node_id == node.node_id}


def withhold(node: Node) -> ActorHandle[Any] | None:
    """Keeps the GPU of a part from all tasks for as long as the actor lives: without a bench there, each that Ray gives it could only fail at once.

    Which GPU Ray gives is its own choice, so holders are started until one has it, and the others are ended.

    Returns:
        None where something else keeps the GPU meanwhile.
    """
    holders: list[ActorHandle[Any]] = []
    kept: ActorHandle[Any] | None = None
    holder_class = ray.remote(num_cpus=0, num_gpus=1, max_restarts=0)(_Holder)
    strategy = NodeAffinitySchedulingStrategy(node.node_id, soft=False)
    try:
        while kept is None and len(holders) < len(node.parts):
            holders.append(holder_class.options(scheduling_strategy=strategy).remote())
            if ray.get(holders[-1].gpu.remote(), timeout=WITHHOLD_S) == node.gpu:
                kept = holders.pop()
    except RayError:
        pass
    for holder in holders:
        ray.kill(holder)
    return kept


def given(benches: Collection[str]) -> str:
    """Which of a node's benches belongs to what Ray gave the task that asks."""
    gpus = [str(gpu) for gpu in ray.get_gpu_ids()]
    return gpus[0] if gpus and "" not in benches else ""


def share(gpu: str, gpus: Sequence[str], cpus: Collection[int]) -> frozenset[int]:
    """The processors of a part: neighbours, as many for each."""
    place, ordered = gpus.index(gpu), sorted(cpus)
    return frozenset(ordered[len(ordered) * place // len(gpus) : len(ordered) * (place + 1) // len(gpus)]) or frozenset(ordered)


def stay_in(gpu: str, gpus: Sequence[str]) -> None:
    """Keeps this process, and all that it starts, within a part; does nothing on a node that has none."""
    if gpu:
        os.sched_setaffinity(0, share(gpu, gpus, os.sched_getaffinity(0)))
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu


@contextmanager
def pinned(gpus: Sequence[str]) -> Iterator[None]:
    """Meanwhile what the task that asks starts runs on the processors of the parts whose GPUs Ray gave it."""
    mine, allowed = [gpu for gpu in gpus if gpu in map(str, ray.get_gpu_ids())], os.sched_getaffinity(0)
    if mine:
        os.sched_setaffinity(0, frozenset[int]().union(*(share(gpu, gpus, allowed) for gpu in mine)))
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)
