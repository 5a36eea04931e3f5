"""Trains on all GPUs that a stage sees: one process for each, with gradients averaged, so that a step takes as many sequences.

The processes meet in a file and talk over the loopback interface or the GPUs' own links; one that dies ends all of them.
"""

from __future__ import annotations

import os
import pickle
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genopt.errors import StageCrashedError
from genopt.techniques.base import Progress

if TYPE_CHECKING:
    from torch.nn import Module

PATIENCE_S = 120.0
"""A process that waits longer for the others gives up, where none is known to do anything long by itself."""


@dataclass(frozen=True)
class Team:
    """The processes that train together, as one of them sees it; by itself where there is one device."""

    rank: int = 0
    size: int = 1

    def heard(self, progress: Progress) -> Progress:
        """What tells progress in the first process, and nothing in the others."""
        return progress if self.rank == 0 else lambda message: None

    def agreed(self, value: float) -> float:
        """The first process's value, on all of them."""
        if self.size == 1:
            return value
        import torch
        import torch.distributed

        device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
        shared = torch.tensor([value], dtype=torch.float64, device=device)
        torch.distributed.broadcast(shared, src=0)
        return float(shared.item())

    def averaging(self, model: Module) -> Callable[[], None]:
        """Averages gradients of `model` from now on, each as soon as it is computed; the result waits until all of them are."""
        if self.size == 1:
            return lambda: None
        import torch.distributed

        under_way: list[Any] = []

        def average(parameter: Any) -> None:
            parameter.grad.div_(self.size)
            under_way.append(torch.distributed.all_reduce(parameter.grad, async_op=True))

        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(average)

        def wait() -> None:
            for work in under_way:
                work.wait()
            under_way.clear()

        return wait


ALONE = Team()


def visible_gpus() -> list[str]:
    """Ids of the GPUs that this process may use; none is touched."""
    import torch

    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return named.split(",")[:count] if named else [str(index) for index in range(count)]


def run(
    train: Callable[..., None], *arguments: Any, gpus: list[str] | None = None, processes: int = 1, patience_s: float = PATIENCE_S
) -> None:  # fmt: skip
    """Calls `train(team, *arguments)` here, or in a process for each of several GPUs.

    Args:
        train: A function of a module.
        arguments: What can be sent to another process.
        gpus: Ids of the GPUs; None for those that are visible.
        processes: How many train together where there is no GPU.
        patience_s: A process that waits longer for the others gives up.

    Raises:
        StageCrashedError: One of the processes failed; the others have ended.
    """
    gpus = visible_gpus() if gpus is None else gpus
    size = len(gpus) or processes
    if size == 1:
        train(ALONE, *arguments)
        return
    from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, spawn

    with tempfile.TemporaryDirectory(prefix="genopt-team-") as folder:
        try:
            spawn(_member, (size, gpus, str(Path(folder) / "meeting"), patience_s, pickle.dumps((train, arguments))), nprocs=size)
        except (ProcessRaisedException, ProcessExitedException) as error:
            cause = str(error).strip().splitlines()[-1]
            raise StageCrashedError(f"One of {size} processes that trained together failed ({cause}); see the stage's log.") from error


def _member(rank: int, size: int, gpus: list[str], meeting: str, patience_s: float, work: bytes) -> None:
    """One of the processes.

    Its work is unpacked once it has its GPU: that imports modules of which some ask CUDA for GPUs (torchao), and all would compute on the first one.
    """
    os.environ.update(GLOO_SOCKET_IFNAME="lo", NCCL_SOCKET_IFNAME="lo")
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[rank]  # before CUDA starts, so that all code finds its GPU as the only one
    train, arguments = pickle.loads(work)  # noqa: S301 - from the process that started this one
    import torch
    import torch.distributed

    if not gpus:
        torch.set_num_threads(max(1, torch.get_num_threads() // size))
    torch.distributed.init_process_group(
        "nccl" if gpus else "gloo", init_method=f"file://{meeting}", rank=rank, world_size=size, timeout=timedelta(seconds=patience_s)
    )
    try:
        train(Team(rank, size), *arguments)
    finally:
        torch.distributed.destroy_process_group()
