"""Blocks that are left out of a transformer that denoises, and what can tell that they are gone."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from diffusers import PixArtTransformer2DModel

from genopt.engines.diffusers_engine import DiffusersEngine
from genopt.engines.images import ImageRequest
from genopt.errors import InfeasibleError
from genopt.quality.image_difference import ssim
from genopt.techniques.base import TransformContext
from genopt.techniques.diffusers_drop_blocks import DropBlocks
from genopt.testing.tiny_pipelines import write_tiny_pixart, write_tiny_stable_diffusion

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
    with pytest.raises(InfeasibleError, match="has 2 blocks, so 2 cannot"):
        DropBlocks.check(pixart, {"count": 2})
    with pytest.raises(InfeasibleError, match="UNet2DConditionModel cannot say"):
        DropBlocks.check(write_tiny_stable_diffusion(tmp_path / "sd"), {})
