"""What the diffusers engine and its techniques do to tiny random pipelines, beyond the contract of every entry."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiTPipeline, EulerDiscreteScheduler
from safetensors.torch import save_file

from genopt.engines.diffusers_engine import DiffusersEngine
from genopt.engines.diffusers_session import DiffusersSession
from genopt.engines.images import ImageRequest
from genopt.errors import DataError, InfeasibleError, ModelError, SpecError, StageError
from genopt.models import quantized
from genopt.profiling.ceiling_cache import CeilingCache
from genopt.profiling.denoising import CONVOLUTIONS
from genopt.profiling.images import profile_pipeline
from genopt.quality.image_difference import ssim
from genopt.tasks.image_data import ImageSet, prepare
from genopt.techniques.base import TransformContext
from genopt.techniques.diffusers_int8 import PipelineInt8WeightOnly
from genopt.techniques.pipeline_files import load_component
from genopt.testing.image_contracts import check_image_engine
from genopt.testing.tiny_pipelines import (
    write_tiny_dit,
    write_tiny_flux,
    write_tiny_pixart,
    write_tiny_sd3,
    write_tiny_sdxl,
    write_tiny_stable_diffusion,
)
from tests.contract.tiny_images import ASKED, STEPS, opened

OF_CLASS_1 = ASKED.model_copy(update={"prompt": "a photo of a digit"})


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_stable_diffusion(tmp_path_factory.mktemp("sd"))


def sizes_of_calls(session: DiffusersSession, request: ImageRequest = ASKED) -> list[int]:
    """How many latents each call of the denoiser got; guided ones come twice."""
    found: list[int] = []

    def note(_: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        found.append(len(arguments[0] if arguments else named["hidden_states"]))

    handle = session.denoiser.register_forward_pre_hook(note, with_kwargs=True)
    session.generate([request])
    handle.remove()
    return found


@pytest.mark.parametrize("write", [write_tiny_stable_diffusion, write_tiny_sdxl, write_tiny_sd3])
def test_guidance_ends_after_its_share_of_the_steps(write: Callable[[Path], Path], tmp_path: Path) -> None:
    session = opened(write(tmp_path), guidance_end=0.5)
    assert sizes_of_calls(session) == [2, 2, 1, 1]
    assert sizes_of_calls(session) == [2, 2, 1, 1], "and begins anew with the next image"
    assert sizes_of_calls(session, ASKED.model_copy(update={"guidance": 0.0})) == [1, 1, 1, 1]


@pytest.fixture(scope="session")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_dit(tmp_path_factory.mktemp("dit"))


def test_classes_without_names_are_asked_for_by_number(classes: Path, tmp_path: Path) -> None:
    shutil.copytree(classes, tmp_path, dirs_exist_ok=True)
    index = json.loads((tmp_path / "model_index.json").read_text())
    (tmp_path / "model_index.json").write_text(json.dumps({name: value for name, value in index.items() if name != "id2label"}))
    session, named = opened(tmp_path), opened(classes)
    (found,), (expected,) = session.generate([ASKED.model_copy(update={"prompt": "1"})]), named.generate([OF_CLASS_1])
    assert found.png == expected.png
    with pytest.raises(SpecError, match=r"of 1000 classes, and '1000' is none of them; ask for one such as '0', '1', '2'"):
        session.generate([ASKED.model_copy(update={"prompt": "1000"})])


@pytest.mark.parametrize("options", [{}, {"scheduler": "euler"}, {"cache": "attention"}, {"vae_slicing": True}, {"attention": "math"}])
def test_images_of_classes_hold_the_contract(classes: Path, options: dict[str, Any]) -> None:
    check_image_engine("diffusers", classes, {"threads": 1, "num_inference_steps": STEPS, **options})


def test_a_class_by_any_of_its_names_is_the_image_that_diffusers_makes(classes: Path) -> None:
    session = opened(classes)
    found = [session.generate([ImageRequest(prompt=name, seed=3, steps=STEPS)])[0].png for name in ("a digit", "a handwritten digit", "a photo")]
    assert found[0] == found[1] != found[2]
    plain = DiTPipeline.from_pretrained(classes)
    (image,) = plain([0], num_inference_steps=STEPS, generator=[torch.Generator().manual_seed(3)]).images
    assert np.array_equal(np.asarray(image), session.generate([ASKED])[0].pixels())
    with pytest.raises(SpecError, match=r"of 12 classes, and 'a cat' is none of them; ask for one such as 'a digit', 'a photo of a digit'"):
        session.generate([ImageRequest(prompt="a cat")])


def test_schedulers_that_scale_step_from_what_was_not_scaled(classes: Path) -> None:
    """The image is the one of a loop that is written down here."""
    session = opened(classes, scheduler="euler")
    (found,) = session.generate([ASKED.model_copy(update={"guidance": 0.0})])
    pipeline = session.pipeline
    scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    scheduler.set_timesteps(STEPS)
    latents = torch.randn((1, 4, 16, 16), generator=torch.Generator().manual_seed(3)) * scheduler.init_noise_sigma
    with torch.inference_mode():
        for timestep in scheduler.timesteps:
            noise = pipeline.transformer(
                scheduler.scale_model_input(latents, timestep), timestep=timestep[None], class_labels=torch.tensor([0])
            ).sample
            latents = scheduler.step(noise[:, :4], timestep, latents).prev_sample
        pixels = (pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)[0].permute(1, 2, 0)
    assert np.abs(found.pixels().astype(float) - 255 * pixels.numpy()).max() < 1


def test_prompts_are_the_classes_where_there_are_classes(classes: Path, tmp_path: Path) -> None:
    data = {"model": str(classes), "eval_data": None, "calib_data": None, "prompts": None, "seed": 0, "destination": str(tmp_path)}
    found = ImageSet.model_validate_json(Path(prepare(data, 60.0)["data"]).read_text())
    assert found.source == "classes of the pipeline"
    assert {prompt for prompt, _ in found.pairs} < {"a digit", "a photo of a digit", "a photo", *(f"digit {number}" for number in range(3, 12))}
    listed = tmp_path / "asked.txt"
    listed.write_text("a cat\n")
    with pytest.raises(DataError, match="'a cat' is none of them"):
        prepare({**data, "eval_data": str(listed)}, 60.0)


@pytest.mark.parametrize("write", [write_tiny_stable_diffusion, write_tiny_sdxl, write_tiny_sd3, write_tiny_flux, write_tiny_pixart, write_tiny_dit])
def test_a_seed_is_the_same_noise_in_every_precision(write: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch 2.11 draws other numbers in bfloat16 than in float32."""
    draw = torch.randn

    def of_an_older_release(*size: Any, dtype: torch.dtype | None = None, **named: Any) -> torch.Tensor:
        values = draw(*size, dtype=dtype, **named)
        return -values if dtype == torch.bfloat16 else values

    monkeypatch.setattr(torch, "randn", of_an_older_release)
    folder = write(tmp_path / "pipeline")
    (single,), (reduced,) = (opened(folder, dtype=dtype).generate([ASKED]) for dtype in ("float32", "bfloat16"))
    assert ssim(single.pixels(), reduced.pixels()) > 0.99


