"""Marks a model's families in a trace, and reads from it how long each of them took."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch._C._profiler import _RecordFunctionFast  # the public one costs ten times as much, 6 ms per token of a small model
from torch.profiler import ProfilerActivity, profile

from genopt.profiling.causes import PYTHON, Cell, Place
from genopt.profiling.families import FRAMEWORK, PREFIX


@contextmanager
def marked(marks: Sequence[tuple[nn.Module, str]]) -> Iterator[None]:
    """Wraps every call of these modules in a range named after its family while the block runs."""
    open_ranges: list[_RecordFunctionFast] = []

    def begin(family: str) -> Callable[[nn.Module, Any], None]:
        def hook(_module: nn.Module, _arguments: Any) -> None:
            entered = _RecordFunctionFast(PREFIX + family)
            entered.__enter__()
            open_ranges.append(entered)

        return hook

    def end(_module: nn.Module, _arguments: Any, _output: Any) -> None:
        open_ranges.pop().__exit__(None, None, None)

    handles = []
    for module, family in marks:
        handles.append(module.register_forward_pre_hook(begin(family)))
        handles.append(module.register_forward_hook(end, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def profiler(device: torch.device) -> profile:
    """A profiler that is not started yet."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    return profile(activities=activities, acc_events=True)  # PyTorch 2.11 warns of each profile that does not keep what it saw


def read_cells(recorded: profile, device: torch.device, wall_s: float) -> dict[Place, Cell]:
    """What was recorded, by family and operator; what is outside all families is the framework's.

    On a CPU times are those of the calling thread. On a GPU they are times of kernels, and the time in which none runs is Python's.

    Args:
        recorded: A profiler that has stopped.
        device: Where the model ran.
        wall_s: Wall time of what was recorded.
    """
    events = [event for event in (recorded.events() or ()) if event.device_type.name == "CPU" and not event.is_async]
    threads = {event.thread for event in events if event.name.startswith(PREFIX)}
    cells: dict[Place, Cell] = {}
    known: dict[int, str] = {}
    for event in events:
        if event.thread not in threads:
            continue
        operator = PYTHON if event.name.startswith(PREFIX) else event.name
        cell = cells.setdefault((_family(event, known), operator), Cell())
        cell.seconds += (event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total) / 1e6
        cell.events += 1
        cell.launches += len(event.kernels) if device.type == "cuda" else _from_python(event)
    rest = max(0.0, wall_s - sum(cell.seconds for cell in cells.values()))
    cells.setdefault((FRAMEWORK, PYTHON), Cell()).seconds += rest
    return cells


def _from_python(event: Any) -> bool:
    """Whether an event is an operator that Python called, not one inside another."""
    return not event.name.startswith(PREFIX) and (event.cpu_parent is None or event.cpu_parent.name.startswith(PREFIX))


def _family(event: Any, known: dict[int, str]) -> str:
    """The family of the innermost range around an event."""
    path: list[int] = []
    found: str | None = None
    while event is not None and found is None:
        found = known.get(id(event))
        if found is None and event.name.startswith(PREFIX):
            found = event.name.removeprefix(PREFIX)
        path.append(id(event))
        event = event.cpu_parent
    family = found or FRAMEWORK
    known.update(dict.fromkeys(path, family))
    return family
