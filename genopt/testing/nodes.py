"""Several Ray nodes on one machine, each of which stands for a machine of its own, and runs on them."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from genopt.distributed.cluster import HOST_LABEL, QUIET
from genopt.distributed.run import start_run
from genopt.plan import Plan
from genopt.progress import Listener, Silent
from genopt.report.assemble import assemble
from genopt.report.model import Report
from genopt.spec import build
from genopt.store.run_folder import RunFolder
from genopt.testing import fake_technique, sleep_task
from genopt.testing.fake_task import write_fake_model
from genopt.testing.plugin import write_plugin

QUICK = {"RAY_AUTH_MODE": "disabled", "RAY_health_check_period_ms": "1000", "RAY_health_check_failure_threshold": "3"}
"""A node that is gone is noticed within seconds."""


class Nodes:
    """A head that runs nothing, and nodes with two processors and a GPU each, unless they are asked for others, that are not there.

    Args:
        folder: For the model, the store and the runs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        self._nodes: dict[str, Any] = {}

    @property
    def address(self) -> str:
        """Of the head."""
        return str(self.cluster.address)

    def add(self, name: str, **more: Any) -> None:
        """Starts a node.

        Args:
            name: Its machine's.
            more: Arguments of `ray.cluster_utils.Cluster.add_node`.
        """
        labels = {HOST_LABEL: name, **more.pop("labels", {})}
        size = {"num_cpus": 2, "num_gpus": 1, "object_store_memory": 80 * 2**20}
        self._nodes[name] = self.cluster.add_node(labels=labels, **{**size, **more})

    def remove(self, name: str) -> None:
        """Ends a node as if its machine had lost its power."""
        self.cluster.remove_node(self._nodes.pop(name), allow_graceful=False)

    def restart_head(self) -> None:
        """Kills the head's service, which knows the cluster, and starts it again; needs `several_nodes(..., durable=True)`."""
        head: Any = self.cluster.head_node
        head.kill_gcs_server()
        head.start_gcs_server()

    def run(self, out: str, plans: Sequence[Plan], listener: Listener | None = None, **settings: Any) -> tuple[RunFolder, Report]:
        """Runs a catalogue of the sleep task to its end.

        Args:
            out: Name of the run's folder.
            plans: The catalogue.
            listener: Told what happens.
            settings: Keys of the spec.
        """
        catalogue = self.folder / f"{out}.json"
        catalogue.write_text(json.dumps([plan.model_dump(mode="json") for plan in plans]), encoding="utf-8")
        values: dict[str, Any] = {
            "model": str(self.folder / "model"), "task": "sleep", "budget": "120s", "address": self.address, "max_trials": 0,
            "out": str(self.folder / out), "store": str(self.folder / "store"), **settings,
        }  # fmt: skip
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(sleep_task.CATALOGUE, str(catalogue))
            folder = start_run(build(values), listener or Silent())
        return folder, assemble(folder)

    def applied(self) -> list[str]:
        """Labels of all transforms that were applied."""
        log = self.folder / "log"
        return log.read_text(encoding="utf-8").split() if log.exists() else []


@contextlib.contextmanager
def several_nodes(folder: Path, *, durable: bool = False) -> Iterator[Nodes]:
    """A head without nodes, and an environment in which this process and its nodes know the fakes.

    Args:
        folder: An empty folder.
        durable: The head keeps what it knows on disk, as a cluster does that survives its head.
    """
    write_plugin(folder / "plugin")
    write_fake_model(folder / "model")
    source = str(Path(sleep_task.__file__).parents[2])
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder / "plugin"))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(folder / "plugin"), source]))
        patch.setenv(fake_technique.LOG, str(folder / "log"))
        patch.delenv("RAY_ADDRESS", raising=False)
        storage = {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": str(folder / "head")} if durable else {}
        for name, value in {**QUIET, **QUICK, **storage}.items():
            patch.setenv(name, value)
        found = Nodes(folder)
        try:
            yield found
        finally:
            ray.shutdown()
            found.cluster.shutdown()
