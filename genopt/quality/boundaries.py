"""At which confidence a repeated look may decide, so that all looks together err no more often than they say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import NormalDist

import numpy as np

from genopt.measure.statistics import Array

GRID = 601
"""Points of the density that is carried from look to look."""
REACH = 8.0
"""The grid spans this many standard deviations on both sides."""


def spent(alpha: float, share: float) -> float:
    """Error that may be used up by the time a share of the evidence is in.

    alpha * ln(1 + (e - 1) t), the Pocock-type function of Lan and DeMets, "Discrete sequential boundaries for clinical
    trials", Biometrika 70, 1983, at t = sqrt(share): looks are spaced by doubling, and this gives each about the same
    boundary, which is what decides soonest.
    """
    return alpha * math.log1p((math.e - 1) * math.sqrt(share))


def nominal_errors(alpha: float, looks: Sequence[int]) -> tuple[float, ...]:
    """One-sided error of each look's own test, such that a path of looks crosses any boundary with probability `alpha`.

    The statistic at a look is normal, and what a look adds is independent of what came before; the density of paths
    that have crossed nothing yet is carried from look to look numerically (Armitage, McPherson and Rowe, "Repeated
    significance tests on accumulating data", JRSS A 132, 1969).

    Args:
        alpha: One-sided error of all looks together, for a value at the boundary between right and wrong.
        looks: Cumulative evidence at each look, increasing.
    """
    information = np.array(looks, float) / looks[-1]
    grid = np.linspace(-REACH, REACH, GRID)
    step = float(grid[1] - grid[0])
    allowed = [now - before for before, now in pairwise([0.0, *(spent(alpha, float(share)) for share in information)])]
    errors: list[float] = []
    before: Array | None = None
    past = 0.0
    for share, error in zip(information.tolist(), allowed, strict=True):
        if before is None:
            density = _normal(grid, math.sqrt(share))
        else:
            # Sums of independent steps: the surviving density, spread by what this look adds.
            density = _normal(grid[:, None] - grid[None, :], math.sqrt(share - past)) @ before * step
        boundary = _upper_point(grid, density, error)
        errors.append(1 - NormalDist().cdf(boundary / math.sqrt(share)))
        before, past = np.where(grid < boundary, density, 0.0), share
    return tuple(errors)


def _normal(values: Array, deviation: float) -> Array:
    found: Array = np.exp(-0.5 * (values / deviation) ** 2) / (deviation * math.sqrt(2 * math.pi))
    return found


def _upper_point(grid: Array, density: Array, error: float) -> float:
    """Where the density has `error` of its mass to the right."""
    step = grid[1] - grid[0]
    mass = np.cumsum((density[1:] + density[:-1])[::-1] / 2 * step)[::-1]
    return float(np.interp(error, mass[::-1], grid[:-1][::-1]))
