"""A small image to ask for, and how a pipeline is opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from genopt.engines.diffusers_engine import DiffusersEngine
from genopt.engines.diffusers_session import DiffusersSession
from genopt.engines.images import ImageRequest

STEPS = 4
ASKED = ImageRequest(prompt="a digit", seed=3, steps=STEPS)


def opened(folder: Path, **options: Any) -> DiffusersSession:
    return DiffusersEngine.open(folder, {"threads": 1, **options})
