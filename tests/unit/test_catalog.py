"""The catalogue: its names, its errors, and entries of other distributions."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import get_args

import pytest

from genopt import catalog
from genopt.errors import SpecError

KINDS: tuple[catalog.Kind, ...] = get_args(catalog.Kind)


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, entry_points: str) -> None:
    """Makes a distribution with these entry points importable."""
    info = folder / "genopt_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: genopt-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entry_points)
    (folder / "genopt_plugin_module.py").write_text("class Nothing:\n    name = 'nothing'\n")
    monkeypatch.syspath_prepend(str(folder))


@pytest.mark.parametrize("kind", KINDS)
def test_every_name_leads_to_a_module_that_exists(kind: catalog.Kind) -> None:
    for target in catalog.BUILT_IN[kind].values():
        module, _, attribute = target.partition(":")
        assert importlib.util.find_spec(module) is not None, target
        assert attribute.isidentifier()


def test_loading_gives_the_class_of_that_name() -> None:
    assert catalog.load("tasks", "text-generation").name == "text-generation"


@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_name_lists_the_known_ones(kind: catalog.Kind) -> None:
    with pytest.raises(SpecError, match=r"There is no .* 'none'; choose one of ") as caught:
        catalog.load(kind, "none")
    assert all(name in str(caught.value) for name in catalog.BUILT_IN[kind])


def test_another_distribution_adds_an_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, "[genopt.techniques]\nnothing = genopt_plugin_module:Nothing\n")
    assert catalog.names("techniques")["nothing"] == "genopt_plugin_module:Nothing"
    assert catalog.load("techniques", "nothing").name == "nothing"


def test_a_name_is_registered_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, "[genopt.engines]\ntorch = genopt_plugin_module:Nothing\n")
    with pytest.raises(SpecError, match="'torch' is registered twice"):
        catalog.names("engines")