@pytest.mark.parametrize("options", [{}, {"fuse_projections": True}, {"attention": "math"}])
def test_stable_diffusion_3_holds_the_contract(options: dict[str, Any], tmp_path: Path) -> None:
    check_image_engine("diffusers", write_tiny_sd3(tmp_path), {"threads": 1, "num_inference_steps": STEPS, **options})


def test_what_stable_diffusion_3_cannot_do_is_refused(tmp_path: Path) -> None:
    folder = write_tiny_sd3(tmp_path)
    with pytest.raises(InfeasibleError, match="First-Block Cache does not fit SD3Transformer2DModel"):
        opened(folder, cache="first_block")
    with pytest.raises(InfeasibleError, match="does not say which of its blocks repeat"):
        opened(folder, compile="regional")


def test_flux_makes_images_as_it_is_and_in_fewer_bits(tmp_path: Path) -> None:
    source, rounded = write_tiny_flux(tmp_path / "flux"), tmp_path / "rounded"
    rounded.mkdir()
    context = TransformContext(original=str(source), calibration=None, seed=0, threads=1, time_limit_s=60)
    PipelineInt8WeightOnly.apply(source, rounded, {}, context, lambda _: None)
    small = ASKED.model_copy(update={"width": 64, "height": 32})
    (plain, again), (fewer,) = opened(source).generate([small, small]), opened(rounded).generate([small])
    assert plain.png == again.png != fewer.png
    assert plain.pixels().shape == (32, 64, 3)
    assert ssim(plain.pixels(), fewer.pixels()) > 0.99
    (compiled,) = opened(source, compile="regional", fuse_projections=True, num_inference_steps=2).generate([small.model_copy(update={"steps": 2})])
    assert ssim(compiled.pixels(), opened(source).generate([small.model_copy(update={"steps": 2})])[0].pixels()) > 0.99


