"""What a run is judged on: read, checked, split and tokenized before anything is measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genopt import clock
from genopt.errors import DataError, InfeasibleError
from genopt.quality.task_scoring import Text
from genopt.tasks.base import Prepared
from genopt.tasks.text_data import TextSet, prepare
from genopt.tasks.text_finalists import ModelTokens, score_tasks
from genopt.testing.fake_task import write_fake_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_fake_model(folder)
    return folder


def prepared(model: Path, destination: Path, **changes: Any) -> TextSet:
    payload = {
        "model": str(model), "eval_data": None, "calib_data": None, "prompts": None, "eval_tasks": (), "seed": 0, "prompt_tokens": 16,
        "output_tokens": 8, "max_context": 512, "destination": str(destination), **changes,
    }  # fmt: skip
    found = Prepared.model_validate(prepare(payload, 60))
    return TextSet.model_validate_json(Path(found.data).read_text())


def lines(folder: Path, name: str, values: list[Any]) -> str:
    path = folder / name
    path.write_text("\n".join(map(json.dumps, values)))
    return str(path)


def words(seed: int, count: int) -> str:
    return " ".join(f"w{number}" for number in np.random.default_rng(seed).integers(0, 99_999, count).tolist())


def test_the_default_text_is_split_and_both_parts_are_named(model: Path, tmp_path: Path) -> None:
    found = prepared(model, tmp_path)
    assert {len(window) for window in found.windows} == {511}, "an engine may have to write a token behind each"
    assert "pydoc_data.topics" in found.source
    assert "pydoc_data.topics" in found.calibration_source
    assert found.digest != found.calibration_digest
    assert len(found.held_out.ids) == 8


def test_windows_fit_the_models_context_and_leave_room_for_a_token(model: Path, tmp_path: Path) -> None:
    assert {len(window) for window in prepared(model, tmp_path, max_context=200).windows} == {199}


def test_a_text_of_ones_own_is_read_farther(model: Path, tmp_path: Path) -> None:
    texts = [{"text": words(seed, 2_000)} for seed in range(60)]
    found = prepared(model, tmp_path, eval_data=lines(tmp_path, "a.jsonl", texts))
    assert 262_144 - 511 < sum(map(len, found.windows)) <= 262_144


@pytest.mark.parametrize("content", ["", "one line"])
def test_an_empty_or_one_line_file_is_refused(model: Path, tmp_path: Path, content: str) -> None:
    path = tmp_path / "a.txt"
    path.write_text(content)
    with pytest.raises(DataError, match=r"holds no text|too short"):
        prepared(model, tmp_path, eval_data=str(path))


def test_evaluation_and_calibration_that_share_passages_are_refused(model: Path, tmp_path: Path) -> None:
    texts = [{"text": words(seed, 500)} for seed in range(20)]
    shared = [{"text": words(99, 100) + " " + texts[0]["text"]}]
    with pytest.raises(DataError, match="share 1 documents"):
        prepared(model, tmp_path, eval_data=lines(tmp_path, "a.jsonl", texts), calib_data=lines(tmp_path, "b.jsonl", shared))


def test_all_of_an_evaluation_text_evaluates_beside_calibration_text(model: Path, tmp_path: Path) -> None:
    texts = [{"text": words(seed, 200)} for seed in range(20)]
    own = lines(tmp_path, "a.jsonl", [*texts, texts[0]])
    other = lines(tmp_path, "b.jsonl", [{"text": words(seed, 500)} for seed in range(100, 110)])
    found = prepared(model, tmp_path, eval_data=own, calib_data=other)
    characters = sum(len(text["text"]) for text in texts)
    read = sum(map(len, found.windows))
    assert 0.9 * characters < read <= characters + 2 * len(texts), "a byte is a token, and a document counts once"
    assert found.source.endswith("without 1 near-duplicates")
    assert found.calibration_source.endswith("b.jsonl")


@pytest.mark.parametrize("place", range(6))
def test_calibration_text_that_is_anywhere_in_the_evaluation_text_is_refused(model: Path, tmp_path: Path, place: int) -> None:
    texts = [{"text": words(seed, 800)} for seed in range(6)]
    other = lines(tmp_path, "b.jsonl", [texts[place], {"text": words(99, 4_000)}])
    with pytest.raises(DataError, match="share 1 documents"):
        prepared(model, tmp_path, eval_data=lines(tmp_path, "a.jsonl", texts), calib_data=other)


def test_questions_never_calibrate(model: Path, tmp_path: Path) -> None:
    asked = [{"prompt": words(seed, 40), "answer": words(seed + 1_000, 5)} for seed in range(20)]
    few = prepared(model, tmp_path, eval_data=lines(tmp_path, "few.jsonl", asked))
    assert "pydoc_data.topics" in few.source, "too little text for a likelihood"
    longer = [{"prompt": words(seed, 100), "answer": words(seed + 1_000, 5)} for seed in range(150)]
    many = prepared(model, tmp_path, eval_data=lines(tmp_path, "many.jsonl", longer))
    assert many.source.endswith("many.jsonl")
    assert "pydoc_data.topics" in many.calibration_source
    with pytest.raises(DataError, match="share 20 documents"):
        prepared(model, tmp_path, eval_data=str(tmp_path / "few.jsonl"), calib_data=str(tmp_path / "few.jsonl"))


def test_tasks_without_the_harness_are_refused_at_once(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(InfeasibleError, match=r"pip install 'genopt-ray\[lm-eval\]'"):
        prepared(model, tmp_path, eval_tasks=("hellaswag",))


def test_the_stage_marks_questions_with_a_real_engine_once(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from genopt import catalog
    from genopt.testing.fake_engine import FakeEngine

    opened: list[Path] = []

    class Counted(FakeEngine):
        @staticmethod
        def open(artifact: Path, options: dict[str, Any]) -> Any:
            opened.append(artifact)
            return FakeEngine.open(artifact, options)

    monkeypatch.setattr(catalog, "load", lambda _kind, _name: Counted)
    prepared(model, tmp_path / "data")
    items = lines(tmp_path, "q.jsonl", [{"prompt": f"Say it {number}.", "answer": "abc" if number % 2 else "xyz"} for number in range(20)])
    payload = {
        "model": str(model), "artifact": {"digest": "d", "path": str(model), "bytes": 1}, "engine": "fake", "options": {}, "items": items,
        "tasks": [], "limit": 15, "context": 512, "data": str(tmp_path / "data" / "text_set.json"), "seed": 0, "store": str(tmp_path / "store"),
        "libraries": {}, "run": "runs/this",
    }  # fmt: skip
    first = score_tasks(payload, clock.now() + 60)
    assert first["tasks"][0]["scores"] == [float(number % 2) for number in range(15)]
    assert first["tasks"][0]["task"] == "q.jsonl"
    assert score_tasks(payload, clock.now() + 60) == first
    assert first["tasks"][0]["origin"] is None
    (taken,) = score_tasks({**payload, "run": "runs/later"}, clock.now() + 60)["tasks"]
    assert taken["origin"]["run"] == "runs/this", "a later run says where its scores come from"
    assert {**taken, "origin": None} == first["tasks"][0]
    assert len(opened) == 1, "scores are kept"
    monkeypatch.setattr("genopt.tasks.text_finalists.kernels", lambda: {"cpu": "another", "cpu_flags": [], "gpus": []})
    assert score_tasks(payload, clock.now() + 60) == first
    assert len(opened) == 2, "another processor rounds otherwise"


def test_questions_are_asked_in_the_chat_template(model: Path) -> None:
    text: Text = ModelTokens(model)
    assert text.decode(text.question("Hi")) == "<|user|>Hi<|assistant|>"
    assert text.decode(text.encode("Hi", False)) == "Hi"
