"""What stages reserve of a node keeps measurements alone on it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from genopt.distributed.cluster import Node
from genopt.distributed.stages import BUILD_CPUS, node_cpus


@given(cpus=st.floats(min_value=0.5, max_value=512))
def test_nothing_finds_room_beside_a_measurement(cpus: float) -> None:
    reserved = node_cpus(Node(node_id="any", hostname="any", cpus=cpus, gpus=0))
    assert reserved <= cpus
    assert 2 * reserved > cpus, "another measurement would"
    assert reserved + BUILD_CPUS > cpus, "a build would"
