"""A denoiser that is trained for few steps: what is kept of it, and that pipelines say by themselves how they are to be sampled."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from genopt.engines.diffusers_engine import DiffusersEngine
from genopt.engines.images import ImageRequest
from genopt.errors import DataError, InfeasibleError, ModelError
from genopt.models import pipeline_sampling
from genopt.models.pipeline_loading import load_pipeline
from genopt.plan import JsonValue
from genopt.techniques.base import TransformContext
from genopt.techniques.denoising_path import DenoisingPath
from genopt.techniques.diffusers_distill_steps import DistillSteps
from genopt.techniques.diffusers_drop_blocks import DropBlocks
from genopt.techniques.pipeline_files import load_component
from genopt.techniques.step_distillation import few_step_scheduler
from genopt.testing.tiny_pipelines import write_tiny_pixart, write_tiny_sdxl, write_tiny_stable_diffusion

QUICK: dict[str, JsonValue] = {"steps": 2, "substeps": 2, "guidance_scale": 1.0, "trajectories": 8, "batch": 8, "updates": 12, "learning_rate": 1e-3}
Writer = Callable[[Path], Path]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("calibration") / "calibration.parquet"
    pq.write_table(pa.table({"prompt": ["a photo", "a digit", "a photo of a digit"]}), path)
    return path


def distilled(pipeline: Path, prompts: Path, destination: Path, params: dict[str, JsonValue], source: Path | None = None) -> list[str]:
    """Says what happened; where a source is given, it is what is trained, to do what the pipeline does."""
    said: list[str] = []
    context = TransformContext(original=str(pipeline), calibration=str(prompts), seed=0, threads=1, time_limit_s=300)
    destination.mkdir(exist_ok=True)
    DistillSteps.apply(source or pipeline, destination, params, context, said.append)
    return said


@pytest.mark.parametrize("write", [write_tiny_stable_diffusion, write_tiny_sdxl, write_tiny_pixart])
def test_what_came_closer_runs_in_its_steps_without_guidance_and_without_the_original(write: Writer, prompts: Path, tmp_path: Path) -> None:
    pipeline = write(tmp_path / "original")
    said = distilled(pipeline, prompts, tmp_path / "result", QUICK)
    assert pipeline_sampling.read(tmp_path / "result") == pipeline_sampling.Sampling(num_inference_steps=2, guidance_scale=1.0), said[-1]
    session = DiffusersEngine.open(tmp_path / "result", {"threads": 1})
    rows: list[int] = []
    session.denoiser.register_forward_pre_hook(
        lambda _, given, named: rows.append(len(given[0] if given else named["hidden_states"])), with_kwargs=True
    )
    (image,) = session.generate([ImageRequest(prompt="a photo", seed=1)])
    assert (len(image.timestamps_ns), rows) == (2, [1, 1])
    assert len(session.generate([ImageRequest(prompt="a photo", seed=1, steps=3)])[0].timestamps_ns) == 3, "who asks for more gets more"


def test_a_unet_without_its_middle_learns_what_the_whole_one_does(prompts: Path, tmp_path: Path) -> None:
    pipeline, pruned = write_tiny_stable_diffusion(tmp_path / "original"), tmp_path / "pruned"
    unet = load_component(pipeline, "unet")
    for part in (unet.mid_block.resnets[0].conv2, unet.mid_block.attentions[0].proj_out, unet.mid_block.resnets[1].conv2):
        torch.nn.init.zeros_(part.weight)  # so that a few updates are enough
        torch.nn.init.zeros_(part.bias)
    unet.save_pretrained(pipeline / "unet")
    pruned.mkdir()
    context = TransformContext(original=str(pipeline), calibration=str(prompts), seed=0, threads=1, time_limit_s=300)
    DropBlocks.apply(pipeline, pruned, {"prompts": 1, "steps": 2}, context, lambda _: None)
    said = distilled(pipeline, prompts, tmp_path / "result", QUICK, source=pruned)
    assert pipeline_sampling.read(tmp_path / "result").num_inference_steps == 2, said[-1]
    session = DiffusersEngine.open(tmp_path / "result", {"threads": 1})
    assert session.denoiser.mid_block is None
    assert len(session.generate([ImageRequest(prompt="a photo", seed=1)])[0].timestamps_ns) == 2


def test_what_came_no_closer_is_left_as_it_was(prompts: Path, tmp_path: Path) -> None:
    pipeline = write_tiny_stable_diffusion(tmp_path / "original")
    distilled(pipeline, prompts, tmp_path / "result", {**QUICK, "updates": 1, "learning_rate": 1e-9, "guidance_scale": 7.5})
    for kept in ("unet/diffusion_pytorch_model.safetensors", "scheduler/scheduler_config.json"):
        assert (tmp_path / "result" / kept).read_bytes() == (pipeline / kept).read_bytes()
    assert pipeline_sampling.read(tmp_path / "result") == pipeline_sampling.Sampling()


def test_time_ends_training_before_its_updates(prompts: Path, tmp_path: Path) -> None:
    pipeline = write_tiny_stable_diffusion(tmp_path / "original")
    said = distilled(pipeline, prompts, tmp_path / "result", {**QUICK, "updates": 100_000, "time_s": 2.0})
    assert len([line for line in said if line.startswith("update")]) < 1000
    with pytest.raises(InfeasibleError, match="too few images in this time"):
        distilled(pipeline, prompts, tmp_path / "none", {**QUICK, "time_s": 1e-6})


def test_the_path_is_the_one_that_the_scheduler_takes(tmp_path: Path) -> None:
    scheduler = few_step_scheduler(load_pipeline(write_tiny_stable_diffusion(tmp_path)).scheduler)
    path = DenoisingPath(scheduler, steps=4, between=1)
    latents = wanted = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    found = path.travel(latents, lambda latents, timestep: latents * math.cos(timestep), second_order=False)[-1]
    scheduler.set_timesteps(4)
    for timestep in scheduler.timesteps:
        wanted = scheduler.step(wanted * math.cos(timestep), timestep, wanted).prev_sample
    assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_smaller_steps_of_second_order_come_closer_to_the_way_itself(tmp_path: Path) -> None:
    scheduler = few_step_scheduler(load_pipeline(write_tiny_stable_diffusion(tmp_path)).scheduler)

    def predict(latents: Any, timestep: int) -> Any:
        """The noise where images are distributed normally with a standard deviation of 0.5."""
        alpha = float(scheduler.alphas_cumprod[timestep])
        return latents * math.sqrt(1 - alpha) / (0.25 * alpha + 1 - alpha)

    noise = torch.ones(1, 1, 1, 1)
    exact = 0.5 * math.sqrt(0.25 * float(scheduler.final_alpha_cumprod) + 1 - float(scheduler.final_alpha_cumprod)) / 0.5
    errors = [
        abs(float(DenoisingPath(scheduler, 4, between).travel(noise, predict, second_order=second)[-1]) - exact)
        for between, second in ((1, False), (4, False), (4, True))
    ]
    assert errors[0] > errors[1] > errors[2]


def test_too_few_prompts_and_other_pipelines_are_refused(prompts: Path, tmp_path: Path) -> None:
    pipeline = write_tiny_stable_diffusion(tmp_path / "original")
    pq.write_table(pa.table({"prompt": ["a photo"]}), tmp_path / "one.parquet")
    with pytest.raises(DataError, match="too few calibration prompts"):
        distilled(pipeline, tmp_path / "one.parquet", tmp_path / "a", QUICK)
    pq.write_table(pa.table({"prompt": pa.array([], pa.string())}), tmp_path / "none.parquet")
    with pytest.raises(DataError, match="needs calibration prompts"):
        distilled(pipeline, tmp_path / "none.parquet", tmp_path / "b", QUICK)
    index = pipeline / "model_index.json"
    index.write_text(index.read_text(encoding="utf-8").replace("StableDiffusionPipeline", "FluxPipeline"), encoding="utf-8")
    with pytest.raises(InfeasibleError, match="FluxPipeline cannot be distilled"):
        DistillSteps.check(pipeline, {})
    (pipeline / pipeline_sampling.FILE).write_text('{"num_inference_steps": 0}', encoding="utf-8")
    with pytest.raises(ModelError, match="build the artifact again"):
        pipeline_sampling.read(pipeline)
