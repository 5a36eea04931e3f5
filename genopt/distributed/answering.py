"""Which nodes of a cluster a run measures on: those that answer, if they are alike."""

from __future__ import annotations

import time
from collections import Counter
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
    """The nodes to measure on, and what `machine_task` says of the first, with their `kind`, and a `digest` of their hardware if all have the same.

    Nodes of another kind than most are left out: what they measure could not be compared. A dead node counts as alive until Ray misses its
    heartbeats: where none of the largest answers, the largest of the others are asked.

    Raises:
        SpecError: The number of nodes to bring up is none.
        ClusterError: None of them starts or answers, or they differ in what they have installed.
    """
    bring_up(listener)
    found: dict[cluster.Node, dict[str, Any]] = {}
    silent: dict[cluster.Node, str] = {}
    while not found:
        asked = cluster.measuring_nodes(silent)
        if not asked:
            cause = next(reversed(silent.values()))
            raise ClusterError(f"No node of the Ray cluster runs a task ({cause}); look at `ray status` and at `genopt doctor`, and try again.")
        found = _answers(asked, silent, listener)
    found = _of_one_kind(found, listener)
    facts = next(iter(found.values()))
    _require_alike(found)
    shared = _on_every_node(list(found.values()))
    digests = {machine.hardware_digest(answer["hardware"]) for answer in found.values()}
    digest = digests.pop() if len(digests) == 1 else ""
    return tuple(found), {**facts, "environment": {**facts["environment"], "engine_environments": shared}, "kind": kind_of(facts), "digest": digest}


def _answers(nodes: Sequence[cluster.Node], silent: dict[cluster.Node, str], listener: Listener) -> dict[cluster.Node, dict[str, Any]]:
    """What `machine_task` says of nodes; why others did not answer is added to `silent`."""
    asked = {node: stages.machine_task.options(scheduling_strategy=stages.on_node(node)).remote() for node in nodes}
    found: dict[cluster.Node, dict[str, Any]] = {}
    until = time.monotonic() + ANSWER_S
    for node, answer in asked.items():
        try:
            found[node] = ray.get(answer, timeout=max(0.0, until - time.monotonic()))
        except RayError as error:
            silent[node] = (str(error).strip() or type(error).__name__).splitlines()[-1][:160]
            listener.activity(f"going on without {node.hostname}, which runs no task: {silent[node]}")
    return found


def kind_of(answer: Mapping[str, Any]) -> dict[str, str]:
    """What must be alike for speeds to be compared: the names of a node's processor and of its GPUs.

    Args:
        answer: Of `machine_task`.
    """
    facts = answer["hardware"]
    return {"cpu": str(facts["cpu"]), "gpus": ", ".join(sorted(str(gpu["name"]) for gpu in facts["gpus"])) or "none"}


def _of_one_kind(found: Mapping[cluster.Node, dict[str, Any]], listener: Listener) -> dict[cluster.Node, dict[str, Any]]:
    """Those of the kind that most nodes are of, of equally many the first one's."""
    kinds = {node: tuple(kind_of(answer).values()) for node, answer in found.items()}
    (usual, _), *_ = Counter(kinds.values()).most_common(1)
    for node, kind in kinds.items():
        if kind != usual:
            listener.activity(f"going on without {node.hostname}, whose hardware ({', '.join(kind)}) is not that of most ({', '.join(usual)})")
    return {node: answer for node, answer in found.items() if kinds[node] == usual}


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
