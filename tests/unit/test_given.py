"""Models that are given beside the one to optimize: what is taken, what is refused, and what they add to a run's candidates."""

from __future__ import annotations

from pathlib import Path

import pytest

from genopt.cli import main
from genopt.cli.options import given_of, spec_of
from genopt.distributed.terms import require_same, terms_of
from genopt.errors import DataError, ModelError, RunFolderError, SpecError
from genopt.models.given import digests_of, require_given, resolve_given
from genopt.plan import Step
from genopt.spec import build, dump, load
from genopt.store.run_folder import RunFolder
from genopt.tasks.text_generation import TextGeneration
from genopt.tasks.text_to_image import TextToImage
from genopt.testing.fake_task import write_fake_model

KINDS = {"vae": "a tiny autoencoder"}
DIGEST = "a" * 64


@pytest.fixture
def vae(tmp_path: Path) -> Path:
    (tmp_path / "taesd").mkdir()
    (tmp_path / "taesd" / "diffusion_pytorch_model.safetensors").write_bytes(b"weights")
    return tmp_path / "taesd"


def test_the_flag_lies_over_the_file_and_comes_back_from_the_spec(tmp_path: Path) -> None:
    config = tmp_path / "spec.yaml"
    config.write_text("model: m\ngiven: {vae: ./one}\n")
    assert spec_of(None, config, given=given_of(None)).given == {"vae": "./one"}
    spec = spec_of(None, config, given=given_of(["vae=./other", "student=a=b"]))
    assert spec.given == {"vae": "./other", "student": "a=b"}
    config.write_text(dump(spec))
    assert build(load(config)) == spec


def test_a_file_that_cannot_be_read_is_named(vae: Path) -> None:
    (vae / "notes.bin").symlink_to("/proc/self/mem")
    with pytest.raises(ModelError, match=r"notes\.bin cannot be read"):
        resolve_given({"vae": str(vae)}, str)


@pytest.mark.parametrize("word", ["vae", "=./taesd", ""])
def test_what_is_no_pair_is_refused(word: str) -> None:
    with pytest.raises(SpecError, match=r"no KEY=VALUE pair; write for example vae=\./taesd"):
        given_of([word])


def test_a_spec_needs_a_mapping() -> None:
    with pytest.raises(SpecError, match="'given'"):
        build({"model": "m", "given": ["vae=./taesd"]})


def test_what_cannot_be_used_is_refused_with_the_remedy(vae: Path, tmp_path: Path) -> None:
    require_given({"vae": str(vae)}, KINDS)
    with pytest.raises(SpecError, match=r"takes no 'lora' .*; it takes vae=FOLDER, a tiny autoencoder\."):
        require_given({"lora": str(vae)}, KINDS)
    with pytest.raises(SpecError, match="leave --given out"):
        require_given({"vae": str(vae)}, {})
    with pytest.raises(DataError, match=r"There is no folder .*; give a tiny autoencoder with --given vae=FOLDER\."):
        require_given({"vae": str(tmp_path / "none")}, KINDS)
    (vae / "diffusion_pytorch_model.safetensors").rename(vae / "diffusion_pytorch_model.bin")
    with pytest.raises(DataError, match=r"holds no \.safetensors file"):
        require_given({"vae": str(vae)}, KINDS)


def test_a_command_refuses_an_unknown_kind_in_one_sentence(
    vae: Path, tmp_path: Path, own_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    write_fake_model(tmp_path / "model")
    assert main(["plan", str(tmp_path / "model"), "--given", f"vae={vae}"]) == 2
    assert "This task takes no 'vae' beside the model" in capsys.readouterr().err.splitlines()[-1]


def test_plans_name_a_folder_by_its_bytes(vae: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = resolve_given({"vae": "taesd"}, lambda _: None)
    assert first["vae"].path == str(vae)
    assert resolve_given({"vae": str(vae)}, lambda _: None) == first
    (vae / "diffusion_pytorch_model.safetensors").write_bytes(b"others")
    assert digests_of(resolve_given({"vae": str(vae)}, lambda _: None)) != digests_of(first)


def test_a_run_does_not_go_on_with_another_model(tmp_path: Path) -> None:
    spec = build({"model": "m", "given": {"vae": "taesd"}})
    folder = RunFolder.create(tmp_path / "run", dump(spec), {})
    folder.append("run_started", budget_s=60.0, **terms_of(spec, {}, {"vae": DIGEST}, {}).model_dump(mode="json"))
    require_same(folder, terms_of(spec, {}, {"vae": DIGEST}, {}))
    with pytest.raises(RunFolderError, match=r"given vae: aaa.* -> bbb"):
        require_same(folder, terms_of(spec, {}, {"vae": "b" * 64}, {}))


def test_a_tiny_vae_adds_candidates() -> None:
    plain, more = TextToImage.catalogue({}, 600.0), TextToImage.catalogue({"vae": DIGEST}, 600.0)
    added = [plan for plan in more if plan not in plain]
    assert [plan for plan in more if plan not in added] == plain
    assert {plan.name for plan in added} == {"tiny-vae", "tiny-vae-dpm-15-steps"}
    assert all(plan.steps == (Step(technique="diffusers_tiny_vae", params={"given": DIGEST}),) for plan in added)


def test_a_lora_adds_candidates_of_few_steps() -> None:
    plain, more = TextToImage.catalogue({}, 600.0), TextToImage.catalogue({"lora": DIGEST}, 600.0)
    added = {plan.name: plan.options["num_inference_steps"] for plan in more if plan not in plain}
    assert added == {"lora-lcm-4-steps": 4, "lora-lcm-8-steps": 8}


def test_a_student_adds_candidates() -> None:
    plain, more = TextGeneration.catalogue({}, 600.0), TextGeneration.catalogue({"student": DIGEST}, 600.0)
    added = [plan for plan in more if plan not in plain]
    assert [plan for plan in more if plan not in added] == plain
    assert {plan.name: [step.technique for step in plan.steps] for plan in added} == {
        "student": ["distill_given"], "student-ort-int8": ["distill_given", "onnx_genai", "onnx_weight_only"],
    }  # fmt: skip
    assert all(plan.steps[0].params["given"] == DIGEST for plan in added)


def test_a_draft_adds_candidates_that_guess() -> None:
    plain, more = TextGeneration.catalogue({}, 600.0), TextGeneration.catalogue({"draft": DIGEST}, 600.0)
    added = {plan.name: ([step.technique for step in plan.steps], plan.engine, plan.options) for plan in more if plan not in plain}
    assert added == {
        "vllm-draft": (["attach_draft"], "vllm", {"draft_tokens": 4}), "vllm-cpu-draft": (["attach_draft"], "vllm_cpu", {"draft_tokens": 4}),
    }  # fmt: skip


def test_nothing_is_added_without_a_given_model() -> None:
    assert all("given" not in step.params for task in (TextGeneration, TextToImage) for plan in task.catalogue({}, 600.0) for step in plan.steps)


@pytest.mark.parametrize("task", [TextGeneration, TextToImage])
def test_training_takes_its_share_of_the_run_s_time(task: type[TextGeneration | TextToImage]) -> None:
    def boxes(budget_s: float) -> list[float]:
        return [step.params["time_s"] for plan in task.catalogue({"student": DIGEST}, budget_s) for step in plan.steps if "time_s" in step.params]

    short, long = boxes(600.0), boxes(3600.0)
    assert short
    assert long == [6 * each for each in short]
    assert all(each >= 1 for each in boxes(1.0))
