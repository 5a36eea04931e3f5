"""Nodes of several kinds in one cluster: only those of one kind measure, as others' speeds could not be compared with theirs."""

from __future__ import annotations

from pathlib import Path

import pytest

from genopt.distributed import answering, cluster
from genopt.progress import Silent
from genopt.testing.nodes import QUICK, Nodes, several_nodes
from genopt.testing.sleep_task import sleep_plan

pytestmark = pytest.mark.ray
DRIVER = """
import os
import sys
from genopt.testing.fake_nvml import FakeNvml

sys.modules["pynvml"] = FakeNvml([{"Name": os.environ.get("GPU_NAME", "NVIDIA H100")}])
"""


class Heard(Silent):
    """Remembers what a run says."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def activity(self, message: str) -> None:
        self.messages.append(message)


def test_a_node_with_another_gpu_is_left_out(nodes: Nodes) -> None:
    (nodes.folder / "plugin" / "pynvml.py").write_text(DRIVER, encoding="utf-8")
    nodes.add("one")
    nodes.add("two")
    nodes.add("other", env_vars={"GPU_NAME": "NVIDIA L4"})
    heard = Heard()
    plans = [sleep_plan(f"k-{number}", {"label": f"k-{number}"}, sleep_s=0.3, speed=1.0 + number / 10) for number in range(1, 7)]
    folder, report = nodes.run("kinds", plans, heard)
    assert {candidate.status for candidate in report.tried} == {"accepted"}
    measured = {stage["node"] for event in folder.events() if event["event"] == "candidate_finished" for stage in event["stages"][-1:]}
    assert len(measured) == 2
    assert any("going on without other" in message and "NVIDIA L4" in message for message in heard.messages), heard.messages


def test_a_node_that_is_gone_hides_no_smaller_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(QUICK, "RAY_health_check_failure_threshold", "100")  # Ray counts it as alive all the time
    monkeypatch.setattr(answering, "ANSWER_S", 10.0)
    with several_nodes(tmp_path) as nodes:
        nodes.add("large")
        nodes.add("small", num_gpus=0)
        nodes.remove("large")
        cluster.connect(nodes.address)
        heard = Heard()
        (found,), _ = answering.answering_nodes(heard)
        assert found.hostname == "small"
        assert heard.messages[0].startswith("going on without large, which runs no task: ")
