"""`genopt doctor` on several nodes, each with a fault of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from genopt.cli import main
from genopt.distributed import cluster
from genopt.environments import place
from genopt.environments.declaration import find
from genopt.errors import ClusterError
from genopt.testing.nodes import Nodes
from genopt.testing.object_store import object_store

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with object_store() as uri:
        yield uri


@pytest.fixture(scope="module", autouse=True)
def two(bucket: str, nodes: Nodes) -> None:
    """One node has an engine environment that the other lacks, which cannot write its cache either."""
    nodes.add("one", env_vars={"GENOPT_STORE": str(nodes.folder / "one"), "GENOPT_ENVS": str(nodes.folder / "environments")})
    nodes.add("two", env_vars={"GENOPT_STORE": "/dev/null/store"})


@pytest.fixture
def built(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a build of an environment leaves, as node one has it."""
    monkeypatch.setenv(place.VARIABLE, str(nodes.folder / "environments"))
    environment = find("llamacpp")
    folder = place.folder_of(environment)
    place.interpreter(folder).parent.mkdir(parents=True)
    place.interpreter(folder).touch()
    note = place.BuildNote(name="llamacpp", digest=environment.digest(), python="3", seconds=1, bytes=1, installer="pip")
    (folder / place.NOTE).write_text(note.model_dump_json(), encoding="utf-8")


def faults(found: dict[str, Any], *words: str) -> list[tuple[str, ...]]:
    return [tuple(one["nodes"]) for one in found["findings"] if any(word in one["what"] for word in words)]


@pytest.mark.usefixtures("built")
def test_every_node_is_looked_at_and_each_fault_names_its_node(
    nodes: Nodes, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    newer = tmp_path / "newer" / "safetensors-99.0.dist-info"
    newer.mkdir(parents=True)
    (newer / "METADATA").write_text("Metadata-Version: 2.1\nName: safetensors\nVersion: 99.0\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(newer.parent))
    assert main(["doctor", "--address", nodes.address, "--store", bucket, "--json"]) == 1
    assert not ray.is_initialized()
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert {"one", "two"} < {node["name"] for node in found["nodes"]}
    assert all(node["facts"] is not None and abs(node["clock"]["ahead_s"]) < 1 for node in found["nodes"])
    assert faults(found, "the store cannot be used") == [("two",)]
    assert faults(found, "llamacpp") == [("two",)]
    (elsewhere,) = faults(found, "safetensors is")
    assert {"one", "two"} <= set(elsewhere)
    assert faults(found, "nvidia-smi") == [("one", "two")]
    assert faults(found, "no token") == [()]
    assert faults(found, "does not reach", "the clock", "is not there", "does not answer") == []
    assert "✗ two: the store cannot be used" in captured.err


def test_a_node_that_is_gone_costs_only_its_own_answers(nodes: Nodes, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    nodes.remove("two")
    assert main(["doctor", "--address", nodes.address, "--store", str(tmp_path), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    answered = {node["name"]: node["facts"] is not None for node in found["nodes"]}
    assert answered["one"]
    assert not answered.get("two", False), "until its heartbeats are missed it counts as alive"


def test_another_ray_is_refused_with_both_versions(nodes: Nodes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("ray._private.utils.compute_version_info", lambda: ("2.1.0", "3.9.1"))
    with pytest.raises(ClusterError, match=r"runs Ray \S+ on Python \S+, and this process Ray 2.1.0 on Python 3.9.1; use the same"):
        cluster.connect(nodes.address)
    assert main(["doctor", "--address", nodes.address]) == 1
    assert "Ray 2.1.0" in capsys.readouterr().err
