"""How much of the best that a grid holds a search finds with a tenth of the evaluations, beside random search and NSGA-II.

    python tests/benchmarks/search_efficiency.py [--seeds 20] [--no-foresight]

Every search sees the grid that `record_grid.py` recorded, one point at a time. Ours is the one of a run: the task's seeds with what the
sensitivity of the model's parts proposes among and behind them (where it was recorded), then the proposals of its model. Compared is the
hypervolume that the points found so far dominate in speed, quality and reciprocal bytes (and in speed and quality alone), as a share
of what the whole grid dominates; its reference point is the worst of the grid in each. A point that was seen before costs no
evaluation; NSGA-II, whose children repeat their parents, is asked again until it names a new one.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import optuna
from grid import DATA, PROFILE, SENSITIVITY, grid, name, recorded, weights_of

from genopt.distributed.predictions import Predictions
from genopt.distributed.searcher import ModelSampler, distributions
from genopt.search.pareto import hypervolume
from genopt.search.precision import Sensitivity, among_seeds, predicted_kl, solve
from genopt.search.propose import Pool, Proposer, encoded
from genopt.search.space import Point, Space
from genopt.tasks.text_generation import TextGeneration

BAR = 0.99
SHARES = (0.10, 0.15)

Values = tuple[float, float, float]
Key = tuple[tuple[str, object], ...]


class Grid:
    """The recorded points.

    Args:
        foresight: Use what can be told beforehand: the bytes that a step reads, and the sensitivity of parts.
    """

    def __init__(self, *, foresight: bool) -> None:
        quality, speed = recorded("quality"), recorded("speed")
        self.values: dict[Key, Values] = {}
        self.points: list[Point] = []
        for point in grid():
            judged, timed = quality.get(weights_of(point)), speed.get(name(point))
            if judged is not None and timed is not None:
                self.points.append(point)
                self.values[key(point)] = (timed["ratio"], judged["quality"], 1e6 / judged["bytes"])
        self.space: Space = TextGeneration.space()
        self.sensitivity = Sensitivity.model_validate_json(SENSITIVITY.read_text(encoding="utf-8")) if foresight and SENSITIVITY.exists() else None
        self._predictions = Predictions(TextGeneration, lambda _: 0.0)
        if foresight:
            self._predictions.learn_profile(json.loads(PROFILE.read_text(encoding="utf-8")))
        self._worst = np.array(list(self.values.values())).min(axis=0)
        self._whole = {axes: self._volume(self.values.values(), axes) for axes in (2, 3)}

    def pool(self, seed: int) -> Pool:
        order = np.random.default_rng(seed).permutation(len(self.points))
        points = tuple(self.points[place] for place in order)
        rows = [self._foreseen(point) for point in points]
        predicted = np.array(rows, np.float64).reshape(len(points), -1)
        spread = predicted.std(axis=0)
        return Pool(points, encoded(self.space, points), (predicted - predicted.mean(axis=0)) / np.where(spread > 0, spread, 1.0))

    def _foreseen(self, point: Point) -> tuple[float, ...]:
        """As in a run: the logarithm of the expected pace, and what a point's bits are expected to cost."""
        expected = self._predictions.predict(self.space.plan(point))
        pace = (math.log(expected.value),) if expected is not None else ()
        return pace if self.sensitivity is None else (*pace, predicted_kl(self.space, point, self.sensitivity))

    def seeds(self) -> list[Point]:
        """Those of a run that the grid holds, and the catalogue's candidates, which every run has measured before it searches."""
        first = [point for plan in TextGeneration.catalogue({}, 600.0) if (point := self.space.point_of(plan)) is not None]
        found = TextGeneration.seeds()
        if self.sensitivity is not None:
            found = among_seeds(found, self.space, solve(self.sensitivity), BAR)
        return [point for point in (*first, *found) if key(point) in self.values]

    def of(self, point: Point) -> Values:
        """What was measured of a point."""
        return self.values[key(point)]

    def _volume(self, values: Collection[tuple[float, ...]], axes: int) -> float:
        return hypervolume([value[:axes] for value in values], tuple(self._worst[:axes]))

    def share(self, found: Sequence[Point], axes: int) -> float:
        """Hypervolume of what was found, as a share of the grid's."""
        return self._volume([self.values[key(point)] for point in found], axes) / self._whole[axes]

    def winner_share(self, found: Sequence[Point]) -> float:
        """Speed of the best found point that holds the bar, as a share of the grid's best."""

        def best(points: Sequence[Point]) -> float:
            return max((self.values[key(point)][0] for point in points if self.values[key(point)][1] >= BAR), default=0.0)

        return best(found) / best(self.points) if best(self.points) else math.nan


