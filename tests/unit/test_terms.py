"""A run goes on only under the terms that it began with, and a refusal shows what is different."""

from __future__ import annotations

from pathlib import Path

import pytest

from genopt.distributed.terms import require_same, require_same_model, require_same_spec, terms_of
from genopt.errors import RunFolderError
from genopt.spec import RunSpec, build, dump, load
from genopt.store.run_folder import RunFolder

LIBRARIES = {"torch": "2.13.0", "numpy": "2.4.6"}
GIVEN = {"vae": "abc"}
HARDWARE = {"cpu": "EPYC", "gpus": "NVIDIA H100"}


@pytest.fixture
def spec(tmp_path: Path) -> RunSpec:
    (tmp_path / "mine.txt").write_text("some text")
    return build({"model": "m", "quality": "99.5%", "eval_data": str(tmp_path / "mine.txt"), "include": ["int8"]})


@pytest.fixture
def run(tmp_path: Path, spec: RunSpec) -> RunFolder:
    folder = RunFolder.create(tmp_path / "run", dump(spec), {})
    folder.append("run_started", budget_s=60.0, **terms_of(spec, LIBRARIES, GIVEN, HARDWARE).model_dump(mode="json"))
    return folder


def refusal(run: RunFolder, spec: RunSpec, libraries: dict[str, str]) -> str:
    with pytest.raises(RunFolderError) as caught:
        require_same(run, terms_of(spec, libraries, GIVEN, HARDWARE))
    assert caught.value.exit_code == 2
    assert "--out" in str(caught.value)
    return str(caught.value)


def test_the_same_terms_are_accepted(run: RunFolder) -> None:
    read = build(load(run.path / "spec.yaml"))
    require_same_spec(run, read)
    require_same(run, terms_of(read, LIBRARIES, GIVEN, HARDWARE))
    require_same_model(run, "abc", "abc")
    require_same_model(run, "", "abc")


def test_an_edited_spec_is_refused_with_each_edit(run: RunFolder) -> None:
    path = run.path / "spec.yaml"
    path.write_text(path.read_text().replace("quality: 0.995", "quality: 0.9").replace("seed: 0", "seed: 7"))
    with pytest.raises(RunFolderError, match=r"spec.yaml has changed .*\(quality: 0.995 -> 0.9; seed: 0 -> 7\); undo that") as caught:
        require_same_spec(run, build(load(path)))
    assert caught.value.exit_code == 2


def test_other_libraries_are_refused_with_their_versions(run: RunFolder, spec: RunSpec) -> None:
    message = refusal(run, spec, {"torch": "2.14.0", "onnx": "1.0"})
    assert "torch: 2.13.0 -> 2.14.0" in message
    assert "numpy: 2.4.6 -> absent" in message
    assert "onnx: absent -> 1.0" in message


def test_another_text_in_the_same_file_is_refused(run: RunFolder, spec: RunSpec, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("another text")
    assert "eval_data: " in refusal(run, spec, LIBRARIES)


def test_data_that_is_gone_is_named(run: RunFolder, spec: RunSpec) -> None:
    assert spec.eval_data is not None
    Path(spec.eval_data).unlink()
    with pytest.raises(RunFolderError, match=r"Data files have changed .* \(eval_data: [0-9a-f]+… -> absent\); put the earlier ones back"):
        require_same(run, terms_of(spec, LIBRARIES, GIVEN, HARDWARE))


def test_another_model_is_refused_with_both_digests(run: RunFolder) -> None:
    with pytest.raises(RunFolderError, match=r"The model has changed .*digest: abc -> def"):
        require_same_model(run, "abc", "def")


def test_a_run_that_does_not_say_what_it_began_with_is_refused(tmp_path: Path, spec: RunSpec) -> None:
    folder = RunFolder.create(tmp_path / "old", dump(spec), {})
    with pytest.raises(RunFolderError, match="cannot be continued"):
        require_same_spec(folder, spec)


def test_other_hardware_is_refused_with_what_it_was(run: RunFolder, spec: RunSpec) -> None:
    with pytest.raises(RunFolderError, match=r"hardware .* changed .*\(gpus: NVIDIA H100 -> NVIDIA L4\); continue it on such nodes"):
        require_same(run, terms_of(spec, LIBRARIES, GIVEN, {**HARDWARE, "gpus": "NVIDIA L4"}))
