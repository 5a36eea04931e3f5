"""What the benchmarks on GPUs open: models with random weights, and what techniques make of them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from genopt import catalog
from genopt.plan import JsonValue
from genopt.techniques.base import TransformContext
from genopt.testing.random_models import LLAMA_SHAPES, provide_random_llama

LIMIT_S = 600.0


def provide_model(folder: Path) -> None:
    """Writes a model of the shape that a folder's name says, unless the folder is there."""
    if not folder.exists():
        assert folder.name in LLAMA_SHAPES, f"{folder} is neither a model nor one of {', '.join(LLAMA_SHAPES)}"
        provide_random_llama(folder, folder.name)


def applied(source: Path, technique: str, params: Mapping[str, JsonValue], target: Path) -> Path:
    """The new folder `target` with what a technique makes of a model or pipeline."""
    loaded, given = catalog.load("techniques", technique), dict(params)
    loaded.check(source, given)
    target.mkdir()
    context = TransformContext(original=str(source), calibration=None, seed=0, threads=8, time_limit_s=LIMIT_S)
    loaded.apply(source, target, given, context, lambda said: print(said, file=sys.stderr, flush=True))
    return target
