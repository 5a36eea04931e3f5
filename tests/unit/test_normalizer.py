"""Normalizing a text on several threads gives what normalizing it at once gives."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from genopt.engines.distribution import Floats, distributions
from genopt.engines.normalizer import Normalizer

VOCABULARY = 40


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5), workers=st.integers(1, 4), top=st.integers(0, 5), ids=st.booleans(),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_threads_and_parts_change_nothing(sizes: list[int], workers: int, top: int, ids: bool, seed: int) -> None:
    random = np.random.default_rng(seed)
    logits = random.normal(size=(sum(sizes), VOCABULARY)).astype(np.float32)
    targets = random.integers(0, VOCABULARY, sum(sizes))
    wanted = random.integers(0, VOCABULARY, (sum(sizes), 3)).astype(np.int32) if ids else top
    buffer = np.empty((max(sizes), VOCABULARY), np.float32)

    def parts() -> Iterator[Floats]:
        done = 0
        for size in sizes:
            buffer[:size] = logits[done : done + size]  # as an engine does that has one buffer
            yield buffer[:size]
            done += size

    normalizer = Normalizer(workers)
    found, expected = normalizer.text(parts(), targets.tolist(), wanted), distributions(logits, targets, wanted)
    normalizer.close()
    for name, values in vars(expected).items():
        np.testing.assert_array_equal(vars(found)[name], values)
