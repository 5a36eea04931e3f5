"""How a run stands, as another terminal and as machines see it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from genopt.console.status import print_run_status
from genopt.plan import Artifact, Candidate, Quality, Ratio
from genopt.progress import Broadcast, JsonLines, Silent
from genopt.report.status import run_status
from genopt.spec import build, dump
from genopt.store.run_folder import RunFolder


def candidate(name: str, speed: float, status: str = "accepted") -> Candidate:
    around = lambda value: Ratio(value=value, ci_low=0.99 * value, ci_high=1.01 * value)  # noqa: E731
    return Candidate.model_validate({
        "name": name, "status": status, "reason": "as measured", "engine": "fake", "artifact": Artifact(digest="d", path="/d", bytes=10),
        "speedup": {"vs_original": around(speed), "vs_baseline": around(speed / 2)},
        "quality": Quality(metric="likelihood", ratio=0.9962, ci_low=0.994, ci_high=0.998, n=8192, verdict="accept"),
    })  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder.create(tmp_path / "run", dump(build({"model": "m", "budget": "10m"})), {})
    folder.append("run_started", budget_s=600.0, spent_s=0.0, cluster={})
    return folder


def measure(run: RunFolder) -> None:
    original, baseline = candidate("original", 1.0), candidate("baseline", 2.0)
    content: dict[str, Any] = {name: one.model_dump(mode="json") for name, one in (("original", original), ("baseline", baseline))}
    run.append("references", **content, aa={"value": 1.0, "ci_low": 0.99, "ci_high": 1.01}, evaluation={})
    run.append("phase_started", name="candidates")
    for name in ("fast", "wrong", "slow"):
        run.append("candidate_started", name=name, expected_s=10.0)
    for one in (candidate("fast", 4.0), candidate("wrong", 5.0, "rejected")):
        run.append("candidate_finished", candidate=one.model_dump(mode="json"), seconds=1.0)


def test_a_run_under_way(run: RunFolder) -> None:
    with run.hold():
        measure(run)
        found = run_status(RunFolder.existing(run.path))
    assert (found.state, found.phase) == ("running", "candidates")
    assert found.driver is not None
    assert found.candidates == {"accepted": 1, "rejected": 1, "running": 1}
    assert found.running == ("slow",)
    assert found.best is not None
    assert (found.best.name, found.best.speedup, found.best.quality) == ("fast", 4.0, 0.9962)
    assert found.total_s == 600
    assert found.remedy == ""


def test_a_run_whose_driver_died_can_be_continued(run: RunFolder) -> None:
    measure(run)
    found = run_status(run)
    assert (found.state, found.driver, found.running) == ("dead", None, ())
    assert f"genopt resume {run.path}" in found.remedy


@pytest.mark.parametrize(("interrupted", "state"), [(True, "interrupted"), (False, "finished")])
def test_a_run_that_ended(run: RunFolder, interrupted: bool, state: str) -> None:
    measure(run)
    run.append("run_finished", spent_s=77.0, interrupted=interrupted, reason="it did")
    found = run_status(run)
    assert (found.state, found.spent_s) == (state, 77.0)
    assert ("resume" in found.remedy) == interrupted


def test_a_run_without_a_baseline(run: RunFolder) -> None:
    with run.hold():
        found = run_status(run)
    assert (found.state, found.phase, found.candidates, found.best) == ("running", "resolve", {}, None)


def test_the_terminal_shows_it(run: RunFolder) -> None:
    stream = io.StringIO()
    with run.hold():
        measure(run)
        run.append("deployed", url="http://127.0.0.1:9", application="genopt", variant="fast")
        found = run_status(run).model_copy(update={"answers": False})
    print_run_status(found, Console(file=stream, width=120))
    text = stream.getvalue()
    for part in ("running, candidates", "1 accepted, 1 rejected, 1 running", "fast, 4.00× the original, quality 99.62%", "slow", "does not answer"):
        assert part in text


def test_events_for_machines_are_one_object_a_line() -> None:
    lines: list[str] = []
    listener = Broadcast(Silent(), JsonLines(lines.append, clock=lambda: 5.0))
    listener.phase("baseline", "measuring")
    for spent in range(12):
        listener.budget(float(spent), 60.0)
    for _ in range(3):
        listener.activity("a: opening")
    listener.started("fast", 10.0)
    listener.finished(candidate("fast", 4.0))
    events = [json.loads(line) for line in lines]
    assert [event["event"] for event in events] == ["phase", "budget", "budget", "budget", "activity", "started", "finished"]
    assert [event["spent_s"] for event in events if event["event"] == "budget"] == [0.0, 5.0, 10.0]
    assert events[0] == {"time": 5.0, "event": "phase", "name": "baseline", "detail": "measuring"}
    assert Candidate.model_validate(events[-1]["candidate"]) == candidate("fast", 4.0)
    assert all(line.endswith("\n") and line.count("\n") == 1 for line in lines)
