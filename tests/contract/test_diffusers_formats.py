"""What the formats and pruning of diffusers make of tiny random pipelines, beyond the contract of every entry."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from diffusers import StableDiffusionPipeline
from pyarrow import parquet as pq
from safetensors.torch import load_file, save_file

from genopt.errors import InfeasibleError, SpecError
from genopt.models import quantized
from genopt.models.capability import capability
from genopt.quality.image_difference import ssim
from genopt.techniques.base import TransformContext
from genopt.techniques.diffusers_drop_blocks import DropBlocks
from genopt.techniques.diffusers_float8 import PipelineFloat8Dynamic, PipelineFloat8WeightOnly
from genopt.techniques.diffusers_int4 import PipelineInt4Params, PipelineInt4WeightOnly
from genopt.techniques.diffusers_int8 import PipelineInt8Dynamic, PipelineInt8WeightOnly
from genopt.techniques.diffusers_magnitude_prune import DenoiserMagnitudePrune
from genopt.techniques.diffusers_rounding import PipelineRoundingParams
from genopt.testing.tiny_pipelines import (
    write_tiny_pixart,
    write_tiny_sdxl,
    write_tiny_stable_diffusion,
)
from tests.contract.tiny_images import ASKED, opened


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_stable_diffusion(tmp_path_factory.mktemp("sd"))


@pytest.mark.parametrize("technique", [PipelineInt8WeightOnly, PipelineInt8Dynamic])
def test_eight_bits_load_back_smaller_and_close(pipeline: Path, tmp_path: Path, technique: Any) -> None:
    context = TransformContext(original=str(pipeline), calibration=None, seed=0, threads=1, time_limit_s=100)
    technique.apply(pipeline, tmp_path, {"least_features": 16}, context, lambda _: None)
    assert (tmp_path / "unet" / quantized.FILE).stat().st_size < (pipeline / "unet" / "diffusion_pytorch_model.safetensors").stat().st_size
    assert not (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").exists()
    session = opened(tmp_path)
    kinds = {name: type(value).__name__ for name, value in session.denoiser.state_dict().items() if "Int8" in type(value).__name__}
    assert kinds
    assert not any("time_emb" in name for name in kinds), "what tells the time stays as it is"
    assert ssim(opened(pipeline).generate([ASKED])[0].pixels(), session.generate([ASKED])[0].pixels()) > 0.99


@pytest.fixture(scope="session")
def halves(pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("halves")
    StableDiffusionPipeline.from_pretrained(pipeline, dtype=torch.float16).save_pretrained(folder)
    return folder


HALVED: list[tuple[Any, dict[str, Any], float]] = [
    (PipelineInt8WeightOnly, {"least_features": 16}, 0.95), (PipelineInt8Dynamic, {"least_features": 16}, 0.95),
    (DenoiserMagnitudePrune, {}, 1.0), (DropBlocks, {"prompts": 1, "steps": 2}, 0.95),
]  # fmt: skip


@pytest.mark.parametrize(("technique", "params", "share"), HALVED, ids=[technique.name for technique, _, _ in HALVED])
def test_what_is_made_of_float16_without_a_gpu_stays_float16(
    halves: Path, technique: Any, params: dict[str, Any], share: float, tmp_path: Path
) -> None:
    pq.write_table(pa.table({"prompt": ["a digit"]}), tmp_path / "prompts.parquet")
    context = TransformContext(original=str(halves), calibration=str(tmp_path / "prompts.parquet"), seed=0, threads=1, time_limit_s=100)
    technique.apply(halves, tmp_path / "made", params, context, lambda _: None)
    (file,) = (tmp_path / "made" / "unet").glob("*.safetensors")
    whole = load_file(halves / "unet" / "diffusion_pytorch_model.safetensors")
    made = load_file(file)
    assert made["conv_in.weight"].dtype == whole["conv_in.weight"].dtype == torch.float16
    assert sum(map(_bytes, made.values())) <= share * sum(map(_bytes, whole.values()))
    assert opened(tmp_path / "made").generate([ASKED])[0].pixels().std() > 0, "a CPU widens what it computes with"


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def test_a_denoiser_with_tensors_of_its_own_is_rounded_and_loaded_back(tmp_path: Path) -> None:
    original = write_tiny_pixart(tmp_path / "original")
    context = TransformContext(original=str(original), calibration=None, seed=0, threads=1, time_limit_s=100)
    PipelineInt8WeightOnly.apply(original, tmp_path / "result", {"least_features": 16}, context, lambda _: None)
    session = opened(tmp_path / "result")
    kinds = {name: type(value).__name__ for name, value in session.denoiser.state_dict().items()}
    assert any("Int8" in kind for kind in kinds.values())
    assert kinds["scale_shift_table"] == "Tensor"
    assert ssim(opened(original).generate([ASKED])[0].pixels(), session.generate([ASKED])[0].pixels()) > 0.98


@pytest.mark.parametrize("write", [write_tiny_stable_diffusion, write_tiny_sdxl, write_tiny_pixart])
def test_text_encoders_are_rounded_too_where_that_is_asked_for(write: Callable[[Path], Path], tmp_path: Path) -> None:
    original = write(tmp_path / "original")
    context = TransformContext(original=str(original), calibration=None, seed=0, threads=1, time_limit_s=100)
    PipelineInt8WeightOnly.apply(original, tmp_path / "result", {"components": "text_encoders", "least_features": 16}, context, lambda _: None)
    rounded = {path.parent.name for path in (tmp_path / "result").rglob(quantized.FILE)}
    assert rounded == {path.name for path in original.iterdir() if path.name.startswith("text_encoder")}
    session = opened(tmp_path / "result")
    encoder = session.pipeline.text_encoder
    kinds = {name: type(value).__name__ for name, value in encoder.state_dict().items()}
    assert all(
        ("Int8" in kind) == (".layer" in name and "norm" not in name and name.endswith("weight"))
        for name, kind in kinds.items()
        if "bias" not in name
    )
    assert ssim(opened(original).generate([ASKED])[0].pixels(), session.generate([ASKED])[0].pixels()) > 0.98


def test_the_matrices_that_suffer_most_are_kept_where_that_is_asked_for(pipeline: Path, tmp_path: Path) -> None:
    folder, fragile = tmp_path / "original", "mid_block.attentions.0.transformer_blocks.0.attn1.to_v"
    shutil.copytree(pipeline, folder)
    weights = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    weights[f"{fragile}.weight"][:, 0] = 300.0  # the scale of each row has to reach so far, which leaves little for the others
    save_file(weights, folder / "unet" / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    context = TransformContext(original=str(folder), calibration=None, seed=0, threads=1, time_limit_s=100)
    for kept in (0, 1):
        PipelineInt8WeightOnly.apply(folder, tmp_path / str(kept), {"least_features": 16, "kept": kept}, context, lambda _: None)
    none, one = ({name for name, value in opened(tmp_path / kept).denoiser.state_dict().items() if "Int8" in type(value).__name__} for kept in "01")
    assert none - one == {f"{fragile}.weight"}
    assert one < none


@pytest.mark.parametrize("technique", [PipelineInt4WeightOnly, PipelineFloat8WeightOnly, PipelineFloat8Dynamic])
def test_formats_of_gpus_are_refused_without_one_with_the_reason(pipeline: Path, technique: Any) -> None:
    if capability() is None:
        with pytest.raises(InfeasibleError, match="need an NVIDIA GPU and there is none here"):
            technique.check(pipeline, {})
    with pytest.raises(SpecError, match="components"):
        technique.check(pipeline, {"components": "vae"})


def test_formats_leave_out_what_their_products_cannot_take() -> None:
    small, plain = PipelineInt4Params(group_size=64), PipelineRoundingParams()
    assert PipelineInt4WeightOnly.takes("blocks.0.to_q", torch.nn.Linear(128, 72), small)
    assert not PipelineInt4WeightOnly.takes("blocks.0.to_q", torch.nn.Linear(72, 128), small)
    assert PipelineFloat8Dynamic.takes("blocks.0.to_q", torch.nn.Linear(48, 16), plain)
    assert not PipelineFloat8Dynamic.takes("blocks.0.to_q", torch.nn.Linear(48, 24), plain)
    assert PipelineInt8Dynamic.takes("transformer_blocks.0.attn.to_q", torch.nn.Linear(48, 24), plain)
    assert not PipelineInt8Dynamic.takes("transformer_blocks.0.norm1.linear", torch.nn.Linear(48, 24), plain), "it sees one row per image"


def test_where_nothing_is_large_enough_to_round_the_reason_is_given(pipeline: Path, tmp_path: Path) -> None:
    context = TransformContext(original=str(pipeline), calibration=None, seed=0, threads=1, time_limit_s=100)
    with pytest.raises(InfeasibleError, match="no matrix of 4096 features"):
        PipelineInt8WeightOnly.apply(pipeline, tmp_path, {"least_features": 4096}, context, lambda _: None)


def test_the_smallest_weights_become_zero_and_only_those(pipeline: Path, tmp_path: Path) -> None:
    context = TransformContext(original=str(pipeline), calibration=None, seed=0, threads=1, time_limit_s=100)
    DenoiserMagnitudePrune.apply(pipeline, tmp_path, {"sparsity": 0.25}, context, lambda _: None)
    before, after = (opened(folder).denoiser.state_dict() for folder in (pipeline, tmp_path))
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed
    for name in changed:
        zeros = after[name] == 0
        assert float(zeros.float().mean()) == pytest.approx(0.25, abs=0.02)
        assert torch.equal(after[name][~zeros], before[name][~zeros])
    assert "conv_in.weight" not in changed
