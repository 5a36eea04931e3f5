"""A cluster as production has it: its head keeps what it knows on disk, and its machines share nothing but a bucket."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from genopt.plan import Candidate
from genopt.progress import Silent
from genopt.testing.nodes import Nodes, several_nodes
from genopt.testing.object_store import object_store
from genopt.testing.sleep_task import sleep_plan

pytestmark = pytest.mark.ray


NAMES = ("one", "two")


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with object_store() as uri:
        yield uri


@pytest.fixture(scope="module")
def durable(bucket: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    folder = tmp_path_factory.mktemp("durable")
    with several_nodes(folder, durable=True) as found:
        for name in NAMES:
            found.add(name, env_vars={"GENOPT_STORE": str(folder / name)})
        yield found


class Restarter(Silent):
    """Restarts the head when the first candidate has ended, while others are built and measured."""

    def __init__(self, nodes: Nodes) -> None:
        self._nodes = nodes
        self.restarts = 0

    def finished(self, candidate: Candidate) -> None:
        if candidate.name not in ("original", "baseline") and not self.restarts:
            self.restarts += 1
            self._nodes.restart_head()


def test_a_head_that_restarts_costs_no_candidate(durable: Nodes) -> None:
    restarter = Restarter(durable)
    plans = [sleep_plan(f"a-{number}", {"label": f"a-{number}"}, sleep_s=1.0, speed=1 + number / 10) for number in range(1, 7)]
    _, report = durable.run("restart", plans, restarter)
    assert restarter.restarts == 1
    assert report.winner == "a-6"
    assert {candidate.status for candidate in report.tried} == {"accepted"}


def test_machines_that_share_nothing_but_a_bucket_find_the_same_winner(durable: Nodes, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENOPT_STORE", str(durable.folder / "driver"))
    shared = {"label": "b-shared"}
    plans = [sleep_plan(f"b-{number}", shared, {"label": f"b-{number}"}, sleep_s=0.5, speed=1 + number / 10) for number in range(1, 7)]
    folder, report = durable.run("bucket", plans, store=bucket)
    assert report.winner == "b-6"
    assert {candidate.status for candidate in report.tried} == {"accepted"}, [candidate.reason for candidate in report.tried]
    measured = {stage["node"] for event in folder.events() if event["event"] == "candidate_finished" for stage in event["stages"]}
    assert len(measured) == len(NAMES)
    for name in NAMES:
        labels = {path.read_text(encoding="utf-8") for path in (durable.folder / name / "cache").glob("artifacts/*/label.txt")}
        assert len(labels) > 1, "each machine has its own copies"
    assert bucket in (folder.path / "spec.yaml").read_text(encoding="utf-8")
