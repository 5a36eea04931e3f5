"""`genopt doctor`: what would go wrong on this machine or on the nodes of a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ray

from genopt.distributed import cluster, stages
from genopt.errors import GenoptError
from genopt.measure.machine import Problem, check_machine
from genopt.store.shared import open_root


@ray.remote(num_cpus=0.1)
def _check_node(store: str) -> list[dict[str, Any]]:
    return [problem.model_dump(mode="json") for problem in check_machine(Path(store))]


def diagnose(address: str | None, store: str | None) -> list[Problem]:
    """Problems of this machine, and of every node of the cluster where an address is given.

    Args:
        address: Ray cluster to look at; None looks at this machine alone.
        store: Folder of artifacts.
    """
    try:
        root = open_root(store)
    except GenoptError as error:
        return [Problem(what="the store", remedy=str(error))]
    found = check_machine(root)
    return found if address is None else [*found, *_nodes(address, root)]


def _nodes(address: str, root: Path) -> list[Problem]:
    try:
        cluster.connect(address, embedded=False)
        found = []
        for node in cluster.nodes():
            asked = _check_node.options(scheduling_strategy=stages.on_node(node)).remote(str(root))
            items = [Problem.model_validate(item) for item in ray.get(asked, timeout=60)]
            found += [Problem(what=f"node {node.node_id[:8]}: {item.what}", remedy=item.remedy) for item in items]
        return found
    except GenoptError as error:
        return [Problem(what="the cluster", remedy=str(error))]
    except ray.exceptions.RayError as error:
        return [Problem(what="the cluster", remedy=f"a node did not answer ({type(error).__name__}); see `ray status`")]
    finally:
        cluster.disconnect()
