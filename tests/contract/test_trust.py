"""Code that comes with a model runs where it was allowed, in every process that loads the model, and nowhere else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from genopt.engines.base import GenerationRequest
from genopt.errors import GenoptError
from genopt.models import trust
from genopt.process import SessionProcess, run_stage
from genopt.techniques.base import TransformContext
from genopt.testing.tiny_models import write_tiny_llama

OWN = """
from pathlib import Path

from transformers import LlamaConfig, LlamaForCausalLM

Path(__file__).with_name("ran").touch()


class OwnConfig(LlamaConfig):
    model_type = "own_llama"


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""
ASKED = GenerationRequest(prompt_ids=(5, 6, 7), max_new_tokens=4)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = write_tiny_llama(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    named = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "own_llama", "auto_map": named}))
    (folder / "own.py").write_text(OWN)
    return folder


def test_trusted_code_runs_in_stages_and_sessions(model: Path, tmp_path: Path) -> None:
    allowed = trust.variables(True)
    made = tmp_path / "made"
    made.mkdir()
    context = TransformContext(original=str(model), calibration=None, seed=0, threads=1, time_limit_s=120)
    payload = {
        "technique": "magnitude_prune", "source": str(model), "destination": str(made), "params": {},
        "context": context.model_dump(mode="json", exclude={"time_limit_s"}),
    }  # fmt: skip
    run_stage("transform", payload, log=tmp_path / "log", timeout_s=120, threads=1, environment=allowed)
    for folder in (model, made):
        with SessionProcess("torch", folder, {}, log=tmp_path / "log", timeout_s=120, threads=1, environment=allowed) as session:
            assert len(session.generate([ASKED])[0].token_ids) == 4
    assert list((tmp_path / "modules").rglob("ran"))


def test_code_that_nobody_trusts_does_not_run(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(trust.VARIABLE, "1")  # what a node's environment says counts for nothing
    session = SessionProcess("torch", model, {}, log=tmp_path / "log", timeout_s=120, threads=1, environment=trust.variables(False))
    with pytest.raises(GenoptError, match="contains custom code"):
        session.open()
    assert not list((tmp_path / "modules").rglob("ran"))
