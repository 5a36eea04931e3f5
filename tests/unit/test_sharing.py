"""Folders of the driver's machine on machines that lack them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from genopt.distributed.building import BuildFacts
from genopt.distributed.cluster import COMPRESS, HOST_LABEL, MEASURE, ROLE_LABEL
from genopt.distributed.sharing import Borrowed, share
from genopt.errors import StorageError
from genopt.plan import Artifact
from genopt.store.artifacts import ArtifactStore, folder_digest
from genopt.store.remote import Remote
from genopt.store.shared import SharedStore
from genopt.tasks.base import BenchConfig

Join = Callable[..., None]


@pytest.fixture(autouse=True)
def join(monkeypatch: pytest.MonkeyPatch) -> Join:
    """Adds a node to what Ray tells of its cluster, which has none yet."""
    known: list[dict[str, Any]] = []

    def add(host: str, role: str = MEASURE, *, alive: bool = True) -> None:
        labels = {HOST_LABEL: host, ROLE_LABEL: role}
        known.append({"NodeID": str(len(known)), "NodeManagerHostname": "pod", "Labels": labels, "Resources": {"CPU": 2.0}, "Alive": alive})

    monkeypatch.setattr("ray.nodes", lambda: known)
    return add


@pytest.fixture
def two(join: Join) -> None:
    """Two machines that measure."""
    join("a")
    join("b")


def store(folder: Path, machine: str) -> SharedStore:
    return SharedStore(Remote((folder / "shared").as_uri()), folder / machine)


@pytest.fixture
def driver(tmp_path: Path) -> Path:
    """The driver's folders."""
    for name, file in (("model", "model.safetensors"), ("data", "text_set.json")):
        (tmp_path / "driver" / name).mkdir(parents=True)
        (tmp_path / "driver" / name / file).write_text(name)
    return tmp_path / "driver"


def config(driver: Path) -> BenchConfig:
    return BenchConfig(
        original=str(driver / "model"), artifact=Artifact(digest="m", path=str(driver / "model"), bytes=1), data=str(driver / "data/text_set.json"),
        logs="", quality=0.99, concurrency=(1,), output_tokens=8, threads=1, parameters=1, seed=0,
    )  # fmt: skip


@pytest.mark.usefixtures("two")
def test_machines_that_lack_a_folder_get_copies_until_they_are_closed(driver: Path, tmp_path: Path) -> None:
    shared = share(store(tmp_path, "one"), driver / "model", driver / "data")
    asked = config(driver)
    facts = BuildFacts(
        store="", shared=shared, original=asked.artifact, given={"m": str(driver / "model")},
        calibration=str(driver / "data" / "text_set.json"), calibration_digest="c", logs="", seed=0, threads=1, gpus=0, libraries={},
    )  # fmt: skip
    driver.rename(tmp_path / "away")
    with Borrowed(store(tmp_path, "two"), shared) as here:
        found = here.bench(asked)
        assert Path(found.original, "model.safetensors").read_text() == "model"
        assert Path(found.data).read_text() == "data"
        assert found.artifact.path == found.original != asked.original
        assert found.artifact.digest == "m", "its name stays"
        assert Path(facts.on_this_machine(here).calibration).read_text() == "data"
        assert Path(facts.on_this_machine(here).given["m"], "model.safetensors").read_text() == "model"
        assert here.path("/elsewhere") == "/elsewhere"


@pytest.mark.usefixtures("two")
def test_machines_that_have_a_folder_use_it(driver: Path, tmp_path: Path) -> None:
    shared = share(store(tmp_path, "one"), driver / "model", driver / "data")
    with Borrowed(store(tmp_path, "two"), shared) as here:
        assert here.bench(config(driver)) == config(driver)
    assert not (tmp_path / "two" / "artifacts").exists()


@pytest.mark.usefixtures("two")
def test_machines_that_have_something_else_at_that_path_get_copies(driver: Path, tmp_path: Path) -> None:
    shared, model = share(store(tmp_path, "one"), driver / "model"), driver / "model"
    with Borrowed(store(tmp_path, "two"), shared) as here:
        assert here.path(str(model)) == str(model)
    (model / "model.safetensors").write_text("older")
    older = folder_digest(model)[0]
    with Borrowed(store(tmp_path, "two"), shared) as here:
        assert Path(here.path(str(model)), "model.safetensors").read_text() == "model"
    assert share(store(tmp_path, "two"), model)[str(model)].digest == older
    with Borrowed(store(tmp_path, "two"), shared) as here:
        assert here.path(str(model)) != str(model), "what is known of its files is known of another digest"


@pytest.mark.usefixtures("two")
def test_a_folder_is_read_once(driver: Path, tmp_path: Path) -> None:
    shared, model = share(store(tmp_path, "one"), driver / "model"), driver / "model"
    with Borrowed(store(tmp_path, "two"), shared):
        pass
    weights = model / "model.safetensors"
    times = weights.stat()
    weights.write_text("MODEL")
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    for machine in ("one", "two"):
        with Borrowed(store(tmp_path, machine), shared) as here:
            assert here.path(str(model)) == str(model), "neither who shared it nor who borrowed it before reads it again"


def test_nothing_is_copied_for_one_machine_or_a_shared_folder(driver: Path, join: Join, tmp_path: Path) -> None:
    join("a")
    join("a", COMPRESS)
    join("b", alive=False)
    assert share(store(tmp_path, "one"), driver / "model") == {}
    join("b")
    assert share(ArtifactStore(tmp_path / "folder"), driver / "model") == {}
    assert not (tmp_path / "shared").exists()


def test_a_machine_that_only_builds_gets_the_original_too(driver: Path, join: Join, tmp_path: Path) -> None:
    join("a")
    join("spot", COMPRESS)
    shared = share(store(tmp_path, "one"), driver / "model")
    driver.rename(tmp_path / "away")
    with Borrowed(store(tmp_path, "two"), shared) as here:
        assert Path(here.path(str(driver / "model")), "model.safetensors").read_text() == "model"


@pytest.mark.usefixtures("two")
def test_a_folder_that_is_nowhere_is_explained(driver: Path, tmp_path: Path) -> None:
    shared = share(store(tmp_path, "one"), driver / "model")
    driver.rename(tmp_path / "away")
    (tmp_path / "shared").rename(tmp_path / "gone")
    with pytest.raises(StorageError, match="has no artifact"):
        Borrowed(store(tmp_path, "two"), shared)
