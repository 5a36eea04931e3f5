"""What goes along with a job: the files that its command names and no more, and nothing that is large."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from genopt.distributed import upload
from genopt.distributed.upload import working_folder
from genopt.errors import SpecError


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder."""
    folder = tmp_path / "here"
    (folder / "data").mkdir(parents=True)
    for name in ("spec.yaml", "data/questions.jsonl", "unrelated.bin"):
        (folder / name).write_text("max_trials: 1", encoding="utf-8")
    monkeypatch.chdir(folder)
    return folder


def sent(*words: str, chosen: Path | None = None) -> set[str] | None:
    with working_folder(words, chosen) as folder:
        return None if folder is None else {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.usefixtures("here")
def test_files_that_are_named_by_relative_paths_go_along_under_their_names() -> None:
    assert sent("optimize", "--config", "spec.yaml", "--eval-data=data/questions.jsonl") == {"spec.yaml", "data/questions.jsonl"}


@pytest.mark.parametrize("config", [("--config", "mine.yaml"), ("--config=mine.yaml",), ("--config", "{here}/mine.yaml")])
def test_files_that_the_spec_names_go_along_as_well(config: tuple[str, ...], here: Path) -> None:
    for name in ("prompts.txt", "task.yaml", "data/calibration.txt", "data/vae.bin", "absolute.txt"):
        (here / name).write_text(name, encoding="utf-8")
    (here / "mine.yaml").write_text(
        yaml.safe_dump({
            "model": "smollm2-135m", "eval_data": "./data/questions.jsonl", "calib_data": "data/calibration.txt", "prompts": "prompts.txt",
            "eval_tasks": ["arc_easy", "task.yaml"], "given": {"vae": "data/vae.bin", "lora": "data"}, "scorer": str(here / "absolute.txt"),
            "max_trials": 3, "out": "x" * 5000,
        }),
        encoding="utf-8",
    )  # fmt: skip
    named = {"data/questions.jsonl", "data/calibration.txt", "prompts.txt", "task.yaml", "data/vae.bin"}
    spec = set() if "{here}" in config[-1] else {"mine.yaml"}
    assert sent("optimize", *(word.format(here=here) for word in config)) == named | spec


@pytest.mark.usefixtures("here")
def test_a_file_of_another_option_is_no_spec() -> None:
    Path("mine.yaml").write_text("eval_data: data/questions.jsonl", encoding="utf-8")
    assert sent("optimize", "--eval-data", "mine.yaml", "--config=spec.yaml", "unrelated.bin") == {"mine.yaml", "spec.yaml", "unrelated.bin"}


def test_a_spec_may_not_name_what_lies_outside_of_the_current_folder(here: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("")
    (here / "mine.yaml").write_text("prompts: ../secret.txt", encoding="utf-8")
    with pytest.raises(SpecError, match=r"\.\./secret\.txt lies outside"):
        sent("optimize", "--config", "mine.yaml")


def test_what_nodes_find_themselves_stays(here: Path) -> None:
    assert sent("optimize", "smollm2-135m", "--config", str(here / "spec.yaml"), "--out", "data", "--budget", "10m") is None


@pytest.mark.usefixtures("here")
def test_a_file_outside_of_the_current_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("")
    with pytest.raises(SpecError, match=r"\.\./secret\.txt lies outside"):
        sent("optimize", "--eval-data", "../secret.txt")


@pytest.mark.usefixtures("here")
def test_a_file_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "MOST_BYTES", 5)
    with pytest.raises(SpecError, match=r"mostly spec\.yaml"):
        sent("optimize", "--config", "spec.yaml")


def test_nothing_is_copied_of_what_is_too_large(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (here / "model.bin").open("wb") as file:
        file.truncate(2 * int(upload.MOST_BYTES))  # takes no room, unlike a copy
    monkeypatch.setattr(shutil, "copyfile", lambda source, target: pytest.fail(f"{source} was copied"))
    with pytest.raises(SpecError, match=r"mostly model\.bin"):
        sent("optimize", "./model.bin")


def test_a_chosen_folder_goes_along_without_what_it_ignores(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sent("optimize", chosen=here) == {"spec.yaml", "data/questions.jsonl", "unrelated.bin"}
    monkeypatch.setattr(upload, "MOST_BYTES", 35)
    with pytest.raises(SpecError, match="mostly"):
        sent("optimize", chosen=here)
    (here / ".rayignore").write_text("data/\nunrelated.bin\n", encoding="utf-8")
    assert sent("optimize", chosen=here), "Ray leaves out what is ignored when it packs the folder"
    with pytest.raises(SpecError, match="no folder"):
        sent("optimize", chosen=here / "none")


@pytest.mark.usefixtures("here")
def test_the_same_folder_named_otherwise_is_measured_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "MOST_BYTES", 5)
    with pytest.raises(SpecError, match=r"mostly (data|spec\.yaml|unrelated\.bin)"):
        sent("optimize", chosen=Path())
