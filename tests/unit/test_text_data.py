"""The prepare stage of the text task: prompts of the user's own, tokenized as they will be served."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from genopt.errors import DataError, ModelError
from genopt.serving.exchange import ChatMessage
from genopt.serving.text import ModelText
from genopt.tasks.text_data import TextSet, prepare
from genopt.testing.tiny_tokenizer import BOS_ID, write_tiny_tokenizer

TURNS = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_tiny_tokenizer(tmp_path / "model", context=512)
    return tmp_path / "model"


def prepared(model: Path, **values: Any) -> TextSet:
    payload = {
        "model": str(model), "eval_data": None, "calib_data": None, "prompts": None, "seed": 0, "prompt_tokens": 16, "output_tokens": 32,
        "max_context": 512, "destination": str(model.parent / "data"), **values,
    }  # fmt: skip
    return TextSet.model_validate_json(Path(prepare(payload, 0.0)["data"]).read_text())


@pytest.mark.parametrize("tokens", [2, 16, 480])
def test_made_prompts_have_the_length_that_was_asked_for(model: Path, tokens: int) -> None:
    found = prepared(model, prompt_tokens=tokens)
    assert {len(prompt) for prompt in found.prompts} == {tokens}
    assert len(found.prompts) == 8


def test_made_prompts_may_be_longer_than_an_evaluated_window(model: Path) -> None:
    assert {len(prompt) for prompt in prepared(model, prompt_tokens=1500, max_context=2048).prompts} == {1500}


def test_a_prompt_without_room_for_its_answer_is_a_usage_error(model: Path) -> None:
    with pytest.raises(DataError, match="--prompt-tokens may be 480 here"):
        prepared(model, prompt_tokens=481)


def test_own_prompts_keep_their_text_and_come_in_a_seeded_order(model: Path) -> None:
    path = model.parent / "mine.txt"
    path.write_text("\n".join(f"prompt {number}" for number in range(300)))
    first, again, other = (prepared(model, prompts=str(path), seed=seed).prompts for seed in (1, 1, 2))
    assert first == again != other
    assert len(set(first)) == 256
    assert {bytes(ids).decode().partition(" ")[0] for ids in first} == {"prompt"}


def test_own_conversations_are_tokenized_as_they_are_served(model: Path) -> None:
    path = model.parent / "mine.jsonl"
    path.write_text(json.dumps({"messages": TURNS}) + "\n" + json.dumps({"prompt": "plain"}))
    text = ModelText(model)
    expected = {text.chat_ids([ChatMessage.model_validate(turn) for turn in TURNS]), text.prompt_ids("plain")}
    assert set(prepared(model, prompts=str(path)).prompts) == expected


def test_a_tokenizer_that_begins_every_text_begins_own_prompts_too(model: Path) -> None:
    content = json.loads((model / "tokenizer.json").read_text())
    content["post_processor"] = {
        "type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [BOS_ID], "tokens": ["<s>"]}},
    }  # fmt: skip
    (model / "tokenizer.json").write_text(json.dumps(content))
    path = model.parent / "mine.txt"
    path.write_text("ab")
    assert prepared(model, prompts=str(path)).prompts == ((BOS_ID, *b"ab"),) == (ModelText(model).prompt_ids("ab"),)


def test_an_own_prompt_that_is_too_long_is_named(model: Path) -> None:
    path = model.parent / "mine.txt"
    path.write_text("short\n" + "x" * 481)
    with pytest.raises(DataError, match=r"Prompt 2 of .* has 481 tokens, and with its answer only 1 to 480 fit"):
        prepared(model, prompts=str(path))


@pytest.mark.parametrize("template", [None, "{{ raise_exception('roles must alternate') }}"])
def test_conversations_need_a_template_that_takes_them(model: Path, template: str | None) -> None:
    content = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps({**content, "chat_template": template}))
    path = model.parent / "mine.jsonl"
    path.write_text(json.dumps({"messages": TURNS}))
    with pytest.raises(ModelError, match="chat template"):
        prepared(model, prompts=str(path))
