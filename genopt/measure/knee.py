"""How many requests at once are worth it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

_GROWTH = 1.10


def knee(throughput: Mapping[int, float]) -> int:
    """The number of streams at which throughput stops growing by more than 10 % from one measured point to the next.

    Below it a replica has unused throughput, above it requests only wait longer for the same total.

    Args:
        throughput: Tokens per second by number of simultaneous streams; measured points only.

    Returns:
        One of the points; without any 1, the only number that needs no measurement.
    """
    points = sorted(throughput.items())
    found = points[0][0] if points else 1
    for (_, before), (streams, after) in itertools.pairwise(points):
        if after <= before * _GROWTH:
            break
        found = streams
    return found
