"""What stages reserve of a node keeps measurements alone on it, and how long they may take."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genopt import clock
from genopt.distributed.cluster import Node
from genopt.distributed.stages import BUILD_CPUS, GRACE_S, LEAST_PATIENCE_S, PATIENCE, node_cpus, window_of


@given(cpus=st.floats(min_value=0.5, max_value=512))
def test_nothing_finds_room_beside_a_measurement(cpus: float) -> None:
    reserved = node_cpus(Node(node_id="any", hostname="any", cpus=cpus, gpus=0))
    assert reserved <= cpus
    assert 2 * reserved > cpus, "another measurement would"
    assert reserved + BUILD_CPUS > cpus, "a build would"


def test_what_hangs_is_stopped_long_before_the_budget_ends() -> None:
    now = clock.now()
    window = window_of(90.0, now + 1500, 60.0)
    assert window.closes(now) == pytest.approx(now + PATIENCE * 90)
    assert window.closes(now + 1400) == pytest.approx(now + 1500 + GRACE_S), "whatever begins late"
    assert window.latest_start.here() == pytest.approx(now + 1500 + GRACE_S - 60, abs=0.1)
    assert window_of(1.0, now + 1500, 60.0).closes(now) == pytest.approx(now + LEAST_PATIENCE_S)
