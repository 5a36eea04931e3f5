"""Proposes the candidate that is worth trying next, given all that was tried.

Two goals take turns. One is the winner: the candidate expected to improve most on the best one that holds the quality bar, in what winners are
chosen by (constrained expected improvement: Gardner et al., "Bayesian Optimization with Inequality Constraints", 2014). The other is
the front: the candidate whose outcome is expected to enlarge most the volume that the front dominates above the worst that is
believed possible, with the volume taken as a mean over random scalarizations (Golovin and Zhang, "Random Hypervolume
Scalarizations for Provable Multi-Objective Black Box Optimization", 2020). When no better winner is expected, all goes to the front.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from genopt.plan import Candidate, Record
from genopt.search.selection import against_baseline
from genopt.search.space import Choice, Point, Space
from genopt.search.surrogate import Array, Belief, Codes, Surrogate
from genopt.spec import Objective

SCORE, QUALITY, SLIMNESS = "score", "quality", "slimness"
VALUES = (SCORE, QUALITY, SLIMNESS)
"""What is maximized: how many times better than the baseline in what winners are chosen by, quality ratio, reciprocal of the artifact's bytes."""
WHOLE = 20_000
"""Largest space that is looked at whole; of a larger one this many random points are, besides known ones and their neighbours."""
DIRECTIONS = 128
"""Scalarizations of the volume."""
SAMPLES = 16
"""Outcomes that are imagined for each candidate."""
FRONT_TURN = 3
"""Every so many proposals one goes for the front although the winner may be improved on."""
LEAST_GAIN = 0.003
"""Expected improvement of the winner's score, as a share, below which all proposals go for the front."""
SAME = 1e-9
"""Values that differ by less than this share are the same."""
LEARNED = 200
"""Outcomes, the last ones, that the model learns from: its time grows with their square and more."""
FEW = 3
"""Outcomes below which nothing can be learned."""


class Outcome(Record):
    """How a tried point ended.

    Attributes:
        point: The point.
        values: In the order of `VALUES`, all of them positive; None where it failed or still runs.
        runs: It is under way.
    """

    point: dict[str, Choice]
    values: tuple[float, ...] | None = None
    runs: bool = False


def values_of(candidate: Candidate, baseline: Candidate, objective: Objective) -> tuple[float, ...] | None:
    """What a search maximizes, in the order of `VALUES`; None of a candidate that was not measured and judged, or whose output is not believed.

    Args:
        candidate: What was tried.
        baseline: The run's.
        objective: What the run's winner is chosen by.
    """
    score = against_baseline(candidate, baseline, objective)
    if candidate.quality is None or candidate.artifact is None or score is None:
        return None
    if candidate.quality.verdict == "anomalous":  # noise is fast, and may have the likelihood of what it does not write
        return None
    found = (score.value, candidate.quality.ratio, 1 / max(1, candidate.artifact.bytes))
    return found if all(0 < value < math.inf for value in found) else None


@dataclass(frozen=True)
class Pool:
    """The points that may be proposed.

    Attributes:
        points: In a random order, so that equals are no accident of the space.
        codes: A row per point: the place of each choice, 0 where the point has no such choice.
        predicted: What was predicted of each beforehand, standardized, a column per prediction.
    """

    points: tuple[Point, ...]
    codes: Codes
    predicted: Array


def pool(
    space: Space, seed: int, predict: Callable[[Point], Sequence[float]] = lambda _: (), wanted: Callable[[Point], bool] = lambda _: True,
    known: Sequence[Point] = (),
) -> Pool:  # fmt: skip
    """The points of a space.

    Few random points of a large space are points that anybody would try, and what was tried could neither teach the model nor be improved on.

    Args:
        space: The space.
        seed: Of the order, and of the choice from a large space.
        known: Points that were tried or will be: they and their neighbours are in the pool of a large space, too.
        predict: What can be said of a point beforehand; equally many numbers for each, NaN where nothing can be said.
        wanted: Whether a point may be proposed at all.
    """
    random = np.random.default_rng(seed)
    points = list(itertools.islice(space.points(), WHOLE + 1))
    if len(points) > WHOLE:
        walks = (space.walk(lambda dimension: dimension.choices[int(random.integers(len(dimension.choices)))]) for _ in range(WHOLE))
        around = (near for point in known for near in space.neighbours(point))
        points = list({_key(point): point for point in itertools.chain(known, around, walks)}.values())
    shuffled = tuple(point for point in (points[place] for place in random.permutation(len(points))) if wanted(point))
    columns = zip(*(predict(point) for point in shuffled), strict=True)
    predicted = [_standardized(np.array(column, np.float64)) for column in columns]
    return Pool(shuffled, encoded(space, shuffled), np.stack(predicted, axis=1) if predicted else np.zeros((len(shuffled), 0)))


def _standardized(values: Array) -> Array:
    """Values with mean 0 and standard deviation 1; those that are not known are at the mean."""
    known = values[np.isfinite(values)]
    if len(known) == 0 or known.std() == 0:
        return np.zeros(len(values))
    return np.where(np.isfinite(values), (values - known.mean()) / known.std(), 0.0)


def encoded(space: Space, points: Iterable[Point]) -> Codes:
    """Points as rows of numbers."""
    dimensions = space.dimensions()
    places = {dimension.name: {value: place for place, value in enumerate(dimension.choices, start=1)} for dimension in dimensions}
    rows = [[places[one.name][point[one.name]] if one.name in point else 0 for one in dimensions] for point in points]
    return np.array(rows, np.int16).reshape(len(rows), len(dimensions))


