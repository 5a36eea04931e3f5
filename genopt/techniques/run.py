"""The stage that applies one transform; it runs in a process of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from genopt import catalog
from genopt.techniques.base import TransformContext


def run_transform(payload: dict[str, Any], time_limit_s: float) -> dict[str, Any]:
    """Applies the transform that `payload` names to a folder.

    Args:
        payload: `technique`, `source`, `destination`, `params`, and `context` (see `TransformContext`).
        time_limit_s: Time after which the stage is killed.

    Returns:
        `{}`; the result is the filled destination folder.
    """
    transform = catalog.load("techniques", payload["technique"])
    source, destination = Path(payload["source"]), Path(payload["destination"])
    context = TransformContext.model_validate({**payload["context"], "time_limit_s": time_limit_s})
    transform.check(source, payload["params"])
    transform.apply(source, destination, payload["params"], context, _print)
    return {}


def _print(message: str) -> None:
    print(message, flush=True)
