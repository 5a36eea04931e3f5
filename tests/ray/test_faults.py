"""What may go wrong during a run, and that it costs no more than it must."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from genopt.plan import Candidate, Plan
from genopt.progress import Silent
from genopt.report.assemble import assemble
from genopt.store.run_folder import RunFolder
from genopt.testing import fake_technique, sleep_task
from genopt.testing.nodes import Nodes
from genopt.testing.sleep_task import sleep_plan

pytestmark = pytest.mark.ray
CLOCK = "GENOPT_FAKE_CLOCK"
JUMPING_CLOCK = f"""
import os, time
real, path = time.time, os.environ.get("{CLOCK}")
if path:
    def jumped():
        try:
            return real() + float(open(path).read())
        except (OSError, ValueError):
            return real()
    time.time = jumped
"""
GOOD = [sleep_plan("good", {"label": "good"}, sleep_s=0.2, speed=2.0), sleep_plan("wrong", sleep_s=0.2, speed=3.0, quality=0.9)]


@pytest.fixture(scope="module", autouse=True)
def one_node(nodes: Nodes) -> None:
    (nodes.folder / "plugin" / "sitecustomize.py").write_text(JUMPING_CLOCK, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CLOCK, str(nodes.folder / "offset"))
        nodes.add("one")


def statuses(report: Any) -> dict[str, str]:
    return {candidate.name: candidate.status for candidate in report.tried}


class Driver:
    """`genopt` in a process of its own, on the nodes."""

    def __init__(self, nodes: Nodes, out: str, *arguments: str) -> None:
        self.run = nodes.folder / out
        catalogue = nodes.folder / f"{out}.json"
        environment = {
            **os.environ, sleep_task.CATALOGUE: str(catalogue), CLOCK: str(nodes.folder / "offset"), "RAY_ADDRESS": nodes.address,
            "GENOPT_STORE": str(nodes.folder / "store"),
        }  # fmt: skip
        self.process = subprocess.Popen(
            [sys.executable, "-m", "genopt", *arguments], env=environment, cwd=nodes.folder, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip

    @classmethod
    def optimize(cls, nodes: Nodes, out: str, plans: list[Plan], *more: str) -> Driver:
        (nodes.folder / f"{out}.json").write_text(json.dumps([plan.model_dump(mode="json") for plan in plans]), encoding="utf-8")
        arguments = ("--task", "sleep", "--budget", "90s", "--out", str(nodes.folder / out), "--json", *more)
        return cls(nodes, out, "optimize", str(nodes.folder / "model"), *arguments)

    def until(self, event: str, **content: Any) -> None:
        """Waits for an event in the journal."""
        folder, deadline = RunFolder(self.run), time.monotonic() + 60
        while time.monotonic() < deadline and self.process.poll() is None:
            if any(found["event"] == event and all(found[name] == value for name, value in content.items()) for found in folder.events()):
                return
            time.sleep(0.02)
        raise AssertionError(f"{event} did not happen: {self.process.communicate(timeout=10)}")

    def ended(self, code: int) -> Any:
        out, err = self.process.communicate(timeout=120)
        assert self.process.returncode == code, err
        assert "Traceback" not in err
        return json.loads(out)

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()


def test_candidates_that_fail_cost_only_themselves(nodes: Nodes) -> None:
    """Each way to die, and then a good one: the first ones leave no process behind and no file."""
    ways = [sleep_plan(how, {"label": how, "how": how}) for how in ("segfault", "kill", "kill_once", "full")]
    crash = sleep_plan("not-a-number", sleep_s=0.0, speed=1.0, quality=0.0)
    folder, report = nodes.run("ways", [*ways, crash, *GOOD])
    reasons = {candidate.name: candidate.reason for candidate in report.tried}
    assert statuses(report) == {
        "segfault": "failed", "kill": "failed", "kill_once": "accepted", "full": "failed", "not-a-number": "rejected", "good": "accepted",
        "wrong": "rejected",
    }  # fmt: skip
    assert "SIGSEGV" in reasons["segfault"]
    assert "lack of memory" in reasons["kill"]
    assert "--store" in reasons["full"]
    assert report.winner == "good"
    again = {event["candidate"]["name"]: event["again"] for event in folder.events() if event["event"] == "candidate_finished"}
    assert again == {"segfault": "no", "kill": "now", "kill_once": "no", "full": "now", "not-a-number": "no", "good": "no", "wrong": "no"}
    assert nodes.applied().count("segfault") == 1, "what is its own fault is not tried again"
    assert nodes.applied().count("kill") == nodes.applied().count("kill_once") == 2, "it goes on where it was killed"
    assert not list((nodes.folder / "store" / "checkpoints").iterdir())
    assert not list((nodes.folder / "store" / "building").iterdir())


def test_the_budget_holds_whatever_candidates_do(nodes: Nodes) -> None:
    """Builds and evaluations that never end, one of which ignores signals and starts a process in a session of its own."""
    plans = [sleep_plan("quick", speed=1.5), sleep_plan("hangs", {"label": "hang", "how": "hang"}), sleep_plan("waits", wait_for="/nonexistent/file")]
    started = time.monotonic()
    _, report = nodes.run("hangs", plans, budget="30s")
    assert time.monotonic() - started <= 30 + 5
    assert report.budget.spent_s <= 30 + 5
    assert report.candidates[:2]
    assert statuses(report)["hangs"] == statuses(report)["waits"] == "skipped"
    deadline = time.monotonic() + 10
    while left_over(nodes) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left_over(nodes) == []


def is_ours(process: psutil.Process, nodes: Nodes) -> bool:
    """Whether a process, with its `environ` looked up, belongs to these nodes and not to another test's beside them."""
    return bool((process.info["environ"] or {}).get(fake_technique.LOG) == str(nodes.folder / "log"))


