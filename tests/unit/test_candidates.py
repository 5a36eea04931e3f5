"""What `--include` and `--exclude` may name: whatever a run can try, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from genopt.cli import main
from genopt.distributed.candidates import first_candidates
from genopt.errors import SpecError
from genopt.spec import build
from genopt.tasks.text_generation import TextGeneration
from genopt.testing.fake_task import write_fake_model


def wanted(task: str = "text-generation", **words: list[str]) -> list[str]:
    spec = build({"model": "m", **words})
    return [plan.name for plan in first_candidates(spec, task, {}) if spec.wants(plan)]


def test_each_first_candidate_can_be_named() -> None:
    for name in wanted():
        assert name in wanted(include=[name])
        assert name not in wanted(exclude=[name])


def test_names_that_only_the_search_or_another_task_knows_are_no_mistakes() -> None:
    space = TextGeneration.space()
    assert wanted(exclude=[space.plan(seed).name for seed in TextGeneration.seeds()])
    assert wanted(include=["ort-int8", "lookahead-8-spare-1-thread"])
    assert wanted(exclude=["diffusers", "student"]) == wanted()


@pytest.mark.parametrize("flag", ["include", "exclude"])
@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("openvno", "near it are openvino"), ("LlamaCpp", "near it are llamacpp"), ("lookahed-8", "near it are lookahead-8"),
        ("ort-imt8", "near it are ort-int"), ("xyzzy", "genopt plan MODEL"),
    ],
)  # fmt: skip
def test_a_value_in_no_name_is_refused_beside_good_ones(flag: str, value: str, says: str) -> None:
    with pytest.raises(SpecError, match=rf"--{flag} {value} is in no name .*{says}.*\.$"):
        wanted(**{flag: ["vllm", value]})


def test_words_that_leave_nothing_are_refused() -> None:
    with pytest.raises(SpecError, match="No candidate is left"):
        wanted(include=["diffusers"])


def test_the_command_ends_as_after_other_bad_flags(tmp_path: Path, own_store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_fake_model(tmp_path / "model")
    assert main(["plan", str(tmp_path / "model"), "--exclude", "openvno"]) == 2
    assert "--exclude openvno" in capsys.readouterr().err.splitlines()[-1]
