"""Predicts how fast candidates will be, and learns from those that were measured.

A unit of work takes `slope * limit + overhead`: the limit is what the footprint must read and compute at the
machine's ceilings, the overhead what an engine spends beside it, in proportion to the model's layers. Both are
unknown for an engine until it was measured; they begin at a prior and are corrected by every measurement with
recursive least squares (the Kalman filter of a constant state, Kalman 1960).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from statistics import fmean

from genopt.plan import Plan, Prediction, Record
from genopt.search.footprint import Footprint

NOISE = 0.08
"""Standard deviation of a measurement around the model, relative: engines are not equally good at all formats."""
SLOPE, SLOPE_SPREAD = 1.0, 0.15
"""Prior of the slope: engines that are done with their overhead come close to the bandwidth."""
LEAST_SLOPE = 0.3
OVERHEAD_SPREAD = 1.0
"""Relative spread of the prior overhead."""
Z_95 = 1.96


class Expected(Record):
    """Seconds of one unit of work, with a standard deviation."""

    seconds: float
    spread: float


class Pace:
    """What is known of one way to run models.

    Args:
        overhead_s: Expected seconds per unit of work beside reading and computing, for the original's layers.
    """

    def __init__(self, overhead_s: float) -> None:
        self._mean = (SLOPE, overhead_s)
        self._variance = ((SLOPE_SPREAD**2, 0.0), (0.0, (OVERHEAD_SPREAD * overhead_s) ** 2))

    def expect(self, limit_s: float, layers: float) -> Expected:
        """The time of work with this limit.

        Args:
            limit_s: See `Footprint.limit_s`.
            layers: Its layers as a share of the original's.
        """
        slope, overhead = self._mean
        seconds = max(LEAST_SLOPE, slope) * limit_s + max(0.0, overhead) * layers
        gained = self._gained(limit_s, layers)
        variance = limit_s * gained[0] + layers * gained[1] + (NOISE * seconds) ** 2
        return Expected(seconds=seconds, spread=math.sqrt(max(0.0, variance)))

    def observe(self, limit_s: float, layers: float, seconds: float) -> None:
        """Corrects what is known by a measurement.

        Args:
            limit_s: See `Footprint.limit_s`.
            layers: Its layers as a share of the original's.
            seconds: What was measured.
        """
        gained = self._gained(limit_s, layers)
        innovation = limit_s * gained[0] + layers * gained[1] + (NOISE * seconds) ** 2
        gain = (gained[0] / innovation, gained[1] / innovation)
        error = seconds - (self._mean[0] * limit_s + self._mean[1] * layers)
        (a, b), (c, d) = self._variance
        self._mean = (self._mean[0] + gain[0] * error, self._mean[1] + gain[1] * error)
        self._variance = ((a - gain[0] * gained[0], b - gain[0] * gained[1]), (c - gain[1] * gained[0], d - gain[1] * gained[1]))

    def _gained(self, limit_s: float, layers: float) -> tuple[float, float]:
        """The variance times the direction of a measurement."""
        (a, b), (c, d) = self._variance
        return a * limit_s + b * layers, c * limit_s + d * layers


def runtime_of(plan: Plan) -> str:
    """What runs a plan: its engine with all options but the number of threads that it spares."""
    return json.dumps([plan.engine, {name: value for name, value in plan.options.items() if name != "spare_threads"}], sort_keys=True)


def engine_of(runtime: str) -> str:
    """The engine of what runs a plan."""
    found: str = json.loads(runtime)[0]
    return found


class Predictor:
    """Predicts seconds per unit of work.

    Args:
        read_gb_s: The machine's read bandwidth.
        gflop_s: Its rate of matrix products in the model's format.
        layers: The original's layers.
    """

    def __init__(self, read_gb_s: float, gflop_s: float, layers: float) -> None:
        self._read_gb_s, self._gflop_s, self._layers = read_gb_s, gflop_s, layers
        self._paces: dict[str, Pace] = {}

    def expect(self, plan: Plan, footprint: Footprint, layer_overhead_s: float) -> Expected:
        """What a plan will take.

        Args:
            plan: The candidate.
            footprint: After its transforms.
            layer_overhead_s: Its engine's prior, per layer.
        """
        return self._pace(plan, layer_overhead_s).expect(self._limit_s(footprint), footprint.layers / self._layers)

    def observe(self, plan: Plan, footprint: Footprint, layer_overhead_s: float, seconds: float) -> None:
        """Learns what a plan took; see `expect`."""
        self._pace(plan, layer_overhead_s).observe(self._limit_s(footprint), footprint.layers / self._layers, seconds)

    def _limit_s(self, footprint: Footprint) -> float:
        return footprint.limit_s(self._read_gb_s, self._gflop_s)

    def _pace(self, plan: Plan, layer_overhead_s: float) -> Pace:
        return self._paces.setdefault(runtime_of(plan), Pace(layer_overhead_s * self._layers))


def interval(expected: Expected) -> tuple[float, float]:
    """Ends of the 95 % interval in seconds; in log space, so that none is negative."""
    factor = math.exp(Z_95 * expected.spread / expected.seconds)
    return expected.seconds / factor, expected.seconds * factor


def promise(prediction: Prediction | None) -> float:
    """What trying a candidate is worth per second: the logarithm of its expected speedup times the chance that it is accepted.

    Zero without a prediction or a gain.
    """
    if prediction is None or prediction.vs_baseline is None:
        return 0.0
    return max(0.0, math.log(prediction.vs_baseline)) * prediction.chance / max(1.0, prediction.seconds)


def mean_error(pairs: Iterable[tuple[float, float]]) -> float | None:
    """Mean absolute percentage error, as a share, of (predicted, measured) pairs; None without any."""
    errors = [abs(predicted / measured - 1) for predicted, measured in pairs if measured > 0]
    return fmean(errors) if errors else None