def left_over(nodes: Nodes) -> list[str]:
    """Command lines of processes that stages of these nodes left behind."""
    found = []
    for process in psutil.process_iter(["cmdline", "environ"]):
        line = " ".join(process.info["cmdline"] or [])
        if is_ours(process, nodes) and ("SIG_IGN); time.sleep(600)" in line or "genopt.worker" in line):
            found.append(line)
    return found


class Corruptor(Silent):
    """Damages an artifact as soon as its candidate has ended."""

    def __init__(self, store: Path) -> None:
        self._store = store

    def finished(self, candidate: Candidate) -> None:
        for label in self._store.glob("artifacts/*/label.txt"):
            if label.read_text(encoding="utf-8") == "precious":
                label.write_text("damaged!", encoding="utf-8")


def test_a_damaged_artifact_is_built_again(nodes: Nodes) -> None:
    plans = [sleep_plan("precious", {"label": "precious"}, speed=2.0)]
    nodes.run("before", plans, Corruptor(nodes.folder / "store"))
    assert nodes.applied().count("precious") == 1
    _, report = nodes.run("after", plans)
    assert nodes.applied().count("precious") == 2
    assert report.winner == "precious"


class BenchKiller(Silent):
    """Kills the process of the nodes' bench when the first candidate has ended."""

    def __init__(self, nodes: Nodes) -> None:
        self._nodes = nodes
        self.killed = 0

    def finished(self, candidate: Candidate) -> None:
        if candidate.name in ("original", "baseline") or self.killed:
            return
        for process in psutil.process_iter(["cmdline", "environ"]):
            if "ray::BenchActor" in " ".join(process.info["cmdline"] or []) and is_ours(process, self._nodes):
                process.kill()
                self.killed += 1


def test_a_bench_that_is_killed_is_replaced(nodes: Nodes) -> None:
    killer = BenchKiller(nodes)
    _, report = nodes.run("bench", [*GOOD, *(sleep_plan(f"more-{number}", sleep_s=0.5, speed=1.2) for number in range(2))], killer)
    assert killer.killed == 1
    assert "failed" not in statuses(report).values(), [candidate.reason for candidate in report.tried]
    assert len(report.tried) == 4
    assert report.winner == "good"


