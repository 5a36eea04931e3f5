"""Tiny pipelines of every family: they resolve as what they are, load in diffusers, and follow prompt and seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genopt.errors import ModelError
from genopt.models.pipeline_loading import load_pipeline
from genopt.models.resolve import resolve
from genopt.testing.tiny_pipelines import WRITERS

DENOISERS = {
    "stable-diffusion": "unet", "stable-diffusion-xl": "unet", "stable-diffusion-3": "transformer", "flux": "transformer",
    "pixart": "transformer", "dit": "transformer",
}  # fmt: skip
OPTIONS: dict[str, dict[str, Any]] = {"pixart": {"use_resolution_binning": False, "clean_caption": False}, "flux": {"width": 32, "height": 32}}


def test_every_family_has_an_expectation() -> None:
    assert WRITERS.keys() == DENOISERS.keys()


@pytest.mark.parametrize("family", WRITERS)
def test_a_tiny_pipeline_resolves_and_follows_prompt_and_seed(family: str, tmp_path: Path) -> None:
    import torch

    folder = WRITERS[family](tmp_path / family)
    model = resolve(str(folder), cache=tmp_path / "cache", progress=lambda _message: None)
    assert (model.task, model.denoiser, model.dtype) == ("text-to-image", DENOISERS[family], "float32")
    pipeline = load_pipeline(folder)

    def image(prompt: str, seed: int) -> np.ndarray:
        generator = torch.Generator().manual_seed(seed)
        options = OPTIONS.get(family, {})
        return pipeline([prompt], num_inference_steps=2, output_type="np", generator=[generator], **options).images[0]

    first = image("a photo", 0)
    assert first.shape == (32, 32, 3)
    assert first.std() > 0.02
    assert np.array_equal(first, image("a photo", 0))
    assert not np.array_equal(first, image("digit 7", 0))
    assert not np.array_equal(first, image("a photo", 1))


@pytest.mark.parametrize(
    ("component", "weights", "pickle"),
    [("text_encoder", "model", "pytorch_model.bin"), ("unet", "diffusion_pytorch_model", "diffusion_pytorch_model.bin")],
)
def test_no_component_is_read_from_a_pickle(component: str, weights: str, pickle: str, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    folder = WRITERS["stable-diffusion"](tmp_path / "pipeline")
    plain = folder / component / f"{weights}.safetensors"
    torch.save(load_file(plain), folder / component / pickle)
    plain.rename(folder / component / "other.safetensors")
    with pytest.raises(ModelError, match=rf"cannot be loaded \(.*no file named {plain.name}"):
        load_pipeline(folder)


def test_equal_families_have_equal_bytes(tmp_path: Path) -> None:
    first, second = (
        resolve(str(WRITERS["stable-diffusion"](tmp_path / name)), cache=tmp_path / "cache", progress=lambda _message: None) for name in "ab"
    )
    assert first.digest == second.digest


def test_a_clip_tokenizer_reads_words_whole_and_anything_else_in_pieces() -> None:
    from genopt.testing.clip_tokenizer import clip_tokenizer

    tokenizer = clip_tokenizer(["in", "thin", "nine", "a"], context=8)
    assert tokenizer.tokenize("A thin nine in") == ["a</w>", "thin</w>", "nine</w>", "in</w>"]
    assert tokenizer.unk_token not in tokenizer.tokenize("Zürich 7!")
    assert len(tokenizer("a", padding="max_length").input_ids) == 8
