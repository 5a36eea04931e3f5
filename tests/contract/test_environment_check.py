"""What `genopt env check` says: a line for each thing that works, and what libraries said where one does not."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import MappingProxyType

import pytest

from genopt import catalog
from genopt.cli import main
from genopt.environments import build as building
from genopt.environments import place
from genopt.environments.declaration import find
from genopt.techniques.attach_draft import AttachDraft
from genopt.techniques.magnitude_prune import MagnitudePrune
from genopt.testing.contracts import runs_here


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment with this interpreter."""
    (tmp_path / "declares_tiny").mkdir()
    (tmp_path / "declares_tiny" / "__init__.py").write_text(
        "from genopt.environments.declaration import Environment\n"
        "TINY = Environment(name='tiny', about='it is here', package='declares_tiny', lock='lock.txt', disk_bytes=1)\n"
    )
    (tmp_path / "declares_tiny" / "lock.txt").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "declares_tiny", raising=False)
    monkeypatch.setenv(place.VARIABLE, str(tmp_path / "envs"))
    names = {**catalog.BUILT_IN, "environments": {**catalog.BUILT_IN["environments"], "tiny": "declares_tiny:TINY"}}
    monkeypatch.setattr(catalog, "BUILT_IN", MappingProxyType(names))
    building.adopt(find("tiny"), Path(sys.executable))


def test_what_works_is_said_in_a_line_and_libraries_are_silent(
    tiny: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    monkeypatch.setattr(MagnitudePrune, "environment", "tiny")
    assert main(["env", "check", "tiny", "--json"]) == 0
    said = capfd.readouterr()
    (line,) = said.err.splitlines()
    assert line.startswith("✓ magnitude_prune changed a tiny model in ")
    assert [one["name"] for one in json.loads(said.out)] == ["magnitude_prune"]


def test_what_fails_is_said_after_what_libraries_said(tiny: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(AttachDraft, "environment", "tiny")
    assert main(["env", "check", "tiny"]) == 2
    *log, last = capfd.readouterr().err.splitlines()
    assert last.startswith("genopt: Bad setting 'given' of attach_draft")
    assert any("Traceback" in line for line in log)


if runs_here("engines", "llamacpp"):

    def test_an_engine_that_works_takes_a_line(capfd: pytest.CaptureFixture[str]) -> None:
        assert main(["env", "check", "llamacpp"]) == 0
        (line,) = capfd.readouterr().err.splitlines()
        assert line.startswith("✓ llamacpp opened a tiny model in ")
        assert " s and generated token " in line
