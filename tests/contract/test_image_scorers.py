"""Scorers in folders, with tiny random models as transformers saves them."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from genopt import clock
from genopt.errors import DataError
from genopt.plan import Artifact, Plan
from genopt.quality.image_gate import ImageGate, Pairs
from genopt.quality.image_scorers import ClassifierScorer, ClipScorer, load_scorer
from genopt.tasks.base import BenchConfig
from genopt.tasks.image_data import ImageSet
from genopt.tasks.image_judge import ImageJudge
from genopt.testing.tiny_tokenizer import write_tiny_tokenizer

IMAGES = [np.random.default_rng(seed).integers(0, 256, (40, 48, 3)).astype(np.uint8) for seed in range(10)]
TOWER = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("clip")
    write_tiny_tokenizer(folder / "tokenizer")
    torch.manual_seed(0)
    text = {**TOWER, "vocab_size": 258, "max_position_embeddings": 32, "eos_token_id": 257, "bos_token_id": 256}
    config = CLIPConfig(text_config=text, vision_config={**TOWER, "image_size": 32, "patch_size": 16}, projection_dim=16)
    CLIPModel(config).save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer" / "tokenizer.json"), bos_token="<s>", eos_token="</s>", pad_token="</s>", model_max_length=32
    )  # fmt: skip
    CLIPProcessor(CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32), tokenizer).save_pretrained(folder)
    return folder


def write_classifier(folder: Path, *labels: str) -> Path:
    import torch
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    torch.manual_seed(0)
    known = dict(enumerate(labels))
    config = ViTConfig(**TOWER, image_size=32, patch_size=16, id2label=known, label2id={label: index for index, label in known.items()})
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classifier(tmp_path_factory.mktemp("vit"), "cat", "dog")


def test_clip_gives_a_number_for_each_pair_that_depends_on_both(clip: Path) -> None:
    scorer = load_scorer(str(clip))
    assert isinstance(scorer, ClipScorer)
    prompts = [f"{number} pictures" for number in range(10)]  # without an end of text of its own, this tokenizer is judged by the first token
    found = scorer.score(prompts, IMAGES)
    assert len(found) == 10
    assert all(0 <= value <= 100 for value in found)
    assert scorer.score(prompts, IMAGES) == found
    assert scorer.score(list(reversed(prompts)), IMAGES) != found


def test_a_classifier_gives_the_probability_of_the_class_that_the_prompt_names(classifier: Path) -> None:
    scorer = load_scorer(str(classifier))
    assert isinstance(scorer, ClassifierScorer)
    cats, dogs, none = (scorer.score([prompt] * 10, IMAGES) for prompt in ("A Cat on a mat", "a dog", "a house"))
    np.testing.assert_allclose(np.add(cats, dogs), 1, atol=1e-6)
    np.testing.assert_allclose(none, np.maximum(cats, dogs))


def test_any_whole_name_of_a_class_names_it_and_the_longest_counts(tmp_path: Path) -> None:
    labels = ("tench, Tinca tinca", "tiger, Panthera tigris", "tiger shark, Galeocerdo cuvieri", "cat", "golden_retriever")
    scorer = ClassifierScorer(write_classifier(tmp_path, *labels))
    by_name = {label: scorer.score([label.split(",")[0]] * 10, IMAGES) for label in labels}
    np.testing.assert_allclose(np.sum(list(by_name.values()), axis=0), 1, atol=1e-6)
    for prompt, label in (
        ("a Tench in a pond", labels[0]), ("Tinca  tinca, from above", labels[0]), ("a tiger shark", labels[2]), ("a tiger!", labels[1]),
        ("a golden retriever", labels[4]),
    ):  # fmt: skip
        assert scorer.score([prompt] * 10, IMAGES) == by_name[label], prompt
    largest = np.max(list(by_name.values()), axis=0)
    np.testing.assert_allclose(scorer.score(["to concatenate"] * 10, IMAGES), largest)


def test_prompts_that_name_no_class_are_counted(classifier: Path) -> None:
    scorer = ClassifierScorer(classifier)
    prompts = ["a cat", "a dog", "a house", "a cat and a dog", *(f"cat {number}" for number in range(6))]
    pairs = Pairs()
    pairs.add(prompts, IMAGES, IMAGES, scorer)
    found = ImageGate(0.99, (10,), seed=0, scorer=scorer).decide(pairs, 0)
    assert (found.verdict, found.details["prompts_without_class"]) == ("accept", 1)


@pytest.mark.parametrize(("prompts", "unnamed"), [(("a cat", "a house"), 0), (("a cat", "a house", "to concatenate"), 2)])
def test_a_classifier_that_knows_most_prompts_not_is_refused(classifier: Path, tmp_path: Path, prompts: tuple[str, ...], unnamed: int) -> None:
    config = BenchConfig(
        original=str(tmp_path), artifact=Artifact(digest="d", path=str(tmp_path), bytes=1), data="", logs="", quality=0.99, concurrency=(1,),
        output_tokens=1, threads=1, parameters=1, seed=0, store=str(tmp_path / "store"),
    )  # fmt: skip
    data = ImageSet(
        pairs=tuple((prompt, seed) for seed in range(16) for prompt in prompts), prompts=prompts, source="s", digest="d", scorer=str(classifier),
        calibration_source="s", calibration_digest="d",
    )  # fmt: skip
    judge = ImageJudge(config, data, Plan(name="original", steps=(), engine="e"))
    original = Mock()
    original.generate.return_value = [Mock(pixels=lambda: IMAGES[0])]
    expected = pytest.raises(DataError, match=f"{unnamed} of 3 prompts, such as 'a house', name no class") if unnamed else nullcontext()
    with expected:
        judge.prepare(original, 1.0, clock.now() + 100, lambda _: None)
    assert original.generate.called == (not unnamed), "nothing is made for a scorer that is refused"


@pytest.mark.parametrize("config", [None, {"model_type": "no such model"}, {"model_type": "vit"}])
def test_a_folder_without_a_model_is_named(tmp_path: Path, config: dict[str, str] | None) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match="cannot be loaded"):
        load_scorer(str(tmp_path))
