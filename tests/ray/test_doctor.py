"""`genopt doctor` on several nodes, each with a fault of its own."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import ray

from genopt.cli import main
from genopt.distributed import cluster
from genopt.distributed.scaling import NODES, bring_up
from genopt.environments import place
from genopt.environments.declaration import find
from genopt.errors import ClusterError, SpecError
from genopt.progress import Silent
from genopt.testing.nodes import Nodes
from genopt.testing.object_store import object_store
from genopt.testing.sleep_task import sleep_plan

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with object_store() as uri:
        yield uri


OTHERWISE = """
import os
if "GENOPT_FAKE_OTHERWISE" in os.environ:
    import time
    from importlib import metadata
    version, clock = metadata.version, time.time
    metadata.version = lambda name: "1.0.0" if name == "safetensors" else version(name)
    time.time = lambda: clock() - 30
"""


@pytest.fixture(scope="module", autouse=True)
def two(bucket: str, nodes: Nodes) -> None:
    """One node is well. The other has another library and another time, lacks an environment, and cannot write its cache."""
    (nodes.folder / "plugin" / "sitecustomize.py").write_text(OTHERWISE, encoding="utf-8")
    nodes.add("one", env_vars={"GENOPT_STORE": str(nodes.folder / "one"), "GENOPT_ENVS": str(nodes.folder / "environments")})
    nodes.add("two", env_vars={"GENOPT_STORE": "/dev/null/store", "GENOPT_FAKE_OTHERWISE": "1"})


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
def test_every_node_is_looked_at_and_each_fault_names_its_node(nodes: Nodes, bucket: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--address", nodes.address, "--store", bucket, "--json"]) == 1
    assert not ray.is_initialized()
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert {"one", "two"} < {node["name"] for node in found["nodes"]}
    assert all(node["facts"] is not None for node in found["nodes"])
    assert faults(found, "the store cannot be used") == [("two",)]
    assert faults(found, "llamacpp") == [("two",)]
    assert faults(found, "safetensors is 1.0.0") == [("two",)]
    assert faults(found, "the clock is 30.0 s behind") == [("two",)]
    assert faults(found, "its tasks see") == [("one", "two")]
    assert faults(found, "no token") == [()]
    assert faults(found, "does not reach", "is not there", "does not answer") == []
    assert "✗ two: the store cannot be used" in captured.err


def test_a_run_refuses_nodes_that_differ_and_leaves_nothing(nodes: Nodes) -> None:
    with pytest.raises(ClusterError, match=r"safetensors is \S+ on the node \w+ and \S+ on \w+; install the same"):
        nodes.run("differ", [sleep_plan("any")])
    assert not (nodes.folder / "differ").exists()
    assert not ray.is_initialized()


def test_nothing_is_measured_where_a_label_forbids_it(nodes: Nodes) -> None:
    nodes.remove("two")
    nodes.add("spot", labels={cluster.ROLE_LABEL: "compress"})
    cluster.connect(nodes.address)
    try:
        measuring = {node.hostname for node in cluster.measuring_nodes()}
        assert "one" in measuring
        assert "spot" not in measuring
        assert {node.hostname for node in cluster.nodes()} >= {"one", "spot"}
    finally:
        cluster.disconnect()


def test_a_node_that_cannot_use_the_store_costs_a_run_no_candidate(nodes: Nodes, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes.add("storeless", env_vars={"GENOPT_STORE": "/dev/null/store"})
    monkeypatch.setenv("GENOPT_STORE", str(nodes.folder / "driver"))
    plans = [sleep_plan(f"s-{number}", {"label": f"s-{number}"}, speed=1 + number / 10) for number in range(1, 4)]
    _, report = nodes.run("storeless", plans, store=bucket)
    assert report.winner == "s-3"
    assert {candidate.status for candidate in report.tried} == {"accepted"}, [candidate.reason for candidate in report.tried]
    nodes.remove("storeless")


class Heard(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []
        self.waits = threading.Event()

    def activity(self, text: str) -> None:
        self.said.append(text)
        self.waits.set()


def test_a_run_brings_up_the_nodes_that_it_measures_on(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.connect(nodes.address)
    try:
        bring_up(Heard())
        monkeypatch.setenv(NODES, "1")
        with pytest.raises(ClusterError, match=r"0 of 1 nodes labelled genopt/role=measure started within 1 s; see `ray status`"):
            bring_up(Heard(), wait_s=1)
        heard = Heard()
        with ThreadPoolExecutor(1) as pool:
            coming = pool.submit(bring_up, heard, wait_s=60)
            assert heard.waits.wait(timeout=30)
            nodes.add("late", labels={cluster.ROLE_LABEL: cluster.MEASURE})
            coming.result()
        assert "late" in {node.hostname for node in cluster.measuring_nodes()}
        assert "waiting for 1 node(s) to start, of which 0 are there" in heard.said
        monkeypatch.setenv(NODES, "many")
        with pytest.raises(SpecError, match="number of nodes"):
            bring_up(Heard())
    finally:
        cluster.disconnect()
    nodes.remove("late")


def test_a_node_that_is_gone_costs_only_its_own_answers(nodes: Nodes, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    nodes.remove("spot")
    assert main(["doctor", "--address", nodes.address, "--store", str(tmp_path), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    answered = {node["name"]: node["facts"] is not None for node in found["nodes"]}
    assert answered["one"]
    assert not answered.get("spot", False), "until its heartbeats are missed it counts as alive"


def test_another_ray_is_refused_with_both_versions(nodes: Nodes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("ray._private.utils.compute_version_info", lambda: ("2.1.0", "3.9.1"))
    with pytest.raises(ClusterError, match=r"runs Ray \S+ on Python \S+, and this process Ray 2.1.0 on Python 3.9.1; use the same"):
        cluster.connect(nodes.address)
    assert main(["doctor", "--address", nodes.address]) == 1
    assert "Ray 2.1.0" in capsys.readouterr().err
