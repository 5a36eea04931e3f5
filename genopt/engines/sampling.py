"""Chooses the next token from logits: greedy, or by temperature and nucleus with a seed of its own per request."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from genopt.engines.base import GenerationRequest, TokenLogProbs
from genopt.errors import StageError


class Sampler:
    """Chooses the tokens of one request. Nothing is cut off but what `top_p` says.

    Args:
        request: Its temperature, `top_p` and seed are used; each token costs exactly one random number, so
            that the choice does not depend on what else is in the batch.
    """

    def __init__(self, request: GenerationRequest) -> None:
        self._temperature = request.temperature
        self._top_p = request.top_p
        self._random = np.random.default_rng(request.seed)

    def choose(self, logits: NDArray[np.float32]) -> int:
        """The next token.

        Args:
            logits: One row, unnormalized.

        Raises:
            StageError: They are no numbers, from which no token can be chosen.
        """
        likeliest = int(logits.argmax())  # of what is no number the first one
        if not np.isfinite(logits[likeliest]):
            raise StageError("The model's logits are no numbers (NaN or infinite), so there is no next token; use another precision or engine.")
        if self._temperature == 0:
            return likeliest
        scaled = logits.astype(np.float64) - logits.max()
        probabilities = np.exp(scaled / self._temperature)
        probabilities /= probabilities.sum()
        candidates = nucleus(probabilities, self._top_p)
        mass = np.cumsum(probabilities[candidates])
        drawn = np.searchsorted(mass, self._random.random() * mass[-1], side="right")
        return int(candidates[min(int(drawn), len(candidates) - 1)])


def log_probs(logits: NDArray[np.float32], token: int, top: int) -> TokenLogProbs:
    """What the model gives the chosen token and the most probable ones.

    Args:
        logits: One row, unnormalized.
        token: The chosen token.
        top: How many of the most probable ones.
    """
    shifted = logits.astype(np.float64) - logits.max()
    values = shifted - np.log(np.exp(shifted).sum())
    best = np.argsort(-values, kind="stable")[:top] if top else np.empty(0, np.intp)
    return TokenLogProbs(log_prob=float(values[token]), top=tuple((int(one), float(values[one])) for one in best))


def nucleus(probabilities: NDArray[np.float64], top_p: float) -> NDArray[np.intp]:
    """Ids of the smallest set of most probable tokens that holds the mass `top_p`.

    Tokens below (1 - top_p) / n hold less than 1 - top_p together and never belong to it, so that only
    the few others need sorting.

    Args:
        probabilities: They add up to 1.
        top_p: In (0, 1].
    """
    if top_p >= 1:
        return np.arange(len(probabilities))
    likely = np.flatnonzero(probabilities >= (1 - top_p) / len(probabilities))
    ordered = likely[np.argsort(-probabilities[likely], kind="stable")]
    return ordered[: int(np.searchsorted(np.cumsum(probabilities[ordered]), top_p)) + 1]