@pytest.mark.parametrize("kernels", ["math", "flash"])
def test_attention_by_chosen_kernels_makes_the_same_image(pipeline: Path, kernels: str) -> None:
    (plain,), (chosen,) = (opened(pipeline, attention=attention).generate([ASKED]) for attention in (None, kernels))
    assert ssim(plain.pixels(), chosen.pixels()) > 0.999


@pytest.mark.parametrize("options", [{"attention": "cudnn"}, {"attention": "efficient"}, {"graphs": True, "compile": "denoiser"}])
def test_what_only_gpus_do_is_refused_elsewhere(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InfeasibleError, match="need an NVIDIA GPU"):
        DiffusersEngine.check(options)


def test_graphs_replay_what_is_compiled() -> None:
    with pytest.raises(SpecError, match="set compile to 'denoiser'"):
        DiffusersEngine.check({"graphs": True})


def test_what_a_pipeline_cannot_do_is_infeasible_with_the_reason(pipeline: Path, tmp_path: Path) -> None:
    with pytest.raises(InfeasibleError, match="has no projections that diffusers can fuse"):
        opened(write_tiny_dit(tmp_path / "dit"), fuse_projections=True)
    with pytest.raises(InfeasibleError, match=r"takes ddim, pndm"):
        opened(pipeline, scheduler="flow_euler")
    with pytest.raises(InfeasibleError, match="transformer blocks"):
        opened(pipeline, cache="first_block")
    with pytest.raises(InfeasibleError, match="guidance_end"):
        opened(write_tiny_pixart(tmp_path), guidance_end=0.5)


@pytest.mark.parametrize("write", [write_tiny_stable_diffusion, write_tiny_sd3, write_tiny_flux, write_tiny_pixart])
def test_fused_projections_make_the_same_image(write: Callable[[Path], Path], tmp_path: Path) -> None:
    folder, small = write(tmp_path), ASKED.model_copy(update={"width": 32, "height": 32})
    (plain,), (fused,) = (opened(folder, fuse_projections=fuse).generate([small]) for fuse in (False, True))
    assert ssim(plain.pixels(), fused.pixels()) > 0.999


@pytest.mark.parametrize(
    ("options", "says"),
    [({"scheduler": "none"}, "dpmsolver"), ({"num_inference_steps": 0}, "num_inference_steps"), ({"guidance_end": 0}, "guidance_end"),
     ({"cache": "all"}, "cache"), ({"dtype": "int8"}, "dtype")],
)  # fmt: skip
def test_bad_options_are_named(options: dict[str, Any], says: str) -> None:
    with pytest.raises(SpecError, match=says):
        DiffusersEngine.check(options)


def test_first_block_cache_skips_blocks_and_remembers_nothing_of_the_image_before(tmp_path: Path) -> None:
    session = opened(write_tiny_pixart(tmp_path), cache="first_block", cache_threshold=10.0)
    blocks: list[int] = []
    last = session.denoiser.transformer_blocks[-1]
    last.attn1.register_forward_hook(lambda *_: blocks.append(1))
    first = session.generate([ASKED])[0].png
    assert len(blocks) < STEPS, "a threshold that everything is below skips all but the first step"
    assert session.generate([ASKED])[0].png == first


def test_cached_attention_changes_the_image_only_a_little(pipeline: Path) -> None:
    asked = ASKED.model_copy(update={"steps": 12})
    plain, cached = (opened(pipeline, cache=cache).generate([asked])[0].pixels() for cache in ("none", "attention"))
    assert 0.9 < ssim(plain, cached) < 1


def test_an_image_that_is_no_number_is_an_error_and_never_black(pipeline: Path) -> None:
    session = opened(pipeline)
    session.denoiser.conv_out.weight.data.fill_(float("nan"))
    with pytest.raises(StageError, match="NaN"):
        session.generate([ASKED])


@pytest.mark.parametrize("missing", ["vae", "scheduler", "tokenizer"])
def test_a_pipeline_without_a_component_is_named(pipeline: Path, tmp_path: Path, missing: str) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(pipeline, folder)
    shutil.rmtree(folder / missing)
    with pytest.raises(ModelError, match="fetch all of its component folders"):
        opened(folder)


