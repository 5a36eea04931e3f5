"""Where `torch.compile` would have to leave its graph in a decode step, and why. Nothing is compiled: Dynamo only traces."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from traceback import FrameSummary
from typing import Any

import torch
import torch._dynamo
from torch import nn
from transformers import StaticCache

from genopt.engines.torch_step import step_cache
from genopt.errors import InfeasibleError
from genopt.models.decoder import decoder_layers
from genopt.profiling.records import GraphBreak, GraphBreaks

PROMPT_TOKENS, CACHE_TOKENS = 4, 32
"""Of the step that is traced; what is captured depends on neither."""
START_S, MODULE_S = 4.0, 0.04
"""Tracing takes about so long, and as much per module, on a slow processor."""
LEAST_LAYERS = 2
"""Layers that are traced at least: what is passed from one to the next belongs to the step."""
REASON_LENGTH = 240
AGAIN_S = 0.5
"""Time after which a tracer that swallowed the end of its time is told again."""


def find_graph_breaks(model: Any, device: torch.device, *, left_s: float) -> GraphBreaks:
    """Traces one decode step on a static cache, as a compiled engine runs it.

    A step that cannot be traced at all gives no count, with the reason.

    Args:
        model: A causal language model of transformers.
        device: Where it is.
        left_s: Seconds left for it; where tracing would take longer it is left out.
    """
    with _first_of_each_kind(model) as what:
        expected_s = START_S + MODULE_S * sum(1 for _ in model.modules())
        if expected_s > left_s:
            short = f"that takes about {expected_s:.0f} s, and {max(0.0, left_s):.0f} s were left; give a larger --budget"
            return GraphBreaks(note=f"not traced: {short}")
        started = time.monotonic()
        try:
            with _limited(left_s):
                found = _trace(model, device)
        except _TooLongError:
            return GraphBreaks(note=f"not found out: tracing was stopped after {left_s:.0f} s; give a larger --budget")
        except Exception as error:  # noqa: BLE001 - a model may fail in any way under a tracer; that is what there is to say
            return GraphBreaks(note=f"not traced: {_first_line(str(error)) or type(error).__name__}")
    breaks = _places((reason.reason, reason.user_stack) for reason in found.break_reasons)
    note = f"one step on a static cache{what}, traced in {time.monotonic() - started:.1f} s"
    return GraphBreaks(count=len(breaks), graphs=found.graph_count, breaks=breaks, note=note)


class _TooLongError(BaseException):
    """Tracing takes too long; the tracer itself catches what is only an Exception."""


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Raises in the main thread when the time is up: breaks in many layers take minutes to trace. Elsewhere it sets no limit."""

    def stop(_number: int, _frame: object) -> None:
        raise _TooLongError

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN_S)
    try:
        yield
    finally:
        while signal.getsignal(signal.SIGALRM) is stop:
            with suppress(_TooLongError):  # it may ring until it is off
                signal.setitimer(signal.ITIMER_REAL, 0)
                signal.signal(signal.SIGALRM, before)


@contextmanager
def _first_of_each_kind(model: Any) -> Iterator[str]:
    """While it is open, the model has no more of its layers than hold every kind of them: equal ones are traced alike, for as long each.

    Yields:
        What was left, as an addition to a sentence; empty where that is everything.
    """
    try:
        name, layers = decoder_layers(model)
    except InfeasibleError:
        yield ""
        return
    kinds = [_kind(model, layer, index) for index, layer in enumerate(layers)]
    kept = max(LEAST_LAYERS, *(kinds.index(kind) + 1 for kind in kinds))
    if kept >= len(layers):
        yield ""
        return
    parent, _, own = name.rpartition(".")
    holder = model.get_submodule(parent)
    setattr(holder, own, layers[:kept])
    try:
        yield f" through the first {kept} of {len(layers)} layers, which have every kind of them"
    finally:
        setattr(holder, own, layers)


def _kind(model: Any, layer: nn.Module, index: int) -> tuple[object, ...]:
    """What makes two layers run the same code: their modules' classes, and what the config calls them."""
    types = getattr(model.config.get_text_config(), "layer_types", None) or ()
    return tuple(type(module) for module in layer.modules()), types[index] if index < len(types) else None


def _trace(model: Any, device: torch.device) -> Any:
    cache = step_cache(model, CACHE_TOKENS)
    model(input_ids=torch.zeros((1, PROMPT_TOKENS), dtype=torch.long, device=device), past_key_values=cache, use_cache=True)
    token = torch.zeros((1, 1), dtype=torch.long, device=device)
    return torch._dynamo.explain(_step)(model, token, torch.full_like(token, PROMPT_TOKENS), cache)


def _step(model: Any, token: torch.Tensor, position: torch.Tensor, cache: StaticCache) -> Any:
    return model(input_ids=token, position_ids=position, past_key_values=cache, use_cache=True).logits


def _places(reasons: Iterable[tuple[str, list[FrameSummary]]]) -> tuple[GraphBreak, ...]:
    """Each place and reason once: Dynamo meets one again in every frame around it."""
    found = dict.fromkeys((*_place(stack), _first_line(reason)) for reason, stack in reasons)
    return tuple(GraphBreak(file=file, line=line, reason=reason) for file, line, reason in found)


def _place(stack: list[FrameSummary]) -> tuple[str, int]:
    """File and line of the innermost frame that is the model's, not torch's."""
    own = Path(torch.__file__).parent
    outside = [frame for frame in stack if not Path(frame.filename).is_relative_to(own)] or stack
    return (_relative(Path(outside[-1].filename)), outside[-1].lineno or 0) if outside else ("unknown", 0)


def _relative(path: Path) -> str:
    """A source file from the folder of its outermost package on; paths of this machine say nothing elsewhere."""
    package = path.parent
    while (package.parent / "__init__.py").is_file():
        package = package.parent
    return path.relative_to(package.parent).as_posix() if (package / "__init__.py").is_file() else path.name


def _first_line(text: str) -> str:
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return line if len(line) <= REASON_LENGTH else f"{line[: REASON_LENGTH - 1]}…"
