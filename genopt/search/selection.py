"""Chooses the winner among judged candidates, and says why."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import get_args

from genopt.plan import RATES, Candidate, JsonValue, Metric, Ratio, Record
from genopt.search.pareto import front
from genopt.spec import ArrivalKind, Objective

MEMORY_NOISE = 0.01
"""Peaks of memory that differ by less than this share are the same: allocators are not that repeatable."""
THROUGHPUT_NOISE = 0.01
"""Throughputs that differ by less than this share are the same, however alike the batches of each run were: those of five candidates, timed by two
runs on H200, differed by 0.03 to 1 %."""
SPEED_GIVEN_UP = 0.1
"""The most of its score that a tie may cost: noise hides which of two is faster, not that one is far behind."""
BESIDE, BESIDE_LOW, BESIDE_HIGH = "baseline", "baseline_ci_low", "baseline_ci_high"
"""Conditions of a candidate's rate: the baseline's, and its interval."""
_GOALS: Mapping[Objective, str] = {
    "latency": "speed", "throughput": "throughput", "memory": "peak memory", "balanced": "speed, throughput and memory together"
}  # fmt: skip


class Selection(Record):
    """The outcome of a run.

    Attributes:
        winner: Name of the candidate to deploy; None keeps the baseline.
        decision: Why, in sentences.
        pareto: Names that no other dominates in speed, throughput, quality and memory.
    """

    winner: str | None
    decision: str
    pareto: list[str]


def choose(
    candidates: Sequence[Candidate],
    *,
    objective: Objective,
    bar: float,
    slo: Mapping[str, float],
    aa: Mapping[str, float] | None = None,
) -> Selection:
    """Picks the winner.

    Accepted candidates that hold the bar and the latency limits and are better than the baseline (lower end of the
    interval above 1) compete, if the ratio exceeds what the baseline against itself came to (A/A): smaller
    differences are what no difference looks like. Where the A/A interval misses 1 the machine was noisy, and even the
    lower end must exceed it. Those that none surely beats, after all intervals are widened by the noise of the A/A
    measurement, and that are less than a tenth (`SPEED_GIVEN_UP`) behind the surest one, are tied: their order is
    chance and would differ in the next run. How well the baseline's throughput is known does not tell candidates apart,
    as all are divided by the same one. One that another within the limits is at least equal to in speed, throughput,
    quality and memory does not win a tie. Ties are broken by what hardly depends on timing: lower end of the quality
    interval to three digits, then smaller artifact, then name. (For the memory objective the smaller artifact comes
    first.) The same seed therefore chooses the same winner although its timings are never quite the same. Speeds that
    another run measured win nothing.

    Args:
        candidates: `original`, `baseline`, then the others.
        objective: What counts; each is scored as a ratio to the baseline.
        bar: Least quality ratio.
        slo: Limits in seconds by name, such as `ttft_p99`; of what callers wait with the queue, where that was measured.
        aa: `ci_low` and `ci_high` of the A/A ratio, or None if it was not measured.
    """
    original, baseline, *known = candidates
    others = [one for one in known if one.is_measured or not one.speedup]
    accepted = [one for one in others if one.status == "accepted" and one.quality is not None and one.quality.ci_low >= bar]
    streams = max(baseline.rates, default=0)
    pareto = front({one.name: _point(one, streams) for one in (original, baseline, *accepted)})
    within = [one for one in accepted if not _misses(one, slo)]
    scores = {one.name: score for one in within if (score := against_baseline(one, baseline, objective)) is not None}
    better = [one for one in within if one.name in scores and _gains(scores[one.name], aa)]
    if not better:
        return Selection(winner=None, decision=_kept(others, accepted, within, bar, slo, objective), pareto=pareto)
    compared = {one.name: score for one in better if (score := against_baseline(one, baseline, objective, among=True)) is not None}
    tied = _tied(better, compared, _noise(aa))
    undominated = set(front({one.name: _point(one, streams) for one in within}))
    tied = [one for one in tied if one.name in undominated] or tied
    winner = min(tied, key=lambda one: _preference(one, objective))
    return Selection(winner=winner.name, decision=_won(winner, tied, scores[winner.name], bar, objective), pareto=pareto)


def _tied(better: Sequence[Candidate], scores: Mapping[str, Ratio], noise: float) -> list[Candidate]:
    """The candidates that none of the others surely beats, and that are not far behind the one with the highest lower end.

    The floor is the highest lower end, not that of the best value: one badly measured candidate does not tie with all. Nor does it win because
    nobody knows how slow it is: above its value its interval counts for as much as that of the candidate which sets the floor is wide.
    """
    surest = max((scores[one.name] for one in better), key=lambda score: score.ci_low)
    floor, width = surest.ci_low * math.exp(-noise), surest.ci_high / surest.ci_low
    near = [one for one in better if scores[one.name].value >= surest.value * (1 - SPEED_GIVEN_UP)]
    return [one for one in near if min(scores[one.name].ci_high, scores[one.name].value * width) * math.exp(noise) >= floor]


def _gains(score: Ratio, aa: Mapping[str, float] | None) -> bool:
    """Whether a ratio to the baseline is surely more than chance."""
    if aa is None:
        return score.ci_low > 1
    chance = max(aa["ci_high"], 1 / aa["ci_low"])
    noisy = not aa["ci_low"] <= 1 <= aa["ci_high"]
    return score.value > chance and score.ci_low > (chance if noisy else 1)


def _noise(aa: Mapping[str, float] | None) -> float:
    """Half-width of the A/A interval in log space."""
    return math.log(aa["ci_high"] / aa["ci_low"]) / 2 if aa else 0.0


def _preference(one: Candidate, objective: Objective) -> tuple[float, float, str]:
    """Smaller is preferred among tied candidates."""
    held = -round(one.quality.ci_low, 3) if one.quality else math.inf
    size = float(one.artifact.bytes) if one.artifact else math.inf
    return (size, held, one.name) if objective == "memory" else (held, size, one.name)


def against_baseline(one: Candidate, baseline: Candidate, objective: Objective, *, among: bool = False) -> Ratio | None:
    """How many times better than the baseline a candidate is in what counts, or None where it was not measured.

    Args:
        one: The candidate.
        baseline: The run's.
        objective: What counts.
        among: Whether its interval is to tell it from other candidates, not from the baseline, whose throughput is then taken as known.
    """
    if objective == "latency":
        return one.speedup.get("vs_baseline")
    if objective == "throughput":
        return _throughput(one, baseline, among)
    if objective == "memory":
        return _memory(one, baseline)
    parts = [one.speedup.get("vs_baseline"), _throughput(one, baseline, among), _memory(one, baseline)]
    known = [part for part in parts if part is not None]
    return _geometric_mean(known) if len(known) == len(parts) else None


def beside(metrics: Mapping[str, Metric], baseline: Mapping[str, Metric]) -> dict[str, Metric]:
    """Rates of a candidate, with those of the baseline on the same part of the same node in the same session.

    A resumed run measures its references again, on a machine that may be slower that day, and parts of a node measure their own: a throughput is
    divided by the one that was measured beside it.

    Args:
        metrics: The candidate's.
        baseline: The baseline's.
    """
    theirs = {name: _ends(found) for name, found in baseline.items() if name in metrics and name.startswith(RATES)}
    facts: dict[str, dict[str, JsonValue]] = {
        name: {BESIDE: baseline[name].value, BESIDE_LOW: low, BESIDE_HIGH: high} for name, (low, high) in theirs.items()
    }
    return {name: metrics[name].model_copy(update={"conditions": {**metrics[name].conditions, **more}}) for name, more in facts.items()}


def _throughput(one: Candidate, baseline: Candidate, among: bool) -> Ratio | None:
    """Ratio of throughputs at the most streams that the baseline was measured at.

    It is that to the baseline beside which the candidate was measured (`beside`), or to the run's where that is not known. Its ends pair the
    intervals' far ends, or, to tell it from others that are divided by the same throughput, are those of its own interval, which is at least as wide
    as `THROUGHPUT_NOISE` makes it.
    """
    streams = max(baseline.rates, default=0)
    mine, theirs = one.rates.get(streams), baseline.rates.get(streams)
    if mine is None or theirs is None or theirs.value <= 0:
        return None
    per, their_low, their_high = _measured_beside(mine) or (theirs.value, *_ends(theirs))
    value, (my_low, my_high) = mine.value / per, _ends(mine)
    if among:
        low, high = min(my_low / mine.value, 1 - THROUGHPUT_NOISE), max(my_high / mine.value, 1 + THROUGHPUT_NOISE)
        return Ratio(value=value, ci_low=value * low, ci_high=value * high)
    return Ratio(value=value, ci_low=my_low / their_high, ci_high=my_high / their_low)


def _measured_beside(rate: Metric) -> tuple[float, float, float] | None:
    known = [rate.conditions.get(name) for name in (BESIDE, BESIDE_LOW, BESIDE_HIGH)]
    value, low, high = (float(one) if isinstance(one, int | float) else 0.0 for one in known)
    return (value, low, high) if min(value, low, high) > 0 else None


def _ends(metric: Metric) -> tuple[float, float]:
    low = metric.value if metric.ci_low is None else metric.ci_low
    return low, metric.value if metric.ci_high is None else metric.ci_high


def _memory(one: Candidate, baseline: Candidate) -> Ratio | None:
    mine, theirs = _peak(one), _peak(baseline)
    if mine is None or theirs is None:
        return None
    value = theirs / mine
    return Ratio(value=value, ci_low=value * (1 - MEMORY_NOISE), ci_high=value * (1 + MEMORY_NOISE))


def _peak(one: Candidate) -> float | None:
    metric = one.metrics.get("peak_memory_bytes")
    return metric.value if metric is not None and metric.value > 0 else None


def _geometric_mean(parts: Sequence[Ratio]) -> Ratio:
    """Of the values and of the ends, which is cautious: not all parts are at their worst at once."""

    def mean(values: Iterable[float]) -> float:
        return math.prod(values) ** (1 / len(parts))

    return Ratio(value=mean(part.value for part in parts), ci_low=mean(part.ci_low for part in parts), ci_high=mean(part.ci_high for part in parts))


def _misses(one: Candidate, slo: Mapping[str, float]) -> list[str]:
    """Limits that a candidate exceeds or was not measured for."""
    missed = []
    for name, limit_s in slo.items():
        kind, _, percentile = name.partition("_")
        metric = _waiting(one, f"{kind}_ms")
        value = {"p50": metric.p50, "p90": metric.p90, "p99": metric.p99}[percentile] if metric is not None else None
        if value is None or value / 1e3 > limit_s:
            missed.append(name)
    return missed


def _waiting(one: Candidate, name: str) -> Metric | None:
    """What callers wait: where requests were let arrive by themselves, with the queue; else one at a time."""
    arrived = (one.metrics.get(f"{name}@{kind}") for kind in get_args(ArrivalKind))
    return next(filter(None, arrived), one.metrics.get(name))


def _point(one: Candidate, streams: int) -> tuple[float, ...]:
    """Speed against the original, throughput, quality, and reciprocal memory; a reference without a quality is the original itself."""
    speed, rate, peak = one.speedup.get("vs_original"), one.rates.get(streams), _peak(one)
    return speed.value if speed else 0.0, rate.value if rate else 0.0, one.quality.ratio if one.quality else 1.0, 1 / peak if peak else 0.0


def _won(winner: Candidate, tied: Sequence[Candidate], score: Ratio, bar: float, objective: Objective) -> str:
    sentences = [f"{winner.name} wins on {_GOALS[objective]}: {score.value:.2f}x the baseline [{score.ci_low:.2f}, {score.ci_high:.2f}]"]
    if not bar:
        sentences.append("Nothing was asked of its quality, which is for you to judge")
    elif winner.quality is not None:
        quality = winner.quality
        sentences[0] += f", with quality {quality.ratio:.4f} [{quality.ci_low:.4f}, {quality.ci_high:.4f}] at a bar of {bar:g}"
    rivals = [one.name for one in tied if one is not winner]
    if rivals:
        rule = "artifact size, then quality" if objective == "memory" else "quality (lower end, three digits), then artifact size"
        sentences.append(f"It is within measurement noise of {', '.join(rivals)}; the tie was broken by {rule}, so that another run chooses alike")
    return ". ".join(sentences) + "."


def _kept(
    others: Sequence[Candidate],
    accepted: Sequence[Candidate],
    within: Sequence[Candidate],
    bar: float,
    slo: Mapping[str, float],
    objective: Objective,
) -> str:
    if not others:
        return "No candidate was tried; the baseline is kept."
    if not accepted:
        return f"None of {len(others)} candidates was shown to hold the quality bar of {bar:g}; the baseline is kept."
    if not within:
        missed = sorted({name for one in accepted for name in _misses(one, slo)})
        return (
            f"{len(accepted)} of {len(others)} candidates hold the quality bar of {bar:g}, but none meets {', '.join(missed)}; the baseline is kept."
        )
    return (
        f"{len(within)} of {len(others)} candidates hold the quality bar of {bar:g} and every limit, but none is surely better than the baseline "
        f"in {_GOALS[objective]}; the baseline is kept."
    )
