"""Originals that are tiny, by the trait that models of their kind carry; also a stage, since libraries have much to say while they write one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from genopt.testing.tiny_models import write_tiny_llama
from genopt.testing.tiny_pipelines import write_tiny_stable_diffusion

ORIGINALS = {"hf": write_tiny_llama, "diffusers": write_tiny_stable_diffusion}


def write_original(payload: Mapping[str, Any], _ends: float) -> dict[str, Any]:
    """The stage `tiny_original`.

    Args:
        payload: The `trait`, and the `destination`: a folder that is made.
    """
    ORIGINALS[payload["trait"]](Path(payload["destination"]))
    return {}
