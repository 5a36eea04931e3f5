"""Nodes of several kinds in one cluster: only those of one kind measure, as others' speeds could not be compared with theirs."""

from __future__ import annotations

import pytest

from genopt.progress import Silent
from genopt.testing.nodes import Nodes
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
