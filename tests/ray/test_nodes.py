"""A run on several nodes: all of them work, none is disturbed while it measures, and the loss of one changes nothing but time."""

from __future__ import annotations

import itertools
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from genopt.distributed.run import resume_run
from genopt.errors import RunFolderError
from genopt.plan import Candidate, Plan
from genopt.progress import Silent
from genopt.store.run_folder import RunFolder
from genopt.testing import fake_technique
from genopt.testing.nodes import Nodes
from genopt.testing.sleep_task import sleep_plan
from genopt.testing.wide_task import WideTask

pytestmark = pytest.mark.ray
NAMES = ("one", "two", "three")


@pytest.fixture(scope="module", autouse=True)
def three(nodes: Nodes) -> None:
    for name in NAMES:
        nodes.add(name)


def plans(prefix: str, count: int, *, sleep_s: float = 0.5) -> list[Plan]:
    """Candidates that share their first step; the last one is the best."""
    shared = {"label": f"{prefix}-shared", "time_s": 0.5}
    return [
        sleep_plan(f"{prefix}-{number}", shared, {"label": f"{prefix}-{number}"}, sleep_s=sleep_s, speed=1.0 + number / 10)
        for number in range(1, count + 1)
    ]  # fmt: skip


def stages(folder: RunFolder) -> list[dict[str, Any]]:
    return [stage for event in folder.events() if event["event"] == "candidate_finished" for stage in event["stages"]]


def test_all_nodes_measure_alone_and_a_shared_step_is_built_once(nodes: Nodes) -> None:
    folder, report = nodes.run("fan-out", plans("a", 6))
    assert report.winner == "a-6"
    assert {candidate.status for candidate in report.tried} == {"accepted"}
    found = stages(folder)
    by_node: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for stage in found:
        by_node[stage["node"]].append(stage)
    measuring = {stage["node"] for stage in found if stage["stage"] == "measure"}
    assert len(measuring) == len(NAMES), "every device is used"
    for together in by_node.values():
        for first, second in itertools.combinations(sorted(together, key=lambda stage: stage["started"]), 2):
            if "measure" in (first["stage"], second["stage"]):
                assert second["started"] >= first["ended"] - 0.01, "something ran beside a measurement"
    assert nodes.applied().count("a-shared") == 1
    assert sorted(set(nodes.applied())) == sorted(["a-shared", *(f"a-{number}" for number in range(1, 7))])


def test_a_search_measures_on_all_nodes(nodes: Nodes) -> None:
    first = WideTask.space().plan(WideTask.seeds()[2])
    folder, report = nodes.run("searched", [first], task="wide", max_trials=len(NAMES))
    assert len(report.tried) == 1 + len(NAMES)
    searched = [event for event in folder.events() if event["event"] == "candidate_finished" and event["candidate"]["name"] != first.name]
    assert len({stage["node"] for event in searched for stage in event["stages"] if stage["stage"] == "measure"}) == len(NAMES)


class Killer(Silent):
    """Takes a node away as soon as something has been measured."""

    def __init__(self, nodes: Nodes, name: str) -> None:
        self._nodes, self._name = nodes, name
        self.killed = False

    def finished(self, candidate: Candidate) -> None:
        if not self.killed and candidate.name not in ("original", "baseline"):
            self.killed = True
            self._nodes.remove(self._name)


def test_a_node_that_dies_midway_costs_no_candidate(nodes: Nodes) -> None:
    killer = Killer(nodes, "two")
    _, report = nodes.run("death", plans("b", 6, sleep_s=1.5), killer, max_trials=4)
    assert killer.killed
    assert report.winner == "speed-2.5-quality-1.0"
    assert {candidate.status for candidate in report.tried if candidate.name.startswith("b-")} == {"accepted"}
    assert len([candidate for candidate in report.tried if candidate.name.startswith("speed-")]) == 4
    nodes.add("two")


def test_a_node_whose_disk_is_full_costs_no_candidate(nodes: Nodes) -> None:
    nodes.remove("three")
    nodes.add("full", env_vars={fake_technique.DISK: "ENOSPC"})
    _, report = nodes.run("full", plans("c", 6))
    assert report.winner == "c-6"
    assert {candidate.status for candidate in report.tried} == {"accepted"}, [candidate.reason for candidate in report.tried]
    assert not list((Path(nodes.folder) / "store" / "building").iterdir())


def test_a_given_model_is_at_hand_where_it_is_used(nodes: Nodes) -> None:
    given = nodes.folder / "given"
    given.mkdir()
    (given / "model.safetensors").write_bytes(b"weights")
    folder, report = nodes.run("given-run", [], given={"weights": str(given)})
    (made,) = [candidate for candidate in report.tried if candidate.name == "given-weights"]
    assert made.status == "accepted", made.reason
    assert made.artifact is not None
    assert Path(made.artifact.path, "given", "model.safetensors").read_bytes() == b"weights"
    assert f"weights: {given}" in (folder.path / "report.md").read_text(encoding="utf-8"), "the report says what was given"
    (given / "model.safetensors").write_bytes(b"others!")
    with pytest.raises(RunFolderError, match="given weights"):
        resume_run(folder, Silent(), total_s=600)
