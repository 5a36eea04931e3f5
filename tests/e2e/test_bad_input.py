"""What a user may get wrong: one sentence that says what to do, and an exit code that scripts can rely on."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from genopt.cli import main
from genopt.testing.fake_task import write_fake_model

pytestmark = pytest.mark.e2e


class Ended(NamedTuple):
    code: int
    out: str
    err: str


Genopt = Callable[..., Ended]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_fake_model(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def genopt(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Genopt:
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Ended:
        code = main([str(argument) for argument in arguments])
        return Ended(code, *capfd.readouterr())

    return run


def assert_refused(ended: Ended, code: int, *words: str) -> None:
    last = ended.err.strip().splitlines()[-1]
    assert ended.code == code, ended.err
    assert "Traceback" not in ended.err
    assert [word for word in words if word not in last] == []
    assert last.endswith((".", ")"))


def test_missing_model(genopt: Genopt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert_refused(genopt("optimize", "./nowhere"), 2, "There is no folder", "smollm2-135m")
    assert_refused(genopt("optimize", "nobody/nothing"), 2, "nobody/nothing")
    assert_refused(genopt("optimize"), 2, "model")


def test_model_without_tokenizer(genopt: Genopt, model: Path) -> None:
    (model / "tokenizer.json").unlink()
    assert_refused(genopt("optimize", model), 2, "tokenizer")


def test_corrupt_weights(genopt: Genopt, model: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    assert_refused(genopt("optimize", model), 2, "model.safetensors")


def test_a_model_that_generates_nothing(genopt: Genopt, model: Path) -> None:
    config = model / "config.json"
    config.write_text(config.read_text().replace("LlamaForCausalLM", "BertModel").replace('"llama"', '"bert"'))
    assert_refused(genopt("optimize", model), 2, "BertModel")


@pytest.mark.parametrize("flag", ["--eval-data", "--calib-data"])
def test_data_files(genopt: Genopt, model: Path, tmp_path: Path, flag: str) -> None:
    assert_refused(genopt("optimize", model, flag, tmp_path / "none.txt"), 2, "none.txt")
    (tmp_path / "empty.txt").write_text("")
    assert_refused(genopt("optimize", model, flag, tmp_path / "empty.txt"), 2, "empty.txt")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 not really")
    assert_refused(genopt("optimize", model, flag, tmp_path / "broken.parquet"), 2, "broken.parquet")
    assert_refused(genopt("optimize", model, flag, tmp_path), 2, str(tmp_path))


def test_a_budget_below_what_a_baseline_needs(genopt: Genopt, model: Path) -> None:
    assert_refused(genopt("optimize", model, "--budget", "3s"), 4, "--budget 10m")


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (("--budget", "soon"), "budget"), (("--quality", "101%"), "quality"), (("--objective", "beauty"), "objective"),
        (("--slo", "ttft=1s"), "slo"), (("--concurrency", "0"), "concurrency"), (("--port", "99999"), "port"), (("--task", "chess"), "chess"),
        (("--include", "nothing-like-it"), "--include"), (("--seed", "-1"), "seed"), (("--seed", "4294967296"), "seed"),
    ],
)  # fmt: skip
def test_bad_values(genopt: Genopt, model: Path, flags: tuple[str, str], word: str) -> None:
    assert_refused(genopt("optimize", model, *flags), 2, word)


def test_unknown_flags_and_keys(genopt: Genopt, model: Path, tmp_path: Path) -> None:
    assert "--bugdet" in genopt("optimize", model, "--bugdet", "1m").err
    assert genopt("optimize", model, "--bugdet", "1m").code == 2
    assert genopt("optimise", model).code == 2
    (tmp_path / "spec.yaml").write_text(f"model: {model}\nbugdet: 1m\n")
    assert_refused(genopt("optimize", "--config", tmp_path / "spec.yaml"), 2, "bugdet", "budget")
    (tmp_path / "list.yaml").write_text("- model\n")
    assert_refused(genopt("optimize", "--config", tmp_path / "list.yaml"), 2, "list.yaml")
    assert_refused(genopt("optimize", "--config", tmp_path / "none.yaml"), 2, "none.yaml")


def test_a_full_disk(genopt: Genopt, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: real(path)._replace(free=100))
    assert_refused(genopt("optimize", model), 1, "free", "--store")


def test_a_store_that_cannot_be_written(genopt: Genopt, model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert_refused(genopt("optimize", model, "--store", tmp_path / "file" / "store"), 1, "--store")
    assert_refused(genopt("optimize", model, "--store", "s3://bucket/store"), 1, "s3://bucket/store")


def test_a_port_that_is_taken(genopt: Genopt, model: Path) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        assert_refused(genopt("optimize", model, "--deploy", "--port", port), 5, str(port), "--port")


@pytest.mark.parametrize("address", ["127.0.0.1:9", "nowhere.invalid:6379", "head", "ray://127.0.0.1:10001"])
def test_a_cluster_that_does_not_answer(genopt: Genopt, model: Path, address: str) -> None:
    assert_refused(genopt("optimize", model, "--address", address), 1, address)
    assert_refused(genopt("doctor", "--address", address), 1, address)


def test_a_dashboard_that_does_not_answer(genopt: Genopt) -> None:
    assert_refused(genopt("submit", "--address", "http://127.0.0.1:9", "--", "optimize", "smollm2-135m"), 1, "127.0.0.1:9")
    for verb in (("jobs",), ("stop", "a-job")):
        assert_refused(genopt(*verb, "--address", "http://127.0.0.1:9"), 1, "127.0.0.1:9")
    assert_refused(genopt("submit", "--", "dance"), 2, "dance")


def test_run_folders(genopt: Genopt, model: Path, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "precious").write_text("mine")
    assert_refused(genopt("optimize", model, "--out", taken), 2, "already exists")
    assert [path.name for path in taken.iterdir()] == ["precious"]
    for verb in ("report", "resume", "deploy"):
        assert_refused(genopt(verb, taken), 2, "is not a run folder")
        assert_refused(genopt(verb, tmp_path / "none"), 2, "is not a run folder")


def test_nothing_is_left_behind_by_a_refusal(genopt: Genopt, model: Path, tmp_path: Path) -> None:
    genopt("optimize", model, "--address", "127.0.0.1:9")
    assert not (tmp_path / "runs").exists()


def test_errors_are_json_where_that_is_asked_for(genopt: Genopt, model: Path) -> None:
    ended = genopt("optimize", model, "--budget", "1s", "--json")
    assert ended.code == 4
    assert '"exit_code": 4' in ended.out


def test_debug_shows_the_traceback(genopt: Genopt) -> None:
    assert "Traceback" in genopt("optimize", "./nowhere", "--debug").err


def test_help_explains_every_verb(genopt: Genopt) -> None:
    ended = genopt("--help")
    assert ended.code == 0
    verbs = ("quickstart", "optimize", "resume", "plan", "profile", "report", "deploy", "undeploy", "status", "submit", "jobs", "stop", "doctor",
             "cluster")  # fmt: skip
    assert [verb for verb in verbs if verb not in ended.out] == []
    assert [verb for verb in verbs if genopt(verb, "--help").code != 0] == []
