"""Pipelines on a real GPU: that steps follow one another, and what torchao makes of them, which still make the original's images."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from genopt.engines.diffusers_engine import DiffusersEngine
from genopt.engines.images import ImageRequest
from genopt.plan import JsonValue
from genopt.process import ImageProcess
from genopt.quality.image_difference import ssim
from genopt.techniques.base import TransformContext
from genopt.techniques.diffusers_float8 import PipelineFloat8Dynamic, PipelineFloat8WeightOnly
from genopt.techniques.diffusers_int4 import PipelineInt4WeightOnly
from genopt.techniques.diffusers_int8 import PipelineInt8Dynamic, PipelineInt8WeightOnly
from genopt.testing.contracts import check_technique
from genopt.testing.image_contracts import check_image_engine
from genopt.testing.tiny_pipelines import write_tiny_pixart, write_tiny_sdxl

pytestmark = pytest.mark.gpu

ASKED = ImageRequest(prompt="a digit", seed=3, steps=4)
CASES: list[tuple[Any, dict[str, JsonValue]]] = [
    (PipelineInt8WeightOnly, {}), (PipelineInt8Dynamic, {}), (PipelineFloat8WeightOnly, {}), (PipelineFloat8Dynamic, {}),
    (PipelineFloat8Dynamic, {"components": "all"}), (PipelineInt4WeightOnly, {"group_size": 32}),
    (PipelineInt4WeightOnly, {"group_size": 32, "method": "minmax", "kept": 1}),
]  # fmt: skip


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_pixart(tmp_path_factory.mktemp("pixart"))


def image(folder: Path, options: dict[str, JsonValue], log: Path) -> Any:
    """From a process of its own."""
    with ImageProcess("diffusers", folder, options, log=log, timeout_s=300) as session:
        return session.generate([ASKED])[0].pixels()


@pytest.mark.parametrize(("technique", "params"), CASES)
def test_a_rounded_pipeline_loads_back_and_makes_about_the_same_image(
    pipeline: Path, technique: Any, params: dict[str, JsonValue], tmp_path: Path
) -> None:
    context = TransformContext(original=str(pipeline), calibration=None, seed=0, threads=2, time_limit_s=300)
    folder = check_technique(technique.name, pipeline, params, context, tmp_path)
    expected = image(pipeline, {}, tmp_path / "original.log")
    for name, options in (("eager", {}), ("compiled", {"compile": "denoiser"})):
        found = ssim(expected, image(folder, options, tmp_path / f"{name}.log"))
        print(technique.name, params, name, "SSIM", found)
        assert found > 0.9


@pytest.mark.parametrize("technique", [PipelineInt8Dynamic, PipelineFloat8Dynamic])
def test_tokens_of_zeros_are_rounded_to_zeros(technique: Any, tmp_path: Path) -> None:
    folder = write_tiny_sdxl(tmp_path / "sdxl")  # which reads zeros where it is asked for nothing, as it is besides every prompt
    context = TransformContext(original=str(folder), calibration=None, seed=0, threads=2, time_limit_s=300)
    rounded = check_technique(technique.name, folder, {"least_features": 16}, context, tmp_path)
    assert ssim(image(folder, {}, tmp_path / "original.log"), image(rounded, {}, tmp_path / "rounded.log")) > 0.9


@pytest.mark.parametrize("options", [{}, {"compile": "denoiser", "graphs": True}])
def test_the_engine_keeps_its_contract(options: dict[str, JsonValue], tmp_path: Path) -> None:
    check_image_engine("diffusers", write_tiny_sdxl(tmp_path), options)


def test_no_step_waits_until_the_gpu_has_finished_it(tmp_path: Path) -> None:
    session = DiffusersEngine.open(write_tiny_sdxl(tmp_path), {})

    def waits(steps: int) -> int:
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                session.generate([ASKED.model_copy(update={"steps": steps})], lambda *_: True)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return sum("synchronizing CUDA operation" in str(warning.message) for warning in said)

    assert 0 < waits(4) == waits(9)
    session.close()
