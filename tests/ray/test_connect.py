"""One process that joins one Ray after the other."""

from __future__ import annotations

import pytest
import ray

from genopt.distributed import cluster
from genopt.testing.nodes import Nodes


class Answering:
    """Something that a cluster must keep for as long as this process knows of it."""

    def answer(self) -> int:
        return 42


def ask_an_actor() -> int:
    actor = ray.remote(num_cpus=0)(Answering).remote()
    return int(ray.get(actor.answer.remote(), timeout=60))


def test_a_cluster_without_tokens_keeps_the_actors_of_a_process_that_had_an_embedded_ray(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes.add("one")
    with monkeypatch.context() as patch:
        patch.delenv("RAY_AUTH_MODE")
        assert cluster.connect("local").embedded
        assert ask_an_actor() == 42
        cluster.disconnect()
    assert not cluster.connect(nodes.address).embedded
    assert ask_an_actor() == 42
    cluster.disconnect()
