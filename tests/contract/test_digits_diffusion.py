"""The built-in pipeline draws what prompts ask for, and the classifier beside it reads that."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from genopt.models.resolve import ResolvedModel, resolve
from genopt.quality.image_scorers import ClassifierScorer, load_scorer

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ResolvedModel:
    return resolve("digits-diffusion", cache=tmp_path_factory.mktemp("cache"), progress=lambda _message: None)


def test_it_is_found_among_the_packages_files_and_is_small(model: ResolvedModel) -> None:
    assert (model.architecture, model.denoiser, model.dtype, model.task) == ("StableDiffusionPipeline", "unet", "float16", "text-to-image")
    assert sum(path.stat().st_size for path in Path(model.path).rglob("*") if path.is_file()) < 8e6
    unet = next(component for component in model.components if component.name == "unet")
    assert unet.parameters > 0.8 * model.parameters


def test_its_card_says_how_many_of_its_images_are_read_right(model: ResolvedModel) -> None:
    card = json.loads(Path(model.path, "card.json").read_text(encoding="utf-8"))
    assert card["classifier_accuracy_on_held_out_digits"] > 0.95
    assert card["read_right"] > 0.9
    assert card["read_right_by_digit"].keys() == set(DIGITS)


def test_the_classifier_reads_what_the_prompts_asked_for(model: ResolvedModel) -> None:
    import torch
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(model.path, dtype=torch.float32, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    prompts = [f"a handwritten {digit}" for digit in DIGITS]
    generators = [torch.Generator().manual_seed(number) for number in range(len(prompts))]
    drawn = pipeline(prompts, num_inference_steps=15, generator=generators, output_type="np").images
    images = list((255 * drawn).round().astype("uint8"))
    scorer = load_scorer(f"{model.path}/classifier")
    assert isinstance(scorer, ClassifierScorer)
    assert sum(score > 0.5 for score in scorer.score(prompts, images)) >= 9
    others = [*prompts[1:], prompts[0]]
    assert sum(score > 0.5 for score in scorer.score(others, images)) <= 1
