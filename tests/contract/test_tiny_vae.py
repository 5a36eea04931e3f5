"""A tiny autoencoder that was given takes the place of a pipeline's VAE."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline

from genopt.engines.diffusers_engine import DiffusersEngine
from genopt.engines.images import ImageRequest
from genopt.errors import DataError, InfeasibleError, SpecError
from genopt.store.artifacts import folder_digest
from genopt.techniques.base import TransformContext
from genopt.techniques.diffusers_tiny_vae import TinyVae
from genopt.testing.tiny_pipelines import write_tiny_stable_diffusion, write_tiny_vae


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_stable_diffusion(tmp_path_factory.mktemp("sd"))


def tiny_vae(folder: Path, **options: Any) -> str:
    return folder_digest(write_tiny_vae(folder, **options))[0]


def replace(pipeline: Path, folder: Path, digest: str, result: Path) -> None:
    result.mkdir()
    context = TransformContext(original=str(pipeline), calibration=None, seed=0, threads=1, time_limit_s=60, given={digest: str(folder)})
    TinyVae.check(pipeline, {"given": digest})
    TinyVae.apply(pipeline, result, {"given": digest}, context, lambda _: None)


def images(pipe: StableDiffusionPipeline) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe("a digit", num_inference_steps=2, generator=torch.Generator().manual_seed(3), output_type="np").images


def test_images_come_from_the_given_autoencoder(pipeline: Path, tmp_path: Path) -> None:
    digest = tiny_vae(tmp_path / "vae")
    replace(pipeline, tmp_path / "vae", digest, tmp_path / "result")
    by_hand = StableDiffusionPipeline.from_pretrained(pipeline, vae=AutoencoderTiny.from_pretrained(tmp_path / "vae"))
    found = images(StableDiffusionPipeline.from_pretrained(tmp_path / "result"))
    np.testing.assert_array_equal(found, images(by_hand))
    assert not np.allclose(found, images(StableDiffusionPipeline.from_pretrained(pipeline)))


def test_the_engine_draws_with_it(pipeline: Path, tmp_path: Path) -> None:
    replace(pipeline, tmp_path / "vae", tiny_vae(tmp_path / "vae"), tmp_path / "result")
    asked = ImageRequest(prompt="a digit", seed=3, steps=2)
    mine, theirs = (DiffusersEngine.open(folder, {"threads": 1}).generate([asked])[0].pixels() for folder in (tmp_path / "result", pipeline))
    assert mine.shape == theirs.shape
    assert not np.array_equal(mine, theirs)


@pytest.mark.parametrize(
    ("options", "says"),
    [({"latent_channels": 8}, "8 channels"), ({"scaling_factor": 0.5}, "scaling factor 0.5"),
     ({"num_decoder_blocks": (1,) * 3, "decoder_block_out_channels": (8,) * 3}, "4 times")],
)  # fmt: skip
def test_an_autoencoder_of_other_latents_is_refused(pipeline: Path, tmp_path: Path, options: dict[str, Any], says: str) -> None:
    digest = tiny_vae(tmp_path / "vae", **options)
    with pytest.raises(InfeasibleError, match=says):
        replace(pipeline, tmp_path / "vae", digest, tmp_path / "result")


def test_what_is_no_tiny_autoencoder_is_refused(pipeline: Path, tmp_path: Path) -> None:
    with pytest.raises(InfeasibleError, match="AutoencoderKL"):
        replace(pipeline, pipeline / "vae", "0" * 64, tmp_path / "result")
    with pytest.raises(InfeasibleError, match="save_pretrained"):
        replace(pipeline, tmp_path, "0" * 64, tmp_path / "other")
    with pytest.raises(SpecError, match="given"):
        TinyVae.check(pipeline, {"given": "vae"})


def test_an_autoencoder_that_is_not_at_hand_is_named(pipeline: Path, tmp_path: Path) -> None:
    context = TransformContext(original=str(pipeline), calibration=None, seed=0, threads=1, time_limit_s=60)
    with pytest.raises(DataError, match="000000000000 is not at hand"):
        TinyVae.apply(pipeline, tmp_path, {"given": "0" * 64}, context, lambda _: None)
