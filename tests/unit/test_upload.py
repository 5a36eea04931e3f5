"""What goes along with a job: the files that its command names and no more, and nothing that is large."""

from __future__ import annotations

from pathlib import Path

import pytest

from genopt.distributed import upload
from genopt.distributed.upload import working_folder
from genopt.errors import SpecError


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder."""
    folder = tmp_path / "here"
    (folder / "data").mkdir(parents=True)
    for name in ("spec.yaml", "data/questions.jsonl", "unrelated.bin"):
        (folder / name).write_text(name, encoding="utf-8")
    monkeypatch.chdir(folder)
    return folder


def sent(*words: str, chosen: Path | None = None) -> set[str] | None:
    with working_folder(words, chosen) as folder:
        return None if folder is None else {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.usefixtures("here")
def test_files_that_are_named_by_relative_paths_go_along_under_their_names() -> None:
    assert sent("optimize", "--config", "spec.yaml", "--eval-data=data/questions.jsonl") == {"spec.yaml", "data/questions.jsonl"}


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


def test_a_chosen_folder_goes_along_without_what_it_ignores(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sent("optimize", chosen=here) == {"spec.yaml", "data/questions.jsonl", "unrelated.bin"}
    monkeypatch.setattr(upload, "MOST_BYTES", 40)
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
