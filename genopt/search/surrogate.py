"""What is expected of candidates that were not tried, from those that were: a Gaussian process over choices.

The time of a step is a sum over the matrices that it reads, and the loss of likelihood nearly one over the matrices that
were rounded; so the logarithm of either is, to a large part, a sum of what each choice adds. The kernel is that sum, plus
what neighbours share beyond it, plus what was predicted beforehand (Rasmussen and Williams, "Gaussian Processes for
Machine Learning", 2006, chapters 2 and 5).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Codes = NDArray[np.int16]

SUMS = (0.5, 0.9, 0.98)
"""Shares of the variance that the sum of choices may explain."""
LENGTHS = (1.0, 3.0)
"""Differing choices after which neighbours share a third of the rest."""
NOISES = (1e-4, 1e-3, 1e-2, 1e-1)
"""Variances of measurement, as shares."""
TRUST = 2.0
"""Variance of what a prediction made beforehand contributes."""


@dataclass(frozen=True)
class Belief:
    """Expected values with standard deviations."""

    mean: Array
    spread: Array


class Surrogate:
    """Fitted to tried candidates.

    Args:
        codes: A row per tried candidate: the place of each choice, 0 where a candidate has no such choice.
        predicted: What was predicted of each beforehand, a column per prediction; standardized.
        values: What came out.
    """

    def __init__(self, codes: Codes, predicted: Array, values: Array) -> None:
        self._codes, self._predicted = codes, predicted
        self._centre = float(values.mean())
        self._scale = float(values.std()) or 1.0
        targets = (values - self._centre) / self._scale
        same = _same(codes, codes)
        settings = itertools.product(SUMS, LENGTHS, NOISES)
        self._share, self._length, self._noise = max(settings, key=lambda setting: self._evidence(same, targets, *setting))
        self._factor = self._cholesky(same, self._share, self._length, self._noise)
        self._weights = _solve(self._factor, targets)

    def expect(self, codes: Codes, predicted: Array) -> Belief:
        """What is expected of other candidates, without the noise of measuring them."""
        across = self._kernel(_same(codes, self._codes), predicted @ self._predicted.T, self._share, self._length)
        explained = np.linalg.solve(self._factor, across.T)
        own = 1.0 + TRUST * (predicted**2).sum(axis=1)
        spread = np.sqrt(np.maximum(own - (explained**2).sum(axis=0), 1e-12))
        return Belief(self._centre + self._scale * (across @ self._weights), self._scale * spread)

    def _kernel(self, same: Array, predicted: Array, share: float, length: float) -> Array:
        differing = (1 - same) * self._codes.shape[1]
        found: Array = share * same + (1 - share) * np.exp(-differing / length) + TRUST * predicted
        return found

    def _cholesky(self, same: Array, share: float, length: float, noise: float) -> Array:
        kernel = self._kernel(same, self._predicted @ self._predicted.T, share, length)
        return np.asarray(np.linalg.cholesky(kernel + (noise + 1e-9) * np.eye(len(kernel))), np.float64)

    def _evidence(self, same: Array, targets: Array, share: float, length: float, noise: float) -> float:
        """Logarithm of the marginal likelihood, without its constant."""
        factor = self._cholesky(same, share, length, noise)
        return float(-0.5 * targets @ _solve(factor, targets) - np.log(np.diag(factor)).sum())


def _same(ones: Codes, others: Codes) -> Array:
    """Share of the choices in which candidates agree."""
    total = np.zeros((len(ones), len(others)))
    for mine, theirs in zip(ones.T, others.T, strict=True):
        total += mine[:, None] == theirs[None, :]
    found: Array = total / ones.shape[1]
    return found


def _solve(factor: Array, targets: Array) -> Array:
    found: Array = np.linalg.solve(factor.T, np.linalg.solve(factor, targets))
    return found
