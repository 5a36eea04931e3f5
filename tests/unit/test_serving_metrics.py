"""What Prometheus is told of serving, and that the dashboard asks for nothing else."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from genopt.serving import metrics
from genopt.serving.canary import Progress
from genopt.serving.engine_thread import EngineLoad
from genopt.serving.guard import Finished
from genopt.serving.metrics import CanaryMetrics, EngineMetrics, RequestMetrics
from genopt.serving.rollout import RolloutStatus

DASHBOARD = Path(__file__).parents[2] / "serving" / "grafana.json"


class Told:
    """Stands in for Ray's metrics and keeps what they are told, by name and tags."""

    def __init__(self) -> None:
        self.values: dict[str, dict[tuple[str, ...], float]] = {}

    def counter(self, name: str, description: str, tags: Sequence[str]) -> Told._Metric:
        return Told._Metric(self, f"{name}_total", description, tags)

    def gauge(self, name: str, description: str, tags: Sequence[str]) -> Told._Metric:
        return Told._Metric(self, name, description, tags)

    def histogram(self, name: str, description: str, boundaries: list[float], tags: Sequence[str]) -> Told._Metric:
        assert boundaries == sorted(set(boundaries))
        return Told._Metric(self, f"{name}_bucket", description, tags)

    class _Metric:
        def __init__(self, told: Told, name: str, description: str, tags: Sequence[str]) -> None:
            assert description.endswith(".")
            self._tags = tags
            self._values = told.values[name] = defaultdict(float)

        def inc(self, value: float, tags: Mapping[str, str]) -> None:
            assert value > 0, "Ray refuses to count nothing"
            self._values[self._key(tags)] += value

        def set(self, value: float, tags: Mapping[str, str]) -> None:
            self._values[self._key(tags)] = value

        def observe(self, value: float, tags: Mapping[str, str]) -> None:
            self._values[self._key(tags)] += value

        def _key(self, tags: Mapping[str, str]) -> tuple[str, ...]:
            assert set(tags) == set(self._tags)
            return tuple(tags[name] for name in self._tags)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    found = Told()
    for name, kind in (("Counter", found.counter), ("Gauge", found.gauge), ("Histogram", found.histogram)):
        monkeypatch.setattr(metrics, name, kind)
    return found


def finished(**changes: Any) -> Finished:
    return Finished(**{
        "request": "secret-id", "endpoint": "/v1/completions", "key": "k1", "variant": "v", "status": 200, "code": None, "stream": True,
        "prompt_tokens": 3, "completion_tokens": 5, "ttft_s": 0.5, "tpot_s": 0.1, "e2el_s": 0.9, **changes,
    })  # fmt: skip


def test_requests_are_counted_by_how_they_ended_and_name_no_caller(told: Told) -> None:
    counted = RequestMetrics()
    counted.note(finished())
    counted.note(finished(tpot_s=None, completion_tokens=1))
    counted.note(finished(status=429, code="over_capacity", prompt_tokens=0, completion_tokens=0, ttft_s=None, tpot_s=None))
    assert told.values["genopt_requests_total"] == {("v", "/v1/completions", "200", ""): 2, ("v", "/v1/completions", "429", "over_capacity"): 1}
    assert told.values["genopt_prompt_tokens_total"] == {("v",): 6}
    assert told.values["genopt_completion_tokens_total"] == {("v",): 6}
    assert told.values["genopt_ttft_seconds_bucket"] == {("v",): 1.0}
    assert told.values["genopt_tpot_seconds_bucket"] == {("v",): 0.1}
    assert "secret-id" not in repr(told.values)
    assert "k1" not in repr(told.values)


def test_an_engines_counters_grow_by_what_is_new(told: Told) -> None:
    counted = EngineMetrics("v")
    for load in (EngineLoad(batch_sizes={}, tokens=0, running=1, waiting=0), EngineLoad(batch_sizes={1: 2, 2: 3}, tokens=8, running=2, waiting=1),
                 EngineLoad(batch_sizes={1: 2, 2: 3}, tokens=8, running=0, waiting=0)):  # fmt: skip
        counted.note(load)
    assert {name: found[("v",)] for name, found in told.values.items()} == {
        "genopt_engine_running": 0, "genopt_engine_waiting": 0, "genopt_engine_tokens_total": 8, "genopt_engine_steps_total": 5,
    }  # fmt: skip


def test_a_canary_is_in_one_state(told: Told) -> None:
    progress = Progress(rollout="r", variant="new", stable="old", state="rolled_back", step_began=0.0)
    status = RolloutStatus(
        progress=progress, share=0, shadow=False, requests={"stable": 10, "canary": 4}, failures={"stable": 0, "canary": 2}, remark="", opened=True
    )  # fmt: skip
    CanaryMetrics().note(status)
    assert sum(told.values["genopt_canary_state"].values()) == told.values["genopt_canary_state"]["new", "rolled_back"] == 1
    assert told.values["genopt_canary_failed_share"] == {("new", "stable"): 0, ("new", "canary"): 0.5}
    assert told.values["genopt_canary_share_percent"] == {("new",): 0}


def test_the_dashboard_shows_all_that_is_told_and_nothing_else(told: Told) -> None:
    RequestMetrics()
    EngineMetrics("v")
    CanaryMetrics()
    board = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    queries = [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]
    asked = {name for query in queries for name in re.findall(r"ray_(genopt_\w+)", query)}
    assert asked == set(told.values)
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    assert all(panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"} for panel in board["panels"])
