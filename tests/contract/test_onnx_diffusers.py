"""What the environment onnx makes of pipelines: the same images as diffusers, alone and together, with and without guidance."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

from genopt.engines.diffusers_engine import DiffusersEngine
from genopt.engines.images import ImageRequest
from genopt.engines.ort_diffusers import OrtDiffusersEngine
from genopt.errors import InfeasibleError, ModelError, SpecError
from genopt.models import pipeline_sampling
from genopt.process import ImageProcess, run_stage
from genopt.techniques.diffusers_onnx import DiffusersOnnx
from genopt.testing.contracts import runs_here
from genopt.testing.tiny_pipelines import write_tiny_pixart, write_tiny_sdxl, write_tiny_stable_diffusion


def test_what_cannot_be_exported_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(InfeasibleError, match=r"no readable model_index\.json"):
        DiffusersOnnx.check(tmp_path, {})
    with pytest.raises(InfeasibleError, match="does not run PixArtAlphaPipeline; leave diffusers_onnx to"):
        DiffusersOnnx.check(write_tiny_pixart(tmp_path), {})
    with pytest.raises(SpecError, match="weights"):
        DiffusersOnnx.check(tmp_path, {"weights": "int2"})


def test_options_are_checked() -> None:
    OrtDiffusersEngine.check({"threads": 2, "scheduler": "dpmsolver++", "num_inference_steps": 4, "guidance_end": 0.5})
    with pytest.raises(SpecError, match="has no scheduler 'none'; choose one of ddim"):
        OrtDiffusersEngine.check({"scheduler": "none"})
    with pytest.raises(SpecError, match="ort_diffusers"):
        OrtDiffusersEngine.check({"compile": "denoiser"})


if runs_here("engines", "ort_diffusers"):

    def exported(source: Path, destination: Path) -> Path:
        destination.mkdir()
        context = {"original": str(source), "calibration": None, "seed": 0, "threads": 2}
        payload = {"technique": "diffusers_onnx", "source": str(source), "destination": str(destination), "params": {}, "context": context}
        run_stage("transform", payload, log=destination.with_suffix(".log"), timeout_s=300, threads=2, where="onnx")
        return destination

    def write_without_some_layers(folder: Path) -> Path:
        """As diffusers_drop_blocks leaves a UNet."""
        config = json.loads((write_tiny_stable_diffusion(folder) / "unet" / "config.json").read_text(encoding="utf-8"))
        torch.manual_seed(0)
        UNet2DConditionModel.from_config({**config, "layers_per_block": [1, 2], "mid_block_type": None}).save_pretrained(folder / "unet")
        return folder

    @pytest.mark.parametrize("write", [write_without_some_layers, write_tiny_sdxl])
    def test_images_are_those_of_diffusers(write: Callable[[Path], Path], tmp_path: Path) -> None:
        source = write(tmp_path / "pipeline")
        pipeline_sampling.write(source, pipeline_sampling.Sampling(num_inference_steps=3, guidance_scale=1.0))
        original = DiffusersEngine.open(source, {"threads": 2})
        artifact = exported(source, tmp_path / "onnx")
        with ImageProcess("ort_diffusers", artifact, {"threads": 2}, log=tmp_path / "log.txt", timeout_s=120) as session:
            asked = [ImageRequest(prompt="a digit", seed=5)]
            assert len(session.generate(asked)[0].timestamps_ns) == 3, "the export says how it is to be sampled"
            for guidance in (0.0, 5.0):  # unguided steps hand the scheduler the very tensor that the denoiser read
                asked = [ImageRequest(prompt=f"a digit {seed}", seed=seed, steps=4, guidance=guidance) for seed in range(2)]
                for made, expected in zip(session.generate(asked), original.generate(asked), strict=True):
                    np.testing.assert_allclose(made.pixels().astype(int), expected.pixels().astype(int), atol=2)

    def test_a_folder_without_a_pipeline_is_named(tmp_path: Path) -> None:
        with pytest.raises(ModelError, match="export one with the technique diffusers_onnx"):
            ImageProcess("ort_diffusers", tmp_path, {}, log=tmp_path / "log.txt", timeout_s=60).open()

    def test_an_artifact_tells_nothing_of_where_it_was_made(tmp_path: Path) -> None:
        artifact = exported(write_tiny_stable_diffusion(tmp_path / "pipeline"), tmp_path / "onnx")
        assert not (artifact / "vae_encoder").exists()
        for path in artifact.rglob("*.json"):
            assert str(tmp_path) not in path.read_text(encoding="utf-8")
        assert json.loads((artifact / "unet" / "config.json").read_text(encoding="utf-8"))["in_channels"] > 0
