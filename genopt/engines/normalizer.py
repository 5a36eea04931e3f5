"""Turns the logits of a long text into log-probabilities on all cores at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from genopt.engines.distribution import Distributions, Floats, Wanted, distributions


class Normalizer:
    """Normalizes rows of logits in threads; numpy lets them run beside each other.

    Args:
        workers: Number of threads.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="log-softmax")

    def text(self, pieces: Iterable[Floats], targets: Sequence[int], wanted: Wanted) -> Distributions:
        """What a model expects after each token of a text but the last.

        Args:
            pieces: Logits of consecutive parts of it, a row per token; each may be overwritten when the next one is asked for.
            targets: The text without its first token.
            wanted: See `genopt.engines.distribution.distributions`.
        """
        following = np.asarray(targets, np.int64)
        found: list[Distributions] = []
        done = 0
        for logits in pieces:
            part = slice(done, done + len(logits))
            found += self.piece(logits, following[part], wanted if isinstance(wanted, int) else wanted[part])
            done += len(logits)
        return Distributions.joined(found)

    def piece(self, logits: Floats, targets: NDArray[np.int64], wanted: Wanted) -> list[Distributions]:
        """See `genopt.engines.distribution.distributions`; in consecutive parts. An empty piece has none."""
        if not len(logits):
            return []
        share = -(-len(logits) // self._workers)
        cuts = [slice(start, start + share) for start in range(0, len(logits), share)]
        asked = [wanted if isinstance(wanted, int) else wanted[cut] for cut in cuts]
        return list(self._pool.map(distributions, [logits[cut] for cut in cuts], [targets[cut] for cut in cuts], asked))

    def close(self) -> None:
        """Ends the threads."""
        self._pool.shutdown()
