"""What the training of the built-in pipeline is made of: digits, their captions, and stages that end in time."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

SCRIPTS = Path(__file__).parents[2] / "jobs" / "digits_diffusion"


@pytest.fixture(scope="module")
def job() -> Iterator[SimpleNamespace]:
    """The script's modules, which import each other as siblings; `train` brings all of them."""
    before, path = set(sys.modules), list(sys.path)
    sys.path.insert(0, str(SCRIPTS))
    names = [file.stem for file in SCRIPTS.glob("*.py")]
    modules: dict[str, ModuleType] = {name: importlib.import_module(name) for name in names}
    yield SimpleNamespace(**modules)
    sys.path[:] = path
    for name in set(sys.modules) - before & set(names):
        del sys.modules[name]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hundred images in the form that `--export-data` writes; ink grows with their number."""
    path = tmp_path_factory.mktemp("digits") / "digits.npz"
    images = np.arange(100)[:, None, None] * np.ones((8, 8)) / 100 * 16
    np.savez(path, images=images.astype(np.uint8), labels=(np.arange(100) % 10).astype(np.uint8))
    return path


def test_held_out_digits_are_those_that_are_not_trained_on(job: SimpleNamespace, data: Path) -> None:
    train, held_out = job.digits.load(data, 0)
    assert (len(train.labels), len(held_out.labels)) == (80, 20)
    labels = sorted(train.labels.tolist() + held_out.labels.tolist())
    assert labels == sorted(list(range(10)) * 10)
    again, _ = job.digits.load(data, 0)
    other, _ = job.digits.load(data, 1)
    assert again.labels.equal(train.labels)
    assert not other.labels.equal(train.labels)


def test_styles_follow_the_ink_within_a_digit(job: SimpleNamespace, data: Path) -> None:
    train, _ = job.digits.load(data, 0)
    ink = {style: -train.images[train.styles == style].mean() for style in (job.digits.THIN, job.digits.PLAIN, job.digits.BOLD)}
    assert ink[job.digits.THIN] < ink[job.digits.PLAIN] < ink[job.digits.BOLD]


def test_variations_differ_stay_in_range_and_follow_the_generator(job: SimpleNamespace, data: Path) -> None:
    import torch

    train, _ = job.digits.load(data, 0)
    first, again = (job.digits.vary(train.images, torch.Generator().manual_seed(0)) for _ in range(2))
    assert first.shape == (80, 1, job.digits.SIDE, job.digits.SIDE)
    assert first.min() >= -1.001
    assert first.max() <= 1.001
    assert first.equal(again)
    assert not first.equal(train.images)


def test_every_caption_names_its_digit_and_is_read_in_whole_words(job: SimpleNamespace) -> None:
    tokenizer = job.parts.tokenizer()
    texts = {(digit, text) for digit in range(10) for style in job.captions.STYLES for text in job.captions.captions(digit, style)}
    for digit, text in texts:
        assert {job.captions.DIGITS[digit], str(digit)} & set(text.split())
        assert len(tokenizer.tokenize(text)) == len(text.split())
        assert len(tokenizer(text).input_ids) <= job.parts.CONTEXT
    assert len({text for _, text in texts}) == len(texts)


def test_captions_become_one_table_of_tokens(job: SimpleNamespace) -> None:
    tokenizer = job.parts.tokenizer()
    table = job.captions.caption_tokens(tokenizer)
    assert table.shape[:2] == (10, 3)
    assert tokenizer.decode(table[7, job.digits.PLAIN, 0], skip_special_tokens=True) == "a handwritten seven"
    assert job.captions.empty_tokens(tokenizer).shape == table.shape[-1:]


def test_evaluation_prompts_name_one_digit_in_a_word(job: SimpleNamespace) -> None:
    for text, digit in job.captions.evaluation_prompts():
        assert [number for number, word in enumerate(job.captions.DIGITS) if word in text] == [digit]


def test_a_stage_ends_with_its_steps_or_its_time_and_says_so(job: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    stage = job.progress.Stage("counting", 3)
    assert list(stage) == [0, 1, 2]
    assert (stage.done, stage.share) == (3, 1)
    assert "counting: step 3 of 3" in capsys.readouterr().err
    assert list(job.progress.Stage("hurrying", 1000, limit_s=1e-9)) == [0]


def test_all_weights_in_half_precision_stay_below_8_megabytes(job: SimpleNamespace) -> None:
    parts = job.parts
    models = (parts.vae(), parts.text_encoder(parts.tokenizer()), parts.unet())
    assert 2 * sum(weight.numel() for model in models for weight in model.parameters()) < 8e6
