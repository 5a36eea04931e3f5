"""What a user may call a pipeline, and everything that can be wrong with its components."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from genopt.errors import ModelError
from genopt.report.model import ReportedModel
from tests.unit.written_models import found, write_model, write_pipeline, write_safetensors


def test_a_pipeline_that_takes_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="StableDiffusionImg2ImgPipeline"):
        found(write_pipeline(tmp_path / "pipe", "StableDiffusionImg2ImgPipeline"), tmp_path)


def test_a_pipeline_without_a_component_is_refused(tmp_path: Path) -> None:
    folder = write_pipeline(tmp_path / "pipe")
    (folder / "scheduler").rmdir()
    with pytest.raises(ModelError, match="'scheduler'"):
        found(folder, tmp_path)


def test_a_pipeline_with_pickled_weights_is_refused(tmp_path: Path) -> None:
    folder = write_pipeline(tmp_path / "pipe")
    unet = folder / "unet" / "diffusion_pytorch_model.safetensors"
    unet.rename(unet.with_suffix(".bin"))
    with pytest.raises(ModelError, match=r"pickled.* python -c .from diffusers import DiffusionPipeline as M"):
        found(folder, tmp_path)


def test_weights_that_a_components_library_does_not_load_do_not_stand_in_for_pickles(tmp_path: Path) -> None:
    folder = write_pipeline(tmp_path / "pipe")
    encoder = folder / "text_encoder"
    (encoder / "model.safetensors").rename(encoder / "diffusion_pytorch_model.safetensors")
    (encoder / "pytorch_model.bin").write_bytes(b"pickled")
    with pytest.raises(ModelError, match="text_encoder has pickled weights only"):
        found(folder, tmp_path)


def test_components_are_described_and_summed(tmp_path: Path) -> None:
    folder = write_pipeline(tmp_path / "pipe")
    write_safetensors(folder / "text_encoder" / "model.safetensors", {"embed": ("BF16", (2,))})
    model = found(folder, tmp_path)
    unet, text_encoder, scheduler = model.components
    assert (unet.name, unet.architecture, unet.library, unet.dtype, unet.parameters) == ("unet", "UNet", "diffusers", "float32", 9)
    assert (text_encoder.dtype, text_encoder.parameters) == ("bfloat16", 2)
    assert (scheduler.dtype, scheduler.parameters, scheduler.bytes) == ("", 0, 0)
    assert model.parameters == sum(component.parameters for component in model.components)
    assert model.bytes == sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    assert ReportedModel.model_validate(model.model_dump(mode="json")).components == model.components


@pytest.mark.parametrize(
    ("architecture", "denoiser"),
    [
        ("UNet2DConditionModel", "unet"), ("PixArtTransformer2DModel", "transformer"), ("SD3Transformer2DModel", "transformer"),
        ("FluxTransformer2DModel", "transformer"), ("NewlyInventedModel", None),
    ],
)  # fmt: skip
def test_the_denoiser_is_known_by_its_class_whatever_the_pipeline_is_called(architecture: str, denoiser: str | None, tmp_path: Path) -> None:
    model = found(write_pipeline(tmp_path / "pipe", "NewPipeline", denoiser=architecture), tmp_path)
    assert (model.architecture, model.denoiser) == ("NewPipeline", denoiser)
    assert ("options that fit every pipeline" in model.note) == (denoiser is None)


def test_a_language_model_has_neither_components_nor_denoiser(tmp_path: Path) -> None:
    model = found(write_model(tmp_path / "tiny"), tmp_path)
    assert (model.components, model.denoiser) == ((), None)


def test_a_safety_checker_counts_where_there_is_one(tmp_path: Path) -> None:
    folder = write_pipeline(tmp_path / "pipe")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]}))
    with pytest.raises(ModelError, match="'safety_checker'"):
        found(folder, tmp_path)
    (folder / "safety_checker").mkdir()
    write_safetensors(folder / "safety_checker" / "model.safetensors", {"embed": ("F32", (5,))})
    assert found(folder, tmp_path).parameters == 16


def variant_only(unet: Path) -> None:
    weights = unet / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".fp16.safetensors"))


def config_only(unet: Path) -> None:
    (unet / "diffusion_pytorch_model.safetensors").unlink()
    (unet / "config.json").write_text("{}")


def cut_off(unet: Path) -> None:
    weights = unet / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])


def checkpoint_only(unet: Path) -> None:
    (unet / "diffusion_pytorch_model.safetensors").rename(unet / "model.ckpt")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (variant_only, "a variant of its weights only"), (config_only, "no safetensors weights"), (cut_off, "corrupt"),
        (checkpoint_only, "pickled weights only"),
    ],
)  # fmt: skip
def test_bad_weights_of_a_component_are_one_sentence_with_the_remedy(spoil: Callable[[Path], None], says: str, tmp_path: Path) -> None:
    folder = write_pipeline(tmp_path / "pipe")
    spoil(folder / "unet")
    with pytest.raises(ModelError, match=says) as caught:
        found(folder, tmp_path)
    assert str(folder / "unet") in str(caught.value)
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)
