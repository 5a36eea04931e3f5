"""Distillation of a tiny random Llama: it helps, is undone where it does not, and goes on from where it was killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import LlamaForCausalLM

from genopt.errors import DataError
from genopt.models.decoder import without_layers
from genopt.techniques import distillation, training_state
from genopt.techniques.base import Progress, TransformContext
from genopt.techniques.calibration import write_sequences
from genopt.techniques.distill import Distill
from genopt.techniques.distillation import Texts, distill, texts_of
from genopt.techniques.distillation_params import DistillParams
from genopt.techniques.training_state import Checkpoint
from genopt.testing.tiny_models import write_tiny_llama, written_by


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def texts(llama: Path) -> Texts:
    pieces = written_by(llama, 16, 48)
    return Texts(pieces[:-4], pieces[-4:])


PARAMS = DistillParams(steps=24, learning_rate=1e-3, hidden_weight=0.1)


def load(folder: Path) -> Any:
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def test_hidden_states_are_matched_with_the_layers_that_are_left(llama: Path, texts: Texts) -> None:
    teacher = load(llama)
    said: list[str] = []
    params = DistillParams(steps=16, learning_rate=1e-3, hidden_weight=1.0)
    before, after = distill(teacher, without_layers(load(llama), [0]), texts, params, 60.0, said.append)
    assert after > before
    untouched: list[str] = []
    distill(teacher, load(llama), texts, DistillParams(steps=1, hidden_weight=1.0), 60.0, untouched.append)
    assert float(untouched[0].rpartition(" ")[2]) < 0.01, "the same model's layers are nearest to their own"


def test_the_original_writes_text_to_train_on(llama: Path, tmp_path: Path) -> None:
    table = tmp_path / "calibration.parquet"
    pq.write_table(pa.table({"ids": pa.array(written_by(llama, 4, 64), pa.list_(pa.int32()))}), table)
    made: list[list[str]] = []
    for name in ("first", "second"):
        said: list[str] = []
        (tmp_path / name).mkdir()
        context = TransformContext(original=str(llama), calibration=str(table), seed=0, threads=2, time_limit_s=100)
        Distill.apply(llama, tmp_path / name, {"steps": 6, "max_seq_length": 32, "written_sequences": 3}, context, said.append)
        made.append([line for line in said if line.startswith("step")])
    assert "letting the original write 3 sequences" in said
    assert made[0] == made[1], "the same seed writes the same"


def test_every_piece_of_calibration_text_begins_as_the_tokenizer_begins_one(tmp_path: Path) -> None:
    path = tmp_path / "calibration.parquet"
    write_sequences(path, [[256, *range(100)]] * 10, [256])
    found = texts_of(str(path), DistillParams(steps=8, max_seq_length=32))
    pieces = found.training + found.held_out
    assert [ids[0] for ids in pieces] == [256] * len(pieces)
    assert [len(ids) for ids in pieces[:5]] == [32, 32, 32, 8, 32]
    assert [token for ids in pieces[:4] for token in ids[1:]] == list(range(100))


def test_distillation_brings_a_damaged_model_closer(llama: Path, texts: Texts) -> None:
    teacher = load(llama)
    student = without_layers(teacher, [1])
    said: list[str] = []
    before, after = distill(teacher, student, texts, DistillParams(steps=24, learning_rate=1e-3), 60.0, said.append)
    assert after > before + 0.1 * (1 - before)
    assert said[-1].startswith("quality on held-out text")


def test_training_that_does_not_help_is_undone(llama: Path, texts: Texts) -> None:
    teacher, student = load(llama), load(llama)
    distill(teacher, student, texts, DistillParams(steps=3, learning_rate=1.0), 60.0, lambda _: None)
    for name, value in teacher.state_dict().items():
        assert torch.equal(student.state_dict()[name], value), name


def test_training_ends_early_where_it_no_longer_helps_and_the_best_weights_are_kept(llama: Path, texts: Texts) -> None:
    teacher = load(llama)
    said: list[str] = []
    before, after = distill(teacher, without_layers(load(llama), [1]), texts, DistillParams(steps=40, learning_rate=0.3), 60.0, said.append)
    assert "training ends early: it no longer helps" in said
    assert sum(line.startswith("step ") for line in said) < 40
    checked = [float(line.split()[4]) for line in said if " at step " in line]
    assert after == pytest.approx(max(before, *checked), abs=1e-4)


def test_the_time_box_ends_training(llama: Path, texts: Texts) -> None:
    said: list[str] = []
    distill(load(llama), load(llama), texts, DistillParams(steps=10_000), 0.0, said.append)
    assert said[-1].endswith("after 0 steps")


def trained(llama: Path, texts: Texts, checkpoints: Path | None, progress: Progress) -> dict[str, torch.Tensor]:
    """Weights after a training that writes a checkpoint whenever it may."""
    student = without_layers(load(llama), [1])
    distill(load(llama), student, texts, PARAMS, 600.0, progress, checkpoint=Checkpoint(checkpoints, 600.0, every_s=0.0))
    return dict(student.named_parameters())


def train_until_killed(llama: Path, texts: Texts, checkpoints: Path) -> None:
    def die(message: str) -> None:
        if message.startswith("step 9 "):
            os.kill(os.getpid(), signal.SIGKILL)

    trained(llama, texts, checkpoints, die)


def killed_at_step_9(llama: Path, texts: Texts, checkpoints: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=train_until_killed, args=(llama, texts, checkpoints))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL


def test_a_killed_training_goes_on_to_the_same_end(llama: Path, texts: Texts, tmp_path: Path) -> None:
    said: list[str] = []
    wanted = trained(llama, texts, None, lambda _: None)
    killed_at_step_9(llama, texts, tmp_path)
    found = trained(llama, texts, tmp_path, said.append)
    begin = int(said[0].removeprefix("going on after step ").split()[0])
    assert 0 < begin < 9
    assert sum(line.startswith("step ") for line in said) == PARAMS.steps - begin
    for name, value in wanted.items():
        assert torch.equal(found[name], value), name


def test_what_is_no_checkpoint_of_this_training_is_left_alone(llama: Path, texts: Texts, tmp_path: Path) -> None:
    said: list[str] = []
    killed_at_step_9(llama, texts, tmp_path)
    file = tmp_path / training_state.FILE
    other = without_layers(load(llama), [0, 1])
    distill(load(llama), other, texts, DistillParams(steps=1), 60.0, said.append, checkpoint=Checkpoint(tmp_path, 60.0))
    file.write_bytes(file.read_bytes()[:-100])
    trained(llama, texts, tmp_path, said.append)
    assert not any(line.startswith("going on") for line in said)


def test_a_disk_that_takes_no_checkpoint_ends_nothing(llama: Path, texts: Texts, tmp_path: Path) -> None:
    said: list[str] = []
    (tmp_path / "file").write_text("")
    trained(llama, texts, tmp_path / "file", said.append)
    assert any(line.startswith("no checkpoint could be written (") for line in said)
    assert said[-1].endswith(f"after {PARAMS.steps} steps")


class Clock:
    """Time that passes where a test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        for module in (distillation, training_state):
            monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now))

    def steps_in_ten_seconds(self, llama: Path, texts: Texts, checkpoint: Checkpoint) -> int:
        """How many of a second each are made."""

        said: list[str] = []

        def heard(message: str) -> None:
            said.append(message)
            self.now += message.startswith("step ")

        student, params = without_layers(load(llama), [1]), DistillParams(steps=40, learning_rate=1e-3)
        distill(load(llama), student, texts, params, 10.0, heard, checkpoint=checkpoint)
        return int(said[-1].rpartition(" after ")[2].split()[0])