def key(point: Mapping[str, object]) -> Key:
    return tuple(sorted(point.items()))


def run(known: Grid, sampler: optuna.samplers.BaseSampler, seeds: Sequence[Point], count: int) -> list[Point]:
    """The first points that a sampler evaluates, in order."""
    study = optuna.create_study(directions=["maximize"] * 3, sampler=sampler)
    for seed in seeds:
        study.enqueue_trial(dict(seed), skip_if_exists=True)
    found: dict[Key, Point] = {}
    while len(found) < count:
        trial = study.ask()
        point = known.space.walk(lambda dimension, trial=trial: trial.suggest_categorical(dimension.name, dimension.choices))
        values = known.values.get(key(point))
        if values is None:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            continue
        found.setdefault(key(point), point)
        study.tell(trial, values)
    return list(found.values())


def ours(known: Grid, seed: int, count: int) -> list[Point]:
    seen: set[Key] = set()
    sampler = ModelSampler(known.space, Proposer(known.space, known.pool(seed), BAR, seed), lambda point: key(point) not in seen, seed)
    return run(known, sampler, known.seeds(), count)


def random(known: Grid, seed: int, count: int) -> list[Point]:
    order = np.random.default_rng(seed).permutation(len(known.points))
    return [known.points[place] for place in order[:count]]


def nsga2(known: Grid, seed: int, count: int) -> list[Point]:
    """On the grid's own choices, so that it proposes hardly anything that the grid lacks."""
    allowed = {
        dimension: sorted({point[dimension] for point in known.points if dimension in point}, key=str) for dimension in distributions(known.space)
    }
    sampler = optuna.samplers.NSGAIISampler(seed=seed, population_size=12)
    study = optuna.create_study(directions=["maximize"] * 3, sampler=sampler)
    found: dict[Key, Point] = {}
    while len(found) < count:
        trial = study.ask()
        point = known.space.walk(
            lambda dimension, trial=trial: allowed[dimension.name][0]
            if len(allowed[dimension.name]) == 1 else trial.suggest_categorical(dimension.name, allowed[dimension.name])
        )  # fmt: skip
        if key(point) not in known.values:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            continue
        found.setdefault(key(point), point)
        study.tell(trial, known.values[key(point)])
    return list(found.values())


SEARCHES: Mapping[str, Callable[[Grid, int, int], list[Point]]] = {"genopt": ours, "random": random, "NSGA-II": nsga2}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--no-foresight", action="store_true")
    asked = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    known = Grid(foresight=not asked.no_foresight)
    print(f"{len(known.points)} of {len(grid())} points recorded; {sum(value[1] >= BAR for value in known.values.values())} hold the bar of {BAR}")
    counts = {share: max(1, int(share * len(known.points))) for share in SHARES}
    results: dict[str, dict[str, float]] = {}
    for search, function in SEARCHES.items():
        paths = [function(known, seed, max(counts.values())) for seed in range(asked.seeds)]
        for share, count in counts.items():
            row = {
                "volume of 3": statistics.median(known.share(path[:count], 3) for path in paths),
                "volume of 2": statistics.median(known.share(path[:count], 2) for path in paths),
                "least volume of 3": min(known.share(path[:count], 3) for path in paths),
                "winner": statistics.median(known.winner_share(path[:count]) for path in paths),
            }
            results[f"{search} at {share:.0%}"] = row
            print(f"{search:8} {count:3} evaluations: " + ", ".join(f"{what} {value:.1%}" for what, value in row.items()), flush=True)
    (DATA / "search_efficiency.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 0 if results["genopt at 15%"]["volume of 3"] >= 0.95 else 1


if __name__ == "__main__":
    sys.exit(main())
