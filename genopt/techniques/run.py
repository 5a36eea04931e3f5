"""The stage that applies one transform; it runs in a process of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from genopt import catalog, clock
from genopt.errors import InfeasibleError
from genopt.plan import JsonValue
from genopt.techniques.base import Transform, TransformContext

QUANTIZED = "quantized"
"""Trait of artifacts whose weights were rounded."""


def run_transform(payload: dict[str, Any], ends: float) -> dict[str, Any]:
    """Applies the transform that `payload` names to a folder.

    Args:
        payload: `technique`, `source`, `destination`, `params`, and `context` (see `TransformContext`).
        ends: When the stage is killed, on `clock.now`.

    Returns:
        `{}`; the result is the filled destination folder.
    """
    transform = catalog.load("techniques", payload["technique"])
    source, destination = Path(payload["source"]), Path(payload["destination"])
    context = TransformContext.model_validate({**payload["context"], "time_limit_s": ends - clock.now()})
    check_transform(transform, source, payload["params"])
    transform.apply(source, destination, payload["params"], context, _print)
    return {}


def check_transform(transform: type[Transform], source: Path, params: dict[str, JsonValue]) -> None:
    """Refuses what would fail or mislead before any work: the technique's own check, and rounding what was rounded before.

    Raises:
        InfeasibleError: The technique cannot take this model, or it came quantized and the technique would round or change it again.
        SpecError: The parameters are wrong.
    """
    method = _quantized_by(source)
    if method is not None and QUANTIZED in transform.excludes:
        raise InfeasibleError(
            f"The model is already quantized ({method}) and {transform.name} needs its weights as they were trained; give the model without that, or "
            "leave such techniques out with --exclude."
        )
    transform.check(source, params)


def _quantized_by(source: Path) -> str | None:
    """The method that a model's folder, or a part of a pipeline's, says its weights were quantized with."""
    configs = [source / "config.json", *(source.glob("*/config.json") if (source / "model_index.json").is_file() else ())]
    for path in configs:
        if path.is_file():
            found = json.loads(path.read_text(encoding="utf-8")).get("quantization_config")
            if found:
                return str(found.get("quant_method", "by its configuration"))
    return None


def _print(message: str) -> None:
    print(message, flush=True)
