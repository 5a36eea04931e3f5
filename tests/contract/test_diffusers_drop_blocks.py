"""Blocks that are left out of a transformer or a UNet that denoises, and what can tell that they are gone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from diffusers import PixArtTransformer2DModel, UNet2DConditionModel
from torch import nn

from genopt.engines.diffusers_engine import DiffusersEngine
from genopt.engines.images import ImageRequest
from genopt.errors import InfeasibleError
from genopt.quality.image_difference import ssim
from genopt.techniques.base import TransformContext
from genopt.techniques.denoiser_blocks import leave_out, left_out, removals
from genopt.techniques.diffusers_drop_blocks import DropBlocks
from genopt.techniques.pipeline_files import load_component
from genopt.testing.tiny_pipelines import write_tiny_pixart, write_tiny_sdxl, write_tiny_stable_diffusion

ASKED = ImageRequest(prompt="a digit", seed=3, steps=4)


def write_with_idle_blocks(folder: Path, idle: tuple[int, ...]) -> Path:
    """A pipeline with four blocks, of which some add nothing to what they are given."""
    write_tiny_pixart(folder)
    config = json.loads((folder / "transformer" / "config.json").read_text(encoding="utf-8"))
    torch.manual_seed(0)
    transformer = PixArtTransformer2DModel.from_config({**config, "num_layers": 4})
    for place in idle:
        block = transformer.transformer_blocks[place]
        for ending in (block.attn1.to_out[0], block.attn2.to_out[0], block.ff.net[2]):
            torch.nn.init.zeros_(ending.weight)
            torch.nn.init.zeros_(ending.bias)
    transformer.save_pretrained(folder / "transformer")
    return folder


def write_unet(folder: Path, write: Callable[[Path], Path], **options: Any) -> Path:
    """A pipeline whose UNet has layers that can go."""
    write(folder)
    config = json.loads((folder / "unet" / "config.json").read_text(encoding="utf-8"))
    torch.manual_seed(0)
    UNet2DConditionModel.from_config({**config, **options}).save_pretrained(folder / "unet")
    return folder


def make_idle(resnet: nn.Module, attention: nn.Module) -> None:
    """A layer of a UNet that passes on what it is given, without what was handed over."""
    for ending in (resnet.conv2, attention.proj_out):
        nn.init.zeros_(ending.weight)
        nn.init.zeros_(ending.bias)
    if resnet.conv_shortcut is not None:
        nn.init.dirac_(resnet.conv_shortcut.weight)
        nn.init.zeros_(resnet.conv_shortcut.bias)


def asked_of(unet: UNet2DConditionModel) -> dict[str, Any]:
    """One call's arguments."""
    noise = torch.Generator().manual_seed(0)
    given = {"sample": torch.randn(2, 4, 16, 16, generator=noise), "timestep": torch.tensor(500)}
    given["encoder_hidden_states"] = torch.randn(2, 5, unet.config.cross_attention_dim, generator=noise)
    if unet.config.addition_embed_type == "text_time":
        given["added_cond_kwargs"] = {"text_embeds": torch.randn(2, 32, generator=noise), "time_ids": torch.full((2, 6), 16.0)}
    return given


def without_blocks(pipeline: Path, destination: Path, count: int) -> list[str]:
    """Says what happened."""
    prompts = destination.with_suffix(".parquet")
    pq.write_table(pa.table({"prompt": ["a photo"]}), prompts)
    said: list[str] = []
    context = TransformContext(original=str(pipeline), calibration=str(prompts), seed=0, threads=1, time_limit_s=100)
    destination.mkdir()
    DropBlocks.apply(pipeline, destination, {"count": count, "steps": 2}, context, said.append)
    return said


def test_blocks_that_do_nothing_go_first_and_the_images_stay(tmp_path: Path) -> None:
    pipeline = write_with_idle_blocks(tmp_path / "original", idle=(1, 2))
    said = without_blocks(pipeline, tmp_path / "result", 2)
    assert [line for line in said if "leaving out" in line] == [
        "leaving out block 1 of transformer_blocks, without which answers differ by 0.00%"
    ] * 2
    config = json.loads((tmp_path / "result" / "transformer" / "config.json").read_text(encoding="utf-8"))
    assert config["num_layers"] == 2
    session = DiffusersEngine.open(tmp_path / "result", {"threads": 1})
    assert len(session.denoiser.transformer_blocks) == 2
    (before,), (after,) = (DiffusersEngine.open(pipeline, {"threads": 1}).generate([ASKED]), session.generate([ASKED]))
    assert ssim(before.pixels(), after.pixels()) > 0.999


def test_a_block_that_does_something_costs_what_it_did(tmp_path: Path) -> None:
    (said,) = (line for line in without_blocks(write_with_idle_blocks(tmp_path / "original", idle=()), tmp_path / "result", 1) if "leaving" in line)
    assert float(said.rsplit(" ", 1)[1].rstrip("%")) > 0


