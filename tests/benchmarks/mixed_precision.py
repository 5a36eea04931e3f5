"""What bits chosen per family of matrices gain over one number of bits for all, on the recorded candidates of `grid.py`.

    python tests/benchmarks/mixed_precision.py [--seeds 20]

Compared are the hypervolumes in speed, quality and reciprocal bytes (and in speed and quality alone) of all uniform candidates, 8 and 4 bits in
every block size, with and without zero points and a dropped layer, against those that the search of a run finds on the grid with as
many evaluations. The reference point is the worst of all in each. Exits with 1 unless the search dominates more in both.
"""

from __future__ import annotations

import argparse
import statistics
import sys

import numpy as np
import optuna
from grid import name, recorded, uniform, weights_of
from search_efficiency import BAR, Grid, Values, ours

from genopt.search.pareto import hypervolume

WORTH = 0.9
"""Quality of the reference point."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=20)
    asked = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    known, quality, speed = Grid(foresight=True), recorded("quality"), recorded("speed")
    plain: list[Values] = []
    for point in uniform():
        judged = quality[weights_of(point)]
        plain.append((speed[name(point)]["ratio"], judged["quality"], 1e6 / judged["bytes"]))
    worst = np.array([*known.values.values(), *plain]).min(axis=0)
    worst[1] = WORTH
    runs = [[known.of(point) for point in ours(known, seed, len(plain))] for seed in range(asked.seeds)]
    better = []
    for axes, what in ((3, "speed, quality and size"), (2, "speed and quality")):
        base = tuple(worst[:axes])
        uniformly = hypervolume([value[:axes] for value in plain], base)
        found = [hypervolume([value[:axes] for value in values], base) / uniformly for values in runs]
        better.append(min(found) > 1)
        print(f"{what}: {statistics.median(found):.3f} times the hypervolume of {len(plain)} uniform candidates, {min(found):.3f} at least")
    fastest = max(value[0] for value in plain if value[1] >= BAR)
    winners = [max(value[0] for value in values if value[1] >= BAR) / fastest for values in runs]
    print(f"fastest at the bar of {BAR}: {statistics.median(winners):.3f} times the fastest uniform one")
    return 0 if all(better) else 1


if __name__ == "__main__":
    sys.exit(main())
