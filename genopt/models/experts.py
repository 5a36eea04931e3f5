"""Mixtures of experts, whose matrices transformers keep fused in one tensor per layer, where techniques for single matrices do not find them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from genopt.errors import InfeasibleError
from genopt.models.headers import read_json

COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
"""What architectures call the number of experts of a layer."""


def refuse_experts(folder: Path, technique: str) -> None:
    """Refuses a mixture of experts by its configuration, before it is loaded.

    A model with code of its own may keep experts as it likes; see `genopt.models.matrices.require_most`.

    Raises:
        InfeasibleError: The model has experts.
    """
    config = read_json(folder / "config.json")
    if "auto_map" not in config and any(_counted(part) > 1 for part in (config, *config.values()) if isinstance(part, dict)):
        raise fused(technique)


def fused(technique: str) -> InfeasibleError:
    """Why a technique cannot take a model with such experts, and what can.

    Args:
        technique: Its name.
    """
    return InfeasibleError(
        f"Most of this model's weights are experts, fused into tensors that {technique} does not reach; leave it out with --exclude {technique} and "
        "use what rounds weights while it loads them, such as vLLM with fp8, or give the model as a .gguf file."
    )


def _counted(config: Mapping[str, Any]) -> int:
    return next((value for name in COUNTS if isinstance(value := config.get(name), int)), 0)