def test_what_cannot_be_left_out_is_refused_with_the_reason(tmp_path: Path) -> None:
    pixart = write_tiny_pixart(tmp_path / "pixart")
    with pytest.raises(InfeasibleError, match="without 1 of its parts at most, not 2; drop fewer"):
        DropBlocks.check(pixart, {"count": 2})
    with pytest.raises(InfeasibleError, match="without 1 of its parts at most, not 2; drop fewer"):
        DropBlocks.check(write_tiny_stable_diffusion(tmp_path / "sd"), {"count": 2})
    config = tmp_path / "sd" / "unet" / "config.json"
    config.write_text(config.read_text(encoding="utf-8").replace("UNet2DConditionModel", "UNetMotionModel"), encoding="utf-8")
    with pytest.raises(InfeasibleError, match="UNetMotionModel cannot say which of its blocks are gone; leave diffusers_drop_blocks out"):
        DropBlocks.check(tmp_path / "sd", {})


@pytest.mark.parametrize(
    "options",
    [
        {"transformer_layers_per_block": [1, 2, 1]},
        {"layers_per_block": [3, 1, 2], "attention_head_dim": [2, 4, 8], "use_linear_projection": True, "mid_block_type": "UNetMidBlock2D"},
        {"block_out_channels": [16, 16, 32], "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"]},
    ],
)
def test_diffusers_builds_of_the_configuration_what_is_left(options: dict[str, Any]) -> None:
    levels = {"down_block_types": ["CrossAttnDownBlock2D"] * 3, "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"]}
    sizes = {"block_out_channels": [16, 32, 32], "layers_per_block": 2, "norm_num_groups": 8, "cross_attention_dim": 8, "attention_head_dim": 8}
    unet = UNet2DConditionModel(**{**levels, **sizes, **options}).eval()
    whole, asked = unet.state_dict().keys(), asked_of(unet)
    config = json.loads(unet.to_json_string())
    found = removals(config)
    assert len({removal.name for removal in found}) == len(found) >= 5
    for removal in found:
        built = UNet2DConditionModel.from_config({**config, **removal.config}).eval()
        with left_out(unet, removal), torch.inference_mode():
            built.load_state_dict(unet.state_dict())  # neither names nor shapes differ
            assert torch.equal(built(**asked).sample, unet(**asked).sample), removal.name
        assert len(built.state_dict()) < len(whole)
    assert unet.state_dict().keys() == whole


@pytest.mark.parametrize("write", [write_tiny_stable_diffusion, write_tiny_sdxl])
def test_a_unet_without_some_parts_is_saved_as_it_was_judged(write: Callable[[Path], Path], tmp_path: Path) -> None:
    pipeline = write_unet(tmp_path / "original", write, layers_per_block=2, transformer_layers_per_block=[1, 2])
    said = without_blocks(pipeline, tmp_path / "result", 3)
    names = [line.removeprefix("leaving out ").split(",")[0] for line in said if "leaving out" in line]
    before, after = (load_component(folder, "unet") for folder in (pipeline, tmp_path / "result"))
    whole, config = before.num_parameters(), dict(before.config)
    for name in names:
        removal = next(one for one in removals(config) if one.name == name)
        leave_out(before, removal)
        config |= removal.config
    assert not removals(config)
    assert str(tmp_path) not in (tmp_path / "result" / "unet" / "config.json").read_text(encoding="utf-8")
    assert (after.config.layers_per_block, after.config.mid_block_type) == (1, None)
    assert after.num_parameters() == before.num_parameters() < 0.7 * whole
    with torch.inference_mode():
        assert torch.equal(after(**asked_of(after)).sample, before(**asked_of(after)).sample)
    (image,) = DiffusersEngine.open(tmp_path / "result", {"threads": 1, "channels_last": True}).generate([ASKED])
    assert image.pixels().std() > 0


def test_layers_of_a_unet_that_do_nothing_go_first_and_the_images_stay(tmp_path: Path) -> None:
    pipeline = write_unet(tmp_path / "original", write_tiny_stable_diffusion, layers_per_block=2)
    unet = load_component(pipeline, "unet")
    for block in (unet.down_blocks[0], unet.up_blocks[1]):
        make_idle(block.resnets[1], block.attentions[1])
    unet.save_pretrained(pipeline / "unet")
    said = without_blocks(pipeline, tmp_path / "result", 1)
    assert said[-1] == "leaving out layer 1 of down_blocks.0 and layer 1 of up_blocks.1, without which answers differ by 0.00%"
    assert load_component(tmp_path / "result", "unet").config.layers_per_block == [1, 2]
    before, after = (DiffusersEngine.open(folder, {"threads": 1}).generate([ASKED])[0] for folder in (pipeline, tmp_path / "result"))
    assert ssim(before.pixels(), after.pixels()) > 0.999
