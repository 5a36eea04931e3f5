"""Data parallelism in one process: a model is trained on several GPUs, a sequence on each, and their gradients are averaged.

Kernels are queued on one GPU after the other and run side by side. `DistributedDataParallel` would need a process per GPU, and what
stages do not have: ports and a rendezvous.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

Loss = Callable[[PreTrainedModel, PreTrainedModel, list[int]], Tensor]
"""Of a teacher, a student on the same device, and the ids of a sequence."""


def visible_gpus() -> list[torch.device]:
    """The GPUs that this process was given."""
    return [torch.device("cuda", index) for index in range(torch.cuda.device_count())]


class Replicas:
    """A teacher and its student, on several devices.

    Args:
        teacher: On the first device.
        student: Likewise; this is the one that an optimizer changes.
        others: Further devices, each of which gets copies of both.
    """

    def __init__(self, teacher: PreTrainedModel, student: PreTrainedModel, others: Sequence[torch.device]) -> None:
        self._pairs = [(teacher, student), *((_copied(teacher, device), _copied(student, device)) for device in others)]

    def __len__(self) -> int:
        """Sequences of a step."""
        return len(self._pairs)

    def gradients(self, sequences: Sequence[list[int]], loss: Loss) -> float:
        """Gives the first student the mean gradient of the loss on these sequences, one for each device, and returns the mean loss."""
        losses = [loss(teacher, student, ids) for (teacher, student), ids in zip(self._pairs, sequences, strict=True)]
        for each in losses:
            each.backward()
        first, *others = (list(student.parameters()) for _, student in self._pairs)
        for place, parameter in enumerate(first):
            found = [same[place].grad for same in (first, *others)]
            given = [gradient.to(parameter.device, non_blocking=True) for gradient in found if gradient is not None]
            if given:
                parameter.grad = torch.stack(given).sum(0).div_(len(self)) if len(given) > 1 else given[0].div_(len(self))
        return sum(each.item() for each in losses) / len(losses)

    def spread(self) -> None:
        """Gives the other students the first one's weights, and forgets all gradients."""
        (_, first), *others = self._pairs
        with torch.no_grad():
            for _, student in others:
                for parameter, source in zip(student.parameters(), first.parameters(), strict=True):
                    parameter.copy_(source, non_blocking=True)
        for _, student in self._pairs:
            student.zero_grad()


def _copied(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    copied = copy.deepcopy(model)
    nn.Module.to(copied, device)
    return copied