def test_a_file_does_not_choose_which_modules_are_run(pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A downloaded pipeline may come with what `quantized.save` writes, and names libraries in its index too."""
    folder = tmp_path / "given"
    shutil.copytree(pipeline, folder)
    (tmp_path / "chosen_by_a_file.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Net: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    save_file({"weight": torch.zeros(2)}, folder / "unet" / quantized.FILE, metadata={quantized.LIBRARY: '["chosen_by_a_file", "Net"]'})
    with pytest.raises(ModelError, match=r"chosen_by_a_file\.Net is no component of diffusers or transformers"):
        opened(folder)
    (folder / "unet" / quantized.FILE).unlink()
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "unet": ["chosen_by_a_file", "Net"]}))
    with pytest.raises(ModelError, match=r"chosen_by_a_file\.Net is no component"):
        load_component(folder, "unet")
    assert not (tmp_path / "ran").exists()


def test_a_profile_says_which_component_takes_the_time(pipeline: Path, tmp_path: Path) -> None:
    found = profile_pipeline(
        pipeline, prompt="a photo", threads=1, progress=lambda _: None, trace_folder=tmp_path / "trace", cache=CeilingCache(tmp_path / "ceilings")
    )
    assert {item.name for item in found.bottlenecks} >= {"denoiser", "text encoders", "VAE decoder"}
    assert sum(item.share for item in found.bottlenecks) == pytest.approx(1, abs=0.01)
    assert found.bottlenecks[0].name == "denoiser"
    assert found.family_order[0] == "steps"
    (step,) = found.phases
    assert next(family for family in step.families if family.name == CONVOLUTIONS).operations > 0
    assert found.image_ms == pytest.approx(sum(found.component_ms.values()))
    assert (tmp_path / "trace" / "denoising.json.gz").is_file()


def test_a_scheduler_without_a_single_step_says_so_and_is_profiled(tmp_path: Path) -> None:
    folder = write_tiny_pixart(tmp_path / "pixart")
    with pytest.raises(SpecError, match="has no single step; ask for two or more"):
        opened(folder).generate([ASKED.model_copy(update={"steps": 1})])
    found = profile_pipeline(
        folder, prompt="a photo", threads=1, progress=lambda _: None, trace_folder=tmp_path / "trace", cache=CeilingCache(tmp_path / "ceilings")
    )
    assert "denoiser" in {item.name for item in found.bottlenecks}


def prepared(pipeline: Path, destination: Path, **given: object) -> ImageSet:
    payload = {"model": str(pipeline), "eval_data": None, "calib_data": None, "prompts": None, "seed": 0, "destination": str(destination), **given}
    return ImageSet.model_validate_json(Path(prepare(payload, 60)["data"]).read_text(encoding="utf-8"))


def test_prompts_come_from_the_user_else_the_pipeline_else_us(pipeline: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.jsonl"
    own.write_text("".join(json.dumps({"prompt": f"a photo of a {word}"}) + "\n" for word in ("digit", "dog", "a", "an", "of")), encoding="utf-8")
    folder = tmp_path / "sd"
    shutil.copytree(pipeline, folder)
    (folder / "card.json").write_text(json.dumps({"prompts": ["a photo", "a digit"]}), encoding="utf-8")
    assert prepared(folder, tmp_path / "a", eval_data=str(own)).source == str(own)
    assert prepared(folder, tmp_path / "b").source == "card.json of the pipeline"
    (folder / "prompts.txt").write_text("a photo\n", encoding="utf-8")
    found = prepared(folder, tmp_path / "c", scorer=str(tmp_path))
    assert (found.source, found.scorer) == ("prompts.txt of the pipeline", str(tmp_path))
    assert len(set(found.pairs)) == len(found.pairs), "no prompt with the same seed twice"


def test_evaluation_and_calibration_share_no_prompt(pipeline: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.txt"
    own.write_text("".join(f"a digit {letter}\n" for letter in "abcdefghij"), encoding="utf-8")
    (tmp_path / "calibration.txt").write_text("a digit c\n", encoding="utf-8")
    with pytest.raises(DataError, match="evaluation and the calibration"):
        prepared(pipeline, tmp_path / "a", eval_data=str(own), calib_data=str(tmp_path / "calibration.txt"))
    found = prepared(pipeline, tmp_path / "b", eval_data=str(own))
    assert len({prompt for prompt, _ in found.pairs}) == 8


def test_a_prompt_that_is_longer_than_the_pipeline_reads_is_refused_before_anything_runs(pipeline: Path, tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text(f"a photo\n{'a photo of a digit ' * 40}\n", encoding="utf-8")
    with pytest.raises(DataError, match="tokens and this pipeline reads"):
        prepared(pipeline, tmp_path / "a", eval_data=str(tmp_path / "own.txt"))
