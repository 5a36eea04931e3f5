"""Tasks of lm-evaluation-harness through an engine of ours, in the stage that a run uses, without a network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from genopt.engines.base import Generation, GenerationRequest, Scores
from genopt.errors import DataError
from genopt.process import run_stage
from genopt.tasks.text_finalists import ModelTokens
from genopt.testing.fake_task import write_fake_model
from genopt.testing.plugin import write_plugin
from genopt.testing.tiny_tokenizer import BOS_ID, EOS_ID, surround_texts

CHOICES = """
task: tiny_choices
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{label}}}}"
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
ANSWERS = """
task: tiny_answers
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: [" "], max_gen_toks: 12, do_sample: false}}
metric_list: [{{metric: exact_match}}]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("harness")
    write_fake_model(path / "model")
    write_plugin(path / "plugin")
    payload = {
        "model": str(path / "model"), "eval_data": None, "calib_data": None, "prompts": None, "eval_tasks": (), "seed": 0, "prompt_tokens": 16,
        "output_tokens": 8, "max_context": 512, "destination": str(path / "data"),
    }  # fmt: skip
    stage("prepare_text", payload, path)
    return path


def stage(kind: str, payload: dict[str, Any], folder: Path) -> dict[str, Any]:
    environment = {"PYTHONPATH": str(folder / "plugin"), "HF_HOME": str(folder / "hub")}
    return run_stage(kind, payload, log=folder / "log", timeout_s=280, environment=environment)


def score(folder: Path, *tasks: str, limit: int | None = None) -> list[dict[str, Any]]:
    payload = {
        "model": str(folder / "model"), "artifact": {"digest": "d", "path": str(folder / "model"), "bytes": 1}, "engine": "fake",
        "options": {"text": "abc ", "loss": 0.1}, "items": None, "tasks": tasks, "limit": limit, "context": 512,
        "data": str(folder / "data" / "text_set.json"), "seed": 0, "store": str(folder / "store"), "libraries": {}, "run": "runs/this",
    }  # fmt: skip
    found: list[dict[str, Any]] = stage("score_text_tasks", payload, folder)["tasks"]
    return found


def write_task(folder: Path, template: str, name: str, rows: list[dict[str, Any]]) -> str:
    data = folder / f"{name}.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    (folder / f"{name}.yaml").write_text(template.format(data=data))
    return str(folder / f"{name}.yaml")


def test_items_are_scored_one_by_one(folder: Path) -> None:
    """The fake engine finds a byte the less likely the larger its low half is, and always writes the same."""
    rows = [{"question": f"Question {number}?", "choices": ["0", "?"], "label": number % 2} for number in range(6)]
    choices = write_task(folder, CHOICES, "tiny_choices", rows)
    answers = write_task(folder, ANSWERS, "tiny_answers", [{"question": "Say", "answer": answer} for answer in ("abc", "abd", "abc")])
    first, second = score(folder, choices, answers)
    assert (first["task"], first["metric"]) == ("tiny_choices", "acc")
    assert first["scores"] == [1.0, 0.0, 1.0, 0.0, 1.0, 0.0]
    assert (second["task"], second["metric"]) == ("tiny_answers", "exact_match")
    assert second["scores"] == [1.0, 0.0, 1.0]
    assert len(score(folder, choices, limit=2)[0]["scores"]) == 2


def test_a_task_that_is_not_there_is_named(folder: Path) -> None:
    with pytest.raises(DataError, match="has no task 'no_such_task'"):
        score(folder, "no_such_task")
    with pytest.raises(DataError, match=r"has no task .*missing\.yaml"):
        score(folder, str(folder / "missing.yaml"))


def test_data_that_is_not_on_disk_is_an_error_with_the_remedy(folder: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be loaded without a network .* lm-eval run --model dummy --tasks arc_easy --limit 1"):
        score(folder, "arc_easy")


def test_a_run_finds_out_before_it_measures(folder: Path) -> None:
    payload = {
        "model": str(folder / "model"), "eval_data": None, "calib_data": None, "prompts": None, "eval_tasks": ["no_such_task"], "seed": 0,
        "prompt_tokens": 16, "output_tokens": 8, "max_context": 512, "destination": str(folder / "again"),
    }  # fmt: skip
    with pytest.raises(DataError, match="has no task 'no_such_task'"):
        stage("prepare_text", payload, folder)


class Listener:
    """A model that finds every token as likely as the next, and remembers what it was shown."""

    def __init__(self) -> None:
        self.shown: list[tuple[int, ...]] = []

    def score(self, sequences: Sequence[Sequence[int]]) -> Scores:
        self.shown += map(tuple, sequences)
        return Scores(log_probs=tuple((-1.0,) * (len(ids) - 1) for ids in sequences), top_ids=tuple(tuple(ids[1:]) for ids in sequences))

    def generate(self, requests: Sequence[GenerationRequest], on_token: None = None) -> list[Generation]:
        self.shown += [request.prompt_ids for request in requests]
        return [Generation(token_ids=(97,), timestamps_ns=(1,), started_ns=0, finish_reason="length") for _ in requests]


def heard(model: Path, kind: str, *asked: tuple[Any, ...], context: int = 32) -> tuple[list[Any], list[tuple[int, ...]]]:
    """What the harness is told, and what the model was shown for it."""
    from lm_eval.api.instance import Instance

    from genopt.quality.lm_eval_model import SessionLM

    listener: Any = Listener()
    harness: Any = SessionLM(lambda: listener, ModelTokens(model), context, (EOS_ID,))
    found = getattr(harness, kind)([Instance(request_type=kind, doc={}, arguments=one, idx=0) for one in asked])
    return list(found), listener.shown


@pytest.mark.parametrize(("before", "empty"), [((), EOS_ID), ((BOS_ID,), BOS_ID)])
def test_contexts_begin_as_the_tokenizer_begins_a_text(tmp_path: Path, before: tuple[int, ...], empty: int) -> None:
    write_fake_model(tmp_path)
    if before:
        surround_texts(tmp_path, after=("</s>",))
    asked = [("ab", " cd"), ("", "cd"), ("x" * 60, "y"), *([("<s>ab", "c")] if before else [])]
    found, shown = heard(tmp_path, "loglikelihood", *asked)
    assert shown[:2] == [(*before, *b"ab cd"), (empty, *b"cd")]
    assert shown[2] == (*before, *b"x" * (30 - len(before)), *b"y"), "which leaves room for the token that an engine may write"
    assert shown[3:] == ([(BOS_ID, *b"abc")] if before else [])
    assert [round(log_prob) for log_prob, _ in found] == [-3, -2, -1, -1][: len(asked)]
    _, shown = heard(tmp_path, "generate_until", ("ab", {"max_gen_toks": 4}), ("x" * 60, {"max_gen_toks": 4}), ("", {"max_gen_toks": 4}))
    assert shown == [(*before, *b"ab"), (*before, *b"x" * (28 - len(before))), (empty,)]


@pytest.mark.parametrize("before", [(), (BOS_ID,)])
def test_each_piece_of_a_whole_text_begins_so_and_scores_its_tokens_once(tmp_path: Path, before: tuple[int, ...]) -> None:
    write_fake_model(tmp_path)
    if before:
        surround_texts(tmp_path)
    text = bytes(range(33, 108))
    found, shown = heard(tmp_path, "loglikelihood_rolling", (text.decode(),))
    assert found == [-75.0]
    assert all(len(ids) < 32 for ids in shown)
    start = before or (EOS_ID,)
    assert shown[:2] == [(*start, *text[:30]), (*before, *text[29 : 60 - len(before)])]
