"""What the tests on several nodes share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from genopt.testing.nodes import Nodes, several_nodes


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """A head to which tests add nodes."""
    with several_nodes(tmp_path_factory.mktemp("nodes")) as found:
        yield found
