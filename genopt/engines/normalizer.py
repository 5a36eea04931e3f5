"""Turns the logits of a long text into log-probabilities on all cores at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from genopt.engines.distribution import Distributions, Floats, Wanted, distributions

Piece = Callable[[Floats, NDArray[np.int64], Wanted], list[Distributions]]
"""Normalizes some rows."""


class NormalizedText:
    """What is known of a text so far.

    Args:
        piece: Normalizes rows.
        targets: See `Normalizer.text`.
        wanted: Likewise.

    Attributes:
        missing: Rows that are still to come.
    """

    def __init__(self, piece: Piece, targets: Sequence[int], wanted: Wanted) -> None:
        self._piece, self._targets, self._wanted = piece, np.asarray(targets, np.int64), wanted
        self._found: list[Distributions] = []
        self.missing = len(self._targets)

    def take(self, logits: Floats) -> None:
        """Normalizes the next rows; there may be none."""
        if not len(logits):
            return
        done = len(self._targets) - self.missing
        part = slice(done, done + len(logits))
        self._found += self._piece(logits, self._targets[part], self._wanted if isinstance(self._wanted, int) else self._wanted[part])
        self.missing -= len(logits)

    def distributions(self) -> Distributions:
        """Those of all rows that came; at least one."""
        return Distributions.joined(self._found)


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
        text = self.begin(targets, wanted)
        for logits in pieces:
            text.take(logits)
        return text.distributions()

    def begin(self, targets: Sequence[int], wanted: Wanted) -> NormalizedText:
        """The same for pieces that come when they come; arguments as for `text`."""
        return NormalizedText(self._piece, targets, wanted)

    def _piece(self, logits: Floats, targets: NDArray[np.int64], wanted: Wanted) -> list[Distributions]:
        share = -(-len(logits) // self._workers)
        cuts = [slice(start, start + share) for start in range(0, len(logits), share)]
        asked = [wanted if isinstance(wanted, int) else wanted[cut] for cut in cuts]
        return list(self._pool.map(distributions, [logits[cut] for cut in cuts], [targets[cut] for cut in cuts], asked))

    def close(self) -> None:
        """Ends the threads."""
        self._pool.shutdown()