@pytest.fixture(scope="module")
def undisturbed(nodes: Nodes) -> set[str]:
    """The Pareto front of a run that nothing happens to."""
    _, report = nodes.run("undisturbed", GOOD, max_trials=4)
    return set(report.pareto)


def test_a_driver_that_is_killed_in_every_phase_ends_where_an_undisturbed_one_does(nodes: Nodes, undisturbed: set[str]) -> None:
    driver = Driver.optimize(nodes, "killed", GOOD, "--max-trials", "4", "--budget", "400s")
    for phase in ("prepare", "baseline", "candidates", "search", "report"):
        driver.until("phase_started", name=phase)
        driver.kill()
        with (driver.run / "journal.jsonl").open("a") as journal:
            journal.write('{"time": 1, "event": "candidate_fini')  # as a crash in the middle of a write leaves it
        # Killed after its last word in the journal, it is finished, and only its report has to be written.
        verb = "report" if any(event["event"] == "run_finished" for event in RunFolder(driver.run).events()) else "resume"
        driver = Driver(nodes, "killed", verb, str(driver.run), "--json")
    document = driver.ended(0)
    assert document["winner"] == "speed-2.5-quality-1.0"
    assert set(document["pareto"]) == undisturbed
    ended = [event["candidate"] for event in RunFolder(driver.run).events() if event["event"] == "candidate_finished"]
    names = [candidate["name"] for candidate in ended if candidate["status"] not in ("skipped", "failed")]
    assert len(names) == len(set(names)) == 6, "nothing that had finished was done again"


def test_a_second_driver_is_refused_and_ctrl_c_twice_leaves_a_report(nodes: Nodes) -> None:
    driver = Driver.optimize(nodes, "twice", [*GOOD, sleep_plan("waits", wait_for="/nonexistent/file")])
    driver.until("candidate_finished")
    message = Driver(nodes, "twice", "resume", str(driver.run), "--json").ended(2)["error"]["message"]
    assert f"process {driver.process.pid} on" in message
    status = Driver(nodes, "twice", "status", str(driver.run), "--json").ended(0)
    assert (status["state"], status["driver"]["pid"]) == ("running", driver.process.pid)
    for _ in range(2):
        driver.process.send_signal(signal.SIGINT)
        time.sleep(0.1)
    assert "genopt resume" in driver.ended(130)["error"]["message"]
    report = assemble(RunFolder(driver.run))
    assert report.interrupted
    assert (driver.run / "report.html").is_file()
    status = Driver(nodes, "twice", "status", str(driver.run), "--json").ended(0)
    assert (status["state"], status["driver"]) == ("interrupted", None)


def test_a_clock_that_jumps_changes_neither_the_budget_nor_the_winner(nodes: Nodes) -> None:
    """The clock of the driver, the nodes' processes and the stages: two hours on in the middle of the run, and four back soon after."""
    offset = nodes.folder / "offset"
    driver = Driver.optimize(nodes, "jump", [*GOOD, sleep_plan("later", sleep_s=0.5, speed=1.2)], "--max-trials", "2")
    try:
        driver.until("candidate_finished")
        offset.write_text("7200", encoding="utf-8")
        driver.until("phase_started", name="search")
        offset.write_text("-7200", encoding="utf-8")
        document = driver.ended(0)
    finally:
        offset.unlink(missing_ok=True)
    assert document["winner"] == "speed-2.5-quality-1.0"
    assert {one["status"] for one in document["candidates"]} == {"accepted", "rejected"}
    assert 0 < document["budget"]["spent_s"] < 90
    times = [event["time"] for event in RunFolder(driver.run).events()]
    assert max(times) - times[0] > 7000, "the journal shows that it jumped"
    assert times[0] - times[-1] > 7000
