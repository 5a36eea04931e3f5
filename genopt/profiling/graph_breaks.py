"""Where `torch.compile` would have to leave its graph in a decode step, and why. Nothing is compiled: Dynamo only traces."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from traceback import FrameSummary
from typing import Any

import torch
import torch._dynamo
from transformers import StaticCache

from genopt.profiling.records import GraphBreak, GraphBreaks

PROMPT_TOKENS, CACHE_TOKENS = 4, 32
"""Of the step that is traced; what is captured depends on neither."""
MODULE_S = 0.04
"""Tracing takes about this many seconds per module of the model, on a slow processor."""
REASON_LENGTH = 240


def find_graph_breaks(model: Any, device: torch.device, *, left_s: float) -> GraphBreaks:
    """Traces one decode step on a static cache, as a compiled engine runs it.

    A step that cannot be traced at all gives no count, with the reason.

    Args:
        model: A causal language model of transformers.
        device: Where it is.
        left_s: Seconds left for it; where tracing would take longer it is left out.
    """
    expected_s = MODULE_S * sum(1 for _ in model.modules())
    if expected_s > left_s:
        return GraphBreaks(note=f"not traced: that takes about {expected_s:.0f} s, and {max(0.0, left_s):.0f} s were left; give a larger --budget")
    started = time.monotonic()
    try:
        cache = StaticCache(config=model.config, max_cache_len=CACHE_TOKENS)
        model(input_ids=torch.zeros((1, PROMPT_TOKENS), dtype=torch.long, device=device), past_key_values=cache, use_cache=True)
        token = torch.zeros((1, 1), dtype=torch.long, device=device)
        found = torch._dynamo.explain(_step)(model, token, torch.full_like(token, PROMPT_TOKENS), cache)
    except Exception as error:  # noqa: BLE001 - a model may fail in any way under a tracer; that is what there is to say
        return GraphBreaks(note=f"not traced: {_first_line(str(error)) or type(error).__name__}")
    breaks = _places((reason.reason, reason.user_stack) for reason in found.break_reasons)
    note = f"one step on a static cache, traced in {time.monotonic() - started:.1f} s"
    return GraphBreaks(count=len(breaks), graphs=found.graph_count, breaks=breaks, note=note)


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
