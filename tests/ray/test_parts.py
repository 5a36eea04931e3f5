"""A node with several GPUs measures on all of them at once, each in a part of its own."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from genopt.distributed.cluster import Node
from genopt.distributed.parts import share
from genopt.distributed.stages import node_cpus
from genopt.plan import Plan, Step
from genopt.testing.nodes import Nodes
from genopt.testing.sleep_task import sick_gpu, sleep_plan

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module", autouse=True)
def pair(nodes: Nodes) -> None:
    nodes.add("pair", num_cpus=4, num_gpus=2)


def test_each_gpu_measures_one_candidate_at_a_time_on_its_own_processors(nodes: Nodes) -> None:
    plans = [sleep_plan(f"c-{number}", {"label": f"c-{number}"}, sleep_s=1.0, speed=1.0 + number / 10) for number in range(1, 7)]
    folder, report = nodes.run("parts", plans, max_trials=3)
    assert {candidate.status for candidate in report.tried} == {"accepted", "rejected"}
    assert len(report.tried) == 9
    places: dict[str, set[int]] = {}
    spans: dict[str, list[tuple[float, float]]] = defaultdict(list)
    every: list[tuple[float, int]] = []
    for event in folder.events():
        if event["event"] != "candidate_finished":
            continue
        where: dict[str, Any] = event["candidate"]["metrics"]["tpot_ms"]["conditions"]
        places[where["gpu"]] = set(where["cpus"])
        for stage in event["stages"]:
            every += [(stage["started"], 1), (stage["ended"], -1)]
            if stage["stage"] == "measure":
                spans[where["gpu"]].append((stage["started"], stage["ended"]))
    assert places.keys() == {"0", "1"}, "both are used"
    assert len(os.sched_getaffinity(0)) < 2 or not places["0"] & places["1"]
    for found in spans.values():
        assert all(one[1] <= other[0] + 0.01 for one, other in zip(sorted(found), sorted(found)[1:], strict=False))
    at_once = [sum(change for _, change in sorted(every)[: place + 1]) for place in range(len(every))]
    assert max(at_once) == 2, "measurements and builds take a part each"


def spread_plan(name: str) -> Plan:
    return Plan(name=name, steps=(Step(technique="fake_spread", params={"label": name, "time_s": 1.0}),), engine="fake", options={"speed": 2.0})


def test_a_build_that_gains_from_all_gpus_has_them_to_itself(nodes: Nodes) -> None:
    others = [sleep_plan(f"o-{number}", {"label": f"o-{number}"}, sleep_s=0.5, speed=1.0 + number / 10) for number in range(1, 5)]
    folder, report = nodes.run("spread", [*others[:2], spread_plan("spread"), *others[2:]])
    (found,) = (candidate for candidate in report.tried if candidate.name == "spread")
    assert found.status == "accepted", found.reason
    assert found.artifact is not None
    assert (Path(found.artifact.path) / "gpus.txt").read_text(encoding="utf-8") in ("0,1", "1,0")
    finished = [event for event in folder.events() if event["event"] == "candidate_finished"]
    assert len(finished) == 5
    stages = [(event["candidate"]["name"], stage) for event in finished for stage in event["stages"]]
    (mine,) = (stage for name, stage in stages if name == "spread" and stage["stage"] == "build")
    for name, stage in stages:
        if name != "spread":
            assert stage["ended"] <= mine["started"] + 0.01 or stage["started"] >= mine["ended"] - 0.01, name


def test_as_many_such_builds_as_gpus_have_one_each(nodes: Nodes) -> None:
    _, report = nodes.run("shared", [spread_plan("one"), spread_plan("other")])
    assert {candidate.status for candidate in report.tried} == {"accepted"}, [candidate.reason for candidate in report.tried]
    seen = [(Path(candidate.artifact.path) / "gpus.txt").read_text(encoding="utf-8") for candidate in report.tried if candidate.artifact]
    assert len(seen) == 2
    assert set(seen) <= {"0", "1"}, "not both"


@pytest.fixture
def sick() -> Iterator[Path]:
    yield sick_gpu()
    sick_gpu().unlink(missing_ok=True)


def test_a_gpu_whose_references_fail_gets_no_candidates(nodes: Nodes, sick: Path) -> None:
    sick.write_text("0", encoding="utf-8")
    plans = [sleep_plan(f"s-{number}", {"label": f"s-{number}"}, sleep_s=0.2, speed=1.0 + number / 10) for number in range(1, 6)]
    _, report = nodes.run("sick", plans)
    assert {candidate.status for candidate in report.tried} == {"accepted"}, [candidate.reason for candidate in report.tried]
    assert len(report.tried) == 5
    assert {candidate.metrics["tpot_ms"].conditions["gpu"] for candidate in report.tried} == {"1"}


def test_a_gpu_that_fails_during_the_run_is_left_out_once_its_bench_was_replaced_in_vain(nodes: Nodes, sick: Path) -> None:
    plans = [sleep_plan(f"f-{number}", {"label": f"f-{number}"}, sleep_s=0.5, sickens="0", speed=1.0 + number / 10) for number in range(1, 9)]
    _, report = nodes.run("sickens", plans)
    found = {candidate.name: candidate for candidate in report.tried}
    assert len(found) == 8
    measured = [candidate for candidate in found.values() if candidate.status == "accepted"]
    assert len(measured) >= 6, {name: candidate.reason for name, candidate in found.items()}
    assert {candidate.metrics["tpot_ms"].conditions["gpu"] for candidate in measured} == {"1"}


def test_parts_share_all_processors_and_leave_no_room() -> None:
    gpus = ("3", "5", "6")
    shares = [share(gpu, gpus, range(16)) for gpu in gpus]
    assert sorted(cpu for each in shares for cpu in each) == list(range(16))
    assert {len(each) for each in shares} <= {5, 6}
    assert share("5", gpus, range(1)) == {0}, "fewer processors than parts are everybody's"
    part = Node(node_id="any", hostname="any", cpus=16 / 3, gpus=1, parts=gpus, gpu="3")
    assert 16 - 3 * node_cpus(part) < 1, "a build would find room"
