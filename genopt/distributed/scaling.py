"""Brings up the nodes to measure on, in a cluster that starts nodes on demand and keeps none while nothing runs."""

from __future__ import annotations

import os
import time

import ray
from ray.util.placement_group import placement_group, remove_placement_group

from genopt.distributed.cluster import MEASURE, ROLE_LABEL
from genopt.errors import ClusterError, SpecError
from genopt.progress import Listener

NODES = "GENOPT_MEASURING_NODES"
"""Environment variable of the driver: how many nodes labelled `genopt/role=measure` a run brings up before it begins."""
START_S = 900.0
"""Longest wait for them: a cloud's machine and its image take minutes."""
TICK_S = 1.0


def bring_up(listener: Listener, *, wait_s: float = START_S) -> None:
    """Has the autoscaler start the nodes that are asked for, and waits for them; does nothing where none are asked for.

    Args:
        listener: Told what is waited for.
        wait_s: Longest wait.

    Raises:
        SpecError: The variable is no number of nodes.
        ClusterError: They did not start in time.
    """
    asked = os.environ.get(NODES)
    if asked is None:
        return
    if not asked.isdigit():
        raise SpecError(f"{NODES} is {asked!r} and must be a number of nodes, such as 1.")
    number = int(asked)
    if _present() >= number:
        return
    demand = placement_group([{"CPU": 1}] * number, strategy="STRICT_SPREAD", bundle_label_selector=[{ROLE_LABEL: MEASURE}] * number)
    try:
        ready, until = demand.ready(), time.monotonic() + wait_s
        while not ray.wait([ready], timeout=TICK_S)[0]:
            listener.activity(f"waiting for {number} node(s) to start, of which {_present()} are there")
            if time.monotonic() > until:
                raise ClusterError(
                    f"{_present()} of {number} nodes labelled {ROLE_LABEL}={MEASURE} started within {wait_s:.0f} s; "
                    "see `ray status` for what the autoscaler waits for, and the quota of the provider."
                )
    finally:
        remove_placement_group(demand)


def _present() -> int:
    return sum(item["Alive"] and item["Labels"].get(ROLE_LABEL) == MEASURE for item in ray.nodes())