class Proposer:
    """Proposes points of a pool.

    Args:
        space: Where the points come from.
        candidates: The pool.
        bar: Least quality of a winner; 0 where nothing is asked of it.
        seed: Of imagined outcomes.
    """

    def __init__(self, space: Space, candidates: Pool, bar: float, seed: int) -> None:
        self._space, self._pool, self._bar, self._seed = space, candidates, bar, seed
        self._places = {_key(point): place for place, point in enumerate(candidates.points)}

    def ranked(self, outcomes: Sequence[Outcome]) -> list[Point]:
        """Points that were not tried, best first.

        Args:
            outcomes: All that was tried, in the order in which it began.
        """
        tried = {_key(outcome.point) for outcome in outcomes}
        left = np.array([place for key, place in self._places.items() if key not in tried], np.int64)
        known = [(self._places[_key(one.point)], one) for one in outcomes if _key(one.point) in self._places]
        ended = [one.values for _, one in known if one.values is not None]
        if len(ended) < FEW or len(left) == 0:
            return [self._pool.points[place] for place in left]
        worth = self._worth(known, ended, left, len(outcomes))
        return [self._pool.points[left[place]] for place in np.argsort(-worth, kind="stable")]

    def _worth(self, known: list[tuple[int, Outcome]], ended: list[tuple[float, ...]], left: NDArray[np.int64], turn: int) -> Array:
        """What trying each of the points that are left is worth."""
        worst = np.log(np.array(ended)).min(axis=0)
        done = [(place, worst if one.values is None else np.log(one.values)) for place, one in known if not one.runs]
        running = [place for place, one in known if one.runs]
        tried = np.array([place for place, _ in done[-LEARNED:]])
        values = np.array([value for _, value in done[-LEARNED:]])
        reached = np.array([value for _, value in done])
        if running:  # as if they had ended as expected, so that the next proposal is another one
            expected = [self._model(tried, values[:, column]).expect(*self._rows(np.array(running))).mean for column in range(values.shape[1])]
            as_if = np.stack(expected, axis=1)
            tried, values, reached = np.concatenate([tried, running]), np.concatenate([values, as_if]), np.concatenate([reached, as_if])
        beliefs = [self._model(tried, values[:, column]).expect(*self._rows(left)) for column in range(values.shape[1])]
        gain = _improvement(beliefs, reached, math.log(self._bar) if self._bar else -math.inf)
        return gain if turn % FRONT_TURN and gain.max() >= LEAST_GAIN else self._growth(beliefs, reached, turn)

    def _model(self, tried: NDArray[np.int64], values: Array) -> Surrogate:
        return Surrogate(*self._rows(tried), values)

    def _rows(self, places: NDArray[np.int64]) -> tuple[Codes, Array]:
        return self._pool.codes[places], self._pool.predicted[places]

    def _growth(self, beliefs: Sequence[Belief], values: Array, turn: int) -> Array:
        """Expected growth of the dominated volume."""
        random = np.random.default_rng((self._seed, turn))
        believed = np.exp(np.stack([belief.mean for belief in beliefs], axis=1))
        plain = np.exp(values)
        floor, ceiling = np.minimum(plain.min(axis=0), believed.min(axis=0)), np.maximum(plain.max(axis=0), believed.max(axis=0))
        told = ceiling > (1 + SAME) * floor  # what is the same for all candidates encloses no volume
        beliefs = [belief for belief, differs in zip(beliefs, told, strict=True) if differs]
        plain, floor, width = plain[:, told], floor[told], (ceiling - floor)[told]
        count = len(beliefs)
        if count == 0:
            return np.zeros(len(believed))
        directions = np.abs(random.standard_normal((DIRECTIONS, count))) + 1e-3
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)

        def scalars(outcomes: Array) -> Array:
            scaled = np.maximum((outcomes - floor) / width, 0.0)
            found = scaled[:, None, 0] / directions[:, 0]
            for column in range(1, count):
                np.minimum(found, scaled[:, None, column] / directions[:, column], out=found)
            powers: Array = found**count
            return powers

        best = scalars(plain).max(axis=0)
        total = np.zeros(len(beliefs[0].mean))
        for _ in range(SAMPLES):
            imagined = np.stack([np.exp(belief.mean + belief.spread * random.standard_normal()) for belief in beliefs], axis=1)
            total += np.maximum(scalars(imagined) - best, 0.0).mean(axis=1)
        return total


def _improvement(beliefs: Sequence[Belief], values: Array, bar: float) -> Array:
    """Expected improvement of the first value on the best one whose second value holds the bar, times the chance that it holds."""
    score, quality = beliefs[0], beliefs[1]
    holding = values[values[:, 1] >= bar, 0]
    best = float(holding.max()) if len(holding) else float(values[:, 0].min())
    z = (score.mean - best) / score.spread
    improvement = score.spread * (z * _cumulative(z) + np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi))
    found: Array = improvement * _cumulative((quality.mean - bar) / quality.spread)
    return found


def _cumulative(z: Array) -> Array:
    """Of the normal distribution, by the approximation of its error function in Abramowitz and Stegun, 7.1.26."""
    x = np.abs(z) / math.sqrt(2)
    t = 1 / (1 + 0.3275911 * x)
    tail = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429)))) * np.exp(-(x**2))
    found: Array = np.where(z > 0, 1 - tail / 2, tail / 2)
    return found


def _key(point: Point | dict[str, Choice]) -> tuple[tuple[str, Choice], ...]:
    return tuple(sorted(point.items()))
