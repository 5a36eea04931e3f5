"""Scorers in folders, with tiny random models as transformers saves them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from genopt.errors import DataError
from genopt.quality.image_scorers import ClassifierScorer, ClipScorer, load_scorer
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


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    folder = tmp_path_factory.mktemp("vit")
    torch.manual_seed(0)
    config = ViTConfig(**TOWER, image_size=32, patch_size=16, id2label={0: "cat", 1: "dog"}, label2id={"cat": 0, "dog": 1})
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


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


@pytest.mark.parametrize("config", [None, {"model_type": "no such model"}, {"model_type": "vit"}])
def test_a_folder_without_a_model_is_named(tmp_path: Path, config: dict[str, str] | None) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match="cannot be loaded"):
        load_scorer(str(tmp_path))
