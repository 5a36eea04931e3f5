"""Held-out prompts are rendered once, and an artifact that would read them otherwise is found out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from genopt.errors import ModelError
from genopt.quality.held_out import QUESTIONS, difference, held_out
from genopt.testing.tiny_tokenizer import CHAT_TEMPLATE, write_tiny_tokenizer

WINDOWS = [[(7 * row + place) % 256 for place in range(64)] for row in range(10)]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_tiny_tokenizer(tmp_path / "model")
    return tmp_path / "model"


def retemplate(folder: Path, template: str | None) -> None:
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config.pop("chat_template")
    path.write_text(json.dumps(config if template is None else {**config, "chat_template": template}))


def test_questions_stand_in_the_chat_template(model: Path) -> None:
    found = held_out(model, WINDOWS, 500)
    assert len(found.ids) == len(QUESTIONS)
    assert found.texts[0] == f"<|user|>{QUESTIONS[0]}</s><|assistant|>"
    assert bytes(found.first_ids) == b"<|user|>"
    assert difference(found, model) is None


@pytest.mark.parametrize("room", [500, 10])
def test_without_a_template_or_room_for_it_evaluation_text_is_continued(model: Path, room: int) -> None:
    if room == 500:
        retemplate(model, None)
    found = held_out(model, WINDOWS, room)
    assert found.texts == ()
    assert [len(ids) for ids in found.ids] == [min(32, room)] * 8
    assert difference(found, model) is None


def test_another_template_is_found_out(model: Path, tmp_path: Path) -> None:
    found = held_out(model, WINDOWS, 500)
    other = shutil.copytree(model, tmp_path / "other")
    retemplate(other, CHAT_TEMPLATE + " ")
    assert difference(found, other) is None, "white space around it is not part of a template"
    retemplate(other, CHAT_TEMPLATE.replace("<|", "[|"))
    assert difference(found, other) == "its chat template is not the original's"


def test_a_template_may_move_to_a_file_of_its_own(model: Path, tmp_path: Path) -> None:
    found = held_out(model, WINDOWS, 500)
    other = shutil.copytree(model, tmp_path / "other")
    retemplate(other, None)
    (other / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    assert difference(found, other) is None


def test_another_tokenizer_is_found_out(model: Path, tmp_path: Path) -> None:
    found = held_out(model, WINDOWS, 500)
    other = shutil.copytree(model, tmp_path / "other")
    tokenizer = Tokenizer.from_file(str(other / "tokenizer.json"))
    tokenizer.add_tokens(["capital"])
    tokenizer.save(str(other / "tokenizer.json"))
    assert "its tokenizer reads a conversation as" in str(difference(found, other))


def test_an_artifact_without_a_tokenizer_is_served_with_the_originals(model: Path, tmp_path: Path) -> None:
    assert difference(held_out(model, WINDOWS, 500), tmp_path) is None


def test_a_template_that_refuses_a_question_is_named(model: Path) -> None:
    retemplate(model, "{{ raise_exception('system first') }}")
    with pytest.raises(ModelError, match="system first"):
        held_out(model, WINDOWS, 500)
