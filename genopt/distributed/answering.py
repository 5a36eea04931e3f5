"""Which nodes of a cluster a run measures on: those that answer, if they are alike."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import RayError

from genopt.distributed import cluster, stages
from genopt.distributed.scaling import bring_up
from genopt.errors import ClusterError
from genopt.measure import machine
from genopt.progress import Listener

ANSWER_S = 60.0
"""For all nodes together; a worker starts within seconds, on a loaded machine within ten."""


def answering_nodes(listener: Listener) -> tuple[tuple[cluster.Node, ...], dict[str, Any]]:
    """The nodes to measure on, and what `machine_task` says of the first, with a `digest` of their hardware if all have the same.

    A dead node counts as alive until Ray misses its heartbeats.

    Raises:
        SpecError: The number of nodes to bring up is none.
        ClusterError: None of them starts or answers, or they differ in what they have installed.
    """
    bring_up(listener)
    asked = {node: stages.machine_task.options(scheduling_strategy=stages.on_node(node)).remote() for node in cluster.measuring_nodes()}
    found: dict[cluster.Node, dict[str, Any]] = {}
    cause, until = "", time.monotonic() + ANSWER_S
    for node, answer in asked.items():
        try:
            found[node] = ray.get(answer, timeout=max(0.0, until - time.monotonic()))
        except RayError as error:
            cause = (str(error).strip() or type(error).__name__).splitlines()[-1][:160]
            listener.activity(f"going on without {node.hostname}, which runs no task: {cause}")
    if not found:
        raise ClusterError(f"No node of the Ray cluster runs a task ({cause}); look at `ray status` and at `genopt doctor`, and try again.")
    facts = next(iter(found.values()))
    _require_alike(found)
    shared = _on_every_node(list(found.values()))
    digests = {machine.hardware_digest(answer["hardware"]) for answer in found.values()}
    digest = digests.pop() if len(digests) == 1 else ""
    return tuple(found), {**facts, "environment": {**facts["environment"], "engine_environments": shared}, "digest": digest}


def _require_alike(found: Mapping[cluster.Node, Mapping[str, Any]]) -> None:
    """Refuses nodes whose artifacts and speeds could not be compared.

    Raises:
        ClusterError: They differ in a library, Python or genopt.
    """
    versions = {
        node.hostname: {**answer["libraries"], **{key: answer["environment"][key] for key in ("python", "genopt")}} for node, answer in found.items()
    }
    (first, expected), *others = versions.items()
    for other, here in others:
        for name in sorted(expected.keys() | here.keys()):
            if expected.get(name) != here.get(name):
                raise ClusterError(
                    f"{name} is {expected.get(name, 'missing')} on the node {first} and {here.get(name, 'missing')} on {other}; "
                    "install the same on all nodes (`genopt doctor` shows every difference)."
                )


def _on_every_node(answers: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """What can be said of each engine environment for all nodes.

    Built where each has it, else how the first that has not puts it; outdated where they have different versions in it.
    """
    states = [answer["environment"]["engine_environments"] for answer in answers]
    shared = {name: next((here.get(name, "absent") for here in states if here.get(name) != "built"), "built") for name in states[0]}
    alike = {name for name, digest in answers[0]["engines"].items() if all(other["engines"].get(name) == digest for other in answers)}
    return {name: "outdated" if state == "built" and name not in alike else state for name, state in shared.items()}
