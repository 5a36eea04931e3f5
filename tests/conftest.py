"""Fixtures of all tiers: a store of its own for every test, and no Ray in unit tests."""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import psutil
import pytest
from hypothesis import settings

settings.register_profile("explore", deadline=None)
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")
"""Whether a test passes must depend neither on how busy the machine is nor on chance; `--hypothesis-profile explore` looks for new examples."""


def refuse(*_arguments: object, **_options: object) -> None:
    """Stands in for `ray.init`."""
    raise AssertionError("a unit test started Ray; such tests belong to tests/ray")


class RefusingLoader(importlib.abc.Loader):
    """Imports Ray as usual, then replaces its `init`."""

    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        vars(module)["genuine_init"] = vars(module)["init"]
        vars(module)["init"] = refuse


class RefusingFinder(importlib.abc.MetaPathFinder):
    """Finds Ray, once, for a `RefusingLoader`."""

    def __init__(self) -> None:
        self._searching = False

    def find_spec(self, fullname: str, _path: Sequence[str] | None, _target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != "ray" or self._searching:
            return None
        self._searching = True
        spec = importlib.util.find_spec("ray")
        self._searching = False
        if spec is not None and spec.loader is not None:
            spec.loader = RefusingLoader(spec.loader)
        return spec


@pytest.fixture(autouse=True)
def own_store(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test writes artifacts into a folder of its own."""
    store = tmp_path_factory.mktemp("store")
    monkeypatch.setenv("GENOPT_STORE", str(store))
    return store


@pytest.fixture
def started() -> Callable[[], set[psutil.Process]]:
    """The processes that the test has started and that run still: others, such as multiprocessing's tracker, may outlive the tests before it."""
    before = set(psutil.Process().children())
    return lambda: set(psutil.Process().children()) - before


@pytest.fixture(autouse=True)
def no_ray_in_unit_tests(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In tests/unit `ray.init` fails, whether Ray was imported before or the test imports it; other tiers get the genuine one."""
    if request.path.parent.name != "unit":
        yield
        return
    if "ray" in sys.modules:
        monkeypatch.setattr("ray.init", refuse)
        yield
        return
    finder = RefusingFinder()
    sys.meta_path.insert(0, finder)
    yield
    sys.meta_path.remove(finder)
    if "ray" in sys.modules:
        loaded = vars(sys.modules["ray"])
        loaded["init"] = loaded.pop("genuine_init", loaded["init"])
