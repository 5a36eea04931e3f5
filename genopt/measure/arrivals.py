"""When requests arrive that do not wait for each other."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from genopt.spec import ArrivalKind


def arrivals(kind: ArrivalKind, rate: float, *, seed: int) -> Iterator[float]:
    """Times of arrival in seconds after the start, without end.

    Args:
        kind: Of `poisson` the gaps are independent and exponential, as those of many callers who know nothing of each
            other; of `fixed` they are all the same.
        rate: Mean arrivals per second.
        seed: Same seed, same arrivals.
    """
    if kind == "fixed":
        yield from (number / rate for number in itertools.count(1))
    generator = np.random.default_rng(seed)
    at = 0.0
    while True:
        at += float(generator.exponential(1 / rate))
        yield at