@pytest.mark.parametrize(("spare_s", "steps"), [(0.0, 4), (2.0, 6), (100.0, 10)])
def test_writing_is_no_time_of_training_where_the_stage_has_time_to_spare(
    spare_s: float, steps: int, llama: Path, texts: Texts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)

    def write(*_: object) -> None:
        clock.now += 6

    monkeypatch.setattr(training_state, "_write", write)
    checkpoint = Checkpoint(tmp_path, 10.0, spare_s, every_s=0.0)
    assert clock.steps_in_ten_seconds(llama, texts, checkpoint) == steps
    assert clock.now == steps + 6


@pytest.mark.parametrize(("bytes_s", "every_s"), [(1e6, 0.0), (100e6, 10.0)])
def test_a_checkpoint_that_would_take_too_long_or_come_too_late_is_not_written(
    bytes_s: float, every_s: float, llama: Path, texts: Texts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one, of which nothing was measured, too: this one has 1.9 MB, of which a twentieth of 10 seconds must suffice."""
    monkeypatch.setattr(training_state, "BYTES_S", bytes_s)
    clock = Clock(monkeypatch)
    assert clock.steps_in_ten_seconds(llama, texts, Checkpoint(tmp_path, 10.0, every_s=every_s)) == 10
    assert not any(tmp_path.iterdir())


def test_processes_wait_for_the_longest_checkpoint(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, float]] = []
    monkeypatch.setattr("genopt.techniques.distill.run", lambda *_, **named: told.append(named))
    write_sequences(tmp_path / "text.parquet", written_by(llama, 4, 64), [])
    context = TransformContext(original="", calibration=str(tmp_path / "text.parquet"), seed=0, threads=2, time_limit_s=20_000)
    Distill.apply(llama, tmp_path, {"time_s": 7200}, context, lambda _: None)
    assert told == [{"patience_s": 120 + 7200}]


def test_too_little_text_to_distill_on_is_named(llama: Path, tmp_path: Path) -> None:
    table = tmp_path / "calibration.parquet"
    pq.write_table(pa.table({"ids": pa.array([[1, 2, 3]], pa.list_(pa.int32()))}), table)
    context = TransformContext(original=str(llama), calibration=str(table), seed=0, threads=2, time_limit_s=100)
    with pytest.raises(DataError, match="too short to distill on; give a longer one with --calib-data"):
        Distill.apply(llama, tmp_path, {}, context, lambda _: None)
