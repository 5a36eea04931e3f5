"""What can be left out of denoisers of published shapes, by their configurations alone."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from genopt.techniques.denoiser_blocks import most_removals, objection, removals
from genopt.testing.random_pipelines import SDXL

OLD_SD1: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
}
"""As the first release of Stable Diffusion says it: what diffusers takes by default is not there."""


def ways(config: dict[str, Any]) -> dict[str, int]:
    """How many ways there are to leave out a layer of each level on the way down, and the middle."""
    return dict(Counter(next(iter(removal.places)).removesuffix(".resnets") for removal in removals(config)))


def test_layers_go_where_the_channels_of_what_then_meets_are_the_same() -> None:
    assert ways(OLD_SD1) == {"down_blocks.0": 4, "down_blocks.1": 1, "down_blocks.2": 2, "down_blocks.3": 6, "mid_block": 1}
    assert ways({"_class_name": "UNet2DConditionModel", **SDXL}) == {"down_blocks.0": 4, "down_blocks.1": 1, "down_blocks.2": 2, "mid_block": 1}


def test_a_removal_names_modules_and_the_configuration_afterwards() -> None:
    (only,) = (removal for removal in removals(OLD_SD1) if "down_blocks.1" in removal.name)
    assert only.name == "layer 1 of down_blocks.1 and layer 1 of up_blocks.2"
    assert only.places == {"down_blocks.1.resnets": 1, "down_blocks.1.attentions": 1, "up_blocks.2.resnets": 1, "up_blocks.2.attentions": 1}
    assert only.config == {"layers_per_block": [2, 1, 2, 2]}
    (deepest, *_) = (removal for removal in removals(OLD_SD1) if "down_blocks.3" in removal.name)
    assert set(deepest.places) == {"down_blocks.3.resnets", "up_blocks.0.resnets"}, "levels without attention have none to lose"


def test_every_level_keeps_a_layer_and_every_list_a_block() -> None:
    assert most_removals(OLD_SD1) == 5
    assert most_removals({**OLD_SD1, "layers_per_block": [1, 3, 1, 1], "mid_block_type": None}) == 2
    assert removals({**OLD_SD1, "layers_per_block": [1, 1, 2, 1], "mid_block_type": None})[0].config == {"layers_per_block": 1}
    assert most_removals({"num_layers": 3, "num_single_layers": 2}) == 3


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"_class_name": "UNetMotionModel", "down_block_types": ["DownBlockMotion"]}, "UNetMotionModel cannot say"),
        ({"_class_name": "SD3Transformer2DModel", "num_layers": 4, "dual_attention_layers": [0]}, "named by their places"),
        ({**OLD_SD1, "up_block_types": ["SimpleCrossAttnUpBlock2D"] * 4}, "not alike (SimpleCrossAttnUpBlock2D)"),
        ({**OLD_SD1, "transformer_layers_per_block": [1, [2, 4], 1, 1]}, "several depths"),
    ],
)
def test_denoisers_of_which_nothing_can_go_are_told_apart(config: dict[str, Any], reason: str) -> None:
    assert reason in objection(config)
    assert objection(OLD_SD1) == objection({"_class_name": "FluxTransformer2DModel", "num_layers": 2}) == ""
