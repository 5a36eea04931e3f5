"""Which GPUs a node says that it has: those that its Ray may hand out, though the task that tells is given none."""

from __future__ import annotations

from typing import Any

import pytest
import ray

from genopt.distributed import cluster, stages
from genopt.testing.nodes import Nodes

pytestmark = pytest.mark.ray
DRIVER = """
import sys
from genopt.testing.fake_nvml import FakeNvml

sys.modules["pynvml"] = FakeNvml([{"Name": "first"}, {"Name": "second"}, {"Name": "third"}])
"""


@ray.remote(num_cpus=0.1, num_gpus=1)
def holding_one() -> None:
    """Ray shows it a single GPU."""


def test_a_task_without_a_gpu_tells_of_all_that_its_node_may_use(nodes: Nodes) -> None:
    (nodes.folder / "plugin" / "pynvml.py").write_text(DRIVER, encoding="utf-8")
    nodes.add("two-of-three", num_cpus=1, num_gpus=2, env_vars={"CUDA_VISIBLE_DEVICES": "2,0"})
    cluster.connect(nodes.address)
    try:
        (node,) = cluster.measuring_nodes()
        ray.get(holding_one.options(scheduling_strategy=stages.on_node(node)).remote())
        found: dict[str, Any] = ray.get(stages.machine_task.options(scheduling_strategy=stages.on_node(node)).remote())
    finally:
        cluster.disconnect()
    assert [gpu["name"] for gpu in found["hardware"]["gpus"]] == ["third", "first"]
