"""A smaller model that was given learns what the original predicts, and is saved as an artifact like any other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from genopt.errors import DataError, InfeasibleError, SpecError
from genopt.models.checkpoint import load_model
from genopt.plan import JsonValue
from genopt.store.artifacts import folder_digest
from genopt.techniques.base import TransformContext
from genopt.techniques.distill_given import DistillGiven
from genopt.testing.tiny_models import write_tiny_llama, written_by


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("original"))


@pytest.fixture
def student(tmp_path: Path) -> Path:
    return write_tiny_llama(tmp_path / "student", layers=1)


@pytest.fixture(scope="module")
def calibration(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("calibration") / "text.parquet"
    pq.write_table(pa.table({"ids": pa.array(written_by(original, 8, 64), pa.list_(pa.int32()))}), path)
    return path


def distilled(original: Path, student: Path, calibration: Path, result: Path, **params: JsonValue) -> list[str]:
    """What it says while it works."""
    result.mkdir()
    digest = folder_digest(student)[0]
    context = TransformContext(
        original=str(original), calibration=str(calibration), seed=0, threads=1, time_limit_s=120, given={digest: str(student)}
    )  # fmt: skip
    asked: dict[str, JsonValue] = {"given": digest, "max_seq_length": 32, **params}
    said: list[str] = []
    DistillGiven.check(original, asked)
    DistillGiven.apply(original, result, asked, context, said.append)
    return said


def test_a_student_comes_closer_and_is_whole(original: Path, student: Path, calibration: Path, tmp_path: Path) -> None:
    (original / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    (student / "chat_template.jinja").write_text("another", encoding="utf-8")
    said = distilled(original, student, calibration, tmp_path / "result", steps=24, learning_rate=1e-3)
    words = said[-1].split()
    assert float(words[words.index("before") - 4]) < float(words[words.index("after") - 1])
    result = tmp_path / "result"
    assert (result / "chat_template.jinja").read_text(encoding="utf-8") == "{{ messages }}", "text is read as by the original"
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (result / name).read_bytes() == (original / name).read_bytes()
    trained, given = load_model(result), load_model(student)
    assert trained.config.num_hidden_layers == 1
    assert trained.dtype == given.dtype == torch.bfloat16
    assert not all(torch.equal(ours, theirs) for ours, theirs in zip(trained.parameters(), given.parameters(), strict=True))


def test_a_student_that_gets_no_closer_stays_as_it_was_given(original: Path, student: Path, calibration: Path, tmp_path: Path) -> None:
    distilled(original, student, calibration, tmp_path / "result", steps=3, learning_rate=1.0)
    for (name, ours), theirs in zip(load_model(tmp_path / "result").named_parameters(), load_model(student).parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_a_model_of_another_vocabulary_is_refused(original: Path, student: Path, calibration: Path, tmp_path: Path) -> None:
    config = json.loads((student / "config.json").read_text())
    (student / "config.json").write_text(json.dumps({**config, "vocab_size": 299}))
    with pytest.raises(InfeasibleError, match=r"299 tokens, the original 300; give a smaller model of the same family\."):
        distilled(original, student, calibration, tmp_path / "size")
    (student / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((student / "tokenizer.json").read_text())
    (first, one), (second, other) = list(tokenizer["model"]["vocab"].items())[-2:]
    tokenizer["model"]["vocab"] |= {first: other, second: one}
    (student / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(InfeasibleError, match="other ids than the original"):
        distilled(original, student, calibration, tmp_path / "ids")


def test_what_is_no_language_model_is_refused(original: Path, student: Path, calibration: Path, tmp_path: Path) -> None:
    (student / "config.json").unlink()
    with pytest.raises(InfeasibleError, match=r"no config\.json .*; save the student with transformers' save_pretrained\."):
        distilled(original, student, calibration, tmp_path / "config")
    shutil.copyfile(original / "config.json", student / "config.json")
    (student / "model.safetensors").rename(student / "adapter.safetensors")
    with pytest.raises(InfeasibleError, match=r"with model\.safetensors"):
        distilled(original, student, calibration, tmp_path / "weights")


def test_a_student_that_is_not_at_hand_is_named(original: Path, tmp_path: Path) -> None:
    context = TransformContext(original=str(original), calibration=None, seed=0, threads=1, time_limit_s=60)
    with pytest.raises(DataError, match="000000000000 is not at hand"):
        DistillGiven.apply(original, tmp_path, {"given": "0" * 64}, context, lambda _: None)
    with pytest.raises(SpecError, match="given"):
        DistillGiven.check(original, {})
