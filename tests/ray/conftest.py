"""What the tests on Ray share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray import serve

import genopt
from genopt.distributed.cluster import reread_authentication
from genopt.testing.nodes import Nodes, several_nodes
from genopt.testing.plugin import write_plugin


@pytest.fixture(scope="module")
def embedded_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A Ray of this process's own, whose workers know the fakes; yields a folder for what is served on it."""
    folder = tmp_path_factory.mktemp("served")
    write_plugin(folder / "plugin")
    with pytest.MonkeyPatch.context() as patch:
        source = str(Path(genopt.__file__).parents[1])
        patch.setenv("PYTHONPATH", os.pathsep.join([str(folder / "plugin"), source]))
        patch.setenv("RAY_worker_niceness", "0")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_metrics_report_interval_ms", "2000")
        reread_authentication()
        ray.init(address="local", include_dashboard=False, num_cpus=4, object_store_memory=100 * 2**20, log_to_driver=False, logging_level="ERROR")
        try:
            yield folder
        finally:
            serve.shutdown()
            ray.shutdown()


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """A head to which tests add nodes."""
    with several_nodes(tmp_path_factory.mktemp("nodes")) as found:
        yield found
