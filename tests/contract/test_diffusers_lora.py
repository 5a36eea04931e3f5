"""A LoRA that was given becomes part of a pipeline's weights."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import LCMScheduler, StableDiffusionPipeline

from genopt.engines.diffusers_engine import DiffusersEngine
from genopt.engines.images import ImageRequest
from genopt.errors import DataError, InfeasibleError, SpecError
from genopt.store.artifacts import folder_digest
from genopt.tasks.text_to_image import TextToImage
from genopt.techniques.base import TransformContext
from genopt.techniques.diffusers_lora import Lora
from genopt.testing.tiny_pipelines import write_tiny_lora, write_tiny_pixart, write_tiny_sdxl, write_tiny_stable_diffusion

FILE = "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_stable_diffusion(tmp_path_factory.mktemp("sd"))


@pytest.fixture
def lora(pipeline: Path, tmp_path: Path) -> Path:
    return write_tiny_lora(tmp_path / "lora", pipeline)


def fused(pipeline: Path, lora: Path, result: Path) -> str:
    """The digest under which the LoRA was given."""
    result.mkdir()
    digest = folder_digest(lora)[0]
    context = TransformContext(original=str(pipeline), calibration=None, seed=0, threads=1, time_limit_s=60, given={digest: str(lora)})
    Lora.check(pipeline, {"given": digest})
    Lora.apply(pipeline, result, {"given": digest}, context, lambda _: None)
    return digest


def images(pipe: StableDiffusionPipeline) -> Any:
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    drawn = pipe("a digit", num_inference_steps=4, guidance_scale=1.0, generator=torch.Generator().manual_seed(3), output_type="np")
    return drawn.images


def test_images_are_those_of_a_pipeline_that_diffusers_fused(pipeline: Path, lora: Path, tmp_path: Path) -> None:
    fused(pipeline, lora, tmp_path / "result")
    by_hand = StableDiffusionPipeline.from_pretrained(pipeline)
    by_hand.load_lora_weights(lora, weight_name=FILE)
    by_hand.fuse_lora()
    found = images(StableDiffusionPipeline.from_pretrained(tmp_path / "result"))
    np.testing.assert_allclose(found, images(by_hand), atol=1e-6)
    assert not np.allclose(found, images(StableDiffusionPipeline.from_pretrained(pipeline)), atol=1e-3)
    assert folder_digest(tmp_path / "result" / "text_encoder") == folder_digest(pipeline / "text_encoder"), "what it does not change stays"


def test_the_engine_draws_with_it_in_few_steps(pipeline: Path, lora: Path, tmp_path: Path) -> None:
    digest = fused(pipeline, lora, tmp_path / "result")
    steps = {
        plan.name: plan.options["num_inference_steps"] for plan in TextToImage.catalogue({"lora": digest}, 600.0) if plan.name.startswith("lora")
    }
    assert steps == {"lora-lcm-4-steps": 4, "lora-lcm-8-steps": 8}
    session = DiffusersEngine.open(tmp_path / "result", {"threads": 1})
    assert session.steps == 4
    asked = [ImageRequest(prompt="a digit", seed=seed) for seed in (3, 4)]
    together = [image.pixels() for image in session.generate(asked)]
    assert not np.array_equal(*together)
    alone = session.generate(asked[:1])[0].pixels()
    np.testing.assert_allclose(alone.astype(int), together[0].astype(int), atol=1)  # the noise of each step is a request's own
    (expected,) = images(StableDiffusionPipeline.from_pretrained(tmp_path / "result"))
    np.testing.assert_allclose(alone.astype(int), np.round(255 * expected), atol=1)


def test_one_for_another_family_is_refused(pipeline: Path, lora: Path, tmp_path: Path) -> None:
    with pytest.raises(InfeasibleError, match=r"does not fit StableDiffusionXLPipeline .*; give a LoRA for this model's family\."):
        fused(write_tiny_sdxl(tmp_path / "sdxl"), lora, tmp_path / "of-sdxl")
    with pytest.raises(InfeasibleError, match="PixArtAlphaPipeline takes no LoRA"):
        fused(write_tiny_pixart(tmp_path / "pixart"), lora, tmp_path / "of-pixart")


def test_what_is_no_lora_is_refused(pipeline: Path, lora: Path, tmp_path: Path) -> None:
    with pytest.raises(InfeasibleError, match="give a LoRA for this model's family"):
        fused(pipeline, pipeline / "vae", tmp_path / "vae")
    shutil.copyfile(lora / FILE, lora / "other.safetensors")
    with pytest.raises(InfeasibleError, match=r"2 \.safetensors files"):
        fused(pipeline, lora, tmp_path / "two")


def test_a_lora_that_is_not_at_hand_is_named(pipeline: Path, tmp_path: Path) -> None:
    context = TransformContext(original=str(pipeline), calibration=None, seed=0, threads=1, time_limit_s=60)
    with pytest.raises(DataError, match="000000000000 is not at hand"):
        Lora.apply(pipeline, tmp_path, {"given": "0" * 64}, context, lambda _: None)
    with pytest.raises(SpecError, match="given"):
        Lora.check(pipeline, {"given": "lora"})
