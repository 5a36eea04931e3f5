"""What the tests on Ray share."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
from ray.serve._private.router import SharedRouterLongPollClient

from genopt.testing.nodes import Nodes, several_nodes


@pytest.fixture(scope="module", autouse=True)
def nothing_of_earlier_clusters() -> None:
    """Lets go of handles of actors in clusters that this process was connected to before.

    Ray numbers the actors of every cluster alike. A handle that goes out of scope later ends the actor of that number in the cluster
    of that time, and Serve goes on asking the controller that it knows by that number.
    """
    SharedRouterLongPollClient.get_or_create.cache_clear()
    gc.collect()


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """A head to which tests add nodes."""
    with several_nodes(tmp_path_factory.mktemp("nodes")) as found:
        yield found
