"""Paths in a spec hold in every folder, and what is no path stays as it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from genopt.distributed.local_files import with_absolute_paths
from genopt.spec import RunSpec, build, dump, load

IN_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
FILES = ("mine.txt", "calibration.txt", "prompts.jsonl", "task.yaml")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with everything that a spec may name, and names of other things as well."""
    for name in FILES:
        (tmp_path / name).write_text("text")
    for name in ("model", "vae", "clip", "smollm2-135m", "arc_easy"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv(IN_JOB, raising=False)
    return tmp_path


def named(prefix: str = "") -> RunSpec:
    return build({
        "model": f"{prefix}model", "eval_data": f"{prefix}mine.txt", "calib_data": f"{prefix}calibration.txt", "prompts": f"{prefix}prompts.jsonl",
        "scorer": f"{prefix}clip", "eval_tasks": [f"{prefix}task.yaml"], "given": {"vae": f"{prefix}vae"},
    })  # fmt: skip


@pytest.mark.parametrize("prefix", ["", "./", "~/"])
def test_what_is_here_is_named_from_the_root(prefix: str, here: Path) -> None:
    assert with_absolute_paths(named(prefix)) == named(f"{here}/")


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("model", ["smollm2-135m", "HuggingFaceTB/SmolLM2-135M", "~nobody-is-called-so/model"])
def test_what_is_no_path_stays(model: str) -> None:
    spec = build({
        "model": model, "eval_data": "gone.txt", "scorer": "my.module:score", "eval_tasks": ["arc_easy"], "store": "s3://bucket/store",
    })  # fmt: skip
    assert with_absolute_paths(spec) == spec


def test_what_came_along_with_a_job_is_found_by_the_next_one(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(IN_JOB, "{}")
    assert with_absolute_paths(named()) == named()
    assert with_absolute_paths(named("~/")) == named(f"{here}/")


def test_a_spec_that_was_written_with_them_says_the_same_elsewhere(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = dump(with_absolute_paths(named()))
    monkeypatch.chdir(here / "model")
    (here / "model" / "mine.txt").write_text("another text")
    (here / "spec.yaml").write_text(written)
    assert with_absolute_paths(build(load(here / "spec.yaml"))) == named(f"{here}/")
