"""A variant leaves the store whole, for a program that takes it, with a note of where it comes from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import genopt
from genopt.cli import main
from genopt.errors import StorageError
from genopt.report.export import ORIGIN
from genopt.testing.fake_run import REJECTED, WINNER, write_fake_run


def test_the_winner_is_copied_with_its_origin(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = write_fake_run(tmp_path / "run"), tmp_path / "there" / "out"
    assert main(["export", str(run.path), "--out", str(out), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["variant"], said["formats"], said["bytes"]) == (WINNER, ["transformers", "vllm"], 2064)
    assert (out / "model.safetensors").read_bytes() == (tmp_path / "run-model" / "model.safetensors").read_bytes()
    origin = json.loads((out / ORIGIN).read_text())
    assert (origin["candidate"]["name"], origin["artifact_digest"]) == (WINNER, "d1" * 32)
    notes = (out / "GENOPT.md").read_text()
    assert "3.00× that of the original" in notes
    assert "vllm serve ." in notes
    assert [path.name for path in out.parent.iterdir()] == ["out"], "nothing half-written is left"


def test_a_program_gets_the_files_that_it_looks_for(tmp_path: Path) -> None:
    write_fake_run(tmp_path / "run", traits=("gguf",))
    found = genopt.load_run(tmp_path / "run").export(tmp_path / "out", to="ollama", variant="original")
    assert found.formats == ("ollama",)
    assert (tmp_path / "out" / "Modelfile").read_text() == "FROM ./model.gguf\n"


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--to", "llama.cpp"], 2, "quick is nothing that llama.cpp takes; no accepted candidate of this run is"),
        (["--to", "floppy"], 2, "There is no format 'floppy'; choose one of transformers, vllm"),
        (["--variant", REJECTED], 5, "choose an accepted candidate"),
        (["--variant", "nobody"], 5, "no candidate 'nobody'; it accepted"),
    ],
)
def test_what_does_not_fit_is_refused(arguments: list[str], code: int, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_fake_run(tmp_path / "run")
    assert main(["export", str(run.path), "--out", str(tmp_path / "out"), *arguments]) == code
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten_and_lost_files_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_fake_run(tmp_path / "run")
    (tmp_path / "out").mkdir()
    assert main(["export", str(run.path), "--out", str(tmp_path / "out")]) == 2
    assert "already exists" in capsys.readouterr().err
    (tmp_path / "run-model").rename(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match="gone from the store"):
        genopt.load_run(run.path).export(tmp_path / "other")


def test_a_folder_without_its_weights_is_not_exported(tmp_path: Path) -> None:
    run = write_fake_run(tmp_path / "run")
    (tmp_path / "run-model" / "model.safetensors").unlink()
    with pytest.raises(StorageError, match="gone from the store"):
        genopt.load_run(run.path).export(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_that_are_links_into_a_cache_count_as_long_as_they_lead_there(tmp_path: Path) -> None:
    run, weights = write_fake_run(tmp_path / "run"), tmp_path / "run-model" / "model.safetensors"
    kept = weights.rename(tmp_path / "blob")
    weights.symlink_to(kept)
    genopt.load_run(run.path).export(tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == kept.read_bytes()
    kept.unlink()
    with pytest.raises(StorageError, match="gone from the store"):
        genopt.load_run(run.path).export(tmp_path / "other")
