"""Stages on a real Ray: who holds which processors when."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from genopt import clock
from genopt.clock import Window
from genopt.distributed import building, cluster, measuring, stages
from genopt.plan import Artifact, Plan
from genopt.quality.held_out import held_out
from genopt.tasks.base import BenchConfig, Evaluation, failed
from genopt.tasks.text_data import TextSet
from genopt.testing.fake_task import fake_plan, write_fake_model
from genopt.testing.plugin import write_plugin

pytestmark = pytest.mark.ray
SECONDS = 1.5


class SlowBench:
    """Measures for a while, and remembers when."""

    def __init__(self) -> None:
        self._begun = threading.Event()

    def begun(self) -> bool:
        return self._begun.wait(30)

    def evaluate(self, plan: dict[str, Any], artifact: dict[str, Any], deadline: dict[str, Any]) -> dict[str, Any]:
        started = time.time()
        self._begun.set()
        time.sleep(SECONDS)
        found = Evaluation(candidate=failed(Plan.model_validate(plan), "skipped", "not a real one"), seconds=0.0).model_dump(mode="json")
        return {**found, "samples": [{"started": started, "ended": time.time()}]}


class StuckBench:
    """Never answers."""

    def evaluate(self, plan: dict[str, Any], artifact: dict[str, Any], deadline: dict[str, Any]) -> None:
        threading.Event().wait()


@ray.remote(num_cpus=stages.BUILD_CPUS)
def build() -> float:
    return time.time()


@pytest.fixture(scope="module")
def node() -> Iterator[cluster.Node]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(stages.__file__).parents[2]))
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        cluster.reread_authentication()
        ray.init(address="local", include_dashboard=False, num_cpus=2, object_store_memory=100 * 2**20, log_to_driver=False, logging_level="ERROR")
        yield cluster.nodes()[0]
        ray.shutdown()


def test_nothing_is_built_on_a_node_while_it_measures(node: cluster.Node) -> None:
    bench = ray.remote(num_cpus=0, max_concurrency=2)(SlowBench).remote()
    plan, built = Plan(name="one", engine="fake"), ray.put({"artifact": {}, "seconds": 0.0, "stages": []})
    ray.get(build.remote())  # the worker is there, so that only resources decide
    waiting = measuring.evaluate_on({"": bench}, node, plan, built, Window.until(clock.now() + 60))
    assert ray.get(bench.begun.remote())
    other = build.remote()
    (sample,) = ray.get(waiting)["samples"]
    assert ray.get(other) >= sample["ended"]


def test_a_bench_that_does_not_answer_in_time_is_given_up(node: cluster.Node) -> None:
    bench = ray.remote(num_cpus=0)(SlowBench).remote()
    with pytest.raises(TimeoutError):
        measuring.held(bench.begun.remote(), 0)


def test_nothing_starts_that_cannot_finish(node: cluster.Node) -> None:
    """Neither a build nor an evaluation begins when less time is left than it needs."""
    bench = ray.remote(num_cpus=0)(SlowBench).remote()
    plan, late = Plan(name="one", engine="fake"), Window.until(clock.now() + 60, needed_s=70)
    built = ray.get(building.build_task.remote(plan.model_dump(mode="json"), {}, late.model_dump(mode="json")))
    assert built["late"]
    ready = {"artifact": {}, "seconds": 0.0, "stages": []}
    for made in (built, ready):
        found = Evaluation.model_validate(ray.get(measuring.evaluate_on({"": bench}, node, plan, ray.put(made), late)))
        assert found.candidate.status == "skipped"
        assert "--budget" in found.candidate.reason


def test_a_bench_whose_references_died_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes the original or the baseline along costs neither the candidate of that moment nor those after it."""
    write_fake_model(tmp_path / "model")
    write_plugin(tmp_path / "plugin")
    monkeypatch.syspath_prepend(str(tmp_path / "plugin"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "plugin"))
    windows = tuple(tuple(97 + (3 * row + place * row) % 26 for place in range(33)) for row in range(40))
    data = TextSet(
        windows=windows, prompts=windows[:1], stop_ids=(257,), calibration="", source="a", digest="b", calibration_source="c",
        calibration_digest="d", held_out=held_out(tmp_path / "model", windows, 400),
    )  # fmt: skip
    (tmp_path / "data.json").write_text(data.model_dump_json())
    model = Artifact(digest="d" * 64, path=str(tmp_path / "model"), bytes=1)
    config = BenchConfig(
        original=model.path, artifact=model, data=str(tmp_path / "data.json"), logs=str(tmp_path), concurrency=(1,), output_tokens=8, threads=1,
        parameters=1, quality=0.9, seed=0, store=str(tmp_path / "store"), precision=0.2,
    )  # fmt: skip
    plan, deadline = fake_plan("faster", delay_ms=1).model_dump(mode="json"), clock.Moment.of(clock.now() + 300).model_dump(mode="json")
    bench = measuring.BenchActor("fake-text", config.model_dump(mode="json"), "", [], deadline)

    def evaluation() -> Evaluation:
        return Evaluation.model_validate(bench.evaluate(plan, model.model_dump(mode="json"), deadline))

    try:
        assert "result" in bench.references(deadline)
        found = evaluation()
        assert (found.candidate.status, found.again) == ("accepted", "no"), found.candidate.reason
        assert bench.intact()
        assert bench.state() == "", "what has ended is under way no more"
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # some end with those before them
                if "session" in process.cmdline():
                    process.kill()
        found = evaluation()
        assert (found.candidate.status, found.again) == ("failed", "now")
        assert not bench.intact(), "so that another one is started in its place"
    finally:
        bench.close()


def test_a_bench_that_is_lost_or_stuck_is_data(node: cluster.Node) -> None:
    plan, built = Plan(name="one", engine="fake"), ray.put({"artifact": {}, "seconds": 1.0, "stages": []})
    lost = ray.remote(num_cpus=0)(SlowBench).remote()
    ray.kill(lost)
    found = Evaluation.model_validate(ray.get(measuring.evaluate_on({"": lost}, node, plan, built, Window.until(clock.now() + 60))))
    assert (found.candidate.status, found.again) == ("failed", "now")
    assert [(stage.stage, stage.node) for stage in found.stages] == [("measure", node.node_id)]
    stuck = ray.remote(num_cpus=0)(StuckBench).remote()
    before = time.monotonic()
    found = Evaluation.model_validate(ray.get(measuring.evaluate_on({"": stuck}, node, plan, built, Window.until(clock.now() + 0.5))))
    assert (found.candidate.status, found.again) == ("failed", "later")
    assert time.monotonic() - before < 0.5 + 2 * stages.GRACE_S
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(stuck.evaluate.remote({}, {}, {}), timeout=10)
