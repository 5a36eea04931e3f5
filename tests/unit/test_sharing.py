"""Folders of the driver's machine on machines that lack them."""

from __future__ import annotations

from pathlib import Path

import pytest

from genopt.distributed.building import BuildFacts
from genopt.distributed.cluster import Node
from genopt.distributed.sharing import Borrowed, share
from genopt.errors import StorageError
from genopt.plan import Artifact
from genopt.store.artifacts import ArtifactStore
from genopt.store.remote import Remote
from genopt.store.shared import SharedStore
from genopt.tasks.base import BenchConfig


def nodes(*hosts: str) -> list[Node]:
    return [Node(node_id=host, hostname=host, cpus=2, gpus=0) for host in hosts]


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


def test_machines_that_lack_a_folder_get_copies_until_they_are_closed(driver: Path, tmp_path: Path) -> None:
    shared = share(store(tmp_path, "one"), nodes("a", "b"), driver / "model", driver / "data")
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


def test_machines_that_have_a_folder_use_it(driver: Path, tmp_path: Path) -> None:
    shared = share(store(tmp_path, "one"), nodes("a", "b"), driver / "model", driver / "data")
    with Borrowed(store(tmp_path, "two"), shared) as here:
        assert here.bench(config(driver)) == config(driver)
    assert not (tmp_path / "two" / "artifacts").exists()


def test_nothing_is_copied_for_one_machine_or_a_shared_folder(driver: Path, tmp_path: Path) -> None:
    assert share(store(tmp_path, "one"), nodes("a", "a"), driver / "model") == {}
    assert share(ArtifactStore(tmp_path / "folder"), nodes("a", "b"), driver / "model") == {}
    assert not (tmp_path / "shared").exists()


def test_a_folder_that_is_nowhere_is_explained(driver: Path, tmp_path: Path) -> None:
    shared = share(store(tmp_path, "one"), nodes("a", "b"), driver / "model")
    driver.rename(tmp_path / "away")
    (tmp_path / "shared").rename(tmp_path / "gone")
    with pytest.raises(StorageError, match="has no artifact"):
        Borrowed(store(tmp_path, "two"), shared)
