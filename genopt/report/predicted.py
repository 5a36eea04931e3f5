"""What was expected of the candidates beside what came out: how far a reader may trust the predictor."""

from __future__ import annotations

from genopt.plan import Candidate, Metric
from genopt.report import wording
from genopt.report.model import Report
from genopt.search.predict import mean_error


def compared(report: Report) -> list[Candidate]:
    """Candidates that were both predicted and measured, in the order in which they ended."""
    return [candidate for candidate in report.tried if candidate.predicted and candidate.predicted.metric in candidate.metrics]


def rows(report: Report) -> list[tuple[str, str, str, str, str]]:
    """Name, prediction, its 95 % interval, measurement and error of each."""
    found = []
    for candidate in compared(report):
        predicted = candidate.predicted
        if predicted is None:
            continue
        measured = candidate.metrics[predicted.metric]
        expected, low, high = (Metric(value=value, unit=predicted.unit) for value in (predicted.value, predicted.ci_low, predicted.ci_high))
        error = predicted.value / measured.value - 1 if measured.value > 0 else float("nan")
        interval = f"{wording.metric(low)} – {wording.metric(high)}"
        found.append((candidate.name, wording.metric(expected), interval, wording.metric(measured), f"{100 * error:+.0f}%"))
    return found


def error(report: Report) -> float | None:
    """Mean absolute error of the predictions as a share of the measurement."""
    pairs = [(item.predicted.value, item.metrics[item.predicted.metric].value) for item in compared(report) if item.predicted]
    return mean_error(pairs)


def sentence(report: Report) -> str:
    """How good the predictions were; empty where there were none."""
    found, count = error(report), len(compared(report))
    if found is None:
        return ""
    metric = next(item.predicted.metric for item in compared(report) if item.predicted)
    return (
        f"Each candidate's {metric} was predicted before it was measured, from the profile's roofline and from those measured before it; on average "
        f"over {count} {'candidate' if count == 1 else 'candidates'} the predictions were off by {wording.percent(found, 0)}. They decided what was "
        "tried first, and nothing else."
    )
